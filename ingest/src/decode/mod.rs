//! From the bytes of a message to rows of its stream.
//!
//! Decoding is a pure function: the same records, decoded from the same schema on, give the same rows, new
//! columns and refusals. A crash may therefore decode again what it decoded before.

mod cbor;
mod column;
mod compression;
mod csv;
mod fields;
mod flatten;
mod json;
mod line_protocol;
mod msgpack;
mod scalar;
mod senml;
mod sparkplug;
mod staging;
mod time;
mod tree;
mod upcaster;

#[cfg(test)]
mod golden;
#[cfg(test)]
mod tests;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use arrow::array::{
    ArrayRef, Int32Array, Int64Array, RecordBatch, StringArray, StringBuilder, TimestampMicrosecondArray,
};
use arrow::datatypes::{Schema, SchemaRef};
use parking_lot::Mutex;

use iot_schemas::alert::micros_rfc3339;
use iot_schemas::catalog::{
    Compression, CsvDef, Format, FutureEvents, SPARKPLUG_COLUMNS, StreamDef, TimeLimits, TimeUnitName,
};
use iot_schemas::layout::{DEVICE_ID, raw_schema};
use iot_schemas::position::Seq;
use iot_schemas::topic::TopicPattern;
use iot_schemas::{Error, Result};

use crate::message::{MAX_USER_PROPERTIES, MAX_USER_PROPERTY_BYTES};
use crate::wal::record::UserProperties;

use cbor::Cbor;
use compression::Expander;
use fields::Fields;
use msgpack::Msgpack;
use sparkplug::Sparkplug;
pub use sparkplug::{NodeStatus, Rebirth};
pub(crate) use sparkplug::{Nodes, rebirth_command};
use staging::Staging;

/// What the events of one stream in one group may take up. Far more than a group of real events: an array of
/// a million empty objects has few bytes, but each of them becomes a row of all columns.
const MAX_GROUP_BYTES: usize = 256 << 20;

/// What some editors and libraries put in front of UTF-8.
const BOM: [u8; 3] = *b"\xef\xbb\xbf";

/// How the reason begins if a decoder has failed, and not its message.
const DEFECT: &str = "this is a defect of the decoder";

/// What a topic says about the events of its messages.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Captures {
    /// The device, if a topic level names it.
    pub(crate) device: Option<Box<str>>,
    /// The columns of the other named levels, by column number, and their values.
    pub(crate) columns: Vec<(usize, Box<str>)>,
    /// There is no topic: the events were written to the stream by name, and say everything themselves.
    pub(crate) is_written: bool,
}

impl Captures {
    /// Of a message that was written to its stream by name.
    pub(crate) fn written() -> Self {
        Self { is_written: true, ..Self::default() }
    }
}

/// Where a message came from.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Origin<'a> {
    pub(crate) topic: &'a str,
    pub(crate) captures: &'a Captures,
    /// When it arrived, microseconds since 1970.
    pub(crate) arrival: i64,
    pub(crate) seq: Seq,
    pub(crate) content_type: Option<&'a str>,
    pub(crate) user_properties: UserProperties<'a>,
    /// Whether it was a dead letter: what it says about the state of its sender is from the past.
    pub(crate) is_replay: bool,
}

impl<'a> Origin<'a> {
    /// A message without properties.
    pub(crate) fn plain(topic: &'a str, captures: &'a Captures, arrival: i64, seq: Seq) -> Self {
        let (content_type, user_properties) = (None, UserProperties::default());
        Self { topic, captures, arrival, seq, content_type, user_properties, is_replay: false }
    }
}

/// What a stream says about its payloads.
#[derive(Debug)]
struct Payloads {
    format: Format,
    compression: Compression,
    /// Where an object holds its events.
    rows: Option<String>,
    csv: CsvDef,
    /// The unit of event times that are numbers, if the stream says it.
    time_unit: Option<TimeUnitName>,
}

