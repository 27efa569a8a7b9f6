//! The rows of a message: metrics of the same time form one.
//!
//! A metric that comes twice with the same time begins a second row, so that neither value is lost. Rows are
//! in the order of time.

use std::borrow::Cow;

use iot_schemas::catalog::column_name;

use crate::decode::column::Value;
use crate::decode::fields::{Fields, Target};
use crate::decode::staging::{Failed, Scalar, Staging};

use super::births::{Declaration, Declared, Visit, each_metric};
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

/// Why the metrics of a message cannot be taken.
#[derive(Debug)]
pub(super) struct Misfit {
    pub(super) reason: String,
    /// Whether the last birth does not say what one of them is; then another birth might.
    pub(super) is_undeclared: bool,
}

/// One value.
#[derive(Debug)]
struct Sample<'a> {
    key: Key,
    name: Box<str>,
    /// Whether the name alone does not lead to a column of its own.
    is_ambiguous: bool,
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

    /// Takes the metrics of a birth or of data.
    pub(super) fn collect(&mut self, payload: &Payload<'a>, declared: &Declared) -> Result<(), Misfit> {
        let mut collector = Collector {
            declared,
            default_time: self.default_time,
            samples: &mut self.samples,
            is_undeclared: false,
        };
        let outcome = each_metric(payload, &mut collector);
        let is_undeclared = collector.is_undeclared;
        outcome.map_err(|reason| Misfit { reason, is_undeclared })
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

/// Makes samples of metrics.
struct Collector<'s, 'a> {
    declared: &'s Declared,
    default_time: i64,
    samples: &'s mut Vec<Sample<'a>>,
    /// See [`Misfit`].
    is_undeclared: bool,
}

impl<'a> Visit<'a> for Collector<'_, 'a> {
    fn value(&mut self, path: &str, metric: &Metric<'a>) -> Result<(), String> {
        let understood = understand(path, metric, self.declared);
        self.is_undeclared = understood.is_err();
        let understood = understood?;
        if &*understood.name != BD_SEQ && &*understood.name != REBIRTH {
            self.samples.push(Sample::of(understood, metric, self.default_time)?);
        }
        Ok(())
    }

    fn template(&mut self, _: &str, metric: &Metric<'a>) -> Result<Option<String>, String> {
        let (None, Some(alias)) = (metric.name, metric.alias) else { return Ok(None) };
        let declared = self.declared.by_alias(alias);
        self.is_undeclared = declared.is_none();
        declared.map(|template| Some(template.name.to_string())).ok_or_else(|| unknown_alias(alias))
    }
}

impl<'a> Sample<'a> {
    fn of(understood: Understood<'_>, metric: &Metric<'a>, default_time: i64) -> Result<Self, String> {
        let Understood { name, datatype, is_ambiguous } = understood;
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
        let properties = properties.map(|json| json.to_string());
        Ok(Self { key, meaning, properties, name: name.into(), is_ambiguous })
    }

    /// What stands for the values of a message that has none.
    fn nothing(time: i64) -> Self {
        Self {
            key: Key { time, ..Key::default() },
            name: "".into(),
            is_ambiguous: false,
            meaning: Meaning::Null,
            properties: None,
        }
    }

    /// Its column. Of names that would have the same one, each that is not a column's name itself has a checksum behind
    /// it.
    fn column(&self) -> String {
        let column = column_name(&self.name);
        if self.is_ambiguous && column != *self.name {
            return format!("{column}_{:08x}", crc32fast::hash(self.name.as_bytes()));
        }
        column
    }

    fn stage(&self, position: usize, fields: &mut Fields, staging: &mut Staging) -> Result<(), Failed> {
        let scalar = match &self.meaning {
            Meaning::Null => return Ok(()),
            Meaning::Scalar(scalar) => *scalar,
            Meaning::Text(text) => Scalar::Text(text),
        };
        let column = self.column();
        let target = match fields.resolve(&column, position) {
            Target::Column(at) | Target::EventTimeColumn(at) => Target::Column(at),
            // The format knows time, device and topic itself: a metric of such a name is another thing.
            Target::EventTime | Target::DeviceId | Target::Skip | Target::Unknown => Target::Unknown,
        };
        staging.take(fields, target, &column, scalar)
    }
}

/// Which metric is meant, and of which type it is.
struct Understood<'p> {
    name: Cow<'p, str>,
    datatype: u32,
    is_ambiguous: bool,
}

fn understand<'p, 'd: 'p>(
    path: &'p str,
    metric: &Metric<'_>,
    declared: &'d Declared,
) -> Result<Understood<'p>, String> {
    let known = |Declaration { name, datatype, is_ambiguous }: &'d Declaration| Understood {
        name: Cow::Borrowed(&**name),
        datatype: metric.datatype.unwrap_or(*datatype),
        is_ambiguous: *is_ambiguous,
    };
    match (metric.name, metric.alias) {
        (Some(_), _) => match (declared.by_name(path), metric.datatype) {
            (Some(declaration), _) => Ok(known(declaration)),
            (None, Some(datatype)) => {
                Ok(Understood { name: Cow::Borrowed(path), datatype, is_ambiguous: false })
            }
            (None, None) => {
                let name = crate::decode::shorten(path);
                Err(format!("the metric `{name}` has no data type, and the last birth does not have it"))
            }
        },
        (None, Some(alias)) => {
            let found = declared.by_alias(alias).map(known);
            found.ok_or_else(|| unknown_alias(alias))
        }
        (None, None) => Err("a metric has neither a name nor an alias".into()),
    }
}

fn unknown_alias(alias: u64) -> String {
    format!("the alias {alias} is not in the last birth")
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
