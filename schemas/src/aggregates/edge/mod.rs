//! `first(value, time)` and `last(value, time)`: the value at the earliest and at the latest time.
//!
//! Rows without a value or without a time count for nothing. Of several values at the same time, `first` takes the
//! least and `last` the greatest, so that the answer does not depend on the order of arrival.

mod slots;

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, BooleanArray, TimestampMicrosecondArray};
use arrow::buffer::NullBuffer;
use arrow::datatypes::{DataType, TimestampMicrosecondType};
use datafusion::common::Result;
use datafusion::logical_expr::function::AccumulatorArgs;

use self::slots::{Encoded, Primitives, Slots, Texts};
use super::arguments::{is_time, plain, wrong};
use super::groups::{Definition, GroupStates};
use crate::layout::timestamp_type;

/// Which end of the time line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Edge {
    First,
    Last,
}

impl Definition for Edge {
    fn name(&self) -> &'static str {
        match self {
            Self::First => "first",
            Self::Last => "last",
        }
    }

    fn coerce(&self, arguments: &[DataType]) -> Result<Vec<DataType>> {
        match arguments {
            [value, time] if is_time(time) => Ok(vec![plain(value), timestamp_type()]),
            _ => {
                let example = format!("{}(temperature, event_time)", self.name());
                wrong(self.name(), "a value and a timestamp", &example, arguments)
            }
        }
    }

    fn return_type(&self, arguments: &[DataType]) -> Result<DataType> {
        Ok(arguments[0].clone())
    }

    fn state(&self, arguments: &[DataType]) -> Vec<(&'static str, DataType)> {
        vec![("value", arguments[0].clone()), ("time", timestamp_type())]
    }

    fn groups(&self, args: &AccumulatorArgs) -> Result<Box<dyn GroupStates>> {
        edges(*self, args.expr_fields[0].data_type())
    }
}

fn edges(edge: Edge, data_type: &DataType) -> Result<Box<dyn GroupStates>> {
    use arrow::datatypes as t;
    macro_rules! by_type {
        ($($pattern:pat => $type:ty,)*) => {
            match data_type {
                $($pattern => Ok(Box::new(Edges::new(edge, Primitives::<$type>::new(data_type)))),)*
                DataType::Utf8 => Ok(Box::new(Edges::new(edge, Texts::default()))),
                _ => Ok(Box::new(Edges::new(edge, Encoded::new(data_type)?))),
            }
        };
    }
    by_type! {
        DataType::Int8 => t::Int8Type,
        DataType::Int16 => t::Int16Type,
        DataType::Int32 => t::Int32Type,
        DataType::Int64 => t::Int64Type,
        DataType::UInt8 => t::UInt8Type,
        DataType::UInt16 => t::UInt16Type,
        DataType::UInt32 => t::UInt32Type,
        DataType::UInt64 => t::UInt64Type,
        DataType::Float32 => t::Float32Type,
        DataType::Float64 => t::Float64Type,
        DataType::Date32 => t::Date32Type,
        DataType::Decimal128(..) => t::Decimal128Type,
        DataType::Timestamp(t::TimeUnit::Microsecond, _) => TimestampMicrosecondType,
        DataType::Timestamp(t::TimeUnit::Nanosecond, _) => t::TimestampNanosecondType,
    }
}

/// One value and its time per group. Memory: the value and 9 bytes.
#[derive(Debug)]
struct Edges<S> {
    edge: Edge,
    values: S,
    times: Vec<i64>,
    seen: Vec<bool>,
}

impl<S: Slots> Edges<S> {
    fn new(edge: Edge, values: S) -> Self {
        Self { edge, values, times: Vec::new(), seen: Vec::new() }
    }

    fn take(&mut self, values: &ArrayRef, times: &TimestampMicrosecondArray, groups: &[usize]) -> Result<()> {
        let batch = self.values.open(values)?;
        let no_nulls = values.null_count() == 0 && times.null_count() == 0;
        for (row, group) in groups.iter().enumerate() {
            if !no_nulls && (values.is_null(row) || times.is_null(row)) {
                continue;
            }
            let time = times.value(row);
            let kept = self.times[*group];
            let better = !self.seen[*group]
                || match self.edge {
                    Edge::First => {
                        time < kept || time == kept && self.values.compare(*group, &batch, row).is_lt()
                    }
                    Edge::Last => {
                        time > kept || time == kept && self.values.compare(*group, &batch, row).is_gt()
                    }
                };
            if better {
                self.seen[*group] = true;
                self.times[*group] = time;
                self.values.set(*group, &batch, row);
            }
        }
        Ok(())
    }

    fn nulls(&self, n: usize) -> NullBuffer {
        NullBuffer::from(BooleanArray::from(self.seen[..n].to_vec()).values().clone())
    }
}

impl<S: Slots> GroupStates for Edges<S> {
    fn resize(&mut self, groups: usize) {
        if groups > self.times.len() {
            self.times.resize(groups, 0);
            self.seen.resize(groups, false);
            self.values.resize(groups);
        }
    }

    fn update(&mut self, values: &[ArrayRef], groups: &[usize]) -> Result<()> {
        self.take(&values[0], values[1].as_primitive::<TimestampMicrosecondType>(), groups)
    }

    /// A state is a row with its time, so merging is taking.
    fn merge(&mut self, states: &[ArrayRef], groups: &[usize]) -> Result<()> {
        self.update(states, groups)
    }

    fn states(&mut self, n: usize) -> Result<Vec<ArrayRef>> {
        let times = TimestampMicrosecondArray::new(self.times[..n].to_vec().into(), Some(self.nulls(n)));
        Ok(vec![self.values(n)?, Arc::new(times.with_timezone("UTC"))])
    }

    fn values(&mut self, n: usize) -> Result<ArrayRef> {
        self.values.array(n, self.nulls(n))
    }

    fn forget(&mut self, n: usize) {
        self.times.drain(..n);
        self.seen.drain(..n);
        self.values.forget(n);
    }

    fn size(&self) -> usize {
        size_of_val(self) + self.times.capacity() * 8 + self.seen.capacity() + self.values.size()
    }

    fn fresh(&self) -> Box<dyn GroupStates> {
        Box::new(Self::new(self.edge, self.values.fresh()))
    }
}
