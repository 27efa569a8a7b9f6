//! Tables on object storage: the one way in which our crates write and read Delta Lake.
//!
//! A [`Table`] is a single committer. Each commit carries the *frontier* that its rows complete as Delta
//! application transactions, so that rows and frontier become visible together or not at all: a writer that
//! died and comes back reads the frontier and knows exactly which positions are in. What a commit names is on the
//! disk before the commit is (`durable.rs`), so that a log may be trimmed for its sake.
//!
//! Readers hold a [`TableSnapshot`], which stays valid until its files are vacuumed.

mod durable;
mod faults;
mod files;
mod patient;
mod scan;
mod snapshot;
mod store;

use std::collections::VecDeque;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use arrow::datatypes::SchemaRef;
use arrow::record_batch::RecordBatch;
use datafusion::prelude::SessionContext;
use deltalake::checkpoints::cleanup_expired_logs_for;
use deltalake::kernel::engine::arrow_conversion::TryIntoKernel;
use deltalake::kernel::transaction::CommitBuilder;
use deltalake::kernel::{Action, Metadata, MetadataExt, StructType, Transaction};
use deltalake::operations::vacuum::VacuumMode;
use deltalake::protocol::{DeltaOperation, SaveMode};
use deltalake::writer::RecordBatchWriter;
use deltalake::{DeltaTable, DeltaTableBuilder};
use futures::{Stream, TryStreamExt};
use parking_lot::{Mutex, RwLock};
use url::Url;

use crate::disk;
use crate::error::{Error, Result};
use crate::layout::{DEFINITION_APP_ID, GENERATION_APP_ID, frontier_app_id};
use crate::position::{Frontier, NodeId};
use files::{
    FileWriter, STATISTICS_KEYS, create, merge_schemas, removes, statistics, write_files, write_operation,
};

pub use faults::Faults;
pub use files::cast_to;
pub(crate) use patient::IN_VAIN;
pub use patient::{LONGEST_PAUSE, Patience, install};
pub use snapshot::{FileInfo, TableSnapshot};
pub use store::Store;

/// Compaction and recompute write files of about this size.
pub const TARGET_FILE_BYTES: u64 = 128 << 20;
/// A checkpoint of the log every so many commits.
const CHECKPOINT_EVERY: u64 = 25;
/// Log entries behind the newest checkpoint are kept this long, for readers that are about to read them ...
const LOG_KEPT_MS: i64 = 3_600_000;
/// ... but no more than so many checkpoints back, for every commit lists the log.
const CHECKPOINTS_KEPT: usize = 8;

/// What a table is created with.
#[derive(Debug, Clone)]
pub struct TableSpec {
    /// The folder below the store's root.
    pub path: String,
    /// The columns, with the types of Delta Lake (see [`crate::view::storage`] for the mapping).
    pub schema: SchemaRef,
    /// The partition columns.
    pub partition_by: Vec<String>,
    /// The columns that get min/max statistics in the log. Others have them in the Parquet footers only.
    pub stats_columns: Vec<String>,
    /// The ingest nodes whose frontier the table carries.
    pub nodes: Vec<NodeId>,
}

/// What goes into the log together with rows.
#[derive(Debug, Clone, Default)]
pub struct Commit {
    /// The frontier that the table covers with this commit.
    pub frontier: Frontier,
    /// The batch generation, for view tables.
    pub generation: Option<i64>,
    /// The fingerprint of the view that made the rows, for view tables.
    pub definition: Option<i64>,
}

/// Rows that wait to take the place of a table's; see [`Table::stage`].
#[derive(Debug)]
pub struct Staged {
    schema: SchemaRef,
    stats_columns: Vec<String>,
    adds: Vec<Action>,
    _uncommitted: Option<Arc<()>>,
}

impl Staged {
    /// Nothing yet, for rows of `schema`, of which `stats_columns` get statistics in the log.
    pub fn new(schema: SchemaRef, stats_columns: Vec<String>) -> Self {
        Self { schema, stats_columns, adds: Vec::new(), _uncommitted: None }
    }
}

