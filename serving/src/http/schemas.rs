//! `/v1/schemas`, `/v1/streams/{name}/schema`: the columns that streams have and had, and what a definition would
//! change. Behind it is [`iot_schemas::registry::Schemas`].

use std::sync::Arc;

use axum::extract::State;
use axum::routing::{get, post};
use axum::{Json, Router};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use iot_schemas::registry::Finding;

use super::App;
use super::extract::{Params, Segments, TextBody};
use super::problem::Problem;

pub(super) fn routes() -> Router<Arc<App>> {
    Router::new()
        .route("/v1/schemas", get(newest))
        .route("/v1/schemas/check", post(check))
        .route("/v1/streams/{name}/schemas", get(versions))
        .route("/v1/streams/{name}/schema", get(show))
}

/// `{"items": [...]}`
#[derive(Debug, Serialize)]
struct Items {
    items: Vec<Map<String, Value>>,
}

/// The query string of one version.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct ShowParams {
    /// The newest if it is absent.
    version: Option<u32>,
}

/// The query string of a check.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct CheckParams {
    /// Names the text in error messages: a file, mostly.
    origin: Option<String>,
}

/// `{"changes": [...]}`
#[derive(Debug, Serialize)]
struct Changes {
    changes: Vec<Finding>,
}

async fn newest(State(app): State<Arc<App>>) -> Result<Json<Items>, Problem> {
    Ok(Json(Items { items: app.schemas.list(None)? }))
}

async fn versions(
    State(app): State<Arc<App>>,
    Segments(stream): Segments<String>,
) -> Result<Json<Items>, Problem> {
    Ok(Json(Items { items: app.schemas.list(Some(&stream))? }))
}

async fn show(
    State(app): State<Arc<App>>,
    Segments(stream): Segments<String>,
    Params(params): Params<ShowParams>,
) -> Result<Json<Value>, Problem> {
    Ok(Json(app.schemas.show(&stream, params.version)?))
}

async fn check(
    State(app): State<Arc<App>>,
    Params(params): Params<CheckParams>,
    TextBody(yaml): TextBody,
) -> Result<Json<Changes>, Problem> {
    let origin = params.origin.as_deref().unwrap_or("the request");
    Ok(Json(Changes { changes: app.schemas.check(&yaml, origin).await? }))
}
