//! `/v1/views`: the merged views, for those who want rows and no SQL.

use std::sync::Arc;

use axum::extract::State;
use axum::response::Response;
use axum::routing::get;
use axum::{Json, Router};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::App;
use super::answer::respond;
use super::extract::{Params, Segments};
use super::format::Format;
use super::problem::Problem;
use crate::query::ViewFilter;

pub(super) fn routes() -> Router<Arc<App>> {
    Router::new().route("/v1/views", get(list)).route("/v1/views/{name}", get(rows))
}

/// `{"views": ["climate_1m", ...]}`
#[derive(Debug, Serialize)]
struct ViewNames {
    views: Vec<String>,
}

impl From<Vec<Map<String, Value>>> for ViewNames {
    fn from(items: Vec<Map<String, Value>>) -> Self {
        let names = items.iter().filter_map(|item| item.get("name")?.as_str());
        Self { views: names.map(str::to_owned).collect() }
    }
}

/// The query string of a view's rows.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RowParams {
    from: Option<String>,
    to: Option<String>,
    device_id: Option<String>,
    limit: Option<usize>,
}

impl From<RowParams> for ViewFilter {
    fn from(params: RowParams) -> Self {
        Self { from: params.from, to: params.to, device_id: params.device_id, limit: params.limit }
    }
}

async fn list(State(app): State<Arc<App>>) -> Result<Json<ViewNames>, Problem> {
    Ok(Json(app.control.list("views").await?.into()))
}

async fn rows(
    State(app): State<Arc<App>>,
    Segments(name): Segments<String>,
    format: Format,
    Params(params): Params<RowParams>,
) -> Result<Response, Problem> {
    respond(app.queries.view_rows(&name, params.into()).await?, format).await
}
