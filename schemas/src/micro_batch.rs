//! What flows from ingest to the speed layer: durable events, in log order.
//!
//! A [`LogGroup`] is the unit of durability (one group fsync) *and* the unit of evaluation: replaying the log
//! yields the same groups again, so that whatever is computed group by group comes out the same after a crash.

use std::sync::Arc;

use arrow::record_batch::RecordBatch;

use crate::position::{NodeId, Seq};

/// The events of one stream within one log group.
#[derive(Debug, Clone)]
pub struct MicroBatch {
    /// The stream's name.
    pub stream: Arc<str>,
    /// The node that accepted them.
    pub node: NodeId,
    /// The first position of the *group* that the events belong to.
    pub first_seq: Seq,
    /// The last position of the group.
    pub last_seq: Seq,
    /// The events, in log order, with the stream's raw schema (see [`crate::layout::raw_schema`]).
    pub rows: RecordBatch,
}

/// The messages of one group fsync, decoded.
#[derive(Debug, Clone)]
pub struct LogGroup {
    /// The node that accepted them.
    pub node: NodeId,
    /// The first position in the group.
    pub first_seq: Seq,
    /// The last position in the group. Groups follow each other without gaps.
    pub last_seq: Seq,
    /// The events by stream. Empty if all messages were dead letters.
    pub batches: Vec<MicroBatch>,
}

/// What the speed layer is told, in this order of positions.
#[derive(Debug)]
pub enum LineEvent {
    /// Events that are durable. A group may come again after a crash; positions tell.
    Group(LogGroup),
    /// The epoch that ends at this position is about to be sealed. The speed layer makes its own state up to
    /// here durable and then reports the position through [`crate::raw::Checkpoint`].
    EpochEnd {
        /// The node whose epoch ends.
        node: NodeId,
        /// The last position of the epoch.
        seq: Seq,
    },
}
