//! Queries, batch runs and proofs on a data directory whose server is not running.

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::Result;
use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;
use iot_schemas::batch::{BatchReport, BatchRequest, BatchRunner};
use iot_schemas::clock::Clock;
use iot_schemas::control::{Control, VerifyReport};
use iot_schemas::view::Layer;
use iot_serving::query::{Queries, QueryRequest};

use super::{Line, LineConfig};
use crate::exit::Failure;

/// Where data lies.
#[derive(Debug, Clone)]
pub struct Location {
    /// A server's data directory.
    pub data_dir: Option<PathBuf>,
    /// The root of a store.
    pub store: Option<String>,
}

/// The line in `location`, without anything that listens or works in the background.
///
/// It is the whole line: what the log holds and the tables do not have yet is part of the answer.
async fn open(location: &Location) -> Result<Arc<Line>> {
    let data_dir = match (&location.data_dir, &location.store) {
        (Some(dir), _) => dir.clone(),
        (None, Some(store)) => PathBuf::from(store.strip_prefix("file://").unwrap_or(store)),
        (None, None) => return Err(Failure::usage("name a --data-dir or a --store").into()),
    };
    if !data_dir.is_dir() {
        let failure = Failure::failed(format!("there is no data directory {}", data_dir.display()));
        return Err(failure.hint("`iotctl serve --data-dir DIR` makes one").into());
    }
    let config =
        LineConfig { store: location.store.clone(), scheduled_batches: false, ..LineConfig::new(data_dir) };
    let line = Line::open(config, Clock::system()).await?;
    line.settle().await;
    Ok(line)
}

/// Runs a query.
pub async fn offline_query(
    location: &Location,
    sql: &str,
    layer: &str,
) -> Result<(SchemaRef, Vec<RecordBatch>, serde_json::Value)> {
    let layer: Layer = serde_json::from_value(layer.into())?;
    let line = open(location).await?;
    let request = QueryRequest { sql: sql.to_owned(), layer, max_rows: None };
    let answer = line.queries.execute(request).await;
    line.shutdown().await;
    let answer = answer?;
    Ok((answer.schema, answer.batches, serde_json::to_value(answer.meta)?))
}

/// Runs batch jobs. What the log holds is sealed first, so that they cover it.
pub async fn offline_batch(location: &Location, request: BatchRequest) -> Result<Vec<BatchReport>> {
    let line = open(location).await?;
    line.ingest.seal_now().await?;
    let reports = line.batch.run(request).await;
    line.shutdown().await;
    Ok(reports?)
}

/// Compares merged views with a recomputation.
pub async fn offline_verify(location: &Location, view: Option<&str>) -> Result<Vec<VerifyReport>> {
    let line = open(location).await?;
    let reports = line.verify(view).await;
    line.shutdown().await;
    Ok(reports?)
}
