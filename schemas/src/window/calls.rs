//! Window calls: what they are, what they take, and how they are read from a plan.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, StructArray, TimestampMicrosecondArray};
use arrow::datatypes::{
    DataType, Field, Fields, IntervalMonthDayNano, IntervalUnit, TimestampMicrosecondType,
};
use arrow::record_batch::{RecordBatch, RecordBatchOptions};
use datafusion::common::tree_node::{TreeNode, TreeNodeRecursion};
use datafusion::common::{DFSchema, Result, ScalarValue, exec_err, plan_err};
use datafusion::logical_expr::execution_props::ExecutionProps;
use datafusion::logical_expr::physical_planning_context::PhysicalPlanningContext;
use datafusion::logical_expr::{
    ColumnarValue, Expr, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature, Volatility, cast,
};
use datafusion::physical_expr::create_physical_expr;

use super::counts::POSITION;
use crate::layout::timestamp_type;

/// The SQL names of the window calls.
pub(crate) mod names {
    /// `tumble_window(time, size [, offset])`
    pub(crate) const TUMBLE: &str = "tumble_window";
    /// `hop_window(time, slide, size [, offset])`
    pub(crate) const HOP: &str = "hop_window";
    /// `cumulate_window(time, step, max_size [, offset])`
    pub(crate) const CUMULATE: &str = "cumulate_window";
    /// `session_window(time, gap, key...)`
    pub(crate) const SESSION: &str = "session_window";
    /// `count_window(size, seq, index, node, key...)`
    pub(crate) const COUNT: &str = "count_window";
    /// `window_start(window)`
    pub(crate) const START: &str = "window_start";
    /// `window_end(window)`
    pub(crate) const END: &str = "window_end";
    /// `window_time(window)`
    pub(crate) const TIME: &str = "window_time";
}

/// The scalar functions of this module.
pub(crate) fn functions() -> Vec<Arc<ScalarUDF>> {
    let calls = [names::TUMBLE, names::HOP, names::CUMULATE, names::SESSION, names::COUNT].map(Marker::new);
    let parts = [(names::START, 0, 0), (names::END, 1, 0), (names::TIME, 1, 1_000)].map(Part::new);
    let calls = calls.into_iter().map(ScalarUDF::from);
    calls.chain(parts.into_iter().map(ScalarUDF::from)).map(Arc::new).collect()
}

/// The type of a window: half open, `start <= time < end`.
pub(crate) fn window_type() -> DataType {
    DataType::Struct(window_fields())
}

pub(super) fn window_fields() -> Fields {
    let time = |name| Field::new(name, timestamp_type(), true);
    Fields::from(vec![time("start"), time("end")])
}

/// How time is cut into windows. All lengths are microseconds.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum WindowKind {
    /// One window after the other.
    Tumble {
        /// The length of a window.
        size: i64,
        /// Windows start at multiples of the size plus this.
        offset: i64,
    },
    /// Windows of one length that start at regular intervals, and may overlap or leave gaps.
    Hop {
        /// From the start of one window to that of the next.
        slide: i64,
        /// The length of a window.
        size: i64,
        /// Windows start at multiples of the slide plus this.
        offset: i64,
    },
    /// Windows that start together and grow by steps up to a size, then begin anew.
    Cumulate {
        /// How much longer each window is than the one before.
        step: i64,
        /// The length of the longest.
        size: i64,
        /// Windows start at multiples of the size plus this.
        offset: i64,
    },
    /// Windows that last as long as no gap between events is longer than this.
    Session {
        /// The longest gap within a session.
        gap: i64,
    },
    /// Windows of so many events of a key, in the order of their positions.
    Count {
        /// Events in a window.
        size: i64,
    },
}

/// A window call in a plan.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct WindowCall {
    /// Which windows.
    pub kind: WindowKind,
    /// What is put into windows: an event's time, or for count windows the parts of its
    /// position.
    pub of: Vec<Expr>,
    /// The keys that have sessions or counts of their own; empty for other kinds.
    pub keys: Vec<Expr>,
}

