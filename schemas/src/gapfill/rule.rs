//! Finds `time_bucket_gapfill` in a plan and puts a [`GapFill`] above its aggregation.

use std::sync::Arc;

use datafusion::common::tree_node::{Transformed, TreeNode, TreeNodeRecursion};
use datafusion::common::{Column, Result, ScalarValue, plan_datafusion_err, plan_err};
use datafusion::logical_expr::expr::ScalarFunction;
use datafusion::logical_expr::expr_rewriter::NamePreserver;
use datafusion::logical_expr::{
    Aggregate, Expr, Extension, Filter, LogicalPlan, LogicalPlanBuilder, Projection,
};
use datafusion::optimizer::{OptimizerConfig, OptimizerRule};

use super::range::{Bounds, constant, instant};
use super::{Fill, GapFill, MAX_BUCKETS};
use crate::functions::markers::{GAPFILL, INTERPOLATE, LOCF, misplaced};
use crate::functions::{Windows, bucket};

/// Rewrites `time_bucket_gapfill`, `locf` and `interpolate`; must run before every other rule.
#[derive(Debug, Default)]
pub struct FillGaps;

impl OptimizerRule for FillGaps {
    fn name(&self) -> &str {
        "fill_gaps"
    }

    fn rewrite(&self, plan: LogicalPlan, config: &dyn OptimizerConfig) -> Result<Transformed<LogicalPlan>> {
        if marker_in(&plan)?.is_none() {
            return Ok(Transformed::no(plan));
        }
        let filled = plan.transform_down_with_subqueries(|node| match fill(&node, config)? {
            Some(filled) => Ok(Transformed::yes(filled)),
            None => Ok(Transformed::no(node)),
        })?;
        if let Some(marker) = marker_in(&filled.data)? {
            return Err(misplaced(&marker).unwrap_or_else(|| plan_datafusion_err!("{marker}() is misplaced")));
        }
        // Columns that could not be null below may be so now.
        filled.transform_data(|plan| {
            plan.transform_up_with_subqueries(|node| Ok(Transformed::yes(node.recompute_schema()?)))
        })
    }
}

/// The name of a marker of gap filling somewhere in the plan.
fn marker_in(plan: &LogicalPlan) -> Result<Option<String>> {
    let mut found = None;
    plan.apply_with_subqueries(|node| {
        node.apply_expressions(|expr| {
            found = marker_of(expr)?;
            Ok(if found.is_some() { TreeNodeRecursion::Stop } else { TreeNodeRecursion::Continue })
        })?;
        Ok(if found.is_some() { TreeNodeRecursion::Stop } else { TreeNodeRecursion::Continue })
    })?;
    Ok(found)
}

fn marker_of(expr: &Expr) -> Result<Option<String>> {
    let mut found = None;
    expr.apply(|expr| match expr {
        Expr::ScalarFunction(call) if [GAPFILL, LOCF, INTERPOLATE].contains(&call.name()) => {
            found = Some(call.name().to_owned());
            Ok(TreeNodeRecursion::Stop)
        }
        _ => Ok(TreeNodeRecursion::Continue),
    })?;
    Ok(found)
}

