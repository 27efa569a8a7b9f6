//! The key of an instance: the values of the target's key columns, as text.

use std::sync::Arc;

use arrow::array::{Array, AsArray, StringArray};
use arrow::compute::cast;
use arrow::datatypes::DataType;
use arrow::error::ArrowError;
use arrow::record_batch::RecordBatch;

/// An encoded key: for each column, length + 1 as little-endian u32 and the text; 0 stands for NULL.
///
/// Text, not the values' own bytes, so that a key survives a change of the column's type.
pub(super) type Key = Arc<[u8]>;

/// The keys of a batch, one row at a time.
#[derive(Debug)]
pub(super) struct Keys {
    columns: Vec<StringArray>,
    buffer: Vec<u8>,
}

impl Keys {
    /// The values of `columns` in `rows`. A column that `rows` does not have is NULL throughout.
    pub(super) fn of(rows: &RecordBatch, columns: &[String]) -> Result<Self, ArrowError> {
        let text = |name: &String| match rows.column_by_name(name) {
            Some(column) => Ok(cast(column, &DataType::Utf8)?.as_string::<i32>().clone()),
            None => Ok(StringArray::new_null(rows.num_rows())),
        };
        let columns = columns.iter().map(text).collect::<Result<_, ArrowError>>()?;
        Ok(Self { columns, buffer: Vec::new() })
    }

    /// The key of one row.
    pub(super) fn read(&mut self, row: usize) -> &[u8] {
        self.buffer.clear();
        for column in &self.columns {
            push(&mut self.buffer, column.is_valid(row).then(|| column.value(row)));
        }
        &self.buffer
    }
}

/// The key with these values.
pub(super) fn encode<'a>(values: impl IntoIterator<Item = Option<&'a str>>) -> Key {
    let mut buffer = Vec::new();
    for value in values {
        push(&mut buffer, value);
    }
    buffer.into()
}

/// The values of a key.
pub(super) fn decode(mut key: &[u8]) -> Vec<Option<String>> {
    let mut values = Vec::new();
    while let Some((head, rest)) = key.split_first_chunk::<4>() {
        let length = (u32::from_le_bytes(*head) as usize).checked_sub(1);
        let (text, rest) = rest.split_at(length.unwrap_or(0).min(rest.len()));
        values.push(length.map(|_| String::from_utf8_lossy(text).into_owned()));
        key = rest;
    }
    values
}

fn push(buffer: &mut Vec<u8>, value: Option<&str>) {
    let head = value.map_or(0, |text| text.len() as u32 + 1);
    buffer.extend_from_slice(&head.to_le_bytes());
    buffer.extend_from_slice(value.unwrap_or_default().as_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn null_empty_text_and_neighbours_are_told_apart() {
        let cases: [&[Option<&str>]; 6] = [
            &[],
            &[None],
            &[Some("")],
            &[Some("ab"), Some("c")],
            &[Some("a"), Some("bc")],
            &[None, Some("x")],
        ];
        for values in cases {
            let key = encode(values.iter().copied());
            let back = decode(&key);
            assert_eq!(back.iter().map(Option::as_deref).collect::<Vec<_>>(), values);
        }
        assert_ne!(encode([Some("ab"), Some("c")]), encode([Some("a"), Some("bc")]));
    }
}
