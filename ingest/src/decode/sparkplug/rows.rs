//! The rows of a message: metrics of the same time form one.
//!
//! A metric that comes twice with the same time begins a second row, so that neither value is lost. Rows are
//! in the order of time.

use std::borrow::Cow;

use crate::decode::column::Value;
use crate::decode::fields::{Fields, Target};
use crate::decode::staging::{Failed, Scalar, Staging};

use super::births::{Declaration, Declared, each_metric};
use super::payload::{Metric, Payload};
use super::topic::{Kind, Topic};
use super::value::{Meaning, meaning, micros, properties};
use super::{BD_SEQ, REBIRTH};

/// Collects what a message measures.
#[derive(Debug)]
pub(super) struct Rows<'a> {
    topic: Topic<'a>,
    /// The time of metrics that have none.
    default_time: i64,
    samples: Vec<Sample<'a>>,
}

/// One value.
#[derive(Debug)]
struct Sample<'a> {
    key: Key,
    name: Box<str>,
    meaning: Meaning<'a>,
    /// As JSON.
    properties: Option<String>,
}

/// What the values of a row have in common.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
struct Key {
    /// Microseconds since 1970.
    time: i64,
    is_historical: bool,
    is_transient: bool,
    /// How many values of the same metric and time there were before.
    repeat: u32,
}

impl<'a> Rows<'a> {
    pub(super) fn new(topic: &Topic<'a>, payload: &Payload<'_>, arrival: i64) -> Self {
        // The broker sends a node's death for it: its time is that of the connection that has ended.
        let is_will = topic.kind == Kind::Death && topic.device.is_none();
        let own = payload.timestamp.filter(|_| !is_will).and_then(micros);
        Self { topic: *topic, default_time: own.unwrap_or(arrival), samples: Vec::new() }
    }

    /// Takes the metrics of a birth or of data, or says why one of them cannot be understood.
    pub(super) fn collect(&mut self, payload: &Payload<'a>, declared: &Declared) -> Result<(), String> {
        let (default_time, samples) = (self.default_time, &mut self.samples);
        each_metric(payload, |path, metric| {
            let (name, datatype) = understand(path, &metric, declared)?;
            if &*name == BD_SEQ || &*name == REBIRTH {
                return Ok(());
            }
            samples.push(Sample::of(name, datatype, &metric, default_time)?);
            Ok(())
        })
    }

    /// Hands the rows on. Fails with the reason for a dead letter.
    pub(super) fn stage(
        mut self,
        columns: &[usize; 6],
        fields: &mut Fields,
        staging: &mut Staging,
    ) -> Result<(), String> {
        self.number_repeats();
        let Topic { group, node, word, device, .. } = self.topic;
        let device = match device {
            None => staging.keep(&format!("{group}/{node}")),
            Some(device) => staging.keep(&format!("{group}/{node}/{device}")),
        };
        let [at_group, at_node, at_word, at_historical, at_transient, at_properties] = *columns;
        let texts = [group, node, word].map(|text| staging.keep(text));
        let shared: usize = texts.iter().chain([&device]).map(|(start, end)| end - start).sum();
        let nothing = [Sample::nothing(self.default_time)];
        let samples = if self.samples.is_empty() { &nothing[..] } else { &self.samples[..] };
        for row in samples.chunk_by(|one, other| one.key == other.key) {
            let Some(first) = row.first() else { continue };
            staging.begin_row();
            staging.place(first.key.time, device);
            staging.repeated += shared;
            for (column, (start, end)) in [at_group, at_node, at_word].into_iter().zip(texts) {
                staging.values.push((column, Value::Text { start, end }));
            }
            staging.values.push((at_historical, Value::Boolean(first.key.is_historical)));
            staging.values.push((at_transient, Value::Boolean(first.key.is_transient)));
            if let Some((start, end)) = all_properties(row).map(|json| staging.keep(&json)) {
                staging.values.push((at_properties, Value::Text { start, end }));
            }
            let staged = row
                .iter()
                .enumerate()
                .try_for_each(|(position, sample)| sample.stage(position, fields, staging))
                .and_then(|()| staging.end_row(fields));
            if staged.is_err() {
                return Err(staging.failure.take().unwrap_or_default());
            }
        }
        Ok(())
    }

