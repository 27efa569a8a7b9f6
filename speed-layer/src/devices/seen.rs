//! What a device has sent: how much, from when to when, and how often.

use std::collections::VecDeque;

use serde::{Deserialize, Serialize};

/// How many intervals the cadence is the median of. Four outages among them do not show.
const INTERVALS: usize = 9;

/// The events of a device. Times are microseconds since 1970.
///
/// An event time that lies so far after its arrival that the stream does not believe it is neither the oldest nor the
/// newest, nor does it tell an interval: one event from the year 2099 would be the newest for good.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Seen {
    pub(super) events: u64,
    /// The oldest event time, if one is believed.
    pub(super) first: Option<i64>,
    /// The newest event time, if one is believed.
    pub(super) last: Option<i64>,
    pub(super) first_arrival: i64,
    pub(super) last_arrival: i64,
    #[serde(default)]
    intervals: Intervals,
}

/// The last few intervals between event times, in milliseconds, oldest first.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
struct Intervals(VecDeque<u32>);

impl Seen {
    /// So many events, of which nothing is known but the bounds; those of `time` are of the times that are believed.
    pub(super) fn between(events: u64, time: (Option<i64>, Option<i64>), arrival: (i64, i64)) -> Self {
        Self {
            events,
            first: time.0,
            last: time.1,
            first_arrival: arrival.0,
            last_arrival: arrival.1,
            intervals: Intervals::default(),
        }
    }

    /// The first event of a device, believed if it is at most `future` after its arrival.
    pub(super) fn begin(time: i64, arrival: i64, future: i64) -> Self {
        let mut seen = Self::between(0, (None, None), (arrival, arrival));
        seen.count(time, arrival, future);
        seen
    }

    /// Takes an event in. Only one that is newer than all before tells an interval.
    pub(super) fn count(&mut self, time: i64, arrival: i64, future: i64) {
        self.events += 1;
        self.first_arrival = self.first_arrival.min(arrival);
        self.last_arrival = self.last_arrival.max(arrival);
        // What was believed by another `max_future`, or by an older version, need not stay.
        self.last = self.last.filter(|last| *last <= self.last_arrival.saturating_add(future));
        if time > arrival.saturating_add(future) {
            return;
        }
        if let Some(last) = self.last.filter(|last| *last < time) {
            self.intervals.push(time.saturating_sub(last));
        }
        self.first = Some(self.first.map_or(time, |first| first.min(time)));
        self.last = self.last.max(Some(time));
    }

    /// How often it measures, in seconds: the median of the last nine intervals between its event times.
    ///
    /// Event times, because a network that holds messages back and delivers them at once does not change these. The
    /// median, because an outage does not change it, nor does a clock that jumps.
    pub(super) fn cadence_s(&self) -> Option<f64> {
        let mut sorted: Vec<u32> = self.intervals.0.iter().copied().collect();
        sorted.sort_unstable();
        let middle = sorted.get(sorted.len().checked_sub(1)? / 2)?;
        Some(f64::from(*middle) / 1e3)
    }
}

impl Intervals {
    fn push(&mut self, micros: i64) {
        if self.0.len() == INTERVALS {
            self.0.pop_front();
        }
        self.0.push_back(u32::try_from(micros / 1_000).unwrap_or(u32::MAX));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after(times: &[i64]) -> Seen {
        let mut seen = Seen::begin(times[0], 0, i64::MAX);
        times[1..].iter().for_each(|time| seen.count(*time, 0, i64::MAX));
        seen
    }

    #[test]
    fn an_outage_a_burst_of_old_events_and_a_jump_do_not_change_the_cadence() {
        const SECOND: i64 = 1_000_000;
        let check = |seconds: &[i64], expect: Option<f64>| {
            let times: Vec<i64> = seconds.iter().map(|second| second * SECOND).collect();
            assert_eq!(after(&times).cadence_s(), expect, "{seconds:?}");
        };
        check(&[5], None);
        check(&[5, 15], Some(10.0));
        check(&[0, 10, 20, 30, 5_000, 5_010, 3, 4, 4, 5_020], Some(10.0));
        check(&[0, 10, 20, 30, 40, 41, 42, 43, 44, 45], Some(1.0));
        check(&[0, 10, 20, 30, 40, 50, 41, 42, 43, 60], Some(10.0));
        check(&[0, i64::MAX / SECOND], Some(f64::from(u32::MAX) / 1e3));
    }

    #[test]
    fn bounds_and_numbers_are_those_of_all_events() {
        let mut seen = Seen::begin(50, 100, 0);
        seen.count(20, 110, 0);
        seen.count(90, 105, 0);
        assert_eq!((seen.events, seen.first, seen.last), (3, Some(20), Some(90)));
        assert_eq!((seen.first_arrival, seen.last_arrival), (100, 110));
    }

    #[test]
    fn an_event_from_the_future_is_counted_and_says_nothing_about_time() {
        const FAR: i64 = 4_000_000_000_000_000;
        let mut seen = Seen::begin(FAR, 10_000, 5_000);
        assert_eq!((seen.events, seen.first, seen.last), (1, None, None));
        seen.count(20_000, 20_000, 5_000);
        seen.count(FAR, 25_000, 5_000);
        seen.count(35_000, 30_000, 5_000);
        assert_eq!((seen.events, seen.first, seen.last), (4, Some(20_000), Some(35_000)));
        assert_eq!((seen.cadence_s(), seen.last_arrival), (Some(0.015), 30_000));
    }

    #[test]
    fn a_time_that_an_older_version_believed_does_not_stay() {
        let old =
            r#"{"events": 2, "first": 1, "last": 4000000000000000, "first_arrival": 1, "last_arrival": 2}"#;
        let mut seen: Seen = serde_json::from_str(old).expect("what was written");
        seen.count(10_000, 10_000, 5_000);
        seen.count(20_000, 20_000, 5_000);
        assert_eq!((seen.first, seen.last, seen.cadence_s()), (Some(1), Some(20_000), Some(0.01)));
    }
}
