//! The physical operator of an `ASOF JOIN`.

use std::fmt;
use std::sync::Arc;

use arrow::datatypes::SchemaRef;
use datafusion::common::tree_node::TreeNodeRecursion;
use datafusion::common::{DFSchema, Result, plan_err};
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::logical_expr::{Expr, Operator};
use datafusion::physical_expr::{
    EquivalenceProperties, LexOrdering, OrderingRequirements, PhysicalExpr, PhysicalSortExpr,
};
use datafusion::physical_plan::execution_plan::{Boundedness, EmissionType};
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::physical_plan::{
    DisplayAs, DisplayFormatType, Distribution, ExecutionPlan, ExecutionPlanProperties,
    InputDistributionRequirements, Partitioning, PlanProperties,
};
use futures::stream;

use super::AsofJoin;
use super::merge::{Merge, Side};

type Exprs = Vec<Arc<dyn PhysicalExpr>>;

impl AsofJoin {
    /// The operator over the planned sides; `physical` makes an expression over a side's schema physical.
    pub(crate) fn physical(
        &self,
        left: Arc<dyn ExecutionPlan>,
        right: Arc<dyn ExecutionPlan>,
        physical: impl Fn(&Expr, &DFSchema) -> Result<Arc<dyn PhysicalExpr>>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let (mut left_by, mut right_by) = (Vec::new(), Vec::new());
        for (left_expr, right_expr) in self.keys.iter().chain([&self.times]) {
            let left_expr = physical(left_expr, self.left.schema())?;
            let right_expr = physical(right_expr, self.right.schema())?;
            let types = (left_expr.data_type(&left.schema())?, right_expr.data_type(&right.schema())?);
            if types.0 != types.1 {
                return plan_err!(
                    "an ASOF JOIN cannot compare {left_expr} ({}) with {right_expr} ({}); cast one of them",
                    types.0,
                    types.1
                );
            }
            left_by.push(left_expr);
            right_by.push(right_expr);
        }
        let by = (left_by, right_by);
        Ok(Arc::new(AsofJoinExec::new(
            self.schema.inner().clone(),
            (left, right),
            by,
            self.op,
            self.keeps_left,
        )))
    }
}

/// Merges two sides that it asks to be partitioned by their keys and sorted by keys and time.
#[derive(Debug)]
struct AsofJoinExec {
    schema: SchemaRef,
    left: Arc<dyn ExecutionPlan>,
    right: Arc<dyn ExecutionPlan>,
    /// Keys, then the time, over each side.
    by: (Exprs, Exprs),
    op: Operator,
    keeps_left: bool,
    properties: Arc<PlanProperties>,
}

impl AsofJoinExec {
    fn new(
        schema: SchemaRef,
        (left, right): (Arc<dyn ExecutionPlan>, Arc<dyn ExecutionPlan>),
        by: (Exprs, Exprs),
        op: Operator,
        keeps_left: bool,
    ) -> Self {
        let properties = PlanProperties::new(
            EquivalenceProperties::new(schema.clone()),
            Partitioning::UnknownPartitioning(left.output_partitioning().partition_count()),
            EmissionType::Incremental,
            Boundedness::Bounded,
        );
        Self { schema, left, right, by, op, keeps_left, properties: Arc::new(properties) }
    }
}

impl DisplayAs for AsofJoinExec {
    fn fmt_as(&self, _: DisplayFormatType, f: &mut fmt::Formatter) -> fmt::Result {
        let kept = if self.keeps_left { "left" } else { "inner" };
        let times = (&self.by.0[self.by.0.len() - 1], &self.by.1[self.by.1.len() - 1]);
        write!(f, "AsofJoinExec: {kept}, {} {} {}", times.0, self.op, times.1)
    }
}

impl ExecutionPlan for AsofJoinExec {
    fn name(&self) -> &str {
        "AsofJoinExec"
    }

    fn properties(&self) -> &Arc<PlanProperties> {
        &self.properties
    }

    fn input_distribution_requirements(&self) -> InputDistributionRequirements {
        let by = |exprs: &[Arc<dyn PhysicalExpr>]| match exprs {
            [] | [_] => Distribution::SinglePartition,
            [keys @ .., _] => Distribution::KeyPartitioned(keys.to_vec()),
        };
        InputDistributionRequirements::co_partitioned(vec![by(&self.by.0), by(&self.by.1)])
    }

    fn required_input_ordering(&self) -> Vec<Option<OrderingRequirements>> {
        let ordered = |exprs: &[Arc<dyn PhysicalExpr>]| {
            LexOrdering::new(exprs.iter().cloned().map(PhysicalSortExpr::new_default))
                .map(OrderingRequirements::from)
        };
        vec![ordered(&self.by.0), ordered(&self.by.1)]
    }

    fn children(&self) -> Vec<&Arc<dyn ExecutionPlan>> {
        vec![&self.left, &self.right]
    }

    fn apply_expressions(
        &self,
        f: &mut dyn FnMut(&Arc<dyn PhysicalExpr>) -> Result<TreeNodeRecursion>,
    ) -> Result<TreeNodeRecursion> {
        for expr in self.by.0.iter().chain(&self.by.1) {
            if f(expr)? == TreeNodeRecursion::Stop {
                return Ok(TreeNodeRecursion::Stop);
            }
        }
        Ok(TreeNodeRecursion::Continue)
    }

    fn with_new_children(
        self: Arc<Self>,
        children: Vec<Arc<dyn ExecutionPlan>>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let Ok([left, right]) = <[Arc<dyn ExecutionPlan>; 2]>::try_from(children) else {
            return plan_err!("an ASOF JOIN has two sides");
        };
        let sides = (left, right);
        Ok(Arc::new(Self::new(self.schema.clone(), sides, self.by.clone(), self.op, self.keeps_left)))
    }

    fn execute(&self, partition: usize, context: Arc<TaskContext>) -> Result<SendableRecordBatchStream> {
        let left = Side::new(self.left.execute(partition, context.clone())?, self.by.0.clone())?;
        let right = Side::new(self.right.execute(partition, context)?, self.by.1.clone())?;
        let merge = Merge::new(self.schema.clone(), left, right, self.op, self.keeps_left);
        let merged = stream::try_unfold(merge, |mut merge| async move {
            Ok(merge.next().await?.map(|batch| (batch, merge)))
        });
        Ok(Box::pin(RecordBatchStreamAdapter::new(self.schema.clone(), merged)))
    }
}
