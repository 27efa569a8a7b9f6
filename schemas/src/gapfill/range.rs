//! The range of time that a query asks for.

use arrow::datatypes::DataType;
use datafusion::common::{Column, DFSchema, Result, ScalarValue, plan_datafusion_err};
use datafusion::logical_expr::simplify::SimplifyContext;
use datafusion::logical_expr::utils::split_conjunction;
use datafusion::logical_expr::{Between, BinaryExpr, Expr, LogicalPlan, Operator};
use datafusion::optimizer::OptimizerConfig;
use datafusion::optimizer::simplify_expressions::ExprSimplifier;
use std::sync::Arc;

use crate::layout::timestamp_type;

/// The bounds that the filters below an aggregation put on a column: the first microsecond inside, and the first
/// one after.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Bounds {
    pub(super) start: Option<i64>,
    pub(super) finish: Option<i64>,
}

impl Bounds {
    /// Reads the conditions on `time` off the filters of `plan`.
    pub(super) fn of(plan: &LogicalPlan, time: &Expr, config: &dyn OptimizerConfig) -> Result<Self> {
        let mut bounds = Self::default();
        let mut column = match bare(time) {
            Expr::Column(column) => column.clone(),
            _ => return Ok(bounds),
        };
        let mut node = plan;
        loop {
            node = match node {
                LogicalPlan::Filter(filter) => {
                    for condition in split_conjunction(&filter.predicate) {
                        bounds.narrow(condition, &column, config)?;
                    }
                    &filter.input
                }
                LogicalPlan::Sort(sort) => &sort.input,
                LogicalPlan::SubqueryAlias(alias) => {
                    let Some(at) = alias.schema.maybe_index_of_column(&column) else { return Ok(bounds) };
                    column = Column::from(alias.input.schema().qualified_field(at));
                    &alias.input
                }
                LogicalPlan::Projection(projection) => {
                    let Some(at) = projection.schema.maybe_index_of_column(&column) else {
                        return Ok(bounds);
                    };
                    column = match bare(&projection.expr[at]) {
                        Expr::Column(column) => column.clone(),
                        _ => return Ok(bounds),
                    };
                    &projection.input
                }
                _ => return Ok(bounds),
            };
        }
    }

    fn narrow(&mut self, condition: &Expr, time: &Column, config: &dyn OptimizerConfig) -> Result<()> {
        let is_time = |expr: &Expr| matches!(bare(expr), Expr::Column(column) if column == time);
        match condition {
            Expr::BinaryExpr(BinaryExpr { left, op, right }) => {
                let (op, bound) = if is_time(left) {
                    (*op, right)
                } else if is_time(right) {
                    (op.swap().unwrap_or(*op), left)
                } else {
                    return Ok(());
                };
                let Some(bound) = instant(bound, config)? else { return Ok(()) };
                match op {
                    Operator::GtEq => self.from(bound),
                    Operator::Gt => self.from(bound.saturating_add(1)),
                    Operator::Lt => self.to(bound),
                    Operator::LtEq => self.to(bound.saturating_add(1)),
                    _ => {}
                }
            }
            Expr::Between(Between { expr, negated: false, low, high }) if is_time(expr) => {
                if let Some(low) = instant(low, config)? {
                    self.from(low);
                }
                if let Some(high) = instant(high, config)? {
                    self.to(high.saturating_add(1));
                }
            }
            _ => {}
        }
        Ok(())
    }

    fn from(&mut self, bound: i64) {
        self.start = Some(self.start.map_or(bound, |start| start.max(bound)));
    }

    fn to(&mut self, bound: i64) {
        self.finish = Some(self.finish.map_or(bound, |finish| finish.min(bound)));
    }
}

/// An expression without its name and casts.
fn bare(expr: &Expr) -> &Expr {
    match expr {
        Expr::Alias(alias) => bare(&alias.expr),
        Expr::Cast(cast) => bare(&cast.expr),
        Expr::TryCast(cast) => bare(&cast.expr),
        other => other,
    }
}

/// The value of an expression that needs no row; `now()` is the time at which the query started.
pub(super) fn constant(expr: &Expr, config: &dyn OptimizerConfig) -> Result<Option<ScalarValue>> {
    if expr.any_column_refs() {
        return Ok(None);
    }
    let context = SimplifyContext::builder()
        .with_schema(Arc::new(DFSchema::empty()))
        .with_config_options(config.options())
        .with_query_execution_start_time(config.query_execution_start_time())
        .build();
    match ExprSimplifier::new(context).simplify(expr.clone())? {
        Expr::Literal(value, _) => Ok(Some(value)),
        _ => Ok(None),
    }
}

/// A constant as microseconds since 1970; `None` if it is null or not constant.
pub(super) fn instant(expr: &Expr, config: &dyn OptimizerConfig) -> Result<Option<i64>> {
    let Some(value) = constant(expr, config)? else { return Ok(None) };
    if value.is_null() || matches!(value.data_type(), DataType::Interval(_) | DataType::Boolean) {
        return Ok(None);
    }
    match value.cast_to(&timestamp_type()) {
        Ok(ScalarValue::TimestampMicrosecond(us, _)) => Ok(us),
        _ => Err(plan_datafusion_err!("`{value}` is no point in time that gaps could be filled from or to")),
    }
}
