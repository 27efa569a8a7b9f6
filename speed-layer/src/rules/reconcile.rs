//! Making the alert log and the rules agree again after rules were changed around a crash.
//!
//! A replay normally yields exactly the transitions that the log holds already, and they are recognised by
//! position. Where rules were put or removed between the checkpoint and the crash, the replay differs, and what
//! it yields at positions that the log has already passed is dropped. What is missing then is made up for here.

use std::collections::BTreeMap;

use iot_schemas::alert::{AlertState, Transition};

use super::instance::Instance;
use super::key::Key;
use super::render::{alert_id, labels};
use super::rule::{Change, ended};
use super::set::{GroupPosition, RuleSet};

impl RuleSet {
    /// The transitions that lead from `current` (the newest transition of each alert in the log) to the state of
    /// the rules. None after an ordinary replay. Call it when the replay has passed the log's last position;
    /// before, the rules are still behind the log.
    pub fn reconcile(&mut self, current: &[Transition], at: &GroupPosition) -> Vec<Transition> {
        let mut logged: BTreeMap<&str, &Transition> =
            current.iter().filter(|t| is_active(t.state)).map(|t| (t.alert_id.as_str(), t)).collect();
        let mut missing = Vec::new();
        for name in self.rules.keys().cloned().collect::<Vec<_>>() {
            let rule = &self.rules[&name];
            let (def, target) = (rule.def.clone(), rule.target.clone());
            let mut changes = Vec::new();
            for (key, instance) in rule.instances.active() {
                let id = alert_id(&name, &labels(&def, &target.key_columns, key), instance.started_at());
                let previous = logged.remove(id.as_str()).map(|transition| transition.state);
                changes.extend(catch_up(key, instance, previous));
            }
            missing.extend(self.render_all(&def, &target.key_columns, changes, at));
        }
        missing.extend(logged.into_values().map(|orphan| self.end_of(orphan, at)));
        missing
    }

    /// The end of an alert that no rule knows.
    fn end_of(&mut self, orphan: &Transition, at: &GroupPosition) -> Transition {
        Transition {
            id: 0,
            state: ended(orphan.state),
            previous: Some(orphan.state),
            recorded_at: at.recorded_at,
            node: at.node.clone(),
            seq: at.seq,
            ordinal: self.next_ordinal(at),
            ..orphan.clone()
        }
    }
}

fn catch_up(key: &Key, instance: &Instance, previous: Option<AlertState>) -> Option<Change> {
    let state = instance.state();
    (previous != Some(state)).then(|| Change {
        row: None,
        key: key.clone(),
        state,
        previous,
        started_at: instance.started_at(),
        at: instance.last_time(),
    })
}

fn is_active(state: AlertState) -> bool {
    matches!(state, AlertState::Pending | AlertState::Firing)
}
