//! Event time as the engine keeps it: the watermark of each stream, and the ledger of late events.
//!
//! The unit is the log group, as for everything that must come out the same in a replay: an event is late if it is
//! before the watermark that the group found, and the group's events move the watermark together.

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow::array::{AsArray, RecordBatch};
use arrow::datatypes::TimestampMicrosecondType;
use iot_schemas::catalog::TimeLimits;
use iot_schemas::layout::{EVENT_TIME, INGEST_TIME};
use iot_schemas::view::WindowEnds;
use serde::{Deserialize, Serialize};

use crate::batch_devices::BatchDevices;
use crate::late_ledger::{Kind, LateLedger, Tally};
use crate::progress::{LateRows, StreamProgress, WatermarkRows};
use crate::watermark::{SavedWatermark, Watermark};

/// The event time of all streams.
#[derive(Debug, Default)]
pub(crate) struct EventTime {
    streams: BTreeMap<Arc<str>, Watermark>,
    ledger: LateLedger,
}

/// [`EventTime`] as plain data.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct SavedTime {
    streams: BTreeMap<Arc<str>, SavedWatermark>,
    ledger: LateLedger,
}

/// What one group's events of one stream were to its event time.
#[derive(Debug, Default)]
pub(crate) struct Observed {
    /// The watermark that the group found: windows that end by then were closed.
    pub(crate) closed_up_to: Option<i64>,
    /// The times of the late events, in order.
    late: Vec<i64>,
    /// The newest arrival in the group.
    pub(crate) arrival: Option<i64>,
}

impl Observed {
    /// Whether some of the events were late.
    pub(crate) fn has_late(&self) -> bool {
        !self.late.is_empty()
    }
}

impl EventTime {
    /// Takes in the events of one group, of which `devices` are the devices.
    pub(crate) fn observe(
        &mut self,
        stream: &Arc<str>,
        rows: &RecordBatch,
        devices: &BatchDevices<'_>,
        limits: &TimeLimits,
    ) -> Observed {
        let watermark = self.streams.entry(stream.clone()).or_default();
        let mut seen = Observed { closed_up_to: watermark.value(), ..Observed::default() };
        let Some(columns) = Columns::of(rows) else { return seen };
        let names = devices.names();
        // By device: the newest event time and arrival, of those whose events are not all in the future.
        let mut newest: Vec<Option<(i64, i64)>> = vec![None; names.len()];
        for (slot, time, arrival) in columns.iter(devices) {
            seen.arrival = seen.arrival.max(Some(arrival));
            if limits.is_future(time, arrival) {
                let ahead = Tally::of(1, time.saturating_sub(arrival), arrival);
                self.ledger.note(stream, names[slot], Kind::Future, ahead);
                continue;
            }
            if let Some(edge) = seen.closed_up_to.filter(|edge| time < *edge) {
                let late = Tally::of(1, edge.saturating_sub(time), arrival);
                self.ledger.note(stream, names[slot], Kind::Late, late);
                seen.late.push(time);
            }
            let known = newest[slot].get_or_insert((time, arrival));
            *known = (known.0.max(time), known.1.max(arrival));
        }
        for (device, newest) in names.iter().zip(newest) {
            if let Some((time, arrival)) = newest {
                watermark.observe(device, time, arrival, limits);
            }
        }
        if let Some(arrival) = seen.arrival {
            watermark.advance(arrival, limits);
        }
        seen.late.sort_unstable();
        seen
    }

    /// The arrival time of a group is that of all streams: devices of those that had nothing may be idle now.
    pub(crate) fn advance(&mut self, arrival: i64, limits_of: impl Fn(&str) -> Option<TimeLimits>) {
        for (stream, watermark) in &mut self.streams {
            if let Some(limits) = limits_of(stream) {
                watermark.advance(arrival, &limits);
            }
        }
    }

