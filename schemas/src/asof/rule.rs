//! Finds the joins that are marked as `ASOF` and what can be filtered before them.

use std::sync::Arc;

use datafusion::common::tree_node::Transformed;
use datafusion::common::{DataFusionError, JoinType, Result, plan_err};
use datafusion::logical_expr::utils::{conjunction, split_conjunction, split_conjunction_owned};
use datafusion::logical_expr::{BinaryExpr, Expr, Extension, Filter, Join, LogicalPlan, Operator};
use datafusion::optimizer::{OptimizerConfig, OptimizerRule};

use super::AsofJoin;
use crate::functions::markers::{ASOF, ASOF_USING, misplaced};

/// Replaces marked joins by an operator of their own; must run before every rule that knows about joins.
#[derive(Debug, Default)]
pub struct FindAsofJoins;

impl OptimizerRule for FindAsofJoins {
    fn name(&self) -> &str {
        "find_asof_joins"
    }

    fn rewrite(&self, plan: LogicalPlan, _: &dyn OptimizerConfig) -> Result<Transformed<LogicalPlan>> {
        plan.transform_up_with_subqueries(|node| match node {
            LogicalPlan::Join(join) => match marked(&join)? {
                Some(asof) => {
                    Ok(Transformed::yes(LogicalPlan::Extension(Extension { node: Arc::new(asof) })))
                }
                None => Ok(Transformed::no(LogicalPlan::Join(join))),
            },
            LogicalPlan::Filter(filter) => push_down(filter),
            other => Ok(Transformed::no(other)),
        })
    }
}

fn is_call(expr: &Expr, function: &str) -> bool {
    matches!(expr, Expr::ScalarFunction(call) if call.name() == function)
}

fn wrong(_: ()) -> DataFusionError {
    misplaced(ASOF).unwrap_or_else(|| DataFusionError::Plan("misplaced".into()))
}

/// A join that carries a marker, as what it is.
fn marked(join: &Join) -> Result<Option<AsofJoin>> {
    let conditions = join.filter.as_ref().map(split_conjunction).unwrap_or_default();
    let using = without_marker(&join.right)?;
    if using.is_none() && !conditions.iter().any(|condition| is_call(condition, ASOF)) {
        return Ok(None);
    }
    let keeps_left = match join.join_type {
        JoinType::Inner => false,
        JoinType::Left => true,
        other => return plan_err!("ASOF JOIN and ASOF LEFT JOIN are possible, {other} is not"),
    };
    let mut keys = join.on.clone();
    let mut times = None;
    if using.is_some() {
        let (left, right) = keys.pop().ok_or(()).map_err(wrong)?;
        times = Some((left, Operator::GtEq, right));
    }
    for condition in conditions {
        if is_call(condition, ASOF) {
            let Expr::ScalarFunction(call) = condition else { continue };
            let pair = call.args.first().and_then(|arg| sided(join, arg)).ok_or(()).map_err(wrong)?;
            if times.replace(pair).is_some() {
                return Err(wrong(()));
            }
        } else {
            match sided(join, condition) {
                Some((left, Operator::Eq, right)) => keys.push((left, right)),
                _ => {
                    return plan_err!(
                        "an ASOF JOIN matches by equal keys and one inequality of times; put `{condition}` into WHERE, \
                         or into a subquery if it is to choose among the right side's rows"
                    );
                }
            }
        }
    }
    let (left_time, op, right_time) = times.ok_or(()).map_err(wrong)?;
    if !matches!(op, Operator::GtEq | Operator::Gt | Operator::LtEq | Operator::Lt) {
        return Err(wrong(()));
    }
    let right = using.unwrap_or_else(|| join.right.as_ref().clone());
    let sides = (join.left.as_ref().clone(), right);
    AsofJoin::try_new(sides, keys, (left_time, right_time), op, keeps_left).map(Some)
}

/// A comparison of the left side with the right side, the left side first.
fn sided(join: &Join, condition: &Expr) -> Option<(Expr, Operator, Expr)> {
    let Expr::BinaryExpr(BinaryExpr { left, op, right }) = condition else { return None };
    let of = |expr: &Expr, side: &LogicalPlan| {
        let columns = expr.column_refs();
        !columns.is_empty()
            && columns.iter().all(|column| side.schema().maybe_index_of_column(column).is_some())
    };
    if of(left, &join.left) && of(right, &join.right) {
        Some((left.as_ref().clone(), *op, right.as_ref().clone()))
    } else if of(left, &join.right) && of(right, &join.left) {
        Some((right.as_ref().clone(), op.swap()?, left.as_ref().clone()))
    } else {
        None
    }
}

/// The right side of a join with `USING` without the marker below its names, if it has one.
fn without_marker(right: &LogicalPlan) -> Result<Option<LogicalPlan>> {
    let inside = match right {
        LogicalPlan::SubqueryAlias(alias) => &alias.input,
        LogicalPlan::Projection(projection) => &projection.input,
        LogicalPlan::Filter(filter) if is_call(&filter.predicate, ASOF_USING) => {
            return Ok(Some(filter.input.as_ref().clone()));
        }
        _ => return Ok(None),
    };
    match without_marker(inside)? {
        Some(inside) => Ok(Some(right.with_new_exprs(right.expressions(), vec![inside])?)),
        None => Ok(None),
    }
}

/// Conditions on the left side choose among its rows before the join as well as after it. Those on the right side
/// do not: they would change which row is the nearest.
fn push_down(filter: Filter) -> Result<Transformed<LogicalPlan>> {
    let LogicalPlan::Extension(extension) = filter.input.as_ref() else {
        return Ok(Transformed::no(LogicalPlan::Filter(filter)));
    };
    let Some(asof) = extension.node.as_any().downcast_ref::<AsofJoin>() else {
        return Ok(Transformed::no(LogicalPlan::Filter(filter)));
    };
    let of_left = |expr: &Expr| {
        let known = |column| asof.left.schema().maybe_index_of_column(column).is_some();
        !expr.is_volatile() && expr.column_refs().into_iter().all(known)
    };
    let (pushed, kept): (Vec<Expr>, Vec<Expr>) =
        split_conjunction_owned(filter.predicate.clone()).into_iter().partition(of_left);
    let Some(pushed) = conjunction(pushed) else {
        return Ok(Transformed::no(LogicalPlan::Filter(filter)));
    };
    let left = LogicalPlan::Filter(Filter::try_new(pushed, Arc::new(asof.left.clone()))?);
    let joined = Arc::new(asof.over(left, asof.right.clone())?);
    let joined = LogicalPlan::Extension(Extension { node: joined });
    Ok(Transformed::yes(match conjunction(kept) {
        Some(kept) => LogicalPlan::Filter(Filter::try_new(kept, Arc::new(joined))?),
        None => joined,
    }))
}
