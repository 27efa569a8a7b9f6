//! Plans that run again and again on small batches: planned once, fed with new rows each time.
//!
//! Planning a query costs about a millisecond, which is more than aggregating a few thousand rows. A
//! [`BatchPlan`] keeps the physical plan and exchanges its leaf.

use std::fmt;
use std::sync::Arc;

use arrow::datatypes::SchemaRef;
use arrow::record_batch::RecordBatch;
use datafusion::catalog::memory::MemorySourceConfig;
use datafusion::catalog::streaming::StreamingTable;
use datafusion::common::tree_node::{Transformed, TreeNode, TreeNodeRecursion};
use datafusion::datasource::provider_as_source;
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::logical_expr::{LogicalPlan, LogicalPlanBuilder};
use datafusion::physical_plan::streaming::PartitionStream;
use datafusion::physical_plan::{EmptyRecordBatchStream, ExecutionPlan, collect};
use datafusion::prelude::SessionContext;

use crate::error::Result;

/// A physical plan over rows in memory, with the rows left out.
#[derive(Clone)]
pub struct BatchPlan {
    plan: Arc<dyn ExecutionPlan>,
    input_schema: SchemaRef,
    context: Arc<TaskContext>,
}

impl fmt::Debug for BatchPlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BatchPlan").field("input_schema", &self.input_schema).finish_non_exhaustive()
    }
}

/// Plans `make(rows)` for rows of `schema` that are given later.
pub async fn plan_over_batches(
    context: &SessionContext,
    schema: &SchemaRef,
    make: impl FnOnce(LogicalPlan) -> Result<LogicalPlan>,
) -> Result<BatchPlan> {
    let partition: Arc<dyn PartitionStream> = Arc::new(Unknown(schema.clone()));
    let placeholder = StreamingTable::try_new(schema.clone(), vec![partition])?;
    let rows = LogicalPlanBuilder::scan("rows", provider_as_source(Arc::new(placeholder)), None)?
        .project(super::compile::columns(schema))?
        .build()?;
    let state = context.state();
    let plan = state.create_physical_plan(&make(rows)?).await?;
    Ok(BatchPlan { plan, input_schema: schema.clone(), context: context.task_ctx() })
}

impl BatchPlan {
    /// The columns that [`Self::run`] takes, by name.
    pub fn input_schema(&self) -> &SchemaRef {
        &self.input_schema
    }

    /// Runs the plan over `batches`, which must have [`Self::input_schema`].
    pub async fn run(&self, batches: Vec<RecordBatch>) -> Result<Vec<RecordBatch>> {
        let fed = self.plan.clone().transform_up(|node| {
            if !node.children().is_empty() {
                return Ok(Transformed::no(node));
            }
            let schema = node.schema();
            let rows = batches
                .iter()
                .map(|batch| project(batch, &schema))
                .collect::<datafusion::common::Result<Vec<_>>>()?;
            let leaf = MemorySourceConfig::try_new_exec(&[rows], schema, None)?;
            Ok(Transformed::new(leaf as Arc<dyn ExecutionPlan>, true, TreeNodeRecursion::Continue))
        })?;
        Ok(collect(fed.data, self.context.clone()).await?)
    }
}

/// A leaf of which the optimizer knows nothing but the schema. (Of an empty table it would know that it is
/// sorted, and leave out the sorting that some aggregates need.)
#[derive(Debug)]
struct Unknown(SchemaRef);

impl PartitionStream for Unknown {
    fn schema(&self) -> &SchemaRef {
        &self.0
    }

    fn execute(&self, _: Arc<TaskContext>) -> SendableRecordBatchStream {
        Box::pin(EmptyRecordBatchStream::new(self.0.clone()))
    }
}

/// The columns of `schema` by name. The optimizer may have pruned and reordered what the leaf reads.
fn project(batch: &RecordBatch, schema: &SchemaRef) -> datafusion::common::Result<RecordBatch> {
    let indices = schema
        .fields()
        .iter()
        .map(|f| batch.schema_ref().index_of(f.name()))
        .collect::<Result<Vec<_>, _>>()?;
    Ok(batch.project(&indices)?)
}
