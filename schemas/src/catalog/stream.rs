//! `kind: stream`

use std::collections::BTreeMap;
use std::time::Duration;

use arrow::datatypes::DataType;
use serde::{Deserialize, Serialize};

use super::{Kind, duration_text};
use crate::layout::{DEVICE_ID, EVENT_TIME, RESERVED, timestamp_type};
use crate::topic::{TopicPattern, is_name};

/// A named, typed table of raw events and the topics that feed it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StreamDef {
    /// Always [`Kind::Stream`]; present because the document carries it.
    pub kind: Kind,
    /// The table's name.
    pub name: String,
    /// Which messages feed it. Named levels become text columns.
    pub topics: Vec<TopicPattern>,
    /// How payloads are encoded.
    #[serde(default)]
    pub format: Format,
    /// Where an event's time stands in it. Absent: `ts` if an event has it, else the arrival time.
    #[serde(default)]
    pub event_time: Option<EventTimeDef>,
    /// The declared fields, in addition to the named topic levels.
    #[serde(default)]
    pub fields: BTreeMap<String, FieldType>,
    /// What happens to a field that is not declared.
    #[serde(default)]
    pub unknown_fields: UnknownFields,
    /// The key whose later copies are not stored again.
    #[serde(default)]
    pub dedup: Vec<String>,
    /// The expected interval between a device's events.
    #[serde(default, with = "duration_text")]
    pub cadence: Option<Duration>,
    /// How far behind the newest event an event may be before it counts as late.
    #[serde(default, with = "duration_text")]
    pub allowed_lateness: Option<Duration>,
    /// How long raw events are kept.
    #[serde(default, with = "duration_text")]
    pub retention: Option<Duration>,
}

impl StreamDef {
    /// The named topic levels other than `device_id`: text columns of the stream.
    pub fn topic_columns(&self) -> Vec<&str> {
        let mut names: Vec<&str> = Vec::new();
        for name in self.topics.iter().flat_map(TopicPattern::names) {
            if name != DEVICE_ID && !names.contains(&name) {
                names.push(name);
            }
        }
        names
    }

    pub(super) fn check(&self) -> Result<(), String> {
        if self.topics.is_empty() {
            return Err("`topics` is empty; give at least one MQTT filter".into());
        }
        if self.name == "dead" || self.name == "alerts" {
            return Err("the name is taken by a table of the system".into());
        }
        for name in self.fields.keys() {
            if RESERVED.contains(&name.as_str()) {
                return Err(format!("the field name `{name}` is taken by a column of the system"));
            }
            if !is_name(name) {
                return Err(format!("`{name}` is no column name; use letters, digits and `_`"));
            }
        }
        for name in self.topic_columns() {
            if RESERVED.contains(&name) || self.fields.contains_key(name) {
                return Err(format!("the topic level `{name}` collides with a column of the same name"));
            }
        }
        for name in &self.dedup {
            let known = name == DEVICE_ID || name == EVENT_TIME || self.fields.contains_key(name);
            if !known && !self.topic_columns().contains(&name.as_str()) {
                return Err(format!("`dedup` names `{name}`, which is no declared field"));
            }
        }
        Ok(())
    }
}

/// How payloads are encoded.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Format {
    /// A JSON object, or an array of objects.
    #[default]
    Json,
}

/// The type of a declared field.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FieldType {
    /// 64-bit floating point.
    #[serde(alias = "float")]
    Double,
    /// 64-bit signed integer.
    #[serde(alias = "int", alias = "integer")]
    Bigint,
    /// True or false.
    #[serde(alias = "bool")]
    Boolean,
    /// UTF-8 text.
    #[serde(alias = "string")]
    Text,
    /// An instant in microseconds, UTC; read from RFC 3339 text or epoch milliseconds.
    Timestamp,
}

impl FieldType {
    /// The column type.
    pub fn data_type(self) -> DataType {
        match self {
            Self::Double => DataType::Float64,
            Self::Bigint => DataType::Int64,
            Self::Boolean => DataType::Boolean,
            Self::Text => DataType::Utf8,
            Self::Timestamp => timestamp_type(),
        }
    }
}

/// Where the event time stands, and in which unit if it is a number.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EventTimeDef {
    /// The payload field. RFC 3339 text is always accepted.
    pub field: String,
    /// The unit of a number.
    #[serde(default)]
    pub unit: TimeUnitName,
}

/// A unit of epoch time.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TimeUnitName {
    /// Seconds, with fractions.
    S,
    /// Milliseconds.
    #[default]
    Ms,
    /// Microseconds.
    Us,
    /// Nanoseconds.
    Ns,
}

/// What happens to a field that is not declared.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum UnknownFields {
    /// It becomes a column, its type inferred from the first value and widened from integer to double.
    #[default]
    Add,
    /// It is left out.
    Ignore,
    /// The message becomes a dead letter.
    Reject,
}
