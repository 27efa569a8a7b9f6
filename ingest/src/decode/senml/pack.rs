//! A pack: resolves its records one after the other, then makes rows of them.

use std::borrow::Cow;

use ahash::HashMap;
use iot_schemas::catalog::{TimeUnitName, UnknownFields};
use iot_schemas::layout::DEVICE_ID;

use super::super::fields::{Fields, Target};
use super::super::staging::{Failed, Scalar, Staging};
use super::super::time;
use super::record::{Record, Value};

/// Records in one pack. Each takes up many times its bytes until all are gathered.
const MAX_RECORDS: usize = 100_000;
/// The newest version of SenML that is understood, and the one that is meant where none is given. Older ones are read
/// alike, as RFC 8428 does in its own examples.
const VERSION: f64 = 10.0;
/// Times below this are relative to now (RFC 8428, section 4.5.3).
const FIRST_ABSOLUTE_S: f64 = 268_435_456.0;
/// The column of a record that has no name besides its base name.
const UNNAMED: &str = "value";
/// The column of the base name where the topic names the device.
const BASE_NAME: &str = "bn";
/// What may stand between a base name and the names that are appended to it.
const SEPARATORS: [char; 6] = [':', '/', '.', '_', '-', ';'];

/// What the base fields of the records so far say.
#[derive(Debug, Default)]
struct Base<'a> {
    time: f64,
    unit: Option<Cow<'a, str>>,
    value: Option<f64>,
    sum: Option<f64>,
}

/// The records of a pack, resolved.
#[derive(Debug)]
pub(super) struct Pack<'a> {
    /// Now, microseconds since 1970.
    arrival: i64,
    base: Base<'a>,
    /// The base names, the last of which holds for the next record.
    devices: Vec<Cow<'a, str>>,
    measures: Vec<Measure<'a>>,
}

/// What a sensor measured.
#[derive(Debug)]
struct Measure<'a> {
    /// Which of the devices it belongs to.
    device: usize,
    /// Microseconds since 1970.
    time: i64,
    sensor: Cow<'a, str>,
    unit: Option<Cow<'a, str>>,
    value: Option<Value<'a>>,
    sum: Option<f64>,
    update_time: Option<f64>,
}

impl<'a> Pack<'a> {
    pub(super) fn new(arrival: i64) -> Self {
        Self { arrival, base: Base::default(), devices: vec![Cow::Borrowed("")], measures: Vec::new() }
    }

    /// Resolves a record and adds it.
    pub(super) fn add(&mut self, record: Record<'a>) -> Result<(), String> {
        if let Some(version) = record.base_version.filter(|version| *version > VERSION) {
            return Err(format!("version {version} of SenML is not understood, only up to {VERSION}"));
        }
        self.base.time = record.base_time.unwrap_or(self.base.time);
        self.base.value = record.base_value.or(self.base.value);
        self.base.unit = record.base_unit.or(self.base.unit.take());
        self.base.sum = record.base_sum.or(self.base.sum);
        if let Some(name) = record.base_name
            && self.devices.last() != Some(&name)
        {
            self.devices.push(name);
        }
        let is_named = record.name.is_some() || record.time.is_some() || record.unit.is_some();
        let value = match record.value {
            // The base value alone is the value of a record that is about a sensor.
            None if is_named && record.sum.is_none() => self.base.value.map(|_| Value::Number(0.0)),
            value => value,
        };
        // What is no number has no sum, unless it says so itself.
        let may_add_up = matches!(value, None | Some(Value::Number(_)));
        let has_sum = record.sum.is_some() || (self.base.sum.is_some() && may_add_up);
        if value.is_none() && record.sum.is_none() && !(is_named && has_sum) {
            return if is_named { Err("there is no value and no sum".into()) } else { Ok(()) };
        }
        if self.measures.len() >= MAX_RECORDS {
            return Err(format!("a pack may have {MAX_RECORDS} records; send smaller ones"));
        }
        let time = self.resolve_time(self.base.time + record.time.unwrap_or(0.0))?;
        self.measures.push(Measure {
            device: self.devices.len() - 1,
            time,
            sensor: record.name.unwrap_or_default(),
            unit: record.unit.or_else(|| self.base.unit.clone()),
            value: value.map(|value| match value {
                Value::Number(v) => Value::Number(self.base.value.unwrap_or(0.0) + v),
                other => other,
            }),
            sum: has_sum.then(|| self.base.sum.unwrap_or(0.0) + record.sum.unwrap_or(0.0)),
            update_time: record.update_time,
        });
        Ok(())
    }

    fn resolve_time(&self, seconds: f64) -> Result<i64, String> {
        let since = if seconds < FIRST_ABSOLUTE_S { self.arrival } else { 0 };
        let micros = time::from_float(seconds, TimeUnitName::S).and_then(|micros| micros.checked_add(since));
        micros.ok_or_else(|| format!("`{seconds:?}` is no time"))
    }

