//! Event time in the engine: what each group does to it, and who is told.

use std::sync::Arc;

use arrow::array::{AsArray, RecordBatch};
use arrow::compute::max;
use arrow::datatypes::TimestampMicrosecondType;
use iot_schemas::catalog::TimeLimits;
use iot_schemas::layout::INGEST_TIME;
use iot_schemas::micro_batch::{LogGroup, MicroBatch};
use iot_schemas::raw::RawStreams;
use iot_schemas::view::{CompiledView, WindowEnds};

use super::{Engine, SpeedLayer};
use crate::batch_devices::BatchDevices;
use crate::event_time::Observed;

impl SpeedLayer {
    /// The table `late`: what came late, or from too far in the future, by stream, device and closed window.
    /// Columns: [`crate::late_schema`].
    pub fn late_rows(&self) -> RecordBatch {
        let stream_of = |view: &str| Some(self.views.read().get(view)?.view().stream().clone());
        self.time.read().late_rows(stream_of)
    }

    /// The table `watermarks`: how far event time has come in each stream (no device) and on each device.
    /// Columns: [`crate::watermark_schema`].
    pub fn watermark_rows(&self) -> RecordBatch {
        self.time.read().watermark_rows(|stream| limits(&*self.raw, stream))
    }
}

impl Engine {
    /// Takes a group's events of one stream into event time.
    pub(super) fn observe(&self, batch: &MicroBatch, devices: &BatchDevices<'_>) -> Observed {
        let limits = limits(&*self.raw, &batch.stream).unwrap_or(NO_LIMITS);
        self.shared.time.write().observe(&batch.stream, &batch.rows, devices, &limits)
    }

    /// After a group: its arrival leaves devices of other streams idle.
    pub(super) fn advance_time(&self, group: &LogGroup) {
        let arrivals = group.batches.iter().filter_map(|batch| {
            max(batch.rows.column_by_name(INGEST_TIME)?.as_primitive_opt::<TimestampMicrosecondType>()?)
        });
        if let Some(arrival) = arrivals.max() {
            self.shared.time.write().advance(arrival, |stream| limits(&*self.raw, stream));
        }
    }

    /// Writes down which rows of a view a group has changed: for the ledger if they were closed, and for those who
    /// follow the view. `seen` is `None` for a group that event time has had already.
    pub(super) fn note_changes(&self, view: &CompiledView, states: &[RecordBatch], seen: Option<&Observed>) {
        let revisions = match (WindowEnds::of(view), seen) {
            (Some(ends), Some(seen)) => {
                self.shared.time.write().note_windows(&view.name().into(), &ends, states, seen)
            }
            _ => Default::default(),
        };
        self.shared.feed.stage(view, states, revisions);
    }

    /// Lets those who follow views see what has been taken in.
    pub(super) fn publish_time(&self) {
        let time = self.shared.time.read();
        let streams = self.raw.names().into_iter();
        self.shared.feed.publish(streams.map(|stream| {
            let watermark = time.watermark(&stream);
            (stream, watermark)
        }));
    }
}

/// Of a stream that was just deleted.
const NO_LIMITS: TimeLimits = TimeLimits { lateness: 0, idle: i64::MAX, future: i64::MAX, lag: i64::MAX };

fn limits(raw: &dyn RawStreams, stream: &str) -> Option<TimeLimits> {
    raw.definition(stream).map(|def: Arc<_>| def.time_limits())
}
