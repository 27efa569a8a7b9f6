//! Where each view's answer comes from, as a table: `iot.view_status`.

use std::sync::Arc;

use arrow::array::{
    ArrayRef, BooleanArray, Int64Array, RecordBatch, StringArray, TimestampMicrosecondArray, UInt64Array,
};
use arrow::compute::cast;
use arrow::datatypes::DataType;
use iot_schemas::Result;
use iot_schemas::batch::Views;
use iot_schemas::view::ViewSnapshot;

/// One row per view; views that are being taken away meanwhile are left out.
pub(super) fn rows(views: &dyn Views) -> Result<RecordBatch> {
    let snapshots: Vec<ViewSnapshot> =
        views.names().iter().filter_map(|name| views.snapshot(name).ok()).collect();
    let text = |of: &dyn Fn(&ViewSnapshot) -> String| -> ArrayRef {
        Arc::new(snapshots.iter().map(|snapshot| Some(of(snapshot))).collect::<StringArray>())
    };
    let number = |of: &dyn Fn(&ViewSnapshot) -> u64| -> Result<ArrayRef> {
        let numbers = UInt64Array::from_iter_values(snapshots.iter().map(of));
        Ok(cast(&numbers, &DataType::Int64)?)
    };
    let watermark: TimestampMicrosecondArray = snapshots.iter().map(|snapshot| snapshot.watermark).collect();
    let generation = Int64Array::from_iter_values(snapshots.iter().map(|s| s.batch.generation()));
    let generated: BooleanArray = snapshots.iter().map(|s| Some(s.view.def().generated)).collect();
    let columns: Vec<(&str, ArrayRef)> = vec![
        ("view", text(&|s| s.view.name().to_owned())),
        ("stream", text(&|s| s.view.stream().to_string())),
        ("reads_state_of", text(&|s| s.view.state_owner().to_owned())),
        ("batch_generation", Arc::new(generation)),
        ("batch_frontier", text(&|s| s.batch.frontier().to_string())),
        ("frontier", text(&|s| s.frontier.to_string())),
        ("watermark", Arc::new(watermark.with_timezone("UTC"))),
        ("batch_rows", number(&|s| s.batch.row_count())?),
        ("batch_files", number(&|s| s.batch.file_count() as u64)?),
        ("speed_rows", number(&ViewSnapshot::speed_rows)?),
        ("speed_bytes", number(&ViewSnapshot::speed_bytes)?),
        ("late_events", number(&|s| s.late_events)?),
        ("generated", Arc::new(generated)),
    ];
    Ok(RecordBatch::try_from_iter_with_nullable(
        columns.into_iter().map(|(name, column)| (name, column, true)),
    )?)
}
