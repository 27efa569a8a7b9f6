//! The watermark of a stream: how far event time has come, as far as the slowest device tells.
//!
//! A device's own watermark is its newest event time. The stream's is the least of those of its devices, minus the
//! allowed lateness, and never moves back. Two kinds of devices do not hold it back: those that have been silent
//! for the idle time-out, measured in arrival time, and those that are further behind the stream's newest event
//! than the lag limit. When nothing holds it back it follows the newest event.
//!
//! It is a function of the events and their recorded arrival, group by group, and never looks at a clock: a replay
//! of the log arrives at the same watermark.
//!
//! Cost: the devices stand in a heap by event times that may be out of date. Because a device's time only grows, an
//! entry is a lower bound and is put right only when it comes to the top, so an event costs a look-up and rarely
//! more than that.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::collections::binary_heap::PeekMut;
use std::sync::Arc;

use ahash::HashMap;
use iot_schemas::catalog::TimeLimits;
use serde::{Deserialize, Serialize};

/// Devices that are known at a time. When there are more, idle ones are forgotten; if none is idle, a further
/// device does not hold the watermark back.
const MAX_DEVICES: usize = 100_000;

/// The watermark of one stream, and what it is computed from. All times are microseconds since 1970.
#[derive(Debug, Default)]
pub(crate) struct Watermark {
    devices: Vec<Device>,
    /// Where a device stands in `devices`.
    places: HashMap<Arc<str>, usize>,
    /// Each device that may hold the watermark back, once, by an event time not after its newest, and its place.
    slowest: BinaryHeap<Reverse<(i64, usize)>>,
    newest: Option<i64>,
    arrival: Option<i64>,
    value: Option<i64>,
    /// Forgetting idle devices is not worth a try before this arrival time.
    next_purge: i64,
}

#[derive(Debug)]
struct Device {
    name: Arc<str>,
    newest: i64,
    arrival: i64,
    queued: bool,
}

/// One device's part in a [`Watermark`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct DeviceTime<'a> {
    pub(crate) device: &'a str,
    /// Its own watermark: its newest event time.
    pub(crate) watermark: i64,
    /// Its newest arrival.
    pub(crate) arrival: i64,
    /// Whether it holds the stream's watermark back: it is neither idle nor too far behind.
    pub(crate) holds: bool,
}

/// A [`Watermark`] as plain data.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct SavedWatermark {
    newest: Option<i64>,
    arrival: Option<i64>,
    value: Option<i64>,
    /// Device, newest event time, newest arrival; by device.
    devices: Vec<(Arc<str>, i64, i64)>,
}

impl Watermark {
    /// The watermark: events of before are late. `None` before the first event.
    pub(crate) fn value(&self) -> Option<i64> {
        self.value
    }

    /// The newest event time that was believed.
    pub(crate) fn newest(&self) -> Option<i64> {
        self.newest
    }

    /// The newest arrival.
    pub(crate) fn arrival(&self) -> Option<i64> {
        self.arrival
    }

