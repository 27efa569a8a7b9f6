//! A table as its readers see it.

use std::fmt;
use std::sync::Arc;

use arrow::datatypes::SchemaRef;
use datafusion::catalog::TableProvider;
use deltalake::DeltaTable;

use super::Commit;
use super::scan::FilesTable;
use crate::error::Result;
use crate::layout::{DEFINITION_APP_ID, GENERATION_APP_ID, frontier_app_id};
use crate::position::{Frontier, NodeId};

/// A file of a snapshot.
#[derive(Debug, Clone)]
pub struct FileInfo {
    /// Its path, relative to the table.
    pub path: String,
    /// Its size in bytes.
    pub bytes: u64,
    /// Its rows, if the log knows.
    pub rows: u64,
    /// Its partition values.
    pub partition: Vec<(String, Option<String>)>,
}

/// A table at one version.
#[derive(Clone)]
pub struct TableSnapshot {
    pub(super) delta: DeltaTable,
    pub(super) frontier: Frontier,
    generation: i64,
    pub(super) definition: Option<i64>,
}

impl fmt::Debug for TableSnapshot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TableSnapshot")
            .field("url", &self.delta.table_url().as_str())
            .field("version", &self.delta.version())
            .field("frontier", &self.frontier)
            .finish_non_exhaustive()
    }
}

impl TableSnapshot {
    pub(super) async fn read(delta: DeltaTable, nodes: &[NodeId]) -> Result<Self> {
        let log_store = delta.log_store();
        let state = delta.snapshot()?;
        let mut frontier = Frontier::empty();
        for node in nodes {
            let version = state.transaction_version(log_store.as_ref(), frontier_app_id(node)).await?;
            frontier.advance(node, version.unwrap_or(0) as u64);
        }
        let generation = state.transaction_version(log_store.as_ref(), GENERATION_APP_ID).await?.unwrap_or(0);
        let definition = state.transaction_version(log_store.as_ref(), DEFINITION_APP_ID).await?;
        Ok(Self { delta, frontier, generation, definition })
    }

    /// The state after a commit to this one.
    pub(super) fn advanced(mut self, delta: DeltaTable, commit: Commit) -> Self {
        self.delta = delta;
        // An application transaction is what the last commit said, also where that is less (see `reset`).
        for (node, seq) in commit.frontier.iter() {
            self.frontier.set(node, seq);
        }
        self.generation = commit.generation.unwrap_or(self.generation);
        self.definition = commit.definition.or(self.definition);
        self
    }

    /// The frontier that the rows cover.
    pub fn frontier(&self) -> &Frontier {
        &self.frontier
    }

    /// The batch generation, 0 before the first.
    pub fn generation(&self) -> i64 {
        self.generation
    }

    /// The fingerprint of the view that made the rows.
    pub fn definition(&self) -> Option<i64> {
        self.definition
    }

    /// The version in the Delta log.
    pub fn version(&self) -> u64 {
        self.delta.version().unwrap_or(0)
    }

    /// The columns.
    pub fn schema(&self) -> SchemaRef {
        let state = self.delta.snapshot().expect("a snapshot is made from a loaded table");
        state.snapshot().arrow_schema()
    }

    /// The live files.
    pub fn files(&self) -> Vec<FileInfo> {
        let state = self.delta.snapshot().expect("a snapshot is made from a loaded table");
        state
            .log_data()
            .iter()
            .map(|file| FileInfo {
                path: file.path().into_owned(),
                bytes: file.size().max(0) as u64,
                rows: file.num_records().unwrap_or(0) as u64,
                partition: {
                    let mut values: Vec<_> = file.partition_values_map().into_iter().collect();
                    values.sort();
                    values
                },
            })
            .collect()
    }

    /// How many live files there are.
    pub fn file_count(&self) -> usize {
        self.delta.snapshot().map_or(0, |state| state.log_data().num_files())
    }

    /// The rows, from the log's statistics.
    pub fn row_count(&self) -> u64 {
        self.files().iter().map(|file| file.rows).sum()
    }

    /// The rows as a DataFusion table. Filters prune files by partition and statistics.
    pub async fn provider(&self) -> Result<Arc<dyn TableProvider>> {
        Ok(self.delta.table_provider().await?)
    }

    /// The rows as a DataFusion table that is quick to plan, for tables without partitions in whose files no column is
    /// missing. Filters prune files, row groups and pages.
    pub fn state_provider(&self) -> Arc<dyn TableProvider> {
        Arc::new(FilesTable::new(self.delta.clone(), self.schema()))
    }

    /// The rows of some of its files.
    pub async fn provider_of(&self, files: &[FileInfo]) -> Result<Arc<dyn TableProvider>> {
        Ok(self.delta.table_provider().with_file_paths(files.iter().map(|file| file.path.clone())).await?)
    }
}
