//! How a row becomes a reading: which columns say what, when and of whom.

use anyhow::{Result, anyhow};
use iot_schemas::alert::micros_rfc3339;
use iot_schemas::layout::RESERVED;

use super::Reading;
use super::row::{Row, Value, tidy_name};
use super::template::{Filling, Template};
use super::time::{self, TimeUnit};
use crate::exit::Failure;

/// Where telemetry goes unless told otherwise.
const DEFAULT_TOPIC: &str = "devices/{device_id}/telemetry";
/// In a topic, these stand for the device, also where no column is called so.
const DEVICE_PLACEHOLDERS: [&str; 2] = ["device_id", "device"];
/// Columns that probably name the device, the best first.
const DEVICE_COLUMNS: [&str; 5] = ["device_id", "device", "name", "sensor_id", "sensor"];
/// Columns that probably hold the time, the best first.
const TIME_COLUMNS: [&str; 7] = ["ts", "time", "timestamp", "event_time", "datetime", "date_time", "date"];
/// The field in which receivers look for the time of a reading.
const TIME_FIELD: &str = "ts";

/// How rows become readings.
#[derive(Debug, Clone)]
pub struct MappingOptions {
    /// The topic, with columns in braces.
    pub topic: Template,
    /// What names the device.
    pub device: Device,
    /// What holds the time.
    pub time: TimeField,
    /// The unit of a time that is a number; by default what makes sense.
    pub time_unit: Option<TimeUnit>,
    /// The name of the time in the reading.
    pub time_as: String,
    /// Whether columns that are part of the topic are part of the reading, too.
    pub keep_topic_columns: bool,
    /// The device of a file that names none.
    pub file_stem: String,
}

impl Default for MappingOptions {
    fn default() -> Self {
        Self {
            topic: DEFAULT_TOPIC.parse().expect("the default topic is one"),
            device: Device::Guess,
            time: TimeField::Guess,
            time_unit: None,
            time_as: TIME_FIELD.to_owned(),
            keep_topic_columns: false,
            file_stem: String::new(),
        }
    }
}

/// What names the device of a reading.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Device {
    /// The first of the usual columns that exists, else the file's name.
    Guess,
    /// This column.
    Column(String),
    /// All readings are of this device.
    Constant(String),
}

/// What holds the time of a reading.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TimeField {
    /// The first of the usual columns that exists; if none does, readings have no time.
    Guess,
    /// This column.
    Column(String),
    /// Readings have no time; the receiver takes the time of arrival.
    None,
}

/// Turns rows into readings.
#[derive(Debug)]
pub(super) struct Mapper {
    topic: Template,
    fillings: Vec<Filling>,
    time: Option<String>,
    time_unit: Option<TimeUnit>,
    time_as: String,
    left_out: Vec<String>,
}

impl Mapper {
    /// Settles what is to be guessed by the columns of the first row.
    pub(super) fn new(options: &MappingOptions, first: &Row) -> Result<Self> {
        let device = device(options, first)?;
        let fillings: Vec<Filling> =
            options.topic.columns().map(|name| filling(name, &device, first)).collect::<Result<_, _>>()?;
        let time = time_column(options, first)?;
        let in_topic = fillings.iter().filter_map(|filling| match filling {
            Filling::Column(name) if !options.keep_topic_columns => Some(name.clone()),
            _ => None,
        });
        let left_out = in_topic.chain(RESERVED.map(str::to_owned)).collect();
        Ok(Self {
            topic: options.topic.clone(),
            fillings,
            time,
            time_unit: options.time_unit,
            time_as: tidy_name(&options.time_as),
            left_out,
        })
    }

