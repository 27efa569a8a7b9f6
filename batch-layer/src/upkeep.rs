//! Upkeep: few large files instead of many small ones, in raw tables, and state merged into state, in views.
//!
//! The cost of a commit and of planning a query grows with the number of live files, so this is not a luxury.
//! A rewrite changes no row's meaning and carries no frontier; it may run beside seals and batch runs.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use arrow::record_batch::RecordBatch;
use datafusion::common::Column;
use datafusion::datasource::provider_as_source;
use datafusion::logical_expr::{Expr, LogicalPlanBuilder};
use iot_schemas::layout::{DEVICE_ID, EVENT_TIME};
use iot_schemas::session::{context, small_context};
use iot_schemas::table::{FileInfo, Table};
use iot_schemas::view::{CompiledView, storage};

use crate::error::Result;

/// What upkeep aims at.
#[derive(Debug, Clone, Copy)]
pub struct UpkeepConfig {
    /// A partition is compacted once it has this many small files.
    pub min_files: usize,
    /// Files below this size are small.
    pub small_bytes: u64,
    /// At most so many bytes (compressed) are rewritten at once, which bounds the memory that it takes.
    pub max_bytes: u64,
    /// ... and at most so many rows.
    pub max_rows: u64,
    /// Files that are no longer live are kept this long, for readers of older snapshots.
    pub keep_dead: Duration,
}

impl Default for UpkeepConfig {
    fn default() -> Self {
        Self {
            min_files: 10,
            small_bytes: 32 << 20,
            max_bytes: 64 << 20,
            max_rows: 4_000_000,
            keep_dead: Duration::from_secs(3600),
        }
    }
}

/// What one round of upkeep did to a table.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize)]
pub struct UpkeepReport {
    /// Small files that were rewritten.
    pub files_merged: usize,
    /// Files that were deleted because no snapshot needs them any longer.
    pub files_deleted: usize,
}

/// Compacts a raw table (or any other whose rows must stay as they are).
pub async fn compact_rows(table: &Table, config: &UpkeepConfig) -> Result<UpkeepReport> {
    let mut report = UpkeepReport::default();
    for files in candidates(table, config) {
        let provider = table.snapshot().provider_of(&files).await?;
        let mut plan = LogicalPlanBuilder::scan("files", provider_as_source(provider), None)
            .map_err(iot_schemas::Error::from)?;
        let order: Vec<_> = [DEVICE_ID, EVENT_TIME]
            .iter()
            .filter(|name| plan.schema().field_with_unqualified_name(name).is_ok())
            .map(|name| Expr::Column(Column::new_unqualified(*name)).sort(true, true))
            .collect();
        if !order.is_empty() {
            plan = plan.sort(order).map_err(iot_schemas::Error::from)?;
        }
        let plan = plan.build().map_err(iot_schemas::Error::from)?;
        let rows = collect(plan).await?;
        table.rewrite(&files, &rows).await?;
        report.files_merged += files.len();
    }
    Ok(report)
}

/// Compacts a view's table: the state rows of a group are merged into one.
pub async fn compact_state(
    view: &CompiledView,
    table: &Arc<Table>,
    config: &UpkeepConfig,
) -> Result<UpkeepReport> {
    let mut report = UpkeepReport::default();
    for files in candidates(table, config) {
        let stored = view.stored_states(table.snapshot().provider_of(&files).await?)?;
        let mut plan = LogicalPlanBuilder::from(view.merge_plan(stored)?);
        let keys =
            view.keys().iter().map(|key| Expr::Column(Column::new_unqualified(&key.name)).sort(true, true));
        let keys = keys.collect::<Vec<_>>();
        if !keys.is_empty() {
            plan = plan.sort(keys).map_err(iot_schemas::Error::from)?;
        }
        let states = collect(plan.build().map_err(iot_schemas::Error::from)?).await?;
        let stored = states.iter().map(|batch| storage::to_storage(batch, view.storage_schema()));
        let stored = stored.collect::<Result<Vec<_>, _>>()?;
        table.rewrite(&files, &stored).await?;
        report.files_merged += files.len();
    }
    Ok(report)
}

/// Deletes what no reader needs any longer.
pub async fn vacuum(table: &Table, config: &UpkeepConfig) -> Result<usize> {
    Ok(table.vacuum(config.keep_dead).await?)
}

/// Groups of small files of one partition that are worth one larger file.
fn candidates(table: &Table, config: &UpkeepConfig) -> Vec<Vec<FileInfo>> {
    let mut partitions: BTreeMap<Vec<(String, Option<String>)>, Vec<FileInfo>> = BTreeMap::new();
    for file in table.snapshot().files() {
        if file.bytes < config.small_bytes {
            partitions.entry(file.partition.clone()).or_default().push(file);
        }
    }
    let mut groups = Vec::new();
    for mut files in partitions.into_values() {
        if files.len() < config.min_files {
            continue;
        }
        files.sort_by_key(|file| file.bytes);
        let (mut bytes, mut rows) = (0, 0);
        files.retain(|file| {
            bytes += file.bytes;
            rows += file.rows;
            bytes <= config.max_bytes && rows <= config.max_rows
        });
        if files.len() > 1 {
            groups.push(files);
        }
    }
    groups
}

async fn collect(plan: datafusion::logical_expr::LogicalPlan) -> Result<Vec<RecordBatch>> {
    let session = context(1, small_context().runtime_env());
    let frame = session.execute_logical_plan(plan).await.map_err(iot_schemas::Error::from)?;
    Ok(frame.collect().await.map_err(iot_schemas::Error::from)?)
}
