//! How far event time has come in a stream, and how many events came late.
//!
//! Event-time progress decides what counts as *late* and drives rules without a time of their own. It never
//! decides whether an event counts: views take every event.

use arrow::array::AsArray;
use arrow::compute::max;
use arrow::datatypes::TimestampMicrosecondType;
use arrow::record_batch::RecordBatch;
use iot_schemas::layout::{EVENT_TIME, INGEST_TIME};
use serde::{Deserialize, Serialize};

/// A device whose clock is further ahead than this does not move the stream's progress.
const MAX_AHEAD_MICROS: i64 = 5 * 60 * 1_000_000;

/// The event-time progress of one stream.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct StreamProgress {
    /// The newest event time seen, microseconds since 1970.
    pub newest_event: Option<i64>,
    /// When the newest message was accepted, microseconds since 1970.
    pub newest_arrival: Option<i64>,
    /// Events that were older than the newest one by more than the allowed lateness.
    pub late_events: u64,
    /// Events whose time was too far in the future to be believed.
    pub future_events: u64,
}

impl StreamProgress {
    /// Takes in the events of one group.
    pub fn observe(&mut self, rows: &RecordBatch, allowed_lateness_micros: i64) {
        let (Some(times), Some(arrivals)) =
            (rows.column_by_name(EVENT_TIME), rows.column_by_name(INGEST_TIME))
        else {
            return;
        };
        let times = times.as_primitive::<TimestampMicrosecondType>();
        let arrivals = arrivals.as_primitive::<TimestampMicrosecondType>();
        let Some(arrival) = max(arrivals) else { return };
        let latest_believed = arrival.saturating_add(MAX_AHEAD_MICROS);
        let edge = self.newest_event.map(|newest| newest.saturating_sub(allowed_lateness_micros));
        let mut newest = self.newest_event;
        for time in times.values() {
            if *time > latest_believed {
                self.future_events += 1;
            } else {
                self.late_events += u64::from(edge.is_some_and(|edge| *time < edge));
                newest = newest.max(Some(*time));
            }
        }
        self.newest_event = newest;
        self.newest_arrival = self.newest_arrival.max(Some(arrival));
    }
}
