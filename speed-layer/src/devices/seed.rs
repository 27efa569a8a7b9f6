//! How the registry begins with a stream that it does not know: by what the raw table holds.

use std::sync::Arc;

use arrow::array::{AsArray, RecordBatch};
use arrow::datatypes::{Int64Type, TimestampMicrosecondType};
use datafusion::common::Column;
use datafusion::functions_aggregate::expr_fn::{count, max, min};
use datafusion::logical_expr::{Expr, LogicalPlanBuilder, lit};
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
            let devices = devices(&snapshot).await?;
            registry.begin(stream, snapshot.sealed.frontier().clone(), devices);
        }
    }
    Ok(())
}

async fn devices(snapshot: &RawSnapshot) -> Result<Vec<(Arc<str>, Seen)>> {
    let Some(events) = snapshot.sealed_between(&Frontier::empty(), None).await? else {
        return Ok(Vec::new());
    };
    let column = |name: &str| Expr::Column(Column::new_unqualified(name));
    let bounds =
        [EVENT_TIME, INGEST_TIME].into_iter().flat_map(|name| [min(column(name)), max(column(name))]);
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
        let time = (first.value(row), last.value(row));
        let arrival = (first_arrival.value(row), last_arrival.value(row));
        (names.value(row).into(), Seen::between(events.value(row) as u64, time, arrival))
    };
    (0..rows.num_rows()).map(device).collect()
}
