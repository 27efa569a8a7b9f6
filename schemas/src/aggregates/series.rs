//! `time_series(value, time)`: all points of a group, from which increases, rates and durations are read.
//!
//! Points are sorted by time and unique by it: of several values at one time the greatest counts, whatever the order
//! of arrival. Rows without a value (NaN is none) or time are left out. Keeping the points is what makes the
//! answers exact when an event comes late and falls between two that were counted already; any summary would have to
//! guess there.
//!
//! Memory: 20 bytes per row while rows are gathered. A state has 8 bytes per point and its distance in time to the
//! point before, 3 to 4 bytes for distances of seconds: less than the 16 bytes of the two numbers.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, BinaryBuilder};
use arrow::datatypes::{DataType, Float64Type, TimestampMicrosecondType};
use datafusion::common::Result;
use datafusion::logical_expr::function::AccumulatorArgs;

use super::STATE_VERSION;
use super::arena::Arena;
use super::arguments::number_and_time;
use super::bytes::{Reader, put, unzigzag, zigzag};
use super::groups::{Definition, GroupStates};

/// A value at a time.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(super) struct Point {
    /// Microseconds since 1970.
    pub(super) time: i64,
    /// Not NaN.
    pub(super) value: f64,
}

/// Sorts by time and keeps the greatest value of each.
fn tidy(points: &mut [Point]) -> &[Point] {
    points.sort_unstable_by(|a, b| a.time.cmp(&b.time).then(b.value.total_cmp(&a.value)));
    let mut kept = 0;
    for i in 0..points.len() {
        if kept == 0 || points[kept - 1].time != points[i].time {
            points[kept] = points[i];
            kept += 1;
        }
    }
    &points[..kept]
}

/// Writes points that are [`tidy`]: version, then per point its distance in time and its value.
fn encode(points: &[Point], out: &mut Vec<u8>) {
    out.clear();
    out.push(STATE_VERSION);
    let mut last = None;
    for point in points {
        match last {
            None => put(out, zigzag(point.time)),
            Some(last) => put(out, point.time.abs_diff(last)),
        }
        out.extend_from_slice(&point.value.to_le_bytes());
        last = Some(point.time);
    }
}

/// Reads a series into `points`.
pub(super) fn decode(series: &[u8], points: &mut Vec<Point>) -> Result<()> {
    points.clear();
    let mut reader = Reader::open("time series", series, STATE_VERSION)?;
    let mut last = None;
    while !reader.is_empty() {
        let number = reader.next()?;
        let time = match last {
            None => unzigzag(number),
            Some(last) => i64::saturating_add_unsigned(last, number),
        };
        points.push(Point { time, value: reader.next_f64()? });
        last = Some(time);
    }
    Ok(())
}

/// The aggregate.
#[derive(Debug, PartialEq, Eq, Hash)]
pub(super) struct TimeSeries;

impl Definition for TimeSeries {
    fn name(&self) -> &'static str {
        "time_series"
    }

    fn coerce(&self, arguments: &[DataType]) -> Result<Vec<DataType>> {
        number_and_time(self.name(), "time_series(energy, event_time)", true, arguments)
    }

    fn return_type(&self, _: &[DataType]) -> Result<DataType> {
        Ok(DataType::Binary)
    }

    fn state(&self, _: &[DataType]) -> Vec<(&'static str, DataType)> {
        vec![("series", DataType::Binary)]
    }

    fn groups(&self, _: &AccumulatorArgs) -> Result<Box<dyn GroupStates>> {
        Ok(Box::new(Series::default()))
    }
}

#[derive(Debug, Default)]
struct Series {
    points: Arena<Point>,
}

impl GroupStates for Series {
    fn resize(&mut self, _: usize) {}

    fn update(&mut self, values: &[ArrayRef], groups: &[usize]) -> Result<()> {
        let times = values[1].as_primitive::<TimestampMicrosecondType>();
        let values = values[0].as_primitive::<Float64Type>();
        for (row, group) in groups.iter().enumerate() {
            if values.is_valid(row) && times.is_valid(row) && !values.value(row).is_nan() {
                self.points.push(*group, Point { time: times.value(row), value: values.value(row) });
            }
        }
        Ok(())
    }

    fn merge(&mut self, states: &[ArrayRef], groups: &[usize]) -> Result<()> {
        let mut points = Vec::new();
        for (series, group) in states[0].as_binary::<i32>().iter().zip(groups) {
            if let Some(series) = series {
                decode(series, &mut points)?;
                points.iter().for_each(|point| self.points.push(*group, *point));
            }
        }
        Ok(())
    }

    fn states(&mut self, n: usize) -> Result<Vec<ArrayRef>> {
        Ok(vec![self.values(n)?])
    }

    fn values(&mut self, n: usize) -> Result<ArrayRef> {
        let mut grouped = self.points.grouped(n);
        let mut series = BinaryBuilder::with_capacity(n, grouped.len() * 12);
        let mut bytes = Vec::new();
        for group in 0..n {
            match tidy(grouped.group(group)) {
                [] => series.append_null(),
                points => {
                    encode(points, &mut bytes);
                    series.append_value(&bytes);
                }
            }
        }
        Ok(Arc::new(series.finish()))
    }

    fn forget(&mut self, n: usize) {
        self.points.forget(n);
    }

    fn size(&self) -> usize {
        size_of_val(self) + self.points.size()
    }

    fn fresh(&self) -> Box<dyn GroupStates> {
        Box::new(Self::default())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_series_comes_back_sorted_and_unique(
            points in prop::collection::vec((prop_oneof![Just(i64::MIN), Just(i64::MAX), -9i64..9], -9i32..9), 0..40),
        ) {
            let mut points: Vec<Point> =
                points.into_iter().map(|(time, value)| Point { time, value: value.into() }).collect();
            let mut greatest = std::collections::BTreeMap::<i64, f64>::new();
            for point in &points {
                let kept = greatest.entry(point.time).or_insert(point.value);
                *kept = kept.max(point.value);
            }
            let (mut bytes, mut back) = (Vec::new(), Vec::new());
            encode(tidy(&mut points), &mut bytes);
            decode(&bytes, &mut back).expect("reads");
            let expected: Vec<Point> = greatest.into_iter().map(|(time, value)| Point { time, value }).collect();
            prop_assert_eq!(back, expected);
        }
    }

    #[test]
    fn bytes_that_are_no_series_are_refused() {
        for bytes in [&[][..], &[7], &[1, 0x80], &[1, 2, 0, 0]] {
            assert!(decode(bytes, &mut Vec::new()).is_err(), "{bytes:?}");
        }
    }
}
