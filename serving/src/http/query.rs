//! `/v1/query`: SQL in, rows and provenance out.

use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::response::Response;
use axum::routing::get;
use serde::Deserialize;

use super::App;
use super::answer::respond;
use super::extract::{JsonBody, Params};
use super::format::Format;
use super::problem::Problem;
use crate::query::{Layer, QueryRequest};

pub(super) fn routes() -> Router<Arc<App>> {
    Router::new().route("/v1/query", get(run_from_params).post(run_from_body))
}

/// The body of a `POST`, and the query string of a `GET`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct QueryBody {
    sql: String,
    #[serde(default)]
    layer: Layer,
    max_rows: Option<usize>,
}

impl From<QueryBody> for QueryRequest {
    fn from(body: QueryBody) -> Self {
        Self { sql: body.sql, layer: body.layer, max_rows: body.max_rows }
    }
}

async fn run_from_body(
    State(app): State<Arc<App>>,
    format: Format,
    JsonBody(body): JsonBody<QueryBody>,
) -> Result<Response, Problem> {
    respond(app.queries.execute(body.into()).await?, format).await
}

async fn run_from_params(
    State(app): State<Arc<App>>,
    format: Format,
    Params(body): Params<QueryBody>,
) -> Result<Response, Problem> {
    respond(app.queries.execute(body.into()).await?, format).await
}
