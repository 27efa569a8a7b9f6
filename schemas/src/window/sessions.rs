//! Sessions: stretches of events of one key without a gap longer than a given one.
//!
//! Both events and state rows are intervals, from a first to a last event time (of an event, the same). What lies
//! within the gap of each other is one session, however it is split over rows; joining intervals in steps gives the
//! same sessions as joining all at once, which is what makes session state mergeable. The plan is the usual one for
//! "gaps and islands": sort by start, compare with how far the rows before reach, number the islands.
//!
//! Two events that are exactly a gap apart are in one session, as in Flink.

use arrow::datatypes::DataType;
use datafusion::common::{Column, Result, ScalarValue};
use datafusion::functions::core::expr_fn::named_struct;
use datafusion::functions_aggregate::min_max::{max_udaf, min_udaf};
use datafusion::functions_aggregate::sum::sum_udaf;
use datafusion::logical_expr::expr::{Sort, WindowFunction};
use datafusion::logical_expr::{
    Expr, ExprFunctionExt, LogicalPlan, LogicalPlanBuilder, WindowFrame, WindowFrameBound, WindowFrameUnits,
    WindowFunctionDefinition, cast, lit, when,
};

use super::expand::WINDOW;
use crate::layout::timestamp_type;

/// The first event time of the session that a row is in, after [`with_extents`].
pub(crate) const FIRST: &str = "__session_first";
/// The last event time of the session that a row is in.
pub(crate) const LAST: &str = "__session_last";

const START: &str = "__interval_start";
const END: &str = "__interval_end";
const REACH: &str = "__reach";
const NEW: &str = "__new";
const ISLAND: &str = "__island";

/// Rows that are intervals of event time, and what joins them.
#[derive(Debug)]
pub(crate) struct Intervals<'a> {
    /// The first event time of a row.
    pub(crate) first: &'a Expr,
    /// The last; of an event, the same.
    pub(crate) last: &'a Expr,
    /// What has sessions of its own.
    pub(crate) keys: &'a [Expr],
    /// The longest gap within a session, in microseconds.
    pub(crate) gap: i64,
}

/// The rows of `input` with their session in the column [`WINDOW`]: it ends a gap after its last event.
pub(crate) fn with_sessions(input: LogicalPlan, intervals: &Intervals) -> Result<LogicalPlan> {
    let columns = input.schema().columns();
    let plan = with_extents(input, intervals)?;
    let gap_us = ScalarValue::IntervalMonthDayNano(Some(arrow::datatypes::IntervalMonthDayNano::new(
        0,
        0,
        intervals.gap.saturating_mul(1_000),
    )));
    let window = named_struct(vec![
        lit("start"),
        column(FIRST),
        lit("end"),
        cast(column(LAST) + lit(gap_us), timestamp_type()),
    ]);
    let exprs = columns.into_iter().map(Expr::Column).chain([window.alias(WINDOW)]).collect::<Vec<_>>();
    LogicalPlanBuilder::from(plan).project(exprs)?.build()
}

/// The rows of `input` with the extent of their session in [`FIRST`] and [`LAST`]. Rows without a time are one session
/// without bounds.
pub(crate) fn with_extents(input: LogicalPlan, intervals: &Intervals) -> Result<LogicalPlan> {
    let Intervals { first, last, keys, gap } = *intervals;
    let columns: Vec<Expr> = input.schema().columns().into_iter().map(Expr::Column).collect();
    let micros = |time: &Expr| cast(cast(time.clone(), timestamp_type()), DataType::Int64);
    let by_start = || vec![column(START).sort(true, true)];
    let over = |function, argument: Expr, partition: Vec<Expr>, order: Vec<Sort>, frame: WindowFrame| {
        let function = WindowFunctionDefinition::AggregateUDF(function);
        let call = Expr::from(WindowFunction::new(function, vec![argument]));
        call.partition_by(partition).order_by(order).window_frame(frame).build()
    };
    let frame = |units, end| {
        WindowFrame::new_bounds(units, WindowFrameBound::Preceding(ScalarValue::UInt64(None)), end)
    };
    let before = frame(WindowFrameUnits::Rows, WindowFrameBound::Preceding(ScalarValue::UInt64(Some(1))));
    // By value and not by row: equal starts are in the same island, in whatever order they stand.
    let so_far = WindowFrame::new_bounds(
        WindowFrameUnits::Range,
        WindowFrameBound::Preceding(ScalarValue::Int64(None)),
        WindowFrameBound::CurrentRow,
    );
    let all = WindowFrame::new(None);

    let reach = over(max_udaf(), column(END), keys.to_vec(), by_start(), before)?.alias(REACH);
    let joined = column(REACH).is_not_null().and((column(START) - column(REACH)).lt_eq(lit(gap)));
    let new = when(joined, lit(0i64)).otherwise(lit(1i64))?.alias(NEW);
    let island = over(sum_udaf(), column(NEW), keys.to_vec(), by_start(), so_far)?.alias(ISLAND);
    let within = || keys.iter().cloned().chain([column(ISLAND)]).collect::<Vec<_>>();
    let from = over(min_udaf(), column(START), within(), vec![], all.clone())?;
    let to = over(max_udaf(), column(END), within(), vec![], all)?;

    let with = |extra: Vec<Expr>| columns.iter().cloned().chain(extra).collect::<Vec<_>>();
    let plan = LogicalPlanBuilder::from(input)
        .project(with(vec![micros(first).alias(START), micros(last).alias(END)]))?
        .window(vec![reach])?;
    let plan = plan.project(with(vec![column(START), column(END), new]))?.window(vec![island])?;
    let time = |expr: Expr| cast(expr, timestamp_type());
    let (from_name, to_name) = ("__from", "__to");
    plan.window(vec![from.alias(from_name), to.alias(to_name)])?
        .project(with(vec![time(column(from_name)).alias(FIRST), time(column(to_name)).alias(LAST)]))?
        .build()
}

fn column(name: &str) -> Expr {
    Expr::Column(Column::new_unqualified(name))
}
