//! The SQL functions that every session of ours knows beyond DataFusion's own.

use std::sync::Arc;

use arrow::array::{ArrayRef, AsArray, TimestampMicrosecondArray};
use arrow::datatypes::{
    DataType, Field, FieldRef, IntervalMonthDayNano, IntervalUnit, TimestampMicrosecondType,
};
use datafusion::common::{Result, ScalarValue, exec_err, plan_err};
use datafusion::logical_expr::{
    ColumnarValue, Expr, ReturnFieldArgs, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature, Volatility, cast, lit,
};

use crate::layout::timestamp_type;

/// All scalar functions to register.
pub fn scalar_functions() -> Vec<Arc<ScalarUDF>> {
    vec![Arc::new(ScalarUDF::from(Tumble::new()))]
}

/// `tumble(time, size)` with lengths in microseconds; windows start at multiples of the size plus `offset`.
pub(crate) fn tumble_micros(time: Expr, size: i64, offset: i64) -> Expr {
    let interval = |micros: i64| {
        let length = IntervalMonthDayNano::new(0, 0, micros.saturating_mul(1_000));
        lit(ScalarValue::IntervalMonthDayNano(Some(length)))
    };
    let start = |time| ScalarUDF::from(Tumble::new()).call(vec![time, interval(size)]);
    if offset == 0 {
        return start(time);
    }
    cast(start(time - interval(offset)) + interval(offset), timestamp_type())
}

/// `tumble(time, size)`: the start of the window of length `size` that `time` lies in.
///
/// Windows are aligned to 1970-01-01T00:00:00Z and half open: a time on a boundary starts the next window.
#[derive(Debug, PartialEq, Eq, Hash)]
struct Tumble {
    signature: Signature,
}

impl Tumble {
    fn new() -> Self {
        Self { signature: Signature::user_defined(Volatility::Immutable) }
    }
}

impl ScalarUDFImpl for Tumble {
    fn name(&self) -> &str {
        "tumble"
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, _: &[DataType]) -> Result<DataType> {
        Ok(timestamp_type())
    }

    fn return_field_from_args(&self, args: ReturnFieldArgs) -> Result<FieldRef> {
        // A wrong size is an error of the query, to be said when it is planned.
        if let Some(Some(ScalarValue::IntervalMonthDayNano(Some(size)))) = args.scalar_arguments.get(1) {
            fixed_micros(*size)?;
        }
        let nullable = args.arg_fields.first().is_none_or(|time| time.is_nullable());
        Ok(Arc::new(Field::new(self.name(), timestamp_type(), nullable)))
    }

    fn coerce_types(&self, arg_types: &[DataType]) -> Result<Vec<DataType>> {
        match arg_types {
            [DataType::Timestamp(..) | DataType::Date32 | DataType::Utf8 | DataType::Utf8View, _] => {
                Ok(vec![timestamp_type(), DataType::Interval(IntervalUnit::MonthDayNano)])
            }
            [other, _] => plan_err!("tumble() takes a timestamp as its first argument, not {other}"),
            _ => plan_err!(
                "tumble() takes two arguments, a timestamp and a size: tumble(event_time, INTERVAL '1 minute')"
            ),
        }
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let [time, size] = args.args.as_slice() else {
            return exec_err!("tumble() takes two arguments");
        };
        let ColumnarValue::Scalar(ScalarValue::IntervalMonthDayNano(Some(size))) = size else {
            return exec_err!("the size of tumble() must be a constant interval");
        };
        let size_us = fixed_micros(*size)?;
        match time {
            ColumnarValue::Scalar(ScalarValue::TimestampMicrosecond(time, _)) => {
                let start = time.map(|t| window_start(t, size_us));
                Ok(ColumnarValue::Scalar(ScalarValue::TimestampMicrosecond(start, Some("UTC".into()))))
            }
            time => {
                let times = time.to_array(args.number_rows)?;
                let times = times.as_primitive::<TimestampMicrosecondType>();
                let starts: TimestampMicrosecondArray = times.unary(|t| window_start(t, size_us));
                Ok(ColumnarValue::Array(Arc::new(starts.with_timezone("UTC")) as ArrayRef))
            }
        }
    }
}

fn window_start(time_us: i64, size_us: i64) -> i64 {
    time_us.saturating_sub(time_us.rem_euclid(size_us))
}

/// The length of an interval that has one: days of 24 hours are fine, months are not.
fn fixed_micros(size: IntervalMonthDayNano) -> Result<i64> {
    const DAY_US: i64 = 86_400_000_000;
    if size.months != 0 {
        return plan_err!("the size of tumble() must have a fixed length; months and years do not");
    }
    let us = i64::from(size.days) * DAY_US + size.nanoseconds / 1_000;
    if us <= 0 || size.nanoseconds % 1_000 != 0 {
        return plan_err!("the size of tumble() must be positive and a whole number of microseconds");
    }
    Ok(us)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_window_starts_at_or_before_its_events_also_before_1970() {
        assert_eq!(window_start(59_999_999, 60_000_000), 0);
        assert_eq!(window_start(60_000_000, 60_000_000), 60_000_000);
        assert_eq!(window_start(-1, 60_000_000), -60_000_000);
    }
}