    /// Brings the samples in the order of their rows.
    fn number_repeats(&mut self) {
        self.samples.sort_by(|one, other| (one.key, &one.name).cmp(&(other.key, &other.name)));
        for same in self.samples.chunk_by_mut(|one, other| (one.key, &one.name) == (other.key, &other.name)) {
            for (repeat, sample) in (0..).zip(same) {
                sample.key.repeat = repeat;
            }
        }
        self.samples.sort_by_key(|sample| sample.key);
    }
}

impl<'a> Sample<'a> {
    fn of(name: Cow<'_, str>, datatype: u32, metric: &Metric<'a>, default_time: i64) -> Result<Self, String> {
        let named = |reason: String| format!("metric `{}`: {reason}", crate::decode::shorten(&name));
        let time = match metric.timestamp {
            Some(millis) => micros(millis)
                .ok_or_else(|| named(format!("the time `{millis}` is too far in the future")))?,
            None => default_time,
        };
        let meaning = match metric.value.filter(|_| !metric.is_null) {
            Some(content) => meaning(datatype, content).map_err(named)?,
            None => Meaning::Null,
        };
        let properties = metric.properties.map(properties).transpose().map_err(named)?;
        let key =
            Key { time, is_historical: metric.is_historical, is_transient: metric.is_transient, repeat: 0 };
        Ok(Self { key, meaning, properties: properties.map(|json| json.to_string()), name: name.into() })
    }

    /// What stands for the values of a message that has none.
    fn nothing(time: i64) -> Self {
        Self {
            key: Key { time, ..Key::default() },
            name: "".into(),
            meaning: Meaning::Null,
            properties: None,
        }
    }

    fn stage(&self, position: usize, fields: &mut Fields, staging: &mut Staging) -> Result<(), Failed> {
        let scalar = match &self.meaning {
            Meaning::Null => return Ok(()),
            Meaning::Scalar(scalar) => *scalar,
            Meaning::Text(text) => Scalar::Text(text),
        };
        let column: String =
            self.name.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '_' }).collect();
        let target = match fields.resolve(&column, position) {
            Target::Column(at) | Target::EventTimeColumn(at) => Target::Column(at),
            // The format knows time, device and topic itself: a metric of such a name is another thing.
            Target::EventTime | Target::DeviceId | Target::Skip | Target::Unknown => Target::Unknown,
        };
        staging.take(fields, target, &column, scalar)
    }
}

/// Which metric is meant, and of which type it is.
fn understand<'p, 'd: 'p>(
    path: &'p str,
    metric: &Metric<'_>,
    declared: &'d Declared,
) -> Result<(Cow<'p, str>, u32), String> {
    let known = |Declaration { name, datatype }: &'d Declaration| {
        (Cow::Borrowed(&**name), metric.datatype.unwrap_or(*datatype))
    };
    match (metric.name, metric.alias) {
        (Some(_), _) => match (declared.by_name(path), metric.datatype) {
            (_, Some(datatype)) => Ok((Cow::Borrowed(path), datatype)),
            (Some(declaration), None) => Ok(known(declaration)),
            (None, None) => {
                let name = crate::decode::shorten(path);
                Err(format!("the metric `{name}` has no data type, and the last birth does not have it"))
            }
        },
        (None, Some(alias)) => {
            let found = declared.by_alias(alias).map(known);
            found.ok_or_else(|| format!("the alias {alias} is not in the last birth"))
        }
        (None, None) => Err("a metric has neither a name nor an alias".into()),
    }
}

/// The properties of a row as a JSON object by metric.
fn all_properties(row: &[Sample<'_>]) -> Option<String> {
    let mut json = String::new();
    for sample in row {
        if let Some(properties) = &sample.properties {
            json.push(if json.is_empty() { '{' } else { ',' });
            json.push_str(&serde_json::Value::from(&*sample.name).to_string());
            json.push(':');
            json.push_str(properties);
        }
    }
    (!json.is_empty()).then(|| json + "}")
}