/// Decodes the messages of one stream.
#[derive(Debug)]
pub(crate) struct StreamDecoder {
    payloads: Payloads,
    expander: Expander,
    /// User properties and their columns.
    properties: Vec<(Box<str>, usize)>,
    time_required: bool,
    /// By which limits an event from the future is refused, if it is.
    refuse_future: Option<TimeLimits>,
    fields: Fields,
    staging: Staging,
    /// Empty unless that is the format.
    sparkplug: Sparkplug,
    system: SystemColumns,
    schema: SchemaRef,
    /// About what the rows since the last [`Self::finish`] take up.
    bytes: usize,
}

impl StreamDecoder {
    /// A decoder for `def` that starts from the columns of `table`.
    pub(crate) fn new(def: &StreamDef, table: &Schema) -> Result<Self> {
        let fields = Fields::new(def, table)?;
        if fields.columns.len() > fields::MAX_COLUMNS {
            let limit = fields::MAX_COLUMNS;
            return Err(Error::invalid(format!("stream `{}` has more than {limit} columns", def.name)));
        }
        let column = |name: &str| fields.columns.iter().position(|column| *column.name == *name);
        let properties = def.properties.iter().zip(def.property_columns());
        let properties =
            properties.filter_map(|(name, column_name)| Some((name.as_str().into(), column(&column_name)?)));
        let properties = properties.collect();
        let schema = schema_of(&fields);
        Ok(Self {
            payloads: Payloads::of(def),
            expander: Expander::default(),
            properties,
            time_required: def.event_time.as_ref().is_some_and(|time| time.field.is_some()),
            refuse_future: (def.future_events == FutureEvents::DeadLetter).then(|| def.time_limits()),
            sparkplug: if def.format == Format::SparkplugB {
                Sparkplug::new(&fields)
            } else {
                Sparkplug::default()
            },
            fields,
            staging: Staging::default(),
            system: SystemColumns::default(),
            schema,
            bytes: 0,
        })
    }

    /// The schema of the next batch. It grows with the messages.
    pub(crate) fn schema(&self) -> &SchemaRef {
        &self.schema
    }

    /// What is known about the edge nodes that send Sparkplug messages, if that is the format.
    pub(crate) fn nodes(&self) -> Option<&Arc<Mutex<Nodes>>> {
        (self.payloads.format == Format::SparkplugB).then_some(&self.sparkplug.nodes)
    }

    /// Takes over what a decoder of the same stream knows beyond the columns.
    pub(crate) fn go_on_from(&mut self, before: &Self) {
        if let Some(nodes) = before.nodes() {
            self.sparkplug.nodes = nodes.clone();
        }
    }

    /// What `topic` says, if `pattern` matches it.
    pub(crate) fn capture(&self, pattern: &TopicPattern, topic: &str) -> Option<Captures> {
        let values = pattern.capture(topic)?;
        let mut captures = Captures::default();
        for (name, value) in pattern.names().zip(values) {
            if name == DEVICE_ID {
                captures.device = Some(value.into());
            } else if self.payloads.format == Format::SparkplugB
                && SPARKPLUG_COLUMNS.iter().any(|(own, _)| *own == name)
            {
                // The decoder reads it from the topic in any case.
            } else if let Some(at) = self.fields.columns.iter().position(|column| *column.name == *name) {
                captures.columns.push((at, value.into()));
            }
        }
        Some(captures)
    }

    /// Takes note of a message that is a dead letter because only its beginning was kept.
    pub(crate) fn cut(&self, origin: Origin<'_>) {
        if self.payloads.format == Format::SparkplugB {
            self.sparkplug.cut(origin);
        }
    }

