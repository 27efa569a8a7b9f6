//! The alert log: the durable, ordered record of every alert transition, which all readers follow.
//!
//! - A transition that [`AlertLog::append`] has returned survives SIGKILL and power loss, under the number it got.
//!   Numbers are consecutive and never given twice.
//! - A transition that comes again because its log group was replayed after a crash is recognised by its
//!   position (node, seq, ordinal) and not recorded again.
//! - So a reader that resumes after the last number it saw misses none and sees none twice.
//!
//! On disk it is an [`iot_schemas::log`] in which a frame holds the transitions of one append as a JSON array and
//! the log's positions are the transitions' numbers. The log's size is bounded: the oldest segments are deleted.
//! What they say about alerts that still matter is kept in a snapshot beside them, which is
//! made durable before anything is deleted.

mod batch;
mod index;
mod mirror;
mod read;
mod snapshot;

use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use iot_schemas::alert::{AlertFeed, Transition, TransitionId};
use iot_schemas::log::Log;
use iot_schemas::position::Seq;
use parking_lot::{Mutex, RwLock};
use tokio::sync::watch;

pub use batch::{alert_schema, to_batch};
pub use mirror::{ALERTS_NODE, AlertRows, AlertTable};

use crate::error::{Error, Result};
use index::Index;
use snapshot::Snapshot;

/// What an alert log keeps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AlertLogLimits {
    /// Bytes on disk. The oldest transitions are deleted beyond it, in steps of a sixteenth.
    pub max_bytes: u64,
    /// The newest transitions, kept in memory for readers that follow closely.
    pub recent: usize,
    /// Alerts that have ended and are still listed by [`AlertFeed::current`]; as many again that are historical.
    pub ended: usize,
    /// Whether an append waits until it would survive power loss. What does not outlive its process need not.
    pub is_durable: bool,
}

impl Default for AlertLogLimits {
    fn default() -> Self {
        Self { max_bytes: 256 << 20, recent: 10_000, ended: 1_000, is_durable: true }
    }
}

/// The state of an alert log, for status and metrics.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct AlertLogStats {
    /// The newest transition's number.
    pub latest: TransitionId,
    /// Alerts that are pending or firing.
    pub active: usize,
    /// Bytes on disk.
    pub bytes: u64,
    /// Bytes of a torn tail that were cut off when the log was opened: an append that was never confirmed.
    pub torn_bytes: u64,
    /// Bytes that could not be read when the log was opened: damaged storage.
    pub damaged_bytes: u64,
    /// Frames that could not be read when the log was opened: written by a newer version.
    pub unknown_frames: u64,
}

/// The alert log, open for appending and reading. One process at a time.
///
/// Appends take turns and block for one fsync; readers never wait for them.
#[derive(Debug)]
pub struct AlertLog {
    dir: PathBuf,
    limits: AlertLogLimits,
    writer: Mutex<Writer>,
    index: RwLock<Index>,
    latest: watch::Sender<TransitionId>,
    /// Bytes on disk, so that nobody waits for the writer to learn them.
    bytes: AtomicU64,
    /// What opening found; the rest is filled in when asked.
    found: AlertLogStats,
}

#[derive(Debug)]
struct Writer {
    log: Log,
    /// Where stretches of the log end, oldest first: what may be deleted is known by number, not by bytes.
    marks: VecDeque<TransitionId>,
    unmarked_bytes: u64,
}

impl AlertLog {
    /// Opens the log in `dir`, creating it if needed, and reads it once to know where every alert stands.
    pub fn open(dir: &Path, limits: AlertLogLimits) -> Result<Self> {
        let mut index = Index::new(limits.recent, limits.ended);
        let snapshot = Snapshot::load(dir).map_err(Error::alert_log("reading the snapshot"))?;
        snapshot.into_iter().for_each(|snapshot| index.restore(snapshot));
        let first = index.latest() + 1;
        let opened = Log::open(dir, segment_bytes(limits), first).map_err(Error::alert_log("opening"))?;
        let (log, recovery) = opened;
        let mut writer = Writer { log, marks: VecDeque::new(), unmarked_bytes: 0 };
        let unknown_frames =
            fill(&mut index, &mut writer, limits).map_err(Error::alert_log("reading what is there"))?;
        index.skip_to(writer.log.next() - 1);
        let found = AlertLogStats {
            torn_bytes: recovery.torn_bytes,
            damaged_bytes: recovery.damaged_bytes,
            unknown_frames,
            ..AlertLogStats::default()
        };
        if found.damaged_bytes > 0 || found.unknown_frames > 0 {
            tracing::warn!(dir = %dir.display(), ?found, "parts of the alert log cannot be read");
        }
        let latest = watch::Sender::new(index.latest());
        let bytes = AtomicU64::new(writer.log.bytes());
        let (writer, index) = (Mutex::new(writer), RwLock::new(index));
        Ok(Self { dir: dir.to_owned(), limits, writer, index, latest, bytes, found })
    }

