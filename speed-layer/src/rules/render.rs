//! What people and programs read of an alert: its id, labels, annotations and values.

use std::collections::BTreeMap;

use arrow::array::UInt64Array;
use arrow::compute::take_record_batch;
use arrow::error::ArrowError;
use arrow::json::writer::{JsonArray, WriterBuilder};
use arrow::record_batch::RecordBatch;
use iot_schemas::catalog::RuleDef;
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};

use super::key::decode;

/// Columns that begin with it are provenance and no values of an alert.
const PROVENANCE_PREFIX: char = '_';

/// The id of an episode: 16 hex digits of a hash over rule, labels and start.
///
/// An instance that ends and begins again at the same event time (a window's row that changes back and forth)
/// is the same episode again and has the same id.
pub(super) fn alert_id(rule: &str, labels: &BTreeMap<String, String>, started_at: i64) -> String {
    let mut hash = Sha256::new();
    let mut text = |part: &str| {
        hash.update((part.len() as u64).to_le_bytes());
        hash.update(part.as_bytes());
    };
    text(rule);
    for (name, value) in labels {
        text(name);
        text(value);
    }
    hash.update(started_at.to_le_bytes());
    hash.finalize().iter().take(8).map(|byte| format!("{byte:02x}")).collect()
}

/// The labels of an instance: its key columns (without those that are NULL) and the rule's labels.
pub(super) fn labels(def: &RuleDef, key_columns: &[String], key: &[u8]) -> BTreeMap<String, String> {
    let mut labels = def.labels.clone();
    for (name, value) in key_columns.iter().zip(decode(key)) {
        labels.extend(value.map(|value| (name.clone(), value)));
    }
    labels
}

/// Some rows as JSON: numbers as numbers, timestamps as RFC 3339, NULL as null. As many as `indices`.
///
/// A column type that JSON has no place for leaves all of them empty; no alert is lost for it.
pub(super) fn row_values(rows: &RecordBatch, indices: &[usize]) -> Vec<Map<String, Value>> {
    let values = if indices.is_empty() { None } else { encode(rows, indices).ok() };
    values.filter(|values| values.len() == indices.len()).unwrap_or_else(|| vec![Map::new(); indices.len()])
}

fn encode(rows: &RecordBatch, indices: &[usize]) -> Result<Vec<Map<String, Value>>, ArrowError> {
    let indices: UInt64Array = indices.iter().map(|index| *index as u64).collect::<Vec<_>>().into();
    let mut json = Vec::new();
    let mut writer = WriterBuilder::new().with_explicit_nulls(true).build::<_, JsonArray>(&mut json);
    writer.write(&take_record_batch(rows, &indices)?)?;
    writer.finish()?;
    drop(writer);
    serde_json::from_slice(&json).map_err(|e| ArrowError::JsonError(e.to_string()))
}

/// Without provenance.
pub(super) fn own_values(mut values: Map<String, Value>) -> Map<String, Value> {
    values.retain(|name, _| !name.starts_with(PROVENANCE_PREFIX));
    values
}

/// The rule's annotations with `{name}` replaced by the row's value of that column, or else by that label.
pub(super) fn annotations(
    def: &RuleDef,
    labels: &BTreeMap<String, String>,
    values: &Map<String, Value>,
) -> BTreeMap<String, String> {
    let look_up = |name: &str| values.get(name).map(text_of).or_else(|| labels.get(name).cloned());
    def.annotations.iter().map(|(name, template)| (name.clone(), fill(template, look_up))).collect()
}

/// Replaces each `{name}` that `look_up` knows; everything else stays as it is.
fn fill(template: &str, look_up: impl Fn(&str) -> Option<String>) -> String {
    let mut filled = String::with_capacity(template.len());
    let mut rest = template;
    while let Some(open) = rest.find('{') {
        filled.push_str(&rest[..open]);
        rest = &rest[open..];
        let close = rest.find('}');
        match close.and_then(|close| look_up(&rest[1..close]).map(|value| (close, value))) {
            Some((close, value)) => {
                filled.push_str(&value);
                rest = &rest[close + 1..];
            }
            None => {
                filled.push('{');
                rest = &rest[1..];
            }
        }
    }
    filled + rest
}

fn text_of(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Number(number) if number.is_f64() => number.as_f64().map_or_else(String::new, short),
        other => other.to_string(),
    }
}

/// Six significant digits, more only where they stand before the point, no trailing zeros.
fn short(number: f64) -> String {
    let magnitude = number.abs();
    if number == 0.0 {
        return "0".to_owned();
    }
    if !(1e-6..1e15).contains(&magnitude) {
        return format!("{number:e}");
    }
    let decimals = (5 - magnitude.log10().floor() as i32).clamp(0, 11) as usize;
    let text = format!("{number:.decimals$}");
    if decimals == 0 { text } else { text.trim_end_matches('0').trim_end_matches('.').to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn doubles_are_printed_for_people() {
        let cases = [
            (80.0, "80"),
            (82.333_333_333, "82.3333"),
            (-0.1, "-0.1"),
            (1_234_567.8, "1234568"),
            (0.000_123_456_78, "0.000123457"),
            (0.0, "0"),
            (1e300, "1e300"),
        ];
        for (number, expect) in cases {
            assert_eq!(short(number), expect);
        }
    }

    #[test]
    fn unknown_placeholders_stay() {
        let look_up = |name: &str| (name == "a").then(|| "1".to_owned());
        let cases = [
            ("{a} and {b}", "1 and {b}"),
            ("{{a}}", "{1}"),
            ("{a", "{a"),
            ("", ""),
            ("{ {a} é {", "{ 1 é {"),
        ];
        for (template, expect) in cases {
            assert_eq!(fill(template, look_up), expect);
        }
    }

    #[test]
    fn an_id_tells_rule_labels_and_start_apart() {
        let labels = BTreeMap::from([("device_id".to_owned(), "a".to_owned())]);
        let id = alert_id("hot", &labels, 5);
        assert_eq!(id.len(), 16);
        assert_eq!(id, alert_id("hot", &labels, 5));
        assert_ne!(id, alert_id("hot", &labels, 6));
        assert_ne!(id, alert_id("ho", &labels, 5));
        assert_ne!(id, alert_id("hot", &BTreeMap::new(), 5));
    }
}
