//! The physical operator of gap filling.

use std::fmt;
use std::sync::Arc;

use arrow::datatypes::SchemaRef;
use datafusion::common::tree_node::TreeNodeRecursion;
use datafusion::common::{Result, plan_err};
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::physical_expr::OrderingRequirements;
use datafusion::physical_expr::expressions::Column;
use datafusion::physical_expr::{EquivalenceProperties, LexOrdering, PhysicalExpr, PhysicalSortExpr};
use datafusion::physical_plan::execution_plan::{Boundedness, EmissionType};
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::physical_plan::{
    DisplayAs, DisplayFormatType, Distribution, ExecutionPlan, ExecutionPlanProperties,
    InputDistributionRequirements, PlanProperties,
};
use futures::{StreamExt, stream};

use super::Fill;
use super::filler::{Filler, Step};
use super::node::{GapFill, describe};

impl GapFill {
    /// The operator over the planned input.
    pub(crate) fn physical(&self, input: Arc<dyn ExecutionPlan>) -> Result<Arc<dyn ExecutionPlan>> {
        let schema = self.schema.inner().clone();
        Ok(Arc::new(GapFillExec::new(Arc::new(self.clone()), schema, input)))
    }
}

/// Adds the missing rows to its input, which it asks to be partitioned by series and sorted by series and time.
/// Its output is sorted in the same way.
#[derive(Debug)]
struct GapFillExec {
    node: Arc<GapFill>,
    schema: SchemaRef,
    input: Arc<dyn ExecutionPlan>,
    properties: Arc<PlanProperties>,
}

impl GapFillExec {
    fn new(node: Arc<GapFill>, schema: SchemaRef, input: Arc<dyn ExecutionPlan>) -> Self {
        let ordering = ordering(&node.fills, &schema);
        let properties = PlanProperties::new(
            EquivalenceProperties::new_with_orderings(schema.clone(), [ordering]),
            input.output_partitioning().clone(),
            EmissionType::Incremental,
            Boundedness::Bounded,
        );
        Self { node, schema, input, properties: Arc::new(properties) }
    }

    fn keys(&self) -> Vec<Arc<dyn PhysicalExpr>> {
        columns(&self.node.fills, &self.schema, Fill::Key).collect()
    }
}

fn columns<'a>(
    fills: &'a [Fill],
    schema: &'a SchemaRef,
    wanted: Fill,
) -> impl Iterator<Item = Arc<dyn PhysicalExpr>> + 'a {
    let found = fills.iter().enumerate().filter(move |(_, fill)| **fill == wanted);
    found.map(|(at, _)| Arc::new(Column::new(schema.field(at).name(), at)) as Arc<dyn PhysicalExpr>)
}

fn ordering(fills: &[Fill], schema: &SchemaRef) -> LexOrdering {
    let by = columns(fills, schema, Fill::Key).chain(columns(fills, schema, Fill::Time));
    LexOrdering::new(by.map(PhysicalSortExpr::new_default)).expect("one of the columns is the time")
}

impl DisplayAs for GapFillExec {
    fn fmt_as(&self, _: DisplayFormatType, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "GapFillExec: {}", describe(self.node.start, self.node.finish, &self.node.fills))
    }
}

impl ExecutionPlan for GapFillExec {
    fn name(&self) -> &str {
        "GapFillExec"
    }

    fn properties(&self) -> &Arc<PlanProperties> {
        &self.properties
    }

    fn input_distribution_requirements(&self) -> InputDistributionRequirements {
        let keys = self.keys();
        InputDistributionRequirements::new(vec![match keys.is_empty() {
            true => Distribution::SinglePartition,
            false => Distribution::KeyPartitioned(keys),
        }])
    }

    fn required_input_ordering(&self) -> Vec<Option<OrderingRequirements>> {
        vec![Some(OrderingRequirements::from(ordering(&self.node.fills, &self.input.schema())))]
    }

    fn children(&self) -> Vec<&Arc<dyn ExecutionPlan>> {
        vec![&self.input]
    }

    fn apply_expressions(
        &self,
        _: &mut dyn FnMut(&Arc<dyn PhysicalExpr>) -> Result<TreeNodeRecursion>,
    ) -> Result<TreeNodeRecursion> {
        Ok(TreeNodeRecursion::Continue)
    }

    fn with_new_children(
        self: Arc<Self>,
        mut children: Vec<Arc<dyn ExecutionPlan>>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        match children.pop() {
            Some(input) => Ok(Arc::new(Self::new(self.node.clone(), self.schema.clone(), input))),
            None => plan_err!("gap filling has one input"),
        }
    }

    fn execute(&self, partition: usize, context: Arc<TaskContext>) -> Result<SendableRecordBatchStream> {
        let limit = context.session_config().batch_size();
        let input = self.input.execute(partition, context)?;
        let filler = Filler::new(&self.node, self.schema.clone(), limit)?;
        let filled = stream::try_unfold((input, filler), |(mut input, mut filler)| async move {
            loop {
                match filler.step()? {
                    Step::Output(batch) => return Ok(Some((batch, (input, filler)))),
                    Step::Finished => return Ok(None),
                    Step::NeedInput => match input.next().await {
                        Some(batch) => filler.push(batch?)?,
                        None => filler.end(),
                    },
                }
            }
        });
        Ok(Box::pin(RecordBatchStreamAdapter::new(self.schema.clone(), filled)))
    }
}
