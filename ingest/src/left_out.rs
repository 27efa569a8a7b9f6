//! What a stream did not store on purpose: how much of it, and of which devices.
//!
//! It is kept in memory, since the start. What was shed or limited never came to the log, so nothing else knows of it.

use std::sync::atomic::{AtomicU64, Ordering};

use ahash::HashMap;
use parking_lot::Mutex;

/// Devices of a stream that are told apart. Those beyond are counted together.
const MAX_DEVICES: usize = 10_000;

/// Why something was not stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum LeftOutReason {
    /// An event with the same key was stored (`dedup`).
    Duplicate,
    /// More came than could be taken (`on_pressure`).
    Shed,
    /// Its device sends too many (`rate_limit`).
    RateLimited,
}

const REASONS: [LeftOutReason; 3] =
    [LeftOutReason::Duplicate, LeftOutReason::Shed, LeftOutReason::RateLimited];

impl LeftOutReason {
    /// The word for it in tables.
    pub fn name(self) -> &'static str {
        match self {
            Self::Duplicate => "duplicate",
            Self::Shed => "shed",
            Self::RateLimited => "rate_limited",
        }
    }
}

/// What was left out of one device, for one reason.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LeftOutEntry {
    /// The device, or the topic where that names none. `None`: all those that are not told apart.
    pub device: Option<Box<str>>,
    /// Why.
    pub reason: LeftOutReason,
    /// How many messages; events, of duplicates.
    pub count: u64,
    /// When the first came, in microseconds since 1970.
    pub first_at: i64,
    /// When the last came.
    pub last_at: i64,
}

#[derive(Debug, Clone, Copy, Default)]
struct Tally {
    count: u64,
    first_at: i64,
    last_at: i64,
}

/// The ledger of one stream.
#[derive(Debug, Default)]
pub(crate) struct LeftOut {
    totals: [AtomicU64; REASONS.len()],
    devices: Mutex<Devices>,
}

/// By reason.
type Tallies = [Tally; REASONS.len()];

#[derive(Debug, Default)]
struct Devices {
    known: HashMap<Box<str>, Tallies>,
    others: Tallies,
}

impl LeftOut {
    /// One message or event of a device, which came at `arrival`.
    pub(crate) fn note(&self, reason: LeftOutReason, device: &str, arrival: i64) {
        self.totals[reason as usize].fetch_add(1, Ordering::Relaxed);
        let Devices { known, others } = &mut *self.devices.lock();
        if !known.contains_key(device) && known.len() < MAX_DEVICES {
            known.insert(device.into(), Tallies::default());
        }
        let tally = &mut known.get_mut(device).unwrap_or(others)[reason as usize];
        if tally.count == 0 {
            tally.first_at = arrival;
        }
        tally.count += 1;
        tally.last_at = tally.last_at.max(arrival);
    }

    pub(crate) fn total(&self, reason: LeftOutReason) -> u64 {
        self.totals[reason as usize].load(Ordering::Relaxed)
    }

    /// Everything, by device and reason.
    pub(crate) fn entries(&self) -> Vec<LeftOutEntry> {
        let devices = self.devices.lock();
        let of_device = |(device, tallies): (Option<&Box<str>>, &Tallies)| {
            let entry = |(reason, tally): (LeftOutReason, &Tally)| LeftOutEntry {
                device: device.cloned(),
                reason,
                count: tally.count,
                first_at: tally.first_at,
                last_at: tally.last_at,
            };
            REASONS.into_iter().zip(tallies).map(entry).filter(|entry| entry.count > 0).collect::<Vec<_>>()
        };
        let known = devices.known.iter().map(|(device, tallies)| (Some(device), tallies));
        let mut entries: Vec<_> = known.chain([(None, &devices.others)]).flat_map(of_device).collect();
        entries.sort_unstable_by(|a, b| (&a.device, a.reason).cmp(&(&b.device, b.reason)));
        entries
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_are_told_apart_up_to_a_bound() {
        let ledger = LeftOut::default();
        for n in 0..MAX_DEVICES + 5 {
            ledger.note(LeftOutReason::Shed, &n.to_string(), 10 + n as i64);
        }
        ledger.note(LeftOutReason::Shed, "7", 5);
        ledger.note(LeftOutReason::Duplicate, "7", 6);
        let entries = ledger.entries();
        let find = |device: Option<&str>, reason: LeftOutReason| {
            let found =
                entries.iter().find(|entry| entry.device.as_deref() == device && entry.reason == reason);
            found.map(|entry| (entry.count, entry.first_at, entry.last_at))
        };
        assert_eq!(find(Some("7"), LeftOutReason::Shed), Some((2, 17, 17)));
        assert_eq!(find(Some("7"), LeftOutReason::Duplicate), Some((1, 6, 6)));
        assert_eq!(find(None, LeftOutReason::Shed), Some((5, 10_010, 10_014)));
        assert_eq!(find(None, LeftOutReason::Duplicate), None);
        assert_eq!(entries.len(), MAX_DEVICES + 2);
        assert_eq!(ledger.total(LeftOutReason::Shed), MAX_DEVICES as u64 + 6);
        assert_eq!(entries.iter().map(|entry| entry.count).sum::<u64>(), MAX_DEVICES as u64 + 7);
    }
}
