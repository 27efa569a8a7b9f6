//! How far event time has come in each stream, and which events came late, as readers are told.

use std::sync::Arc;

use arrow::array::{
    ArrayRef, BooleanBuilder, Int64Builder, RecordBatch, StringBuilder, TimestampMicrosecondBuilder,
};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use iot_schemas::layout::timestamp_type;
use serde::Serialize;

use crate::late_ledger::{LateEntry, Tally};
use crate::watermark::DeviceTime;

/// The event-time progress of one stream. Times are microseconds since 1970.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct StreamProgress {
    /// Events of before are late, windows that end by then are closed.
    pub watermark: Option<i64>,
    /// The newest event time that was believed.
    pub newest_event: Option<i64>,
    /// When the newest message was accepted.
    pub newest_arrival: Option<i64>,
    /// Events that were before the watermark when they came.
    pub late_events: u64,
    /// Events whose time was too far in the future to be believed.
    pub future_events: u64,
}

/// The columns of the table `late`.
pub fn late_schema() -> SchemaRef {
    Arc::new(Schema::new(vec![
        Field::new("scope", DataType::Utf8, false),
        Field::new("kind", DataType::Utf8, false),
        Field::new("stream", DataType::Utf8, true),
        Field::new("device_id", DataType::Utf8, true),
        Field::new("view", DataType::Utf8, true),
        Field::new("window_start", timestamp_type(), true),
        Field::new("window_end", timestamp_type(), true),
        Field::new("events", DataType::Int64, false),
        Field::new("worst_delay_ms", DataType::Int64, false),
        Field::new("newest_arrival", timestamp_type(), false),
        Field::new("revision", DataType::Int64, true),
    ]))
}

/// The columns of the table `watermarks`.
pub fn watermark_schema() -> SchemaRef {
    Arc::new(Schema::new(vec![
        Field::new("stream", DataType::Utf8, false),
        Field::new("device_id", DataType::Utf8, true),
        Field::new("watermark", timestamp_type(), true),
        Field::new("newest_arrival", timestamp_type(), true),
        Field::new("holds", DataType::Boolean, true),
    ]))
}

/// Rows of the table `late`.
#[derive(Debug)]
pub(crate) struct LateRows {
    scope: StringBuilder,
    kind: StringBuilder,
    stream: StringBuilder,
    device: StringBuilder,
    view: StringBuilder,
    window_start: TimestampMicrosecondBuilder,
    window_end: TimestampMicrosecondBuilder,
    events: Int64Builder,
    worst_delay_ms: Int64Builder,
    newest_arrival: TimestampMicrosecondBuilder,
    revision: Int64Builder,
}

/// What one row is about.
#[derive(Debug, Default)]
struct About<'a> {
    scope: &'a str,
    stream: Option<&'a str>,
    device: Option<&'a str>,
    view: Option<&'a str>,
    start: Option<i64>,
    end: Option<i64>,
    revision: Option<i64>,
}

impl LateRows {
    /// One row per entry and kind that has events. `stream_of` knows the stream of a view.
    pub(crate) fn of(entries: &[LateEntry], stream_of: impl Fn(&str) -> Option<Arc<str>>) -> RecordBatch {
        let mut rows = Self::empty();
        for entry in entries {
            match entry {
                LateEntry::Stream { stream, tallies } => {
                    let about = About { scope: "stream", stream: Some(stream), ..About::default() };
                    rows.push("late", &about, tallies.late);
                    rows.push("future", &about, tallies.future);
                }
                LateEntry::Device { stream, device, tallies } => {
                    let device = device.as_deref();
                    let about = About { scope: "device", stream: Some(stream), device, ..About::default() };
                    rows.push("late", &about, tallies.late);
                    rows.push("future", &about, tallies.future);
                }
                LateEntry::Window { view, start, window } => {
                    let stream = stream_of(view);
                    let about = About {
                        scope: "window",
                        stream: stream.as_deref(),
                        view: Some(view),
                        start: *start,
                        end: start.map(|_| window.end),
                        revision: Some(window.revision as i64),
                        ..About::default()
                    };
                    rows.push("late", &about, window.tally);
                }
            }
        }
        rows.finish()
    }