/// A table and its only committer in this process. Cheap to share; commits take turns.
pub struct Table {
    spec: TableSpec,
    committer: tokio::sync::Mutex<()>,
    snapshot: RwLock<TableSnapshot>,
    /// Held by everybody who has written files that are not committed yet.
    uncommitted: Arc<()>,
    /// When the newest checkpoints were written (Unix milliseconds), oldest first.
    checkpoints: Mutex<VecDeque<i64>>,
}

impl fmt::Debug for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Table").field("spec", &self.spec).finish_non_exhaustive()
    }
}

impl Table {
    /// Opens the table, creating it if it is not there.
    pub async fn open(store: &Store, spec: TableSpec) -> Result<Self> {
        let url = store.url(&spec.path)?;
        if url.scheme() == "file" {
            let dir = store.local_path(&spec.path)?;
            disk::create_dirs(&dir).map_err(|e| Error::io(format!("creating {}", dir.display()), e))?;
        }
        let mut delta = DeltaTableBuilder::from_url(url)?.build()?;
        if delta.verify_deltatable_existence().await? {
            delta.load().await?;
        } else {
            delta = create(delta, &spec).await?;
        }
        let snapshot = TableSnapshot::read(delta, &spec.nodes).await?;
        Ok(Self {
            spec,
            committer: tokio::sync::Mutex::new(()),
            snapshot: RwLock::new(snapshot),
            uncommitted: Arc::default(),
            checkpoints: Mutex::new(VecDeque::new()),
        })
    }

    /// The newest committed state.
    pub fn snapshot(&self) -> TableSnapshot {
        self.snapshot.read().clone()
    }

    /// Appends rows, in files split by partition, and commits them together with `commit`.
    ///
    /// No rows is fine: the frontier moves all the same. If the table covers the frontier already (an earlier try
    /// was committed and its answer was lost), nothing is written: repeating a call adds nothing twice.
    pub async fn append(&self, batches: &[RecordBatch], commit: Commit) -> Result<TableSnapshot> {
        let _turn = self.committer.lock().await;
        let snapshot = self.snapshot();
        self.check_definition(&snapshot, &commit)?;
        if !commit.frontier.is_empty() && snapshot.frontier.covers_all(&commit.frontier) {
            return Ok(snapshot);
        }
        let delta = snapshot.delta;
        let adds =
            write_files(RecordBatchWriter::for_table(&delta)?, &self.spec.partition_by, batches).await?;
        self.commit(delta, adds, commit, write_operation(SaveMode::Append, &self.spec)).await
    }

    /// Replaces all rows by `batches` in one commit.
    pub async fn replace(&self, batches: &[RecordBatch], commit: Commit) -> Result<TableSnapshot> {
        let _turn = self.committer.lock().await;
        let snapshot = self.snapshot();
        self.check_definition(&snapshot, &commit)?;
        let delta = snapshot.delta;
        let mut actions: Vec<Action> = removes(&delta, |_| true, true)?;
        actions.extend(
            write_files(RecordBatchWriter::for_table(&delta)?, &self.spec.partition_by, batches).await?,
        );
        self.commit(delta, actions, commit, write_operation(SaveMode::Overwrite, &self.spec)).await
    }

    /// Writes rows of another schema beside those of the table, for [`Self::switch`]. Readers see nothing of it.
    ///
    /// Holds about a file in memory. [`Self::vacuum`] spares the files for as long as `staged` lives.
    pub async fn stage(
        &self,
        staged: &mut Staged,
        mut rows: impl Stream<Item = Result<RecordBatch>> + Unpin,
    ) -> Result<()> {
        staged._uncommitted.get_or_insert_with(|| self.uncommitted.clone());
        let url = self.snapshot().delta.table_url().clone();
        let mut writer = self.writer_for(&url, &staged.schema)?;
        while let Some(batch) = rows.try_next().await? {
            writer.write(&batch).await?;
        }
        staged.adds.extend(writer.finish().await?.into_iter().map(Action::Add));
        Ok(())
    }

