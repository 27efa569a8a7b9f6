//! The merge of two sorted sides.
//!
//! Keys and times are compared as normalised bytes (Arrow's row format), which sort as the sides are sorted. The
//! position on the right side only moves forward; a left row's match is the last row passed or the next one.

use std::cmp::Ordering;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, RecordBatch, UInt32Array, new_null_array};
use arrow::compute::{interleave, take};
use arrow::datatypes::SchemaRef;
use arrow::row::{RowConverter, Rows, SortField};
use datafusion::common::Result;
use datafusion::execution::SendableRecordBatchStream;
use datafusion::logical_expr::Operator;
use datafusion::physical_expr::PhysicalExpr;
use futures::StreamExt;

/// So many batches of the right side are held for one batch of the output, then it is given out early.
const HELD_BATCHES: usize = 8;

/// One sorted side.
pub(super) struct Side {
    stream: SendableRecordBatchStream,
    by: Vec<Arc<dyn PhysicalExpr>>,
    keys: RowConverter,
    times: RowConverter,
}

/// A batch with its keys and times.
struct Batch {
    rows: RecordBatch,
    keys: Rows,
    times: Rows,
    /// Whether all keys and the time of a row have a value.
    known: Vec<bool>,
}

impl Side {
    pub(super) fn new(stream: SendableRecordBatchStream, by: Vec<Arc<dyn PhysicalExpr>>) -> Result<Self> {
        let schema = stream.schema();
        let fields = by.iter().map(|expr| Ok(SortField::new(expr.data_type(&schema)?)));
        let mut fields = fields.collect::<Result<Vec<_>>>()?;
        let time = fields.pop();
        Ok(Self {
            stream,
            by,
            keys: RowConverter::new(fields)?,
            times: RowConverter::new(time.into_iter().collect())?,
        })
    }

    /// The next batch that has rows.
    async fn next(&mut self) -> Result<Option<Batch>> {
        while let Some(rows) = self.stream.next().await.transpose()? {
            let count = rows.num_rows();
            if count == 0 {
                continue;
            }
            let columns = self.by.iter().map(|expr| expr.evaluate(&rows)?.into_array(count));
            let columns = columns.collect::<Result<Vec<ArrayRef>>>()?;
            let known = (0..count).map(|row| columns.iter().all(|column| column.is_valid(row))).collect();
            let (keys, times) = columns.split_at(columns.len() - 1);
            // Without keys all rows have the same empty one.
            let keys = if keys.is_empty() {
                self.times.convert_columns(times)?
            } else {
                self.keys.convert_columns(keys)?
            };
            let times = self.times.convert_columns(times)?;
            return Ok(Some(Batch { rows, keys, times, known }));
        }
        Ok(None)
    }
}

/// A batch of the right side that a match may lie in.
struct Held {
    /// Let go if no match was found in it.
    batch: Option<Batch>,
    /// Whether the output that is being made has rows of it.
    used: bool,
}

/// A row of one of the held batches.
type Place = (usize, usize);

/// Both sides and how far they are read.
pub(super) struct Merge {
    schema: SchemaRef,
    left: Side,
    right: Side,
    op: Operator,
    keeps_left: bool,
    keyed: bool,
    current: Option<Batch>,
    next_left: usize,
    held: Vec<Held>,
    used: usize,
    /// The next row of the right side, in the last of `held`.
    next_right: usize,
    right_ended: bool,
    /// The row before it.
    passed: Option<Place>,
}

impl Merge {
    pub(super) fn new(schema: SchemaRef, left: Side, right: Side, op: Operator, keeps_left: bool) -> Self {
        let keyed = left.by.len() > 1;
        Self {
            schema,
            left,
            right,
            op,
            keeps_left,
            keyed,
            current: None,
            next_left: 0,
            held: Vec::new(),
            used: 0,
            next_right: 0,
            right_ended: false,
            passed: None,
        }
    }

    /// The next rows of the join.
    pub(super) async fn next(&mut self) -> Result<Option<RecordBatch>> {
        loop {
            if self.current.as_ref().is_none_or(|batch| self.next_left >= batch.rows.num_rows()) {
                self.current = self.left.next().await?;
                self.next_left = 0;
            }
            let Some(current) = self.current.take() else { return Ok(None) };
            self.release();
            let mut matches: Vec<(usize, Option<Place>)> = Vec::new();
            while self.next_left < current.rows.num_rows() && self.used < HELD_BATCHES {
                let found = self.find(&current, self.next_left).await?;
                if found.is_some() || self.keeps_left {
                    matches.push((self.next_left, found));
                }
                self.next_left += 1;
            }
            let joined = if matches.is_empty() { None } else { Some(self.joined(&current, &matches)?) };
            self.current = Some(current);
            if joined.is_some() {
                return Ok(joined);
            }
        }
    }