impl WindowKind {
    /// The pane as `(length, offset)`: panes do not overlap, and a window consists of whole panes. `None` for
    /// sessions and count windows, which have no panes.
    pub fn pane(&self) -> Option<(i64, i64)> {
        match *self {
            Self::Tumble { size, offset } => Some((size, offset)),
            Self::Hop { slide, size, offset } => Some((gcd(slide, size), offset)),
            Self::Cumulate { step, offset, .. } => Some((step, offset)),
            Self::Session { .. } | Self::Count { .. } => None,
        }
    }

    /// The length of the longest window, if it has a longest.
    pub fn size(&self) -> Option<i64> {
        match *self {
            Self::Tumble { size, .. } | Self::Hop { size, .. } | Self::Cumulate { size, .. } => Some(size),
            Self::Session { .. } | Self::Count { .. } => None,
        }
    }

    /// The windows that `time` lies in, as `(start, end)`, in order.
    pub(crate) fn windows_of(&self, time: i64, mut push: impl FnMut(i64, i64)) {
        match *self {
            Self::Tumble { size, offset } => {
                let start = floor_to(time, size, offset);
                push(start, start.saturating_add(size));
            }
            Self::Hop { slide, size, offset } => {
                let last = floor_to(time, slide, offset);
                let count = if time - last < size { (size - (time - last) - 1) / slide + 1 } else { 0 };
                for back in (0..count).rev() {
                    let start = last.saturating_sub(back * slide);
                    push(start, start.saturating_add(size));
                }
            }
            Self::Cumulate { step, size, offset } => {
                let start = floor_to(time, size, offset);
                for end in ((time - start) / step + 1)..=(size / step) {
                    push(start, start.saturating_add(end * step));
                }
            }
            Self::Session { gap } => push(time, time.saturating_add(gap)),
            Self::Count { .. } => {}
        }
    }
}

/// The largest multiple of `size`, moved by `offset`, that is not after `time`.
pub(crate) fn floor_to(time: i64, size: i64, offset: i64) -> i64 {
    let offset = offset.rem_euclid(size);
    time.saturating_sub(time.saturating_sub(offset).rem_euclid(size))
}

fn gcd(a: i64, b: i64) -> i64 {
    if b == 0 { a } else { gcd(b, a % b) }
}

/// The window call in `expr`, if there is one. Two different ones are an error.
pub(crate) fn find_call(exprs: &[Expr]) -> Result<Option<WindowCall>> {
    let mut found: Option<WindowCall> = None;
    for expr in exprs {
        expr.apply(|expr| {
            let Some(call) = WindowCall::read(expr)? else { return Ok(TreeNodeRecursion::Continue) };
            if found.as_ref().is_some_and(|found| *found != call) {
                return plan_err!(
                    "there are two different windows in one query; put one of them into a query of its own"
                );
            }
            found = Some(call);
            Ok(TreeNodeRecursion::Jump)
        })?;
    }
    Ok(found)
}

impl WindowCall {
    /// Reads a window call, if `expr` is one.
    pub(crate) fn read(expr: &Expr) -> Result<Option<Self>> {
        let Expr::ScalarFunction(call) = expr else { return Ok(None) };
        let name = call.func.name();
        if ![names::TUMBLE, names::HOP, names::CUMULATE, names::SESSION, names::COUNT].contains(&name) {
            return Ok(None);
        }
        let usage = usage(name);
        if name == names::COUNT {
            return Self::read_count(&call.args, usage).map(Some);
        }
        let lengths = if matches!(name, names::TUMBLE | names::SESSION) { 1 } else { 2 };
        let Some((time, rest)) = call.args.split_first().filter(|(_, rest)| rest.len() >= lengths) else {
            return plan_err!("{name}() has too few arguments; write {usage}");
        };
        let length = |at: usize| {
            let micros = interval_micros(&rest[at], usage)?;
            if micros <= 0 {
                return plan_err!("the lengths of {name}() must be positive, as in {usage}");
            }
            Ok(micros)
        };
        let offset = || rest.get(lengths).map_or(Ok(0), |expr| interval_micros(expr, usage));
        let kind = match name {
            names::TUMBLE => WindowKind::Tumble { size: length(0)?, offset: offset()? },
            names::HOP => WindowKind::Hop { slide: length(0)?, size: length(1)?, offset: offset()? },
            names::CUMULATE => WindowKind::Cumulate { step: length(0)?, size: length(1)?, offset: offset()? },
            _ => WindowKind::Session { gap: length(0)? },
        };
        match kind {
            WindowKind::Cumulate { step, size, .. } if size % step != 0 => {
                return plan_err!("the size of {name}() must be a multiple of its step, as in {usage}");
            }
            WindowKind::Hop { slide, size, .. } if size / gcd(slide, size) > MAX_PANES => {
                return plan_err!(
                    "{name}() would cut a window into more than {MAX_PANES} panes; choose a slide that divides the size"
                );
            }
            WindowKind::Cumulate { step, size, .. } if size / step > MAX_PANES => {
                return plan_err!(
                    "{name}() would cut a window into more than {MAX_PANES} steps; choose a longer step"
                );
            }
            _ => {}
        }
        let is_key = |expr: &&Expr| !matches!(expr, Expr::Literal(..));
        let keys = rest.get(1..).unwrap_or_default().iter().filter(is_key).cloned();
        let keys = if name == names::SESSION { keys.collect() } else { Vec::new() };
        Ok(Some(Self { kind, of: vec![time.clone()], keys }))
    }

