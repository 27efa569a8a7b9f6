//! The meaning of window calls in a query: each row is repeated once per window that it lies in.

use std::sync::Arc;

use arrow::array::{AsArray, BooleanBufferBuilder, ListArray, StructArray, TimestampMicrosecondArray};
use arrow::buffer::{NullBuffer, OffsetBuffer};
use arrow::datatypes::{DataType, Field, TimestampMicrosecondType};
use datafusion::common::config::ConfigOptions;
use datafusion::common::tree_node::{Transformed, TreeNode};
use datafusion::common::{Column, Result, UnnestOptions, plan_err};
use datafusion::logical_expr::{
    Aggregate, ColumnarValue, Expr, LogicalPlan, LogicalPlanBuilder, Projection, ScalarFunctionArgs,
    ScalarUDF, ScalarUDFImpl, Signature, Volatility,
};
use datafusion::optimizer::AnalyzerRule;

use super::calls::{WindowCall, WindowKind, find_call, window_array, window_fields, window_type};
use super::counts;
use super::sessions::{self, Intervals};

/// The column that holds the window after an expansion.
pub(crate) const WINDOW: &str = "__window";

/// Replaces window calls in a plan by what they mean.
#[derive(Debug)]
pub struct ExpandWindows;

impl AnalyzerRule for ExpandWindows {
    fn analyze(&self, plan: LogicalPlan, _: &ConfigOptions) -> Result<LogicalPlan> {
        plan.transform_up_with_subqueries(|node| {
            let Some(call) = find_call(&node.expressions())? else { return Ok(Transformed::no(node)) };
            if matches!(call.kind, WindowKind::Tumble { .. }) {
                // It is a function of the row.
                return Ok(Transformed::no(node));
            }
            expand_node(node, &call).map(Transformed::yes)
        })
        .map(|done| done.data)
    }

    fn name(&self) -> &str {
        "expand_windows"
    }
}

fn expand_node(node: LogicalPlan, call: &WindowCall) -> Result<LogicalPlan> {
    let window = Expr::Column(Column::new_unqualified(WINDOW));
    match node {
        LogicalPlan::Projection(Projection { expr, input, schema, .. }) => {
            let input = with_window(Arc::unwrap_or_clone(input), call)?;
            let exprs = expr.into_iter().zip(schema.iter()).map(|(expr, (relation, field))| {
                let replaced = replace_call(expr.unalias(), &window)?;
                Ok(replaced.alias_qualified(relation.cloned(), field.name()))
            });
            let exprs = exprs.collect::<Result<Vec<_>>>()?;
            Ok(LogicalPlan::Projection(Projection::try_new(exprs, Arc::new(input))?))
        }
        LogicalPlan::Aggregate(Aggregate { input, group_expr, aggr_expr, schema, .. }) => {
            let input = with_window(Arc::unwrap_or_clone(input), call)?;
            let group = group_expr.into_iter().map(|expr| replace_call(expr, &window));
            let group = group.collect::<Result<Vec<_>>>()?;
            let aggr = aggr_expr.into_iter().map(|expr| replace_call(expr, &window));
            let aggr = aggr.collect::<Result<Vec<_>>>()?;
            let plan = LogicalPlan::Aggregate(Aggregate::try_new(Arc::new(input), group, aggr)?);
            let names =
                plan.schema().columns().into_iter().zip(schema.iter()).map(|(column, (relation, field))| {
                    Expr::Column(column).alias_qualified(relation.cloned(), field.name())
                });
            let names = names.collect::<Vec<_>>();
            LogicalPlanBuilder::from(plan).project(names)?.build()
        }
        other => {
            let place = match other {
                LogicalPlan::Filter(_) => "WHERE",
                LogicalPlan::Sort(_) => "ORDER BY",
                LogicalPlan::Join(_) => "a JOIN",
                _ => "this place",
            };
            plan_err!(
                "a window is possible in GROUP BY, in a SELECT list and as a table function, but not in {place}; use its columns in an outer query or in HAVING"
            )
        }
    }
}

