//! State rows in memory that need not be looked through as a whole.
//!
//! A closed epoch does not change any more, so its rows are sorted by key once. Of each stretch of [`STRETCH`] rows the
//! smallest and the largest value of every key are known; a query for one device and one hour reads the few
//! stretches that may hold them, as it would the row groups of a file.

use std::sync::Arc;

use arrow::array::{ArrayRef, BooleanArray, RecordBatch, UInt32Array};
use arrow::compute::{take, take_record_batch};
use arrow::datatypes::{Schema, SchemaRef};
use arrow::row::{RowConverter, Rows, SortField};
use async_trait::async_trait;
use datafusion::catalog::memory::MemorySourceConfig;
use datafusion::catalog::{Session, TableProvider};
use datafusion::common::pruning::PruningStatistics;
use datafusion::common::{Column, Result, ScalarValue, ToDFSchema};
use datafusion::logical_expr::utils::conjunction;
use datafusion::logical_expr::{Expr, TableProviderFilterPushDown, TableType};
use datafusion::physical_optimizer::pruning::PruningPredicateBuilder;
use datafusion::physical_plan::ExecutionPlan;

/// Rows of which the ranges of keys are known together: one device's share of an epoch is seldom more.
const STRETCH: usize = 512;
/// A query gets rows in batches of at most so many.
const BATCH_ROWS: usize = 8_192;

/// State rows, sorted by key, with the ranges of keys of each stretch.
#[derive(Debug)]
pub struct SortedStates {
    rows: RecordBatch,
    /// For each stretch one row of keys: the smallest of each.
    smallest: RecordBatch,
    /// The largest of each.
    largest: RecordBatch,
}

impl SortedStates {
    /// Sorts `rows`, of which the first `keys` columns are keys. Costs a sort and a copy of the rows.
    pub fn new(rows: &RecordBatch, keys: usize) -> Result<Self> {
        let order = order_by(&rows.columns()[..keys])?;
        let rows = take_record_batch(rows, &order)?;
        let schema = rows.schema();
        let key_schema = Arc::new(Schema::new(schema.fields()[..keys].to_vec()));
        let extremes = rows.columns()[..keys].iter().map(extremes).collect::<Result<Vec<_>>>()?;
        let (smallest, largest): (Vec<_>, Vec<_>) = extremes.into_iter().unzip();
        let stretches = rows.num_rows().div_ceil(STRETCH);
        let batch = |columns| {
            let options = arrow::array::RecordBatchOptions::new().with_row_count(Some(stretches));
            RecordBatch::try_new_with_options(key_schema.clone(), columns, &options)
        };
        Ok(Self { smallest: batch(smallest)?, largest: batch(largest)?, rows })
    }

    /// The same rows with other states, as `change` makes them; it leaves the keys and their order as they are.
    pub fn with_states(
        &self,
        change: impl FnOnce(&RecordBatch) -> crate::error::Result<RecordBatch>,
    ) -> crate::error::Result<Self> {
        let rows = change(&self.rows)?;
        debug_assert_eq!(rows.num_rows(), self.rows.num_rows());
        Ok(Self { rows, smallest: self.smallest.clone(), largest: self.largest.clone() })
    }

    /// All rows.
    pub fn rows(&self) -> &RecordBatch {
        &self.rows
    }

    /// The rows of the stretches that `wanted` says, neighbours together.
    fn read(&self, wanted: impl Iterator<Item = bool>, read: &mut Vec<RecordBatch>) {
        let mut from = None;
        let stretches = wanted.chain([false]).enumerate().map(|(at, wanted)| (at * STRETCH, wanted));
        for (start, wanted) in stretches {
            let end = start.min(self.rows.num_rows());
            match from {
                None if wanted => from = Some(start),
                Some(first) if !wanted || end - first >= BATCH_ROWS => {
                    read.push(self.rows.slice(first, end - first));
                    from = wanted.then_some(start);
                }
                _ => {}
            }
        }
    }
}

