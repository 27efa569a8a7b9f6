//! The devices that the streams have seen.

use std::sync::Arc;

use datafusion::functions_aggregate::expr_fn::{count, max, min};
use datafusion::logical_expr::{LogicalPlan, LogicalPlanBuilder, col, lit};
use iot_schemas::Result;
use iot_schemas::layout::{DEVICE_ID, EVENT_TIME};
use iot_schemas::raw::RawStreams;

/// Finds devices in the raw streams. Costs a scan of two columns.
#[derive(Debug)]
pub(super) struct Devices {
    raw: Arc<dyn RawStreams>,
}

impl Devices {
    pub(super) fn new(raw: Arc<dyn RawStreams>) -> Self {
        Self { raw }
    }

    /// One row per stream and device: `stream`, `device_id`, `events`, `first_seen`, `last_seen` (event times).
    pub(super) async fn rows(&self) -> Result<LogicalPlan> {
        let mut all: Option<LogicalPlanBuilder> = None;
        for stream in self.raw.names() {
            let events = self.raw.snapshot(&stream)?.events().await?;
            let plan = LogicalPlanBuilder::from(events)
                .aggregate(
                    [col(DEVICE_ID)],
                    [
                        count(lit(1)).alias("events"),
                        min(col(EVENT_TIME)).alias("first_seen"),
                        max(col(EVENT_TIME)).alias("last_seen"),
                    ],
                )?
                .project([
                    lit(stream.to_string()).alias("stream"),
                    col(DEVICE_ID).alias("device_id"),
                    col("events"),
                    col("first_seen"),
                    col("last_seen"),
                ])?;
            all = Some(match all {
                Some(all) => all.union(plan.build()?)?,
                None => plan,
            });
        }
        match all {
            Some(all) => Ok(all.build()?),
            None => Ok(LogicalPlanBuilder::empty(false).build()?),
        }
    }
}
