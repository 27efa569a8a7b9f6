//! The ledger of events that came too late, or from too far in the future: how many, how bad, since when.
//!
//! It counts and drops nothing: views have taken these events like all others. Entries are kept per stream, per
//! device, and per window that was closed before its events came. Its size is bounded: when there are too many
//! devices or windows, those that have had nothing for longest are summed up in one entry without a name, so that
//! the sums stay true.
//!
//! It is part of the engine's checkpoint and goes on from there by the replay of the log: a restart counts no event
//! twice and forgets none.

use std::collections::{BTreeMap, HashMap};
use std::hash::Hash;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

/// Devices per stream, and windows per view, that have entries of their own.
const MAX_ENTRIES: usize = 10_000;
/// Of so many, the oldest are summed up when the limit is passed.
const SUMMED_UP: usize = MAX_ENTRIES / 4;

/// What is wrong with an event's time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// It is before the watermark that the stream had when the event came.
    Late,
    /// It is too long after the arrival to be believed.
    Future,
}

/// A count of events, and the worst and the newest of them. Times are microseconds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Tally {
    pub(crate) events: u64,
    /// Late: how far behind the watermark. Future: how far ahead of the arrival.
    pub(crate) worst: i64,
    pub(crate) newest_arrival: i64,
}

impl Tally {
    pub(crate) fn of(events: u64, worst: i64, newest_arrival: i64) -> Self {
        Self { events, worst, newest_arrival }
    }

    fn add(&mut self, other: Self) {
        self.events += other.events;
        self.worst = self.worst.max(other.worst);
        self.newest_arrival = self.newest_arrival.max(other.newest_arrival);
    }
}

/// The late and the future events of one stream or device.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Tallies {
    pub(crate) late: Tally,
    pub(crate) future: Tally,
}

impl Tallies {
    fn note(&mut self, kind: Kind, tally: Tally) {
        match kind {
            Kind::Late => self.late.add(tally),
            Kind::Future => self.future.add(tally),
        }
    }
}

/// What happened to one window after it was closed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct WindowLate {
    pub(crate) end: i64,
    /// How often it was corrected: log groups that brought late events into it.
    pub(crate) revision: u64,
    pub(crate) tally: Tally,
}

/// Entries that are summed up when there are too many.
trait Entry: Default {
    fn newest_arrival(&self) -> i64;
    fn absorb(&mut self, other: Self);
}

impl Entry for Tallies {
    fn newest_arrival(&self) -> i64 {
        self.late.newest_arrival.max(self.future.newest_arrival)
    }

    fn absorb(&mut self, other: Self) {
        self.late.add(other.late);
        self.future.add(other.future);
    }
}

impl Entry for WindowLate {
    fn newest_arrival(&self) -> i64 {
        self.tally.newest_arrival
    }

    fn absorb(&mut self, other: Self) {
        self.end = self.end.max(other.end);
        self.revision += other.revision;
        self.tally.add(other.tally);
    }
}

/// A bounded map and the sum of what no longer fits.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(bound(
    serialize = "K: Serialize + Eq + Hash, E: Serialize",
    deserialize = "K: Deserialize<'de> + Eq + Hash, E: Deserialize<'de>"
))]
struct Entries<K, E> {
    named: HashMap<K, E>,
    /// `None` while all have entries of their own.
    others: Option<E>,
}

impl<K, E> Default for Entries<K, E> {
    fn default() -> Self {
        Self { named: HashMap::new(), others: None }
    }
}

impl<K: Eq + Hash + Ord + Clone, E: Entry + Copy> Entries<K, E> {
    /// The entry of `key`, made if need be.
    fn entry(&mut self, key: &K) -> &mut E {
        if self.named.len() >= MAX_ENTRIES && !self.named.contains_key(key) {
            self.sum_up();
        }
        self.named.entry(key.clone()).or_default()
    }

    fn sum_up(&mut self) {
        let mut ages: Vec<(i64, K)> =
            self.named.iter().map(|(key, entry)| (entry.newest_arrival(), key.clone())).collect();
        ages.sort_unstable();
        for (_, key) in ages.into_iter().take(SUMMED_UP) {
            if let Some(entry) = self.named.remove(&key) {
                self.others.get_or_insert_default().absorb(entry);
            }
        }
    }

    /// All entries by key, those without a name last.
    fn sorted(&self) -> Vec<(Option<K>, E)> {
        let mut all: Vec<(Option<K>, E)> = self.named.iter().map(|(k, e)| (Some(k.clone()), *e)).collect();
        all.sort_unstable_by(|a, b| a.0.cmp(&b.0));
        all.extend(self.others.map(|others| (None, others)));
        all
    }
}

/// The ledger. See the [module](self) for what it promises.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct LateLedger {
    streams: BTreeMap<Arc<str>, StreamLate>,
    windows: BTreeMap<Arc<str>, Entries<i64, WindowLate>>,
}

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
struct StreamLate {
    all: Tallies,
    devices: Entries<Arc<str>, Tallies>,
}