    /// Adds the events of one message, all or none. Returns how many, or why it is a dead letter.
    pub(crate) fn decode(&mut self, payload: &[u8], origin: Origin<'_>) -> Result<usize, String> {
        if origin.user_properties.is_cut && !self.properties.is_empty() {
            return Err(format!(
                "there are more user properties than {MAX_USER_PROPERTIES}, or more than {MAX_USER_PROPERTY_BYTES} bytes of them"
            ));
        }
        caught(|| {
            self.stage(payload, origin)?;
            self.check_rows(origin)?;
            self.check_size(origin)
        })?;
        if self.staging.evolve(&mut self.fields) {
            self.schema = schema_of(&self.fields);
        }
        self.store_rows(origin);
        Ok(self.staging.rows.len())
    }

    /// Collects the rows of a message, which is not stored yet.
    #[inline]
    fn stage(&mut self, payload: &[u8], origin: Origin<'_>) -> Result<(), String> {
        let Payloads { compression, rows, csv, .. } = &self.payloads;
        let is_written = origin.captures.is_written;
        let format = self.payloads.format_of(origin.content_type, is_written)?;
        let said = origin.content_type.filter(|_| is_written).and_then(precision);
        let unit = said.or(self.payloads.unit_of(format, is_written)).unwrap_or(format.time_unit());
        let (fields, staging) = (&mut self.fields, &mut self.staging);
        staging.clear(origin.captures.device.is_some(), unit);
        if let Some(upcast) = &mut fields.upcast {
            upcast.clear();
        }
        fields.is_written = is_written;
        let compression = if is_written { Compression::Auto } else { *compression };
        let payload = self.expander.expand(payload, compression)?;
        let payload = if format.is_text() { payload.strip_prefix(&BOM).unwrap_or(payload) } else { payload };
        let rows = rows.as_deref();
        match format {
            // No content type means JSON.
            Format::Json | Format::Auto => json::decode(payload, rows, fields, staging),
            Format::JsonLines => json::decode_lines(payload, rows, fields, staging),
            Format::SparkplugB => self.sparkplug.decode(payload, origin, fields, staging),
            Format::LineProtocol => line_protocol::decode(payload, fields, staging),
            Format::Cbor => tree::decode(Cbor::new(payload), rows, fields, staging),
            Format::Msgpack => tree::decode(Msgpack::new(payload), rows, fields, staging),
            Format::SenmlJson => senml::decode_json(payload, origin.arrival, fields, staging),
            Format::SenmlCbor => senml::decode_cbor(payload, origin.arrival, fields, staging),
            Format::Csv => csv::decode(payload, csv, fields, staging),
        }
    }

    /// The rows since the last call, `None` if there are none.
    pub(crate) fn finish(&mut self, node: &str) -> Option<RecordBatch> {
        // Messages without rows count too.
        self.bytes = 0;
        let rows = self.system.rows();
        if rows == 0 {
            return None;
        }
        let own: Vec<ArrayRef> = self.fields.columns.iter_mut().map(|column| column.finish(rows)).collect();
        let columns = self.system.finish(node, own);
        Some(
            RecordBatch::try_new(self.schema.clone(), columns)
                .expect("every column has the type that the schema took from it and as many rows"),
        )
    }

    /// Panics if more columns have come into being than may, or if more than `max_bytes` are kept for the next
    /// message: for tests with hostile payloads.
    pub(crate) fn check_bounds(&mut self, max_bytes: usize) {
        assert!(self.fields.columns.len() <= fields::MAX_COLUMNS, "too many columns");
        self.staging.clear(true, TimeUnitName::Ms);
        _ = self.expander.expand(&[], Compression::None);
        let kept = self.staging.kept_bytes() + self.expander.kept_bytes();
        assert!(kept <= max_bytes, "{kept} bytes are kept after a message");
    }

