//! `kind: stream`

mod field;
mod payload;
mod pressure;
mod status;
mod upcast;

use std::collections::BTreeMap;
use std::time::Duration;

use arrow::datatypes::DataType;
use serde::{Deserialize, Serialize};

pub use field::FieldDef;
pub use payload::{Compression, CsvDef, Format};
pub use pressure::{OnPressure, RateLimit};
pub use status::{StatusDef, Words};
pub use upcast::UpcastDef;

use super::{Kind, column_name, duration_text, is_column_name};
use crate::layout::{DEVICE_ID, EVENT_TIME, IS_HISTORICAL, RESERVED, timestamp_type};
use crate::topic::TopicPattern;
use crate::upcast::Upcast;

/// Names that tables of the system have, and no stream may take.
const SYSTEM_TABLES: [&str; 3] = ["dead", "alerts", "late"];
/// A device is not idle before it has been silent this long, unless the stream says otherwise.
const LEAST_IDLE: Duration = Duration::from_secs(60);
/// Clocks of devices are set by hand, in local time, or not at all; an hour covers the first.
const MAX_FUTURE: Duration = Duration::from_secs(3600);
/// A device that has been cut off for longer delivers its past; the present need not wait for it.
const MAX_LAG: Duration = Duration::from_secs(24 * 3600);
/// A gateway that was cut off, and sends again what it is not sure of, does so when it is back.
const DEDUP_HORIZON: Duration = Duration::from_secs(3600);

/// A named, typed table of raw events and the topics that feed it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StreamDef {
    /// Always [`Kind::Stream`]; present because the document carries it.
    pub kind: Kind,
    /// The table's name.
    pub name: String,
    /// Which messages feed it. Named levels become text columns. Sparkplug B has a default, `spBv1.0/#`.
    #[serde(default)]
    pub topics: Vec<TopicPattern>,
    /// How payloads are encoded.
    #[serde(default)]
    pub format: Format,
    /// Whether payloads are compressed.
    #[serde(default)]
    pub compression: Compression,
    /// The field of an object that holds its events, if they are not the object itself: the other fields are
    /// repeated in each of them. Levels are separated by dots.
    #[serde(default)]
    pub rows: Option<String>,
    /// How the lines of a CSV payload are read.
    #[serde(default)]
    pub csv: Option<CsvDef>,
    /// MQTT user properties that become text columns.
    #[serde(default)]
    pub properties: Vec<String>,
    /// Where an event's time stands in it. Absent: `ts` if an event has it, else the arrival time.
    #[serde(default)]
    pub event_time: Option<EventTimeDef>,
    /// The declared fields, in addition to the named topic levels.
    #[serde(default)]
    pub fields: BTreeMap<String, FieldDef>,
    /// What happens to a field that is not declared.
    #[serde(default)]
    pub unknown_fields: UnknownFields,
    /// How events of older payload versions become events of today.
    #[serde(default)]
    pub upcast: Vec<UpcastDef>,
    /// The key whose later copies are not stored again.
    #[serde(default)]
    pub dedup: Vec<String>,
    /// How long after an event a copy of it is still recognised by its key, in arrival time; an hour if absent.
    #[serde(default, with = "duration_text")]
    pub dedup_horizon: Option<Duration>,
    /// What happens to messages while more come than can be taken.
    #[serde(default)]
    pub on_pressure: OnPressure,
    /// How many messages of a device are stored; without it, all.
    #[serde(default)]
    pub rate_limit: Option<RateLimit>,
    /// The expected interval between a device's events.
    #[serde(default, with = "duration_text")]
    pub cadence: Option<Duration>,
    /// How far the watermark stays behind the slowest device: events that are older than it count as late.
    #[serde(default, with = "duration_text")]
    pub allowed_lateness: Option<Duration>,
    /// How long a device may be silent before it no longer holds the watermark back; ten times the cadence, at
    /// least a minute, if absent.
    #[serde(default, with = "duration_text")]
    pub idle_timeout: Option<Duration>,
    /// How far an event's time may lie after its arrival and still be believed; an hour if absent.
    #[serde(default, with = "duration_text")]
    pub max_future: Option<Duration>,
    /// What happens to events beyond `max_future`.
    #[serde(default)]
    pub future_events: FutureEvents,
    /// How far behind the stream's newest event a device may be and still hold the watermark back; a day if
    /// absent. It keeps a clock that stands in 1970 from stopping the time of all.
    #[serde(default, with = "duration_text")]
    pub max_lag: Option<Duration>,
    /// How long raw events are kept.
    #[serde(default, with = "duration_text")]
    pub retention: Option<Duration>,
    /// Where devices say whether they are online.
    #[serde(default)]
    pub status: Option<StatusDef>,
    /// Whether the last value of each column is kept by device, in a view named after the stream with `_last` behind.
    #[serde(default = "yes")]
    pub last_values: bool,
}

