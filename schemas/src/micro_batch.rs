//! What flows from ingest to the speed layer: durable events, in log order.
//!
//! A [`LogGroup`] is the unit of durability (one group fsync) *and* the unit of evaluation: replaying the log
//! yields the same groups again, so that whatever is computed group by group comes out the same after a crash.

use std::sync::Arc;

use arrow::array::AsArray;
use arrow::datatypes::Int64Type;
use arrow::record_batch::RecordBatch;

use crate::device::DeviceStatus;
use crate::layout::SEQ;
use crate::position::{Frontier, NodeId, Seq};

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

impl MicroBatch {
    /// The events after `after` and, if given, not after `up_to`; `None` if there are none.
    ///
    /// A batch may be several groups joined, so that a frontier may lie within it.
    pub fn between(&self, after: &Frontier, up_to: Option<&Frontier>) -> Option<Self> {
        let first = self.first_seq.max(after.get(&self.node) + 1);
        let last = up_to.map_or(self.last_seq, |up_to| self.last_seq.min(up_to.get(&self.node)));
        if (first, last) == (self.first_seq, self.last_seq) {
            return Some(self.clone());
        }
        let seqs = self.rows.column_by_name(SEQ)?.as_primitive_opt::<Int64Type>()?.values();
        let from = seqs.partition_point(|seq| (*seq as Seq) < first);
        let to = seqs.partition_point(|seq| (*seq as Seq) <= last);
        let rows = (from < to).then(|| self.rows.slice(from, to - from))?;
        Some(Self { first_seq: first, last_seq: last, rows, ..self.clone() })
    }
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
    /// What devices have said about their connection, in log order.
    pub statuses: Vec<DeviceStatus>,
    /// The positions of messages that were dead letters and are read again, in order: they are as old as they were then.
    pub replayed: Vec<Seq>,
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

#[cfg(test)]
mod tests {
    use arrow::array::Int64Array;
    use arrow::datatypes::{DataType, Field, Schema};

    use super::*;

    fn seqs(after: Seq, up_to: Option<Seq>) -> Vec<i64> {
        let column: Int64Array = vec![5, 5, 6, 8, 9].into();
        let schema = Arc::new(Schema::new(vec![Field::new(SEQ, DataType::Int64, false)]));
        let rows = RecordBatch::try_new(schema, vec![Arc::new(column)]).expect("one column");
        let batch = MicroBatch { stream: "s".into(), node: "n".into(), first_seq: 4, last_seq: 10, rows };
        let frontier = |seq| [("n".into(), seq)].into_iter().collect::<Frontier>();
        let part = batch.between(&frontier(after), up_to.map(frontier).as_ref());
        part.map_or(Vec::new(), |part| {
            assert!(part.first_seq > after && up_to.is_none_or(|up_to| part.last_seq <= up_to));
            part.rows.column(0).as_primitive::<Int64Type>().values().to_vec()
        })
    }

    #[test]
    fn a_frontier_may_lie_within_a_batch() {
        assert_eq!(seqs(0, None), [5, 5, 6, 8, 9]);
        assert_eq!(seqs(5, None), [6, 8, 9]);
        assert_eq!(seqs(0, Some(7)), [5, 5, 6]);
        assert_eq!(seqs(5, Some(8)), [6, 8]);
        assert_eq!(seqs(0, Some(100)), [5, 5, 6, 8, 9]);
        assert!(
            [seqs(9, None), seqs(20, None), seqs(0, Some(4)), seqs(0, Some(0)), seqs(8, Some(7))]
                .concat()
                .is_empty()
        );
    }
}
