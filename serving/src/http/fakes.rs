//! What stands behind the handlers in tests, and how tests talk to them.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use arrow::array::{ArrayRef, Float64Array, Int64Array, StringArray, TimestampMicrosecondArray};
use arrow::record_batch::RecordBatch;
use axum::Router;
use axum::body::{Body, to_bytes};
use axum::extract::Request;
use axum::handler::Handler;
use axum::http::{HeaderMap, StatusCode};
use axum::response::Response;
use axum::routing::any_service;
use parking_lot::Mutex;
use serde_json::{Map, Value, json};
use tokio::sync::watch;

use iot_schemas::alert::{AlertFeed, AlertState, Transition, TransitionId};
use iot_schemas::batch::{BatchReport, BatchRequest, BatchRunner, Views};
use iot_schemas::catalog::{Kind, Severity};
use iot_schemas::control::{Applied, Change, Control, VerifyReport};
use iot_schemas::dead::{DeadLetters, DeadReport, DeadRequest};
use iot_schemas::position::Frontier;
use iot_schemas::registry::{Change as SchemaChange, Finding, RuleId};
use iot_schemas::replay::{ReplayReport, ReplayRequest};
use iot_schemas::table::Table;
use iot_schemas::view::{ChangeRecord, CompiledView, ViewSnapshot};
use iot_schemas::write::{EventWriter, Written};
use iot_schemas::{Error, Result};

use super::*;
use crate::query::{Answer, Meta, QueryRequest, StreamMeta, ViewFilter, ViewMeta};

/// A transition of the rule `overheating` of the device `alert_id`.
pub(crate) fn transition(id: TransitionId, alert_id: &str, state: AlertState) -> Transition {
    Transition {
        id,
        alert_id: alert_id.into(),
        rule: "overheating".into(),
        state,
        previous: None,
        severity: Severity::Critical,
        labels: BTreeMap::from([("device_id".into(), alert_id.into())]),
        annotations: BTreeMap::new(),
        values: Map::new(),
        started_at: 1_700_000_000_000_000,
        at: 1_700_000_000_000_000 + id as i64 * 1_000_000,
        recorded_at: 1_700_000_000_000_000,
        node: "n1".into(),
        seq: id,
        ordinal: 0,
        historical: false,
    }
}

/// An alert log in memory.
#[derive(Debug, Default)]
pub(crate) struct FakeFeed {
    log: Mutex<Vec<Transition>>,
    latest: watch::Sender<TransitionId>,
}

impl FakeFeed {
    /// Appends a transition and wakes the readers.
    pub(crate) fn push(&self, alert_id: &str, state: AlertState) -> TransitionId {
        let id = *self.latest.borrow() + 1;
        self.log.lock().push(transition(id, alert_id, state));
        self.latest.send_replace(id);
        id
    }

    /// Forgets the transitions up to `id`, as retention does.
    pub(crate) fn forget(&self, id: TransitionId) {
        self.log.lock().retain(|t| t.id > id);
    }
}

impl AlertFeed for FakeFeed {
    fn latest(&self) -> watch::Receiver<TransitionId> {
        self.latest.subscribe()
    }

    fn read_after(&self, after: TransitionId, limit: usize) -> Result<Vec<Transition>> {
        Ok(self.log.lock().iter().filter(|t| t.id > after).take(limit).cloned().collect())
    }

    fn current(&self) -> Vec<Transition> {
        let log = self.log.lock();
        let newest: BTreeMap<_, _> = log.iter().map(|t| (t.alert_id.clone(), t.clone())).collect();
        newest.into_values().collect()
    }

    fn history(&self, alert_id: &str) -> Result<Vec<Transition>> {
        Ok(self.log.lock().iter().filter(|t| t.alert_id == alert_id).cloned().collect())
    }
}

/// Knows one view of one row, and fails on demand.
#[derive(Debug, Default)]
pub(crate) struct FakeQueries {
    /// What was asked last.
    pub(crate) asked: Mutex<Vec<String>>,
}

fn answer(request: String, layer: crate::query::Layer) -> Answer {
    let at = TimestampMicrosecondArray::from(vec![1_700_000_000_000_000]).with_timezone("UTC");
    let batch = RecordBatch::try_from_iter([
        ("window_start", Arc::new(at) as ArrayRef),
        ("device_id", Arc::new(StringArray::from(vec![request]))),
        ("n", Arc::new(Int64Array::from(vec![i64::MAX]))),
        ("avg_temperature", Arc::new(Float64Array::from(vec![None::<f64>]))),
    ])
    .unwrap();
    let frontier: Frontier = [("n1".into(), 42)].into_iter().collect();
    let view = ViewMeta {
        name: "climate_1m".into(),
        batch_generation: 7,
        frontier: frontier.clone(),
        ..ViewMeta::default()
    };
    let stream = StreamMeta { name: "readings".into(), frontier, ..StreamMeta::default() };
    let meta = Meta { layer, rows: 1, elapsed_ms: 1.25, views: vec![view], streams: vec![stream] };
    Answer { schema: batch.schema(), batches: vec![batch], meta }
}

