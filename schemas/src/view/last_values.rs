//! The view that is kept of every stream without being asked for: the last value of each column, by device.
//!
//! ```text
//! SELECT "device_id", max("event_time") AS "event_time", last("c", "event_time") AS "c", ...
//! FROM "s" GROUP BY "device_id"
//! ```
//!
//! It is a view like any other, except that it follows the columns of its stream. A column that appears was null
//! until then, so its state of all earlier events is empty; an integer column that becomes one of doubles keeps the
//! order of its values, so the cast of the last value is the last of the casts. Either way the state is carried over
//! column by column and no event is read again. For that its state columns are called after the stream's (see
//! [`state_column`]), whatever their order, and one fingerprint stands for all its shapes. Only a column that is
//! renamed has a past under its old name: then the view becomes another one, which is seeded from raw.

use std::sync::Arc;

use arrow::array::{ArrayRef, StructArray, new_null_array};
use arrow::datatypes::{DataType, Field, Fields, Schema, SchemaRef};
use arrow::record_batch::{RecordBatch, RecordBatchOptions};
use datafusion::common::ScalarValue;

use super::{CompiledView, storage};
use crate::catalog::{BatchSchedule, Kind, ViewDef};
use crate::error::Result;
use crate::layout::{DEVICE_ID, EVENT_TIME, RESERVED};
use crate::registry::Renames;

/// The name of the last-value view of `stream`.
pub fn last_values_name(stream: &str) -> String {
    format!("{stream}_last")
}

/// The last-value view of `stream`, whose raw rows have the columns `schema`, some of them under new names.
pub fn last_values(stream: &str, schema: &Schema, renames: &Renames) -> ViewDef {
    let columns = own_columns(schema).map(|field| {
        let name = field.name();
        format!(",\n       last(\"{name}\", \"{EVENT_TIME}\") AS \"{name}\"")
    });
    let sql = format!(
        "{}SELECT \"{DEVICE_ID}\", max(\"{EVENT_TIME}\") AS \"{EVENT_TIME}\"{}\nFROM \"{stream}\" GROUP BY \"{DEVICE_ID}\"\n",
        renamed(renames),
        columns.collect::<String>()
    );
    ViewDef {
        kind: Kind::View,
        name: last_values_name(stream),
        sql,
        batch: BatchSchedule::default(),
        retention: None,
        generated: true,
    }
}

/// A comment in front of the query that says which columns had another name.
fn renamed(renames: &Renames) -> String {
    renames.iter().map(|(new, old)| format!("-- \"{new}\" was \"{old}\"\n")).collect()
}

/// What of a last-value view's query says that state made under another one is not its own: renamed columns have a past.
pub(super) fn shape_of_names(sql: &str) -> &str {
    let is_comment = |line: &&str| line.starts_with("-- ");
    &sql[..sql.split_inclusive('\n').take_while(is_comment).map(str::len).sum()]
}

/// Whether a last-value view shows the columns of its stream as they are now, each in its type, and those that were
/// renamed with their past.
pub fn shows_columns(view: &CompiledView, schema: &Schema, renames: &Renames) -> bool {
    if shape_of_names(&view.def().sql) != renamed(renames) {
        return false;
    }
    let shown = view.input_schema();
    let as_it_is = |field: &Arc<Field>| {
        shown.field_with_name(field.name()).is_ok_and(|known| known.data_type() == field.data_type())
    };
    // Beside its own columns a stream has the device and the time, which every shape of the view reads.
    own_columns(schema).count() + 2 == shown.fields().len() && own_columns(schema).all(as_it_is)
}

/// What a stream has beside device, time and provenance.
fn own_columns(schema: &Schema) -> impl Iterator<Item = &Arc<Field>> {
    schema.fields().iter().filter(|field| !RESERVED.contains(&field.name().as_str()))
}

/// The column of state rows that holds the state of the stream's column `column`.
pub(super) fn state_column(column: &str) -> String {
    format!("state_{column}")
}

