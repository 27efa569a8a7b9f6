//! One rule at work: its compiled conditions and the instances that they drive.

use std::sync::Arc;

use arrow::array::{Array, BooleanArray};
use arrow::record_batch::RecordBatch;
use datafusion::execution::SessionState;
use iot_schemas::alert::AlertState;
use iot_schemas::catalog::RuleDef;
use iot_schemas::table::cast_to;
use serde::{Deserialize, Serialize};

use super::condition::{Clause, Condition, Verdicts};
use super::instance::{Instance, Signal, Step, Timing};
use super::instances::Instances;
use super::key::{Key, Keys};
use super::target::Target;
use crate::error::{Error, Result};

/// What a rule has counted since it was put in force; kept by checkpoints.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RuleStats {
    /// Instances that are pending now.
    pub pending: usize,
    /// Instances that are firing now.
    pub firing: usize,
    /// Rows evaluated.
    pub rows: u64,
    /// Samples ignored because their instance had seen a newer one.
    pub late: u64,
    /// True samples that could not begin an instance because there were too many.
    pub shed: u64,
    /// Rows without a result: the condition failed on them, or they have no event time.
    pub failed: u64,
    /// The newest reason for a failure.
    pub last_error: Option<String>,
}

/// One change of one instance, before it is put into words.
#[derive(Debug, Clone)]
pub(super) struct Change {
    /// The row that caused it; `None` if no row did.
    pub(super) row: Option<usize>,
    pub(super) key: Key,
    pub(super) state: AlertState,
    pub(super) previous: Option<AlertState>,
    pub(super) started_at: i64,
    pub(super) at: i64,
}

/// A rule in force.
#[derive(Debug)]
pub(super) struct Rule {
    pub(super) def: Arc<RuleDef>,
    pub(super) target: Arc<Target>,
    pub(super) instances: Instances,
    pub(super) stats: RuleStats,
    conditions: Conditions,
    timing: Timing,
}

#[derive(Debug)]
struct Conditions {
    schema: arrow::datatypes::SchemaRef,
    when: Condition,
    clear: Option<Condition>,
}

impl Rule {
    /// Compiles a rule for what it watches.
    pub(super) fn new(
        state: &SessionState,
        def: Arc<RuleDef>,
        target: Arc<Target>,
        max_instances: usize,
    ) -> Result<Self> {
        let conditions = Conditions::compile(state, &def, &target)?;
        let timing = Timing { hold: micros(def.hold), keep: micros(def.keep_firing_for) };
        let instances = Instances::new(max_instances);
        Ok(Self { def, target, instances, stats: RuleStats::default(), conditions, timing })
    }

    /// Compiles the conditions anew for the same target with other columns. On error nothing has changed.
    pub(super) fn retarget(&mut self, state: &SessionState, target: Arc<Target>) -> Result<()> {
        self.conditions = Conditions::compile(state, &self.def, &target)?;
        self.target = target;
        Ok(())
    }

    /// Takes rows of the target, in order. The changes are in row order.
    pub(super) fn evaluate(&mut self, rows: &RecordBatch, now: i64) -> Vec<Change> {
        self.stats.rows += rows.num_rows() as u64;
        match self.try_evaluate(rows, now) {
            Ok(changes) => changes,
            Err(e) => {
                self.fail(rows.num_rows(), Some(e.to_string()));
                Vec::new()
            }
        }
    }

    fn try_evaluate(&mut self, rows: &RecordBatch, now: i64) -> Result<Vec<Change>, iot_schemas::Error> {
        let rows = cast_to(rows, &self.conditions.schema)?;
        let when = self.verdicts(&rows, false);
        let first = if self.instances.is_quiet() { first_true(&when) } else { Some(0) };
        let Some(first) = first else { return Ok(Vec::new()) };
        let clear = self.conditions.clear.is_some().then(|| self.verdicts(&rows, true));
        let times = self.target.times(&rows, now)?;
        let mut keys = Keys::of(&rows, &self.target.key_columns)?;
        let mut changes = Vec::new();
        for row in first..rows.num_rows() {
            let Some(signal) = signal(&when, clear.as_ref(), row) else { continue };
            if signal != Signal::On && self.instances.is_quiet() {
                continue;
            }
            match times.get(row) {
                Some(time) => changes.extend(self.sample(row, keys.read(row), time, signal)),
                None => self.fail(1, Some("the row has no event time".to_owned())),
            }
        }
        Ok(changes)
    }

    fn verdicts(&mut self, rows: &RecordBatch, clear: bool) -> BooleanArray {
        let condition = if clear { self.conditions.clear.as_ref() } else { None };
        let Verdicts { values, failed, error } = condition.unwrap_or(&self.conditions.when).evaluate(rows);
        self.fail(failed, error);
        values
    }

    fn fail(&mut self, rows: usize, error: Option<String>) {
        self.stats.failed += rows as u64;
        if error.is_some() {
            self.stats.last_error = error;
        }
    }

