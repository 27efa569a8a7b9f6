//! What the functions say about wrong arguments: what came, and a call that is right.

use arrow::datatypes::DataType;
use datafusion::common::{Result, plan_datafusion_err};

use crate::layout::timestamp_type;

/// The error of a call with arguments of the wrong number or type.
pub(super) fn wrong<T>(name: &str, takes: &str, example: &str, got: &[DataType]) -> Result<T> {
    let got: Vec<String> = got.iter().map(ToString::to_string).collect();
    let got = if got.is_empty() { "nothing".to_owned() } else { got.join(", ") };
    Err(plan_datafusion_err!("{name}() takes {takes}, as in {example}; it was given {got}"))
}

/// Whether a type can be cast to a timestamp.
pub(super) fn is_time(data_type: &DataType) -> bool {
    matches!(
        data_type,
        DataType::Timestamp(..)
            | DataType::Date32
            | DataType::Date64
            | DataType::Utf8
            | DataType::LargeUtf8
            | DataType::Utf8View
            | DataType::Null
    )
}

/// Whether a type can be cast to a double.
pub(super) fn is_number(data_type: &DataType) -> bool {
    data_type.is_numeric() || data_type.is_null()
}

/// The type under which values of any type are kept: without the encodings that only save memory.
pub(super) fn plain(data_type: &DataType) -> DataType {
    match data_type {
        DataType::Dictionary(_, values) => plain(values),
        DataType::Utf8View | DataType::LargeUtf8 => DataType::Utf8,
        DataType::BinaryView | DataType::LargeBinary => DataType::Binary,
        other => other.clone(),
    }
}

/// Two arguments, a number (or, if `flags`, a truth value) and a time.
pub(super) fn number_and_time(
    name: &str,
    example: &str,
    flags: bool,
    got: &[DataType],
) -> Result<Vec<DataType>> {
    match got {
        [value, time] if (is_number(value) || flags && *value == DataType::Boolean) && is_time(time) => {
            Ok(vec![DataType::Float64, timestamp_type()])
        }
        _ => wrong(name, "a number and a timestamp", example, got),
    }
}
