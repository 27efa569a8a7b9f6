//! `slope(value, time)`: the change of a value per second, by least squares over all points of the group.
//!
//! Rows without a value or a time are left out; fewer than two different times give null. Seconds since 1970 have
//! ten digits before the point and their squares twenty, more than a double holds. So times are taken relative
//! to the group's earliest, and sums relative to means (Chan, Golub, LeVeque: *Updating formulae and a pairwise
//! algorithm for computing sample variances*, 1979), which merge without cancellation.
//! Memory: 48 bytes per group.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, Float64Array, Int64Array, TimestampMicrosecondArray};
use arrow::datatypes::{DataType, Float64Type, Int64Type, TimestampMicrosecondType};
use datafusion::common::Result;
use datafusion::logical_expr::function::AccumulatorArgs;

use super::arguments::number_and_time;
use super::groups::{Definition, GroupStates};
use crate::layout::timestamp_type;

/// The aggregate.
#[derive(Debug, PartialEq, Eq, Hash)]
pub(super) struct Slope;

impl Definition for Slope {
    fn name(&self) -> &'static str {
        "slope"
    }

    fn coerce(&self, arguments: &[DataType]) -> Result<Vec<DataType>> {
        number_and_time(self.name(), "slope(temperature, event_time)", false, arguments)
    }

    fn return_type(&self, _: &[DataType]) -> Result<DataType> {
        Ok(DataType::Float64)
    }

    fn state(&self, _: &[DataType]) -> Vec<(&'static str, DataType)> {
        vec![
            ("count", DataType::Int64),
            ("origin", timestamp_type()),
            ("mean_time", DataType::Float64),
            ("mean_value", DataType::Float64),
            ("time_squares", DataType::Float64),
            ("products", DataType::Float64),
        ]
    }

    fn groups(&self, _: &AccumulatorArgs) -> Result<Box<dyn GroupStates>> {
        Ok(Box::new(Slopes::default()))
    }
}

/// The moments of a set of points.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
struct Moments {
    count: i64,
    /// The earliest time, microseconds since 1970.
    origin: i64,
    /// The mean time, in seconds after the origin.
    mean_time: f64,
    mean_value: f64,
    /// The sum of squared distances from the mean time.
    time_squares: f64,
    /// The sum of the products of both distances from the means.
    products: f64,
}

impl Moments {
    fn of(time: i64, value: f64) -> Self {
        Self { count: 1, origin: time, mean_value: value, ..Self::default() }
    }

    /// The moments of both sets together.
    fn merge(self, other: Self) -> Self {
        if self.count == 0 {
            return other;
        }
        if other.count == 0 {
            return self;
        }
        let (a, b) = if self.origin <= other.origin { (self, other) } else { (other, self) };
        let b_mean_time = b.mean_time + b.origin.abs_diff(a.origin) as f64 / 1e6;
        let (time_step, value_step) = (b_mean_time - a.mean_time, b.mean_value - a.mean_value);
        let count = (a.count + b.count) as f64;
        let share = b.count as f64 / count;
        let weight = a.count as f64 * share;
        Self {
            count: a.count + b.count,
            origin: a.origin,
            mean_time: a.mean_time + time_step * share,
            mean_value: a.mean_value + value_step * share,
            time_squares: a.time_squares + b.time_squares + time_step * time_step * weight,
            products: a.products + b.products + time_step * value_step * weight,
        }
    }

    fn slope(&self) -> Option<f64> {
        (self.time_squares > 0.0).then(|| self.products / self.time_squares)
    }
}

#[derive(Debug, Default)]
struct Slopes {
    moments: Vec<Moments>,
}

impl GroupStates for Slopes {
    fn resize(&mut self, groups: usize) {
        self.moments.resize(groups.max(self.moments.len()), Moments::default());
    }

    fn update(&mut self, values: &[ArrayRef], groups: &[usize]) -> Result<()> {
        let times = values[1].as_primitive::<TimestampMicrosecondType>();
        let values = values[0].as_primitive::<Float64Type>();
        for (row, group) in groups.iter().enumerate() {
            if values.is_valid(row) && times.is_valid(row) {
                let moments = &mut self.moments[*group];
                *moments = moments.merge(Moments::of(times.value(row), values.value(row)));
            }
        }
        Ok(())
    }

