//! The files of a table: how they are written, listed for removal, and what their columns may become.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use arrow::array::ArrayRef;
use arrow::compute::partition;
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use arrow::record_batch::RecordBatch;
use datafusion::common::ScalarValue;
use deltalake::DeltaTable;
use deltalake::kernel::engine::arrow_conversion::TryIntoKernel;
use deltalake::kernel::{Action, Add, StructType};
use deltalake::parquet::basic::{Compression, ZstdLevel};
use deltalake::parquet::file::properties::WriterProperties;
use deltalake::protocol::{DeltaOperation, SaveMode};
use deltalake::writer::{DeltaWriter, RecordBatchWriter};

use super::{CHECKPOINT_EVERY, TableSpec, corrupt};
use crate::error::{Error, Result};

/// Rows per row group: large enough to compress, small enough that a reader of one device skips most of a file.
const ROW_GROUP_ROWS: usize = 131_072;
/// Rows per page: a reader of one device, or of one window of it, decodes whole pages.
const PAGE_ROWS: usize = 4_096;
/// Files that are written at once, one per partition. A message may hold an event of every day since 1970.
const MAX_OPEN_FILES: usize = 64;

pub(super) async fn create(delta: DeltaTable, spec: &TableSpec) -> Result<DeltaTable> {
    let schema: StructType = spec.schema.as_ref().try_into_kernel().map_err(corrupt(&spec.path))?;
    let configuration: HashMap<String, Option<String>> = [
        ("delta.checkpointInterval", CHECKPOINT_EVERY.to_string()),
        // Readers hold snapshots for minutes, not for days; the log must not grow with the number of seals.
        ("delta.logRetentionDuration", "interval 1 hours".to_owned()),
        ("delta.enableExpiredLogCleanup", "true".to_owned()),
        ("delta.deletedFileRetentionDuration", "interval 1 hours".to_owned()),
        statistics(&spec.stats_columns),
    ]
    .into_iter()
    .map(|(key, value)| (key.to_owned(), Some(value)))
    .collect();
    Ok(delta
        .create()
        .with_columns(schema.fields().cloned())
        .with_partition_columns(spec.partition_by.clone())
        .with_configuration(configuration)
        .await?)
}

/// The table properties that say which columns get statistics in the log.
pub(super) const STATISTICS_KEYS: [&str; 2] =
    ["delta.dataSkippingNumIndexedCols", "delta.dataSkippingStatsColumns"];

/// The table property that says which columns get statistics in the log.
pub(super) fn statistics(columns: &[String]) -> (&'static str, String) {
    match columns {
        [] => (STATISTICS_KEYS[0], "0".to_owned()),
        columns => (STATISTICS_KEYS[1], columns.join(",")),
    }
}

pub(super) fn write_operation(mode: SaveMode, spec: &TableSpec) -> DeltaOperation {
    let partition_by = (!spec.partition_by.is_empty()).then(|| spec.partition_by.clone());
    DeltaOperation::Write { mode, partition_by, predicate: None }
}

pub(super) fn writer_properties() -> WriterProperties {
    let level = ZstdLevel::try_new(1).expect("1 is a zstd level");
    WriterProperties::builder()
        .set_compression(Compression::ZSTD(level))
        .set_max_row_group_row_count(Some(ROW_GROUP_ROWS))
        .set_data_page_row_count_limit(PAGE_ROWS)
        .build()
}

pub(super) async fn write_files(
    writer: RecordBatchWriter,
    partition_by: &[String],
    batches: &[RecordBatch],
) -> Result<Vec<Action>> {
    let mut writer = FileWriter::new(writer, partition_by);
    for batch in batches.iter().filter(|batch| batch.num_rows() > 0) {
        writer.write(batch).await?;
    }
    Ok(writer.finish().await?.into_iter().map(Action::Add).collect())
}

/// Writes rows to files, a file per partition, with a bounded number of files open at a time.
///
/// Memory is bounded if the rows of a partition follow each other. If they do not, there are more files.
pub(super) struct FileWriter {
    writer: RecordBatchWriter,
    schema: SchemaRef,
    partition_by: Vec<String>,
    open: HashSet<Vec<ScalarValue>>,
    adds: Vec<Add>,
}

impl FileWriter {
    pub(super) fn new(writer: RecordBatchWriter, partition_by: &[String]) -> Self {
        let writer = writer.with_writer_properties(writer_properties());
        let (schema, partition_by) = (writer.arrow_schema(), partition_by.to_vec());
        Self { writer, schema, partition_by, open: HashSet::new(), adds: Vec::new() }
    }

