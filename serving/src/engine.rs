//! The query engine: SQL over merged views, single layers of them, and raw streams, sealed and unsealed.

use std::sync::Arc;
use std::time::{Duration, Instant};

use arrow::datatypes::DataType;
use arrow::record_batch::RecordBatch;
use async_trait::async_trait;
use chrono::DateTime;
use datafusion::catalog::CatalogProvider;
use datafusion::catalog::MemoryCatalogProvider;
use datafusion::common::{Column, ScalarValue};
use datafusion::execution::context::SQLOptions;
use datafusion::execution::memory_pool::FairSpillPool;
use datafusion::execution::runtime_env::{RuntimeEnv, RuntimeEnvBuilder};
use datafusion::logical_expr::{Expr, lit};
use datafusion::prelude::{DataFrame, SessionContext};
use futures::StreamExt;
use iot_schemas::session::context;
use iot_schemas::view::{GroupRole, Layer};
use iot_schemas::{Error, Result};

use crate::query::{Answer, Meta, Queries, QueryRequest, ViewFilter};
use crate::tables::{Scope, Sources, Tables};

/// What one query may use up.
#[derive(Debug, Clone, Copy)]
pub struct QueryLimits {
    /// Memory for all queries together, in bytes; what needs more spills or fails.
    pub memory_bytes: usize,
    /// The longest that a query may run.
    pub timeout: Duration,
    /// The most rows that an answer may have.
    pub rows: usize,
    /// How many parts of a query run in parallel.
    pub partitions: usize,
}

impl Default for QueryLimits {
    fn default() -> Self {
        Self { memory_bytes: 2 << 30, timeout: Duration::from_secs(60), rows: 1_000_000, partitions: 2 }
    }
}

/// Answers queries.
#[derive(Debug)]
pub struct QueryEngine {
    sources: Sources,
    limits: QueryLimits,
    runtime: Arc<RuntimeEnv>,
}

impl QueryEngine {
    /// An engine over `sources`.
    pub fn new(sources: Sources, limits: QueryLimits) -> Result<Self> {
        let pool = Arc::new(FairSpillPool::new(limits.memory_bytes));
        let runtime = RuntimeEnvBuilder::new().with_memory_pool(pool).build_arc()?;
        Ok(Self { sources, limits, runtime })
    }

    /// Where its rows come from.
    pub fn sources(&self) -> &Sources {
        &self.sources
    }

    /// The memory and disk that its queries share.
    pub fn runtime(&self) -> &Arc<RuntimeEnv> {
        &self.runtime
    }

    /// A session in which the tables are found: unqualified in `layer`, or in the schemas `merged`, `batch` and
    /// `speed`.
    fn session(&self, layer: Layer) -> Result<(SessionContext, Arc<Scope>)> {
        let session = context(self.limits.partitions, self.runtime.clone());
        let scope = Arc::new(Scope::default());
        let catalog = MemoryCatalogProvider::new();
        let schemas = [
            ("public", layer),
            ("iot", layer),
            ("merged", Layer::Merged),
            ("batch", Layer::Batch),
            ("speed", Layer::Speed),
        ];
        for (name, layer) in schemas {
            let tables = Tables { sources: self.sources.clone(), layer, scope: scope.clone() };
            catalog.register_schema(name, Arc::new(tables))?;
        }
        session.register_catalog("iot", Arc::new(catalog));
        Ok((session, scope))
    }

    /// Collects the rows of a query within the limits.
    async fn collect(&self, frame: DataFrame, max_rows: Option<usize>) -> Result<Vec<RecordBatch>> {
        let mut stream = frame.execute_stream().await?;
        let (mut batches, mut rows) = (Vec::new(), 0);
        while let Some(batch) = stream.next().await {
            let batch = batch?;
            rows += batch.num_rows();
            if let Some(max_rows) = max_rows.filter(|max_rows| rows >= *max_rows) {
                batches.push(batch.slice(0, batch.num_rows() - (rows - max_rows)));
                break;
            }
            if rows > self.limits.rows {
                return Err(Error::invalid(format!(
                    "the answer has more than {} rows; aggregate, filter, or add a LIMIT",
                    self.limits.rows
                )));
            }
            batches.push(batch);
        }
        Ok(batches)
    }

