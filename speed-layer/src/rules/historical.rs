//! Events from the past that were sent late on purpose: they count everywhere, and raise no live alert.

use arrow::array::{AsArray, BooleanArray, RecordBatch};
use arrow::compute::filter_record_batch;
use arrow::datatypes::DataType;
use arrow::error::ArrowError;
use iot_schemas::layout::IS_HISTORICAL;

/// The rows that are not historical; `None` if that is all of them.
///
/// A row is historical if the boolean column `is_historical` says so, whichever format the stream has.
pub(crate) fn without_historical(rows: &RecordBatch) -> Result<Option<RecordBatch>, ArrowError> {
    let Some(column) = rows.column_by_name(IS_HISTORICAL) else { return Ok(None) };
    if *column.data_type() != DataType::Boolean {
        return Ok(None);
    }
    let is_historical = column.as_boolean();
    if is_historical.true_count() == 0 {
        return Ok(None);
    }
    let is_live: BooleanArray =
        is_historical.iter().map(|historical| Some(historical != Some(true))).collect();
    filter_record_batch(rows, &is_live).map(Some)
}