/// `expr` with every window call replaced by `window`.
pub(crate) fn replace_call(expr: Expr, window: &Expr) -> Result<Expr> {
    expr.transform_down(|expr| {
        Ok(match WindowCall::read(&expr)? {
            Some(_) => {
                Transformed::new(window.clone(), true, datafusion::common::tree_node::TreeNodeRecursion::Jump)
            }
            None => Transformed::no(expr),
        })
    })
    .map(|done| done.data)
}

/// The rows of `input`, each once per window of `call`, with the window in the column [`WINDOW`].
fn with_window(input: LogicalPlan, call: &WindowCall) -> Result<LogicalPlan> {
    match &call.kind {
        WindowKind::Session { gap } => {
            let time = call.time();
            let intervals = Intervals { first: &time, last: &time, keys: &call.keys, gap: *gap };
            sessions::with_sessions(input, &intervals)
        }
        WindowKind::Count { size } => counts::with_numbers(input, &call.keys, &call.of, *size),
        kind => expand_kind(input, kind, call.time()),
    }
}

/// The rows of `input`, each once per window of `kind` that `time` lies in.
pub(crate) fn expand_kind(input: LogicalPlan, kind: &WindowKind, time: Expr) -> Result<LogicalPlan> {
    let windows = ScalarUDF::from(WindowsOf::new(kind.clone())).call(vec![time]).alias(WINDOW);
    let columns = input.schema().columns().into_iter().map(Expr::Column).chain([windows]);
    let columns = columns.collect::<Vec<_>>();
    let options = UnnestOptions::new().with_preserve_nulls(false);
    LogicalPlanBuilder::from(input)
        .project(columns)?
        .unnest_column_with_options(Column::new_unqualified(WINDOW), options)?
        .build()
}

/// The list of windows that a time lies in. A null time lies in one window, of null bounds.
#[derive(Debug, PartialEq, Eq, Hash)]
struct WindowsOf {
    kind: WindowKind,
    name: String,
    signature: Signature,
}

impl WindowsOf {
    fn new(kind: WindowKind) -> Self {
        let name = format!("windows_of<{kind:?}>");
        Self { kind, name, signature: Signature::any(1, Volatility::Immutable) }
    }
}

impl ScalarUDFImpl for WindowsOf {
    fn name(&self) -> &str {
        &self.name
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, _: &[DataType]) -> Result<DataType> {
        Ok(DataType::List(Arc::new(Field::new_list_field(window_type(), true))))
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let times = args.args[0].to_array(args.number_rows)?;
        let times = times.as_primitive::<TimestampMicrosecondType>();
        let (mut starts, mut ends) = (Vec::new(), Vec::new());
        let mut lengths = Vec::with_capacity(times.len());
        let mut valid = BooleanBufferBuilder::new(times.len());
        for time in times {
            let before = starts.len();
            match time {
                Some(time) => self.kind.windows_of(time, |start, end| {
                    starts.push(Some(start));
                    ends.push(Some(end));
                }),
                None => {
                    starts.push(None);
                    ends.push(None);
                }
            }
            lengths.push(starts.len() - before);
            valid.append_n(starts.len() - before, time.is_some());
        }
        let windows =
            window_array(TimestampMicrosecondArray::from(starts), TimestampMicrosecondArray::from(ends));
        let (_, columns, _) = windows.into_parts();
        let windows = StructArray::new(window_fields(), columns, Some(NullBuffer::new(valid.finish())));
        let item = Arc::new(Field::new_list_field(window_type(), true));
        let lists = ListArray::try_new(item, OffsetBuffer::from_lengths(lengths), Arc::new(windows), None)?;
        Ok(ColumnarValue::Array(Arc::new(lists)))
    }
}