    /// Completes event times and checks what every row must have.
    fn check_rows(&mut self, origin: Origin<'_>) -> Result<(), String> {
        let missing_device =
            || format!("no `{DEVICE_ID}`: neither a topic level nor a field of the payload gives it");
        if !self.staging.is_sound() {
            return Err(defect("rows and values do not fit together"));
        }
        let topic_device = origin.captures.device.as_deref();
        if topic_device == Some("") {
            return Err(missing_device());
        }
        for row in &mut self.staging.rows {
            if topic_device.is_none() && row.device.is_none_or(|(start, end)| start == end) {
                return Err(missing_device());
            }
            let event_time = match row.event_time {
                Some(micros) => micros,
                None if self.time_required => return Err("the event time is missing".into()),
                None => origin.arrival,
            };
            if !time::is_plausible(event_time) {
                return Err(format!(
                    "the event time `{event_time}` (in microseconds) is not between 1970 and 2262"
                ));
            }
            if self.refuse_future.is_some_and(|limits| limits.is_future(event_time, origin.arrival)) {
                let (time, arrival) =
                    (micros_rfc3339::to_text(event_time), micros_rfc3339::to_text(origin.arrival));
                return Err(format!(
                    "the event time {time} is further ahead of the arrival {arrival} than `max_future` allows; is the device's clock right?"
                ));
            }
            row.event_time = Some(event_time);
        }
        Ok(())
    }

    /// Refuses events that would take up far more memory than their message.
    fn check_size(&mut self, origin: Origin<'_>) -> Result<(), String> {
        const FIXED_BYTES_PER_ROW: usize = 64;
        let captures = origin.captures;
        let captured: usize = captures.columns.iter().map(|(_, value)| value.len()).sum();
        let device = captures.device.as_ref().map_or(0, |device| device.len());
        let properties: usize = self.properties_of(origin).map(|(_, value)| value.len()).sum();
        let columns = 8 * self.fields.columns.len();
        let per_row = FIXED_BYTES_PER_ROW + columns + origin.topic.len() + captured + device + properties;
        let bytes = self.staging.rows.len() * per_row + self.staging.text.len() + self.staging.repeated;
        if self.bytes + bytes > MAX_GROUP_BYTES {
            let events = self.staging.rows.len();
            return Err(format!("{events} events would take up {bytes} bytes; send smaller arrays"));
        }
        self.bytes += bytes;
        Ok(())
    }

    /// The columns of the user properties that a message has, and their values.
    #[inline]
    fn properties_of<'a>(&self, origin: Origin<'a>) -> impl Iterator<Item = (usize, &'a str)> {
        let value = move |(name, at): &(Box<str>, usize)| Some((*at, origin.user_properties.get(name)?));
        self.properties.iter().filter_map(value)
    }

    fn store_rows(&mut self, origin: Origin<'_>) {
        let properties: Vec<(usize, &str)> = self.properties_of(origin).collect();
        let mut from = 0;
        for (index, row) in self.staging.rows.iter().enumerate() {
            let at = self.system.rows();
            for (column, value) in &self.staging.values[from..row.end] {
                self.fields.columns[*column].set(at, *value, &self.staging.text);
            }
            from = row.end;
            for (column, value) in &origin.captures.columns {
                self.fields.columns[*column].set_text(at, value);
            }
            for (column, value) in &properties {
                self.fields.columns[*column].set_text(at, value);
            }
            let device = match (&origin.captures.device, row.device) {
                (Some(device), _) => device,
                (None, Some((start, end))) => &self.staging.text[start..end],
                (None, None) => "",
            };
            let event_time = row.event_time.unwrap_or(origin.arrival);
            self.system.push(event_time, device, index as i32, origin);
        }
    }
}

impl Payloads {
    fn of(def: &StreamDef) -> Self {
        Self {
            format: def.format,
            compression: def.compression,
            rows: def.rows.clone(),
            csv: def.csv.clone().unwrap_or_default(),
            time_unit: def.event_time.as_ref().and_then(|time| time.unit),
        }
    }

    /// The unit of event times in this format, if the stream says it. Who writes line protocol to a stream of another
    /// format means nanoseconds.
    fn unit_of(&self, format: Format, is_written: bool) -> Option<TimeUnitName> {
        let is_foreign = is_written && format == Format::LineProtocol && self.format != format;
        self.time_unit.filter(|_| !is_foreign)
    }

