//! `/v1/alerts`: the alert log, as a list, one alert at a time, or followed as it grows.

use std::sync::Arc;

use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use serde::Serialize;

use iot_schemas::alert::Transition;

use super::extract::{Params, Segments};
use super::problem::{Problem, ProblemKind};
use super::{App, Streams, UNBUFFERED};
use crate::live::filter::TransitionFilter;
use crate::live::follow::{Follower, Start};
use crate::live::sse::event_stream;

/// How many alerts a list has unless it was asked for another number.
const DEFAULT_LIST: usize = 100;

pub(super) fn routes() -> Router<Arc<App>> {
    Router::new().route("/v1/alerts", get(list)).route("/v1/alerts/{id}", get(show))
}

pub(super) fn stream_routes(streams: Streams) -> Router {
    Router::new().route("/v1/alerts/stream", get(follow)).with_state(streams)
}

/// `{"alerts": [...]}`: the newest transition of each alert, newest first.
#[derive(Debug, Serialize)]
struct AlertList {
    alerts: Vec<Transition>,
}

/// One alert: where it is in its life, and how it came there (oldest first).
#[derive(Debug, Serialize)]
struct AlertHistory {
    current: Transition,
    history: Vec<Transition>,
}

async fn list(
    State(app): State<Arc<App>>,
    Params(params): Params<Pairs>,
) -> Result<Json<AlertList>, Problem> {
    let params = ListParams::parse(params)?;
    Ok(Json(AlertList { alerts: params.select(app.alerts.current()) }))
}

async fn show(
    State(app): State<Arc<App>>,
    Segments(id): Segments<String>,
) -> Result<Json<AlertHistory>, Problem> {
    let history = app.alerts.history(&id)?;
    let current = history.last().cloned().ok_or_else(|| no_such_alert(&id))?;
    Ok(Json(AlertHistory { current, history }))
}

async fn follow(
    State(streams): State<Streams>,
    headers: HeaderMap,
    Params(params): Params<Pairs>,
) -> Result<Response, Problem> {
    let params = StreamParams::parse(params, &headers)?;
    let (slot, pace) = streams.slot()?;
    let follower = Follower::new(streams.app.alerts.clone(), params.filter, params.start);
    let events = event_stream(follower, pace, streams.app.shutdown.clone(), slot);
    Ok((UNBUFFERED, events).into_response())
}

/// A query string with names that are not known beforehand (`label.team`).
type Pairs = Vec<(String, String)>;

#[derive(Debug)]
struct ListParams {
    filter: TransitionFilter,
    limit: usize,
}

impl ListParams {
    fn parse(pairs: Pairs) -> Result<Self, Problem> {
        let mut params = Self { filter: TransitionFilter::default(), limit: DEFAULT_LIST };
        for (name, value) in pairs {
            match name.as_str() {
                "limit" => params.limit = parse_number(&name, &value)?,
                _ => params.filter.add(&name, &value)?,
            }
        }
        Ok(params)
    }

    fn select(&self, mut alerts: Vec<Transition>) -> Vec<Transition> {
        alerts.retain(|transition| self.filter.matches(transition));
        alerts.sort_unstable_by_key(|transition| std::cmp::Reverse(transition.id));
        alerts.truncate(self.limit);
        alerts
    }
}

#[derive(Debug)]
struct StreamParams {
    filter: TransitionFilter,
    start: Start,
}

impl StreamParams {
    /// The header wins over the query string: a browser that reconnects repeats the query string as it was
    /// and says in the header where it has come to. Who knows where it was needs no snapshot.
    fn parse(pairs: Pairs, headers: &HeaderMap) -> Result<Self, Problem> {
        let mut params = Self { filter: TransitionFilter::of_news(), start: Start::Newest };
        let mut last_event_id = String::new();
        for (name, value) in pairs {
            match name.as_str() {
                "snapshot" if parse_flag(&name, &value)? => params.start = Start::Snapshot,
                "snapshot" => {}
                "last_event_id" => last_event_id = value,
                _ => params.filter.add(&name, &value)?,
            }
        }
        if let Some(value) = headers.get("last-event-id").filter(|value| !value.is_empty()) {
            last_event_id = String::from_utf8_lossy(value.as_bytes()).into_owned();
        }
        if !last_event_id.is_empty() {
            params.start = Start::After(parse_number("Last-Event-ID", &last_event_id)?);
        }
        Ok(params)
    }
}

pub(super) fn parse_number<N: std::str::FromStr>(name: &str, value: &str) -> Result<N, Problem> {
    value
        .trim()
        .parse()
        .map_err(|_| Problem::invalid(format!("`{name}`: `{value}` is no number of an event")))
}

pub(super) fn parse_flag(name: &str, value: &str) -> Result<bool, Problem> {
    value.parse().map_err(|_| Problem::invalid(format!("`{name}`: `{value}` is neither `true` nor `false`")))
}

fn no_such_alert(id: &str) -> Problem {
    Problem::new(ProblemKind::NOT_FOUND, format!("no alert `{id}`; GET /v1/alerts lists them"))
}
