//! Views: one SQL text, compiled once, run by both layers.
//!
//! ```text
//!            state_plan                merge_plan                    finish_plan
//!  events ─────────────▶ state rows ─────────────▶ fewer state rows ─────────────▶ the view's rows
//!          batch: raw table        compaction,               batch state ∪ speed state
//!          speed: micro-batch      open epoch
//! ```
//!
//! A [`CompiledView`] holds these three plans and the schemas between them. State rows are ordinary Arrow rows:
//! the group keys, then one struct per aggregate. Merging is associative and commutative, so it does not matter
//! which layer produced which row, in which order, or how often they were merged before.

mod changes;
mod combinators;
mod compile;
mod groups;
mod last_values;
mod lineage;
mod mergeable;
mod normal;
mod run;
mod sorted;
pub mod storage;
mod window_end;

use std::sync::Arc;

use arrow::datatypes::SchemaRef;
use arrow::record_batch::RecordBatch;
use datafusion::catalog::TableProvider;
use datafusion::common::Result as DataFusionResult;
use datafusion::datasource::MemTable;
use datafusion::logical_expr::{LogicalPlan, LogicalPlanBuilder};

pub use changes::{ChangeRecord, Changes, KeySet};
pub use combinators::{AggregateCall, Argument, Emit, OrderBy, merge_of, state_of};
pub use compile::CompiledView;
pub use groups::{GroupColumn, GroupRole, KeyColumn};
pub use last_values::{last_values, last_values_name, reshape_states, shows_columns};
pub use lineage::{lineage, source_of};
pub use run::{BatchPlan, plan_over_batches};
pub use sorted::SortedStates;
pub use window_end::WindowEnds;

use self::sorted::StateTable;
use crate::error::Result;
use crate::position::{Frontier, NodeId};
use crate::table::{Table, TableSnapshot, TableSpec};

/// One view at one moment: batch state up to a frontier and speed state after it.
#[derive(Debug, Clone)]
pub struct ViewSnapshot {
    /// The view.
    pub view: Arc<CompiledView>,
    /// The batch state; its frontier is [`TableSnapshot::frontier`].
    pub batch: TableSnapshot,
    /// State rows (of [`CompiledView::state_schema`]) of the positions after that frontier.
    pub speed: Vec<RecordBatch>,
    /// More of them, in epochs that do not change any more.
    pub settled: Vec<Arc<SortedStates>>,
    /// Events (of [`CompiledView::input_schema`]) after that frontier that are not in `speed` yet.
    pub pending: Vec<RecordBatch>,
    /// Everything up to here is in one of the two.
    pub frontier: Frontier,
    /// How far the stream's event time has come, microseconds since 1970.
    pub watermark: Option<i64>,
    /// Events that came later than the stream's allowed lateness.
    pub late_events: u64,
}

/// Which of the two layers an answer draws on.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Layer {
    /// Both: the lambda equation.
    #[default]
    Merged,
    /// Only what the last batch run covered.
    Batch,
    /// Only what came after it.
    Speed,
}

impl ViewSnapshot {
    /// The state rows of a layer as a plan over `(keys, states)`.
    pub async fn states(&self, layer: Layer) -> Result<LogicalPlan> {
        let batch = match layer {
            Layer::Merged | Layer::Batch if self.batch.file_count() > 0 => {
                Some(self.view.stored_states(self.batch.state_provider())?)
            }
            _ => None,
        };
        let (settled, speed, pending) = match layer {
            Layer::Batch => (Vec::new(), Vec::new(), &[][..]),
            Layer::Merged | Layer::Speed => (self.settled.clone(), self.speed.clone(), &self.pending[..]),
        };
        let schema = self.view.state_schema();
        let table = StateTable::new(schema.clone(), settled, speed);
        let mut speed = scan("speed_state", Arc::new(table), schema)?;
        if !pending.is_empty() {
            let schema = self.view.input_schema();
            let pending =
                self.view.state_plan(rows_in_memory("waiting_events", schema, pending.to_vec())?)?;
            speed = LogicalPlanBuilder::from(speed).union(pending)?.build()?;
        }
        Ok(match batch {
            Some(batch) if layer == Layer::Batch => batch,
            Some(batch) => LogicalPlanBuilder::from(batch).union(speed)?.build()?,
            None => speed,
        })
    }

    /// State rows in memory, and events that will become some.
    pub fn speed_rows(&self) -> u64 {
        self.speed_batches().map(|batch| batch.num_rows() as u64).sum()
    }

    /// Their bytes.
    pub fn speed_bytes(&self) -> u64 {
        self.speed_batches().map(|batch| bytes_of(batch) as u64).sum()
    }

    fn speed_batches(&self) -> impl Iterator<Item = &RecordBatch> {
        self.settled.iter().map(|states| states.rows()).chain(&self.speed).chain(&self.pending)
    }

    /// The rows of the view as a layer sees them: the lambda equation as a plan.
    pub async fn rows(&self, layer: Layer) -> Result<LogicalPlan> {
        self.view.finish_plan(self.states(layer).await?)
    }
}

/// Opens the table of a view's batch state. Its state may be that of another definition: see
/// [`TableSnapshot::definition`] and [`Table::switch`].
pub async fn open_table(
    store: &crate::table::Store,
    view: &CompiledView,
    nodes: Vec<NodeId>,
) -> Result<Table> {
    let spec = TableSpec {
        path: crate::layout::view_path(view.name()),
        schema: view.storage_schema().clone(),
        partition_by: Vec::new(),
        stats_columns: view.keys().iter().map(|key| key.name.clone()).collect(),
        nodes,
    };
    Table::open(store, spec).await
}

/// State rows in memory as a plan.
pub fn states_in_memory(schema: &SchemaRef, batches: Vec<RecordBatch>) -> DataFusionResult<LogicalPlan> {
    rows_in_memory("speed_state", schema, batches)
}

fn rows_in_memory(
    name: &str,
    schema: &SchemaRef,
    batches: Vec<RecordBatch>,
) -> DataFusionResult<LogicalPlan> {
    scan(name, Arc::new(MemTable::try_new(schema.clone(), vec![batches])?), schema)
}

fn scan(name: &str, table: Arc<dyn TableProvider>, schema: &SchemaRef) -> DataFusionResult<LogicalPlan> {
    let source = datafusion::datasource::provider_as_source(table);
    LogicalPlanBuilder::scan(name, source, None)?.project(crate::view::compile::columns(schema))?.build()
}

/// The bytes of a batch's own rows, also where it shares its buffers with others.
pub fn bytes_of(batch: &RecordBatch) -> usize {
    batch.columns().iter().map(|column| column.to_data().get_slice_memory_size().unwrap_or(0)).sum()
}

#[cfg(test)]
mod tests;