    fn sample(&mut self, row: usize, key: &[u8], time: i64, signal: Signal) -> Option<Change> {
        let Some(instance) = self.instances.active_mut(key) else {
            return if signal == Signal::On { self.start(row, key, time) } else { None };
        };
        let (previous, started_at) = (instance.state(), instance.started_at());
        let step = instance.apply(time, signal, self.timing);
        let due = instance.ends_at(self.timing);
        match step {
            Step::Late => {
                self.stats.late += 1;
                None
            }
            Step::Stay => {
                due.into_iter().for_each(|time| self.instances.note_due(time));
                None
            }
            Step::Entered(state) => {
                let key: Key = key.into();
                if matches!(state, AlertState::Resolved | AlertState::Inactive) {
                    self.instances.end(&key);
                }
                Some(Change { row: Some(row), key, state, previous: Some(previous), started_at, at: time })
            }
        }
    }

    fn start(&mut self, row: usize, key: &[u8], time: i64) -> Option<Change> {
        if self.instances.last_time_of_ended(key).is_some_and(|newest| time < newest) {
            self.stats.late += 1;
            return None;
        }
        let (key, instance): (Key, _) = (key.into(), Instance::start(time, self.timing));
        let state = instance.state();
        if !self.instances.start(key.clone(), instance) {
            self.stats.shed += 1;
            return None;
        }
        Some(Change { row: Some(row), key, state, previous: None, started_at: time, at: time })
    }

    /// Resolves, in key order, the instances past their condition whose `keep_firing_for` is over at `now`.
    pub(super) fn advance(&mut self, now: i64) -> Vec<Change> {
        let mut changes = Vec::new();
        for (key, at) in self.instances.due(now, self.timing) {
            let Some(started_at) = self.instances.active_mut(&key).map(|instance| instance.started_at())
            else {
                continue;
            };
            self.instances.end(&key);
            let (state, previous) = (AlertState::Resolved, Some(AlertState::Firing));
            changes.push(Change { row: None, key, state, previous, started_at, at });
        }
        changes
    }

    /// Puts back what a checkpoint holds of an active instance.
    pub(super) fn put_back(&mut self, key: Key, instance: Instance) {
        instance.ends_at(self.timing).into_iter().for_each(|time| self.instances.note_due(time));
        if !self.instances.start(key, instance) {
            self.stats.shed += 1;
        }
    }

    /// The counters with what is active now.
    pub(super) fn stats(&self) -> RuleStats {
        let mut stats = self.stats.clone();
        let active = self.instances.active_states();
        stats.pending = active.filter(|state| *state == AlertState::Pending).count();
        stats.firing = self.instances.active_states().count() - stats.pending;
        stats
    }
}

impl Conditions {
    fn compile(state: &SessionState, def: &RuleDef, target: &Target) -> Result<Self> {
        target.check(&def.name)?;
        if let Some(name) = target.key_columns.iter().find(|name| def.labels.contains_key(*name)) {
            let why = format!("the label `{name}` is taken: it is a key of `{}`; rename yours", target.name);
            return Err(Error::invalid_rule(&def.name, why));
        }
        let schema = target.nullable_schema();
        let compile = |name: &'static str, text: &str| {
            Condition::compile(state, &schema, Clause { rule: &def.name, name, on: &target.name, text })
        };
        let when = compile("when", &def.when)?;
        let clear = def.clear_when.as_deref().map(|text| compile("clear_when", text)).transpose()?;
        Ok(Self { schema, when, clear })
    }
}

/// The changes that end all of `active`: nobody watches over them any more.
pub(super) fn closing<'a>(active: impl IntoIterator<Item = (&'a Key, &'a Instance)>) -> Vec<Change> {
    let close = |(key, instance): (&Key, &Instance)| Change {
        row: None,
        key: key.clone(),
        state: ended(instance.state()),
        previous: Some(instance.state()),
        started_at: instance.started_at(),
        at: instance.last_time(),
    };
    active.into_iter().map(close).collect()
}

/// The state that follows `state` when an alert ends.
pub(super) fn ended(state: AlertState) -> AlertState {
    match state {
        AlertState::Pending | AlertState::Inactive => AlertState::Inactive,
        AlertState::Firing | AlertState::Resolved => AlertState::Resolved,
    }
}

/// `None`: the row says nothing.
fn signal(when: &BooleanArray, clear: Option<&BooleanArray>, row: usize) -> Option<Signal> {
    let known = when.is_valid(row);
    if known && when.value(row) {
        return Some(Signal::On);
    }
    match clear {
        Some(clear) if clear.is_valid(row) && clear.value(row) => Some(Signal::Off),
        Some(_) => known.then_some(Signal::Hold),
        None => known.then_some(Signal::Off),
    }
}

fn first_true(values: &BooleanArray) -> Option<usize> {
    if values.true_count() == 0 {
        return None;
    }
    values.iter().position(|value| value == Some(true))
}

fn micros(duration: Option<std::time::Duration>) -> i64 {
    duration.map_or(0, |duration| i64::try_from(duration.as_micros()).unwrap_or(i64::MAX))
}
