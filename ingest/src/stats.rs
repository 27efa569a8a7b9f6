//! Counters, and the picture of them that is shown to people.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};

use parking_lot::Mutex;
use serde::Serialize;

/// What ingest has done since it was started, and where it stands.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct IngestStats {
    /// Messages that became durable.
    pub messages: u64,
    /// Events that they held, over all streams.
    pub events: u64,
    /// Messages that could not become events, once per stream.
    pub dead_letters: u64,
    /// Events that were not stored because one with the same key (`dedup`) was.
    pub deduplicated: u64,
    /// Deliveries that were recognised as copies and not stored again.
    pub redelivered: u64,
    /// Messages that were acknowledged and not stored, because more came than could be taken (`on_pressure`).
    pub shed: u64,
    /// Messages that were acknowledged and not stored, because their device sends too many (`rate_limit`).
    pub rate_limited: u64,
    /// Messages whose topic no stream wants.
    pub ignored: u64,
    /// Messages that the embedded broker refused because their sender may not publish to their topic.
    pub unauthorized: u64,
    /// Groups written to the log.
    pub groups: u64,
    /// Group fsyncs that succeeded.
    pub fsyncs: u64,
    /// Bytes written to the log.
    pub bytes: u64,
    /// Bytes that the log takes up on disk.
    pub log_bytes: u64,
    /// The last durable position.
    pub last_seq: u64,
    /// The position up to which everything is in the raw tables.
    pub sealed_seq: u64,
    /// Memory taken up by events that are not in the raw tables yet.
    pub unsealed_bytes: u64,
    /// Epochs sealed.
    pub seals: u64,
    /// How long the last seal took, in milliseconds.
    pub last_seal_ms: u64,
    /// Deliveries that are remembered in order to recognise copies.
    pub remembered_deliveries: u64,
    /// Failed attempts to write the log.
    pub log_failures: u64,
    /// Failed attempts to seal.
    pub seal_failures: u64,
    /// Log frames that this version cannot read.
    pub unreadable_groups: u64,
    /// The counts by stream.
    pub streams: BTreeMap<Arc<str>, StreamStats>,
}

/// The counts of one stream.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct StreamStats {
    /// Events since the start, replayed ones included.
    pub events: u64,
    /// Dead letters since the start, replayed ones included.
    pub dead_letters: u64,
    /// Events since the start that were not stored because one with the same key (`dedup`) was.
    pub deduplicated: u64,
    /// Messages since the start that were not stored, because more came than could be taken (`on_pressure`).
    pub shed: u64,
    /// Messages since the start that were not stored, because their device sends too many (`rate_limit`).
    pub rate_limited: u64,
    /// Keys that are remembered in order to recognise copies.
    pub dedup_keys: u64,
}

/// The counters behind [`IngestStats`].
#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub(crate) messages: AtomicU64,
    pub(crate) events: AtomicU64,
    pub(crate) dead_letters: AtomicU64,
    pub(crate) deduplicated: AtomicU64,
    pub(crate) redelivered: AtomicU64,
    pub(crate) shed: AtomicU64,
    pub(crate) rate_limited: AtomicU64,
    pub(crate) ignored: AtomicU64,
    pub(crate) unauthorized: AtomicU64,
    pub(crate) groups: AtomicU64,
    pub(crate) fsyncs: AtomicU64,
    pub(crate) bytes: AtomicU64,
    pub(crate) log_bytes: AtomicU64,
    pub(crate) last_seq: AtomicU64,
    pub(crate) sealed_seq: AtomicU64,
    pub(crate) unsealed_bytes: AtomicI64,
    pub(crate) seals: AtomicU64,
    pub(crate) last_seal_ms: AtomicU64,
    pub(crate) remembered: AtomicU64,
    pub(crate) log_failures: AtomicU64,
    pub(crate) seal_failures: AtomicU64,
    pub(crate) unreadable_groups: AtomicU64,
    /// Whether replay is over and messages are taken.
    pub(crate) started: AtomicBool,
    /// Whether the log cannot be written or as much is unsealed as may be.
    pub(crate) strained: AtomicBool,
    /// Why nothing is acknowledged although the log can be written, while that is so.
    pub(crate) room_trouble: Mutex<Option<String>>,
    /// Why the log cannot be written, while it cannot.
    pub(crate) log_trouble: Mutex<Option<String>>,
    /// Why an epoch cannot be sealed, while it cannot.
    pub(crate) seal_trouble: Mutex<Option<String>>,
}

/// Adds to a counter.
pub(crate) fn add(counter: &AtomicU64, n: u64) {
    counter.fetch_add(n, Ordering::Relaxed);
}

impl Counters {
    /// The picture now, without the streams.
    pub(crate) fn stats(&self) -> IngestStats {
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        IngestStats {
            messages: get(&self.messages),
            events: get(&self.events),
            dead_letters: get(&self.dead_letters),
            deduplicated: get(&self.deduplicated),
            redelivered: get(&self.redelivered),
            shed: get(&self.shed),
            rate_limited: get(&self.rate_limited),
            ignored: get(&self.ignored),
            unauthorized: get(&self.unauthorized),
            groups: get(&self.groups),
            fsyncs: get(&self.fsyncs),
            bytes: get(&self.bytes),
            log_bytes: get(&self.log_bytes),
            last_seq: get(&self.last_seq),
            sealed_seq: get(&self.sealed_seq),
            unsealed_bytes: self.unsealed_bytes.load(Ordering::Relaxed).max(0) as u64,
            seals: get(&self.seals),
            last_seal_ms: get(&self.last_seal_ms),
            remembered_deliveries: get(&self.remembered),
            log_failures: get(&self.log_failures),
            seal_failures: get(&self.seal_failures),
            unreadable_groups: get(&self.unreadable_groups),
            streams: BTreeMap::new(),
        }
    }

    /// Why messages are not taken, or not sealed, at the moment.
    pub(crate) fn not_ready(&self) -> Option<String> {
        if !self.started.load(Ordering::Relaxed) {
            return Some("ingest is replaying its log".into());
        }
        let log = self.log_trouble.lock().clone();
        log.or_else(|| self.seal_trouble.lock().clone()).or_else(|| self.room_trouble.lock().clone())
    }
}
