//! Rules: from rows to alert transitions, by one state machine for live traffic, backtests and unit tests.
//!
//! A [`RuleSet`] is sans-IO and deterministic. It is given rows of a stream or a view and the position of the
//! log group that they belong to, and returns [transitions](iot_schemas::alert::Transition): the same rows in
//! the same order give the same transitions with the same ids, straight through or split at any point by
//! [`RuleSet::checkpoint`] and [`RuleSet::restore`]. It reads no clock: all durations of a rule are event time.
//!
//! ```text
//! rows -> Condition (SQL, vectorised) -> Signal per row -> Instance (life cycle, per key) -> Transition
//!          `when`, `clear_when`          on, hold, off     pending, firing, keeping
//! ```
//!
//! Only rows whose condition is true, and rows of instances that are pending or firing, cost more than the
//! vectorised evaluation.

mod adopt;
mod checkpoint;
mod condition;
mod historical;
mod instance;
mod instances;
mod key;
mod reconcile;
mod render;
mod rule;
mod set;
mod target;

pub use checkpoint::RulesCheckpoint;
pub use condition::{Clause, Condition, Verdicts};
pub(crate) use historical::without_historical;
pub use instance::{Instance, Signal, Step, Timing};
pub use rule::RuleStats;
pub use set::{DEFAULT_MAX_INSTANCES, GroupPosition, Retargeted, RuleSet};
pub use target::Target;

#[cfg(test)]
mod tests;
