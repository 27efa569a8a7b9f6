//! Late data: 30% of the events late by up to 30 days, in random order. Every answer equals the in-order one.

use std::sync::Arc;

use arrow::array::AsArray;
use arrow::datatypes::Int64Type;
use arrow::util::pretty::pretty_format_batches;
use futures::future::try_join_all;
use iot_ingest::Message;
use iot_schemas::batch::{BatchRequest, BatchRunner};
use iot_schemas::control::Control;
use iot_serving::query::{Queries, QueryRequest};
use iot_tests::line::open;
use iotctl::line::Line;
use rand::seq::SliceRandom;
use rand::{RngExt, SeedableRng};

use super::lambda::run;

const STREAM: &str = "kind: stream\nname: readings\ntopics: [\"devices/{device_id}/telemetry\"]\n\
                      event_time: {field: ts, unit: ms}\nfields: {temperature: double, n: bigint, status: text}\n";

/// Every kind of window, and aggregates that depend on the order of time.
const VIEWS: [&str; 6] = [
    "SELECT device_id, tumble(event_time, INTERVAL '1 hour') AS w, count(*) AS c, sum(n) AS s, min(temperature) AS lo, \
     max(temperature) AS hi, last(n, event_time) AS newest, increase(n, event_time) AS more FROM readings GROUP BY device_id, w",
    "SELECT device_id, session(event_time, INTERVAL '20 minutes') AS w, window_end, count(*) AS c, first(status, event_time) AS f \
     FROM readings GROUP BY device_id, w",
    "SELECT hop(event_time, INTERVAL '6 hours', INTERVAL '1 day') AS w, window_end, count(*) AS c, count(DISTINCT device_id) AS d, \
     approx_percentile(temperature, 0.95) AS p FROM readings GROUP BY w",
    "SELECT tumble(event_time, INTERVAL '1 month', 'Europe/Berlin') AS month, status, count(*) AS c, \
     state_duration(n > 0, event_time) AS above FROM readings GROUP BY month, status",
    "SELECT device_id, count(*) AS c, time_weighted_avg(temperature, event_time) AS a, mode(status) AS m FROM readings GROUP BY device_id",
    "SELECT max(c) AS most, count(*) AS hours FROM v0",
];

const EVENTS: usize = 6_000;

/// Events a minute apart or so, in the order of their time.
fn in_order() -> Vec<Message> {
    let mut random = rand_chacha::ChaCha8Rng::seed_from_u64(11);
    let event = |i: usize| {
        let ts = 1_756_000_000_000 + i as i64 * 540_000 + random.random_range(0..1_000i64);
        let (n, t) = (random.random_range(-50..50i64), random.random_range(-400..900i64));
        let payload = format!(
            "{{\"ts\":{ts},\"n\":{n},\"temperature\":{}.25,\"status\":\"s{}\"}}",
            t / 10,
            random.random_range(0..4)
        );
        Message::new(format!("devices/d{}/telemetry", random.random_range(0..12)), payload)
    };
    (0..EVENTS).map(event).collect()
}

/// 30% are held back by up to 30 days of events, and arrive in any order.
fn with_late(mut events: Vec<Message>) -> Vec<Message> {
    let mut random = rand_chacha::ChaCha8Rng::seed_from_u64(12);
    let month = 30 * 86_400_000 / 540_000;
    let mut arrivals: Vec<(usize, Message)> = events
        .drain(..)
        .enumerate()
        .map(|(i, event)| {
            (i + if random.random_bool(0.3) { random.random_range(1..month) } else { 0 }, event)
        })
        .collect();
    arrivals.shuffle(&mut random);
    arrivals.sort_by_key(|(arrival, _)| *arrival);
    arrivals.into_iter().map(|(_, event)| event).collect()
}

async fn answers(line: &Line) -> Vec<String> {
    let mut answers = Vec::new();
    for i in 0..VIEWS.len() {
        let sql = format!("SELECT * FROM v{i} ORDER BY 1, 2");
        let request = QueryRequest { sql, layer: Default::default(), max_rows: None };
        let answer = line.queries.execute(request).await.expect("answers");
        answers.push(pretty_format_batches(&answer.batches).expect("prints").to_string());
    }
    answers
}

/// Feeds the events in `parts`, sealing after each and running batch jobs after every second.
async fn feed(events: &[Message], parts: usize) -> (tempfile::TempDir, Arc<Line>) {
    let dir = tempfile::tempdir().expect("a directory");
    let line = open(dir.path()).await;
    let views = VIEWS
        .iter()
        .enumerate()
        .map(|(i, sql)| format!("---\nkind: view\nname: v{i}\nsql: |\n  {sql}\nbatch: {{every: 1d}}\n"));
    line.apply(&(STREAM.to_owned() + &views.collect::<String>()), "test").await.expect("applies");
    for (i, part) in events.chunks(events.len().div_ceil(parts)).enumerate() {
        try_join_all(part.iter().map(|event| line.ingest.submit(event.clone()))).await.expect("taken");
        if i + 1 < parts {
            line.ingest.seal_now().await.expect("seals");
        }
        if i % 2 == 1 {
            line.batch.run(BatchRequest::default()).await.expect("runs");
        }
    }
    line.settle().await;
    (dir, line)
}

async fn late_equals_in_order() {
    let (_in_order_dir, plain) = feed(&in_order(), 1).await;
    let (_late_dir, late) = feed(&with_late(in_order()), 5).await;
    let (expected, actual) = (answers(&plain).await, answers(&late).await);
    for ((sql, expected), actual) in VIEWS.iter().zip(&expected).zip(&actual) {
        assert_eq!(actual, expected, "{sql}");
    }
    let request = QueryRequest {
        sql: "SELECT sum(events)::bigint FROM late WHERE scope = 'stream' AND kind = 'late'".to_owned(),
        layer: Default::default(),
        max_rows: None,
    };
    let ledger = late.queries.execute(request).await.expect("answers");
    let noted = ledger.batches[0].column(0).as_primitive::<Int64Type>().value(0);
    assert!(noted as usize > EVENTS / 5, "the ledger has {noted} of the late events");
    for line in [plain, late] {
        for report in line.verify(None).await.expect("verifies") {
            assert_eq!(report.differences, 0, "{}: {:?}", report.view, report.examples);
        }
        line.shutdown().await;
    }
}

#[test]
fn a_third_of_the_events_a_month_late() {
    run(late_equals_in_order());
}
