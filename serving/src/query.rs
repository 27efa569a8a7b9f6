//! The questions that the serving layer answers, and the shape of its answers.

use std::fmt::Debug;

use arrow::datatypes::SchemaRef;
use arrow::record_batch::RecordBatch;
use iot_schemas::Result;
use iot_schemas::position::Frontier;
pub use iot_schemas::view::Layer;
use serde::Serialize;

/// One query.
#[derive(Debug, Clone)]
pub struct QueryRequest {
    /// The SQL text.
    pub sql: String,
    /// The layer that views are read from.
    pub layer: Layer,
    /// Fewer rows than the server's own limit.
    pub max_rows: Option<usize>,
}

/// The rows and where they came from.
#[derive(Debug)]
pub struct Answer {
    /// The columns.
    pub schema: SchemaRef,
    /// The rows.
    pub batches: Vec<RecordBatch>,
    /// The provenance.
    pub meta: Meta,
}

/// The provenance of an answer.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Meta {
    /// The layer that was asked for.
    pub layer: Layer,
    /// How many rows there are.
    pub rows: usize,
    /// How long it took.
    pub elapsed_ms: f64,
    /// The views that were read.
    pub views: Vec<ViewMeta>,
    /// The streams that were read.
    pub streams: Vec<StreamMeta>,
}

/// The provenance of a view's part.
#[derive(Debug, Clone, Default, Serialize)]
pub struct ViewMeta {
    /// The view.
    pub name: String,
    /// The generation of the batch state.
    pub batch_generation: i64,
    /// What the batch state covers.
    pub batch_frontier: Frontier,
    /// What the answer covers.
    pub frontier: Frontier,
    /// Rows of speed state.
    pub speed_rows: u64,
    /// Files of batch state.
    pub batch_files: u64,
    /// The event-time progress.
    pub watermark: Option<String>,
    /// Events that came late.
    pub late_events: u64,
}

/// The provenance of a stream's part.
#[derive(Debug, Clone, Default, Serialize)]
pub struct StreamMeta {
    /// The stream.
    pub name: String,
    /// What the table covers.
    pub sealed_frontier: Frontier,
    /// What the answer covers.
    pub frontier: Frontier,
    /// Rows that are not in the table yet.
    pub unsealed_rows: u64,
}

/// Which rows of a view are wanted.
#[derive(Debug, Clone, Default)]
pub struct ViewFilter {
    /// Windows that start at or after this time.
    pub from: Option<String>,
    /// Windows that start before this time.
    pub to: Option<String>,
    /// One device.
    pub device_id: Option<String>,
    /// At most so many rows.
    pub limit: Option<usize>,
}

/// Whoever answers queries.
#[async_trait::async_trait]
pub trait Queries: Send + Sync + Debug {
    /// Runs a read-only SQL query.
    async fn execute(&self, request: QueryRequest) -> Result<Answer>;

    /// The rows of a merged view.
    async fn view_rows(&self, view: &str, filter: ViewFilter) -> Result<Answer>;
}