/// `top` filled, if it is a query block (a projection over an aggregation) that groups by gap-filled buckets.
fn fill(top: &LogicalPlan, config: &dyn OptimizerConfig) -> Result<Option<LogicalPlan>> {
    let mut above = Vec::new();
    let mut node = top;
    let aggregate = loop {
        let below = match node {
            LogicalPlan::Aggregate(aggregate) => break aggregate,
            LogicalPlan::Projection(projection) if above.is_empty() => &projection.input,
            LogicalPlan::Window(window) if !above.is_empty() => &window.input,
            LogicalPlan::Filter(filter) if !above.is_empty() => &filter.input,
            _ => return Ok(None),
        };
        above.push(node);
        node = below;
    };
    let Some((at, call)) = gapfill_key(aggregate)? else { return Ok(None) };
    let having = match above.last() {
        Some(LogicalPlan::Filter(filter)) => {
            above.pop();
            Some(&filter.predicate)
        }
        _ => None,
    };
    let call = Call::parse(call, &aggregate.input, config)?;
    let mut base = bucketed(aggregate, at, &call)?;
    if let Some(having) = having {
        base = LogicalPlan::Filter(Filter::try_new(having.clone(), Arc::new(base))?);
    }

    let columns = base.schema().columns();
    let keys = aggregate.group_expr.len();
    let fills = (0..columns.len()).map(|i| match i {
        i if i == at => Fill::Time,
        i if i < keys => Fill::Key,
        _ => Fill::Null,
    });
    let mut filled = Filled {
        exprs: columns.into_iter().map(Expr::Column).collect(),
        fills: fills.collect(),
        calls: Vec::new(),
        base: &base,
    };
    let rewritten = above
        .iter()
        .map(|node| {
            node.expressions().into_iter().map(|expr| filled.rewrite(expr)).collect::<Result<Vec<_>>>()
        })
        .collect::<Result<Vec<_>>>()?;
    let Filled { exprs, fills, .. } = filled;
    let input = LogicalPlan::Projection(Projection::try_new(exprs, Arc::new(base.clone()))?);
    let node = GapFill::try_new(input, fills, call.windows, (call.start, call.finish))?;
    let mut plan = LogicalPlan::Extension(Extension { node: Arc::new(node) });
    for (node, exprs) in above.iter().zip(rewritten).rev() {
        plan = node.with_new_exprs(exprs, vec![plan])?;
    }
    Ok(Some(plan))
}

/// The group key that is a call of `time_bucket_gapfill`, and its position.
fn gapfill_key(aggregate: &Aggregate) -> Result<Option<(usize, &ScalarFunction)>> {
    let mut found = None;
    for (i, expr) in aggregate.group_expr.iter().enumerate() {
        let plain = match expr {
            Expr::Alias(alias) => alias.expr.as_ref(),
            other => other,
        };
        if let Expr::ScalarFunction(call) = plain
            && call.name() == GAPFILL
            && found.replace((i, call)).is_some()
        {
            return plan_err!("a query can fill the gaps of one time_bucket_gapfill() only");
        }
    }
    Ok(found)
}

/// The aggregation with plain buckets, its columns named as before.
fn bucketed(aggregate: &Aggregate, at: usize, call: &Call) -> Result<LogicalPlan> {
    let mut groups = aggregate.group_expr.clone();
    groups[at] = bucket::time_bucket(call.bucket.clone());
    let plan = LogicalPlanBuilder::from(aggregate.input.as_ref().clone())
        .aggregate(groups, aggregate.aggr_expr.clone())?
        .build()?;
    let renamed = plan.schema().columns().into_iter().zip(aggregate.schema.iter());
    let renamed = renamed.map(|(column, (relation, field))| {
        let named = column.relation.as_ref() == relation && column.name == *field.name();
        let column = Expr::Column(column);
        if named { column } else { column.alias_qualified(relation.cloned(), field.name()) }
    });
    let renamed = renamed.collect::<Vec<_>>();
    LogicalPlanBuilder::from(plan).project(renamed)?.build()
}

/// A call of `time_bucket_gapfill(size, time [, zone] [, start, finish])`.
struct Call {
    /// The arguments of `time_bucket` for the same buckets.
    bucket: Vec<Expr>,
    windows: Windows,
    start: i64,
    finish: i64,
}

