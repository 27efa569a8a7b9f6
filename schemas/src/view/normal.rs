//! The normal form of a view's query: `SELECT keys, aggregates FROM stream WHERE filter GROUP BY keys`, with every
//! expression over the stream's own columns, and whatever stands above that.
//!
//! A query may reach its aggregation through subqueries and other views. Below the *lowest* aggregation only
//! row-by-row work is possible, so its expressions can be written in terms of the stream's columns. What stands
//! above, another aggregation perhaps, is computed from the finished rows whenever the view is read.

use std::collections::HashSet;

use arrow::datatypes::Schema;
use datafusion::common::tree_node::{Transformed, TreeNode, TreeNodeRecursion};
use datafusion::common::{Column, DataFusionError, plan_err};
use datafusion::logical_expr::utils::grouping_set_to_exprlist;
use datafusion::logical_expr::{Aggregate, Expr, LogicalPlan, Volatility};

use crate::error::{Error, Result};
use crate::functions::markers;

/// The name of the stream in a normal form.
pub(super) const EVENTS: &str = "events";

/// A query in normal form.
#[derive(Debug)]
pub(super) struct NormalForm {
    /// What stands above the aggregation, outermost first.
    pub(super) above: Vec<LogicalPlan>,
    /// The aggregation as it was planned.
    pub(super) aggregate: Aggregate,
    /// Which events count.
    pub(super) filter: Option<Expr>,
    /// The distinct group expressions, in the order of the aggregation's columns.
    pub(super) groups: Vec<Expr>,
    /// The same as they were planned.
    pub(super) planned_groups: Vec<Expr>,
    /// The aggregate expressions.
    pub(super) aggregates: Vec<Expr>,
}

/// Brings an analyzed plan over `stream` into normal form.
pub(super) fn normalize(plan: LogicalPlan, stream: &str) -> Result<NormalForm> {
    check_deterministic(&plan)?;
    let (above, aggregate) = split(plan)?;
    let input = aggregate.input.as_ref();
    let filter = filter_of(input, stream)?;
    let resolved = |exprs: Vec<Expr>| -> Result<Vec<Expr>> {
        exprs.into_iter().map(|expr| Ok(resolve(expr, input)?)).collect()
    };
    let planned_groups: Vec<Expr> =
        grouping_set_to_exprlist(&aggregate.group_expr)?.into_iter().cloned().collect();
    let groups = resolved(planned_groups.clone())?;
    let aggregates = resolved(aggregate.aggr_expr.clone())?;
    Ok(NormalForm { above, filter, groups, planned_groups, aggregates, aggregate })
}

/// Walks down from the top to the lowest aggregation.
fn split(plan: LogicalPlan) -> Result<(Vec<LogicalPlan>, Aggregate)> {
    let mut above = Vec::new();
    let mut plan = plan;
    loop {
        let below = match &plan {
            LogicalPlan::Aggregate(aggregate) if !aggregates_below(&aggregate.input) => {
                return Ok((above, aggregate.clone()));
            }
            LogicalPlan::Aggregate(node) => node.input.clone(),
            LogicalPlan::Projection(node) => node.input.clone(),
            LogicalPlan::Filter(node) => node.input.clone(),
            LogicalPlan::SubqueryAlias(node) => node.input.clone(),
            LogicalPlan::Window(node) if aggregates_below(&node.input) => node.input.clone(),
            LogicalPlan::Distinct(node) if aggregates_below(node.input()) => node.input().clone(),
            other => return Err(unsupported(other)),
        };
        above.push(plan);
        plan = std::sync::Arc::unwrap_or_clone(below);
    }
}

fn aggregates_below(plan: &LogicalPlan) -> bool {
    plan.exists(|node| Ok(matches!(node, LogicalPlan::Aggregate(_)))).unwrap_or(false)
}

fn unsupported(node: &LogicalPlan) -> Error {
    let why = match node {
        LogicalPlan::Sort(_) => "ORDER BY has no meaning in a view; order the query that reads it",
        LogicalPlan::Limit(_) => "LIMIT has no meaning in a view; limit the query that reads it",
        LogicalPlan::Distinct(_) => "DISTINCT cannot be kept up to date; GROUP BY the columns instead",
        LogicalPlan::Window(_) => {
            "window functions (OVER) cannot be merged; use them in the query that reads the view"
        }
        LogicalPlan::Join(_) => "a view reads one stream and joins nothing; join in the query that reads it",
        LogicalPlan::Union(_) => "UNION is not possible in a view; make two views",
        LogicalPlan::TableScan(_) | LogicalPlan::EmptyRelation(_) => {
            "there is no aggregation; a view needs a GROUP BY or an aggregate function"
        }
        other => return Error::invalid(format!("{} is not possible in a view", other.display())),
    };
    Error::invalid(why)
}

