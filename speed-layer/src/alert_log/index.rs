//! What the alert log knows without reading the disk: the newest transitions, and where every alert stands.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;

use iot_schemas::alert::{AlertState, Transition, TransitionId};
use iot_schemas::position::{NodeId, Seq};

use super::snapshot::{Snapshot, SnapshotEntry};

/// Bounded, except for active alerts, which the rules bound.
#[derive(Debug)]
pub(super) struct Index {
    latest: TransitionId,
    recent: VecDeque<Arc<Transition>>,
    recent_limit: usize,
    active: HashMap<String, Entry>,
    /// Ended alerts by the number of their end.
    ended: BTreeMap<TransitionId, Entry>,
    /// Those of them that were over when they were recorded. They take no room from the others.
    historical: BTreeMap<TransitionId, Entry>,
    ended_by_alert: HashMap<String, TransitionId>,
    ended_limit: usize,
    recorded: BTreeMap<NodeId, (Seq, u32)>,
}

/// An alert.
#[derive(Debug, Clone)]
struct Entry {
    /// The number of its first transition.
    first: TransitionId,
    newest: Arc<Transition>,
}

impl Index {
    pub(super) fn new(recent_limit: usize, ended_limit: usize) -> Self {
        Self {
            latest: 0,
            recent: VecDeque::new(),
            recent_limit,
            active: HashMap::new(),
            ended: BTreeMap::new(),
            historical: BTreeMap::new(),
            ended_by_alert: HashMap::new(),
            ended_limit,
            recorded: BTreeMap::new(),
        }
    }

    pub(super) fn latest(&self) -> TransitionId {
        self.latest
    }

    pub(super) fn active_count(&self) -> usize {
        self.active.len()
    }

    /// Numbers up to `id` are taken, whether or not there is a transition.
    pub(super) fn skip_to(&mut self, id: TransitionId) {
        self.latest = self.latest.max(id);
    }

    /// The (seq, ordinal) of the newest transition of `node`.
    pub(super) fn recorded(&self, node: &str) -> Option<(Seq, u32)> {
        self.recorded.get(node).copied()
    }

    /// The transitions that come after what is recorded of their node, and change their alert's state.
    ///
    /// The second condition matters where rules were changed before a crash: the group at which the log ends may
    /// then come out with other ordinals.
    pub(super) fn without_recorded(&self, transitions: Vec<Transition>) -> Vec<Transition> {
        let mut recorded = self.recorded.clone();
        let mut states: HashMap<String, AlertState> = HashMap::new();
        let mut fresh = Vec::with_capacity(transitions.len());
        for transition in transitions.into_iter().filter(|t| advance(&mut recorded, t)) {
            let logged = || self.entry(&transition.alert_id).map(|entry| entry.newest.state);
            if states.get(&transition.alert_id).copied().or_else(logged) != Some(transition.state) {
                states.insert(transition.alert_id.clone(), transition.state);
                fresh.push(transition);
            }
        }
        fresh
    }

    /// Takes numbered transitions in, in order. One that it knows already changes nothing.
    pub(super) fn extend(&mut self, transitions: impl IntoIterator<Item = Transition>) {
        for transition in transitions {
            advance(&mut self.recorded, &transition);
            self.latest = self.latest.max(transition.id);
            let transition = Arc::new(transition);
            self.remember(transition.clone());
            self.recent.push_back(transition);
            if self.recent.len() > self.recent_limit {
                self.recent.pop_front();
            }
        }
    }

    fn remember(&mut self, transition: Arc<Transition>) {
        let known = self.entry(&transition.alert_id);
        if known.is_some_and(|entry| entry.newest.id >= transition.id) {
            return;
        }
        let first = known.map_or(transition.id, |entry| entry.first);
        self.put(Entry { first, newest: transition });
    }

    fn entry(&self, alert_id: &str) -> Option<&Entry> {
        let ended = |end| self.ended.get(end).or_else(|| self.historical.get(end));
        self.active.get(alert_id).or_else(|| self.ended_by_alert.get(alert_id).and_then(ended))
    }

    fn put(&mut self, entry: Entry) {
        let alert_id = entry.newest.alert_id.clone();
        self.active.remove(&alert_id);
        if let Some(end) = self.ended_by_alert.remove(&alert_id) {
            self.ended.remove(&end);
            self.historical.remove(&end);
        }
        if matches!(entry.newest.state, AlertState::Pending | AlertState::Firing) {
            self.active.insert(alert_id, entry);
            return;
        }
        self.ended_by_alert.insert(alert_id, entry.newest.id);
        let ended = if entry.newest.historical { &mut self.historical } else { &mut self.ended };
        ended.insert(entry.newest.id, entry);
        while ended.len() > self.ended_limit
            && let Some((_, oldest)) = ended.pop_first()
        {
            self.ended_by_alert.remove(&oldest.newest.alert_id);
        }
    }

    /// Up to `limit` transitions after `after`; `None` if memory does not reach back that far.
    pub(super) fn recent_after(&self, after: TransitionId, limit: usize) -> Option<Vec<Transition>> {
        let reaches = match self.recent.front() {
            _ if after >= self.latest => return Some(Vec::new()),
            Some(oldest) => oldest.id <= after + 1,
            None => false,
        };
        let from = self.recent.partition_point(|transition| transition.id <= after);
        reaches.then(|| self.recent.range(from..).take(limit).map(|t| t.as_ref().clone()).collect())
    }

    fn entries(&self) -> impl Iterator<Item = &Entry> {
        self.active.values().chain(self.ended.values()).chain(self.historical.values())
    }

    /// The newest transition of each alert, by number.
    pub(super) fn current(&self) -> Vec<Transition> {
        let entries = self.entries();
        let mut newest: Vec<Transition> = entries.map(|entry| entry.newest.as_ref().clone()).collect();
        newest.sort_unstable_by_key(|transition| transition.id);
        newest
    }

    /// The number of an alert's first transition, and its newest one.
    pub(super) fn find(&self, alert_id: &str) -> Option<(TransitionId, Transition)> {
        self.entry(alert_id).map(|entry| (entry.first, entry.newest.as_ref().clone()))
    }

    /// What must survive the deletion of the transitions themselves.
    pub(super) fn snapshot(&self) -> Snapshot {
        let entries = self.entries();
        Snapshot {
            latest: self.latest,
            recorded: self
                .recorded
                .iter()
                .map(|(node, (seq, ordinal))| (node.clone(), *seq, *ordinal))
                .collect(),
            alerts: entries
                .map(|entry| SnapshotEntry { first: entry.first, newest: entry.newest.as_ref().clone() })
                .collect(),
        }
    }

    /// Takes over what [`Self::snapshot`] gave. Then come the transitions that are still in the log.
    pub(super) fn restore(&mut self, snapshot: Snapshot) {
        self.latest = self.latest.max(snapshot.latest);
        self.recorded
            .extend(snapshot.recorded.into_iter().map(|(node, seq, ordinal)| (node, (seq, ordinal))));
        for SnapshotEntry { first, newest } in snapshot.alerts {
            self.put(Entry { first, newest: Arc::new(newest) });
        }
    }
}

/// Moves the record of the transition's node forward to it. `false`: it is there already.
fn advance(recorded: &mut BTreeMap<NodeId, (Seq, u32)>, transition: &Transition) -> bool {
    let position = (transition.seq, transition.ordinal);
    match recorded.get_mut(&transition.node) {
        Some(last) if position <= *last => false,
        Some(last) => {
            *last = position;
            true
        }
        None => {
            recorded.insert(transition.node.clone(), position);
            true
        }
    }
}