fn yes() -> bool {
    true
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

    /// The columns of the user properties, in their order: as in payloads, what is no letter or digit becomes
    /// `_`.
    pub fn property_columns(&self) -> impl Iterator<Item = String> {
        self.properties.iter().map(|name| column_name(name))
    }

    /// The limits by which the stream's event time advances, defaults filled in.
    pub fn time_limits(&self) -> TimeLimits {
        let by_cadence = || self.cadence.unwrap_or_default().saturating_mul(10).max(LEAST_IDLE);
        TimeLimits {
            lateness: micros(self.allowed_lateness.unwrap_or_default()),
            idle: micros(self.idle_timeout.unwrap_or_else(by_cadence)),
            future: micros(self.max_future.unwrap_or(MAX_FUTURE)),
            lag: micros(self.max_lag.unwrap_or(MAX_LAG)),
        }
    }

    /// How long after an event a copy of it is still recognised by its key.
    pub fn dedup_horizon(&self) -> Duration {
        self.dedup_horizon.unwrap_or(DEDUP_HORIZON)
    }

    /// Fills in what follows from the format.
    pub(super) fn complete(mut self) -> Self {
        if self.topics.is_empty()
            && self.format == Format::SparkplugB
            && let Ok(all) = SPARKPLUG_TOPICS.parse()
        {
            self.topics.push(all);
        }
        self
    }

    pub(super) fn check(&self) -> Result<(), String> {
        if self.topics.is_empty() {
            return Err("`topics` is empty; give at least one MQTT filter".into());
        }
        if self.format == Format::SparkplugB {
            self.check_sparkplug()?;
        }
        if SYSTEM_TABLES.contains(&self.name.as_str()) {
            return Err("the name is taken by a table of the system".into());
        }
        for name in self.fields.keys() {
            if RESERVED.contains(&name.as_str()) {
                return Err(format!("the field name `{name}` is taken by a column of the system"));
            }
            if !is_column_name(name) {
                return Err(format!("`{name}` is no column name; use letters, digits and `_`"));
            }
        }
        self.check_aliases()?;
        for name in self.topic_columns() {
            if RESERVED.contains(&name) || self.fields.contains_key(name) {
                return Err(format!("the topic level `{name}` collides with a column of the same name"));
            }
        }
        self.check_properties()?;
        self.check_payload()?;
        self.on_pressure.check()?;
        self.rate_limit.map_or(Ok(()), |limit| limit.check())?;
        if self.dedup_horizon.is_some() && self.dedup.is_empty() {
            return Err(
                "`dedup_horizon` is of no use without `dedup`; name the fields of the key there".into()
            );
        }
        self.check_upcast()?;
        self.status.as_ref().map_or(Ok(()), StatusDef::check)?;
        for name in &self.dedup {
            let known = name == DEVICE_ID || name == EVENT_TIME || self.fields.contains_key(name);
            let from_outside = self.topic_columns().contains(&name.as_str())
                || self.property_columns().any(|column| column == *name);
            if !known && !from_outside {
                return Err(format!("`dedup` names `{name}`, which is no declared field"));
            }
        }
        Ok(())
    }

    /// A name in a payload leads to one column only.
    fn check_aliases(&self) -> Result<(), String> {
        let mut owners: BTreeMap<String, &str> = BTreeMap::new();
        let outside = self.topic_columns().into_iter().map(str::to_owned).chain(self.property_columns());
        let outside: Vec<String> = outside.map(|name| name.to_lowercase()).collect();
        let time = self.event_time.as_ref().and_then(|time| time.field.as_deref()).unwrap_or("ts");
        for (name, field) in &self.fields {
            field.check(name)?;
            for alias in &field.aliases {
                let lower = column_name(alias).to_lowercase();
                let other = self.fields.keys().find(|other| *other != name && other.to_lowercase() == lower);
                let other = other.map(String::as_str).or_else(|| owners.get(&lower).copied());
                if let Some(other) = other.filter(|other| other != name) {
                    return Err(format!("the alias `{alias}` of `{name}` leads to `{other}` already"));
                }
                let is_reserved = [&lower, alias].iter().any(|name| RESERVED.contains(&name.as_str()));
                if alias == name || outside.contains(&lower) || is_reserved {
                    return Err(format!("the alias `{alias}` of `{name}` is the name of a column"));
                }
                if column_name(time).to_lowercase() == lower {
                    return Err(format!("the alias `{alias}` of `{name}` is where the event time stands"));
                }
                owners.insert(lower, name);
            }
        }
        Ok(())
    }

    fn check_properties(&self) -> Result<(), String> {
        let mut seen: Vec<String> = Vec::new();
        for (property, column) in self.properties.iter().zip(self.property_columns()) {
            if !is_column_name(&column) || column.starts_with('_') {
                return Err(format!("the property `{property}` cannot be a column name"));
            }
            let taken = RESERVED.contains(&column.as_str())
                || self.fields.contains_key(&column)
                || self.topic_columns().contains(&column.as_str())
                || seen.contains(&column);
            if taken {
                return Err(format!("the property `{property}` collides with the column `{column}`"));
            }
            seen.push(column);
        }
        Ok(())
    }

    /// Settings that the format would leave unread.
    fn check_payload(&self) -> Result<(), String> {
        let only = |setting: &str, formats: &str| {
            let format = self.format.word();
            Err(format!("`{setting}` is for the formats {formats}; the stream's format is `{format}`"))
        };
        if self.rows.is_some() && !self.format.has_objects() {
            return only("rows", "json, cbor, msgpack and auto");
        }
        if self.csv.is_some() && !matches!(self.format, Format::Csv | Format::Auto) {
            return only("csv", "csv and auto");
        }
        if self.event_time.is_some() && matches!(self.format, Format::SenmlJson | Format::SenmlCbor) {
            return Err("SenML records say themselves when they are from; leave `event_time` out".into());
        }
        self.csv.as_ref().map_or(Ok(()), CsvDef::check)
    }

    fn check_upcast(&self) -> Result<(), String> {
        if self.upcast.is_empty() {
            return Ok(());
        }
        let time = self.event_time.as_ref().and_then(|time| time.field.as_deref()).unwrap_or("ts");
        for field in self.upcast.iter().flat_map(|step| step.set.keys()) {
            if !self.fields.contains_key(field) && *field != column_name(time) {
                return Err(format!("`upcast` sets `{field}`, which is no declared field"));
            }
        }
        Upcast::new(&self.upcast).map(drop)
    }

    /// Sparkplug B says itself what levels mean, which device an event is about, and when it happened.
    fn check_sparkplug(&self) -> Result<(), String> {
        let format = "with `format: sparkplug_b`";
        if let Some(topic) = self.topics.iter().find(|topic| !topic.filter().starts_with(SPARKPLUG_ROOT)) {
            return Err(format!("the topic `{topic}`, {format}, must begin with `{SPARKPLUG_ROOT}`"));
        }
        if self.topics.iter().any(|topic| topic.names().any(|name| name == DEVICE_ID)) {
            return Err(format!(
                "`{DEVICE_ID}` cannot name a topic level {format}: it is group, node and device"
            ));
        }
        if self.event_time.is_some() {
            return Err(format!("`event_time` cannot be set {format}: metrics have their own times"));
        }
        if !self.upcast.is_empty() {
            return Err(format!("`upcast` cannot be set {format}: births say what metrics are"));
        }
        if self.status.is_some() {
            return Err(format!("`status` cannot be set {format}: births and deaths say who is online"));
        }
        match self.fields.keys().find(|name| SPARKPLUG_COLUMNS.iter().any(|(column, _)| column == name)) {
            Some(name) => {
                Err(format!("the field name `{name}`, {format}, is taken by a column of the format"))
            }
            None => Ok(()),
        }
    }
}

