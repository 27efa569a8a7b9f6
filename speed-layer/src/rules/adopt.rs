//! Taking over what another rule set has found out about the past.

use std::collections::BTreeSet;
use std::sync::Arc;

use iot_schemas::alert::Transition;
use iot_schemas::catalog::RuleDef;

use super::instance::Instance;
use super::render::{alert_id, labels};
use super::set::{GroupPosition, RuleSet};

impl RuleSet {
    /// The definition of a rule in force.
    pub(crate) fn definition(&self, rule: &str) -> Option<&Arc<RuleDef>> {
        self.rules.get(rule).map(|rule| &rule.def)
    }

    /// The labels that tell the alerts of a rule apart. Empty if it is not in force.
    pub(crate) fn key_columns(&self, rule: &str) -> &[String] {
        self.rules.get(rule).map_or(&[], |rule| &rule.target.key_columns)
    }

    /// Takes over the active instances of a rule that `other` has and this set has not, if their alert is among
    /// `wanted`, and remembers when those ended that have ended. Returns the alerts that this set has now.
    ///
    /// Both sets must have the rule with the same definition and have seen the same events last.
    pub(crate) fn adopt(
        &mut self,
        rule: &str,
        other: &RuleSet,
        wanted: &BTreeSet<String>,
    ) -> BTreeSet<String> {
        let mut adopted = BTreeSet::new();
        let (Some(own), Some(other)) = (self.rules.get_mut(rule), other.rules.get(rule)) else {
            return adopted;
        };
        for (key, instance) in other.instances.active() {
            let labels = labels(&other.def, &other.target.key_columns, key);
            let id = alert_id(rule, &labels, instance.started_at());
            if !wanted.contains(&id) {
                continue;
            }
            if own.instances.active_mut(key).is_none() {
                own.put_back(key.clone(), instance.clone());
            }
            // It may have been there: taken over by a replay that was killed before the alert log had it.
            let is_there = |own: &mut Instance| own.started_at() == instance.started_at();
            if own.instances.active_mut(key).is_some_and(is_there) {
                adopted.insert(id);
            }
        }
        for (key, last_time) in other.instances.ended() {
            let is_news = own.instances.last_time_of_ended(key).is_none_or(|known| known < last_time);
            if is_news && own.instances.active_mut(key).is_none() {
                own.instances.remember_end(key.clone(), last_time);
            }
        }
        adopted
    }

    /// A transition that was found elsewhere, as one of the group at `at`.
    pub(crate) fn renumber(&mut self, transition: Transition, at: &GroupPosition) -> Transition {
        let (node, seq, ordinal) = (at.node.clone(), at.seq, self.next_ordinal(at));
        Transition { recorded_at: at.recorded_at, node, seq, ordinal, ..transition }
    }
}
