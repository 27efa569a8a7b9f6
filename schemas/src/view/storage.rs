//! How state reaches a table: the mapping between Arrow's types and those of Delta Lake, both ways.
//!
//! Delta Lake has no unsigned integers, dictionaries, string views, durations, times of day, or instants other
//! than microseconds. State is opaque to everybody but its aggregate, so what has no counterpart is stored as
//! the same bits in an integer. Keys are for people too: instants in microseconds and text stay what they are.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, ListArray, StructArray};
use arrow::compute::cast;
use arrow::datatypes::{DataType, Field, Fields, Schema, SchemaRef, TimeUnit};
use arrow::record_batch::RecordBatch;
use datafusion::common::{Result as DataFusionResult, exec_err};
use datafusion::logical_expr::{
    ColumnarValue, Expr, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature, Volatility,
};

use crate::error::{Error, Result};
use crate::layout::timestamp_type;

/// The type under which values of `data_type` are stored.
pub fn storage_type(data_type: &DataType) -> Result<DataType> {
    use DataType as T;
    Ok(match data_type {
        T::Null => T::Boolean,
        T::Boolean | T::Int8 | T::Int16 | T::Int32 | T::Int64 | T::Float32 | T::Float64 | T::Date32 => {
            data_type.clone()
        }
        T::Utf8 | T::LargeUtf8 | T::Utf8View => T::Utf8,
        T::Binary | T::LargeBinary | T::BinaryView | T::FixedSizeBinary(_) => T::Binary,
        T::UInt8 => T::Int16,
        T::UInt16 => T::Int32,
        T::UInt32 | T::UInt64 | T::Date64 | T::Duration(_) | T::Time64(_) => T::Int64,
        T::Time32(_) => T::Int32,
        T::Timestamp(TimeUnit::Microsecond, Some(zone)) if &**zone == "UTC" => timestamp_type(),
        T::Timestamp(..) => T::Int64,
        T::Float16 => T::Float32,
        T::Decimal128(precision, scale) if *scale >= 0 => T::Decimal128(*precision, *scale),
        T::Dictionary(_, values) => storage_type(values)?,
        T::List(item) | T::LargeList(item) | T::FixedSizeList(item, _) => {
            T::List(Arc::new(Field::new("element", storage_type(item.data_type())?, true)))
        }
        T::Struct(fields) => T::Struct(storage_fields(fields)?),
        other => {
            return Err(Error::invalid(format!(
                "an aggregate or key of type {other} cannot be stored; cast it to double, bigint or text"
            )));
        }
    })
}

/// The schema under which rows of `schema` are stored.
pub fn storage_schema(schema: &Schema) -> Result<SchemaRef> {
    Ok(Arc::new(Schema::new(storage_fields(schema.fields())?)))
}

fn storage_fields(fields: &Fields) -> Result<Fields> {
    fields.iter().map(|f| Ok(Arc::new(Field::new(f.name(), storage_type(f.data_type())?, true)))).collect()
}

/// State rows as they are stored.
pub fn to_storage(batch: &RecordBatch, storage: &SchemaRef) -> Result<RecordBatch> {
    let columns = batch
        .columns()
        .iter()
        .zip(storage.fields())
        .map(|(column, field)| store(column, field.data_type()))
        .collect::<Result<Vec<_>>>()?;
    Ok(RecordBatch::try_new(storage.clone(), columns)?)
}

/// `column` stored as `target`, which is the [`storage_type`] of its own.
fn store(column: &ArrayRef, target: &DataType) -> Result<ArrayRef> {
    match (column.data_type(), target) {
        (DataType::Struct(_), DataType::Struct(fields)) => map_struct(column, fields, store),
        (DataType::List(_) | DataType::LargeList(_) | DataType::FixedSizeList(..), DataType::List(item)) => {
            let list = cast_outer_list(column)?;
            map_list(list.as_list(), item, store)
        }
        (DataType::Null, target) => Ok(arrow::array::new_null_array(target, column.len())),
        (DataType::Dictionary(_, values), target) => store(&cast(column, values)?, target),
        (DataType::UInt64, DataType::Int64) => same_bits(column, DataType::Int64),
        _ => plain(column, target),
    }
}