    /// Exchanges everything, rows, columns and frontier, for what was staged, in one commit.
    pub async fn switch(&self, staged: Staged, commit: Commit) -> Result<TableSnapshot> {
        let _turn = self.committer.lock().await;
        let delta = self.snapshot().delta;
        let (key, columns) = statistics(&staged.stats_columns);
        let mut metadata = self.metadata(&delta, &staged.schema)?;
        for other in STATISTICS_KEYS.iter().filter(|other| **other != key) {
            metadata = metadata.remove_config_key(other).map_err(corrupt(&self.spec.path))?;
        }
        let metadata = metadata.add_config_key(key.to_owned(), columns).map_err(corrupt(&self.spec.path))?;
        let mut actions = vec![Action::Metadata(metadata)];
        actions.extend(removes(&delta, |_| true, true)?);
        actions.extend(staged.adds);
        let mut commit = commit;
        for node in &self.spec.nodes {
            // Delta keeps the last version of an application transaction, whatever it is: 0 is "nothing covered".
            commit.frontier.set(node, commit.frontier.get(node));
        }
        self.commit(delta, actions, commit, write_operation(SaveMode::Overwrite, &self.spec)).await
    }

    /// The table's metadata with other columns.
    fn metadata(&self, delta: &DeltaTable, schema: &SchemaRef) -> Result<Metadata> {
        let schema: StructType = schema.as_ref().try_into_kernel().map_err(corrupt(&self.spec.path))?;
        delta.snapshot()?.metadata().clone().with_schema(&schema).map_err(corrupt(&self.spec.path))
    }

    /// Replaces some files by `rows`, which are the same in another arrangement (or, for state, merge to the same).
    /// The frontier stays. Fails if one of the files is gone.
    ///
    /// Holds a row group in memory, not the files. Seals go on meanwhile; only the commit takes its turn.
    pub async fn rewrite(
        &self,
        files: &[FileInfo],
        rows: impl Stream<Item = Result<RecordBatch>> + Unpin,
    ) -> Result<TableSnapshot> {
        self.exchange(files, rows, false).await
    }

    /// Replaces some files by those of their `rows` that are to stay. Otherwise like [`Self::rewrite`].
    pub async fn retain(
        &self,
        files: &[FileInfo],
        rows: impl Stream<Item = Result<RecordBatch>> + Unpin,
    ) -> Result<TableSnapshot> {
        self.exchange(files, rows, true).await
    }

    /// `data_change` says whether the rows are other ones afterwards.
    async fn exchange(
        &self,
        files: &[FileInfo],
        mut rows: impl Stream<Item = Result<RecordBatch>> + Unpin,
        data_change: bool,
    ) -> Result<TableSnapshot> {
        let _uncommitted = self.uncommitted.clone();
        let writer = RecordBatchWriter::for_table(&self.snapshot().delta)?;
        let mut writer = FileWriter::new(writer, &self.spec.partition_by);
        while let Some(batch) = rows.try_next().await? {
            writer.write(&batch).await?;
        }
        let added = writer.finish().await?.into_iter().map(|mut add| {
            add.data_change = data_change;
            Action::Add(add)
        });
        let _turn = self.committer.lock().await;
        let delta = self.snapshot().delta;
        let mut actions = removes(&delta, |path| files.iter().any(|file| file.path == path), data_change)?;
        if actions.len() != files.len() {
            return Err(Error::invalid(format!(
                "{}: the files to rewrite have changed; try again",
                self.spec.path
            )));
        }
        actions.extend(added);
        let operation = match data_change {
            true => DeltaOperation::Delete { predicate: None },
            false => DeltaOperation::Optimize { predicate: None, target_size: TARGET_FILE_BYTES as i64 },
        };
        self.commit(delta, actions, Commit::default(), operation).await
    }

