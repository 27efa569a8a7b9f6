//! A row of a file: named values, each as the JSON that it will become.

use std::sync::Arc;

use super::json;

/// A value of a row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Value {
    /// There is none; the reading will not have the field.
    Absent,
    /// A number, `true`, `false` or something nested: JSON text, with the digits that the file has.
    Literal(String),
    /// Text, not yet quoted.
    Text(String),
}

impl Value {
    /// The value of a cell of a CSV file, which has no types: numbers and booleans are recognised, an empty cell
    /// and NaN, which JSON cannot hold, are absent, and all else is text. `007` is text.
    pub(super) fn infer(cell: &str) -> Self {
        let trimmed = cell.trim();
        if trimmed.is_empty() {
            return Self::Absent;
        }
        if trimmed.eq_ignore_ascii_case("true") || trimmed.eq_ignore_ascii_case("false") {
            return Self::Literal(trimmed.to_ascii_lowercase());
        }
        match trimmed.parse::<f64>() {
            Ok(number) if number.is_nan() => Self::Absent,
            Ok(number) if number.is_finite() && json::is_number(trimmed) => Self::Literal(trimmed.to_owned()),
            Ok(number) if number.is_finite() && !has_leading_zero(trimmed) => {
                Self::Literal(number.to_string())
            }
            _ => Self::Text(cell.to_owned()),
        }
    }

    /// The value as plain text, for a topic or a time.
    pub(super) fn text(&self) -> &str {
        match self {
            Self::Absent => "",
            Self::Literal(text) | Self::Text(text) => text,
        }
    }
}

/// One row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Row {
    /// Where it stands: `line 7` or `row 7`.
    pub(super) place: Place,
    /// Its values with the names of their columns, made fit for SQL.
    pub(super) cells: Vec<(Arc<str>, Value)>,
}

/// Where a row stands in its file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    /// The number of its line.
    Line(u64),
    /// The number of the row.
    Row(u64),
}

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Line(n) => write!(f, "line {n}"),
            Self::Row(n) => write!(f, "row {n}"),
        }
    }
}

impl Row {
    /// The value of a column.
    pub(super) fn get(&self, name: &str) -> &Value {
        self.cells.iter().find(|(column, _)| &**column == name).map_or(&Value::Absent, |(_, value)| value)
    }

    /// The names of its columns.
    pub(super) fn names(&self) -> impl Iterator<Item = &str> {
        self.cells.iter().map(|(name, _)| &**name)
    }
}

/// A column's name in `[a-z0-9_]`: `Water flow [l/s]` becomes `water_flow_l_s`.
pub(super) fn tidy_name(name: &str) -> String {
    let mut tidy = String::with_capacity(name.len());
    let leading = name.chars().take_while(|c| *c == '_').count();
    for c in name.chars().skip(leading) {
        match c.to_ascii_lowercase() {
            c @ ('a'..='z' | '0'..='9') => tidy.push(c),
            _ if tidy.ends_with('_') || tidy.is_empty() => {}
            _ => tidy.push('_'),
        }
    }
    let tidy = "_".repeat(leading) + tidy.trim_end_matches('_');
    match tidy.chars().next() {
        None => "column".to_owned(),
        Some(c) if c.is_ascii_digit() => format!("_{tidy}"),
        Some(_) => tidy,
    }
}

/// The names of a header, fit for SQL and each of them once.
pub(super) fn tidy_names<'a>(names: impl Iterator<Item = &'a str>) -> Vec<Arc<str>> {
    let mut tidy: Vec<Arc<str>> = Vec::new();
    for name in names {
        let base = tidy_name(name);
        let mut candidate: Arc<str> = base.as_str().into();
        let mut number = 2;
        while tidy.contains(&candidate) {
            candidate = format!("{base}_{number}").into();
            number += 1;
        }
        tidy.push(candidate);
    }
    tidy
}

fn has_leading_zero(text: &str) -> bool {
    let digits = text.trim_start_matches(['+', '-']).as_bytes();
    digits.len() > 1 && digits[0] == b'0' && digits[1].is_ascii_digit()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn literal(cell: &str, expect: &str) {
        assert_eq!(Value::infer(cell), Value::Literal(expect.to_owned()), "{cell}");
    }

    #[test]
    fn numbers_keep_their_digits() {
        for number in
            ["0", "-12", "74.93588199999998", "0.00479298817650529", "20.0", "1e5", "9007199254740993"]
        {
            literal(number, number);
        }
        literal(" 5 ", "5");
        literal("+5", "5");
        literal(".5", "0.5");
        literal("TRUE", "true");
    }

    #[test]
    fn what_is_no_number_is_text_and_nothing_is_absent() {
        for text in ["v2.3", "007", "1e999", "inf", "2015-02-04", "-"] {
            assert_eq!(Value::infer(text), Value::Text(text.to_owned()), "{text}");
        }
        for nothing in ["", "  ", "NaN"] {
            assert_eq!(Value::infer(nothing), Value::Absent, "{nothing:?}");
        }
    }

    #[test]
    fn names_become_fit_for_sql() {
        let names = ["Water flow [l/s]", "CO2", "HumidityRatio", "2nd", "°", "_seq", "co2"];
        let expect = ["water_flow_l_s", "co2", "humidityratio", "_2nd", "column", "_seq", "co2_2"];
        let tidy = tidy_names(names.into_iter());
        assert_eq!(tidy.iter().map(|name| &**name).collect::<Vec<_>>(), expect);
    }
}