    fn read_count(args: &[Expr], usage: &str) -> Result<Self> {
        let (Some(size), Some(of)) = (args.first(), args.get(1..=POSITION.len())) else {
            return plan_err!("count_window() takes the number of events in a window; write {usage}");
        };
        let size = constant(size)?.map(|size| size.cast_to(&DataType::Int64));
        let Some(Ok(ScalarValue::Int64(Some(size @ 1..)))) = size else {
            return plan_err!("count_window() takes a constant number of events, at least 1; write {usage}");
        };
        let is_key = |expr: &&Expr| !matches!(expr, Expr::Literal(..));
        let keys = args[1 + POSITION.len()..].iter().filter(is_key).cloned().collect();
        Ok(Self { kind: WindowKind::Count { size }, of: of.to_vec(), keys })
    }

    /// The time that is put into windows, of all but count windows.
    pub(crate) fn time(&self) -> Expr {
        cast(self.of[0].clone(), timestamp_type())
    }
}

/// Windows with more panes than this are refused: an event would be repeated too often.
const MAX_PANES: i64 = 10_000;

fn usage(name: &str) -> &'static str {
    match name {
        names::TUMBLE => "tumble(event_time, INTERVAL '1 minute')",
        names::HOP => "hop(event_time, INTERVAL '1 minute', INTERVAL '5 minutes') (the slide, then the size)",
        names::CUMULATE => {
            "cumulate(event_time, INTERVAL '1 hour', INTERVAL '1 day') (the step, then the size)"
        }
        names::COUNT => "count_window(100)",
        _ => "session(event_time, INTERVAL '5 minutes')",
    }
}

/// The length of a constant interval.
fn interval_micros(expr: &Expr, usage: &str) -> Result<i64> {
    let value = constant(expr)?;
    let length =
        match value.as_ref().map(|value| value.cast_to(&DataType::Interval(IntervalUnit::MonthDayNano))) {
            Some(Ok(ScalarValue::IntervalMonthDayNano(Some(length)))) => length,
            _ => return plan_err!("the lengths of a window must be constant intervals, as in {usage}"),
        };
    fixed_micros(length, usage)
}

/// Microseconds of an interval that has a fixed length: days of 24 hours are fine, months are not.
fn fixed_micros(length: IntervalMonthDayNano, usage: &str) -> Result<i64> {
    if length.months != 0 {
        return plan_err!(
            "the lengths of a window must be fixed; months and years are not. Calendar windows are possible with tumble(time, size, 'a time zone'); others as in {usage}"
        );
    }
    if length.nanoseconds % 1_000 != 0 {
        return plan_err!("the lengths of a window must be whole microseconds, as in {usage}");
    }
    Ok(i64::from(length.days) * 86_400_000_000 + length.nanoseconds / 1_000)
}

/// The value of an expression that needs no row.
pub(crate) fn constant(expr: &Expr) -> Result<Option<ScalarValue>> {
    if let Expr::Literal(value, _) = expr {
        return Ok(Some(value.clone()));
    }
    if expr.any_column_refs() {
        return Ok(None);
    }
    let physical = create_physical_expr(
        expr,
        &DFSchema::empty(),
        &ExecutionProps::new(),
        &PhysicalPlanningContext::default(),
    )?;
    let options = RecordBatchOptions::new().with_row_count(Some(1));
    let row =
        RecordBatch::try_new_with_options(Arc::new(arrow::datatypes::Schema::empty()), vec![], &options)?;
    Ok(Some(match physical.evaluate(&row)? {
        ColumnarValue::Scalar(value) => value,
        ColumnarValue::Array(values) => ScalarValue::try_from_array(&values, 0)?,
    }))
}

