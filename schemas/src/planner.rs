//! What our sessions plan beyond DataFusion: gap filling and `ASOF JOIN`.

use std::sync::Arc;

use async_trait::async_trait;
use datafusion::catalog::Session;
use datafusion::common::{Result, plan_err};
use datafusion::execution::context::QueryPlanner;
use datafusion::logical_expr::physical_planning_context::PhysicalPlanningContext;
use datafusion::logical_expr::{LogicalPlan, UserDefinedLogicalNode};
use datafusion::optimizer::{Optimizer, OptimizerRule};
use datafusion::physical_plan::ExecutionPlan;
use datafusion::physical_planner::{DefaultPhysicalPlanner, ExtensionPlanner, PhysicalPlanner};

use crate::asof::{AsofJoin, FindAsofJoins};
use crate::gapfill::{FillGaps, GapFill};

/// The optimizer's rules: ours see the plan as it was written, then DataFusion's follow.
pub(crate) fn optimizer_rules() -> Vec<Arc<dyn OptimizerRule + Send + Sync>> {
    let mut rules: Vec<Arc<dyn OptimizerRule + Send + Sync>> =
        vec![Arc::new(FindAsofJoins), Arc::new(FillGaps)];
    rules.extend(Optimizer::new().rules);
    rules
}

/// DataFusion's planner, which asks ours for the nodes that our rules put in.
#[derive(Debug, Default)]
pub(crate) struct Planner;

#[async_trait]
impl QueryPlanner for Planner {
    async fn create_physical_plan(
        &self,
        plan: &LogicalPlan,
        session: &dyn Session,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let planner = DefaultPhysicalPlanner::with_extension_planners(vec![Arc::new(OurNodes)]);
        planner.create_physical_plan(plan, session).await
    }
}

#[derive(Debug)]
struct OurNodes;

#[async_trait]
impl ExtensionPlanner for OurNodes {
    async fn plan_extension(
        &self,
        planner: &dyn PhysicalPlanner,
        node: &dyn UserDefinedLogicalNode,
        _: &[&LogicalPlan],
        inputs: &[Arc<dyn ExecutionPlan>],
        session: &dyn Session,
        context: &PhysicalPlanningContext,
    ) -> Result<Option<Arc<dyn ExecutionPlan>>> {
        if let Some(fill) = node.as_any().downcast_ref::<GapFill>() {
            let [input] = inputs else { return plan_err!("gap filling has one input") };
            return fill.physical(input.clone()).map(Some);
        }
        if let Some(asof) = node.as_any().downcast_ref::<AsofJoin>() {
            let [left, right] = inputs else { return plan_err!("an ASOF JOIN has two sides") };
            return asof
                .physical(left.clone(), right.clone(), |expr, schema| {
                    planner.create_physical_expr(expr, schema, session, context)
                })
                .map(Some);
        }
        Ok(None)
    }
}