    /// Takes rows with the columns of the table, or with some of them, or with narrower ones.
    pub(super) async fn write(&mut self, batch: &RecordBatch) -> Result<()> {
        let batch = cast_to(batch, &self.schema)?;
        if self.partition_by.is_empty() {
            return Ok(self.writer.write(batch).await?);
        }
        let columns: Vec<ArrayRef> =
            self.partition_by.iter().filter_map(|name| batch.column_by_name(name).cloned()).collect();
        let mut begin = 0;
        for range in partition(&columns)?.ranges() {
            let values = columns.iter().map(|column| ScalarValue::try_from_array(column, range.start));
            let values = values.collect::<Result<Vec<_>, _>>()?;
            if self.open.len() >= MAX_OPEN_FILES && !self.open.contains(&values) {
                if range.start > begin {
                    self.writer.write(batch.slice(begin, range.start - begin)).await?;
                }
                self.close_files().await?;
                begin = range.start;
            }
            self.open.insert(values);
        }
        Ok(self.writer.write(batch.slice(begin, batch.num_rows() - begin)).await?)
    }

    async fn close_files(&mut self) -> Result<()> {
        self.adds.extend(self.writer.flush().await?);
        self.open.clear();
        Ok(())
    }

    /// Closes the files that are open and says what all files are.
    pub(super) async fn finish(mut self) -> Result<Vec<Add>> {
        self.close_files().await?;
        Ok(self.adds)
    }
}

pub(super) fn removes(
    delta: &DeltaTable,
    which: impl Fn(&str) -> bool,
    data_change: bool,
) -> Result<Vec<Action>> {
    let state = delta.snapshot()?;
    let files = state.log_data();
    Ok(files
        .iter()
        .filter(|file| which(&file.path()))
        .map(|file| Action::Remove(file.remove_action(data_change)))
        .collect())
}

/// `batch` with exactly the columns of `schema`: missing ones are null, narrower ones are cast.
pub fn cast_to(batch: &RecordBatch, schema: &SchemaRef) -> Result<RecordBatch> {
    if batch.schema_ref() == schema {
        return Ok(batch.clone());
    }
    let columns = schema
        .fields()
        .iter()
        .map(|field| match batch.column_by_name(field.name()) {
            Some(column) if column.data_type() == field.data_type() => Ok(column.clone()),
            Some(column) => arrow::compute::cast(column, field.data_type()),
            None => Ok(arrow::array::new_null_array(field.data_type(), batch.num_rows())),
        })
        .collect::<Result<Vec<_>, _>>()?;
    let options = arrow::record_batch::RecordBatchOptions::new().with_row_count(Some(batch.num_rows()));
    Ok(RecordBatch::try_new_with_options(schema.clone(), columns, &options)?)
}

/// The union of two schemas, and whether a column of `current` has become wider.
pub(super) fn merge_schemas(current: &Schema, wanted: &Schema) -> Result<(Schema, bool)> {
    let mut fields: Vec<Arc<Field>> = current.fields().iter().cloned().collect();
    let mut widened = false;
    for field in wanted.fields() {
        let Some(position) = fields.iter().position(|have| have.name() == field.name()) else {
            fields.push(Arc::new(field.as_ref().clone().with_nullable(true)));
            continue;
        };
        let have = &fields[position];
        match (have.data_type(), field.data_type()) {
            (DataType::Int64, DataType::Float64) => {
                widened = true;
                fields[position] = Arc::new(have.as_ref().clone().with_data_type(DataType::Float64));
            }
            (DataType::Float64, DataType::Int64) => {}
            (a, b) if a == b => {}
            (DataType::Struct(parts), DataType::Struct(wanted)) => {
                let (parts, wanted) = (Schema::new(parts.clone()), Schema::new(wanted.clone()));
                let (merged, wider) = merge_schemas(&parts, &wanted)?;
                widened |= wider;
                let merged = DataType::Struct(merged.fields);
                fields[position] = Arc::new(have.as_ref().clone().with_data_type(merged));
            }
            (a, b) => {
                return Err(Error::invalid(format!(
                    "column `{}` cannot change from {a} to {b}",
                    field.name()
                )));
            }
        }
    }
    Ok((Schema::new(fields), widened))
}