    /// The match of a row of the left side.
    async fn find(&mut self, left: &Batch, row: usize) -> Result<Option<Place>> {
        if !left.known[row] {
            return Ok(None);
        }
        // Rows of the right side up to here are passed: with `>=` and `<` those of the same time as well.
        let passes_equal = matches!(self.op, Operator::GtEq | Operator::Lt);
        while let Some(place) = self.peek().await? {
            match self.compare(place, left, row) {
                Ordering::Less => {}
                Ordering::Equal if passes_equal => {}
                _ => break,
            }
            self.passed = Some(place);
            self.next_right += 1;
        }
        let looks_back = matches!(self.op, Operator::GtEq | Operator::Gt);
        let found = if looks_back { self.passed } else { self.peek().await? };
        let found = found.filter(|(batch, at)| {
            let right = self.held[*batch].batch.as_ref();
            right.is_some_and(|right| {
                right.known[*at] && (!self.keyed || right.keys.row(*at) == left.keys.row(row))
            })
        });
        if let Some((batch, _)) = found
            && !std::mem::replace(&mut self.held[batch].used, true)
        {
            self.used += 1;
        }
        Ok(found)
    }

    fn compare(&self, (batch, at): Place, left: &Batch, row: usize) -> Ordering {
        let Some(right) = &self.held[batch].batch else { return Ordering::Less };
        let by_time = || right.times.row(at).cmp(&left.times.row(row));
        if self.keyed { right.keys.row(at).cmp(&left.keys.row(row)).then_with(by_time) } else { by_time() }
    }

    /// The next row of the right side, `None` at its end.
    async fn peek(&mut self) -> Result<Option<Place>> {
        loop {
            if let Some(Held { batch: Some(last), .. }) = self.held.last()
                && self.next_right < last.rows.num_rows()
            {
                return Ok(Some((self.held.len() - 1, self.next_right)));
            }
            if self.right_ended {
                return Ok(None);
            }
            match self.right.next().await? {
                Some(batch) => {
                    // The row before the next one lies in the last batch, so those before it are done with.
                    if let [.., before, _] = self.held.as_mut_slice()
                        && !before.used
                    {
                        before.batch = None;
                    }
                    self.held.push(Held { batch: Some(batch), used: false });
                    self.next_right = 0;
                }
                None => self.right_ended = true,
            }
        }
    }

    /// Lets go of the batches of the right side that no later row can match.
    fn release(&mut self) {
        let last = self.held.len().saturating_sub(1);
        let passed = self.passed.map_or(last, |(batch, _)| batch);
        let mut at = 0..;
        self.held.retain(|_| at.next().is_some_and(|at| at == passed || at == last));
        self.held.iter_mut().for_each(|held| held.used = false);
        self.used = 0;
        // Either it lies in the last batch, which is the only one then, or in the one before.
        if let Some((batch, _)) = &mut self.passed {
            *batch = 0;
        }
    }

    fn joined(&self, left: &Batch, matches: &[(usize, Option<Place>)]) -> Result<RecordBatch> {
        let rows: UInt32Array = matches.iter().map(|(row, _)| u32::try_from(*row).ok()).collect();
        let mut columns = Vec::with_capacity(self.schema.fields().len());
        for column in left.rows.columns() {
            columns.push(take(column, &rows, None)?);
        }
        let nulls = self.held.len();
        let places: Vec<Place> = matches.iter().map(|(_, found)| found.unwrap_or((nulls, 0))).collect();
        let right_fields = &self.schema.fields()[columns.len()..];
        for (i, field) in right_fields.iter().enumerate() {
            let null = new_null_array(field.data_type(), 1);
            let column = |held: &'_ Held| held.batch.as_ref().map(|batch| batch.rows.column(i).clone());
            let held: Vec<ArrayRef> =
                self.held.iter().map(|held| column(held).unwrap_or(null.clone())).collect();
            let held: Vec<&dyn Array> = held.iter().chain([&null]).map(AsRef::as_ref).collect();
            columns.push(interleave(&held, &places)?);
        }
        Ok(RecordBatch::try_new(self.schema.clone(), columns)?)
    }
}
