//! All rules in force, and the numbering of what they find.

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow::record_batch::RecordBatch;
use datafusion::execution::SessionState;
use iot_schemas::alert::Transition;
use iot_schemas::catalog::RuleDef;
use iot_schemas::position::{NodeId, Seq};
use iot_schemas::session::small_context;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::historical::without_historical;
use super::render;
use super::rule::{Change, Rule, RuleStats, closing};
use super::target::Target;
use crate::error::{Error, Result};

/// How many instances of one rule may be pending or firing, and how many ended ones are remembered.
pub const DEFAULT_MAX_INSTANCES: usize = 100_000;

/// The log group that rows belong to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GroupPosition {
    /// The node whose log it is.
    pub node: NodeId,
    /// The last position of the group.
    pub seq: Seq,
    /// The present, in microseconds since 1970. It is written into transitions and decides nothing.
    pub recorded_at: i64,
    /// How far event time has come, in microseconds since 1970: the watermark. It is the time of rows that
    /// have none of their own, and what [`RuleSet::advance`] goes by.
    pub now: i64,
}

/// What a new schema did to the rules on a target.
#[derive(Debug, Default)]
pub struct Retargeted {
    /// Alerts that ended because the target's keys have changed.
    pub ended: Vec<Transition>,
    /// Rules that do not fit the new schema. They go on with the old one: columns that are gone are NULL.
    pub unfit: Vec<Error>,
}

/// Where the numbering of a node's transitions stands.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Numbering {
    pub(super) seq: Seq,
    pub(super) next_ordinal: u32,
}

/// The rules in force with all their instances.
///
/// Deterministic: the same calls give the same transitions. Within one call they come by row, then by rule
/// name. Their `id` is 0, the alert log numbers them; their `ordinal` counts within the group across calls.
#[derive(Debug)]
pub struct RuleSet {
    state: SessionState,
    max_instances: usize,
    pub(super) rules: BTreeMap<String, Rule>,
    pub(super) numbering: BTreeMap<NodeId, Numbering>,
}

impl Default for RuleSet {
    fn default() -> Self {
        Self::new(DEFAULT_MAX_INSTANCES)
    }
}

impl RuleSet {
    /// No rules. Each that is put may have up to `max_instances` instances; what goes beyond is shed and counted.
    pub fn new(max_instances: usize) -> Self {
        let state = small_context().state();
        Self { state, max_instances, rules: BTreeMap::new(), numbering: BTreeMap::new() }
    }

    /// Puts a rule in force on `target`, replacing the rule of that name.
    ///
    /// A definition that has not changed keeps its instances. One that has changed begins anew, and the alerts of
    /// the old one end; their transitions are returned. On error nothing has changed.
    pub fn put(&mut self, def: Arc<RuleDef>, target: Target, at: &GroupPosition) -> Result<Vec<Transition>> {
        let target = Arc::new(target);
        if let Some(rule) = self.rules.get_mut(&def.name)
            && rule.def == def
            && keeps_instances(&rule.target, &target)
        {
            if rule.target != target {
                rule.retarget(&self.state, target)?;
            }
            return Ok(Vec::new());
        }
        let name = def.name.clone();
        let rule = Rule::new(&self.state, def, target, self.max_instances)?;
        let ended = self.remove(&name, at);
        self.rules.insert(name, rule);
        Ok(ended)
    }

    /// Takes a rule out of force. Its alerts end; their transitions are returned.
    pub fn remove(&mut self, name: &str, at: &GroupPosition) -> Vec<Transition> {
        let Some(rule) = self.rules.remove(name) else { return Vec::new() };
        let changes = closing(rule.instances.active());
        self.render_all(&rule.def, &rule.target.key_columns, changes, at)
    }

    /// Tells the rules on a stream or view that its columns have changed. Instances are kept, unless the key
    /// columns are others.
    pub fn retarget(&mut self, target: Target, at: &GroupPosition) -> Retargeted {
        let mut outcome = Retargeted::default();
        for def in self.definitions_on(&target.name) {
            match self.put(def, target.clone(), at) {
                Ok(ended) => outcome.ended.extend(ended),
                Err(e) => outcome.unfit.push(e),
            }
        }
        outcome
    }

