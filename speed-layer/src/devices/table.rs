//! The table `devices`: who has been seen, who is declared, and how each stands now.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use arrow::array::{
    ArrayRef, BooleanBuilder, Float64Builder, Int64Builder, MapBuilder, MapFieldNames, RecordBatch,
    StringBuilder, TimestampMicrosecondBuilder,
};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use iot_schemas::catalog::{DeviceDef, Format, StreamDef};
use iot_schemas::layout::{DEVICE_ID, timestamp_type};
use iot_schemas::raw::RawStreams;

use super::fleet::Device;
use super::link::{Standing, State, silence_limit};
use super::registry::{Registry, StreamTerms, Terms};

/// The columns of the table `devices`.
pub fn device_schema() -> SchemaRef {
    let field = |name: &str, data_type: DataType| Field::new(name, data_type, true);
    let entries = Field::new(
        "entries",
        DataType::Struct(
            vec![Field::new("key", DataType::Utf8, false), field("value", DataType::Utf8)].into(),
        ),
        false,
    );
    Arc::new(Schema::new(vec![
        field("stream", DataType::Utf8),
        Field::new(DEVICE_ID, DataType::Utf8, false),
        Field::new("events", DataType::Int64, false),
        field("first_seen", timestamp_type()),
        field("last_seen", timestamp_type()),
        field("first_arrival", timestamp_type()),
        field("last_arrival", timestamp_type()),
        field("cadence_s", DataType::Float64),
        field("expected_cadence_s", DataType::Float64),
        Field::new("state", DataType::Utf8, false),
        field("state_since", timestamp_type()),
        field("state_reason", DataType::Utf8),
        Field::new("declared", DataType::Boolean, false),
        Field::new("labels", DataType::Map(Arc::new(entries), false), false),
        field("description", DataType::Utf8),
    ]))
}

/// The declared devices by name.
#[derive(Debug, Default)]
pub(crate) struct Declared(BTreeMap<String, Arc<DeviceDef>>);

impl Declared {
    /// Declares a device, or declares it otherwise.
    pub(crate) fn put(&mut self, def: Arc<DeviceDef>) {
        self.0.insert(def.name.clone(), def);
    }

    /// Takes a declaration back.
    pub(crate) fn remove(&mut self, name: &str) {
        self.0.remove(name);
    }

    fn find(&self, stream: &str, device: &str) -> Option<&Arc<DeviceDef>> {
        self.0.get(device).filter(|def| def.is_in(stream))
    }

    /// What the definitions say, for [`Registry::take`].
    pub(crate) fn terms<'a>(&'a self, raw: &'a dyn RawStreams) -> impl Terms + 'a {
        Known { declared: self, raw }
    }

    /// One row per stream and device that has been seen or declared, of `device` only if one is given. Streams that
    /// are not in the catalog have none. `now` is in microseconds since 1970.
    pub(crate) fn rows(
        &self,
        registry: &Registry,
        raw: &dyn RawStreams,
        device: Option<&str>,
        now: i64,
    ) -> RecordBatch {
        let known = Known { declared: self, raw };
        let wanted = |name: &str| device.is_none_or(|device| device == name);
        let (mut rows, mut met) = (Rows::new(), BTreeSet::new());
        for stream in raw.names() {
            let known = known.of_stream(&stream);
            let devices = registry.fleet(&stream).into_iter().flat_map(|fleet| fleet.devices.iter());
            for (name, device) in devices.filter(|(name, _)| wanted(name)) {
                let def = self.find(&stream, name);
                if def.is_some() {
                    met.insert(name.clone());
                }
                let cadence = known.cadence(def);
                let standing = device.link.standing(now, cadence);
                rows.push(Row { stream: Some(&stream), name, device: Some(device), def, cadence, standing });
            }
        }
        for (name, def) in self.0.iter().filter(|(name, _)| wanted(name) && !met.contains(name.as_str())) {
            let stream = def.stream.as_deref();
            let cadence = known.of_stream(stream.unwrap_or_default()).cadence(Some(def));
            let standing = (State::NeverSeen, None, None);
            rows.push(Row { stream, name, device: None, def: Some(def), cadence, standing });
        }
        rows.finish()
    }
}

/// The definitions in force.
struct Known<'a> {
    declared: &'a Declared,
    raw: &'a dyn RawStreams,
}

/// The definitions in force for one stream, and its own.
struct KnownStream<'a> {
    declared: &'a Declared,
    stream: &'a str,
    def: Option<Arc<StreamDef>>,
}

impl Known<'_> {
    fn of_stream<'a>(&'a self, stream: &'a str) -> KnownStream<'a> {
        KnownStream { declared: self.declared, stream, def: self.raw.definition(stream) }
    }
}

