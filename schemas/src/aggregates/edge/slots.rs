//! One value per group, of any type, that can be compared and replaced.

use std::cmp::Ordering;
use std::fmt::Debug;
use std::sync::Arc;

use arrow::array::{
    ArrayRef, ArrowNativeTypeOp, ArrowPrimitiveType, AsArray, PrimitiveArray, StringArray, StringBuilder,
};
use arrow::buffer::NullBuffer;
use arrow::datatypes::DataType;
use arrow::row::{RowConverter, Rows, SortField};
use datafusion::common::Result;

/// Values by group. What a slot holds before it is set is never shown.
pub(super) trait Slots: Debug + Send + Sync + 'static {
    /// The values of a batch, opened once.
    type Batch<'a>;

    fn open<'a>(&self, values: &'a ArrayRef) -> Result<Self::Batch<'a>>;

    fn resize(&mut self, groups: usize);

    /// How the batch's value stands to the group's: a total order, NaN above all numbers.
    fn compare(&self, group: usize, batch: &Self::Batch<'_>, row: usize) -> Ordering;

    fn set(&mut self, group: usize, batch: &Self::Batch<'_>, row: usize);

    /// The values of the first groups; `valid` says which of them are set.
    fn array(&self, n: usize, valid: NullBuffer) -> Result<ArrayRef>;

    fn forget(&mut self, n: usize);

    /// Bytes in use. O(1).
    fn size(&self) -> usize;

    /// No slots, of the same type.
    fn fresh(&self) -> Self;
}

/// Numbers, times and whatever else has a fixed width.
#[derive(Debug)]
pub(super) struct Primitives<T: ArrowPrimitiveType> {
    data_type: DataType,
    values: Vec<T::Native>,
}

impl<T: ArrowPrimitiveType> Primitives<T> {
    pub(super) fn new(data_type: &DataType) -> Self {
        Self { data_type: data_type.clone(), values: Vec::new() }
    }
}

impl<T: ArrowPrimitiveType + Debug> Slots for Primitives<T> {
    type Batch<'a> = &'a PrimitiveArray<T>;

    fn open<'a>(&self, values: &'a ArrayRef) -> Result<Self::Batch<'a>> {
        Ok(values.as_primitive::<T>())
    }

    fn resize(&mut self, groups: usize) {
        self.values.resize(groups, T::Native::default());
    }

    fn compare(&self, group: usize, batch: &Self::Batch<'_>, row: usize) -> Ordering {
        batch.value(row).compare(self.values[group])
    }

    fn set(&mut self, group: usize, batch: &Self::Batch<'_>, row: usize) {
        self.values[group] = batch.value(row);
    }

    fn array(&self, n: usize, valid: NullBuffer) -> Result<ArrayRef> {
        let values = PrimitiveArray::<T>::try_new(self.values[..n].to_vec().into(), Some(valid))?;
        Ok(Arc::new(values.with_data_type(self.data_type.clone())))
    }

    fn forget(&mut self, n: usize) {
        self.values.drain(..n);
    }

    fn size(&self) -> usize {
        self.values.capacity() * size_of::<T::Native>()
    }

    fn fresh(&self) -> Self {
        Self::new(&self.data_type)
    }
}

/// Texts. A slot keeps its buffer when its text changes.
#[derive(Debug, Default)]
pub(super) struct Texts {
    values: Vec<String>,
    /// Bytes of all buffers.
    bytes: usize,
}

impl Slots for Texts {
    type Batch<'a> = &'a StringArray;

    fn open<'a>(&self, values: &'a ArrayRef) -> Result<Self::Batch<'a>> {
        Ok(values.as_string::<i32>())
    }

    fn resize(&mut self, groups: usize) {
        self.values.resize(groups, String::new());
    }

    fn compare(&self, group: usize, batch: &Self::Batch<'_>, row: usize) -> Ordering {
        batch.value(row).cmp(&self.values[group])
    }

    fn set(&mut self, group: usize, batch: &Self::Batch<'_>, row: usize) {
        let slot = &mut self.values[group];
        let before = slot.capacity();
        slot.clear();
        slot.push_str(batch.value(row));
        self.bytes += slot.capacity() - before;
    }

    fn array(&self, n: usize, valid: NullBuffer) -> Result<ArrayRef> {
        let mut texts = StringBuilder::with_capacity(n, n * 8);
        for (value, valid) in self.values[..n].iter().zip(valid.iter()) {
            texts.append_option(valid.then_some(value));
        }
        Ok(Arc::new(texts.finish()))
    }

    fn forget(&mut self, n: usize) {
        self.bytes -= self.values.drain(..n).map(|text| text.capacity()).sum::<usize>();
    }

    fn size(&self) -> usize {
        self.values.capacity() * size_of::<String>() + self.bytes
    }

    fn fresh(&self) -> Self {
        Self::default()
    }
}

/// Everything else (truth values, binaries, lists, structs) in Arrow's row format, whose bytes are in the order
/// of the values.
#[derive(Debug)]
pub(super) struct Encoded {
    data_type: DataType,
    converter: RowConverter,
    values: Vec<Vec<u8>>,
    bytes: usize,
}

impl Encoded {
    pub(super) fn new(data_type: &DataType) -> Result<Self> {
        let converter = RowConverter::new(vec![SortField::new(data_type.clone())])?;
        Ok(Self { data_type: data_type.clone(), converter, values: Vec::new(), bytes: 0 })
    }
}

impl Slots for Encoded {
    type Batch<'a> = Rows;

    fn open<'a>(&self, values: &'a ArrayRef) -> Result<Self::Batch<'a>> {
        Ok(self.converter.convert_columns(std::slice::from_ref(values))?)
    }

    fn resize(&mut self, groups: usize) {
        self.values.resize(groups, Vec::new());
    }

    fn compare(&self, group: usize, batch: &Self::Batch<'_>, row: usize) -> Ordering {
        batch.row(row).data().cmp(self.values[group].as_slice())
    }

    fn set(&mut self, group: usize, batch: &Self::Batch<'_>, row: usize) {
        let slot = &mut self.values[group];
        let before = slot.capacity();
        slot.clear();
        slot.extend_from_slice(batch.row(row).data());
        self.bytes += slot.capacity() - before;
    }

    fn array(&self, n: usize, valid: NullBuffer) -> Result<ArrayRef> {
        // Unset slots hold no row; the encoding of null stands for them.
        let null = arrow::array::new_null_array(&self.data_type, 1);
        let null = self.converter.convert_columns(&[null])?;
        let parser = self.converter.parser();
        let rows = self.values[..n]
            .iter()
            .zip(valid.iter())
            .map(|(bytes, valid)| if valid { parser.parse(bytes) } else { parser.parse(null.row(0).data()) });
        let mut columns = self.converter.convert_rows(rows)?;
        Ok(columns.remove(0))
    }

    fn forget(&mut self, n: usize) {
        self.bytes -= self.values.drain(..n).map(|bytes| bytes.capacity()).sum::<usize>();
    }

    fn size(&self) -> usize {
        self.values.capacity() * size_of::<Vec<u8>>() + self.bytes + self.converter.size()
    }

    fn fresh(&self) -> Self {
        Self::new(&self.data_type).expect("the type was convertible before")
    }
}