/// With what the topic of every Sparkplug message begins.
const SPARKPLUG_ROOT: &str = "spBv1.0/";
/// The topics of a Sparkplug stream that names none.
const SPARKPLUG_TOPICS: &str = "spBv1.0/#";

/// The columns that every Sparkplug stream has, in this order, before those of its metrics.
pub const SPARKPLUG_COLUMNS: [(&str, FieldType); 6] = [
    ("group_id", FieldType::Text),
    ("edge_node", FieldType::Text),
    ("message_type", FieldType::Text),
    (IS_HISTORICAL, FieldType::Boolean),
    ("is_transient", FieldType::Boolean),
    ("properties", FieldType::Text),
];

/// The limits by which the event time of a stream advances, in microseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TimeLimits {
    /// How far the watermark stays behind the slowest device.
    pub lateness: i64,
    /// How long a device may be silent, in arrival time, and still hold the watermark back.
    pub idle: i64,
    /// How far an event's time may lie after its arrival and still be believed.
    pub future: i64,
    /// How far behind the stream's newest event a device may be and still hold the watermark back.
    pub lag: i64,
}

impl TimeLimits {
    /// Whether an event of that time, which arrived then, is too far in the future to be believed.
    pub fn is_future(&self, event_time: i64, arrival: i64) -> bool {
        event_time > arrival.saturating_add(self.future)
    }
}