    fn empty() -> Self {
        let instants = || TimestampMicrosecondBuilder::new().with_timezone("UTC");
        Self {
            scope: StringBuilder::new(),
            kind: StringBuilder::new(),
            stream: StringBuilder::new(),
            device: StringBuilder::new(),
            view: StringBuilder::new(),
            window_start: instants(),
            window_end: instants(),
            events: Int64Builder::new(),
            worst_delay_ms: Int64Builder::new(),
            newest_arrival: instants(),
            revision: Int64Builder::new(),
        }
    }

    fn push(&mut self, kind: &str, about: &About<'_>, tally: Tally) {
        if tally.events == 0 {
            return;
        }
        self.scope.append_value(about.scope);
        self.kind.append_value(kind);
        self.stream.append_option(about.stream);
        self.device.append_option(about.device);
        self.view.append_option(about.view);
        self.window_start.append_option(about.start);
        self.window_end.append_option(about.end);
        self.events.append_value(tally.events as i64);
        self.worst_delay_ms.append_value(tally.worst / 1_000);
        self.newest_arrival.append_value(tally.newest_arrival);
        self.revision.append_option(about.revision);
    }

    fn finish(mut self) -> RecordBatch {
        let columns: Vec<ArrayRef> = vec![
            Arc::new(self.scope.finish()),
            Arc::new(self.kind.finish()),
            Arc::new(self.stream.finish()),
            Arc::new(self.device.finish()),
            Arc::new(self.view.finish()),
            Arc::new(self.window_start.finish()),
            Arc::new(self.window_end.finish()),
            Arc::new(self.events.finish()),
            Arc::new(self.worst_delay_ms.finish()),
            Arc::new(self.newest_arrival.finish()),
            Arc::new(self.revision.finish()),
        ];
        RecordBatch::try_new(late_schema(), columns)
            .expect("the columns are built in the order of the schema")
    }
}

/// Rows of the table `watermarks`: the stream itself without a device, then its devices.
#[derive(Debug)]
pub(crate) struct WatermarkRows {
    stream: StringBuilder,
    device: StringBuilder,
    watermark: TimestampMicrosecondBuilder,
    arrival: TimestampMicrosecondBuilder,
    holds: BooleanBuilder,
}

impl WatermarkRows {
    pub(crate) fn new() -> Self {
        let instants = || TimestampMicrosecondBuilder::new().with_timezone("UTC");
        Self {
            stream: StringBuilder::new(),
            device: StringBuilder::new(),
            watermark: instants(),
            arrival: instants(),
            holds: BooleanBuilder::new(),
        }
    }

    pub(crate) fn push_stream(&mut self, stream: &str, watermark: Option<i64>, arrival: Option<i64>) {
        self.stream.append_value(stream);
        self.device.append_null();
        self.watermark.append_option(watermark);
        self.arrival.append_option(arrival);
        self.holds.append_null();
    }

    pub(crate) fn push_device(&mut self, stream: &str, time: DeviceTime<'_>) {
        self.stream.append_value(stream);
        self.device.append_value(time.device);
        self.watermark.append_value(time.watermark);
        self.arrival.append_value(time.arrival);
        self.holds.append_value(time.holds);
    }

    pub(crate) fn finish(mut self) -> RecordBatch {
        let columns: Vec<ArrayRef> = vec![
            Arc::new(self.stream.finish()),
            Arc::new(self.device.finish()),
            Arc::new(self.watermark.finish()),
            Arc::new(self.arrival.finish()),
            Arc::new(self.holds.finish()),
        ];
        RecordBatch::try_new(watermark_schema(), columns)
            .expect("the columns are built in the order of the schema")
    }
}