impl PruningStatistics for SortedStates {
    fn min_values(&self, column: &Column) -> Option<ArrayRef> {
        self.smallest.column_by_name(&column.name).cloned()
    }

    fn max_values(&self, column: &Column) -> Option<ArrayRef> {
        self.largest.column_by_name(&column.name).cloned()
    }

    fn num_containers(&self) -> usize {
        self.smallest.num_rows()
    }

    fn null_counts(&self, _: &Column) -> Option<ArrayRef> {
        None
    }

    fn row_counts(&self) -> Option<ArrayRef> {
        None
    }

    fn contained(&self, _: &Column, _: &std::collections::HashSet<ScalarValue>) -> Option<BooleanArray> {
        None
    }
}

fn encoded(columns: &[ArrayRef]) -> Result<Rows> {
    let fields = columns.iter().map(|column| SortField::new(column.data_type().clone())).collect();
    Ok(RowConverter::new(fields)?.convert_columns(columns)?)
}

/// The order in which `columns` are sorted, nulls first.
fn order_by(columns: &[ArrayRef]) -> Result<UInt32Array> {
    let Some(first) = columns.first() else { return Ok(UInt32Array::from_iter_values(0..1)) };
    let rows = encoded(columns)?;
    let mut order: Vec<u32> = (0..first.len() as u32).collect();
    order.sort_unstable_by(|a, b| rows.row(*a as usize).cmp(&rows.row(*b as usize)));
    Ok(order.into())
}

/// The smallest and the largest value of each stretch. Null, which is read as unknown, is smaller than any value.
fn extremes(column: &ArrayRef) -> Result<(ArrayRef, ArrayRef)> {
    let rows = encoded(std::slice::from_ref(column))?;
    let stretches =
        (0..column.len()).step_by(STRETCH).map(|start| start..(start + STRETCH).min(column.len()));
    let (mut smallest, mut largest) = (Vec::new(), Vec::new());
    for stretch in stretches {
        smallest.extend(stretch.clone().min_by_key(|at| rows.row(*at)).map(|at| at as u32));
        largest.extend(stretch.max_by_key(|at| rows.row(*at)).map(|at| at as u32));
    }
    let of = |at: Vec<u32>| take(column, &UInt32Array::from(at), None);
    Ok((of(smallest)?, of(largest)?))
}

/// State rows in memory as a table.
#[derive(Debug)]
pub(super) struct StateTable {
    schema: SchemaRef,
    sorted: Vec<Arc<SortedStates>>,
    /// Rows of which nothing is known.
    loose: Vec<RecordBatch>,
}

impl StateTable {
    pub(super) fn new(schema: SchemaRef, sorted: Vec<Arc<SortedStates>>, loose: Vec<RecordBatch>) -> Self {
        Self { schema, sorted, loose }
    }

    /// The batches that may hold rows for which `filters` are true.
    fn read(&self, session: &dyn Session, filters: &[Expr]) -> Result<Vec<RecordBatch>> {
        let predicate = match conjunction(filters.iter().cloned()) {
            Some(filter) if !self.sorted.is_empty() => {
                let filter = session.create_physical_expr(filter, &self.schema.clone().to_dfschema()?)?;
                // What says nothing about ranges prunes nothing.
                PruningPredicateBuilder::new().with_file_schema(self.schema.clone()).try_build(filter).ok()
            }
            _ => None,
        };
        let mut read = Vec::new();
        for states in &self.sorted {
            match predicate.as_ref().and_then(|predicate| predicate.prune(&**states).ok()) {
                Some(wanted) => states.read(wanted.into_iter(), &mut read),
                None => states.read(std::iter::repeat_n(true, states.num_containers()), &mut read),
            }
        }
        read.extend(self.loose.iter().cloned());
        Ok(read)
    }
}

#[async_trait]
impl TableProvider for StateTable {
    fn schema(&self) -> SchemaRef {
        self.schema.clone()
    }

    fn table_type(&self) -> TableType {
        TableType::Temporary
    }