fn micros(duration: Duration) -> i64 {
    i64::try_from(duration.as_micros()).unwrap_or(i64::MAX)
}

/// What happens to events that are too far in the future to be believed. Neither way do they move a watermark.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FutureEvents {
    /// They are stored, counted by views, and listed in the table `late`.
    #[default]
    Keep,
    /// Their message becomes a dead letter.
    DeadLetter,
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

    /// The type whose columns have the type `data_type`.
    pub fn of(data_type: &DataType) -> Option<Self> {
        Self::ALL.into_iter().find(|one| one.data_type() == *data_type)
    }

    /// All types.
    pub const ALL: [Self; 5] = [Self::Double, Self::Bigint, Self::Boolean, Self::Text, Self::Timestamp];

    /// The word that the catalog has for it.
    pub fn word(self) -> &'static str {
        match self {
            Self::Double => "double",
            Self::Bigint => "bigint",
            Self::Boolean => "boolean",
            Self::Text => "text",
            Self::Timestamp => "timestamp",
        }
    }
}

/// Where the event time stands, and in which unit if it is a number.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EventTimeDef {
    /// The payload field, which every event must then have. Absent: `ts`, if an event has it. RFC 3339 text is
    /// always accepted.
    #[serde(default)]
    pub field: Option<String>,
    /// The unit of a number; nanoseconds in line protocol and milliseconds otherwise, if absent.
    #[serde(default)]
    pub unit: Option<TimeUnitName>,
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

impl TimeUnitName {
    /// The unit that is called `word`, as in the catalog or, as InfluxDB's clients have it, `n` and `u`.
    pub fn of_word(word: &str) -> Option<Self> {
        Some(match word {
            "s" => Self::S,
            "ms" => Self::Ms,
            "us" | "u" => Self::Us,
            "ns" | "n" => Self::Ns,
            _ => return None,
        })
    }
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

impl UnknownFields {
    /// The word that the catalog has for it.
    pub fn word(self) -> &'static str {
        match self {
            Self::Add => "add",
            Self::Ignore => "ignore",
            Self::Reject => "reject",
        }
    }
}
