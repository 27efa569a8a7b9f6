//! The HTTP client of a running server: one method per endpoint, errors that say what to try next.

mod alerts;
mod sse;

use std::time::Duration;

use anyhow::{Context, Result};
use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;
use arrow::ipc::reader::StreamReader;
use iot_ingest::source::secret::Secret;
use iot_schemas::alert::Transition;
use iot_schemas::batch::{BatchReport, BatchRequest};
use iot_schemas::catalog::Kind;
use iot_schemas::control::{Applied, VerifyReport};
use iot_schemas::dead::{DeadAction, DeadReport, DeadRequest};
use iot_schemas::registry::Finding;
use iot_schemas::replay::{ReplayReport, ReplayRequest};
use reqwest::header::{ACCEPT, CONTENT_TYPE, HeaderMap};
use reqwest::{Method, RequestBuilder, Response, StatusCode};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value, json};
use url::Url;

pub use alerts::{AlertFilter, EventStream};
pub use sse::{SseEvent, SseParser, TooLong};

use crate::args::{Layer, ServerArgs};
use crate::exit::Failure;

/// A server that does not accept a connection in this time is as good as absent.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// What the server calls an Arrow IPC stream.
const ARROW_STREAM: &str = "application/vnd.apache.arrow.stream";
/// Headers that start so carry the provenance of an answer.
const META_PREFIX: &str = "x-iot-";

/// A server at an address.
#[derive(Debug, Clone)]
pub struct Client {
    http: reqwest::Client,
    base: Url,
    token: Option<Secret>,
}

/// A query's answer and where it came from.
#[derive(Debug, Clone)]
pub struct Answer {
    /// The columns, also of an empty answer.
    pub schema: SchemaRef,
    /// The rows.
    pub batches: Vec<RecordBatch>,
    /// Generation, frontier, watermark, ... as the server put them into its headers.
    pub meta: Value,
}

impl Client {
    /// A client that has not connected yet.
    pub fn new(server: &ServerArgs) -> Result<Self> {
        let base = base_url(server.address())?;
        let http = reqwest::Client::builder()
            .connect_timeout(CONNECT_TIMEOUT)
            .user_agent(concat!("iotctl/", env!("CARGO_PKG_VERSION")))
            .build()
            .context("cannot set up the HTTP client")?;
        Ok(Self { http, base, token: server.token()? })
    }

    /// Runs SQL on the server.
    pub async fn query(&self, sql: &str, layer: Layer) -> Result<Answer> {
        let request = self
            .request(Method::POST, "/v1/query")?
            .header(ACCEPT, ARROW_STREAM)
            .json(&json!({"sql": sql, "layer": layer.name()}));
        let response = self.send(request).await?;
        let meta = meta(response.headers());
        let body = response.bytes().await.context("the server broke off its answer")?;
        let reader = StreamReader::try_new(body.as_ref(), None).context("the answer is no Arrow stream")?;
        let schema = reader.schema();
        let batches = reader.collect::<Result<_, _>>().context("the answer is a broken Arrow stream")?;
        Ok(Answer { schema, batches, meta })
    }

    /// Runs SQL on the server, and takes the answer as the JSON document that the server makes of it.
    pub async fn query_document(&self, sql: &str, layer: Layer) -> Result<Vec<u8>> {
        let body = json!({"sql": sql, "layer": layer.name()});
        let request = self.request(Method::POST, "/v1/query")?.header(ACCEPT, "application/json").json(&body);
        let document = self.send(request).await?.bytes().await.context("the server broke off its answer")?;
        Ok(document.into())
    }

    /// Puts catalog documents in force, or says what that would do. `origin` names them in error messages.
    pub async fn apply(&self, yaml: String, origin: &str, dry_run: bool) -> Result<Vec<Applied>> {
        #[derive(Deserialize)]
        struct Answer {
            applied: Vec<Applied>,
        }
        let mut request = self.request(Method::POST, "/v1/apply")?.query(&[("origin", origin)]);
        if dry_run {
            request = request.query(&[("dry_run", "true")]);
        }
        let answer: Answer = self.json(request.header(CONTENT_TYPE, "application/yaml").body(yaml)).await?;
        Ok(answer.applied)
    }

    /// One object per definition of a kind, per device or per batch run.
    pub async fn list(&self, what: &str) -> Result<Vec<Map<String, Value>>> {
        let answer: Value = self.json(self.request(Method::GET, &format!("/v1/catalog/{what}"))?).await?;
        objects(answer, "items")
    }