    /// How a payload of this content type is encoded. What is written to a stream by name always says it.
    fn format_of(&self, content_type: Option<&str>, is_written: bool) -> Result<Format, String> {
        match (self.format, content_type) {
            (format, Some(content_type)) if is_written || format == Format::Auto => {
                Format::of_content_type(content_type)
                    .ok_or_else(|| format!("no format has the content type `{}`", shorten(content_type)))
            }
            (format, _) => Ok(format),
        }
    }
}

/// Runs what takes a message apart. A panic in it costs the message and not the service: nothing of the message is stored yet,
/// and what was collected is cleared before the next one.
fn caught<T>(work: impl FnOnce() -> Result<T, String>) -> Result<T, String> {
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().map(String::as_str);
        Err(defect(text.or(panic.downcast_ref::<&str>().copied()).unwrap_or("it panicked")))
    })
}

#[cold]
fn defect(what: &str) -> String {
    tracing::error!("a message could not be decoded and is a dead letter; {DEFECT}: {what}");
    format!("{DEFECT}, not of the message; please report it: {what}")
}

/// Whether this is the reason of a refusal that no message should ever get: for tests with hostile payloads.
pub(crate) fn is_defect(reason: &str) -> bool {
    reason.starts_with(DEFECT)
}

/// The unit of times that a content type states as its parameter `precision`.
fn precision(content_type: &str) -> Option<TimeUnitName> {
    let parameters = content_type.split(';').skip(1).filter_map(|parameter| parameter.trim().split_once('='));
    let (_, unit) = parameters.into_iter().find(|(name, _)| name.eq_ignore_ascii_case("precision"))?;
    TimeUnitName::of_word(unit)
}

/// The columns that every stream has.
#[derive(Debug, Default)]
struct SystemColumns {
    event_time: Vec<i64>,
    device: StringBuilder,
    topic: StringBuilder,
    arrival: Vec<i64>,
    seq: Vec<i64>,
    index: Vec<i32>,
}

impl SystemColumns {
    fn rows(&self) -> usize {
        self.seq.len()
    }

    fn push(&mut self, event_time: i64, device: &str, index: i32, origin: Origin<'_>) {
        self.event_time.push(event_time);
        self.device.append_value(device);
        self.topic.append_value(origin.topic);
        self.arrival.push(origin.arrival);
        self.seq.push(origin.seq as i64);
        self.index.push(index);
    }

    /// All columns in the order of [`raw_schema`], with `own` in between.
    fn finish(&mut self, node: &str, own: Vec<ArrayRef>) -> Vec<ArrayRef> {
        let rows = self.rows();
        let mut columns: Vec<ArrayRef> =
            vec![timestamps(std::mem::take(&mut self.event_time)), Arc::new(self.device.finish())];
        columns.extend(own);
        columns.extend([
            Arc::new(self.topic.finish()) as ArrayRef,
            timestamps(std::mem::take(&mut self.arrival)),
            Arc::new(StringArray::from_iter_values(std::iter::repeat_n(node, rows))),
            Arc::new(Int64Array::from(std::mem::take(&mut self.seq))),
            Arc::new(Int32Array::from(std::mem::take(&mut self.index))),
        ]);
        columns
    }
}

/// Microseconds as a column of instants.
pub(crate) fn timestamps(micros: Vec<i64>) -> ArrayRef {
    Arc::new(TimestampMicrosecondArray::from(micros).with_timezone("UTC"))
}

fn schema_of(fields: &Fields) -> SchemaRef {
    raw_schema(fields.columns.iter().map(column::Column::field))
}

/// At most 64 characters of `text`, for an error message.
pub(crate) fn shorten(text: &str) -> String {
    const KEEP: usize = 64;
    match text.char_indices().nth(KEEP) {
        Some((end, _)) => format!("{}...", &text[..end]),
        None => text.to_owned(),
    }
}
