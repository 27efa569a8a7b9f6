//! The durable events of a stream that are not yet in its table.
//!
//! A group of a few messages makes a batch of a few rows; the tail joins neighbours as it grows, so that it
//! holds few batches however small the groups are. Batches of different epochs are never joined: an epoch
//! leaves the tail in one step when it is in the table.

use arrow::compute::concat_batches;
use arrow::datatypes::SchemaRef;

use iot_schemas::Result;
use iot_schemas::micro_batch::MicroBatch;
use iot_schemas::position::{Frontier, Seq};
use iot_schemas::table::cast_to;

/// Larger batches are not joined any more.
const JOINED_ROWS: usize = 16_384;
/// Nor are batches that take up more than this: joining copies.
const JOINED_BYTES: i64 = 4 << 20;

/// The batches in log order.
#[derive(Debug, Default)]
pub(crate) struct Tail {
    batches: Vec<MicroBatch>,
    /// The first batch of the open epoch.
    open: usize,
}

impl Tail {
    /// Adds a batch. Returns by how many bytes the tail has grown; joining may shrink it.
    pub(crate) fn push(&mut self, batch: MicroBatch) -> Result<i64> {
        let mut grown = bytes(&batch);
        self.batches.push(batch);
        while let Some([left, right]) = self.joinable() {
            let joined = join(left, right)?;
            grown += bytes(&joined) - bytes(left) - bytes(right);
            self.batches.truncate(self.batches.len() - 2);
            self.batches.push(joined);
        }
        Ok(grown)
    }

    /// Closes the epoch: what comes now belongs to the next one.
    pub(crate) fn close_epoch(&mut self) {
        self.open = self.batches.len();
    }

    /// The batches up to a position that ends an epoch.
    pub(crate) fn up_to(&self, seq: Seq) -> Vec<MicroBatch> {
        self.batches.iter().take_while(|batch| batch.last_seq <= seq).cloned().collect()
    }

    /// The batches that `sealed` does not cover.
    pub(crate) fn after(&self, sealed: &Frontier) -> Vec<MicroBatch> {
        let kept = self.batches.iter().filter(|batch| !sealed.covers(&batch.node, batch.last_seq));
        kept.cloned().collect()
    }

    /// Drops the batches up to a position that ends an epoch. Returns the bytes that they took up.
    pub(crate) fn drop_up_to(&mut self, seq: Seq) -> i64 {
        let sealed = self.batches.iter().take_while(|batch| batch.last_seq <= seq).count();
        self.open = self.open.saturating_sub(sealed);
        self.batches.drain(..sealed).map(|batch| bytes(&batch)).sum()
    }

    /// The last two batches, if joining them keeps the cost of all joins logarithmic.
    fn joinable(&self) -> Option<[&MicroBatch; 2]> {
        let [.., left, right] = &self.batches[self.open..] else { return None };
        let (left_rows, right_rows) = (left.rows.num_rows(), right.rows.num_rows());
        let small = left_rows + right_rows <= JOINED_ROWS && bytes(left) + bytes(right) <= JOINED_BYTES;
        let fits = small && left_rows <= 2 * right_rows;
        fits.then_some([left, right])
    }
}

/// `rows` as one batch with the columns of `schema`.
pub(crate) fn join_all(batches: &[MicroBatch], schema: &SchemaRef) -> Result<arrow::array::RecordBatch> {
    let rows = batches.iter().map(|batch| cast_to(&batch.rows, schema)).collect::<Result<Vec<_>>>()?;
    Ok(concat_batches(schema, &rows)?)
}

fn join(left: &MicroBatch, right: &MicroBatch) -> Result<MicroBatch> {
    // Schemas only grow, so the later one covers the earlier.
    let left_rows = cast_to(&left.rows, right.rows.schema_ref())?;
    Ok(MicroBatch {
        stream: right.stream.clone(),
        node: right.node.clone(),
        first_seq: left.first_seq,
        last_seq: right.last_seq,
        rows: concat_batches(right.rows.schema_ref(), [&left_rows, &right.rows])?,
    })
}

fn bytes(batch: &MicroBatch) -> i64 {
    batch.rows.get_array_memory_size() as i64
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow::array::{Int64Array, RecordBatch};
    use arrow::datatypes::{DataType, Field, Schema};

    use super::*;

    fn batch(seq: Seq, rows: usize) -> MicroBatch {
        let schema = Arc::new(Schema::new(vec![Field::new("v", DataType::Int64, true)]));
        let values = Arc::new(Int64Array::from(vec![seq as i64; rows]));
        MicroBatch {
            stream: "s".into(),
            node: "n".into(),
            first_seq: seq,
            last_seq: seq,
            rows: RecordBatch::try_new(schema, vec![values]).expect("one column"),
        }
    }

    fn rows(batches: &[MicroBatch]) -> usize {
        batches.iter().map(|batch| batch.rows.num_rows()).sum()
    }

    #[test]
    fn many_small_groups_make_few_batches() {
        let mut tail = Tail::default();
        let mut size = 0;
        for seq in 1..=10_000 {
            size += tail.push(batch(seq, 1)).expect("joins");
        }
        let all = tail.after(&Frontier::empty());
        assert_eq!(rows(&all), 10_000);
        assert!(all.len() < 20, "{} batches", all.len());
        assert!(all.windows(2).all(|pair| pair[0].last_seq + 1 == pair[1].first_seq));
        assert_eq!(tail.drop_up_to(10_000), size, "bytes in are bytes out");
    }

    #[test]
    fn an_epoch_leaves_in_one_step() {
        let mut tail = Tail::default();
        (1..=10).for_each(|seq| _ = tail.push(batch(seq, 3)).expect("joins"));
        tail.close_epoch();
        (11..=15).for_each(|seq| _ = tail.push(batch(seq, 3)).expect("joins"));
        assert_eq!(rows(&tail.up_to(10)), 30);
        let sealed: Frontier = [("n".into(), 10)].into_iter().collect();
        assert_eq!(rows(&tail.after(&sealed)), 15);
        tail.drop_up_to(10);
        (16..=20).for_each(|seq| _ = tail.push(batch(seq, 3)).expect("joins"));
        tail.close_epoch();
        assert_eq!(rows(&tail.up_to(20)), 30);
    }
}
