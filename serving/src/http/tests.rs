//! Every endpoint against fakes, through the router and without a socket (but for the shutdown).

use axum::body::Body;
use axum::extract::Request;
use axum::http::StatusCode;
use iot_schemas::alert::AlertState;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::fakes::{Fixture, Reply, soon};
use super::*;

async fn query(accept: &str, body: &str) -> Reply {
    let request = Request::post("/v1/query").header("accept", accept).body(Body::from(body.to_owned()));
    Fixture::new().send(request.unwrap()).await
}

#[tokio::test]
async fn a_query_answers_with_columns_rows_and_provenance() {
    let reply = Fixture::new().post("/v1/query", r#"{"sql": "select 1", "layer": "speed"}"#).await;
    let answer = reply.json();
    assert_eq!(reply.header("content-type"), "application/json");
    assert_eq!(answer["columns"][2], json!({"name": "n", "type": "bigint"}));
    assert_eq!(
        answer["rows"],
        json!([{"window_start": "2023-11-14T22:13:20Z", "device_id": "select 1", "n": i64::MAX, "avg_temperature": null}])
    );
    assert_eq!(answer["meta"]["layer"], "speed");
    assert_eq!(answer["meta"]["views"][0]["frontier"], json!({"n1": 42}));
    assert_eq!(reply.header("x-iot-rows"), "1");
    assert_eq!(reply.header("x-iot-elapsed-ms"), "1.250");
    assert_eq!(reply.header("x-iot-frontier"), "n1:42");
    assert_eq!(reply.header("x-iot-batch-generation"), "7");
    let meta: serde_json::Value = serde_json::from_str(reply.header("x-iot-meta")).expect("JSON");
    assert_eq!(meta, answer["meta"]);
}

#[tokio::test]
async fn a_query_can_stand_in_the_url() {
    let fixture = Fixture::new();
    let reply = fixture.get("/v1/query?sql=select%201&max_rows=5").await;
    assert_eq!(reply.json()["rows"][0]["device_id"], "select 1");
    let asked = fixture.queries.asked.lock();
    assert_eq!(asked[0], r#"QueryRequest { sql: "select 1", layer: Merged, max_rows: Some(5) }"#);
}

#[tokio::test]
async fn the_accept_header_chooses_the_format() {
    let body = r#"{"sql": "a"}"#;
    for media_type in ["application/x-ndjson", "application/jsonl"] {
        let reply = query(media_type, body).await;
        assert_eq!(reply.header("content-type"), "application/x-ndjson");
        assert!(reply.text().starts_with("{\"window_start\"") && reply.text().ends_with("}\n"));
    }
    let csv = query("text/csv", body).await;
    assert_eq!(
        csv.text(),
        "window_start,device_id,n,avg_temperature\n2023-11-14T22:13:20Z,a,9223372036854775807,\n"
    );
    assert_eq!(csv.header("x-iot-rows"), "1");
    assert!(csv.header("content-type").starts_with("text/csv"));
    let parquet = query("application/vnd.apache.parquet", body).await;
    assert_eq!(
        (&parquet.body[..4], parquet.header("content-type")),
        (&b"PAR1"[..], "application/vnd.apache.parquet")
    );
    let arrow = query("application/vnd.apache.arrow.stream", body).await;
    assert_eq!(
        (&arrow.body[..4], arrow.header("content-type")),
        (&[255; 4][..], "application/vnd.apache.arrow.stream")
    );
    query("application/xml", body).await.is_problem(406, "not-acceptable");
}

#[tokio::test]
async fn what_is_wrong_with_a_query_is_a_problem() {
    let fixture = Fixture::new();
    fixture.post("/v1/query", r#"{"sql": "broken"}"#).await.is_problem(400, "invalid-query");
    fixture.post("/v1/query", r#"{"sql": "disk"}"#).await.is_problem(503, "store-unavailable");
    fixture.post("/v1/query", "{}").await.is_problem(400, "invalid-request");
    fixture.post("/v1/query", "{").await.is_problem(400, "invalid-request");
    fixture.post("/v1/query", r#"{"sql": "a", "layer": "top"}"#).await.is_problem(400, "invalid-request");
    fixture.post("/v1/query", r#"{"sql": "a", "sort": "b"}"#).await.is_problem(400, "invalid-request");
    fixture.get("/v1/query").await.is_problem(400, "invalid-request");
    let typo = fixture.get("/v1/query?sql=a&max_rows=many").await;
    assert!(typo.json()["detail"].as_str().unwrap().contains("digit"), "{}", typo.text());
}

#[tokio::test]
async fn what_leads_nowhere_is_a_problem() {
    let fixture = Fixture::new();
    fixture.get("/v2/query").await.is_problem(404, "not-found");
    let reply = fixture.post("/v1/status", "").await;
    reply.is_problem(405, "method-not-allowed");
    assert_eq!(reply.header("allow"), "GET,HEAD");
    fixture.post("/v1/alerts/stream", "").await.is_problem(405, "method-not-allowed");
    fixture.get("/v1/views/%FF").await.is_problem(400, "invalid-request");
}

#[tokio::test]
async fn a_body_over_the_limit_is_a_problem() {
    let fixture = Fixture::with_limits(HttpLimits { body_bytes: 100, ..HttpLimits::default() });
    fixture.post("/v1/apply", &"x".repeat(101)).await.is_problem(413, "body-too-large");
    fixture.post("/v1/query", &"x".repeat(101)).await.is_problem(413, "body-too-large");
    assert_eq!(fixture.post("/v1/apply", &"x".repeat(100)).await.status, 200);
}

#[tokio::test]
async fn pages_of_other_origins_may_not_change_anything() {
    let foreign =
        Request::post("/v1/apply").header("origin", "https://evil.example").header("host", "127.0.0.1:8080");
    Fixture::new().send(foreign.body(Body::from("x")).unwrap()).await.is_problem(403, "cross-site");
}

#[tokio::test]
async fn views_are_listed_and_read() {
    let fixture = Fixture::new();
    assert_eq!(fixture.get("/v1/views").await.json(), json!({"views": ["climate_1m"]}));
    let reply = fixture.get("/v1/views/climate_1m?from=2026-01-01T00:00:00Z&device_id=a&limit=10").await;
    assert_eq!(reply.json()["rows"][0]["device_id"], "a");
    assert_eq!(reply.header("x-iot-batch-generation"), "7");
    let expect = r#"climate_1m ViewFilter { from: Some("2026-01-01T00:00:00Z"), to: None, device_id: Some("a"), limit: Some(10) }"#;
    assert_eq!(fixture.queries.asked.lock()[0], expect);
    fixture.get("/v1/views/unknown").await.is_problem(404, "not-found");
    fixture.get("/v1/views/climate_1m?device=a").await.is_problem(400, "invalid-request");
}

#[tokio::test]
async fn alerts_are_listed_newest_first_and_filtered() {
    let fixture = Fixture::new();
    fixture.feed.push("a", AlertState::Pending);
    fixture.feed.push("b", AlertState::Firing);
    fixture.feed.push("a", AlertState::Firing);
    fixture.feed.push("c", AlertState::Resolved);
    let ids = async |query: &str| {
        let list = fixture.get(&format!("/v1/alerts{query}")).await.json();
        list["alerts"].as_array().unwrap().iter().map(|t| t["id"].as_u64().unwrap()).collect::<Vec<_>>()
    };
    assert_eq!(ids("").await, [4, 3, 2]);
    assert_eq!(ids("?state=firing").await, [3, 2]);
    assert_eq!(ids("?state=firing,resolved&limit=2").await, [4, 3]);
    assert_eq!(ids("?device_id=b&rule=overheating&severity=critical").await, [2]);
    assert_eq!(ids("?severity=info").await, [0; 0]);
    fixture.get("/v1/alerts?state=burning").await.is_problem(400, "invalid-request");
    fixture.get("/v1/alerts?colour=red").await.is_problem(400, "invalid-request");
    fixture.get("/v1/alerts?limit=all").await.is_problem(400, "invalid-request");
}

#[tokio::test]
async fn an_alert_has_a_history() {
    let fixture = Fixture::new();
    fixture.feed.push("a", AlertState::Pending);
    fixture.feed.push("a", AlertState::Firing);
    let alert = fixture.get("/v1/alerts/a").await.json();
    assert_eq!(alert["current"]["state"], "firing");
    assert_eq!(alert["current"]["at"], "2023-11-14T22:13:22Z");
    assert_eq!(alert["history"][0]["state"], "pending");
    fixture.get("/v1/alerts/b").await.is_problem(404, "not-found");
}

#[tokio::test]
async fn the_catalog_is_changed_and_read() {
    let fixture = Fixture::new();
    let applied = |change: &str| json!({"applied": [{"kind": "view", "name": "x", "change": change}]});
    assert_eq!(fixture.post("/v1/apply", "x").await.json(), applied("created"));
    assert_eq!(fixture.post("/v1/apply?dry_run=true", "x").await.json(), applied("unchanged"));
    let refused = fixture.post("/v1/apply?origin=c.yaml", "").await;
    refused.is_problem(400, "invalid-request");
    assert!(refused.text().contains("c.yaml: nothing"));
    assert_eq!(fixture.get("/v1/catalog/views").await.json(), json!({"items": [{"name": "climate_1m"}]}));
    fixture.get("/v1/catalog/things").await.is_problem(400, "invalid-request");
    assert_eq!(fixture.get("/v1/catalog/rule/hot").await.json(), json!({"kind": "rule", "name": "hot"}));
    fixture.get("/v1/catalog/thing/hot").await.is_problem(404, "not-found");
    let delete = Request::delete("/v1/catalog/view/x").body(Body::empty()).unwrap();
    assert_eq!(fixture.send(delete).await.json(), applied("deleted"));
}

#[tokio::test]
async fn batch_runs_and_proofs_are_reported() {
    let fixture = Fixture::new();
    let reports = fixture.post("/v1/batch/run", r#"{"views": ["x"], "full": true}"#).await.json();
    assert_eq!((&reports["reports"][0]["view"], &reports["reports"][0]["full"]), (&json!("x"), &json!(true)));
    assert_eq!(fixture.post("/v1/batch/run", "").await.json(), json!({"reports": []}));
    fixture.post("/v1/batch/run", r#"{"view": "x"}"#).await.is_problem(400, "invalid-request");
    assert_eq!(fixture.post("/v1/verify?view=x", "").await.json()["reports"][0]["view"], "x");
    assert_eq!(fixture.post("/v1/verify", "").await.json()["reports"][0]["view"], "all");
    assert_eq!(fixture.get("/v1/status").await.json(), json!({"node": "n1"}));
}

#[tokio::test]
async fn health_is_told_apart_from_readiness() {
    let fixture = Fixture::new();
    assert_eq!(fixture.get("/readyz").await.status, 200);
    *fixture.control.not_ready.lock() = Some("replaying the log".into());
    assert_eq!(fixture.get("/healthz").await.status, 200);
    let reply = fixture.get("/readyz").await;
    reply.is_problem(503, "not-ready");
    assert_eq!(reply.json()["detail"], "replaying the log");
    let metrics = fixture.get("/metrics").await;
    assert!(metrics.header("content-type").starts_with("text/plain; version=0.0.4"));
    assert!(metrics.text().contains("\niot_events_total 3\n"));
}

#[tokio::test]
async fn the_dashboard_is_served_and_loads_nothing_from_elsewhere() {
    let fixture = Fixture::new();
    let page = fixture.get("/").await;
    assert_eq!(page.header("content-type"), "text/html; charset=utf-8");
    assert!(page.header("content-security-policy").contains("default-src 'none'"));
    let own_files = ["app.js", "chart.js", "alerts.js", "page.js", "style.css"];
    for file in own_files {
        let reply = fixture.get(&format!("/{file}")).await;
        let content_type = if file.ends_with("css") { "text/css" } else { "text/javascript" };
        assert_eq!(reply.status, 200, "{file}");
        assert_eq!(reply.header("content-type"), format!("{content_type}; charset=utf-8"));
        assert!(!reply.text().contains("://"), "{file} names something elsewhere");
    }
    let elsewhere =
        page.text().matches("://").count() - page.text().matches("xmlns='http://www.w3.org").count();
    assert_eq!(elsewhere, 0, "the page names something elsewhere");
}

#[tokio::test]
async fn an_open_event_stream_does_not_hold_up_the_end() {
    let fixture = Fixture::new();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let stop = CancellationToken::new();
    let server = tokio::spawn(serve(listener, Arc::new(fixture.app.clone()), stop.clone()));

    let mut socket = TcpStream::connect(address).await.unwrap();
    socket.write_all(b"GET /v1/alerts/stream HTTP/1.1\r\nHost: localhost\r\n\r\n").await.unwrap();
    let mut received = String::new();
    let mut buffer = [0; 4096];
    while !received.contains("id: 0") {
        let n = soon(socket.read(&mut buffer)).await.unwrap();
        received.push_str(std::str::from_utf8(&buffer[..n]).unwrap());
    }
    assert!(received.contains("text/event-stream") && received.contains("retry: 2000"), "{received}");

    let stopped = std::time::Instant::now();
    stop.cancel();
    soon(server).await.unwrap().unwrap();
    assert!(stopped.elapsed() < Duration::from_secs(2), "it waited for {:?}", stopped.elapsed());
    assert_eq!(soon(socket.read(&mut buffer)).await.unwrap(), 5, "the last chunk, then the end");
}

#[tokio::test]
async fn connections_over_the_limit_wait_for_a_slot() {
    let fixture = Fixture::with_limits(HttpLimits { connections: 1, ..HttpLimits::default() });
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let stop = CancellationToken::new();
    let server = tokio::spawn(serve(listener, Arc::new(fixture.app.clone()), stop.clone()));

    let idle = TcpStream::connect(address).await.unwrap();
    let mut waiting = TcpStream::connect(address).await.unwrap();
    waiting
        .write_all(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        .await
        .unwrap();
    let mut reply = String::new();
    let early = tokio::time::timeout(Duration::from_millis(100), waiting.read_to_string(&mut reply)).await;
    assert!(early.is_err(), "it was served over the limit: {reply}");
    drop(idle);
    soon(waiting.read_to_string(&mut reply)).await.unwrap();
    assert!(reply.starts_with("HTTP/1.1 200"), "{reply}");
    stop.cancel();
    soon(server).await.unwrap().unwrap();
}

#[tokio::test]
async fn dead_letters_are_listed_replayed_and_dropped() {
    let fixture = Fixture::new();
    let body = r#"{"ids": ["n1:7"], "where": "v > 1", "by": "me", "note": "fixed"}"#;
    let reply = fixture.post("/v1/dead/replay", body).await;
    let answer = reply.json();
    assert_eq!(answer["done"], 2);
    let asked = answer["reasons"][0].as_str().unwrap();
    for part in ["action: Replay", "seq: 7", "v > 1", "\"me\"", "fixed"] {
        assert!(asked.contains(part), "{asked}");
    }
    let reply = fixture.post("/v1/dead/drop", "{}").await;
    assert_eq!(
        (reply.status, &reply.json()["type"]),
        (StatusCode::BAD_REQUEST, &json!("urn:iot:problem:invalid-request"))
    );
    fixture.get("/v1/dead?status=open&limit=3").await;
    fixture.get("/v1/dead/n1:7/readings").await;
    let bad = fixture.get("/v1/dead/n1").await;
    assert_eq!(bad.status, StatusCode::BAD_REQUEST);
    let asked = fixture.queries.asked.lock();
    assert!(asked[0].contains("status = 'open'") && asked[0].contains("LIMIT 3"), "{}", asked[0]);
    assert!(asked[1].contains("_seq = 7 AND stream = 'readings'"), "{}", asked[1]);
}

#[tokio::test]
async fn schemas_are_listed_shown_and_checked() {
    let fixture = Fixture::new();
    assert_eq!(fixture.get("/v1/schemas").await.json()["items"][0]["stream"], "all");
    assert_eq!(fixture.get("/v1/streams/readings/schemas").await.json()["items"][0]["stream"], "readings");
    let shown = fixture.get("/v1/streams/readings/schema?version=3").await.json();
    assert_eq!((&shown["stream"], &shown["version"]), (&json!("readings"), &json!(3)));
    let newest = fixture.get("/v1/streams/readings/schema").await.json();
    assert!(newest["version"].is_null(), "{newest}");
    fixture.get("/v1/streams/readings/schema?version=x").await.is_problem(400, "invalid-request");
    let checked = fixture.post("/v1/schemas/check?origin=a.yaml", "readings").await.json();
    let change = &checked["changes"][0];
    assert_eq!((&change["change"], &change["compatible"]), (&json!("widen bigint to double"), &json!(true)));
    assert_eq!((&change["stream"], &change["detail"]), (&json!("readings"), &json!("a.yaml")));
}
