//! The shape in which rows reach a raw table: partitioned by the date of the event, sorted by device and time.

use std::sync::Arc;

use arrow::array::{ArrayRef, AsArray, Date32Array, RecordBatch};
use arrow::compute::{SortColumn, lexsort_to_indices, take_record_batch};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef, TimestampMicrosecondType};

use iot_schemas::Result;
use iot_schemas::layout::{DEAD_PATH, DEVICE_ID, EVENT_DATE, EVENT_TIME, NODE, SEQ, raw_path};
use iot_schemas::position::NodeId;
use iot_schemas::table::TableSpec;

use crate::dead_letter::dead_schema;

const MICROS_PER_DAY: i64 = 86_400_000_000;

/// The table of a stream whose rows have the columns of `schema`.
pub(crate) fn raw_spec(stream: &str, schema: &Schema, node: &NodeId) -> TableSpec {
    TableSpec {
        path: raw_path(stream),
        schema: with_date_field(schema),
        partition_by: vec![EVENT_DATE.into()],
        stats_columns: [EVENT_TIME, DEVICE_ID, NODE, SEQ].map(str::to_owned).into(),
        nodes: vec![node.clone()],
    }
}

/// The table of the dead letters.
pub(crate) fn dead_spec(node: &NodeId) -> TableSpec {
    TableSpec {
        path: DEAD_PATH.into(),
        schema: dead_schema(),
        partition_by: Vec::new(),
        stats_columns: ["received_at", NODE, SEQ].map(str::to_owned).into(),
        nodes: vec![node.clone()],
    }
}

/// The columns of a raw table whose rows have the columns of `schema` in memory.
pub(crate) fn with_date_field(schema: &Schema) -> SchemaRef {
    let mut fields = schema.fields().to_vec();
    fields.push(Arc::new(Field::new(EVENT_DATE, DataType::Date32, true)));
    Arc::new(Schema::new(fields))
}

/// Adds the date column and sorts by date, device and time. Costs memory for one copy of the rows.
pub(crate) fn arrange(rows: &RecordBatch) -> Result<RecordBatch> {
    let (Some(times), Some(devices)) = (rows.column_by_name(EVENT_TIME), rows.column_by_name(DEVICE_ID))
    else {
        return Ok(rows.clone());
    };
    let dates = dates(times);
    let key = |values: &ArrayRef| SortColumn { values: values.clone(), options: None };
    let order = lexsort_to_indices(&[key(&dates), key(devices), key(times)], None)?;
    let mut columns = rows.columns().to_vec();
    columns.push(dates);
    let dated = RecordBatch::try_new(with_date_field(rows.schema_ref()), columns)?;
    Ok(take_record_batch(&dated, &order)?)
}

fn dates(times: &ArrayRef) -> ArrayRef {
    let micros = times.as_primitive::<TimestampMicrosecondType>();
    let dates: Date32Array = micros.unary(|micros| micros.div_euclid(MICROS_PER_DAY) as i32);
    Arc::new(dates)
}
