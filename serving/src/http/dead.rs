//! `/v1/dead`: dead letters, and what is to be done about them. Behind it are the table `dead` and
//! [`iot_schemas::dead::DeadLetters`].

use std::sync::Arc;

use axum::extract::State;
use axum::response::Response;
use axum::routing::{get, post};
use axum::{Json, Router};
use serde::Deserialize;

use iot_schemas::dead::{DeadAction, DeadId, DeadReport, DeadRequest, DeadSelection};

use super::App;
use super::answer::respond;
use super::extract::{JsonBody, Params, Segments};
use super::format::Format;
use super::problem::{Problem, ProblemKind};
use crate::dead::{letter_sql, list_sql};
use crate::query::{Layer, QueryRequest};

/// How many letters a list has unless it says otherwise.
const DEFAULT_LIMIT: usize = 50;

pub(super) fn routes() -> Router<Arc<App>> {
    Router::new()
        .route("/v1/dead", get(list))
        .route("/v1/dead/replay", post(replay))
        .route("/v1/dead/drop", post(drop_letters))
        .route("/v1/dead/{*id}", get(show))
}

/// The query string of a list.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct ListParams {
    /// `open`, `replayed` or `dropped`.
    status: Option<String>,
    stream: Option<String>,
    /// Part of the reason.
    reason: Option<String>,
    limit: Option<usize>,
}

/// The body of a replay or a drop.
#[derive(Debug, Deserialize)]
struct Order {
    #[serde(flatten)]
    selection: DeadSelection,
    #[serde(default)]
    by: String,
    #[serde(default)]
    note: String,
}

async fn list(
    State(app): State<Arc<App>>,
    format: Format,
    Params(params): Params<ListParams>,
) -> Result<Response, Problem> {
    let ListParams { status, stream, reason, limit } = params;
    let selection = DeadSelection { stream, reason, ..DeadSelection::default() };
    let sql = list_sql(&selection, status.as_deref(), limit.unwrap_or(DEFAULT_LIMIT));
    respond(app.queries.execute(query(sql)).await?, format).await
}

async fn show(
    State(app): State<Arc<App>>,
    format: Format,
    Segments(id): Segments<String>,
) -> Result<Response, Problem> {
    let id: DeadId = id.parse()?;
    let answer = app.queries.execute(query(letter_sql(&id))).await?;
    if answer.meta.rows == 0 {
        return Err(Problem::new(ProblemKind::NOT_FOUND, format!("there is no dead letter `{id}`")));
    }
    respond(answer, format).await
}

async fn replay(State(app): State<Arc<App>>, order: JsonBody<Order>) -> Result<Json<DeadReport>, Problem> {
    resolve(&app, DeadAction::Replay, order).await
}

async fn drop_letters(
    State(app): State<Arc<App>>,
    order: JsonBody<Order>,
) -> Result<Json<DeadReport>, Problem> {
    resolve(&app, DeadAction::Drop, order).await
}

async fn resolve(
    app: &App,
    action: DeadAction,
    JsonBody(Order { selection, by, note }): JsonBody<Order>,
) -> Result<Json<DeadReport>, Problem> {
    Ok(Json(app.dead.resolve(DeadRequest { action, selection, by, note }).await?))
}

fn query(sql: String) -> QueryRequest {
    QueryRequest { sql, layer: Layer::Merged, max_rows: None }
}
