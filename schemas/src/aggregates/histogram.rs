//! `histogram(value, lo, hi, buckets)`: how many values lie in each of `buckets` equal steps from `lo` to `hi`.
//!
//! The answer is a list of `buckets + 2` counts: first the values below `lo`, then one count per step (a step holds
//! its lower bound, not its upper), at the end the values at or above `hi`. Nulls and NaN are not counted; a group
//! without values has zeros. `lo`, `hi` and `buckets` are constants.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, Int64Array, ListArray};
use arrow::buffer::OffsetBuffer;
use arrow::datatypes::{DataType, Field, Float64Type, Int64Type};
use datafusion::common::{Result, ScalarValue, exec_err, plan_err};
use datafusion::logical_expr::function::AccumulatorArgs;
use datafusion::physical_expr::expressions::Literal;

use super::arguments::{is_number, wrong};
use super::groups::{Definition, GroupStates};

const EXAMPLE: &str = "histogram(temperature, 0, 100, 20)";
/// More steps than this make a list that nobody reads, per group.
const MOST_BUCKETS: i64 = 10_000;

/// The aggregate.
#[derive(Debug, PartialEq, Eq, Hash)]
pub(super) struct Histogram;

fn list_type() -> DataType {
    DataType::List(Arc::new(Field::new_list_field(DataType::Int64, true)))
}

impl Definition for Histogram {
    fn name(&self) -> &'static str {
        "histogram"
    }

    fn coerce(&self, arguments: &[DataType]) -> Result<Vec<DataType>> {
        match arguments {
            [value, lo, hi, buckets] if [value, lo, hi, buckets].into_iter().all(is_number) => {
                Ok(vec![DataType::Float64, DataType::Float64, DataType::Float64, DataType::Int64])
            }
            _ => wrong(
                self.name(),
                "a number, a lower bound, an upper bound and a number of buckets",
                EXAMPLE,
                arguments,
            ),
        }
    }

    fn return_type(&self, _: &[DataType]) -> Result<DataType> {
        Ok(list_type())
    }

    fn state(&self, _: &[DataType]) -> Vec<(&'static str, DataType)> {
        vec![("counts", list_type())]
    }

    fn groups(&self, args: &AccumulatorArgs) -> Result<Box<dyn GroupStates>> {
        let constant =
            |i: usize| args.exprs.get(i).and_then(|e| e.downcast_ref::<Literal>()).map(Literal::value);
        match (constant(1), constant(2), constant(3)) {
            (
                Some(ScalarValue::Float64(Some(lo))),
                Some(ScalarValue::Float64(Some(hi))),
                Some(ScalarValue::Int64(Some(buckets))),
            ) => Ok(Box::new(Histograms::new(Scale::new(*lo, *hi, *buckets)?))),
            _ => plan_err!(
                "the bounds and the number of buckets of histogram() must be constants, as in {EXAMPLE}"
            ),
        }
    }
}

/// Where a value is counted.
#[derive(Debug, Clone, Copy)]
struct Scale {
    lo: f64,
    hi: f64,
    buckets: usize,
}

impl Scale {
    fn new(lo: f64, hi: f64, buckets: i64) -> Result<Self> {
        if !(lo < hi && lo.is_finite() && hi.is_finite() && (hi - lo).is_finite()) {
            return plan_err!(
                "histogram() needs a lower bound below its upper bound, not {lo} and {hi}; as in {EXAMPLE}"
            );
        }
        if !(1..=MOST_BUCKETS).contains(&buckets) {
            return plan_err!(
                "histogram() makes 1 to {MOST_BUCKETS} buckets, not {buckets}; as in {EXAMPLE}"
            );
        }
        Ok(Self { lo, hi, buckets: buckets as usize })
    }

    fn slots(&self) -> usize {
        self.buckets + 2
    }

    /// None for NaN.
    fn slot(&self, value: f64) -> Option<usize> {
        if value < self.lo {
            return Some(0);
        }
        if value >= self.hi {
            return Some(self.buckets + 1);
        }
        let step = (value - self.lo) / (self.hi - self.lo) * self.buckets as f64;
        // Rounding may lift a value just below `hi` out of the last step.
        (!value.is_nan()).then_some((step as usize).min(self.buckets - 1) + 1)
    }
}

/// Counts of all groups, one after the other. Memory: 8 bytes per slot and group.
#[derive(Debug)]
struct Histograms {
    scale: Scale,
    counts: Vec<i64>,
}

impl Histograms {
    fn new(scale: Scale) -> Self {
        Self { scale, counts: Vec::new() }
    }
}

impl GroupStates for Histograms {
    fn resize(&mut self, groups: usize) {
        self.counts.resize(self.counts.len().max(groups * self.scale.slots()), 0);
    }

    fn update(&mut self, values: &[ArrayRef], groups: &[usize]) -> Result<()> {
        for (value, group) in values[0].as_primitive::<Float64Type>().iter().zip(groups) {
            if let Some(slot) = value.and_then(|value| self.scale.slot(value)) {
                self.counts[group * self.scale.slots() + slot] += 1;
            }
        }
        Ok(())
    }

    fn merge(&mut self, states: &[ArrayRef], groups: &[usize]) -> Result<()> {
        let slots = self.scale.slots();
        for (counts, group) in states[0].as_list::<i32>().iter().zip(groups) {
            let Some(counts) = counts else { continue };
            if counts.len() != slots {
                return exec_err!(
                    "a histogram of {} counts cannot be merged with one of {slots}",
                    counts.len()
                );
            }
            let own = &mut self.counts[group * slots..(group + 1) * slots];
            own.iter_mut().zip(counts.as_primitive::<Int64Type>().values()).for_each(|(own, n)| *own += n);
        }
        Ok(())
    }

    fn states(&mut self, n: usize) -> Result<Vec<ArrayRef>> {
        Ok(vec![self.values(n)?])
    }

    fn values(&mut self, n: usize) -> Result<ArrayRef> {
        let slots = self.scale.slots();
        let counts = Int64Array::from(self.counts[..n * slots].to_vec());
        let offsets = OffsetBuffer::from_repeated_length(slots, n);
        let field = Arc::new(Field::new_list_field(DataType::Int64, true));
        Ok(Arc::new(ListArray::try_new(field, offsets, Arc::new(counts), None)?))
    }

    fn forget(&mut self, n: usize) {
        self.counts.drain(..n * self.scale.slots());
    }

    fn size(&self) -> usize {
        size_of_val(self) + self.counts.capacity() * 8
    }

    fn fresh(&self) -> Box<dyn GroupStates> {
        Box::new(Self::new(self.scale))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bounds_belong_to_the_step_above() {
        let scale = Scale::new(0.0, 10.0, 5).expect("a scale");
        for (value, slot) in [
            (-0.1, Some(0)),
            (0.0, Some(1)),
            (1.9, Some(1)),
            (2.0, Some(2)),
            (9.999, Some(5)),
            (10.0, Some(6)),
            (f64::INFINITY, Some(6)),
            (f64::NEG_INFINITY, Some(0)),
            (f64::NAN, None),
        ] {
            assert_eq!(scale.slot(value), slot, "{value}");
        }
        let thirds = Scale::new(0.0, 0.3, 3).expect("a scale");
        assert_eq!(thirds.slot(0.3f64.next_down()), Some(3));
    }
}
