//! One reader's place in the alert log, and what it has to be told next.
//!
//! Promise: a reader that resumes after the last id it was given is given every later transition that it wants
//! exactly once, in the order of the log. What memory the reader costs does not depend on how far behind it is.

use std::collections::VecDeque;
use std::sync::Arc;

use tokio::sync::watch;

use iot_schemas::Result;
use iot_schemas::alert::{AlertFeed, AlertState, Transition, TransitionId};

use super::filter::TransitionFilter;

/// How many transitions are taken from the log at a time.
const CHUNK: usize = 64;
/// How many alerts of a snapshot are in hand at a time. Larger than a chunk of the log, because every chunk
/// of a snapshot looks at all alerts.
const SNAPSHOT_CHUNK: usize = 1_024;

/// Where a reader begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Start {
    /// With what comes from now on.
    Newest,
    /// After a transition that it has seen. One that the log does not have yet counts as the newest.
    After(TransitionId),
    /// With the alerts that are pending or firing now, then with what comes.
    Snapshot,
}

/// What a reader is told.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Signal {
    /// Nothing that it wants happened up to here; here it may resume.
    Position(TransitionId),
    /// A transition that it wants.
    Transition(Transition),
    /// The log does not keep these transitions (both included) any more.
    Missed { first: TransitionId, last: TransitionId },
}

/// The outcome of looking for the next signal.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Next {
    /// There is one.
    Signal(Signal),
    /// A chunk of the log had nothing for this reader; there is more to look at.
    Skipped,
    /// The reader has seen all there is.
    CaughtUp,
}

/// A place in the alert log.
#[derive(Debug)]
pub(crate) struct Follower {
    feed: Arc<dyn AlertFeed>,
    latest: watch::Receiver<TransitionId>,
    filter: TransitionFilter,
    /// The last transition that was looked at.
    position: TransitionId,
    /// The last id that the reader was told, from which it would resume.
    told: TransitionId,
    /// While a snapshot goes out: the newest alert of it that was taken in hand.
    snapshot: Option<TransitionId>,
    in_hand: VecDeque<Signal>,
}

impl Follower {
    /// A reader of what `filter` lets pass.
    pub(crate) fn new(feed: Arc<dyn AlertFeed>, filter: TransitionFilter, start: Start) -> Self {
        let mut latest = feed.latest();
        let newest = *latest.borrow_and_update();
        let position = if let Start::After(seen) = start { seen.min(newest) } else { newest };
        let snapshot = (start == Start::Snapshot).then_some(0);
        let in_hand = if snapshot.is_none() { [Signal::Position(position)].into() } else { VecDeque::new() };
        Self { feed, latest, filter, position, told: position, snapshot, in_hand }
    }

    /// The next signal. Reads at most one chunk.
    pub(crate) fn next(&mut self) -> Result<Next> {
        if self.in_hand.is_empty() && self.snapshot.is_some() {
            self.take_snapshot_chunk();
        } else if self.in_hand.is_empty() && !self.take_chunk()? {
            return Ok(Next::CaughtUp);
        }
        let Some(signal) = self.in_hand.pop_front() else { return Ok(Next::Skipped) };
        match &signal {
            Signal::Position(id) => self.told = *id,
            Signal::Transition(transition) => self.told = transition.id,
            Signal::Missed { last, .. } => self.told = *last,
        }
        Ok(Next::Signal(signal))
    }

    /// The place to resume from, if it has moved since the reader was told and nothing else is to be told first.
    pub(crate) fn moved(&mut self) -> Option<Signal> {
        if self.told == self.position || !self.in_hand.is_empty() || self.snapshot.is_some() {
            return None;
        }
        self.told = self.position;
        Some(Signal::Position(self.position))
    }

    /// Waits until the log has grown. `false` if it never will again.
    pub(crate) async fn grown(&mut self) -> bool {
        self.latest.changed().await.is_ok()
    }

    /// How many signals are in hand.
    #[cfg(test)]
    pub(super) fn in_hand(&self) -> usize {
        self.in_hand.len()
    }

    /// Takes the next transitions in hand that the reader wants. `false` if the log had none at all.
    fn take_chunk(&mut self) -> Result<bool> {
        if self.position >= *self.latest.borrow_and_update() {
            return Ok(false);
        }
        let chunk = self.feed.read_after(self.position, CHUNK)?;
        let any = !chunk.is_empty();
        for transition in chunk {
            let expected = self.position + 1;
            if transition.id > expected {
                self.in_hand.push_back(Signal::Missed { first: expected, last: transition.id - 1 });
            }
            self.position = transition.id;
            if self.filter.matches(&transition) {
                self.in_hand.push_back(Signal::Transition(transition));
            }
        }
        Ok(any)
    }

    /// Takes the next alerts of the snapshot in hand: oldest transition first, up to the reader's place.
    ///
    /// The place is told last. A reader that drops before has the id of an alert of the snapshot, and after that
    /// one the log has the rest of the snapshot. An alert that moves on in the meantime is beyond the place, and
    /// follows live.
    fn take_snapshot_chunk(&mut self) {
        let after = self.snapshot.unwrap_or(0);
        let mut alerts = self.feed.current();
        alerts.retain(|t| {
            let is_open = matches!(t.state, AlertState::Pending | AlertState::Firing);
            is_open && after < t.id && t.id <= self.position && self.filter.matches(t)
        });
        alerts.sort_unstable_by_key(|t| t.id);
        let is_last = alerts.len() <= SNAPSHOT_CHUNK;
        alerts.truncate(SNAPSHOT_CHUNK);
        self.snapshot = alerts.last().map(|t| t.id).filter(|_| !is_last);
        self.in_hand.extend(alerts.into_iter().map(Signal::Transition));
        if is_last {
            self.in_hand.push_back(Signal::Position(self.position));
        }
    }
}
