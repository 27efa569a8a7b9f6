//! Lists of JSON objects (streams, alerts, reports) as a table or for programs.

use std::collections::BTreeSet;

use anyhow::Result;
use clap::ValueEnum;
use serde_json::{Map, Value};

use super::table::Table;
use super::tree::plain;

/// How a list is printed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub enum ListFormat {
    /// Aligned columns.
    #[default]
    Table,
    /// One JSON array.
    Json,
    /// One JSON object a line.
    Jsonl,
    /// Comma-separated values with a header.
    Csv,
}

/// Objects of about the same shape.
#[derive(Debug, Clone, Default)]
pub struct Rows {
    rows: Vec<Map<String, Value>>,
    first: &'static [&'static str],
    hidden: &'static [&'static str],
}

impl Rows {
    /// The objects, in the order in which they are printed.
    pub fn new(rows: Vec<Map<String, Value>>) -> Self {
        Self { rows, ..Self::default() }
    }

    /// The columns that a table begins with, where they exist. The others follow by name.
    #[must_use]
    pub fn first(mut self, columns: &'static [&'static str]) -> Self {
        self.first = columns;
        self
    }

    /// The columns that a table leaves out, because they are too long or say nothing to a person.
    #[must_use]
    pub fn hidden(mut self, columns: &'static [&'static str]) -> Self {
        self.hidden = columns;
        self
    }

    /// Prints the list. That a table would be empty is said on stderr.
    pub fn print(&self, format: ListFormat) -> Result<()> {
        if format == ListFormat::Table && self.rows.is_empty() {
            super::notice("there is nothing to list");
            return Ok(());
        }
        super::bytes(&self.encode(format)?)
    }

    /// The list as bytes to print.
    pub fn encode(&self, format: ListFormat) -> Result<Vec<u8>> {
        match format {
            ListFormat::Table => Ok(self.table().to_string().into_bytes()),
            ListFormat::Json => Ok([serde_json::to_vec_pretty(&self.rows)?.as_slice(), b"\n"].concat()),
            ListFormat::Jsonl => self.json_lines(),
            ListFormat::Csv => self.csv(),
        }
    }

    fn columns(&self) -> Vec<&str> {
        let present: BTreeSet<&str> =
            self.rows.iter().flat_map(|row| row.keys()).map(String::as_str).collect();
        let first = self.first.iter().copied().filter(|name| present.contains(name));
        let rest = present.iter().copied().filter(|name| !self.first.contains(name));
        first.chain(rest).collect()
    }

    fn table(&self) -> Table {
        let mut columns = self.columns();
        columns.retain(|name| !self.hidden.contains(name));
        let is_number = |name: &str| {
            let mut values =
                self.rows.iter().filter_map(|row| row.get(name)).filter(|value| !value.is_null());
            values.clone().next().is_some() && values.all(Value::is_number)
        };
        let mut table = Table::new(columns.iter().map(|name| (*name, is_number(name))));
        for row in &self.rows {
            table.push(columns.iter().map(|name| row.get(*name).map(cell).unwrap_or_default()));
        }
        table
    }

    fn json_lines(&self) -> Result<Vec<u8>> {
        let mut bytes = Vec::new();
        for row in &self.rows {
            serde_json::to_writer(&mut bytes, row)?;
            bytes.push(b'\n');
        }
        Ok(bytes)
    }

    fn csv(&self) -> Result<Vec<u8>> {
        let columns = self.columns();
        let mut writer = csv::Writer::from_writer(Vec::new());
        writer.write_record(&columns)?;
        for row in &self.rows {
            writer.write_record(columns.iter().map(|name| row.get(*name).map(cell).unwrap_or_default()))?;
        }
        Ok(writer.into_inner().map_err(|error| error.into_error())?)
    }
}

/// A value in one cell: `{"a": 1}` becomes `a=1`, a list becomes `x, y`.
fn cell(value: &Value) -> String {
    match value {
        Value::Object(fields) => {
            let pairs: Vec<String> =
                fields.iter().map(|(key, value)| format!("{key}={}", plain(value))).collect();
            pairs.join(" ")
        }
        Value::Array(items) => items.iter().map(cell).collect::<Vec<_>>().join(", "),
        scalar => plain(scalar),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn rows() -> Rows {
        let row = |value: Value| value.as_object().expect("an object").clone();
        Rows::new(vec![
            row(json!({"events": 12, "name": "readings", "labels": {"team": "plant"}, "topics": ["a/b", "c"]})),
            row(json!({"events": 3, "name": "other", "extra": null})),
        ])
        .first(&["name"])
    }

    #[test]
    fn a_table_begins_with_the_wanted_columns() {
        let text = String::from_utf8(rows().encode(ListFormat::Table).expect("it encodes")).expect("UTF-8");
        let expect = [
            " name     | events | extra | labels     | topics",
            "----------+--------+-------+------------+--------",
            " readings |     12 |       | team=plant | a/b, c",
            " other    |      3 |       |            |",
        ];
        assert_eq!(text.lines().collect::<Vec<_>>(), expect);
    }

    #[test]
    fn programs_get_every_field() {
        let lines = String::from_utf8(rows().encode(ListFormat::Jsonl).expect("it encodes")).expect("UTF-8");
        assert_eq!(lines.lines().count(), 2);
        let array: Value =
            serde_json::from_slice(&rows().encode(ListFormat::Json).expect("it encodes")).expect("JSON");
        assert_eq!(array[0]["labels"]["team"], "plant");
        let csv = String::from_utf8(rows().hidden(&["labels"]).encode(ListFormat::Csv).expect("it encodes"));
        assert!(csv.expect("UTF-8").starts_with("name,events,extra,labels,topics\nreadings,12,,team=plant,"));
    }
}