    fn supports_filters_pushdown(&self, filters: &[&Expr]) -> Result<Vec<TableProviderFilterPushDown>> {
        Ok(vec![TableProviderFilterPushDown::Inexact; filters.len()])
    }

    async fn scan(
        &self,
        session: &dyn Session,
        projection: Option<&Vec<usize>>,
        filters: &[Expr],
        _: Option<usize>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let rows = self.read(session, filters)?;
        Ok(MemorySourceConfig::try_new_exec(&[rows], self.schema.clone(), projection.cloned())?)
    }
}

#[cfg(test)]
mod tests {
    use arrow::array::{AsArray, Int64Array, StringArray};
    use arrow::datatypes::{DataType, Field, Int64Type};
    use datafusion::prelude::{SessionContext, col, lit};

    use super::*;

    /// Rows of 40 devices at 100 times each, in no order, some without a device.
    fn rows() -> RecordBatch {
        let shuffled: Vec<i64> = (0..4_000).map(|i| i * 1_741 % 4_000).collect();
        let device = |i: &i64| (i % 40 != 7).then(|| format!("d{:02}", i % 40));
        let fields = vec![
            Field::new("device", DataType::Utf8, true),
            Field::new("time", DataType::Int64, true),
            Field::new("state", DataType::Int64, true),
        ];
        let columns: Vec<ArrayRef> = vec![
            Arc::new(shuffled.iter().map(device).collect::<StringArray>()),
            Arc::new(Int64Array::from_iter_values(shuffled.iter().map(|i| i / 40))),
            Arc::new(Int64Array::from(shuffled.clone())),
        ];
        RecordBatch::try_new(Arc::new(Schema::new(fields)), columns).expect("a batch")
    }

    async fn count(table: StateTable, filter: Expr) -> usize {
        let frame = SessionContext::new().read_table(Arc::new(table)).expect("a table");
        frame.filter(filter).expect("a filter").count().await.expect("it runs")
    }

    #[tokio::test]
    async fn a_filter_finds_the_same_in_fewer_rows() {
        let all = rows();
        let sorted = Arc::new(SortedStates::new(&all, 2).expect("it sorts"));
        let session = SessionContext::new().state();
        for (filter, least, most) in [
            (col("device").eq(lit("d05")), 100, 1_024),
            (col("device").eq(lit("d05")).and(col("time").gt_eq(lit(95i64))), 5, 1_024),
            (col("device").is_null(), 100, 4_000),
            (col("device").eq(lit("nobody")), 0, 512),
            (col("time").lt(lit(3i64)), 117, 4_000),
            (col("state").gt(lit(3_990i64)), 9, 4_000),
            (lit(true), 4_000, 4_000),
        ] {
            let table = || StateTable::new(all.schema(), vec![sorted.clone()], Vec::new());
            let loose = StateTable::new(all.schema(), Vec::new(), vec![all.clone()]);
            let found = count(table(), filter.clone()).await;
            assert_eq!(found, count(loose, filter.clone()).await, "{filter}");
            assert!(found >= least, "{filter}: {found}");
            let read = table().read(&session, std::slice::from_ref(&filter)).expect("it reads");
            let read: usize = read.iter().map(RecordBatch::num_rows).sum();
            assert!(read <= most, "{filter} reads {read} rows");
        }
    }

    #[test]
    fn sorting_keeps_every_row() {
        let all = rows();
        let sorted = SortedStates::new(&all, 2).expect("it sorts");
        let mut read = Vec::new();
        sorted.read([true, false, true, true, false, false, false, true].into_iter(), &mut read);
        let lengths: Vec<usize> = read.iter().map(RecordBatch::num_rows).collect();
        assert_eq!(lengths, [512, 1_024, 4_000 - 7 * 512]);
        let state = |batch: &RecordBatch| {
            let mut states: Vec<i64> = batch["state"].as_primitive::<Int64Type>().values().to_vec();
            states.sort_unstable();
            states
        };
        assert_eq!(state(sorted.rows()), state(&all));
    }
}
