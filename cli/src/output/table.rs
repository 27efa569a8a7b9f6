//! A plain text table: columns as wide as their widest cell, numbers to the right.

use std::fmt;

/// The widest that a column is drawn. Longer cells are cut and end in `…`.
const MAX_CELL_CHARS: usize = 120;

/// A text table in the making.
#[derive(Debug, Clone)]
pub struct Table {
    columns: Vec<Column>,
    rows: Vec<Vec<String>>,
}

#[derive(Debug, Clone)]
struct Column {
    name: String,
    right: bool,
}

impl Table {
    /// A table without rows. Each column has a name and says whether it holds numbers.
    pub fn new<N: Into<String>>(columns: impl IntoIterator<Item = (N, bool)>) -> Self {
        let columns = columns.into_iter().map(|(name, right)| Column { name: name.into(), right }).collect();
        Self { columns, rows: Vec::new() }
    }

    /// Adds a row. Control characters are replaced so that one row stays one line.
    pub fn push(&mut self, cells: impl IntoIterator<Item = String>) {
        self.rows.push(cells.into_iter().map(|cell| tidy(&cell)).collect());
    }

    fn widths(&self) -> Vec<usize> {
        let mut widths: Vec<usize> = self.columns.iter().map(|column| column.name.chars().count()).collect();
        for row in &self.rows {
            for (width, cell) in widths.iter_mut().zip(row) {
                *width = (*width).max(cell.chars().count());
            }
        }
        widths
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let widths = self.widths();
        let names: Vec<&str> = self.columns.iter().map(|column| column.name.as_str()).collect();
        write_line(f, &self.columns, &widths, &names)?;
        for (i, width) in widths.iter().enumerate() {
            let cross = if i == 0 { "" } else { "+" };
            write!(f, "{cross}{}", "-".repeat(width + 2))?;
        }
        writeln!(f)?;
        for row in &self.rows {
            let cells: Vec<&str> = row.iter().map(String::as_str).collect();
            write_line(f, &self.columns, &widths, &cells)?;
        }
        Ok(())
    }
}

fn write_line(
    f: &mut fmt::Formatter<'_>,
    columns: &[Column],
    widths: &[usize],
    cells: &[&str],
) -> fmt::Result {
    let mut line = String::new();
    for (i, ((column, width), cell)) in columns.iter().zip(widths).zip(cells).enumerate() {
        line.push_str(if i == 0 { " " } else { " | " });
        let padding = " ".repeat(width.saturating_sub(cell.chars().count()));
        let (before, after) = if column.right { (padding.as_str(), "") } else { ("", padding.as_str()) };
        line.extend([before, cell, after]);
    }
    writeln!(f, "{}", line.trim_end())
}

fn tidy(cell: &str) -> String {
    let clean = cell.chars().map(|c| if c.is_control() { ' ' } else { c });
    if cell.chars().count() <= MAX_CELL_CHARS {
        return clean.collect();
    }
    clean.take(MAX_CELL_CHARS - 1).chain(['…']).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_stand_to_the_right_and_text_to_the_left() {
        let mut table = Table::new([("device", false), ("n", true)]);
        table.push(["press-01".to_owned(), "5".to_owned()]);
        table.push(["a\nb".to_owned(), "1200".to_owned()]);
        let expect = " device   |    n\n----------+------\n press-01 |    5\n a b      | 1200\n";
        assert_eq!(table.to_string(), expect);
    }

    #[test]
    fn a_very_long_cell_is_cut() {
        assert_eq!(tidy(&"x".repeat(500)).chars().count(), MAX_CELL_CHARS);
    }
}