    async fn answer(
        &self,
        layer: Layer,
        max_rows: Option<usize>,
        make: impl AsyncFnOnce(&SessionContext) -> Result<DataFrame>,
    ) -> Result<Answer> {
        let started = Instant::now();
        let (session, scope) = self.session(layer)?;
        let work = async {
            let frame = make(&session).await?;
            let schema = frame.schema().inner().clone();
            Ok((schema, self.collect(frame, max_rows).await?))
        };
        let limit = self.limits.timeout;
        let done = tokio::time::timeout(limit, work).await.unwrap_or_else(|_| {
            let text = format!("the query ran longer than {} s; make it smaller", limit.as_secs());
            Err(Error::invalid(text))
        });
        let (schema, batches): (_, Vec<RecordBatch>) = done.map_err(|e| self.explain(e))?;
        let meta = Meta {
            layer,
            rows: batches.iter().map(RecordBatch::num_rows).sum(),
            elapsed_ms: started.elapsed().as_secs_f64() * 1000.0,
            views: scope.view_metas(),
            streams: scope.stream_metas(),
        };
        Ok(Answer { schema, batches, meta })
    }

    /// Says which tables there are when one is not.
    fn explain(&self, error: Error) -> Error {
        let text = error.to_string();
        let Some(at) = text.find("' not found").filter(|_| text.contains("table '")) else { return error };
        let name = text[..at].rsplit(['\'', '.']).next().unwrap_or_default().to_owned();
        let tables = Tables { sources: self.sources.clone(), layer: Layer::Merged, scope: Arc::default() };
        let known = datafusion::catalog::SchemaProvider::table_names(&tables).join(", ");
        Error::invalid(format!("there is no table `{name}`; the tables are: {known}"))
    }
}

#[async_trait]
impl Queries for QueryEngine {
    async fn execute(&self, request: QueryRequest) -> Result<Answer> {
        let reads_only =
            SQLOptions::new().with_allow_ddl(false).with_allow_dml(false).with_allow_statements(false);
        self.answer(request.layer, request.max_rows, async |session| {
            let plan = iot_schemas::sql::plan(session, &request.sql).await?;
            reads_only.verify_plan(&plan)?;
            Ok(session.execute_logical_plan(plan).await?)
        })
        .await
    }

    async fn view_rows(&self, view: &str, filter: ViewFilter) -> Result<Answer> {
        let (compiled, _) = self.sources.views.compiled(view)?;
        let schema = compiled.output_schema().clone();
        let window = compiled.groups().iter().filter(|g| matches!(g.role, GroupRole::WindowStart(_)));
        let window = window.filter_map(|group| group.output.clone()).find(|name| {
            schema.field_with_name(name).is_ok_and(|f| matches!(f.data_type(), DataType::Timestamp(..)))
        });
        let mut conditions = Vec::new();
        for (text, is_start) in [(&filter.from, true), (&filter.to, false)] {
            let Some(text) = text else { continue };
            let window = window.as_ref().ok_or_else(|| {
                Error::invalid(format!("view `{view}` has no window column, so `from` and `to` mean nothing"))
            })?;
            let bound = lit(instant(text)?);
            let column = column(window);
            conditions.push(if is_start { column.gt_eq(bound) } else { column.lt(bound) });
        }
        if let Some(device) = &filter.device_id {
            if schema.field_with_name("device_id").is_err() {
                return Err(Error::invalid(format!("view `{view}` has no column `device_id`")));
            }
            conditions.push(column("device_id").eq(lit(device.as_str())));
        }
        let order: Vec<_> = window
            .iter()
            .map(|name| column(name).sort(false, false))
            .chain(
                compiled
                    .groups()
                    .iter()
                    .filter_map(|group| group.output.as_ref())
                    .map(|name| column(name).sort(true, false)),
            )
            .collect();
        self.answer(Layer::Merged, filter.limit, async |session| {
            let mut frame = session.table(datafusion::common::TableReference::bare(view)).await?;
            for condition in conditions {
                frame = frame.filter(condition)?;
            }
            if !order.is_empty() {
                frame = frame.sort(order)?;
            }
            Ok(frame.limit(0, filter.limit)?)
        })
        .await
    }
}

fn column(name: &str) -> Expr {
    Expr::Column(Column::new_unqualified(name))
}

/// Reads RFC 3339 text.
fn instant(text: &str) -> Result<ScalarValue> {
    let time = DateTime::parse_from_rfc3339(text).map_err(|e| {
        Error::invalid(format!("`{text}` is no RFC 3339 time ({e}); write 2026-01-31T12:00:00Z"))
    })?;
    Ok(ScalarValue::TimestampMicrosecond(Some(time.timestamp_micros()), Some("UTC".into())))
}