impl Call {
    fn parse(call: &ScalarFunction, input: &LogicalPlan, config: &dyn OptimizerConfig) -> Result<Self> {
        let [size_expr, time, rest @ ..] = call.args.as_slice() else {
            return plan_err!("time_bucket_gapfill() takes a size and a timestamp");
        };
        let size = constant(size_expr, config)?
            .ok_or_else(|| plan_datafusion_err!("the size of time_bucket_gapfill() must be constant"))?;
        let mut bucket = vec![size_expr.clone(), time.clone()];
        let (mut extras, mut rest) = (Vec::new(), rest);
        if let Some((first, others)) = rest.split_first()
            && let Some(ScalarValue::Utf8(Some(text))) = constant(first, config)?
            && text.parse::<chrono_tz::Tz>().is_ok()
        {
            bucket.push(first.clone());
            extras.push(ScalarValue::from(text));
            rest = others;
        }
        if rest.len() > 2 {
            return plan_err!(
                "time_bucket_gapfill() takes size, timestamp, maybe a time zone, maybe start and finish"
            );
        }
        let bounds = Bounds::of(input, time, config)?;
        let given = |at: usize| rest.get(at).map_or(Ok(None), |expr| instant(expr, config));
        let start = given(0)?.or(bounds.start).ok_or_else(|| unbounded("start", ">="))?;
        let finish = given(1)?.or(bounds.finish).ok_or_else(|| unbounded("finish", "<"))?;
        let windows = bucket::windows("time_bucket_gapfill", &size, &extras)?;
        let buckets = if start < finish { windows.count(start, finish) } else { 0 };
        if buckets > MAX_BUCKETS {
            return plan_err!(
                "time_bucket_gapfill() would make {buckets} buckets per series, more than {MAX_BUCKETS}; \
                 take larger buckets or a shorter range"
            );
        }
        Ok(Self { bucket, windows, start: windows.start(start), finish })
    }
}

fn unbounded(what: &str, op: &str) -> datafusion::error::DataFusionError {
    plan_datafusion_err!(
        "time_bucket_gapfill() cannot tell the {what} of its range; add a condition with a constant to WHERE \
         (t {op} now() - INTERVAL '1 hour', say), or give start and finish as arguments"
    )
}

/// The columns below the [`GapFill`], to which each distinct call of `locf` and `interpolate` adds one.
struct Filled<'a> {
    exprs: Vec<Expr>,
    fills: Vec<Fill>,
    calls: Vec<Expr>,
    base: &'a LogicalPlan,
}

impl Filled<'_> {
    /// An expression above the aggregation with the calls replaced by their columns.
    fn rewrite(&mut self, expr: Expr) -> Result<Expr> {
        let name = NamePreserver::new_for_projection().save(&expr);
        let rewritten = expr.transform_down(|expr| match &expr {
            Expr::ScalarFunction(call) if [LOCF, INTERPOLATE].contains(&call.name()) => {
                let column = self.column(&expr, call)?;
                Ok(Transformed::new(column, true, TreeNodeRecursion::Jump))
            }
            _ => Ok(Transformed::no(expr)),
        })?;
        Ok(if rewritten.transformed { name.restore(rewritten.data) } else { rewritten.data })
    }

    fn column(&mut self, expr: &Expr, call: &ScalarFunction) -> Result<Expr> {
        let name = expr.schema_name().to_string();
        let column = Expr::Column(Column::new_unqualified(&name));
        if self.calls.contains(expr) {
            return Ok(column);
        }
        let known = |column: &&Column| self.base.schema().maybe_index_of_column(column).is_some();
        let fill = match call.args.as_slice() {
            [value, ..] if marker_of(value)?.is_some() || !value.column_refs().iter().all(known) => {
                return Err(misplaced(call.name()).unwrap_or_else(|| plan_datafusion_err!("misplaced")));
            }
            [_] if call.name() == INTERPOLATE => Fill::Interpolate,
            [_] => Fill::Locf { null_is_missing: false },
            [_, Expr::Literal(ScalarValue::Boolean(Some(null_is_missing)), _)] => {
                Fill::Locf { null_is_missing: *null_is_missing }
            }
            _ => return plan_err!("the second argument of locf() must be true or false"),
        };
        self.exprs.push(call.args[0].clone().alias(&name));
        self.fills.push(fill);
        self.calls.push(expr.clone());
        Ok(column)
    }
}
