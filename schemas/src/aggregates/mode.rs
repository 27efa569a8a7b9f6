//! `mode(value)`: the most frequent value of any type; of several equally frequent ones the least.
//!
//! Nulls are not counted. The state is the group's distinct values and their counts, as two lists.
//! Memory: each distinct value of the whole aggregation once, 8 bytes per row that is not counted yet, 24 bytes per
//! group and distinct value.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, Int64Array, ListArray, new_null_array};
use arrow::buffer::{NullBuffer, OffsetBuffer};
use arrow::datatypes::{DataType, Field, Int64Type};
use arrow::row::{Row, RowConverter, SortField};
use datafusion::common::{HashMap, Result, exec_err};
use datafusion::logical_expr::function::AccumulatorArgs;

use super::arguments::{plain, wrong};
use super::counts::Counts;
use super::groups::{Definition, GroupStates};

/// The aggregate.
#[derive(Debug, PartialEq, Eq, Hash)]
pub(super) struct Mode;

fn list_of(data_type: DataType) -> DataType {
    DataType::List(Arc::new(Field::new_list_field(data_type, true)))
}

impl Definition for Mode {
    fn name(&self) -> &'static str {
        "mode"
    }

    fn coerce(&self, arguments: &[DataType]) -> Result<Vec<DataType>> {
        match arguments {
            [value] => Ok(vec![plain(value)]),
            _ => wrong(self.name(), "one value", "mode(status)", arguments),
        }
    }

    fn return_type(&self, arguments: &[DataType]) -> Result<DataType> {
        Ok(arguments[0].clone())
    }

    fn state(&self, arguments: &[DataType]) -> Vec<(&'static str, DataType)> {
        vec![("values", list_of(arguments[0].clone())), ("counts", list_of(DataType::Int64))]
    }

    fn groups(&self, args: &AccumulatorArgs) -> Result<Box<dyn GroupStates>> {
        Ok(Box::new(Modes::new(args.expr_fields[0].data_type())?))
    }
}

#[derive(Debug)]
struct Modes {
    values: Distinct,
    counts: Counts,
}

impl Modes {
    fn new(data_type: &DataType) -> Result<Self> {
        Ok(Self { values: Distinct::new(data_type)?, counts: Counts::default() })
    }
}

impl GroupStates for Modes {
    fn resize(&mut self, groups: usize) {
        self.counts.resize(groups);
    }

    fn update(&mut self, values: &[ArrayRef], groups: &[usize]) -> Result<()> {
        let ids = self.values.ids(&values[0])?;
        for (row, group) in groups.iter().enumerate() {
            if values[0].is_valid(row) {
                self.counts.add(*group, ids[row]);
            }
        }
        self.counts.settle();
        Ok(())
    }

    fn merge(&mut self, states: &[ArrayRef], groups: &[usize]) -> Result<()> {
        let (values, counts) = (states[0].as_list::<i32>(), states[1].as_list::<i32>());
        let ids = self.values.ids(values.values())?;
        let numbers = counts.values().as_primitive::<Int64Type>();
        for (row, group) in groups.iter().enumerate() {
            if values.is_null(row) || counts.is_null(row) {
                continue;
            }
            if values.value_length(row) != counts.value_length(row) {
                return exec_err!("a state of mode() has more values than counts, or fewer");
            }
            let (from, count_from) =
                (values.value_offsets()[row] as usize, counts.value_offsets()[row] as usize);
            for i in 0..values.value_length(row) as usize {
                let count = u64::try_from(numbers.value(count_from + i)).unwrap_or(0);
                self.counts.add_many(*group, ids[from + i], count);
            }
        }
        self.counts.settle();
        Ok(())
    }

