//! Tests of the rule engine as a whole.

mod life_cycle;
mod promtool;
mod replay;
mod rule_set;

use std::sync::Arc;

use arrow::array::{Float64Array, StringArray, TimestampMicrosecondArray};
use arrow::datatypes::{DataType, Field};
use arrow::record_batch::RecordBatch;
use iot_schemas::alert::{AlertState, Transition};
use iot_schemas::catalog::{Definition, RuleDef, parse};
use iot_schemas::layout::{self, raw_schema};

use super::*;

const MINUTE: i64 = 60_000_000;

/// A rule `r` on `s` from the lines after its name.
fn rule(lines: &str) -> Arc<RuleDef> {
    named("r", lines)
}

fn named(name: &str, lines: &str) -> Arc<RuleDef> {
    let text = format!("kind: rule\nname: {name}\non: s\n{lines}\n");
    let document = parse(&text, "test").expect("a rule").pop().expect("one document");
    let Definition::Rule(def) = document.def else { panic!("a rule") };
    def
}

/// The stream `s` with one double column `temp`.
fn stream() -> Target {
    Target {
        name: "s".into(),
        schema: raw_schema([Field::new("temp", DataType::Float64, true)]),
        time_column: Some(layout::EVENT_TIME.into()),
        key_columns: vec![layout::DEVICE_ID.into()],
    }
}

/// A sample: device, minute, temperature.
type Sample<'a> = (&'a str, i64, Option<f64>);

fn rows(samples: &[Sample<'_>]) -> RecordBatch {
    let times: TimestampMicrosecondArray = samples.iter().map(|s| Some(s.1 * MINUTE)).collect();
    let devices: StringArray = samples.iter().map(|s| Some(s.0)).collect();
    let temps: Float64Array = samples.iter().map(|s| s.2).collect();
    let batch = RecordBatch::try_from_iter([
        (layout::EVENT_TIME, Arc::new(times.with_timezone("UTC")) as _),
        (layout::DEVICE_ID, Arc::new(devices) as _),
        ("temp", Arc::new(temps) as _),
        (layout::TOPIC, Arc::new(StringArray::from_iter_values(samples.iter().map(|_| "t"))) as _),
    ]);
    batch.expect("columns of one length")
}

fn at(seq: u64) -> GroupPosition {
    GroupPosition { node: "n".into(), seq, recorded_at: 7, now: 0 }
}

/// A set with one rule on the stream.
fn set(lines: &str) -> RuleSet {
    let mut set = RuleSet::default();
    set.put(rule(lines), stream(), &at(0)).expect("a good rule");
    set
}

/// `device minute state` of each transition.
fn told(transitions: &[Transition]) -> Vec<String> {
    transitions.iter().map(tell).collect()
}

fn tell(transition: &Transition) -> String {
    let device = transition.labels.get("device_id").map_or("-", String::as_str);
    let state = match transition.state {
        AlertState::Pending => "pending",
        AlertState::Firing => "firing",
        AlertState::Resolved => "resolved",
        AlertState::Inactive => "inactive",
    };
    format!("{device} {} {state}", transition.at / MINUTE)
}