    /// Makes the table's schema cover `wanted`: new columns are added as nullable, integers become doubles.
    ///
    /// A column that is widened is rewritten in every file, so that readers of the open table need to know
    /// nothing about it. Costs the size of the table, then, and happens once per column.
    pub async fn evolve(&self, wanted: &SchemaRef) -> Result<TableSnapshot> {
        let current = self.snapshot().schema();
        let (merged, widened) = merge_schemas(&current, wanted)?;
        if merged == *current {
            return Ok(self.snapshot());
        }
        let _turn = self.committer.lock().await;
        let delta = self.snapshot().delta;
        let merged: SchemaRef = Arc::new(merged);
        let metadata = self.metadata(&delta, &merged)?;
        let mut actions = vec![Action::Metadata(metadata)];
        if widened && self.snapshot().file_count() > 0 {
            actions.extend(removes(&delta, |_| true, false)?);
            actions.extend(self.rewritten_as(&delta, &merged).await?);
        }
        let operation = write_operation(SaveMode::Append, &self.spec);
        self.commit(delta, actions, Commit::default(), operation).await
    }

    /// All rows, cast to `schema` and written to new files.
    async fn rewritten_as(&self, delta: &DeltaTable, schema: &SchemaRef) -> Result<Vec<Action>> {
        let provider = self.snapshot().provider().await?;
        let context = SessionContext::new();
        let mut rows = context.read_table(provider)?.execute_stream().await?;
        let mut writer = self.writer_for(delta.table_url(), schema)?;
        while let Some(batch) = rows.try_next().await? {
            writer.write(&batch).await?;
        }
        Ok(writer.finish().await?.into_iter().map(Action::Add).collect())
    }

    /// A writer of rows that the table is going to have.
    fn writer_for(&self, url: &Url, schema: &SchemaRef) -> Result<FileWriter> {
        let partitions = Some(self.spec.partition_by.clone());
        let writer = RecordBatchWriter::try_new(url, schema.clone(), partitions, None)?;
        Ok(FileWriter::new(writer, &self.spec.partition_by))
    }

    /// Deletes files that no snapshot of the last `keep` needs, also those that a writer left behind which died before
    /// its commit. (The log alone does not know these, nor what was removed before its newest checkpoint.) Returns how
    /// many.
    pub async fn vacuum(&self, keep: Duration) -> Result<usize> {
        let _turn = self.committer.lock().await;
        let delta = self.snapshot().delta;
        let keep = chrono::Duration::from_std(keep).unwrap_or(chrono::Duration::MAX);
        // What is being written may be older than `keep` when it is committed at last.
        let idle = Arc::strong_count(&self.uncommitted) == 1;
        let (delta, metrics) = delta
            .vacuum()
            .with_mode(if idle { VacuumMode::Full } else { VacuumMode::Lite })
            .with_retention_period(keep)
            .with_enforce_retention_duration(false)
            .await?;
        *self.snapshot.write() = TableSnapshot::read(delta, &self.spec.nodes).await?;
        Ok(metrics.files_deleted.len())
    }

    /// Rows of one definition do not go to those of another: a view may change while a batch run is under way.
    fn check_definition(&self, snapshot: &TableSnapshot, commit: &Commit) -> Result<()> {
        match (snapshot.definition, commit.definition) {
            (Some(have), Some(given)) if have != given => {
                let path = &self.spec.path;
                Err(Error::invalid(format!(
                    "{path}: the view has been changed meanwhile; run the batch again"
                )))
            }
            _ => Ok(()),
        }
    }

    /// Reads the table anew after a failed commit, which may have been written all the same. If that fails too,
    /// the next commit conflicts and comes here again.
    async fn refresh(&self, mut delta: DeltaTable) {
        let refreshed = match delta.update_state().await {
            Ok(()) => TableSnapshot::read(delta, &self.spec.nodes).await,
            Err(e) => Err(e.into()),
        };
        match refreshed {
            Ok(snapshot) => *self.snapshot.write() = snapshot,
            Err(e) => tracing::warn!("reading {} anew: {e}", self.spec.path),
        }
    }

