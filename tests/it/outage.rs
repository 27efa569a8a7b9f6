//! A store that is down for a while, just when the speed layer needs it: it waits, says so, and decides as if nothing had
//! been.

use std::path::{Path, PathBuf};
use std::time::Duration;

use arrow::array::AsArray;
use arrow::datatypes::Float64Type;
use iot_ingest::Message;
use iot_schemas::alert::{AlertFeed, AlertState};
use iot_schemas::batch::{BatchRequest, BatchRunner};
use iot_schemas::control::Control;
use iot_schemas::table::{Patience, install};
use iot_serving::query::{Queries, QueryRequest};
use iot_tests::line::open;
use iot_tests::{Server, pause};
use iotctl::line::Line;

use super::lambda::run;

const STREAM: &str = "kind: stream\nname: readings\ntopics: [\"devices/{device_id}/telemetry\"]\n";

/// Gives up on a store that fails at once, and lets a file `DOWN` in a table's folder make it fail. Tables that are
/// opened by other tests from now on do as well, and have no such file.
fn prepare() {
    let patience = Patience { total: Duration::ZERO, pause: Duration::from_millis(1), ..Patience::default() };
    install(patience, Some("outage=DOWN".parse().expect("a fault")));
}

/// Makes the table in `folder` fail until this is dropped.
struct Outage(PathBuf);

impl Outage {
    fn of(folder: &Path) -> Self {
        let file = folder.join("DOWN");
        std::fs::write(&file, "").expect("written");
        Self(file)
    }
}

impl Drop for Outage {
    fn drop(&mut self) {
        std::fs::remove_file(&self.0).expect("removed");
    }
}

async fn send(line: &Line, payload: &str) {
    let message = Message::new("devices/a/telemetry", payload.to_owned());
    line.ingest.submit(message).await.expect("it is durable, whatever the store does");
}

/// Waits until the server says that it is not ready, and why.
async fn trouble(line: &Line, expect: &str) {
    for _ in 0..500 {
        match line.not_ready() {
            Some(why) if why.contains(expect) => return,
            _ => tokio::time::sleep(Duration::from_millis(20)).await,
        }
    }
    panic!("`{expect}` is not why it is not ready: {:?}; {:?}", line.not_ready(), line.speed.stats());
}

/// For more epochs than may wait for the store.
#[test]
fn messages_are_taken_for_as_long_as_there_is_room_for_them() {
    let dir = tempfile::tempdir().expect("a directory");
    let down = dir.path().join("DOWN");
    let outage = format!("outage={}", down.display());
    let settings = "ingest: {seal_age: 10ms}\n";
    let server = Server::with_catalog(dir.path(), settings, STREAM, &["--store-faults", &outage]);
    std::fs::write(&down, "").expect("written");
    for n in 0..150 {
        server.write("readings", &format!("{{\"device_id\":\"a\",\"n\":{n}}}"));
        pause(Duration::from_millis(20));
    }
    let status = server.status();
    assert_eq!(status["ingest"]["sealed_seq"], 0, "the store is down: {status}");
    std::fs::remove_file(&down).expect("removed");
    server.wait_for("readiness", |_| server.is_ready());
    assert_eq!(server.number("SELECT count(DISTINCT n) FROM readings"), 150);
    let server = server.kill_and_restart();
    assert_eq!(server.number("SELECT count(*) FROM readings"), 150);
}

async fn a_rule_that_needs_batch_state() {
    prepare();
    let dir = tempfile::tempdir().expect("a directory");
    let line = open(dir.path()).await;
    let catalog = format!(
        "{STREAM}fields: {{n: bigint}}\n---\nkind: view\nname: totals\n\
         sql: SELECT device_id, sum(n) AS s FROM readings GROUP BY device_id\n\
         batch: {{every: 1d}}\n---\nkind: rule\nname: over\non: totals\nwhen: s >= 10\n"
    );
    line.apply(&catalog, "test").await.expect("applies");
    send(&line, "{\"n\":6}").await;
    line.settle().await;
    line.ingest.seal_now().await.expect("it seals");
    line.batch.run(BatchRequest::default()).await.expect("the batch state has it");
    line.shutdown().await;
    drop(line);

    // Nothing is known of device `a` in memory any more.
    let line = open(dir.path()).await;
    let outage = Outage::of(&dir.path().join("views/totals"));
    send(&line, "{\"n\":6}").await;
    trouble(&line, "the state of view `totals`").await;
    assert_eq!(line.alerts.current().len(), 0);
    drop(outage);
    line.settle().await;
    let alerts = line.alerts.current();
    assert_eq!(alerts.iter().filter(|alert| alert.state == AlertState::Firing).count(), 1, "{alerts:?}");
    assert_eq!(line.not_ready(), None);
    line.shutdown().await;
}

#[test]
fn a_rule_waits_for_a_store_that_is_down() {
    run(a_rule_that_needs_batch_state());
}

async fn a_column_that_widens() {
    prepare();
    let dir = tempfile::tempdir().expect("a directory");
    let line = open(dir.path()).await;
    let catalog = format!(
        "{STREAM}---\nkind: view\nname: totals\nsql: SELECT device_id, sum(n) AS s FROM readings GROUP BY device_id\n\
         batch: {{every: 1d}}\n"
    );
    line.apply(STREAM, "test").await.expect("applies");
    send(&line, "{\"n\":1}").await;
    line.settle().await;
    line.apply(&catalog, "test").await.expect("applies");
    line.ingest.seal_now().await.expect("it seals");
    // What the view made anew writes its state to.
    let outage = Outage::of(&dir.path().join("views/totals"));
    send(&line, "{\"n\":40.5}").await;
    trouble(&line, "view `totals`").await;
    drop(outage);
    send(&line, "{\"n\":0.25}").await;
    line.settle().await;
    let request = QueryRequest {
        sql: "SELECT s::double AS s FROM totals".to_owned(),
        layer: Default::default(),
        max_rows: None,
    };
    let answer = line.queries.execute(request).await.expect("it answers");
    assert_eq!(answer.batches[0].column(0).as_primitive::<Float64Type>().value(0), 41.75);
    assert_eq!(line.not_ready(), None);
    line.shutdown().await;
}

#[test]
fn a_view_follows_a_column_that_widens_while_the_store_is_down() {
    run(a_column_that_widens());
}