    /// Records transitions durably, in one frame, and returns those that are new, with their numbers.
    ///
    /// What is recorded already is dropped: for each node, whatever is not after its last recorded (seq, ordinal).
    /// On error nothing has changed, and the call may be repeated.
    pub fn append(&self, transitions: Vec<Transition>) -> Result<Vec<Transition>> {
        let mut writer = self.writer.lock();
        let mut fresh = self.index.read().without_recorded(transitions);
        if fresh.is_empty() {
            return Ok(fresh);
        }
        for (id, transition) in (writer.log.next()..).zip(&mut fresh) {
            transition.id = id;
        }
        let body = serde_json::to_vec(&fresh).expect("a transition has text keys only");
        let sync = |writer: &mut Writer| if self.limits.is_durable { writer.log.sync() } else { Ok(()) };
        let appended = writer.log.append(fresh.len() as u64, &body).and_then(|_| sync(&mut writer));
        appended.map_err(Error::alert_log("appending"))?;
        let last = fresh.last().map_or(0, |transition| transition.id);
        self.index.write().extend(fresh.iter().cloned());
        self.latest.send_replace(last);
        writer.mark(last, body.len() as u64, self.limits);
        if let Err(e) = self.shrink(&mut writer) {
            // The transitions are recorded; the log is merely longer than it should be. The next append tries again.
            tracing::warn!(dir = %self.dir.display(), error = %e, "cannot shorten the alert log");
        }
        self.bytes.store(writer.log.bytes(), Ordering::Relaxed);
        Ok(fresh)
    }

    /// The position of the newest transition that `node` caused: nothing up to it will be recorded again.
    pub fn recorded(&self, node: &str) -> Option<(Seq, u32)> {
        self.index.read().recorded(node)
    }

    /// Where the log stands.
    pub fn stats(&self) -> AlertLogStats {
        let bytes = self.bytes.load(Ordering::Relaxed);
        let index = self.index.read();
        AlertLogStats { latest: index.latest(), active: index.active_count(), bytes, ..self.found }
    }

    /// Makes the next number greater than `id`. For a log that was lost while its mirror was not: numbers that
    /// readers have seen must not be given again.
    pub(super) fn continue_after(&self, id: TransitionId) -> Result<()> {
        let mut writer = self.writer.lock();
        if writer.log.next() > id {
            return Ok(());
        }
        let reopened = Log::open(&self.dir, segment_bytes(self.limits), id + 1);
        (writer.log, _) = reopened.map_err(Error::alert_log("opening"))?;
        self.index.write().skip_to(id);
        self.latest.send_replace(id);
        Ok(())
    }

    /// Deletes the oldest segments while the log is too long.
    fn shrink(&self, writer: &mut Writer) -> iot_schemas::Result<()> {
        if writer.log.bytes() <= self.limits.max_bytes {
            return Ok(());
        }
        let snapshot = self.index.read().snapshot();
        snapshot.store(&self.dir)?;
        while writer.log.bytes() > self.limits.max_bytes
            && let Some(up_to) = writer.marks.pop_front()
        {
            writer.log.trim(up_to)?;
        }
        Ok(())
    }
}

impl AlertFeed for AlertLog {
    fn latest(&self) -> watch::Receiver<TransitionId> {
        self.latest.subscribe()
    }

    /// From memory if `after` is recent, else from disk. Numbers that have been deleted are skipped.
    fn read_after(&self, after: TransitionId, limit: usize) -> iot_schemas::Result<Vec<Transition>> {
        let latest = {
            let index = self.index.read();
            if let Some(recent) = index.recent_after(after, limit) {
                return Ok(recent);
            }
            index.latest()
        };
        read::range(&self.dir, after, latest, limit, |_| true)
    }

    fn current(&self) -> Vec<Transition> {
        self.index.read().current()
    }

    /// Reads the log from the alert's first transition to its last, or all of it for an alert that is no longer
    /// listed. Of an active alert at least the newest transition is retained.
    fn history(&self, alert_id: &str) -> iot_schemas::Result<Vec<Transition>> {
        let (known, latest) = {
            let index = self.index.read();
            (index.find(alert_id), index.latest())
        };
        let (after, up_to) =
            known.as_ref().map_or((0, latest), |(first, newest)| (first.saturating_sub(1), newest.id));
        let mut found = read::range(&self.dir, after, up_to, usize::MAX, |frame| frame.contains(alert_id))?;
        found.retain(|transition| transition.alert_id == alert_id);
        if found.is_empty() {
            found.extend(known.map(|(_, newest)| newest));
        }
        Ok(found)
    }
}

impl Writer {
    fn mark(&mut self, last: TransitionId, bytes: u64, limits: AlertLogLimits) {
        self.unmarked_bytes += bytes;
        if self.unmarked_bytes >= segment_bytes(limits) / 4 {
            self.marks.push_back(last);
            self.unmarked_bytes = 0;
        }
    }
}

/// Reads all frames into the index. Returns how many it could not understand.
fn fill(index: &mut Index, writer: &mut Writer, limits: AlertLogLimits) -> iot_schemas::Result<u64> {
    let mut unknown = 0;
    for frame in writer.log.read_after(0)? {
        let frame = frame?;
        writer.mark(frame.last, frame.body.len() as u64, limits);
        match read::parse(&frame.body) {
            Some(transitions) => index.extend(transitions),
            None => unknown += 1,
        }
    }
    Ok(unknown)
}

fn segment_bytes(limits: AlertLogLimits) -> u64 {
    limits.max_bytes / 16
}

#[cfg(test)]
mod tests;
