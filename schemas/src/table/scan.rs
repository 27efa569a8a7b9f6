//! The files of a table as a query reads them, without a look at the log.
//!
//! A snapshot knows its files and their statistics. A query for one device and one hour spends most of its time on
//! finding out what to read, so this way is short: prune files by the statistics in memory, take footers and page
//! indexes from the session's cache, decode the pages that may matter. It is for tables without partitions, whose files
//! all have the table's columns: those of view state.

use std::sync::Arc;

use arrow::datatypes::SchemaRef;
use async_trait::async_trait;
use datafusion::catalog::{Session, TableProvider};
use datafusion::common::{Result, ToDFSchema};
use datafusion::config::TableParquetOptions;
use datafusion::datasource::listing::PartitionedFile;
use datafusion::datasource::physical_plan::parquet::CachedParquetFileReaderFactory;
use datafusion::datasource::physical_plan::{FileGroup, FileScanConfigBuilder, ParquetSource};
use datafusion::datasource::source::DataSourceExec;
use datafusion::error::DataFusionError;
use datafusion::logical_expr::utils::conjunction;
use datafusion::logical_expr::{Expr, TableProviderFilterPushDown, TableType};
use datafusion::physical_expr::PhysicalExpr;
use datafusion::physical_optimizer::pruning::PruningPredicateBuilder;
use datafusion::physical_plan::ExecutionPlan;
use deltalake::DeltaTable;
use object_store::ObjectMeta;

/// The files of one version of a table.
#[derive(Debug)]
pub(super) struct FilesTable {
    delta: DeltaTable,
    schema: SchemaRef,
}

impl FilesTable {
    pub(super) fn new(delta: DeltaTable, schema: SchemaRef) -> Self {
        Self { delta, schema }
    }

    /// The files that may hold rows for which `predicate` is true.
    fn files(&self, predicate: Option<&Arc<dyn PhysicalExpr>>) -> Result<Vec<PartitionedFile>> {
        let snapshot = self.delta.snapshot().map_err(|e| DataFusionError::External(Box::new(e)))?;
        let log = snapshot.log_data();
        let wanted = predicate.and_then(|predicate| {
            let builder = PruningPredicateBuilder::new().with_file_schema(self.schema.clone());
            // What says nothing about ranges prunes nothing.
            builder.try_build(predicate.clone()).and_then(|pruning| pruning.prune(&log)).ok()
        });
        let wanted = |at: usize| wanted.as_ref().is_none_or(|wanted| wanted[at]);
        let files = log.iter().enumerate().filter(|(at, _)| wanted(*at));
        let files = files.map(|(_, file)| {
            let written = file.modification_datetime().unwrap_or_default();
            PartitionedFile::from(ObjectMeta {
                location: file.object_store_path(),
                last_modified: written,
                size: file.size().max(0) as u64,
                e_tag: None,
                version: None,
            })
        });
        Ok(files.collect())
    }
}

#[async_trait]
impl TableProvider for FilesTable {
    fn schema(&self) -> SchemaRef {
        self.schema.clone()
    }

    fn table_type(&self) -> TableType {
        TableType::Base
    }

    fn supports_filters_pushdown(&self, filters: &[&Expr]) -> Result<Vec<TableProviderFilterPushDown>> {
        Ok(vec![TableProviderFilterPushDown::Inexact; filters.len()])
    }

    async fn scan(
        &self,
        session: &dyn Session,
        projection: Option<&Vec<usize>>,
        filters: &[Expr],
        limit: Option<usize>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let filter = conjunction(filters.iter().cloned());
        let schema = self.schema.clone().to_dfschema()?;
        let predicate = filter.map(|filter| session.create_physical_expr(filter, &schema)).transpose()?;
        let files = self.files(predicate.as_ref())?;

        let log_store = self.delta.log_store();
        let (store, url) = (log_store.object_store(None), log_store.object_store_url());
        let runtime = session.runtime_env();
        runtime.register_object_store(url.as_ref(), store.clone());
        let footers = runtime.cache_manager.get_file_metadata_cache();
        let options = TableParquetOptions {
            global: session.config_options().execution.parquet.clone(),
            ..TableParquetOptions::default()
        };
        let mut source = ParquetSource::new(self.schema.clone())
            .with_table_parquet_options(options)
            .with_parquet_file_reader_factory(Arc::new(CachedParquetFileReaderFactory::new(store, footers)));
        if let Some(predicate) = predicate {
            // Late materialisation: state may be wide (a sketch per group), and few rows are wanted.
            source = source.with_predicate(predicate).with_pushdown_filters(true);
        }
        let groups = files.into_iter().map(|file| FileGroup::new(vec![file])).collect();
        let scan = FileScanConfigBuilder::new(url, Arc::new(source))
            .with_file_groups(groups)
            .with_projection_indices(projection.cloned())?
            .with_limit(limit)
            .build();
        Ok(DataSourceExec::from_data_source(scan))
    }
}
