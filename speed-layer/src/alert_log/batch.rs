//! Transitions as rows: the table `alerts`.

use std::sync::Arc;

use arrow::array::{ArrayRef, BooleanArray, Int64Array, StringArray, TimestampMicrosecondArray};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use arrow::record_batch::RecordBatch;
use iot_schemas::alert::{AlertState, Transition};
use iot_schemas::layout::{DEVICE_ID, timestamp_type};
use serde::Serialize;

/// The columns of the table `alerts`, one row per transition. `labels`, `annotations` and `values` are JSON text.
pub fn alert_schema() -> SchemaRef {
    let text = |name: &str| Field::new(name, DataType::Utf8, false);
    let time = |name: &str| Field::new(name, timestamp_type(), false);
    Arc::new(Schema::new(vec![
        Field::new("id", DataType::Int64, false),
        text("alert_id"),
        text("rule"),
        text("state"),
        text("previous").with_nullable(true),
        text("severity"),
        text("labels"),
        text("annotations"),
        text("values"),
        text(DEVICE_ID).with_nullable(true),
        time("started_at"),
        time("at"),
        time("recorded_at"),
        text("node"),
        Field::new("seq", DataType::Int64, false),
        Field::new("historical", DataType::Boolean, true),
    ]))
}

/// Transitions as rows of [`alert_schema`].
pub fn to_batch(transitions: &[Transition]) -> RecordBatch {
    let columns = vec![
        numbers(transitions, |t| t.id),
        texts(transitions, |t| Some(t.alert_id.clone())),
        texts(transitions, |t| Some(t.rule.clone())),
        texts(transitions, |t| Some(state_name(t.state).to_owned())),
        texts(transitions, |t| t.previous.map(|state| state_name(state).to_owned())),
        texts(transitions, |t| Some(t.severity.to_string())),
        texts(transitions, |t| Some(json(&t.labels))),
        texts(transitions, |t| Some(json(&t.annotations))),
        texts(transitions, |t| Some(json(&t.values))),
        texts(transitions, |t| t.labels.get(DEVICE_ID).cloned()),
        times(transitions, |t| t.started_at),
        times(transitions, |t| t.at),
        times(transitions, |t| t.recorded_at),
        texts(transitions, |t| Some(t.node.to_string())),
        numbers(transitions, |t| t.seq),
        Arc::new(transitions.iter().map(|t| Some(t.historical)).collect::<BooleanArray>()),
    ];
    RecordBatch::try_new(alert_schema(), columns).expect("the columns are those of the schema")
}

fn state_name(state: AlertState) -> &'static str {
    match state {
        AlertState::Pending => "pending",
        AlertState::Firing => "firing",
        AlertState::Resolved => "resolved",
        AlertState::Inactive => "inactive",
    }
}

fn json(map: &impl Serialize) -> String {
    serde_json::to_string(map).expect("its keys are text")
}

fn texts(transitions: &[Transition], value: impl Fn(&Transition) -> Option<String>) -> ArrayRef {
    Arc::new(transitions.iter().map(value).collect::<StringArray>())
}

fn numbers(transitions: &[Transition], value: impl Fn(&Transition) -> u64) -> ArrayRef {
    Arc::new(transitions.iter().map(|t| value(t) as i64).collect::<Int64Array>())
}

fn times(transitions: &[Transition], value: impl Fn(&Transition) -> i64) -> ArrayRef {
    let times: TimestampMicrosecondArray = transitions.iter().map(|t| Some(value(t))).collect();
    Arc::new(times.with_timezone("UTC"))
}
