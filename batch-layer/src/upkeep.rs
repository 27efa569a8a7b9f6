//! Upkeep: few large files instead of many small ones, in raw tables, and state merged into state, in views.
//!
//! The cost of a commit and of planning a query grows with the number of live files, so this is not a luxury.
//! A rewrite changes no row's meaning and carries no frontier; it may run beside seals and batch runs.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use arrow::record_batch::RecordBatch;
use datafusion::common::{Column, ScalarValue};
use datafusion::datasource::provider_as_source;
use datafusion::logical_expr::{Expr, LogicalPlan, LogicalPlanBuilder, lit};
use futures::{Stream, StreamExt, TryStreamExt};
use iot_schemas::layout::{DEVICE_ID, EVENT_TIME};
use iot_schemas::session::spilling_context;
use iot_schemas::table::{FileInfo, Table, TableSnapshot};
use iot_schemas::view::{CompiledView, storage};

use crate::error::Result;

/// Memory that sorting may take; what needs more spills.
const MEMORY_BYTES: usize = 256 << 20;
/// Rows that are read at a time. Dead letters may have megabytes each, and look small on disk.
const BATCH_ROWS: usize = 256;

/// What upkeep aims at.
#[derive(Debug, Clone, Copy)]
pub struct UpkeepConfig {
    /// A partition is compacted once it has this many small files.
    pub min_files: usize,
    /// Files below this size are small.
    pub small_bytes: u64,
    /// At most so many bytes (compressed) are rewritten at once.
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
    let snapshot = table.snapshot();
    for files in candidates(&snapshot, config) {
        let provider = snapshot.provider_of(&files).await?;
        let plan = LogicalPlanBuilder::scan("files", provider_as_source(provider), None)?;
        let order: Vec<_> = [DEVICE_ID, EVENT_TIME]
            .iter()
            .filter(|name| plan.schema().field_with_unqualified_name(name).is_ok())
            .map(|name| column(name).sort(true, true))
            .collect();
        let plan = if order.is_empty() { plan } else { plan.sort(order)? };
        let rows = stream(plan.build()?).await?;
        table.rewrite(&files, rows).await?;
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
    let snapshot = table.snapshot();
    if snapshot.definition() != Some(view.fingerprint()) {
        // The view has just been changed. Its new state is not to be merged as if it were the old.
        return Ok(report);
    }
    if !view.covers(&snapshot.schema()) {
        // It has got columns since it was looked up; the next round knows them.
        return Ok(report);
    }
    for files in candidates(&snapshot, config) {
        let stored = view.stored_states(snapshot.provider_of(&files).await?)?;
        let plan = LogicalPlanBuilder::from(view.merge_plan(stored)?);
        let order: Vec<_> = view.keys().iter().map(|key| column(&key.name).sort(true, true)).collect();
        let plan = if order.is_empty() { plan } else { plan.sort(order)? };
        let schema = view.storage_schema();
        let states = stream(plan.build()?).await?;
        let stored = states.map(|batch| storage::to_storage(&batch?, schema));
        table.rewrite(&files, stored).await?;
        report.files_merged += files.len();
    }
    Ok(report)
}

/// Deletes the rows whose `column` lies before `before` (microseconds since 1970), all in one commit, and returns how
/// many they were.
///
/// Files that hold none are not read: the table's log knows their lowest value.
pub async fn expire_rows(table: &Table, column_name: &str, before: i64) -> Result<u64> {
    let snapshot = table.snapshot();
    let before = lit(ScalarValue::TimestampMicrosecond(Some(before), Some("UTC".into())));
    let (mut files, mut expired) = (Vec::new(), 0);
    for file in snapshot.files() {
        let provider = snapshot.provider_of(std::slice::from_ref(&file)).await?;
        let old = LogicalPlanBuilder::scan("files", provider_as_source(provider), None)?
            .filter(column(column_name).lt(before.clone()))?
            .project([column(column_name)])?;
        let count = |n, batch: RecordBatch| async move { Ok(n + batch.num_rows() as u64) };
        let old = stream(old.build()?).await?.try_fold(0, count).await?;
        if old > 0 {
            files.push(file);
            expired += old;
        }
    }
    if expired > 0 {
        let provider = snapshot.provider_of(&files).await?;
        let kept = LogicalPlanBuilder::scan("files", provider_as_source(provider), None)?
            .filter(column(column_name).gt_eq(before))?;
        table.retain(&files, stream(kept.build()?).await?).await?;
    }
    Ok(expired)
}

/// Deletes what no reader needs any longer.
pub async fn vacuum(table: &Table, config: &UpkeepConfig) -> Result<usize> {
    Ok(table.vacuum(config.keep_dead).await?)
}

/// Groups of small files of one partition that are worth one larger file.
///
/// A file joins only if it is not larger than all smaller ones together: what was merged once waits until there is
/// as much again, so that a row is rewritten a logarithmic number of times and not at every round.
fn candidates(snapshot: &TableSnapshot, config: &UpkeepConfig) -> Vec<Vec<FileInfo>> {
    let mut partitions: BTreeMap<Vec<(String, Option<String>)>, Vec<FileInfo>> = BTreeMap::new();
    for file in snapshot.files() {
        if file.bytes < config.small_bytes {
            partitions.entry(file.partition.clone()).or_default().push(file);
        }
    }
    partitions.into_values().filter_map(|files| worth_merging(files, config)).collect()
}

fn worth_merging(mut files: Vec<FileInfo>, config: &UpkeepConfig) -> Option<Vec<FileInfo>> {
    files.sort_by_key(|file| file.bytes);
    let (mut bytes, mut rows, mut count) = (0, 0, 0);
    for file in &files {
        let dominates = count >= config.min_files && file.bytes > bytes;
        if dominates || bytes + file.bytes > config.max_bytes || rows + file.rows > config.max_rows {
            break;
        }
        bytes += file.bytes;
        rows += file.rows;
        count += 1;
    }
    files.truncate(count);
    (count >= config.min_files).then_some(files)
}

fn column(name: &str) -> Expr {
    Expr::Column(Column::new_unqualified(name))
}

/// Runs a plan within [`MEMORY_BYTES`]; a sort that needs more spills to disk.
async fn stream(plan: LogicalPlan) -> Result<impl Stream<Item = iot_schemas::Result<RecordBatch>> + Unpin> {
    let session = spilling_context(MEMORY_BYTES)?;
    let config = session.copied_config().with_batch_size(BATCH_ROWS);
    *session.state_ref().write().config_mut() = config;
    let rows = session.execute_logical_plan(plan).await?.execute_stream().await?;
    Ok(rows.map_err(iot_schemas::Error::from))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(bytes: u64) -> FileInfo {
        FileInfo { path: bytes.to_string(), bytes, rows: 1, partition: Vec::new() }
    }

    fn merged(sizes: &[u64]) -> Option<Vec<u64>> {
        let config = UpkeepConfig { min_files: 3, max_bytes: 1_000, ..UpkeepConfig::default() };
        let files = worth_merging(sizes.iter().copied().map(file).collect(), &config);
        files.map(|files| files.iter().map(|file| file.bytes).collect())
    }

    #[test]
    fn few_files_are_left_alone() {
        assert_eq!(merged(&[1, 1]), None);
    }

    #[test]
    fn what_was_merged_waits_until_there_is_as_much_again() {
        assert_eq!(merged(&[1, 100, 1, 1]), Some(vec![1, 1, 1]));
        assert_eq!(merged(&[40, 40, 100, 40]), Some(vec![40, 40, 40, 100]));
    }

    #[test]
    fn a_rewrite_is_bounded() {
        assert_eq!(merged(&[400, 400, 100, 400]), Some(vec![100, 400, 400]));
    }
}