/// One entry as readers see it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum LateEntry {
    Stream {
        stream: Arc<str>,
        tallies: Tallies,
    },
    /// `device` is `None` for those that are summed up.
    Device {
        stream: Arc<str>,
        device: Option<Arc<str>>,
        tallies: Tallies,
    },
    /// `start` is `None` for those that are summed up.
    Window {
        view: Arc<str>,
        start: Option<i64>,
        window: WindowLate,
    },
}

impl LateLedger {
    /// Counts events of one device.
    pub(crate) fn note(&mut self, stream: &Arc<str>, device: &str, kind: Kind, tally: Tally) {
        let stream = self.streams.entry(stream.clone()).or_default();
        stream.all.note(kind, tally);
        match stream.devices.named.get_mut(device) {
            Some(known) => known.note(kind, tally),
            None => stream.devices.entry(&device.into()).note(kind, tally),
        }
    }

    /// Counts events of a window that was closed when they came. Returns how often it has been corrected by now.
    pub(crate) fn note_window(&mut self, view: &Arc<str>, start: i64, end: i64, tally: Tally) -> u64 {
        let entry = self.windows.entry(view.clone()).or_default().entry(&start);
        entry.absorb(WindowLate { end, revision: 1, tally });
        entry.revision
    }

    /// What a stream has had.
    pub(crate) fn stream(&self, stream: &str) -> Tallies {
        self.streams.get(stream).map_or_else(Tallies::default, |stream| stream.all)
    }

    /// All entries: streams, their devices, then windows, each by name.
    pub(crate) fn entries(&self) -> Vec<LateEntry> {
        let mut all = Vec::new();
        for (stream, late) in &self.streams {
            all.push(LateEntry::Stream { stream: stream.clone(), tallies: late.all });
            let device = |(device, tallies)| LateEntry::Device { stream: stream.clone(), device, tallies };
            all.extend(late.devices.sorted().into_iter().map(device));
        }
        for (view, windows) in &self.windows {
            let window = |(start, window)| LateEntry::Window { view: view.clone(), start, window };
            all.extend(windows.sorted().into_iter().map(window));
        }
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn streams_devices_and_windows_are_counted_each() {
        let mut ledger = LateLedger::default();
        let stream: Arc<str> = "s".into();
        ledger.note(&stream, "a", Kind::Late, Tally::of(2, 50, 7));
        ledger.note(&stream, "a", Kind::Late, Tally::of(1, 20, 9));
        ledger.note(&stream, "b", Kind::Future, Tally::of(1, 99, 8));
        assert_eq!(ledger.note_window(&"v".into(), 60, 120, Tally::of(2, 50, 7)), 1);
        assert_eq!(ledger.note_window(&"v".into(), 60, 120, Tally::of(1, 20, 9)), 2);
        let saved = serde_json::to_vec(&ledger).unwrap();
        let ledger: LateLedger = serde_json::from_slice(&saved).unwrap();
        let late = Tallies { late: Tally::of(3, 50, 9), ..Tallies::default() };
        let future = Tallies { future: Tally::of(1, 99, 8), ..Tallies::default() };
        let both = Tallies { late: late.late, future: future.future };
        let window = WindowLate { end: 120, revision: 2, tally: late.late };
        assert_eq!(
            ledger.entries(),
            [
                LateEntry::Stream { stream: stream.clone(), tallies: both },
                LateEntry::Device { stream: stream.clone(), device: Some("a".into()), tallies: late },
                LateEntry::Device { stream, device: Some("b".into()), tallies: future },
                LateEntry::Window { view: "v".into(), start: Some(60), window },
            ]
        );
    }

    #[test]
    fn it_is_bounded_and_its_sums_stay_true() {
        let mut ledger = LateLedger::default();
        let stream: Arc<str> = "s".into();
        let devices = 3 * MAX_ENTRIES as i64;
        for i in 0..devices {
            ledger.note(&stream, &format!("d{i}"), Kind::Late, Tally::of(1, i, i));
            ledger.note_window(&"v".into(), i, i + 1, Tally::of(1, i, i));
        }
        let entries = ledger.entries();
        assert!(entries.len() <= 2 * MAX_ENTRIES + 3, "{}", entries.len());
        let (mut of_devices, mut of_windows) = (0, 0);
        for entry in &entries {
            match entry {
                LateEntry::Stream { tallies, .. } => assert_eq!(tallies.late.events, devices as u64),
                LateEntry::Device { tallies, .. } => of_devices += tallies.late.events,
                LateEntry::Window { window, .. } => of_windows += window.tally.events,
            }
        }
        assert_eq!((of_devices, of_windows), (devices as u64, devices as u64));
        let newest = format!("d{}", devices - 1);
        assert!(entries.iter().any(|entry| matches!(entry,
            LateEntry::Device { device: Some(device), .. } if **device == *newest)));
    }
}