#[async_trait::async_trait]
impl Queries for FakeQueries {
    async fn execute(&self, request: QueryRequest) -> Result<Answer> {
        self.asked.lock().push(format!("{request:?}"));
        match request.sql.as_str() {
            "broken" => Err(datafusion::error::DataFusionError::Plan("no table `x`".into()).into()),
            "disk" => Err(Error::io("reading", std::io::Error::other("gone"))),
            _ => Ok(answer(request.sql, request.layer)),
        }
    }

    async fn view_rows(&self, view: &str, filter: ViewFilter) -> Result<Answer> {
        self.asked.lock().push(format!("{view} {filter:?}"));
        match view {
            "climate_1m" => Ok(answer("a".into(), crate::query::Layer::Merged)),
            _ => Err(Error::NotFound { kind: "view", name: view.into(), hint: String::new() }),
        }
    }
}

/// There are no views to be followed.
#[derive(Debug)]
struct NoViews;

fn no_view<T>(name: &str) -> Result<T> {
    Err(Error::NotFound { kind: "view", name: name.into(), hint: String::new() })
}

impl Views for NoViews {
    fn names(&self) -> Vec<Arc<str>> {
        Vec::new()
    }

    fn snapshot(&self, view: &str) -> Result<ViewSnapshot> {
        no_view(view)
    }

    fn compiled(&self, view: &str) -> Result<(Arc<CompiledView>, Arc<Table>)> {
        no_view(view)
    }

    fn record_changes(&self, view: &str) -> Result<Arc<ChangeRecord>> {
        no_view(view)
    }

    fn batch_committed(&self, _: &str) {}
}

/// A batch layer that says what it was asked.
#[derive(Debug)]
struct FakeBatch;

#[async_trait::async_trait]
impl BatchRunner for FakeBatch {
    async fn run(&self, request: BatchRequest) -> Result<Vec<BatchReport>> {
        let report = |view: String| BatchReport {
            view,
            generation: 8,
            full: request.full,
            from: Frontier::empty(),
            to: Frontier::empty(),
            events: 1,
            state_rows: 1,
            elapsed_ms: 1,
        };
        Ok(request.views.iter().cloned().map(report).collect())
    }
}

/// A control side that repeats what it was told.
#[derive(Debug, Default)]
pub(crate) struct FakeControl {
    /// The answer of `not_ready`.
    pub(crate) not_ready: Mutex<Option<String>>,
    /// What was written.
    pub(crate) written: Mutex<Vec<Written>>,
}

fn applied(name: &str, change: Change) -> Applied {
    Applied { kind: Kind::View, name: name.into(), change }
}

#[async_trait::async_trait]
impl Control for FakeControl {
    async fn apply(&self, yaml: &str, origin: &str) -> Result<Vec<Applied>> {
        match yaml {
            "" => Err(Error::invalid(format!("{origin}: nothing to apply"))),
            _ => Ok(vec![applied(yaml, Change::Created)]),
        }
    }

    async fn diff(&self, yaml: &str, _: &str) -> Result<Vec<Applied>> {
        Ok(vec![applied(yaml, Change::Unchanged)])
    }

    async fn delete(&self, kind: Kind, name: &str) -> Result<Applied> {
        Ok(Applied { kind, name: name.into(), change: Change::Deleted })
    }

    async fn list(&self, what: &str) -> Result<Vec<Map<String, Value>>> {
        match what {
            "views" => Ok(vec![Map::from_iter([("name".to_owned(), json!("climate_1m"))])]),
            _ => Err(Error::invalid(format!("`{what}` cannot be listed"))),
        }
    }

    async fn describe(&self, kind: Kind, name: &str) -> Result<Value> {
        Ok(json!({"kind": kind, "name": name}))
    }

    async fn status(&self) -> Result<Value> {
        Ok(json!({"node": "n1"}))
    }

    async fn verify(&self, view: Option<&str>) -> Result<Vec<VerifyReport>> {
        let view = view.unwrap_or("all").to_owned();
        let frontier = Frontier::empty();
        let examples = Vec::new();
        let report =
            VerifyReport { view, generated: false, frontier, rows: 1, events: 1, differences: 0, examples };
        Ok(vec![report])
    }

    async fn replay(&self, request: ReplayRequest) -> Result<ReplayReport> {
        request.range()?;
        let frontier = Frontier::empty();
        let ReplayRequest { stream, .. } = request;
        Ok(ReplayReport { stream, frontier, messages: 1, events: 2, rules: Vec::new(), elapsed_ms: 3 })
    }