/// A window call as a function, so that the planner can type it. Only `tumble_window` can be evaluated.
#[derive(Debug, PartialEq, Eq, Hash)]
struct Marker {
    name: &'static str,
    signature: Signature,
}

impl Marker {
    fn new(name: &'static str) -> Self {
        Self { name, signature: Signature::user_defined(Volatility::Immutable) }
    }
}

impl ScalarUDFImpl for Marker {
    fn name(&self) -> &str {
        self.name
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, _: &[DataType]) -> Result<DataType> {
        Ok(if self.name == names::COUNT { DataType::Int64 } else { window_type() })
    }

    fn coerce_types(&self, arg_types: &[DataType]) -> Result<Vec<DataType>> {
        let usage = usage(self.name);
        if self.name == names::COUNT {
            return match arg_types.first() {
                Some(size) if size.is_integer() => Ok(arg_types.to_vec()),
                _ => plan_err!("count_window() takes the number of events in a window; write {usage}"),
            };
        }
        let Some((time, rest)) = arg_types.split_first() else {
            return plan_err!("{}() takes a time first; write {usage}", self.name);
        };
        if !matches!(
            time,
            DataType::Timestamp(..) | DataType::Date32 | DataType::Utf8 | DataType::Utf8View | DataType::Null
        ) {
            return plan_err!("{}() takes a timestamp first, not {time}; write {usage}", self.name);
        }
        let lengths = match self.name {
            names::SESSION => 1,
            names::TUMBLE => rest.len().min(2),
            _ => rest.len().min(3),
        };
        let is_length =
            |given: &DataType| matches!(given, DataType::Interval(_) | DataType::Utf8 | DataType::Utf8View);
        if let Some(wrong) = rest.iter().take(lengths).find(|given| !is_length(given)) {
            return plan_err!("the lengths of {}() are intervals, not {wrong}; write {usage}", self.name);
        }
        let interval = DataType::Interval(IntervalUnit::MonthDayNano);
        let coerced = rest
            .iter()
            .enumerate()
            .map(|(at, given)| if at >= lengths { given.clone() } else { interval.clone() });
        Ok(std::iter::once(timestamp_type()).chain(coerced).collect())
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let lengths = args.args[1..].iter().map(|arg| match arg {
            ColumnarValue::Scalar(ScalarValue::IntervalMonthDayNano(Some(length))) => {
                fixed_micros(*length, usage(self.name))
            }
            _ => exec_err!("the lengths of a window must be constant intervals"),
        });
        match (self.name, lengths.collect::<Result<Vec<_>>>().as_deref()) {
            (names::TUMBLE, Ok([size, offset @ ..])) if *size > 0 => {
                let kind = WindowKind::Tumble { size: *size, offset: offset.first().copied().unwrap_or(0) };
                let times = args.args[0].to_array(args.number_rows)?;
                let times = times.as_primitive::<TimestampMicrosecondType>();
                let starts: TimestampMicrosecondArray = times.unary(|time| {
                    let mut window_start = time;
                    kind.windows_of(time, |start, _| window_start = start);
                    window_start
                });
                let ends: TimestampMicrosecondArray = starts.unary(|start| start.saturating_add(*size));
                Ok(ColumnarValue::Array(Arc::new(window_array(starts, ends))))
            }
            _ => exec_err!(
                "{}() is possible in GROUP BY, in a SELECT list, and as a table function, but not here",
                self.name
            ),
        }
    }
}

pub(super) fn window_array(
    starts: TimestampMicrosecondArray,
    ends: TimestampMicrosecondArray,
) -> StructArray {
    let columns: Vec<ArrayRef> =
        vec![Arc::new(starts.with_timezone("UTC")), Arc::new(ends.with_timezone("UTC"))];
    StructArray::new(window_fields(), columns, None)
}