    /// The reading of a row, and whether the row lacks a value that the topic needs.
    pub(super) fn map(&self, row: &Row) -> Result<(Reading, bool)> {
        let time_us = self.time_us(row)?;
        let (topic, lacks_device) = self.topic.fill(row, &self.fillings);
        let mut object = Object::new();
        if let Some(time_us) = time_us {
            object.time(&self.time_as, time_us);
        }
        for (name, value) in &row.cells {
            if self.time.as_deref() == Some(name) || self.left_out.iter().any(|left_out| **left_out == **name)
            {
                continue;
            }
            // A column that happens to be called like the time is not the time.
            let name = if **name == *self.time_as { format!("{name}_2").into() } else { name.clone() };
            object.field(&name, value)?;
        }
        Ok((Reading { topic, object: object.end(), time_us }, lacks_device))
    }

    fn time_us(&self, row: &Row) -> Result<Option<i64>> {
        let Some(column) = &self.time else { return Ok(None) };
        let value = row.get(column);
        if *value == Value::Absent {
            return Ok(None);
        }
        match time::micros(value, self.time_unit) {
            Some(time_us) => Ok(Some(time_us)),
            None => {
                let message = format!("{}: `{}` in column `{column}` is no time", row.place, value.text());
                Err(Failure::failed(message)
                    .hint("name the column that is one with --time-field, or send no times with --no-time")
                    .into())
            }
        }
    }
}

fn device(options: &MappingOptions, first: &Row) -> Result<Filling> {
    match &options.device {
        Device::Constant(name) => Ok(Filling::Constant(name.clone())),
        Device::Column(name) => Ok(Filling::Column(existing(name, first)?)),
        Device::Guess => Ok(match DEVICE_COLUMNS.iter().find(|name| first.names().any(|n| n == **name)) {
            Some(name) => Filling::Column((*name).to_owned()),
            None => Filling::Constant(options.file_stem.clone()),
        }),
    }
}

/// What is filled in for `{name}` in the topic.
fn filling(name: &str, device: &Filling, first: &Row) -> Result<Filling> {
    let is_device = DEVICE_PLACEHOLDERS.contains(&name);
    if is_device { Ok(device.clone()) } else { existing(name, first).map(Filling::Column) }
}

fn time_column(options: &MappingOptions, first: &Row) -> Result<Option<String>> {
    match &options.time {
        TimeField::None => Ok(None),
        TimeField::Column(name) => existing(name, first).map(Some),
        TimeField::Guess => Ok(TIME_COLUMNS
            .iter()
            .find(|name| first.names().any(|n| n == **name))
            .map(|name| (*name).to_owned())),
    }
}

/// The tidied name of a column that the user has named, as the file has it or tidied.
fn existing(name: &str, first: &Row) -> Result<String> {
    let tidy = tidy_name(name);
    if first.names().any(|n| n == tidy) {
        return Ok(tidy);
    }
    let names: Vec<&str> = first.names().collect();
    Err(Failure::usage(format!("the file has no column `{name}`"))
        .hint(format!("its columns are {}", names.join(", ")))
        .into())
}

/// A JSON object in the making.
struct Object(String);

impl Object {
    fn new() -> Self {
        Self("{".to_owned())
    }

    /// Whole milliseconds as a number, which is short; anything finer as RFC 3339, which is exact.
    fn time(&mut self, name: &str, time_us: i64) {
        self.name(name);
        if time_us.rem_euclid(1000) == 0 {
            self.0.push_str(&(time_us / 1000).to_string());
        } else {
            self.0.push_str(&format!("\"{}\"", micros_rfc3339::to_text(time_us)));
        }
    }

    fn field(&mut self, name: &str, value: &Value) -> Result<()> {
        let json = match value {
            Value::Absent => return Ok(()),
            Value::Literal(json) => json,
            Value::Text(text) => &serde_json::to_string(text).map_err(|error| anyhow!(error))?,
        };
        self.name(name);
        self.0.push_str(json);
        Ok(())
    }

    /// Names are made of `[a-z0-9_]`, so nothing is to be escaped; the one that the user chose is tidied first.
    fn name(&mut self, name: &str) {
        let comma = if self.0.len() > 1 { "," } else { "" };
        self.0.push_str(&format!("{comma}\"{name}\":"));
    }

    fn end(mut self) -> String {
        self.0.push('}');
        self.0
    }
}
