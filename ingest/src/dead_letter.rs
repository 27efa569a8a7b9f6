//! Messages that could not become events: kept whole, with the reason, in a table of their own.
//!
//! The table is a log of two kinds of rows. A *letter* is a message that failed for a stream. An *action* says what
//! was done about a letter: it was replayed or dropped. Both come out of the write-ahead log, in order, and are
//! committed with the frontier, so each is there once. Readers see letters with their state (`serving/src/dead.rs`).
//!
//! A replay is one record of the log that holds the message *and* the action. Either both are durable or neither is: a
//! crash at any moment leaves a letter open, or replayed with its events; never both, never neither.

use std::sync::Arc;

use arrow::array::{
    ArrayRef, AsArray, BinaryBuilder, Int64Array, Int64Builder, RecordBatch, StringBuilder,
    TimestampMicrosecondArray,
};
use arrow::datatypes::{DataType, Field, Int64Type, Schema, SchemaRef};
use serde::{Deserialize, Serialize};

use iot_schemas::dead::DeadAction;
use iot_schemas::layout::{NODE, SEQ, TOPIC, timestamp_type};
use iot_schemas::position::{NodeId, Seq};

use crate::wal::record::UserProperties;

/// The name under which the dead letters can be read like a stream.
pub const DEAD: &str = "dead";
/// The column with the position of what was done about a letter.
const ACTION_SEQ: &str = "action_seq";

/// The columns of the dead-letter table. Those that may be null have come later: older files lack them.
pub fn dead_schema() -> SchemaRef {
    Arc::new(Schema::new(vec![
        Field::new("received_at", timestamp_type(), false),
        Field::new("stream", DataType::Utf8, false),
        Field::new(TOPIC.trim_start_matches('_'), DataType::Utf8, false),
        Field::new("reason", DataType::Utf8, false),
        Field::new("payload", DataType::Binary, false),
        Field::new(NODE, DataType::Utf8, false),
        Field::new(SEQ, DataType::Int64, false),
        // The payload's length before it was cut.
        Field::new("cut_from", DataType::Int64, true),
        // The first letter of the same message, if this one comes from a replay.
        Field::new("retry_of", DataType::Utf8, true),
        // What MQTT 5 said about the message; user properties as a JSON array of pairs.
        Field::new("content_type", DataType::Utf8, true),
        Field::new("user_properties", DataType::Utf8, true),
        // The version of the stream's schema that refused it.
        Field::new("schema_version", DataType::Int64, true),
        // The rest is null in letters. In actions all columns above name the letter that they are about.
        Field::new("action", DataType::Utf8, true),
        Field::new("action_at", timestamp_type(), true),
        Field::new("action_by", DataType::Utf8, true),
        Field::new("action_note", DataType::Utf8, true),
        Field::new(ACTION_SEQ, DataType::Int64, true),
    ]))
}

/// The positions of the records that did something about a letter, among rows of the table; those of the log are in order.
pub(crate) fn resolved_at(rows: &RecordBatch) -> Vec<Seq> {
    let column = rows.column_by_name(ACTION_SEQ).and_then(|column| column.as_primitive_opt::<Int64Type>());
    column.into_iter().flatten().flatten().map(|seq| seq as Seq).collect()
}

/// One dead letter.
#[derive(Debug, Clone, Copy)]
pub(crate) struct DeadLetter<'a> {
    pub(crate) stream: &'a str,
    pub(crate) topic: &'a str,
    pub(crate) payload: &'a [u8],
    pub(crate) reason: &'a str,
    /// Microseconds since 1970.
    pub(crate) received_at: i64,
    pub(crate) seq: Seq,
    pub(crate) cut_from: Option<u64>,
    pub(crate) retry_of: Option<&'a str>,
    pub(crate) content_type: Option<&'a str>,
    pub(crate) user_properties: UserProperties<'a>,
    /// The version of the stream's schema, if the stream is there.
    pub(crate) schema_version: Option<u32>,
}

/// What is done about one letter, as the log keeps it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resolution {
    /// The letter's node.
    pub node: String,
    /// The letter's number there.
    pub seq: Seq,
    /// The letter's stream.
    pub stream: String,
    /// When the message arrived, microseconds since 1970.
    pub received_at: i64,
    /// The first letter of the same message, as `NODE:SEQ`.
    pub first: String,
    /// What is done.
    pub action: DeadAction,
    /// When, microseconds since 1970.
    pub at: i64,
    /// By whom.
    pub by: String,
    /// Why.
    pub note: String,
}

/// Collects the rows of one group.
#[derive(Debug)]
pub(crate) struct DeadLetters {
    own_node: NodeId,
    received_at: Vec<i64>,
    stream: StringBuilder,
    topic: StringBuilder,
    reason: StringBuilder,
    payload: BinaryBuilder,
    node: StringBuilder,
    seq: Vec<i64>,
    cut_from: Int64Builder,
    retry_of: StringBuilder,
    content_type: StringBuilder,
    user_properties: StringBuilder,
    schema_version: Int64Builder,
    action: StringBuilder,
    action_at: Vec<Option<i64>>,
    action_by: StringBuilder,
    action_note: StringBuilder,
    action_seq: Int64Builder,
}

