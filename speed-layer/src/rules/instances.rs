//! The instances of one rule, bounded.
//!
//! Memory: an instance that is pending or firing costs its key and three numbers. One that has ended costs its
//! key and the time of its newest sample, which is what tells a late true sample (it must not begin an episode
//! before the one that is over) from a new one. An instance that was never active costs nothing, so that for
//! it an out-of-order true sample does begin an episode: nobody has seen its newer, false samples.

use std::collections::{BTreeMap, HashMap};

use iot_schemas::alert::AlertState;

use super::instance::{Instance, Timing};
use super::key::Key;

/// Both kinds are limited to `limit` each. At the limit an instance that would begin is shed (the caller counts
/// it), and of the ended ones the longest ended is forgotten.
#[derive(Debug)]
pub(super) struct Instances {
    limit: usize,
    active: HashMap<Key, Instance>,
    ended: HashMap<Key, Ended>,
    /// The keys of `ended`, in the order in which they ended.
    end_order: BTreeMap<u64, Key>,
    ends: u64,
    /// No instance is due for resolution before this time.
    none_due_before: i64,
}

#[derive(Debug, Clone, Copy)]
struct Ended {
    last_time: i64,
    number: u64,
}

impl Instances {
    pub(super) fn new(limit: usize) -> Self {
        Self {
            limit,
            active: HashMap::new(),
            ended: HashMap::new(),
            end_order: BTreeMap::new(),
            ends: 0,
            none_due_before: i64::MAX,
        }
    }

    /// Whether none is pending or firing.
    pub(super) fn is_quiet(&self) -> bool {
        self.active.is_empty()
    }

    pub(super) fn active_mut(&mut self, key: &[u8]) -> Option<&mut Instance> {
        self.active.get_mut(key)
    }

    /// The newest sample time of an instance that has ended.
    pub(super) fn last_time_of_ended(&self, key: &[u8]) -> Option<i64> {
        self.ended.get(key).map(|ended| ended.last_time)
    }

    /// Takes an active instance in. `false`: there are too many, it is shed.
    pub(super) fn start(&mut self, key: Key, instance: Instance) -> bool {
        if self.active.len() >= self.limit {
            return false;
        }
        if let Some(ended) = self.ended.remove(&key) {
            self.end_order.remove(&ended.number);
        }
        self.active.insert(key, instance);
        true
    }

    /// Moves an instance from the active to the ended ones.
    pub(super) fn end(&mut self, key: &[u8]) {
        if let Some((key, instance)) = self.active.remove_entry(key) {
            self.remember_end(key, instance.last_time());
        }
    }

    pub(super) fn remember_end(&mut self, key: Key, last_time: i64) {
        let number = self.ends;
        self.ends += 1;
        self.end_order.insert(number, key.clone());
        if let Some(before) = self.ended.insert(key, Ended { last_time, number }) {
            self.end_order.remove(&before.number);
        }
        while self.ended.len() > self.limit
            && let Some((_, oldest)) = self.end_order.pop_first()
        {
            self.ended.remove(&oldest);
        }
    }

    /// Says that an instance will be due for resolution at `time`.
    pub(super) fn note_due(&mut self, time: i64) {
        self.none_due_before = self.none_due_before.min(time);
    }

    /// The instances that are past their condition and whose time is up at `now`, in key order, with that time.
    pub(super) fn due(&mut self, now: i64, timing: Timing) -> Vec<(Key, i64)> {
        if now < self.none_due_before {
            return Vec::new();
        }
        self.none_due_before = i64::MAX;
        let mut due = Vec::new();
        for (key, instance) in &self.active {
            match instance.ends_at(timing) {
                Some(end) if end <= now => due.push((key.clone(), end)),
                Some(end) => self.none_due_before = self.none_due_before.min(end),
                None => {}
            }
        }
        due.sort_unstable();
        due
    }

    /// The active ones in key order.
    pub(super) fn active(&self) -> Vec<(&Key, &Instance)> {
        let mut all: Vec<_> = self.active.iter().collect();
        all.sort_unstable_by_key(|(key, _)| *key);
        all
    }

    /// The states of the active ones, in no particular order.
    pub(super) fn active_states(&self) -> impl Iterator<Item = AlertState> {
        self.active.values().map(Instance::state)
    }

    /// Key and newest sample time of the ended ones, in the order in which they ended.
    pub(super) fn ended(&self) -> impl Iterator<Item = (&Key, i64)> {
        self.end_order.values().filter_map(|key| self.ended.get(key).map(|ended| (key, ended.last_time)))
    }
}