/// State rows of one shape of a last-value view as those of another, column by column: a column that was not there
/// has empty states, and a value takes the wider type. Costs nothing for the columns that stay.
pub fn reshape_states(states: &RecordBatch, schema: &SchemaRef) -> Result<RecordBatch> {
    let columns = schema.fields().iter().map(|field| match states.column_by_name(field.name()) {
        Some(column) => storage::restore_array(column, field.data_type()),
        None => Ok(empty_states(field.data_type(), states.num_rows())),
    });
    let options = RecordBatchOptions::new().with_row_count(Some(states.num_rows()));
    let columns = columns.collect::<Result<Vec<_>>>()?;
    Ok(RecordBatch::try_new_with_options(schema.clone(), columns, &options)?)
}

/// The state of no event at all, as a constant.
pub(super) fn empty_state(data_type: &DataType) -> Result<ScalarValue> {
    Ok(ScalarValue::try_from_array(&empty_states(data_type, 1), 0)?)
}

/// A state is there for every group; that of no event has nulls in it.
fn empty_states(data_type: &DataType, rows: usize) -> ArrayRef {
    let DataType::Struct(fields) = data_type else { return new_null_array(data_type, rows) };
    let parts = fields.iter().map(|field| new_null_array(field.data_type(), rows)).collect();
    let fields: Fields = fields.iter().map(|field| field.as_ref().clone().with_nullable(true)).collect();
    Arc::new(StructArray::new(fields, parts, None))
}

#[cfg(test)]
mod tests {
    use arrow::array::{Float64Array, Int64Array, StringArray, TimestampMicrosecondArray};
    use arrow::util::pretty::pretty_format_batches;
    use datafusion::datasource::MemTable;

    use super::*;
    use crate::layout::raw_schema;
    use crate::session::small_context;
    use crate::table::cast_to;
    use crate::view::{plan_over_batches, states_in_memory};

    fn stream(own: &[(&str, DataType)]) -> SchemaRef {
        raw_schema(own.iter().map(|(name, data_type)| Field::new(*name, data_type.clone(), true)))
    }

    async fn compiled(schema: &SchemaRef) -> CompiledView {
        let def = Arc::new(last_values("s", schema, &Renames::default()));
        CompiledView::compile(def, "s", schema).await.expect("it compiles")
    }

    /// Events of two devices, a second apart: each has the value where it is given.
    fn events(name: &str, values: ArrayRef, first_second: i64) -> RecordBatch {
        let seconds = (0..values.len() as i64).map(|i| (first_second + i) * 1_000_000);
        let devices: StringArray = (0..values.len()).map(|i| Some(format!("d{}", i % 2))).collect();
        let times = TimestampMicrosecondArray::from_iter_values(seconds).with_timezone("UTC");
        let columns =
            [(EVENT_TIME, Arc::new(times) as ArrayRef), (DEVICE_ID, Arc::new(devices)), (name, values)];
        RecordBatch::try_from_iter_with_nullable(columns.map(|(name, column)| (name, column, true)))
            .expect("a batch")
    }

    async fn states(view: &CompiledView, events: &RecordBatch) -> Vec<RecordBatch> {
        let context = small_context();
        let plan = plan_over_batches(&context, view.input_schema(), |rows| view.state_plan(rows)).await;
        let events = cast_to(events, view.input_schema()).expect("it has the columns");
        plan.expect("it plans").run(vec![events]).await.expect("it runs")
    }

    async fn finished(view: &CompiledView, states: datafusion::logical_expr::LogicalPlan) -> String {
        let context = small_context();
        let plan = view.finish_plan(states).expect("it plans");
        let rows =
            context.execute_logical_plan(plan).await.expect("it plans").collect().await.expect("it runs");
        let mut lines: Vec<String> =
            pretty_format_batches(&rows).expect("prints").to_string().lines().map(str::to_owned).collect();
        lines.sort();
        lines.join("\n")
    }