    async fn commit(
        &self,
        mut delta: DeltaTable,
        actions: Vec<Action>,
        commit: Commit,
        operation: DeltaOperation,
    ) -> Result<TableSnapshot> {
        let mut transactions: Vec<Transaction> = commit
            .frontier
            .iter()
            .map(|(node, seq)| Transaction::new(frontier_app_id(node), seq as i64))
            .collect();
        transactions.extend(commit.generation.map(|g| Transaction::new(GENERATION_APP_ID, g)));
        transactions.extend(commit.definition.map(|d| Transaction::new(DEFINITION_APP_ID, d)));
        let properties = deltalake::kernel::transaction::CommitProperties::default()
            .with_application_transactions(transactions)
            .with_cleanup_expired_logs(Some(false))
            .with_max_retries(5);
        let committed = CommitBuilder::from(properties)
            .with_actions(actions)
            .build(Some(delta.snapshot()?), delta.log_store(), operation)
            .await;
        let finalized = match committed {
            Ok(finalized) => finalized,
            Err(e) => {
                self.refresh(delta).await;
                return Err(e.into());
            }
        };
        delta = DeltaTable::new(delta.log_store());
        delta.state = Some(finalized.snapshot());
        // Nobody else commits these transactions; reading them back would replay the log.
        let snapshot = self.snapshot().advanced(delta, commit);
        *self.snapshot.write() = snapshot.clone();
        if (finalized.version() + 1).is_multiple_of(CHECKPOINT_EVERY) {
            self.trim_log(&snapshot).await;
        }
        Ok(snapshot)
    }

    /// Deletes log entries that no reader needs any longer. What fails now is tried again at the next checkpoint.
    async fn trim_log(&self, snapshot: &TableSnapshot) {
        let written =
            snapshot.delta.snapshot().ok().and_then(|state| state.version_timestamp(snapshot.version()));
        let Some(now) = written else { return };
        let cutoff = {
            let mut checkpoints = self.checkpoints.lock();
            checkpoints.push_back(now);
            if checkpoints.len() > CHECKPOINTS_KEPT {
                checkpoints.pop_front();
            }
            let oldest = checkpoints.front().filter(|_| checkpoints.len() == CHECKPOINTS_KEPT);
            oldest.map_or(now - LOG_KEPT_MS, |oldest| (now - LOG_KEPT_MS).max(*oldest))
        };
        let log_store = snapshot.delta.log_store();
        let trimmed = cleanup_expired_logs_for(snapshot.version(), log_store.as_ref(), cutoff, None).await;
        if let Err(e) = trimmed {
            tracing::warn!("trimming the log of {}: {e}", self.spec.path);
        }
    }
}

fn corrupt<E: fmt::Display>(path: &str) -> impl FnOnce(E) -> Error {
    let path = path.to_owned();
    move |e| Error::Corrupt { path, reason: e.to_string() }
}

#[cfg(test)]
mod tests {
    use arrow::array::Int64Array;
    use arrow::datatypes::{DataType, Field, Schema};
    use futures::stream;

    use super::*;

    fn rows(values: [i64; 2]) -> RecordBatch {
        let schema = Schema::new(vec![Field::new("n", DataType::Int64, true)]);
        RecordBatch::try_new(Arc::new(schema), vec![Arc::new(Int64Array::from(values.to_vec()))]).unwrap()
    }

    async fn table(dir: &std::path::Path) -> Table {
        let spec = TableSpec {
            path: "t".into(),
            schema: rows([0, 0]).schema(),
            partition_by: Vec::new(),
            stats_columns: Vec::new(),
            nodes: vec!["local".into()],
        };
        Table::open(&Store::local(dir).unwrap(), spec).await.unwrap()
    }

    fn parquet_files(dir: &std::path::Path) -> usize {
        let files = std::fs::read_dir(dir.join("t")).unwrap();
        files.filter(|file| file.as_ref().unwrap().path().extension().is_some_and(|e| e == "parquet")).count()
    }