    fn merge(&mut self, states: &[ArrayRef], groups: &[usize]) -> Result<()> {
        let counts = states[0].as_primitive::<Int64Type>();
        let origins = states[1].as_primitive::<TimestampMicrosecondType>();
        let numbers = |i: usize| states[i].as_primitive::<Float64Type>();
        let (mean_times, mean_values, squares, products) = (numbers(2), numbers(3), numbers(4), numbers(5));
        for (row, group) in groups.iter().enumerate() {
            if counts.is_null(row) || counts.value(row) <= 0 {
                continue;
            }
            let other = Moments {
                count: counts.value(row),
                origin: origins.value(row),
                mean_time: mean_times.value(row),
                mean_value: mean_values.value(row),
                time_squares: squares.value(row),
                products: products.value(row),
            };
            self.moments[*group] = self.moments[*group].merge(other);
        }
        Ok(())
    }

    fn states(&mut self, n: usize) -> Result<Vec<ArrayRef>> {
        let moments = &self.moments[..n];
        let number = |part: fn(&Moments) -> f64| -> ArrayRef {
            Arc::new(Float64Array::from_iter_values(moments.iter().map(part)))
        };
        let origins = TimestampMicrosecondArray::from_iter_values(moments.iter().map(|m| m.origin));
        Ok(vec![
            Arc::new(Int64Array::from_iter_values(moments.iter().map(|m| m.count))),
            Arc::new(origins.with_timezone("UTC")),
            number(|m| m.mean_time),
            number(|m| m.mean_value),
            number(|m| m.time_squares),
            number(|m| m.products),
        ])
    }

    fn values(&mut self, n: usize) -> Result<ArrayRef> {
        Ok(Arc::new(self.moments[..n].iter().map(Moments::slope).collect::<Float64Array>()))
    }

    fn forget(&mut self, n: usize) {
        self.moments.drain(..n);
    }

    fn size(&self) -> usize {
        size_of_val(self) + self.moments.capacity() * size_of::<Moments>()
    }

    fn fresh(&self) -> Box<dyn GroupStates> {
        Box::new(Self::default())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const NOW: i64 = 1_795_000_000_000_000;

    fn all(points: &[(i64, f64)]) -> Moments {
        points.iter().fold(Moments::default(), |m, (time, value)| m.merge(Moments::of(*time, *value)))
    }

    #[test]
    fn a_line_of_microseconds_in_this_century_keeps_its_slope() {
        let points: Vec<(i64, f64)> =
            (0..1000).map(|i| (NOW + i * 7, 20.0 + i as f64 * 7e-6 * 3.5)).collect();
        let slope = all(&points).slope().expect("a slope");
        assert!((slope - 3.5).abs() < 1e-6, "{slope}");
        assert_eq!(all(&points[..1]).slope(), None);
        assert_eq!(all(&[(NOW, 1.0), (NOW, 2.0)]).slope(), None);
    }

    proptest! {
        #[test]
        fn merging_is_the_same_in_any_order_within_rounding(
            points in prop::collection::vec((0i64..3_600_000_000, -1e3f64..1e3), 2..60),
            at in 0usize..60,
        ) {
            let points: Vec<(i64, f64)> = points.into_iter().map(|(t, v)| (NOW + t, v)).collect();
            let (left, right) = points.split_at(at.min(points.len()));
            let (left, right) = (all(left), all(right));
            let (ab, ba, whole) = (left.merge(right), right.merge(left), all(&points));
            prop_assert_eq!(ab.origin, whole.origin);
            let exact = points.iter().map(|p| (p.0 - NOW) as f64 / 1e6);
            let mean = exact.clone().sum::<f64>() / points.len() as f64;
            prop_assert!((ab.mean_time + (ab.origin - NOW) as f64 / 1e6 - mean).abs() < 1e-9 * mean.abs().max(1.0));
            for other in [ba, whole] {
                prop_assert!((ab.time_squares - other.time_squares).abs() <= 1e-9 * ab.time_squares.max(1.0));
                prop_assert!((ab.products - other.products).abs() <= 1e-6 * ab.products.abs().max(1e3));
            }
        }
    }
}