    /// The devices, in no order.
    pub(crate) fn devices(&self, limits: &TimeLimits) -> impl Iterator<Item = DeviceTime<'_>> {
        self.devices.iter().map(|device| DeviceTime {
            device: &device.name,
            watermark: device.newest,
            arrival: device.arrival,
            holds: holds(device, self.arrival, self.newest, limits),
        })
    }

    /// Takes in the newest event of a device. The watermark moves with [`Self::advance`].
    pub(crate) fn observe(&mut self, device: &str, event_time: i64, arrival: i64, limits: &TimeLimits) {
        self.newest = self.newest.max(Some(event_time));
        self.arrival = self.arrival.max(Some(arrival));
        let Some(at) = self.places.get(device).copied() else {
            return self.meet(device.into(), event_time, arrival, limits);
        };
        let known = &mut self.devices[at];
        known.newest = known.newest.max(event_time);
        known.arrival = known.arrival.max(arrival);
        if !std::mem::replace(&mut known.queued, true) {
            self.slowest.push(Reverse((known.newest, at)));
        }
    }

    /// Lets arrival time come up to `arrival`, which may leave devices idle, and moves the watermark.
    pub(crate) fn advance(&mut self, arrival: i64, limits: &TimeLimits) {
        self.arrival = self.arrival.max(Some(arrival));
        let Some(newest) = self.newest else { return };
        let slowest = self.slowest_time(limits).unwrap_or(newest);
        self.value = self.value.max(Some(slowest.saturating_sub(limits.lateness)));
    }

    /// The least newest event time of the devices that hold the watermark back.
    fn slowest_time(&mut self, limits: &TimeLimits) -> Option<i64> {
        let (arrival, newest) = (self.arrival, self.newest);
        while let Some(mut top) = self.slowest.peek_mut() {
            let Reverse((known, at)) = *top;
            let device = &mut self.devices[at];
            if !holds(device, arrival, newest, limits) {
                device.queued = false;
                PeekMut::pop(top);
            } else if known == device.newest {
                return Some(known);
            } else {
                *top = Reverse((device.newest, at));
            }
        }
        None
    }

    fn meet(&mut self, name: Arc<str>, newest: i64, arrival: i64, limits: &TimeLimits) {
        if self.devices.len() >= MAX_DEVICES && !self.forget_idle(limits) {
            return;
        }
        let at = self.devices.len();
        self.places.insert(name.clone(), at);
        self.devices.push(Device { name, newest, arrival, queued: true });
        self.slowest.push(Reverse((newest, at)));
    }

    /// Forgets devices that have become idle; whether there is room now.
    fn forget_idle(&mut self, limits: &TimeLimits) -> bool {
        let now = self.arrival.unwrap_or(i64::MIN);
        if now < self.next_purge {
            return false;
        }
        self.next_purge = now.saturating_add(limits.idle / 8);
        let known = std::mem::take(&mut self.devices).into_iter();
        let kept = known.filter(|device| now.saturating_sub(device.arrival) < limits.idle);
        self.keep(kept.map(|device| (device.name, device.newest, device.arrival)));
        self.devices.len() < MAX_DEVICES
    }

    /// Exchanges the devices.
    fn keep(&mut self, devices: impl Iterator<Item = (Arc<str>, i64, i64)>) {
        let device = |(name, newest, arrival)| Device { name, newest, arrival, queued: true };
        self.devices = devices.map(device).collect();
        let placed = self.devices.iter().enumerate();
        self.places = placed.clone().map(|(at, device)| (device.name.clone(), at)).collect();
        self.slowest = placed.map(|(at, device)| Reverse((device.newest, at))).collect();
    }

    /// The state as plain data.
    pub(crate) fn save(&self) -> SavedWatermark {
        let devices = self.devices.iter();
        let mut devices: Vec<_> =
            devices.map(|device| (device.name.clone(), device.newest, device.arrival)).collect();
        devices.sort_unstable();
        SavedWatermark { newest: self.newest, arrival: self.arrival, value: self.value, devices }
    }

    /// The watermark that [`Self::save`] was called on: it goes on as if nothing had happened.
    pub(crate) fn restore(saved: SavedWatermark) -> Self {
        let SavedWatermark { newest, arrival, value, devices } = saved;
        let mut watermark = Self { newest, arrival, value, ..Self::default() };
        watermark.keep(devices.into_iter());
        watermark
    }
}