    /// Makes one row of what a device measured at one time, or says why that cannot be.
    pub(super) fn store(&self, fields: &mut Fields, staging: &mut Staging) -> Result<(), String> {
        let rows = self.rows(staging.device_known);
        let mut rest = &rows[..];
        while let Some(first) = rest.first() {
            let same = rest.iter().take_while(|row| row.is_with(first)).count();
            let (row, later) = rest.split_at(same);
            rest = later;
            self.row(row, fields, staging).map_err(|Failed| staging.failure.take().unwrap_or_default())?;
        }
        Ok(())
    }

    /// The measures in the order of their rows. A sensor that has several values at one time gets as many rows.
    fn rows(&self, device_known: bool) -> Vec<Cell<'_>> {
        let mut seen: HashMap<(&str, i64, &str), usize> = HashMap::default();
        let mut cells: Vec<Cell<'_>> = self
            .measures
            .iter()
            .map(|measure| {
                let (device, sensor) = self.names(measure, device_known);
                let copies = seen.entry((device, measure.time, sensor)).or_default();
                *copies += 1;
                Cell { device, time: measure.time, copy: *copies, sensor, measure }
            })
            .collect();
        cells.sort_by(|a, b| a.row().cmp(&b.row()));
        cells
    }

    /// The device and the column of a measure. A name without base name is unique by itself, so it is the device,
    /// unless the topic names that.
    fn names<'b>(&'b self, measure: &'b Measure<'a>, device_known: bool) -> (&'b str, &'b str) {
        let base: &str = &self.devices[measure.device];
        let name: &str = &measure.sensor;
        match (base.trim_end_matches(SEPARATORS), name) {
            ("", name) if !device_known => (name, UNNAMED),
            (device, "") => (device, UNNAMED),
            (device, name) => (device, name),
        }
    }

    fn row(&self, cells: &[Cell<'_>], fields: &mut Fields, staging: &mut Staging) -> Result<(), Failed> {
        let Some(first) = cells.first() else { return Ok(()) };
        staging.begin_row();
        staging.take_as_it_is(fields, Target::EventTime, "t", Scalar::Instant(first.time))?;
        if !staging.device_known {
            staging.take_as_it_is(fields, Target::DeviceId, DEVICE_ID, Scalar::Text(first.device))?;
        } else if !first.device.is_empty() {
            beside(fields, staging, BASE_NAME, Scalar::Text(first.device))?;
        }
        for cell in cells {
            cell.take(fields, staging)?;
        }
        staging.end_row(fields)
    }
}

/// What a measure is to its row.
#[derive(Debug)]
struct Cell<'a> {
    device: &'a str,
    time: i64,
    /// How many values of the sensor there were for this time, with this one.
    copy: usize,
    sensor: &'a str,
    measure: &'a Measure<'a>,
}

impl Cell<'_> {
    fn row(&self) -> (&str, i64, usize) {
        (self.device, self.time, self.copy)
    }

    fn is_with(&self, other: &Cell<'_>) -> bool {
        self.row() == other.row()
    }

    fn take(&self, fields: &mut Fields, staging: &mut Staging) -> Result<(), Failed> {
        let scalar = match &self.measure.value {
            Some(Value::Number(v)) => Some(Scalar::Float(*v)),
            Some(Value::Boolean(v)) => Some(Scalar::Boolean(*v)),
            Some(Value::Text(text)) => Some(Scalar::Text(text)),
            None => None,
        };
        if let Some(scalar) = scalar {
            // Names hold what looks like paths, so their positions in a payload are no guide.
            let target = fields.resolve(self.sensor, usize::MAX);
            staging.take(fields, target, self.sensor, scalar)?;
        }
        let mut more = |what: &str, scalar: Scalar<'_>| {
            beside(fields, staging, &format!("{}_{what}", self.sensor), scalar)
        };
        if let Some(unit) = &self.measure.unit {
            more("unit", Scalar::Text(unit))?;
        }
        if let Some(sum) = self.measure.sum {
            more("sum", Scalar::Float(sum))?;
        }
        if let Some(seconds) = self.measure.update_time {
            more("update_time", Scalar::Float(seconds))?;
        }
        Ok(())
    }
}

/// A field that is no measure. A stream that rejects unknown fields means unknown sensors.
fn beside(fields: &mut Fields, staging: &mut Staging, name: &str, scalar: Scalar<'_>) -> Result<(), Failed> {
    let target = fields.resolve(name, usize::MAX);
    if target == Target::Unknown && fields.unknown == UnknownFields::Reject {
        return Ok(());
    }
    staging.take(fields, target, name, scalar)
}
