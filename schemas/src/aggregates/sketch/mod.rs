//! `percentile_sketch(value)`: the distribution of a group's values, from which any percentile is read.
//!
//! Values are counted in buckets whose bounds grow with the value: 64 equal steps from each power of two to the
//! next, as an HDR histogram has them. A bucket answers by its middle, so the relative error is at most
//! **1/128 (0.79%)** for every finite value of at least 2.3e-308 in size; smaller ones count as zero. In IEEE 754 the
//! bucket of a value is its sign, exponent and six bits of its mantissa: the upper bits of the number as it stands.
//!
//! Few or many values, the sketch is the same thing: keys and counts, in ascending order. So merging is adding
//! counts, exact in any order, and equal values have equal bytes. DDSketch (Masson, Rim, Lee; VLDB 2019) proves
//! the error bound for such buckets.

mod buckets;
mod runs;

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, BinaryBuilder};
use arrow::datatypes::{DataType, Float64Type};
use datafusion::common::Result;
use datafusion::logical_expr::function::AccumulatorArgs;

pub use self::buckets::RELATIVE_ERROR;
pub(super) use self::buckets::percentile;

use self::buckets::key;
use self::runs::{Merger, Runs};
use super::arguments::{is_number, wrong};
use super::counts::Counts;
use super::groups::{Definition, GroupStates};

/// The aggregate.
#[derive(Debug, PartialEq, Eq, Hash)]
pub(super) struct PercentileSketch;

impl Definition for PercentileSketch {
    fn name(&self) -> &'static str {
        "percentile_sketch"
    }

    fn coerce(&self, arguments: &[DataType]) -> Result<Vec<DataType>> {
        match arguments {
            [value] if is_number(value) => Ok(vec![DataType::Float64]),
            _ => wrong(self.name(), "one number", "percentile_sketch(temperature)", arguments),
        }
    }

    fn return_type(&self, _: &[DataType]) -> Result<DataType> {
        Ok(DataType::Binary)
    }

    fn state(&self, _: &[DataType]) -> Vec<(&'static str, DataType)> {
        vec![("sketch", DataType::Binary)]
    }

    fn groups(&self, _: &AccumulatorArgs) -> Result<Box<dyn GroupStates>> {
        Ok(Box::new(Sketches::default()))
    }
}

/// Values that came as values, and sketches that came as states.
#[derive(Debug, Default)]
struct Sketches {
    groups: usize,
    counts: Counts,
    runs: Runs,
}

impl Sketches {
    /// Calls `with` with the sketch of each of the first `n` groups in order; it is empty if there were no values.
    fn each(&self, n: usize, mut with: impl FnMut(usize, &[u8])) -> Result<()> {
        let mut runs = self.runs.grouped(n);
        let mut merger = Merger::default();
        let mut outcome = Ok(());
        self.counts.each(n, |group, counts| {
            if outcome.is_ok() {
                outcome = merger.sketch(counts, self.runs.of(runs.group(group))).map(|s| with(group, s));
            }
        });
        outcome
    }

    /// Leaves one sketch per group.
    fn compact(&mut self) -> Result<()> {
        let mut merged = Runs::default();
        self.each(self.groups, |group, sketch| merged.push(group, sketch))?;
        merged.settled();
        self.runs = merged;
        self.counts.clear();
        Ok(())
    }
}

impl GroupStates for Sketches {
    fn resize(&mut self, groups: usize) {
        self.groups = self.groups.max(groups);
        self.counts.resize(groups);
    }

    fn update(&mut self, values: &[ArrayRef], groups: &[usize]) -> Result<()> {
        let values = values[0].as_primitive::<Float64Type>();
        if values.null_count() == 0 && !values.values().iter().any(|v| v.is_nan()) {
            self.counts.extend(groups, values.values().iter().map(|v| key(*v)));
        } else {
            for (value, group) in values.iter().zip(groups) {
                if let Some(value) = value
                    && !value.is_nan()
                {
                    self.counts.add(*group, key(value));
                }
            }
        }
        self.counts.settle();
        Ok(())
    }

    fn merge(&mut self, states: &[ArrayRef], groups: &[usize]) -> Result<()> {
        for (sketch, group) in states[0].as_binary::<i32>().iter().zip(groups) {
            if let Some(sketch) = sketch {
                self.runs.push(*group, sketch);
            }
        }
        if self.runs.are_many(self.groups) {
            self.compact()?;
        }
        Ok(())
    }

    fn states(&mut self, n: usize) -> Result<Vec<ArrayRef>> {
        Ok(vec![self.values(n)?])
    }

    fn values(&mut self, n: usize) -> Result<ArrayRef> {
        let mut sketches = BinaryBuilder::with_capacity(n, n * 32);
        self.each(n, |_, sketch| match sketch {
            [] => sketches.append_null(),
            sketch => sketches.append_value(sketch),
        })?;
        Ok(Arc::new(sketches.finish()))
    }

    fn forget(&mut self, n: usize) {
        self.groups -= n;
        self.counts.forget(n);
        self.runs.forget(n);
    }

    fn size(&self) -> usize {
        size_of_val(self) + self.counts.size() + self.runs.size()
    }

    fn fresh(&self) -> Box<dyn GroupStates> {
        Box::new(Self::default())
    }
}

#[cfg(test)]
mod tests {
    use arrow::array::Float64Array;
    use proptest::prelude::*;

    use super::*;

    fn fed(values: &[f64], groups: &[usize]) -> Sketches {
        let mut sketches = Sketches::default();
        sketches.resize(3);
        let values: ArrayRef = Arc::new(Float64Array::from(values.to_vec()));
        sketches.update(&[values], groups).expect("updates");
        sketches
    }

    proptest! {
        #[test]
        fn compacting_at_any_time_changes_nothing(
            parts in prop::collection::vec((prop::collection::vec((-9.0f64..9.0, 0usize..3), 0..30), any::<bool>()), 1..8),
        ) {
            let rows = |part: &[(f64, usize)]| -> (Vec<f64>, Vec<usize>) { part.iter().copied().unzip() };
            let (values, groups) = rows(&parts.iter().flat_map(|(part, _)| part.clone()).collect::<Vec<_>>());
            let mut expected = fed(&values, &groups);
            let mut sketches = fed(&[], &[]);
            for (part, compact) in &parts {
                let (values, groups) = rows(part);
                if *compact {
                    let values: ArrayRef = Arc::new(Float64Array::from(values));
                    sketches.update(&[values], &groups).expect("updates");
                    sketches.compact().expect("compacts");
                } else {
                    let state = fed(&values, &groups).states(3).expect("a state");
                    sketches.merge(&state, &[0, 1, 2]).expect("merges");
                }
            }
            prop_assert_eq!(&sketches.values(3).expect("values"), &expected.values(3).expect("values"));
        }
    }
}