    fn not_ready(&self) -> Option<String> {
        self.not_ready.lock().clone()
    }

    fn metrics(&self) -> Vec<(&'static str, &'static str, f64)> {
        vec![("iot_events_total", "events accepted", 3.0)]
    }
}

#[async_trait::async_trait]
impl Schemas for FakeControl {
    fn list(&self, stream: Option<&str>) -> Result<Vec<Map<String, Value>>> {
        Ok(vec![Map::from_iter([("stream".to_owned(), json!(stream.unwrap_or("all")))])])
    }

    fn show(&self, stream: &str, number: Option<u32>) -> Result<Value> {
        Ok(json!({"stream": stream, "version": number}))
    }

    async fn check(&self, yaml: &str, origin: &str) -> Result<Vec<Finding>> {
        let change = SchemaChange { rule: RuleId::Widen, column: None, detail: origin.to_owned() };
        Ok(vec![Finding::of(yaml, change)])
    }
}

#[async_trait::async_trait]
impl DeadLetters for FakeControl {
    async fn resolve(&self, request: DeadRequest) -> Result<DeadReport> {
        if request.selection.is_empty() {
            return Err(Error::invalid("no dead letters are named"));
        }
        Ok(DeadReport { done: 2, reasons: vec![format!("{request:?}")], ..DeadReport::default() })
    }
}

#[async_trait::async_trait]
impl EventWriter for FakeControl {
    async fn write(&self, batch: Written) -> Result<()> {
        if batch.stream == "unknown" {
            return Err(Error::NotFound { kind: "stream", name: batch.stream, hint: String::new() });
        }
        self.written.lock().push(batch);
        Ok(())
    }
}

/// An [`App`] of fakes, with the fakes at hand.
#[derive(Debug)]
pub(crate) struct Fixture {
    pub(crate) feed: Arc<FakeFeed>,
    pub(crate) queries: Arc<FakeQueries>,
    pub(crate) control: Arc<FakeControl>,
    pub(crate) app: App,
}

impl Fixture {
    pub(crate) fn new() -> Self {
        Self::with_limits(HttpLimits::default())
    }

    pub(crate) fn with_limits(limits: HttpLimits) -> Self {
        let (feed, queries, control) = <(Arc<FakeFeed>, Arc<FakeQueries>, Arc<FakeControl>)>::default();
        let app = App {
            queries: queries.clone(),
            alerts: feed.clone(),
            feeds: ViewFeeds::new(Arc::new(NoViews), Arc::default()),
            batch: Arc::new(FakeBatch),
            control: control.clone(),
            schemas: control.clone(),
            dead: control.clone(),
            writer: control.clone(),
            clock: Clock::manual(0).0,
            access: HttpAccess::default(),
            limits,
            shutdown: CancellationToken::new(),
        };
        Self { feed, queries, control, app }
    }

    /// A new router, as after a restart of the server.
    pub(crate) fn router(&self) -> Router {
        router(Arc::new(self.app.clone()))
    }

    pub(crate) async fn get(&self, path: &str) -> Reply {
        self.send(Request::get(path).body(Body::empty()).unwrap()).await
    }

    pub(crate) async fn post(&self, path: &str, body: &str) -> Reply {
        self.send(Request::post(path).body(body.to_owned().into()).unwrap()).await
    }

    pub(crate) async fn send(&self, request: Request) -> Reply {
        let response = oneshot(self.router(), request).await;
        let (parts, body) = response.into_parts();
        let body = to_bytes(body, usize::MAX).await.unwrap().to_vec();
        Reply { status: parts.status, headers: parts.headers, body }
    }
}

/// One request to a router, without a socket.
pub(crate) async fn oneshot(router: Router, request: Request) -> Response {
    any_service(router).call(request, ()).await
}

/// A response that has been read to its end.
#[derive(Debug)]
pub(crate) struct Reply {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Vec<u8>,
}

impl Reply {
    pub(crate) fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().unwrap())
    }

    pub(crate) fn text(&self) -> &str {
        std::str::from_utf8(&self.body).unwrap()
    }

    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap()
    }

    /// Fails unless this is a problem document of that status and type.
    #[track_caller]
    pub(crate) fn is_problem(&self, status: u16, kind: &str) {
        let problem = self.json();
        assert_eq!(self.status.as_u16(), status, "{problem}");
        assert_eq!(self.header("content-type"), "application/problem+json");
        assert_eq!(problem["type"], format!("urn:iot:problem:{kind}"), "{problem}");
        assert_eq!(problem["status"], status, "{problem}");
        assert!(problem["title"].is_string() && problem["detail"].is_string(), "{problem}");
    }
}

/// Waits for `what` no longer than tests should.
pub(crate) async fn soon<T>(what: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(5), what).await.expect("it should have happened by now")
}
