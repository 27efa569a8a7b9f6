//! How the registry begins with a stream that it does not know: by what the raw table holds.

use std::sync::Arc;

use arrow::array::{Array, AsArray, RecordBatch, TimestampMicrosecondArray};
use arrow::datatypes::{DataType, Int64Type, TimestampMicrosecondType};
use datafusion::common::Column;
use datafusion::functions_aggregate::expr_fn::{count, max, min};
use datafusion::logical_expr::{Expr, LogicalPlanBuilder, cast, lit, when};
use futures::StreamExt;
use iot_schemas::layout::{DEVICE_ID, EVENT_TIME, INGEST_TIME};
use iot_schemas::position::Frontier;
use iot_schemas::raw::{RawSnapshot, RawStreams};
use iot_schemas::session::{context, small_context};

use super::registry::Registry;
use super::seen::Seen;
use crate::error::Result;

/// Takes in the sealed rows of every stream that the registry does not know. Costs a scan of three columns each.
///
/// What rows do not tell stays unknown until the next word: status messages, and whether a Sparkplug device has died.
pub(crate) async fn seed(registry: &mut Registry, raw: &dyn RawStreams) -> Result<()> {
    for stream in raw.names() {
        if !registry.knows(&stream) {
            let snapshot = raw.snapshot(&stream)?;
            let limits = raw.definition(&stream).map(|def| def.time_limits());
            let devices = devices(&snapshot, limits.map_or(i64::MAX, |limits| limits.future)).await?;
            registry.begin(stream, snapshot.sealed.frontier().clone(), devices);
        }
    }
    Ok(())
}

/// `future`: how far an event's time may lie after its arrival and still be believed, in microseconds.
async fn devices(snapshot: &RawSnapshot, future: i64) -> Result<Vec<(Arc<str>, Seen)>> {
    let Some(events) = snapshot.sealed_between(&Frontier::empty(), None).await? else {
        return Ok(Vec::new());
    };
    let column = |name: &str| Expr::Column(Column::new_unqualified(name));
    let micros = |name: &str| cast(column(name), DataType::Int64);
    let is_believed = (micros(EVENT_TIME) - micros(INGEST_TIME)).lt_eq(lit(future));
    let time = when(is_believed, column(EVENT_TIME)).end()?;
    let bounds = [time, column(INGEST_TIME)].into_iter().flat_map(|time| [min(time.clone()), max(time)]);
    let plan = LogicalPlanBuilder::from(events)
        .aggregate([column(DEVICE_ID)], std::iter::once(count(lit(1))).chain(bounds))?
        .build()?;
    let session = context(2, small_context().runtime_env());
    let mut batches = session.execute_logical_plan(plan).await?.execute_stream().await?;
    let mut devices = Vec::new();
    while let Some(batch) = batches.next().await {
        devices.extend(of_batch(&batch?));
    }
    Ok(devices)
}

fn of_batch(rows: &RecordBatch) -> Vec<(Arc<str>, Seen)> {
    let names = rows.column(0).as_string::<i32>();
    let events = rows.column(1).as_primitive::<Int64Type>();
    let [first, last, first_arrival, last_arrival] =
        [2, 3, 4, 5].map(|at| rows.column(at).as_primitive::<TimestampMicrosecondType>());
    let device = |row: usize| {
        let bound = |times: &TimestampMicrosecondArray| times.is_valid(row).then(|| times.value(row));
        let time = (bound(first), bound(last));
        let arrival = (first_arrival.value(row), last_arrival.value(row));
        (names.value(row).into(), Seen::between(events.value(row) as u64, time, arrival))
    };
    (0..rows.num_rows()).map(device).collect()
}
