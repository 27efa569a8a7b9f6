//! Events over HTTP: `POST /v1/write`, and the write calls of InfluxDB's clients and of Telegraf.
//!
//! The answer comes once the events are durable, as a PUBACK does. They take the way of an MQTT message from there on:
//! what cannot be decoded is a dead letter and not an error of this call.

use std::sync::Arc;

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::extract::rejection::BytesRejection;
use axum::http::{HeaderMap, StatusCode, header};
use axum::routing::{get, post};
use serde::Deserialize;

use iot_schemas::catalog::{Format, TimeUnitName};
use iot_schemas::write::Written;

use super::App;
use super::extract::Params;
use super::problem::{Problem, ProblemKind};

const LINE_PROTOCOL: &str = "application/vnd.influx.line-protocol";

pub(super) fn routes() -> Router<Arc<App>> {
    Router::new()
        .route("/v1/write", post(write))
        .route("/api/v2/write", post(write_as_influx_2))
        .route("/write", post(write_as_influx_1))
        .route("/ping", get(async || StatusCode::NO_CONTENT))
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct WriteParams {
    stream: Option<String>,
    precision: Option<String>,
}

/// InfluxDB 2: the bucket is the stream; the organisation means nothing here.
#[derive(Debug, Deserialize)]
struct Influx2Params {
    bucket: Option<String>,
    precision: Option<String>,
}

/// InfluxDB 1: the database is the stream.
#[derive(Debug, Deserialize)]
struct Influx1Params {
    db: Option<String>,
    precision: Option<String>,
}

async fn write(
    State(app): State<Arc<App>>,
    Params(params): Params<WriteParams>,
    headers: HeaderMap,
    payload: Result<Bytes, BytesRejection>,
) -> Result<StatusCode, Problem> {
    check_coding(&headers)?;
    let content_type = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
    let content_type = encoding(content_type.unwrap_or_default())?;
    take(&app, ("stream", params.stream), content_type, params.precision, payload).await
}

async fn write_as_influx_2(
    State(app): State<Arc<App>>,
    Params(params): Params<Influx2Params>,
    headers: HeaderMap,
    payload: Result<Bytes, BytesRejection>,
) -> Result<StatusCode, Problem> {
    check_coding(&headers)?;
    let precision = params.precision.or_else(default_precision);
    take(&app, ("bucket", params.bucket), LINE_PROTOCOL, precision, payload).await
}

async fn write_as_influx_1(
    State(app): State<Arc<App>>,
    Params(params): Params<Influx1Params>,
    headers: HeaderMap,
    payload: Result<Bytes, BytesRejection>,
) -> Result<StatusCode, Problem> {
    check_coding(&headers)?;
    let precision = params.precision.or_else(default_precision);
    take(&app, ("db", params.db), LINE_PROTOCOL, precision, payload).await
}

/// What InfluxDB takes times for if nothing is said, whatever the stream's own events count in.
fn default_precision() -> Option<String> {
    Some("ns".to_owned())
}

/// Refuses a body that is compressed in a way that ingest would not expand.
fn check_coding(headers: &HeaderMap) -> Result<(), Problem> {
    let coding =
        headers.get(header::CONTENT_ENCODING).and_then(|value| value.to_str().ok()).unwrap_or_default();
    match coding.trim().to_ascii_lowercase().as_str() {
        "" | "identity" | "gzip" | "x-gzip" | "zstd" => Ok(()),
        _ => Err(Problem::new(
            ProblemKind::UNSUPPORTED_MEDIA_TYPE,
            format!("the content encoding `{coding}` is not taken; send gzip, zstd or none"),
        )),
    }
}

/// What the body is. Without a word about it, or with what clients say who do not care, it is line protocol.
fn encoding(content_type: &str) -> Result<&str, Problem> {
    let essence = content_type.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    match essence.as_str() {
        "" | "text/plain" | "application/octet-stream" | "application/x-www-form-urlencoded" => {
            Ok(LINE_PROTOCOL)
        }
        _ if Format::of_content_type(content_type).is_some() => Ok(content_type),
        _ => Err(Problem::new(
            ProblemKind::UNSUPPORTED_MEDIA_TYPE,
            format!(
                "`{content_type}` cannot be written; send line protocol, application/json, application/x-ndjson, \
                 application/cbor, application/msgpack, application/senml+json or text/csv"
            ),
        )),
    }
}

async fn take(
    app: &App,
    (parameter, stream): (&str, Option<String>),
    content_type: &str,
    precision: Option<String>,
    payload: Result<Bytes, BytesRejection>,
) -> Result<StatusCode, Problem> {
    let limit = app.limits.write_bytes;
    let too_large = || {
        let detail = format!("the body has more than {limit} bytes; send fewer events at once");
        Problem::new(ProblemKind::BODY_TOO_LARGE, detail)
    };
    let payload = payload.map_err(|e| match e.status() {
        StatusCode::PAYLOAD_TOO_LARGE => too_large(),
        _ => Problem::invalid(format!("the body cannot be read: {}", e.body_text())),
    })?;
    if payload.len() > limit {
        return Err(too_large());
    }
    let stream = stream.filter(|stream| !stream.is_empty()).ok_or_else(|| {
        Problem::invalid(format!("the parameter `{parameter}` is missing; it names the stream"))
    })?;
    if payload.is_empty() {
        return Err(Problem::invalid("the body is empty"));
    }
    let content_type = match precision {
        None => content_type.to_owned(),
        Some(unit) if TimeUnitName::of_word(&unit).is_some() => format!("{content_type}; precision={unit}"),
        Some(unit) => {
            return Err(Problem::invalid(format!("the precision `{unit}` is none of s, ms, us and ns")));
        }
    };
    app.writer.write(Written { stream, content_type, payload }).await?;
    Ok(StatusCode::NO_CONTENT)
}

#[cfg(test)]
mod tests {
    use axum::body::Body;
    use axum::http::Request;

    use crate::http::fakes::Fixture;

    /// The status and what was handed on as (stream, content type).
    async fn written(path: &str, content_type: &str, body: &str) -> (u16, Vec<(String, String)>) {
        let fixture = Fixture::new();
        let mut request = Request::post(path);
        if !content_type.is_empty() {
            request = request.header("content-type", content_type);
        }
        let reply = fixture.send(request.body(Body::from(body.to_owned())).expect("a request")).await;
        let written = fixture.control.written.lock();
        let written = written.iter().map(|it| (it.stream.clone(), it.content_type.clone())).collect();
        (reply.status.as_u16(), written)
    }

    #[tokio::test]
    async fn writes_name_their_stream_and_their_encoding() {
        let line = "application/vnd.influx.line-protocol";
        for (path, content_type, expect) in [
            ("/v1/write?stream=a", "", line),
            ("/v1/write?stream=a&precision=s", "text/plain; charset=utf-8", &format!("{line}; precision=s")),
            ("/v1/write?stream=a", "application/x-ndjson", "application/x-ndjson"),
            ("/api/v2/write?org=o&bucket=a&precision=s", "text/plain", &format!("{line}; precision=s")),
            ("/api/v2/write?org=o&bucket=a", "text/plain", &format!("{line}; precision=ns")),
            ("/write?db=a", "", &format!("{line}; precision=ns")),
            (
                "/write?db=a&u=me&precision=n",
                "application/x-www-form-urlencoded",
                &format!("{line}; precision=n"),
            ),
        ] {
            assert_eq!(
                written(path, content_type, "m v=1").await,
                (204, vec![("a".to_owned(), expect.to_owned())]),
                "{path}"
            );
        }
    }

    #[tokio::test]
    async fn what_cannot_be_written_is_refused() {
        for (path, content_type, body, status) in [
            ("/v1/write", "", "m v=1", 400),
            ("/v1/write?stream=a", "", "", 400),
            ("/v1/write?stream=a&precision=h", "", "m v=1", 400),
            ("/v1/write?stream=a", "application/xml", "<a/>", 415),
            ("/v1/write?stream=unknown", "", "m v=1", 404),
            ("/api/v2/write?org=o", "", "m v=1", 400),
            ("/v1/write?stream=a", "", &"x".repeat((4 << 20) + 1), 413),
            ("/v1/write?stream=a", "", &"x".repeat((8 << 20) + 1), 413),
        ] {
            assert_eq!(written(path, content_type, body).await, (status, vec![]), "{path} {content_type}");
        }
    }
}