/// `column`, which was stored, as the `target` that it came from. Nested fields are matched by position.
pub(super) fn restore_array(column: &ArrayRef, target: &DataType) -> Result<ArrayRef> {
    if column.data_type() == target {
        return Ok(column.clone());
    }
    match (column.data_type(), target) {
        (DataType::Struct(_), DataType::Struct(fields)) => map_struct(column, fields, restore_array),
        (_, DataType::List(item)) => {
            let list = cast_outer_list(column)?;
            map_list(list.as_list(), item, restore_array)
        }
        (_, DataType::LargeList(item) | DataType::FixedSizeList(item, _)) => {
            let list = cast_outer_list(column)?;
            let list = map_list(list.as_list(), item, restore_array)?;
            Ok(cast(&list, target)?)
        }
        (_, DataType::Null) => Ok(arrow::array::new_null_array(target, column.len())),
        (DataType::Int64, DataType::UInt64) => same_bits(column, DataType::UInt64),
        _ => plain(column, target),
    }
}

/// A cast that fails instead of making nulls.
fn plain(column: &ArrayRef, target: &DataType) -> Result<ArrayRef> {
    if column.data_type() == target {
        return Ok(column.clone());
    }
    let strict = arrow::compute::CastOptions { safe: false, ..Default::default() };
    Ok(arrow::compute::cast_with_options(column, target, &strict)?)
}

/// The same 64 bits under another type.
fn same_bits(column: &ArrayRef, target: DataType) -> Result<ArrayRef> {
    let data = column.to_data().into_builder().data_type(target).build()?;
    Ok(arrow::array::make_array(data))
}

fn map_struct(
    column: &ArrayRef,
    fields: &Fields,
    map: fn(&ArrayRef, &DataType) -> Result<ArrayRef>,
) -> Result<ArrayRef> {
    let from = column.as_struct();
    if from.num_columns() != fields.len() {
        return Err(Error::Corrupt {
            path: "state".into(),
            reason: format!("a state of {} parts instead of {}", from.num_columns(), fields.len()),
        });
    }
    let columns = from.columns().iter().zip(fields).map(|(c, f)| map(c, f.data_type()));
    let columns = columns.collect::<Result<Vec<_>>>()?;
    Ok(Arc::new(StructArray::try_new_with_length(
        fields.clone(),
        columns,
        from.nulls().cloned(),
        from.len(),
    )?))
}

fn cast_outer_list(column: &ArrayRef) -> Result<ArrayRef> {
    Ok(match column.data_type() {
        DataType::LargeList(item) | DataType::FixedSizeList(item, _) => {
            cast(column, &DataType::List(item.clone()))?
        }
        _ => column.clone(),
    })
}

fn map_list(
    list: &ListArray,
    item: &Arc<Field>,
    map: fn(&ArrayRef, &DataType) -> Result<ArrayRef>,
) -> Result<ArrayRef> {
    let values = map(list.values(), item.data_type())?;
    Ok(Arc::new(ListArray::try_new(item.clone(), list.offsets().clone(), values, list.nulls().cloned())?))
}

/// An expression that gives a stored column its type back.
pub fn restore(column: Expr, target: &DataType) -> Expr {
    ScalarUDF::from(Restore { signature: Signature::any(1, Volatility::Immutable), target: target.clone() })
        .call(vec![column])
}

#[derive(Debug, PartialEq, Eq, Hash)]
struct Restore {
    signature: Signature,
    target: DataType,
}

impl ScalarUDFImpl for Restore {
    fn name(&self) -> &str {
        "restore_state"
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, _: &[DataType]) -> DataFusionResult<DataType> {
        Ok(self.target.clone())
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> DataFusionResult<ColumnarValue> {
        let [column] = args.args.as_slice() else {
            return exec_err!("restore_state() takes one column");
        };
        let column = column.to_array(args.number_rows)?;
        let restored = restore_array(&column, &self.target);
        Ok(ColumnarValue::Array(
            restored.map_err(|e| datafusion::common::DataFusionError::External(Box::new(e)))?,
        ))
    }
}
