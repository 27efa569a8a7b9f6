//! Messages that could not become events: kept whole, with the reason, in a table of their own.

use std::sync::Arc;

use arrow::array::{BinaryBuilder, Int64Array, RecordBatch, StringArray, StringBuilder};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};

use iot_schemas::layout::{NODE, SEQ, TOPIC, timestamp_type};
use iot_schemas::position::Seq;

use crate::decode::timestamps;

/// The name under which the dead letters can be read like a stream.
pub const DEAD: &str = "dead";

/// The columns of the dead-letter table.
pub fn dead_schema() -> SchemaRef {
    Arc::new(Schema::new(vec![
        Field::new("received_at", timestamp_type(), false),
        Field::new("stream", DataType::Utf8, false),
        Field::new(TOPIC.trim_start_matches('_'), DataType::Utf8, false),
        Field::new("reason", DataType::Utf8, false),
        Field::new("payload", DataType::Binary, false),
        Field::new(NODE, DataType::Utf8, false),
        Field::new(SEQ, DataType::Int64, false),
    ]))
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
}

/// Collects the dead letters of one group.
#[derive(Debug, Default)]
pub(crate) struct DeadLetters {
    received_at: Vec<i64>,
    stream: StringBuilder,
    topic: StringBuilder,
    reason: StringBuilder,
    payload: BinaryBuilder,
    seq: Vec<i64>,
}

impl DeadLetters {
    pub(crate) fn push(&mut self, letter: DeadLetter<'_>) {
        self.received_at.push(letter.received_at);
        self.stream.append_value(letter.stream);
        self.topic.append_value(letter.topic);
        self.reason.append_value(letter.reason);
        self.payload.append_value(letter.payload);
        self.seq.push(letter.seq as i64);
    }

    /// The rows since the last call, `None` if there are none.
    pub(crate) fn finish(&mut self, node: &str) -> Option<RecordBatch> {
        let rows = self.seq.len();
        if rows == 0 {
            return None;
        }
        let batch = RecordBatch::try_new(
            dead_schema(),
            vec![
                timestamps(std::mem::take(&mut self.received_at)),
                Arc::new(self.stream.finish()),
                Arc::new(self.topic.finish()),
                Arc::new(self.reason.finish()),
                Arc::new(self.payload.finish()),
                Arc::new(StringArray::from_iter_values(std::iter::repeat_n(node, rows))),
                Arc::new(Int64Array::from(std::mem::take(&mut self.seq))),
            ],
        );
        Some(batch.expect("the columns are built in the order of the schema"))
    }
}