    /// Writes down which closed windows of a view the group's late events have changed; `states` are the state rows
    /// that it made of the group. Returns the windows' starts and how often each was corrected.
    pub(crate) fn note_windows(
        &mut self,
        view: &Arc<str>,
        ends: &WindowEnds,
        states: &[RecordBatch],
        seen: &Observed,
    ) -> BTreeMap<i64, u64> {
        let (Some(edge), false) = (seen.closed_up_to, seen.late.is_empty()) else { return BTreeMap::new() };
        let mut starts: Vec<i64> = states.iter().flat_map(|states| ends.starts(states)).flatten().collect();
        starts.sort_unstable();
        starts.dedup();
        let mut corrected = BTreeMap::new();
        for start in starts {
            let end = ends.window_end_of(start);
            if end <= edge {
                let tally = seen.tally_within(start, end, edge);
                corrected.insert(start, self.ledger.note_window(view, start, end, tally));
            }
        }
        corrected
    }

    /// The progress of one stream.
    pub(crate) fn progress(&self, stream: &str) -> StreamProgress {
        let tallies = self.ledger.stream(stream);
        let watermark = self.streams.get(stream);
        StreamProgress {
            watermark: watermark.and_then(Watermark::value),
            newest_event: watermark.and_then(Watermark::newest),
            newest_arrival: watermark.and_then(Watermark::arrival),
            late_events: tallies.late.events,
            future_events: tallies.future.events,
        }
    }

    /// The watermark of one stream.
    pub(crate) fn watermark(&self, stream: &str) -> Option<i64> {
        self.streams.get(stream)?.value()
    }

    /// The table `late`. `stream_of` knows the stream of a view.
    pub(crate) fn late_rows(&self, stream_of: impl Fn(&str) -> Option<Arc<str>>) -> RecordBatch {
        LateRows::of(&self.ledger.entries(), stream_of)
    }

    /// The table `watermarks`: each stream, and its devices.
    pub(crate) fn watermark_rows(&self, limits_of: impl Fn(&str) -> Option<TimeLimits>) -> RecordBatch {
        let mut rows = WatermarkRows::new();
        for (stream, watermark) in &self.streams {
            let Some(limits) = limits_of(stream) else { continue };
            rows.push_stream(stream, watermark.value(), watermark.arrival());
            watermark.devices(&limits).for_each(|device| rows.push_device(stream, device));
        }
        rows.finish()
    }

    /// The state as plain data.
    pub(crate) fn save(&self) -> SavedTime {
        let streams = self.streams.iter().map(|(name, watermark)| (name.clone(), watermark.save()));
        SavedTime { streams: streams.collect(), ledger: self.ledger.clone() }
    }

    /// The state that [`Self::save`] was called on.
    pub(crate) fn restore(saved: SavedTime) -> Self {
        let streams = saved.streams.into_iter().map(|(name, saved)| (name, Watermark::restore(saved)));
        Self { streams: streams.collect(), ledger: saved.ledger }
    }
}

impl Observed {
    /// The late events within a window. A window whose late events are told by something else than its bounds has
    /// none here, and is counted as corrected all the same.
    fn tally_within(&self, start: i64, end: i64, edge: i64) -> Tally {
        let from = self.late.partition_point(|time| *time < start);
        let to = self.late.partition_point(|time| *time < end);
        let worst =
            self.late.get(from).filter(|_| from < to).map_or(0, |oldest| edge.saturating_sub(*oldest));
        Tally::of((to - from) as u64, worst, self.arrival.unwrap_or_default())
    }
}

/// The columns that event time is read from.
struct Columns<'a> {
    times: &'a arrow::array::TimestampMicrosecondArray,
    arrivals: &'a arrow::array::TimestampMicrosecondArray,
}

impl<'a> Columns<'a> {
    fn of(rows: &'a RecordBatch) -> Option<Self> {
        Some(Self {
            times: rows.column_by_name(EVENT_TIME)?.as_primitive_opt::<TimestampMicrosecondType>()?,
            arrivals: rows.column_by_name(INGEST_TIME)?.as_primitive_opt::<TimestampMicrosecondType>()?,
        })
    }

    /// Each row's device (by its slot), event time and arrival.
    fn iter(&self, devices: &'a BatchDevices<'_>) -> impl Iterator<Item = (usize, i64, i64)> + '_ {
        let slots = devices.slots().iter().map(|slot| *slot as usize);
        slots
            .zip(self.times.values())
            .zip(self.arrivals.values())
            .map(|((slot, time), arrival)| (slot, *time, *arrival))
    }
}

