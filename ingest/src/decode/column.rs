//! One column under construction: a typed builder that fills its gaps with nulls.

use std::sync::Arc;

use arrow::array::{
    ArrayRef, BooleanBuilder, Float64Array, Float64Builder, Int64Builder, StringBuilder,
    TimestampMicrosecondBuilder,
};
use arrow::datatypes::{DataType, Field};

use iot_schemas::layout::timestamp_type;

/// The types that a stream's own columns can have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Double,
    Bigint,
    Boolean,
    Text,
    Timestamp,
}

impl Kind {
    pub(crate) fn of(data_type: &DataType) -> Option<Self> {
        match data_type {
            DataType::Float64 => Some(Self::Double),
            DataType::Int64 => Some(Self::Bigint),
            DataType::Boolean => Some(Self::Boolean),
            DataType::Utf8 => Some(Self::Text),
            other if *other == timestamp_type() => Some(Self::Timestamp),
            _ => None,
        }
    }

    pub(crate) fn data_type(self) -> DataType {
        match self {
            Self::Double => DataType::Float64,
            Self::Bigint => DataType::Int64,
            Self::Boolean => DataType::Boolean,
            Self::Text => DataType::Utf8,
            Self::Timestamp => timestamp_type(),
        }
    }

    /// The word that the catalog has for it.
    pub(crate) fn word(self) -> &'static str {
        match self {
            Self::Double => "double",
            Self::Bigint => "bigint",
            Self::Boolean => "boolean",
            Self::Text => "text",
            Self::Timestamp => "timestamp",
        }
    }
}

/// Why a column exists, which decides what may change about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Origin {
    /// A named topic level or a user property; payloads do not write it.
    Topic,
    /// A declared field: its type is fixed.
    Declared,
    /// Found in a payload: an integer column may become a double.
    Found,
    /// In the table, but neither declared nor to be added: it stays null.
    Dormant,
}

/// A value that fits its column. Text stands in the staging area.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Value {
    Integer(i64),
    Float(f64),
    Boolean(bool),
    Text { start: usize, end: usize },
}

/// A column and the values of the rows since the last [`Column::finish`].
#[derive(Debug)]
pub(crate) struct Column {
    pub(crate) name: Box<str>,
    pub(crate) origin: Origin,
    kind: Kind,
    values: Values,
    len: usize,
    /// The last row that gave it a value, to notice a field that is given twice.
    pub(crate) stamp: u64,
    /// Whether fields of several names lead to it.
    pub(crate) has_aliases: bool,
}

#[derive(Debug)]
enum Values {
    Double(Float64Builder),
    Bigint(Int64Builder),
    Boolean(BooleanBuilder),
    Text(StringBuilder),
    Timestamp(TimestampMicrosecondBuilder),
}

impl Values {
    fn new(kind: Kind) -> Self {
        match kind {
            Kind::Double => Self::Double(Float64Builder::with_capacity(0)),
            Kind::Bigint => Self::Bigint(Int64Builder::with_capacity(0)),
            Kind::Boolean => Self::Boolean(BooleanBuilder::with_capacity(0)),
            Kind::Text => Self::Text(StringBuilder::with_capacity(0, 0)),
            Kind::Timestamp => {
                let builder = TimestampMicrosecondBuilder::with_capacity(0);
                Self::Timestamp(builder.with_data_type(timestamp_type()))
            }
        }
    }
}

impl Column {
    pub(crate) fn new(name: &str, kind: Kind, origin: Origin) -> Self {
        Self {
            name: name.into(),
            origin,
            kind,
            values: Values::new(kind),
            len: 0,
            stamp: 0,
            has_aliases: false,
        }
    }

    pub(crate) fn kind(&self) -> Kind {
        self.kind
    }

    pub(crate) fn field(&self) -> Field {
        Field::new(self.name.as_ref(), self.kind.data_type(), true)
    }

    /// Sets the value of `row`; rows in between are null. A value that does not fit is null: staging has
    /// checked it.
    pub(crate) fn set(&mut self, row: usize, value: Value, text: &str) {
        self.pad(row);
        match (&mut self.values, value) {
            (Values::Double(b), Value::Float(v)) => b.append_value(v),
            (Values::Double(b), Value::Integer(v)) => b.append_value(v as f64),
            (Values::Bigint(b), Value::Integer(v)) => b.append_value(v),
            (Values::Boolean(b), Value::Boolean(v)) => b.append_value(v),
            (Values::Text(b), Value::Text { start, end }) => b.append_value(&text[start..end]),
            (Values::Timestamp(b), Value::Integer(v)) => b.append_value(v),
            _ => {
                debug_assert!(false, "{value:?} was staged for a column of type {}", self.kind.word());
                return;
            }
        }
        self.len = row + 1;
    }

    /// Sets the text of `row` in a text column.
    pub(crate) fn set_text(&mut self, row: usize, text: &str) {
        self.set(row, Value::Text { start: 0, end: text.len() }, text);
    }

    /// Makes an integer column a double column, the values so far included.
    pub(crate) fn widen(&mut self) {
        let Values::Bigint(builder) = &mut self.values else { return };
        let integers = builder.finish();
        let doubles: Float64Array = integers.unary(|v| v as f64);
        let mut widened = Float64Builder::with_capacity(doubles.len());
        doubles.iter().for_each(|v| widened.append_option(v));
        self.values = Values::Double(widened);
        self.kind = Kind::Double;
    }

    /// The values of `rows` rows; the column is empty afterwards.
    pub(crate) fn finish(&mut self, rows: usize) -> ArrayRef {
        self.pad(rows);
        self.len = 0;
        match &mut self.values {
            Values::Double(b) => Arc::new(b.finish()),
            Values::Bigint(b) => Arc::new(b.finish()),
            Values::Boolean(b) => Arc::new(b.finish()),
            Values::Text(b) => Arc::new(b.finish()),
            Values::Timestamp(b) => Arc::new(b.finish()),
        }
    }

    fn pad(&mut self, to: usize) {
        let gap = to - self.len;
        if gap == 0 {
            return;
        }
        match &mut self.values {
            Values::Double(b) => b.append_nulls(gap),
            Values::Bigint(b) => b.append_nulls(gap),
            Values::Boolean(b) => b.append_nulls(gap),
            Values::Text(b) => b.append_nulls(gap),
            Values::Timestamp(b) => b.append_nulls(gap),
        }
        self.len = to;
    }
}