    /// Everything about one definition.
    pub async fn describe(&self, kind: Kind, name: &str) -> Result<Value> {
        self.json(self.definition(Method::GET, kind, name)?).await
    }

    /// A row per stream with the newest version of its schema, or per version of one stream.
    pub async fn schemas(&self, stream: Option<&str>) -> Result<Vec<Map<String, Value>>> {
        let request = match stream {
            Some(stream) => self.of_stream(stream, "schemas")?,
            None => self.request(Method::GET, "/v1/schemas")?,
        };
        objects(self.json(request).await?, "items")
    }

    /// One version of a stream's schema, the newest if none is named.
    pub async fn schema(&self, stream: &str, version: Option<u32>) -> Result<Value> {
        let request = self.of_stream(stream, "schema")?;
        self.json(request.query(&version.map(|version| [("version", version)]))).await
    }

    /// What catalog documents would change about the schemas of streams.
    pub async fn check_schemas(&self, yaml: String, origin: &str) -> Result<Vec<Finding>> {
        #[derive(Deserialize)]
        struct Answer {
            changes: Vec<Finding>,
        }
        let request = self.request(Method::POST, "/v1/schemas/check")?.query(&[("origin", origin)]);
        let answer: Answer = self.json(request.header(CONTENT_TYPE, "application/yaml").body(yaml)).await?;
        Ok(answer.changes)
    }

    /// Removes a definition. Data stays.
    pub async fn delete(&self, kind: Kind, name: &str) -> Result<()> {
        self.send(self.definition(Method::DELETE, kind, name)?).await.map(drop)
    }

    /// Runs batch jobs and waits for them.
    pub async fn batch_run(&self, request: &BatchRequest) -> Result<Vec<BatchReport>> {
        self.reports(self.request(Method::POST, "/v1/batch/run")?.json(request)).await
    }

    /// Recomputes a view, or all views, from raw events and compares.
    pub async fn verify(&self, view: Option<&str>) -> Result<Vec<VerifyReport>> {
        let mut request = self.request(Method::POST, "/v1/verify")?;
        if let Some(view) = view {
            request = request.query(&[("view", view)]);
        }
        self.reports(request).await
    }

    /// Replays history for rules and waits for it.
    pub async fn replay(&self, request: &ReplayRequest) -> Result<ReplayReport> {
        self.json(self.request(Method::POST, "/v1/replay")?.json(request)).await
    }

    /// Replays or drops dead letters.
    pub async fn resolve_dead(&self, request: &DeadRequest) -> Result<DeadReport> {
        let path = match request.action {
            DeadAction::Replay => "/v1/dead/replay",
            DeadAction::Drop => "/v1/dead/drop",
        };
        let mut body = serde_json::to_value(&request.selection)?;
        body["by"] = request.by.clone().into();
        body["note"] = request.note.clone().into();
        self.json(self.request(Method::POST, path)?.json(&body)).await
    }

    /// Counters, frontiers, sizes and health of all layers.
    pub async fn status(&self) -> Result<Value> {
        self.json(self.request(Method::GET, "/v1/status")?).await
    }

    /// The newest transition of each alert, for parameters of the endpoint (`state`, `rule`, `limit`, ...).
    pub async fn alerts(&self, parameters: &[(&str, String)]) -> Result<Vec<Map<String, Value>>> {
        objects(self.json(self.request(Method::GET, "/v1/alerts")?.query(parameters)).await?, "alerts")
    }

    /// One alert with its history.
    pub async fn alert(&self, id: &str) -> Result<Value> {
        let mut request = self.url("/v1/alerts")?;
        path_segments(&mut request)?.push(id);
        self.json(self.authorized(self.http.get(request))).await
    }

    /// Follows the alert log.
    pub fn follow_alerts(&self, filter: AlertFilter) -> EventStream {
        EventStream::new(self.clone(), &["alerts", "stream"], filter)
    }

    /// Follows the rows of a view, for parameters of the endpoint (`device_id`, `closed`).
    pub fn follow_view(&self, view: &str, parameters: Vec<(String, String)>) -> EventStream {
        let filter = AlertFilter { parameters, snapshot: false };
        EventStream::new(self.clone(), &["views", view, "stream"], filter)
    }

    fn definition(&self, method: Method, kind: Kind, name: &str) -> Result<RequestBuilder> {
        let mut url = self.url("/v1/catalog")?;
        path_segments(&mut url)?.push(&kind.to_string()).push(name);
        Ok(self.authorized(self.http.request(method, url)))
    }

