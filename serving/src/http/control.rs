//! `/v1/apply`, `/v1/catalog`, `/v1/batch/run`, `/v1/replay`, `/v1/verify`, `/v1/status`: what a server is told and asked
//! beyond queries. Behind them is [`iot_schemas::control::Control`].

use std::sync::Arc;

use axum::extract::State;
use axum::routing::{get, post};
use axum::{Json, Router};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use iot_schemas::batch::{BatchReport, BatchRequest};
use iot_schemas::catalog::Kind;
use iot_schemas::control::{Applied, VerifyReport};
use iot_schemas::replay::{ReplayReport, ReplayRequest};

use super::App;
use super::extract::{JsonBody, Params, Segments, TextBody};
use super::problem::{Problem, ProblemKind};

pub(super) fn routes() -> Router<Arc<App>> {
    Router::new()
        .route("/v1/apply", post(apply))
        .route("/v1/catalog/{kind}", get(list))
        .route("/v1/catalog/{kind}/{name}", get(describe).delete(delete))
        .route("/v1/batch/run", post(run_batch))
        .route("/v1/replay", post(replay))
        .route("/v1/verify", post(verify))
        .route("/v1/status", get(status))
}

/// The query string of an `apply`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct ApplyParams {
    /// Only say what would be done.
    #[serde(default)]
    dry_run: bool,
    /// Names the text in error messages: a file, mostly.
    #[serde(default = "default_origin")]
    origin: String,
}

fn default_origin() -> String {
    "the request".to_owned()
}

/// The query string of a `verify`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct VerifyParams {
    /// All views if it is absent.
    view: Option<String>,
}

/// `{"applied": [...]}`
#[derive(Debug, Serialize)]
struct AppliedList {
    applied: Vec<Applied>,
}

/// `{"items": [...]}`
#[derive(Debug, Serialize)]
struct Items {
    items: Vec<Map<String, Value>>,
}

/// `{"reports": [...]}`
#[derive(Debug, Serialize)]
struct Reports<R> {
    reports: Vec<R>,
}

async fn apply(
    State(app): State<Arc<App>>,
    Params(params): Params<ApplyParams>,
    TextBody(yaml): TextBody,
) -> Result<Json<AppliedList>, Problem> {
    let applied = match params.dry_run {
        true => app.control.diff(&yaml, &params.origin).await?,
        false => to_the_end(async move { app.control.apply(&yaml, &params.origin).await }).await?,
    };
    Ok(Json(AppliedList { applied }))
}

/// Goes on if the client does not: half a change leaves what nobody has asked for.
async fn to_the_end<T: Send + 'static>(
    change: impl Future<Output = iot_schemas::Result<T>> + Send + 'static,
) -> Result<T, Problem> {
    let done = tokio::spawn(change).await;
    let failed =
        |e: tokio::task::JoinError| iot_schemas::Error::io("changing the catalog", std::io::Error::other(e));
    Ok(done.map_err(failed)??)
}

async fn list(State(app): State<Arc<App>>, Segments(what): Segments<String>) -> Result<Json<Items>, Problem> {
    Ok(Json(Items { items: app.control.list(&what).await? }))
}

async fn describe(
    State(app): State<Arc<App>>,
    Segments((kind, name)): Segments<(String, String)>,
) -> Result<Json<Value>, Problem> {
    Ok(Json(app.control.describe(parse_kind(&kind)?, &name).await?))
}

async fn delete(
    State(app): State<Arc<App>>,
    Segments((kind, name)): Segments<(String, String)>,
) -> Result<Json<AppliedList>, Problem> {
    let kind = parse_kind(&kind)?;
    let applied = to_the_end(async move { app.control.delete(kind, &name).await }).await?;
    Ok(Json(AppliedList { applied: vec![applied] }))
}

async fn run_batch(
    State(app): State<Arc<App>>,
    JsonBody(request): JsonBody<BatchRequest>,
) -> Result<Json<Reports<BatchReport>>, Problem> {
    Ok(Json(Reports { reports: app.batch.run(request).await? }))
}

async fn verify(
    State(app): State<Arc<App>>,
    Params(params): Params<VerifyParams>,
) -> Result<Json<Reports<VerifyReport>>, Problem> {
    Ok(Json(Reports { reports: app.control.verify(params.view.as_deref()).await? }))
}

async fn replay(
    State(app): State<Arc<App>>,
    JsonBody(request): JsonBody<ReplayRequest>,
) -> Result<Json<ReplayReport>, Problem> {
    Ok(Json(app.control.replay(request).await?))
}

async fn status(State(app): State<Arc<App>>) -> Result<Json<Value>, Problem> {
    Ok(Json(app.control.status().await?))
}

/// A kind as the path names it, in the singular or the plural.
fn parse_kind(text: &str) -> Result<Kind, Problem> {
    match text {
        "stream" | "streams" => Ok(Kind::Stream),
        "view" | "views" => Ok(Kind::View),
        "rule" | "rules" => Ok(Kind::Rule),
        "device" | "devices" => Ok(Kind::Device),
        _ => {
            let detail =
                format!("`{text}` is no kind of definition; it is one of stream, view, rule, device");
            Err(Problem::new(ProblemKind::NOT_FOUND, detail))
        }
    }
}