/// The conditions below the aggregation, where only row-by-row work on the stream is possible.
fn filter_of(input: &LogicalPlan, stream: &str) -> Result<Option<Expr>> {
    let mut filter: Option<Expr> = None;
    let mut node = input;
    loop {
        node = match node {
            LogicalPlan::Projection(projection) => &projection.input,
            LogicalPlan::SubqueryAlias(alias) => &alias.input,
            LogicalPlan::Filter(condition) => {
                let resolved = resolve(condition.predicate.clone(), &condition.input)?;
                if crate::window::find_call(std::slice::from_ref(&resolved))?.is_some() {
                    return Err(Error::invalid(
                        "a condition on a window belongs into HAVING, or into the query that reads the view",
                    ));
                }
                filter = Some(match filter {
                    Some(filter) => resolved.and(filter),
                    None => resolved,
                });
                &condition.input
            }
            LogicalPlan::TableScan(scan) if scan.table_name.table() == stream => return Ok(filter),
            other => return Err(unsupported(other)),
        };
    }
}

/// `expr` over the output of `plan`, written over the columns of the stream.
fn resolve(expr: Expr, plan: &LogicalPlan) -> datafusion::common::Result<Expr> {
    match plan {
        LogicalPlan::Projection(projection) => {
            let below = substitute(expr, |column| {
                let at = projection.schema.index_of_column(column)?;
                Ok(projection.expr[at].clone().unalias())
            })?;
            resolve(below, &projection.input)
        }
        LogicalPlan::SubqueryAlias(alias) => {
            let below = substitute(expr, |column| {
                let at = alias.schema.index_of_column(column)?;
                Ok(Expr::Column(Column::from(alias.input.schema().qualified_field(at))))
            })?;
            resolve(below, &alias.input)
        }
        LogicalPlan::Filter(filter) => resolve(expr, &filter.input),
        _ => substitute(expr, |column| Ok(Expr::Column(Column::new(Some(EVENTS), &column.name)))),
    }
}

fn substitute(
    expr: Expr,
    mut replacement: impl FnMut(&Column) -> datafusion::common::Result<Expr>,
) -> datafusion::common::Result<Expr> {
    expr.transform_down(|expr| match &expr {
        Expr::Column(column) => Ok(Transformed::new(replacement(column)?, true, TreeNodeRecursion::Jump)),
        _ => Ok(Transformed::no(expr)),
    })
    .map(|done| done.data)
}

/// A view must say the same of the same events at any time.
fn check_deterministic(plan: &LogicalPlan) -> Result<()> {
    let check = |expr: &Expr| {
        expr.apply(|expr| match expr {
            Expr::ScalarFunction(call) if markers::refused_in_view(call.func.name()).is_some() => {
                let why = markers::refused_in_view(call.func.name()).unwrap_or_default();
                plan_err!("{}() {why}", call.func.name())
            }
            Expr::ScalarFunction(call) if call.func.signature().volatility != Volatility::Immutable => {
                let name = call.func.name();
                plan_err!("{name}() gives another answer at another time; a view cannot use it")
            }
            Expr::ScalarSubquery(_) | Expr::Exists(_) | Expr::InSubquery(_) => {
                plan_err!("a view reads one stream and has no subqueries in expressions")
            }
            _ => Ok(TreeNodeRecursion::Continue),
        })
        .map(|_| ())
    };
    plan.apply(|node| {
        node.expressions().iter().try_for_each(check)?;
        Ok::<_, DataFusionError>(TreeNodeRecursion::Continue)
    })?;
    Ok(())
}

pub(super) fn check_output(schema: &Schema) -> Result<()> {
    let mut seen = HashSet::new();
    for field in schema.fields() {
        if !seen.insert(field.name().to_lowercase()) {
            return Err(Error::invalid(format!(
                "two columns are called `{}`; rename one with AS",
                field.name()
            )));
        }
    }
    Ok(())
}
