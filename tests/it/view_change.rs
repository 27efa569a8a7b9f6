//! Changing a view's SQL while events come in and queries go on: nothing is lost, nothing doubled, no query fails.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use arrow::array::AsArray;
use arrow::datatypes::Int64Type;
use futures::future::try_join_all;
use iot_ingest::Message;
use iot_schemas::batch::{BatchRequest, BatchRunner};
use iot_schemas::control::Control;
use iot_serving::query::{Queries, QueryRequest};
use iot_tests::line::open;
use iotctl::line::Line;

use super::lambda::run;

const STREAM: &str = "kind: stream\nname: readings\ntopics: [\"devices/{device_id}/telemetry\"]\n\
                      event_time: {field: ts, unit: ms}\nfields: {temperature: double, n: bigint}\n";

/// The definitions that follow each other; each shows its number of events as `c`.
const DEFINITIONS: [&str; 6] = [
    "SELECT device_id, tumble(event_time, INTERVAL '1 minute') AS w, count(*) AS c FROM readings GROUP BY device_id, w",
    // Other state: other keys, other windows, other aggregates.
    "SELECT tumble(event_time, INTERVAL '1 hour') AS w, count(*) AS c, avg(temperature) AS a FROM readings GROUP BY w",
    "SELECT device_id, session(event_time, INTERVAL '5 seconds') AS s, window_end, count(*) AS c FROM readings GROUP BY device_id, s",
    // The same state, another finish.
    "SELECT device_id, session(event_time, INTERVAL '5 seconds') AS s, count(*) AS c, count(*) * 2 AS twice FROM readings GROUP BY device_id, s",
    "SELECT device_id, max(n) AS hi, count(*) AS c FROM readings GROUP BY device_id",
    "SELECT device_id, tumble(event_time, INTERVAL '1 minute') AS w, count(*) AS c FROM readings GROUP BY device_id, w",
];

fn view(name: &str, sql: &str) -> String {
    format!("---\nkind: view\nname: {name}\nsql: |\n  {sql}\nbatch: {{every: 1d}}\n")
}

/// A view over the view that changes: it follows.
fn reader() -> String {
    view("reader", "SELECT sum(c) AS c FROM changing")
}

async fn sum(line: &Line, view: &str) -> i64 {
    let sql = format!("SELECT coalesce(sum(c), 0)::bigint FROM {view}");
    let request = QueryRequest { sql, layer: Default::default(), max_rows: None };
    let answer = line.queries.execute(request).await.expect("queries never fail meanwhile");
    answer.batches[0].column(0).as_primitive::<Int64Type>().value(0)
}

async fn feed(line: Arc<Line>, sent: Arc<AtomicUsize>, done: Arc<AtomicBool>) {
    let mut i = 0usize;
    while !done.load(Ordering::Relaxed) {
        let message = |i: usize| {
            let late = if i.is_multiple_of(7) { 86_400_000 * (i % 30) } else { 0 };
            let ts = 1_760_000_000_000 + i * 20 - late;
            let payload = format!("{{\"ts\":{ts},\"temperature\":{}.5,\"n\":{}}}", i % 40, i * 31 % 1_000);
            Message::new(format!("devices/d{}/telemetry", i % 9), payload)
        };
        try_join_all((i..i + 50).map(|i| line.ingest.submit(message(i)))).await.expect("taken");
        i += 50;
        sent.store(i, Ordering::Relaxed);
        tokio::time::sleep(std::time::Duration::from_millis(2)).await;
    }
}

/// Sums of a view that only ever grows, as long as somebody asks.
async fn watch(line: Arc<Line>, name: &'static str, done: Arc<AtomicBool>) -> usize {
    let (mut last, mut asked) = (0, 0);
    while !done.load(Ordering::Relaxed) {
        let now = sum(&line, name).await;
        assert!(now >= last, "`{name}` had {last} events and now has {now}");
        (last, asked) = (now, asked + 1);
    }
    asked
}

async fn change_under_load() {
    let dir = tempfile::tempdir().expect("a directory");
    let line = open(dir.path()).await;
    line.apply(&format!("{STREAM}{}{}", view("changing", DEFINITIONS[0]), reader()), "test")
        .await
        .expect("applies");
    let (sent, done) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicBool::new(false)));
    let feeder = tokio::spawn(feed(line.clone(), sent.clone(), done.clone()));
    let watchers = ["changing", "reader"].map(|name| tokio::spawn(watch(line.clone(), name, done.clone())));
    let batches = tokio::spawn({
        let (line, done) = (line.clone(), done.clone());
        async move {
            while !done.load(Ordering::Relaxed) {
                line.ingest.seal_now().await.expect("seals");
                // A run may meet the change of its view: then it commits nothing and says so.
                let _ = line.batch.run(BatchRequest::default()).await;
                tokio::time::sleep(std::time::Duration::from_millis(20)).await;
            }
        }
    });
    for definition in DEFINITIONS.iter().cycle().skip(1).take(11) {
        tokio::time::sleep(std::time::Duration::from_millis(150)).await;
        line.apply(&view("changing", definition), "test").await.expect("the view changes");
    }
    done.store(true, Ordering::Relaxed);
    feeder.await.expect("the feeder ends");
    batches.await.expect("the batches end");
    for watcher in watchers {
        assert!(watcher.await.expect("every query was answered") > 10);
    }
    line.settle().await;
    let sent = sent.load(Ordering::Relaxed) as i64;
    assert!(sent > 1_000);
    for name in ["changing", "reader"] {
        assert_eq!(sum(&line, name).await, sent, "`{name}`");
    }
    for report in line.verify(None).await.expect("verifies") {
        assert_eq!(report.differences, 0, "{}: {:?}", report.view, report.examples);
    }
    line.shutdown().await;
}

#[test]
fn a_view_changes_under_load() {
    run(change_under_load());
}

async fn a_change_that_breaks_a_reader_is_refused() {
    let dir = tempfile::tempdir().expect("a directory");
    let line = open(dir.path()).await;
    let catalog = format!("{STREAM}{}{}", view("changing", DEFINITIONS[0]), reader());
    line.apply(&catalog, "test").await.expect("applies");
    let without_c = view("changing", "SELECT max(n) AS hi FROM readings");
    let refused = line.apply(&without_c, "test").await.expect_err("the reader needs `c`").to_string();
    assert!(refused.contains("view `reader`"), "{refused}");
    let both = without_c + &view("reader", "SELECT sum(hi) AS c FROM changing");
    line.apply(&both, "test").await.expect("both change together");
    let circle = view("a", "SELECT count(*) AS c FROM b") + &view("b", "SELECT count(*) AS c FROM a");
    let refused = line.apply(&circle, "test").await.expect_err("there is no stream").to_string();
    assert!(refused.contains("reads itself: a -> b -> a"), "{refused}");
    line.shutdown().await;
}

#[test]
fn readers_of_a_view_are_minded() {
    run(a_change_that_breaks_a_reader_is_refused());
}
