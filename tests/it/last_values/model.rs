//! What the last values are, said again in a few lines that know nothing of states and columns.

use std::collections::BTreeMap;

use proptest::prelude::*;
use serde_json::{Map, Value, json};

const START_MS: i64 = 1_760_000_000_000;
/// Fields beyond the declared one. They appear when an event first has them.
const FIELDS: u8 = 6;

/// An event of a device.
#[derive(Debug, Clone)]
pub(super) struct Reading {
    pub(super) device: u8,
    seconds: i64,
    status: Option<u8>,
    numbers: Vec<(u8, Number)>,
}

/// A field starts as an integer and becomes a double with its first fraction.
#[derive(Debug, Clone, Copy)]
enum Number {
    Integer(i32),
    Half(i32),
    Null,
}

pub(super) fn reading() -> impl Strategy<Value = Reading> {
    // Few times and values, so that there are ties; some events long late.
    let seconds = prop_oneof![6 => 0i64..20, 1 => -100_000i64..0];
    let number = prop_oneof![
        8 => (-3i32..3).prop_map(Number::Integer),
        1 => (-3i32..3).prop_map(Number::Half),
        2 => Just(Number::Null),
    ];
    let numbers = prop::collection::btree_map(0..FIELDS, number, 0..3);
    (0u8..5, seconds, prop::option::of(0u8..3), numbers).prop_map(|(device, seconds, status, numbers)| {
        Reading { device, seconds, status, numbers: numbers.into_iter().collect() }
    })
}

impl Number {
    fn json(self) -> Value {
        match self {
            Self::Integer(n) => json!(n),
            Self::Half(n) => json!(f64::from(n) + 0.5),
            Self::Null => Value::Null,
        }
    }
}

impl Reading {
    pub(super) fn payload(&self) -> String {
        let mut payload = json!({ "ts": START_MS + self.seconds * 1_000 });
        for (field, number) in &self.numbers {
            payload[format!("f{field}")] = number.json();
        }
        if let Some(status) = self.status {
            payload["status"] = json!(format!("s{status}"));
        }
        payload.to_string()
    }
}

/// A value in an order: numbers in halves, or text.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Known {
    Halves(i64),
    Text(String),
}

/// Device -> the newest time, and the newest value of each column that has one.
type Rows = BTreeMap<String, (i64, BTreeMap<String, Known>)>;

/// The last value of each column, and when it was.
type Columns = BTreeMap<String, (i64, Known)>;

/// All that was sent.
#[derive(Debug, Default)]
pub(super) struct Model {
    /// Device and column -> the greatest (time, value).
    newest: BTreeMap<String, (i64, Columns)>,
}

impl Model {
    pub(super) fn take(&mut self, reading: &Reading) {
        let device = self.newest.entry(format!("d{}", reading.device)).or_insert((i64::MIN, BTreeMap::new()));
        device.0 = device.0.max(reading.seconds);
        let number = |(field, number): &(u8, Number)| {
            let halves = match number {
                Number::Integer(n) => i64::from(*n) * 2,
                Number::Half(n) => i64::from(*n) * 2 + 1,
                Number::Null => return None,
            };
            Some((format!("f{field}"), Known::Halves(halves)))
        };
        let status = reading.status.map(|status| ("status".to_owned(), Known::Text(format!("s{status}"))));
        for (column, value) in reading.numbers.iter().filter_map(number).chain(status) {
            let candidate = (reading.seconds, value);
            let newest = device.1.entry(column).or_insert_with(|| candidate.clone());
            if candidate > *newest {
                *newest = candidate;
            }
        }
    }

    pub(super) fn rows(&self) -> Rows {
        let values = |columns: &BTreeMap<String, (i64, Known)>| {
            columns.iter().map(|(name, (_, value))| (name.clone(), value.clone())).collect()
        };
        self.newest
            .iter()
            .map(|(device, (time, columns))| (device.clone(), (*time, values(columns))))
            .collect()
    }

    /// The rows of a query as [`Self::rows`] would say them.
    pub(super) fn read(rows: &[Value]) -> Rows {
        rows.iter().map(|row| read(row.as_object().expect("a row"))).collect()
    }
}

fn read(row: &Map<String, Value>) -> (String, (i64, BTreeMap<String, Known>)) {
    let text = |name: &str| row[name].as_str().expect("text");
    let time = chrono::DateTime::parse_from_rfc3339(text("event_time")).expect("a time");
    let known = |value: &Value| match value {
        Value::String(text) => Some(Known::Text(text.clone())),
        Value::Number(number) => Some(Known::Halves((number.as_f64().expect("a number") * 2.0) as i64)),
        _ => None,
    };
    let own = row.iter().filter(|(name, _)| !["device_id", "event_time"].contains(&name.as_str()));
    let values = own.filter_map(|(name, value)| Some((name.clone(), known(value)?))).collect();
    (text("device_id").to_owned(), ((time.timestamp_millis() - START_MS) / 1_000, values))
}