impl KnownStream<'_> {
    /// How often a device should be heard of, in microseconds: as it is declared, else as its stream says.
    fn cadence(&self, def: Option<&Arc<DeviceDef>>) -> Option<i64> {
        let own = def.and_then(|def| def.cadence);
        own.or_else(|| self.def.as_ref()?.cadence).filter(|cadence| !cadence.is_zero()).map(micros)
    }
}

impl Terms for Known<'_> {
    fn of<'a>(&'a self, stream: &'a str) -> impl StreamTerms {
        self.of_stream(stream)
    }
}

impl StreamTerms for KnownStream<'_> {
    fn has_births(&self) -> bool {
        self.def.as_ref().is_some_and(|def| def.format == Format::SparkplugB)
    }

    fn max_future(&self) -> i64 {
        self.def.as_ref().map_or(i64::MAX, |def| def.time_limits().future)
    }

    fn silence_limit(&self, device: &str) -> Option<i64> {
        self.cadence(self.declared.find(self.stream, device)).map(silence_limit)
    }
}

fn micros(duration: Duration) -> i64 {
    i64::try_from(duration.as_micros()).unwrap_or(i64::MAX)
}

struct Row<'a> {
    stream: Option<&'a str>,
    name: &'a str,
    device: Option<&'a Device>,
    def: Option<&'a Arc<DeviceDef>>,
    cadence: Option<i64>,
    standing: Standing,
}

struct Rows {
    stream: StringBuilder,
    device: StringBuilder,
    events: Int64Builder,
    /// First seen, last seen, first arrival, last arrival, state since.
    times: [TimestampMicrosecondBuilder; 5],
    cadence: Float64Builder,
    expected: Float64Builder,
    state: StringBuilder,
    reason: StringBuilder,
    declared: BooleanBuilder,
    labels: MapBuilder<StringBuilder, StringBuilder>,
    description: StringBuilder,
}

impl Rows {
    fn new() -> Self {
        let names = MapFieldNames { entry: "entries".into(), key: "key".into(), value: "value".into() };
        Self {
            stream: StringBuilder::new(),
            device: StringBuilder::new(),
            events: Int64Builder::new(),
            times: std::array::from_fn(|_| TimestampMicrosecondBuilder::new().with_timezone("UTC")),
            cadence: Float64Builder::new(),
            expected: Float64Builder::new(),
            state: StringBuilder::new(),
            reason: StringBuilder::new(),
            declared: BooleanBuilder::new(),
            labels: MapBuilder::new(Some(names), StringBuilder::new(), StringBuilder::new()),
            description: StringBuilder::new(),
        }
    }

    fn push(&mut self, row: Row<'_>) {
        let seen = row.device.and_then(|device| device.seen.as_ref());
        let (state, since, reason) = row.standing;
        self.stream.append_option(row.stream);
        self.device.append_value(row.name);
        self.events.append_value(seen.map_or(0, |seen| seen.events as i64));
        let bounds = seen.map_or([None; 4], |seen| {
            [seen.first, seen.last, Some(seen.first_arrival), Some(seen.last_arrival)]
        });
        for (times, time) in self.times.iter_mut().zip(bounds.into_iter().chain([since])) {
            times.append_option(time);
        }
        self.cadence.append_option(seen.and_then(|seen| seen.cadence_s()));
        self.expected.append_option(row.cadence.map(|micros| micros as f64 / 1e6));
        self.state.append_value(state.name());
        self.reason.append_option(reason.map(|reason| reason.name()));
        self.declared.append_value(row.def.is_some());
        for (name, value) in row.def.into_iter().flat_map(|def| &def.labels) {
            self.labels.keys().append_value(name);
            self.labels.values().append_value(value);
        }
        self.labels.append(true).expect("a key and a value were appended each time");
        self.description.append_option(row.def.and_then(|def| def.description.as_deref()));
    }

    fn finish(mut self) -> RecordBatch {
        let [first, last, first_arrival, last_arrival, since] =
            self.times.each_mut().map(|times| Arc::new(times.finish()) as ArrayRef);
        let columns: Vec<ArrayRef> = vec![
            Arc::new(self.stream.finish()),
            Arc::new(self.device.finish()),
            Arc::new(self.events.finish()),
            first,
            last,
            first_arrival,
            last_arrival,
            Arc::new(self.cadence.finish()),
            Arc::new(self.expected.finish()),
            Arc::new(self.state.finish()),
            since,
            Arc::new(self.reason.finish()),
            Arc::new(self.declared.finish()),
            Arc::new(self.labels.finish()),
            Arc::new(self.description.finish()),
        ];
        RecordBatch::try_new(device_schema(), columns)
            .expect("the columns are built in the order of the schema")
    }
}