    /// The names of all rules, in order.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.rules.keys().map(String::as_str)
    }

    /// The definitions of the rules that watch `target`, by name.
    pub fn definitions_on(&self, target: &str) -> Vec<Arc<RuleDef>> {
        self.rules.values().filter(|rule| rule.target.name == target).map(|rule| rule.def.clone()).collect()
    }

    /// Whether any rule watches `target`.
    pub fn watches(&self, target: &str) -> bool {
        self.rules.values().any(|rule| rule.target.name == target)
    }

    /// What each rule has counted, by name.
    pub fn stats(&self) -> BTreeMap<String, RuleStats> {
        self.rules.iter().map(|(name, rule)| (name.clone(), rule.stats())).collect()
    }

    /// Takes rows of a stream (its events) or of a view (its rows as they are now), in order. Rows whose column
    /// `is_historical` is true are passed over.
    ///
    /// Costs the vectorised evaluation of each condition, and beyond that only rows that are true or whose
    /// instance is active.
    pub fn evaluate(&mut self, target: &str, rows: &RecordBatch, at: &GroupPosition) -> Vec<Transition> {
        // Filtering by a mask of the same length does not fail; if it did, an alert too many is the lesser evil.
        let live = without_historical(rows).unwrap_or_default();
        let rows = live.as_ref().unwrap_or(rows);
        let mut found: Vec<(Change, Arc<RuleDef>, Arc<Target>)> = Vec::new();
        for rule in self.rules.values_mut().filter(|rule| rule.target.name == target) {
            let changes = rule.evaluate(rows, at.now);
            found.extend(changes.into_iter().map(|change| (change, rule.def.clone(), rule.target.clone())));
        }
        // Stable: within a row the order of the rules stays.
        found.sort_by_key(|(change, ..)| change.row);
        let causes: Vec<usize> = found.iter().filter_map(|(change, ..)| change.row).collect();
        let values = render::row_values(rows, &causes);
        let render = |((change, def, target), values): ((Change, Arc<RuleDef>, Arc<Target>), _)| {
            self.render(&def, &target.key_columns, change, values, at)
        };
        found.into_iter().zip(values).map(render).collect()
    }

    /// Lets event time pass without rows: alerts on `target` that are only kept firing are resolved once
    /// `at.now` has reached their end, also where a device has fallen silent. By rule name, then by key.
    pub fn advance(&mut self, target: &str, at: &GroupPosition) -> Vec<Transition> {
        let mut resolved = Vec::new();
        for name in self.rules.keys().cloned().collect::<Vec<_>>() {
            let Some(rule) = self.rules.get_mut(&name).filter(|rule| rule.target.name == target) else {
                continue;
            };
            let changes = rule.advance(at.now);
            let (def, target) = (rule.def.clone(), rule.target.clone());
            resolved.extend(self.render_all(&def, &target.key_columns, changes, at));
        }
        resolved
    }

    /// Puts changes of one rule that no row has caused into words, and numbers them.
    pub(super) fn render_all(
        &mut self,
        def: &RuleDef,
        key_columns: &[String],
        changes: Vec<Change>,
        at: &GroupPosition,
    ) -> Vec<Transition> {
        changes.into_iter().map(|change| self.render(def, key_columns, change, Map::new(), at)).collect()
    }

    /// Puts one change into words and numbers it. `values` is the row that caused it.
    fn render(
        &mut self,
        def: &RuleDef,
        key_columns: &[String],
        change: Change,
        values: Map<String, Value>,
        at: &GroupPosition,
    ) -> Transition {
        let labels = render::labels(def, key_columns, &change.key);
        Transition {
            id: 0,
            alert_id: render::alert_id(&def.name, &labels, change.started_at),
            rule: def.name.clone(),
            state: change.state,
            previous: change.previous,
            severity: def.severity,
            annotations: render::annotations(def, &labels, &values),
            labels,
            values: render::own_values(values),
            started_at: change.started_at,
            at: change.at,
            recorded_at: at.recorded_at,
            node: at.node.clone(),
            seq: at.seq,
            ordinal: self.next_ordinal(at),
            historical: false,
        }
    }

    pub(super) fn next_ordinal(&mut self, at: &GroupPosition) -> u32 {
        let numbering = self.numbering.entry(at.node.clone()).or_default();
        if numbering.seq != at.seq {
            *numbering = Numbering { seq: at.seq, next_ordinal: 0 };
        }
        numbering.next_ordinal += 1;
        numbering.next_ordinal - 1
    }
}

/// Whether an instance on `old` is the same instance on `new`.
fn keeps_instances(old: &Target, new: &Target) -> bool {
    old.name == new.name && old.key_columns == new.key_columns
}
