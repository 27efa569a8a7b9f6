//! What streams did not store on purpose, as a table: `iot.dropped`.

use std::sync::Arc;

use arrow::array::{ArrayRef, Int64Array, RecordBatch, StringArray, TimestampMicrosecondArray};
use iot_ingest::{Ingest, LeftOutEntry};
use iot_schemas::Result;

/// One row per stream, device and reason.
pub(super) fn rows(ingest: &Ingest) -> Result<RecordBatch> {
    let entries = ingest.left_out();
    let streams = StringArray::from_iter_values(entries.iter().map(|(stream, _)| stream));
    let devices: StringArray = entries.iter().map(|(_, entry)| entry.device.as_deref()).collect();
    let reasons = StringArray::from_iter_values(entries.iter().map(|(_, entry)| entry.reason.name()));
    let time = |of: &dyn Fn(&LeftOutEntry) -> i64| -> ArrayRef {
        let times = TimestampMicrosecondArray::from_iter_values(entries.iter().map(|(_, entry)| of(entry)));
        Arc::new(times.with_timezone("UTC"))
    };
    let counts = Int64Array::from_iter_values(entries.iter().map(|(_, entry)| entry.count as i64));
    let columns: Vec<(&str, ArrayRef)> = vec![
        ("stream", Arc::new(streams)),
        ("device_id", Arc::new(devices)),
        ("reason", Arc::new(reasons)),
        ("count", Arc::new(counts)),
        ("first_at", time(&|entry| entry.first_at)),
        ("last_at", time(&|entry| entry.last_at)),
    ];
    Ok(RecordBatch::try_from_iter_with_nullable(
        columns.into_iter().map(|(name, column)| (name, column, true)),
    )?)
}