    #[test]
    fn it_shows_the_streams_own_columns() {
        let def = last_values(
            "s",
            &stream(&[("a", DataType::Int64), ("Group", DataType::Utf8)]),
            &Renames::default(),
        );
        assert_eq!(def.name, "s_last");
        assert!(def.generated);
        let sql = "SELECT \"device_id\", max(\"event_time\") AS \"event_time\",\n       last(\"a\", \"event_time\") AS \"a\",\n       \
                   last(\"Group\", \"event_time\") AS \"Group\"\nFROM \"s\" GROUP BY \"device_id\"\n";
        assert_eq!(def.sql, sql);
        assert!(!last_values("s", &stream(&[]), &Renames::default()).sql.contains("last("));
    }

    #[tokio::test]
    async fn it_is_current_while_the_stream_has_the_same_columns_in_any_order() {
        let before = stream(&[("a", DataType::Int64), ("b", DataType::Utf8)]);
        let view = compiled(&before).await;
        assert!(shows_columns(&view, &before, &Renames::default()));
        assert!(shows_columns(
            &view,
            &stream(&[("b", DataType::Utf8), ("a", DataType::Int64)]),
            &Renames::default()
        ));
        for later in [
            stream(&[("a", DataType::Float64), ("b", DataType::Utf8)]),
            stream(&[("a", DataType::Int64), ("b", DataType::Utf8), ("c", DataType::Utf8)]),
        ] {
            assert!(!shows_columns(&view, &later, &Renames::default()));
            let later = compiled(&later).await;
            assert_eq!(later.fingerprint(), view.fingerprint(), "their states can be merged");
            assert!(!view.covers(later.storage_schema()), "it would drop what it does not know");
        }
        let more =
            compiled(&stream(&[("c", DataType::Utf8), ("a", DataType::Int64), ("b", DataType::Utf8)])).await;
        assert!(more.covers(view.storage_schema()));
    }

    #[tokio::test]
    async fn states_of_an_earlier_shape_count_in_memory_and_in_a_table() {
        let before = compiled(&stream(&[("n", DataType::Int64)])).await;
        let later =
            compiled(&stream(&[("text", DataType::Utf8), ("n", DataType::Float64), ("m", DataType::Int64)]))
                .await;
        // Two values at the same time, on either side: the greater one is the last, whatever its type was.
        let early = events("n", Arc::new(Int64Array::from(vec![Some(7), Some(9), Some(8), None])), 0);
        let late = events("n", Arc::new(Float64Array::from(vec![Some(7.5), Some(8.5)])), 2);
        let early = states(&before, &early).await;
        let late = states(&later, &late).await;

        let reshaped =
            early.iter().map(|batch| reshape_states(batch, later.state_schema()).expect("reshapes"));
        let all: Vec<RecordBatch> = reshaped.chain(late.clone()).collect();
        let in_memory = states_in_memory(later.state_schema(), all).expect("a plan");

        let stored =
            early.iter().map(|batch| storage::to_storage(batch, before.storage_schema()).expect("stored"));
        let table =
            MemTable::try_new(before.storage_schema().clone(), vec![stored.collect()]).expect("a table");
        let stored = later.stored_states(Arc::new(table)).expect("restores");
        let fresh = states_in_memory(later.state_schema(), late).expect("a plan");
        let both =
            datafusion::logical_expr::LogicalPlanBuilder::from(stored).union(fresh).expect("same columns");

        let expected = "\
            +-----------+----------------------+------+-----+---+\n\
            +-----------+----------------------+------+-----+---+\n\
            +-----------+----------------------+------+-----+---+\n\
            | d0        | 1970-01-01T00:00:02Z |      | 8.0 |   |\n\
            | d1        | 1970-01-01T00:00:03Z |      | 8.5 |   |\n\
            | device_id | event_time           | text | n   | m |";
        assert_eq!(finished(&later, in_memory).await, expected);
        assert_eq!(finished(&later, both.build().expect("a plan")).await, expected);
    }
}