    fn of_stream(&self, stream: &str, what: &str) -> Result<RequestBuilder> {
        let mut url = self.url("/v1/streams")?;
        path_segments(&mut url)?.push(stream).push(what);
        Ok(self.authorized(self.http.get(url)))
    }

    fn request(&self, method: Method, path: &str) -> Result<RequestBuilder> {
        Ok(self.authorized(self.http.request(method, self.url(path)?)))
    }

    fn url(&self, path: &str) -> Result<Url> {
        let mut url = self.base.clone();
        path_segments(&mut url)?.pop_if_empty().extend(path.trim_start_matches('/').split('/'));
        Ok(url)
    }

    fn authorized(&self, request: RequestBuilder) -> RequestBuilder {
        match &self.token {
            Some(token) => request.bearer_auth(token.expose()),
            None => request,
        }
    }

    async fn reports<T: DeserializeOwned>(&self, request: RequestBuilder) -> Result<Vec<T>> {
        let answer: Value = self.json(request).await?;
        let reports = answer.get("reports").cloned().unwrap_or(answer);
        serde_json::from_value(reports).context("the server's answer has an unknown form")
    }

    async fn json<T: DeserializeOwned>(&self, request: RequestBuilder) -> Result<T> {
        let response = self.send(request.header(ACCEPT, "application/json")).await?;
        response.json().await.context("the server's answer has an unknown form")
    }

    async fn send(&self, request: RequestBuilder) -> Result<Response> {
        let response = request.send().await.map_err(|error| self.unreachable(&error))?;
        if response.status().is_success() {
            return Ok(response);
        }
        Err(refusal(response).await.into())
    }

    fn unreachable(&self, error: &reqwest::Error) -> Failure {
        let failure = Failure::unreachable(format!("cannot reach `{}`: {}", self.base, root_cause(error)));
        if error.is_connect() {
            return failure
                .hint("is a server running? start one with `iotctl serve`, or name one with --url");
        }
        failure
    }
}

fn base_url(address: &str) -> Result<Url> {
    let with_scheme = if address.contains("://") { address.to_owned() } else { format!("http://{address}") };
    match Url::parse(&with_scheme) {
        Ok(url) if url.scheme() == "http" && url.has_host() => Ok(url),
        Ok(url) if url.scheme() == "https" => {
            Err(Failure::usage(format!("`{address}`: this build speaks plain HTTP only"))
                .hint("give --url http://HOST:PORT")
                .into())
        }
        _ => Err(Failure::usage(format!("`{address}` is no server address"))
            .hint("give --url http://HOST:PORT")
            .into()),
    }
}

fn path_segments(url: &mut Url) -> Result<url::PathSegmentsMut<'_>> {
    url.path_segments_mut().map_err(|()| Failure::usage("the server address has no path").into())
}

/// The innermost error: `connection refused` says more than `error sending request`.
fn root_cause(error: &dyn std::error::Error) -> String {
    let mut cause = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    cause.to_string()
}

/// What the server said, as an error of ours. This is the one place that reads status codes.
async fn refusal(response: Response) -> Failure {
    let status = response.status();
    let body = response.text().await.unwrap_or_default();
    let problem: Value = serde_json::from_str(&body).unwrap_or_default();
    let text = |key: &str| problem.get(key).and_then(Value::as_str).map(str::to_owned);
    let message = text("detail")
        .or_else(|| text("title"))
        .or_else(|| (!body.trim().is_empty()).then(|| body.trim().to_owned()))
        .unwrap_or_else(|| format!("the server answered {status}"));
    let failure = match status {
        StatusCode::BAD_GATEWAY | StatusCode::SERVICE_UNAVAILABLE | StatusCode::GATEWAY_TIMEOUT => {
            Failure::unreachable(message)
        }
        _ => Failure::failed(message),
    };
    match status {
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
            failure.hint("give a token that may do this with --token or --token-file")
        }
        StatusCode::SERVICE_UNAVAILABLE => {
            failure.hint("`iotctl status` shows what the server is waiting for")
        }
        _ => match text("hint") {
            Some(hint) => failure.hint(hint),
            None => failure,
        },
    }
}

