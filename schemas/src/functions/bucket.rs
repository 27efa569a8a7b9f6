//! `tumble`, `tumble_end` and `time_bucket`: the window that a time lies in.

use std::sync::Arc;

use arrow::array::{ArrayRef, AsArray, TimestampMicrosecondArray};
use arrow::datatypes::{
    DataType, Field, FieldRef, IntervalMonthDayNano, IntervalUnit, TimestampMicrosecondType,
};
use datafusion::common::{Result, ScalarValue, exec_err, plan_err};
use datafusion::logical_expr::{
    ColumnarValue, Expr, ReturnFieldArgs, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature,
    Volatility, lit,
};

use super::windows::Windows;
use crate::layout::timestamp_type;

/// The functions of this file.
pub(super) fn functions() -> Vec<Arc<ScalarUDF>> {
    [Kind::Tumble, Kind::TumbleEnd, Kind::TimeBucket].into_iter().map(udf).collect()
}

/// A call of `time_bucket`.
pub(crate) fn time_bucket(args: Vec<Expr>) -> Expr {
    udf(Kind::TimeBucket).call(args)
}

/// The start of the window that `time` lies in; lengths in microseconds.
pub(crate) fn tumble_micros(time: Expr, size: i64, offset: i64) -> Expr {
    let interval = |micros: i64| {
        let length = IntervalMonthDayNano::new(0, 0, micros.saturating_mul(1_000));
        lit(ScalarValue::IntervalMonthDayNano(Some(length)))
    };
    let mut args = vec![time, interval(size)];
    if offset != 0 {
        args.push(interval(offset));
    }
    udf(Kind::Tumble).call(args)
}

/// Whether a function of this name takes a window's size and time and knows its [`Windows`]; and at which
/// argument the size stands.
pub(crate) fn size_position(function: &str) -> Option<usize> {
    match function {
        "tumble" | "tumble_end" => Some(1),
        "time_bucket" => Some(0),
        _ => None,
    }
}

/// The windows of a call whose constant arguments are known: `size`, then what follows time and size.
pub(crate) fn windows(function: &str, size: &ScalarValue, extras: &[ScalarValue]) -> Result<Windows> {
    let size = interval(function, size)?;
    match function {
        "tumble" | "tumble_end" => Windows::tumble(size, extras),
        _ => Windows::time_bucket(size, extras),
    }
}

fn interval(function: &str, size: &ScalarValue) -> Result<IntervalMonthDayNano> {
    match size.cast_to(&DataType::Interval(IntervalUnit::MonthDayNano))? {
        ScalarValue::IntervalMonthDayNano(Some(size)) => Ok(size),
        _ => plan_err!("the size of {function}() must be an interval, not null"),
    }
}

/// The types that the arguments `(time, size, extras...)` are cast to; `time_at` is 0 or 1.
pub(crate) fn coerce(
    function: &str,
    example: &str,
    time_at: usize,
    types: &[DataType],
) -> Result<Vec<DataType>> {
    if !(2..=5).contains(&types.len()) {
        return plan_err!(
            "{function}() takes a timestamp and a size, then maybe an offset or a time zone: {example}"
        );
    }
    let coerced = types.iter().enumerate().map(|(at, given)| match given {
        DataType::Timestamp(..) | DataType::Date32 | DataType::Date64 | DataType::Null if at == time_at => {
            Ok(timestamp_type())
        }
        DataType::Utf8 | DataType::Utf8View | DataType::LargeUtf8 if at == time_at => Ok(timestamp_type()),
        other if at == time_at => plan_err!(
            "{function}() takes a timestamp as its {} argument, not {other}: {example}",
            ["first", "second"][time_at]
        ),
        DataType::Interval(_) => Ok(DataType::Interval(IntervalUnit::MonthDayNano)),
        DataType::Utf8 | DataType::Utf8View | DataType::LargeUtf8 if at < 2 => {
            Ok(DataType::Interval(IntervalUnit::MonthDayNano))
        }
        DataType::Utf8 | DataType::Utf8View | DataType::LargeUtf8 | DataType::Null if at >= 2 => {
            Ok(DataType::Utf8)
        }
        DataType::Timestamp(..) | DataType::Date32 if at >= 2 => Ok(timestamp_type()),
        other => plan_err!("{function}() takes an interval as its size, not {other}: {example}"),
    });
    coerced.collect()
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Kind {
    /// `tumble(time, size [, offset | zone]...)`: the start of the window.
    Tumble,
    /// `tumble_end(time, size [, offset | zone]...)`: its end.
    TumbleEnd,
    /// `time_bucket(size, time [, offset | origin | zone]...)`: the start of the bucket.
    TimeBucket,
}

fn udf(kind: Kind) -> Arc<ScalarUDF> {
    let signature = Signature::user_defined(Volatility::Immutable);
    let names = match kind {
        Kind::Tumble | Kind::TumbleEnd => ["time", "size", "timezone"],
        Kind::TimeBucket => ["bucket_width", "ts", "timezone"],
    };
    let signature = signature.with_parameter_names(names.to_vec()).expect("the names differ");
    Arc::new(ScalarUDF::from(Window { kind, signature }))
}

#[derive(Debug, PartialEq, Eq, Hash)]
struct Window {
    kind: Kind,
    signature: Signature,
}

impl Window {
    fn time_at(&self) -> usize {
        usize::from(self.kind == Kind::TimeBucket)
    }

    fn example(&self) -> &'static str {
        match self.kind {
            Kind::Tumble => "tumble(event_time, INTERVAL '1 minute')",
            Kind::TumbleEnd => "tumble_end(event_time, INTERVAL '1 minute')",
            Kind::TimeBucket => "time_bucket(INTERVAL '1 minute', event_time)",
        }
    }

    fn windows(&self, constants: &[&ScalarValue]) -> Result<Windows> {
        let extras: Vec<ScalarValue> = constants[2..].iter().map(|value| (*value).clone()).collect();
        windows(self.name(), constants[1 - self.time_at()], &extras)
    }

    fn of(&self, windows: &Windows, time_us: i64) -> i64 {
        if self.kind == Kind::TumbleEnd { windows.end(time_us) } else { windows.start(time_us) }
    }
}