impl DeadLetters {
    pub(crate) fn new(own_node: NodeId) -> Self {
        Self {
            own_node,
            received_at: Vec::new(),
            stream: StringBuilder::new(),
            topic: StringBuilder::new(),
            reason: StringBuilder::new(),
            payload: BinaryBuilder::new(),
            node: StringBuilder::new(),
            seq: Vec::new(),
            cut_from: Int64Builder::new(),
            retry_of: StringBuilder::new(),
            content_type: StringBuilder::new(),
            user_properties: StringBuilder::new(),
            schema_version: Int64Builder::new(),
            action: StringBuilder::new(),
            action_at: Vec::new(),
            action_by: StringBuilder::new(),
            action_note: StringBuilder::new(),
            action_seq: Int64Builder::new(),
        }
    }

    pub(crate) fn push(&mut self, letter: DeadLetter<'_>) {
        self.received_at.push(letter.received_at);
        self.stream.append_value(letter.stream);
        self.topic.append_value(letter.topic);
        self.reason.append_value(letter.reason);
        self.payload.append_value(letter.payload);
        self.node.append_value(&self.own_node);
        self.seq.push(letter.seq as i64);
        self.cut_from.append_option(letter.cut_from.map(|bytes| bytes as i64));
        self.retry_of.append_option(letter.retry_of);
        self.content_type.append_option(letter.content_type);
        self.user_properties.append_option(letter.user_properties.to_json());
        self.schema_version.append_option(letter.schema_version.map(i64::from));
        self.action.append_null();
        self.action_at.push(None);
        self.action_by.append_null();
        self.action_note.append_null();
        self.action_seq.append_null();
    }

    /// Adds what was done about a letter by the record of number `seq`.
    pub(crate) fn push_action(&mut self, done: &Resolution, topic: &str, seq: Seq) {
        self.received_at.push(done.received_at);
        self.stream.append_value(&done.stream);
        self.topic.append_value(topic);
        self.reason.append_value("");
        self.payload.append_value(b"");
        self.node.append_value(&done.node);
        self.seq.push(done.seq as i64);
        self.cut_from.append_null();
        self.retry_of.append_null();
        self.content_type.append_null();
        self.user_properties.append_null();
        self.schema_version.append_null();
        self.action.append_value(match done.action {
            DeadAction::Replay => "replayed",
            DeadAction::Drop => "dropped",
        });
        self.action_at.push(Some(done.at));
        self.action_by.append_value(&done.by);
        self.action_note.append_value(&done.note);
        self.action_seq.append_value(seq as i64);
    }

    /// The rows since the last call, `None` if there are none.
    pub(crate) fn finish(&mut self) -> Option<RecordBatch> {
        if self.seq.is_empty() {
            return None;
        }
        let instants = |micros: TimestampMicrosecondArray| Arc::new(micros.with_timezone("UTC")) as ArrayRef;
        let batch = RecordBatch::try_new(
            dead_schema(),
            vec![
                instants(std::mem::take(&mut self.received_at).into()),
                Arc::new(self.stream.finish()),
                Arc::new(self.topic.finish()),
                Arc::new(self.reason.finish()),
                Arc::new(self.payload.finish()),
                Arc::new(self.node.finish()),
                Arc::new(Int64Array::from(std::mem::take(&mut self.seq))),
                Arc::new(self.cut_from.finish()),
                Arc::new(self.retry_of.finish()),
                Arc::new(self.content_type.finish()),
                Arc::new(self.user_properties.finish()),
                Arc::new(self.schema_version.finish()),
                Arc::new(self.action.finish()),
                instants(std::mem::take(&mut self.action_at).into()),
                Arc::new(self.action_by.finish()),
                Arc::new(self.action_note.finish()),
                Arc::new(self.action_seq.finish()),
            ],
        );
        Some(batch.expect("the columns are built in the order of the schema"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_tell_which_records_did_something_about_a_letter() {
        let mut letters = DeadLetters::new("local".into());
        let letter = DeadLetter {
            stream: "s",
            topic: "t",
            payload: b"",
            reason: "why",
            received_at: 1,
            seq: 7,
            cut_from: None,
            retry_of: None,
            content_type: None,
            user_properties: UserProperties::default(),
            schema_version: None,
        };
        letters.push(letter);
        assert_eq!(resolved_at(&letters.finish().expect("a row")), Vec::<Seq>::new());
        let done = |seq| Resolution {
            node: "local".into(),
            seq,
            stream: "s".into(),
            received_at: 1,
            action: DeadAction::Replay,
            at: 2,
            by: String::new(),
            note: String::new(),
            first: "local:7".into(),
        };
        letters.push_action(&done(7), "t", 9);
        letters.push(letter);
        letters.push_action(&done(8), "t", 11);
        assert_eq!(resolved_at(&letters.finish().expect("rows")), [9, 11]);
    }
}