/// The provenance headers as an object: `X-Iot-Batch-Generation: 7` becomes `"batch_generation": 7`, and the fields
/// of `X-Iot-Meta`, which holds JSON, are taken as they are.
fn meta(headers: &HeaderMap) -> Value {
    let mut meta = Map::new();
    for (name, value) in headers {
        let (Some(key), Ok(text)) = (name.as_str().strip_prefix(META_PREFIX), value.to_str()) else {
            continue;
        };
        let value = serde_json::from_str(text).unwrap_or_else(|_| Value::String(text.to_owned()));
        match (key, value) {
            ("meta", Value::Object(fields)) => meta.extend(fields),
            (key, value) => drop(meta.insert(key.replace('-', "_"), value)),
        }
    }
    Value::Object(meta)
}

/// The objects of a list, which stands alone or under a key.
fn objects(answer: Value, key: &str) -> Result<Vec<Map<String, Value>>> {
    let list = match answer {
        Value::Object(mut fields) => fields.remove(key).unwrap_or_default(),
        other => other,
    };
    serde_json::from_value(list).context("the server's answer has an unknown form")
}

/// An alert transition from the data of an event.
pub fn transition(data: &str) -> Result<Transition> {
    serde_json::from_str(data).context("the server sent an alert of an unknown form")
}

#[cfg(test)]
mod tests {
    use reqwest::header::{HeaderName, HeaderValue};
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;
    use crate::exit::Code;

    /// A client of a server that answers one request so, whatever it is.
    async fn client_of(status: &str, body: &str) -> Client {
        let answer = format!("HTTP/1.1 {status}\r\ncontent-length: {}\r\n\r\n{body}", body.len());
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        tokio::spawn(async move {
            let (mut socket, _) = listener.accept().await.expect("a client");
            let mut request = [0; 4096];
            let _ = socket.read(&mut request).await;
            let _ = socket.write_all(answer.as_bytes()).await;
        });
        Client::new(&ServerArgs { url: Some(address.to_string()), ..ServerArgs::default() })
            .expect("a client")
    }

    fn failure(error: &anyhow::Error) -> Failure {
        error.downcast_ref::<Failure>().expect("a failure").clone()
    }

    #[tokio::test]
    async fn nobody_there_is_69_with_a_hint() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let url = Some(format!("http://{}", listener.local_addr().expect("an address")));
        drop(listener);
        let client = Client::new(&ServerArgs { url, ..ServerArgs::default() }).expect("a client");
        let failure = failure(&client.status().await.expect_err("nobody there"));
        assert_eq!(failure.code, Code::Unreachable);
        assert!(failure.hint.expect("a hint").contains("iotctl serve"));
    }

    #[tokio::test]
    async fn a_problem_becomes_its_detail() {
        let body = "{\"type\":\"x\",\"title\":\"t\",\"detail\":\"no table `a`\"}";
        let client = client_of("422 Unprocessable Entity", body).await;
        let failure = failure(&client.query("SELECT 1", Layer::Merged).await.expect_err("a refusal"));
        assert_eq!((failure.code, failure.message.as_str()), (Code::Failed, "no table `a`"));
    }

    #[tokio::test]
    async fn a_list_may_stand_under_items() {
        let client = client_of("200 OK", "{\"items\":[{\"name\":\"abc\"}]}").await;
        assert_eq!(client.list("streams").await.expect("a list")[0]["name"], "abc");
    }

    #[test]
    fn provenance_headers_become_an_object() {
        let mut headers = HeaderMap::new();
        for (name, value) in [("x-iot-batch-generation", "7"), ("x-iot-meta", "{\"a\":1}"), ("date", "today")]
        {
            headers.insert(HeaderName::from_static(name), HeaderValue::from_static(value));
        }
        assert_eq!(meta(&headers), json!({"batch_generation": 7, "a": 1}));
    }

    #[test]
    fn an_address_may_lack_the_scheme_but_not_the_host() {
        assert_eq!(base_url("localhost:8080").expect("an address").as_str(), "http://localhost:8080/");
        assert!(base_url("ftp://x").is_err() && base_url("https://x").is_err() && base_url("").is_err());
    }

    #[test]
    fn names_are_escaped_in_paths() {
        let (url, token) = (Some("http://h:1/base/".to_owned()), Some(Secret::new("t")));
        let args = ServerArgs { url, token, ..ServerArgs::default() };
        let client = Client::new(&args).expect("a client");
        let request =
            client.definition(Method::GET, Kind::View, "a/b").expect("a request").build().expect("built");
        assert_eq!(request.url().as_str(), "http://h:1/base/v1/catalog/view/a%2Fb");
        assert_eq!(request.headers()["authorization"], "Bearer t");
    }
}