#[cfg(test)]
mod tests {
    use arrow::array::{ArrayRef, StringArray, TimestampMicrosecondArray};
    use iot_schemas::layout::DEVICE_ID;

    use super::*;

    const LIMITS: TimeLimits = TimeLimits { lateness: 10, idle: 1_000, future: 100, lag: 10_000 };

    fn rows(events: &[(&str, i64, i64)]) -> RecordBatch {
        let instants = |values: Vec<i64>| {
            Arc::new(TimestampMicrosecondArray::from(values).with_timezone("UTC")) as ArrayRef
        };
        let devices: StringArray = events.iter().map(|event| Some(event.0)).collect();
        RecordBatch::try_from_iter([
            (EVENT_TIME, instants(events.iter().map(|event| event.1).collect())),
            (DEVICE_ID, Arc::new(devices) as ArrayRef),
            (INGEST_TIME, instants(events.iter().map(|event| event.2).collect())),
        ])
        .unwrap()
    }

    fn observe(time: &mut EventTime, rows: &RecordBatch) -> Observed {
        time.observe(&"s".into(), rows, &BatchDevices::of(rows), &LIMITS)
    }

    fn counts(time: &EventTime) -> (Option<i64>, u64, u64) {
        let progress = time.progress("s");
        (progress.watermark, progress.late_events, progress.future_events)
    }

    #[test]
    fn a_group_is_judged_by_the_watermark_that_it_found() {
        let mut time = EventTime::default();
        observe(&mut time, &rows(&[("a", 500, 500), ("a", 100, 500)]));
        assert_eq!(counts(&time), (Some(490), 0, 0));
        let seen = observe(&mut time, &rows(&[("a", 489, 501), ("a", 490, 501), ("b", 100, 502)]));
        assert_eq!((seen.closed_up_to, seen.late), (Some(490), vec![100, 489]));
        assert_eq!(counts(&time), (Some(490), 2, 0));
    }

    #[test]
    fn an_event_from_too_far_in_the_future_moves_nothing_and_is_counted() {
        let mut time = EventTime::default();
        observe(&mut time, &rows(&[("a", 500, 500), ("ahead", 601, 500), ("ahead", 600, 500)]));
        assert_eq!(counts(&time), (Some(490), 0, 1));
        observe(&mut time, &rows(&[("ahead", 5_000, 510)]));
        assert_eq!(counts(&time), (Some(490), 0, 2));
        let progress = time.progress("s");
        assert_eq!((progress.newest_event, progress.newest_arrival), (Some(600), Some(510)));
    }

    #[test]
    fn the_state_survives_a_restart() {
        let mut time = EventTime::default();
        observe(&mut time, &rows(&[("a", 500, 500), ("b", 520, 500), ("c", 5_000, 500)]));
        observe(&mut time, &rows(&[("a", 100, 501)]));
        let saved = serde_json::to_vec(&time.save()).unwrap();
        let mut restored = EventTime::restore(serde_json::from_slice(&saved).unwrap());
        let later = rows(&[("a", 540, 502), ("b", 50, 502)]);
        observe(&mut time, &later);
        observe(&mut restored, &later);
        assert_eq!(counts(&time), (Some(510), 2, 1));
        assert_eq!(counts(&restored), counts(&time));
        assert_eq!(restored.late_rows(|_| None), time.late_rows(|_| None));
        assert_eq!(time.late_rows(|_| None).num_rows(), 5);
    }

    #[test]
    fn late_events_are_counted_by_window() {
        let seen = Observed { closed_up_to: Some(100), late: vec![5, 59, 60, 61], arrival: Some(7) };
        assert_eq!(seen.tally_within(0, 60, 100), Tally::of(2, 95, 7));
        assert_eq!(seen.tally_within(60, 120, 100), Tally::of(2, 40, 7));
        assert_eq!(seen.tally_within(120, 180, 100), Tally::of(0, 0, 7));
    }
}