impl ScalarUDFImpl for Window {
    fn name(&self) -> &str {
        match self.kind {
            Kind::Tumble => "tumble",
            Kind::TumbleEnd => "tumble_end",
            Kind::TimeBucket => "time_bucket",
        }
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, _: &[DataType]) -> Result<DataType> {
        Ok(timestamp_type())
    }

    fn return_field_from_args(&self, args: ReturnFieldArgs) -> Result<FieldRef> {
        // What is wrong with a constant is an error of the query, to be said when it is planned.
        let time_at = self.time_at();
        let null = ScalarValue::Null;
        let given = args.scalar_arguments.iter().enumerate();
        let constants: Option<Vec<&ScalarValue>> =
            given.map(|(at, value)| if at == time_at { Some(&null) } else { *value }).collect();
        if let Some(constants) = constants {
            self.windows(&constants)?;
        }
        let nullable = args.arg_fields.get(time_at).is_none_or(|time| time.is_nullable());
        Ok(Arc::new(Field::new(self.name(), timestamp_type(), nullable)))
    }

    fn coerce_types(&self, arg_types: &[DataType]) -> Result<Vec<DataType>> {
        coerce(self.name(), self.example(), self.time_at(), arg_types)
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let null = ScalarValue::Null;
        let mut constants = Vec::with_capacity(args.args.len());
        for (at, value) in args.args.iter().enumerate() {
            match value {
                _ if at == self.time_at() => constants.push(&null),
                ColumnarValue::Scalar(value) => constants.push(value),
                ColumnarValue::Array(_) => {
                    return exec_err!("all arguments of {}() but the time must be constant", self.name());
                }
            }
        }
        let windows = self.windows(&constants)?;
        match &args.args[self.time_at()] {
            ColumnarValue::Scalar(ScalarValue::TimestampMicrosecond(time, _)) => {
                let time = time.map(|time| self.of(&windows, time));
                Ok(ColumnarValue::Scalar(ScalarValue::TimestampMicrosecond(time, Some("UTC".into()))))
            }
            time => {
                let times = time.to_array(args.number_rows)?;
                let times = times.as_primitive::<TimestampMicrosecondType>();
                // Neighbours lie mostly in one window, and calendars are slow.
                let (mut from, mut to) = (i64::MAX, i64::MIN);
                let found = times.iter().map(|time| {
                    let time = time?;
                    if !(from..to).contains(&time) {
                        (from, to) = windows.bounds(time);
                    }
                    Some(if self.kind == Kind::TumbleEnd { to } else { from })
                });
                let found: TimestampMicrosecondArray = found.collect();
                Ok(ColumnarValue::Array(Arc::new(found.with_timezone("UTC")) as ArrayRef))
            }
        }
    }
}