/// Whether a device holds the watermark back, given the stream's newest arrival and event time.
fn holds(device: &Device, arrival: Option<i64>, newest: Option<i64>, limits: &TimeLimits) -> bool {
    let (arrival, newest) = (arrival.unwrap_or(i64::MIN), newest.unwrap_or(i64::MIN));
    arrival.saturating_sub(device.arrival) < limits.idle && newest.saturating_sub(device.newest) <= limits.lag
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const LIMITS: TimeLimits = TimeLimits { lateness: 5, idle: 60, future: 3_600, lag: 1_000 };

    fn after(events: &[(&str, i64, i64)]) -> Watermark {
        let mut watermark = Watermark::default();
        for (device, time, arrival) in events {
            watermark.observe(device, *time, *arrival, &LIMITS);
            watermark.advance(*arrival, &LIMITS);
        }
        watermark
    }

    #[track_caller]
    fn check(events: &[(&str, i64, i64)], expect: i64) {
        assert_eq!(after(events).value(), Some(expect), "{events:?}");
    }

    #[test]
    fn the_slowest_device_holds_it_back_by_the_lateness() {
        check(&[("a", 100, 0)], 95);
        check(&[("a", 100, 0), ("b", 50, 1), ("a", 200, 2)], 95);
        check(&[("a", 100, 0), ("b", 150, 1), ("a", 200, 2)], 145);
        let watermark = after(&[("a", 100, 0), ("b", 150, 1), ("a", 90, 2)]);
        let mut devices: Vec<_> =
            watermark.devices(&LIMITS).map(|d| (d.device, d.watermark, d.holds)).collect();
        devices.sort_unstable();
        assert_eq!(devices, [("a", 100, true), ("b", 150, true)]);
        assert_eq!((watermark.newest(), watermark.arrival()), (Some(150), Some(2)));
    }

    #[test]
    fn a_device_that_is_ahead_does_not_drag_it() {
        check(&[("a", 100, 0), ("fast", 900, 1), ("a", 101, 2), ("fast", 901, 3)], 96);
    }

    #[test]
    fn a_silent_device_holds_it_back_until_it_is_idle() {
        check(&[("a", 100, 0), ("b", 110, 1), ("b", 170, 59)], 95);
        check(&[("a", 100, 0), ("b", 110, 1), ("b", 170, 60)], 165);
        // It may come back, and holds it back once it has caught up.
        check(&[("a", 100, 0), ("b", 170, 60), ("a", 120, 61), ("b", 200, 62)], 165);
        check(&[("a", 100, 0), ("b", 170, 60), ("a", 180, 61), ("b", 200, 62)], 175);
    }

    #[test]
    fn arrivals_elsewhere_leave_a_device_idle_too() {
        let mut watermark = after(&[("a", 100, 0), ("b", 170, 30)]);
        watermark.advance(60, &LIMITS);
        assert_eq!(watermark.value(), Some(165));
        // Nobody is left: all that came is over.
        watermark.advance(1_000, &LIMITS);
        assert_eq!(watermark.value(), Some(165));
    }

    #[test]
    fn a_clock_that_stands_still_far_behind_does_not_stop_the_time() {
        check(&[("broken", 7, 0), ("a", 5_000, 1), ("broken", 7, 2), ("a", 5_001, 3)], 4_996);
    }

    #[test]
    fn devices_beyond_the_limit_take_the_place_of_idle_ones() {
        let mut watermark = Watermark::default();
        for i in 0..MAX_DEVICES {
            watermark.observe(&format!("d{i}"), 100, 0, &LIMITS);
        }
        watermark.observe("one more", 50, 1, &LIMITS);
        watermark.advance(1, &LIMITS);
        assert_eq!((watermark.devices.len(), watermark.value()), (MAX_DEVICES, Some(95)));
        watermark.observe("later", 300, 500, &LIMITS);
        watermark.advance(500, &LIMITS);
        assert_eq!((watermark.devices.len(), watermark.value()), (1, Some(295)));
    }

    /// What the module's first paragraph says, computed anew for each step.
    fn by_definition(events: &[(usize, i64, i64)]) -> Vec<Option<i64>> {
        let mut value = None;
        (1..=events.len())
            .map(|n| {
                let seen = &events[..n];
                let arrival = seen.iter().map(|e| e.2).max()?;
                let newest = seen.iter().map(|e| e.1).max()?;
                let holding = (0..4).filter_map(|device| {
                    let own = || seen.iter().filter(|e| e.0 == device);
                    let (time, heard) = (own().map(|e| e.1).max()?, own().map(|e| e.2).max()?);
                    (arrival - heard < LIMITS.idle && newest - time <= LIMITS.lag).then_some(time)
                });
                value = value.max(Some(holding.min().unwrap_or(newest) - LIMITS.lateness));
                value
            })
            .collect()
    }

    proptest! {
        #[test]
        fn it_is_what_the_definition_says_never_moves_back_and_survives_a_restart(
            steps in prop::collection::vec((0usize..4, -1_500i64..1_500, 0i64..40), 1..60),
            restart_at in 0usize..60,
        ) {
            let mut arrival = 0;
            let events: Vec<(usize, i64, i64)> = steps.iter().enumerate().map(|(i, (device, jitter, pause))| {
                arrival += pause;
                (*device, i as i64 * 30 + jitter, arrival)
            }).collect();
            let expected = by_definition(&events);
            let mut watermark = Watermark::default();
            let mut before = None;
            for (i, ((device, time, arrival), expect)) in events.iter().zip(expected).enumerate() {
                if i == restart_at {
                    watermark = Watermark::restore(watermark.save());
                }
                watermark.observe(&device.to_string(), *time, *arrival, &LIMITS);
                watermark.advance(*arrival, &LIMITS);
                prop_assert_eq!(watermark.value(), expect);
                prop_assert!(watermark.value() >= before);
                before = watermark.value();
            }
        }
    }
}