    #[tokio::test]
    async fn what_a_commit_names_is_durable_before_the_commit() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().canonicalize().unwrap();
        let table = table(&root).await;
        for n in 0..3 {
            table.append(&[rows([n, n])], Commit::default()).await.unwrap();
        }
        let synced = durable::journal::below(&root);
        let place = |wanted: &std::path::Path| {
            let found = synced.iter().position(|path| path == wanted);
            found.unwrap_or_else(|| panic!("{} was never synced", wanted.display()))
        };
        for file in table.snapshot().files() {
            let log = root.join("t/_delta_log");
            let names =
                |commit: &std::path::PathBuf| std::fs::read_to_string(commit).unwrap().contains(&file.path);
            let mut commits = (0..=3).map(|version| log.join(format!("{version:020}.json")));
            let commit = commits.find(names).expect("a commit names it");
            assert!(place(&root.join("t").join(&file.path)) < place(&commit), "{}", file.path);
        }
        assert_eq!(table.snapshot().files().len(), 3);
    }

    #[tokio::test]
    async fn rows_of_many_partitions_are_written_a_few_files_at_a_time() {
        let dir = tempfile::tempdir().unwrap();
        let fields = ["day", "n"].map(|name| Field::new(name, DataType::Int64, true));
        let schema = Arc::new(Schema::new(fields.to_vec()));
        let spec = TableSpec {
            path: "t".into(),
            schema: schema.clone(),
            partition_by: vec!["day".into()],
            stats_columns: Vec::new(),
            nodes: Vec::new(),
        };
        let table = Table::open(&Store::local(dir.path()).unwrap(), spec).await.unwrap();
        // Two rows of each of 200 days, in order, and the first day once more.
        let days = (0..200).flat_map(|day| [day, day]).chain([0]);
        let (days, numbers) = (Int64Array::from_iter_values(days), Int64Array::from_iter_values(0..401));
        let rows = RecordBatch::try_new(schema, vec![Arc::new(days), Arc::new(numbers)]).unwrap();
        let written = table.append(&[rows], Commit::default()).await.unwrap();
        assert_eq!((written.row_count(), written.file_count()), (401, 201));
        assert!(written.files().iter().all(|file| file.rows <= 2));
    }

    #[tokio::test]
    async fn what_was_staged_is_spared_until_it_is_dropped() {
        let dir = tempfile::tempdir().unwrap();
        let table = table(dir.path()).await;
        table.append(&[rows([1, 2])], Commit::default()).await.unwrap();
        let mut staged = Staged::new(rows([0, 0]).schema(), Vec::new());
        table.stage(&mut staged, stream::iter([Ok(rows([3, 4]))])).await.unwrap();
        assert_eq!((table.vacuum(Duration::ZERO).await.unwrap(), parquet_files(dir.path())), (0, 2));
        drop(staged);
        assert_eq!((table.vacuum(Duration::ZERO).await.unwrap(), parquet_files(dir.path())), (1, 1));
    }

    #[tokio::test]
    async fn a_switch_exchanges_rows_and_frontier_and_refuses_the_definition_before() {
        let dir = tempfile::tempdir().unwrap();
        let table = table(dir.path()).await;
        let commit = |seq, definition| Commit {
            frontier: [("local".into(), seq)].into_iter().collect(),
            generation: None,
            definition: Some(definition),
        };
        table.append(&[rows([1, 2])], commit(7, 1)).await.unwrap();
        let mut staged = Staged::new(rows([0, 0]).schema(), vec!["n".into()]);
        table.stage(&mut staged, stream::iter([Ok(rows([3, 4])), Ok(rows([5, 6]))])).await.unwrap();
        let switched = table.switch(staged, commit(3, 2)).await.unwrap();
        assert_eq!((switched.row_count(), switched.frontier().get("local")), (4, 3));
        let refused = table.append(&[rows([1, 2])], commit(9, 1)).await.unwrap_err().to_string();
        assert!(refused.contains("has been changed"), "{refused}");
        table.append(&[rows([1, 2])], commit(9, 2)).await.unwrap();
        drop(table);
        let reopened = self::table(dir.path()).await.snapshot();
        assert_eq!((reopened.row_count(), reopened.frontier().get("local")), (6, 9));
        assert_eq!(reopened.definition(), Some(2));
    }
}