/// A part of a window: its start, its end, or its last millisecond.
#[derive(Debug, PartialEq, Eq, Hash)]
struct Part {
    name: &'static str,
    field: usize,
    before_us: i64,
    signature: Signature,
}

impl Part {
    fn new((name, field, before_us): (&'static str, usize, i64)) -> Self {
        let signature = Signature::user_defined(Volatility::Immutable);
        Self { name, field, before_us, signature }
    }
}

impl ScalarUDFImpl for Part {
    fn name(&self) -> &str {
        self.name
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, _: &[DataType]) -> Result<DataType> {
        Ok(timestamp_type())
    }

    fn coerce_types(&self, arg_types: &[DataType]) -> Result<Vec<DataType>> {
        match arg_types {
            [window] if *window == window_type() => Ok(arg_types.to_vec()),
            [DataType::Int64] => plan_err!(
                "a count window has no {}; min(event_time) and max(event_time) tell when its first and last event were",
                self.name
            ),
            _ => plan_err!(
                "{}() takes a window, as in {}(hop_window(event_time, INTERVAL '1 minute', INTERVAL '5 minutes'))",
                self.name,
                self.name
            ),
        }
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let windows = args.args[0].to_array(args.number_rows)?;
        let windows = windows.as_struct();
        let part = windows.column(self.field);
        let part = match windows.nulls() {
            Some(nulls) if nulls.null_count() > 0 => {
                arrow::compute::nullif(part, &arrow::array::BooleanArray::new(!nulls.inner(), None))?
            }
            _ => part.clone(),
        };
        if self.before_us == 0 {
            return Ok(ColumnarValue::Array(part));
        }
        let times: TimestampMicrosecondArray =
            part.as_primitive::<TimestampMicrosecondType>().unary(|time| time.saturating_sub(self.before_us));
        Ok(ColumnarValue::Array(Arc::new(times.with_timezone("UTC"))))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn windows(kind: &WindowKind, time: i64) -> Vec<(i64, i64)> {
        let mut found = Vec::new();
        kind.windows_of(time, |start, end| found.push((start, end)));
        found
    }

    fn kinds() -> impl Strategy<Value = WindowKind> {
        prop_oneof![
            (1i64..50, -60i64..60).prop_map(|(size, offset)| WindowKind::Tumble { size, offset }),
            (1i64..20, 1i64..50, -60i64..60).prop_map(|(slide, size, offset)| WindowKind::Hop {
                slide,
                size,
                offset
            }),
            (1i64..10, 1i64..8, -60i64..60).prop_map(|(step, n, offset)| WindowKind::Cumulate {
                step,
                size: step * n,
                offset
            }),
        ]
    }

    proptest! {
        /// A pane lies in the same windows wherever in it an event stands, and every window holds its events.
        #[test]
        fn panes_are_the_atoms_of_windows(kind in kinds(), time in -500i64..500) {
            let (length, offset) = kind.pane().expect("a pane");
            let found = windows(&kind, time);
            prop_assert_eq!(&found, &windows(&kind, floor_to(time, length, offset)));
            for (start, end) in found {
                prop_assert!(start <= time && time < end);
            }
        }

        /// Exactly the windows that hold the time are found.
        #[test]
        fn no_window_is_forgotten(slide in 1i64..20, size in 1i64..60, offset in -30i64..30, time in -300i64..300) {
            let expected: Vec<(i64, i64)> = (-50..50)
                .map(|n| n * slide + offset.rem_euclid(slide))
                .filter(|start| *start <= time && time < start + size)
                .map(|start| (start, start + size))
                .collect();
            let within = windows(&WindowKind::Hop { slide, size, offset }, time);
            let near = |w: &&(i64, i64)| w.0 > -50 * slide + 30 && w.0 < 49 * slide;
            prop_assert_eq!(
                within.iter().filter(near).collect::<Vec<_>>(),
                expected.iter().filter(near).collect::<Vec<_>>()
            );
        }
    }

    #[test]
    fn windows_grow_by_steps() {
        let kind = WindowKind::Cumulate { step: 5, size: 15, offset: 0 };
        assert_eq!(windows(&kind, 0), vec![(0, 5), (0, 10), (0, 15)]);
        assert_eq!(windows(&kind, 12), vec![(0, 15)]);
        assert_eq!(windows(&kind, -1), vec![(-15, 0)]);
    }
}