    fn states(&mut self, n: usize) -> Result<Vec<ArrayRef>> {
        let (mut lengths, mut ids, mut counts) = (Vec::with_capacity(n), Vec::new(), Vec::new());
        let mut sorted = Vec::new();
        self.counts.each(n, |_, keys| {
            sorted.clear();
            sorted.extend_from_slice(keys);
            sorted.sort_unstable_by_key(|(id, _)| self.values.row(*id));
            lengths.push(keys.len());
            ids.extend(sorted.iter().map(|(id, _)| *id));
            counts.extend(sorted.iter().map(|(_, count)| *count as i64));
        });
        let valid = NullBuffer::from_iter(lengths.iter().map(|length| *length > 0));
        let list = |items: ArrayRef| -> Result<ArrayRef> {
            let field = Arc::new(Field::new_list_field(items.data_type().clone(), true));
            let offsets = OffsetBuffer::from_lengths(lengths.iter().copied());
            Ok(Arc::new(ListArray::try_new(field, offsets, items, Some(valid.clone()))?))
        };
        Ok(vec![
            list(self.values.array(ids.into_iter().map(Some))?)?,
            list(Arc::new(Int64Array::from(counts)))?,
        ])
    }

    fn values(&mut self, n: usize) -> Result<ArrayRef> {
        let mut modes = Vec::with_capacity(n);
        self.counts.each(n, |_, keys| {
            let most = keys.iter().map(|(_, count)| *count).max();
            let most = keys.iter().filter(|(_, count)| Some(*count) == most).map(|(id, _)| *id);
            modes.push(most.min_by_key(|id| self.values.row(*id)));
        });
        self.values.array(modes.into_iter())
    }

    fn forget(&mut self, n: usize) {
        self.counts.forget(n);
    }

    fn size(&self) -> usize {
        size_of_val(self) + self.values.size() + self.counts.size()
    }

    fn fresh(&self) -> Box<dyn GroupStates> {
        Box::new(Self::new(&self.values.data_type).expect("the type was convertible before"))
    }
}

/// Values of any type, numbered in the order in which they were first seen.
#[derive(Debug)]
struct Distinct {
    data_type: DataType,
    converter: RowConverter,
    numbers: HashMap<Arc<[u8]>, i32>,
    rows: Vec<Arc<[u8]>>,
    bytes: usize,
}

impl Distinct {
    fn new(data_type: &DataType) -> Result<Self> {
        let converter = RowConverter::new(vec![SortField::new(data_type.clone())])?;
        let (numbers, rows) = (HashMap::default(), Vec::new());
        Ok(Self { data_type: data_type.clone(), converter, numbers, rows, bytes: 0 })
    }

    fn ids(&mut self, values: &ArrayRef) -> Result<Vec<i32>> {
        let rows = self.converter.convert_columns(std::slice::from_ref(values))?;
        rows.iter().map(|row| self.id(row)).collect()
    }

    fn id(&mut self, row: Row<'_>) -> Result<i32> {
        if let Some(number) = self.numbers.get(row.data()) {
            return Ok(*number);
        }
        let Ok(number) = i32::try_from(self.rows.len()) else {
            return exec_err!("mode() met more than two billion distinct values");
        };
        let row: Arc<[u8]> = row.data().into();
        // Two pointers of two words, the count of owners and the number.
        self.bytes += row.len() + 7 * size_of::<usize>();
        self.rows.push(row.clone());
        self.numbers.insert(row, number);
        Ok(number)
    }

    /// Bytes that are in the order of the values.
    fn row(&self, id: i32) -> &[u8] {
        &self.rows[id as usize]
    }

    fn array(&self, ids: impl Iterator<Item = Option<i32>>) -> Result<ArrayRef> {
        let null = self.converter.convert_columns(&[new_null_array(&self.data_type, 1)])?;
        let parser = self.converter.parser();
        let rows = ids.map(|id| match id {
            Some(id) => parser.parse(self.row(id)),
            None => parser.parse(null.row(0).data()),
        });
        Ok(self.converter.convert_rows(rows)?.remove(0))
    }

    fn size(&self) -> usize {
        self.bytes + self.converter.size()
    }
}
