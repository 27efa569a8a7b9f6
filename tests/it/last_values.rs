//! The last values of each device, kept of every stream without being asked for.

mod model;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use iot_batch_layer::upkeep::UpkeepConfig;
use iot_ingest::Message;
use iot_schemas::batch::{BatchRequest, BatchRunner};
use iot_schemas::control::Control;
use iot_serving::query::{Queries, QueryRequest};
use iot_tests::line::open;
use iot_tests::{Server, pause};
use iotctl::line::Line;
use proptest::prelude::*;
use serde_json::{Value, json};

use super::lambda::{Step, run, take};
use model::{Model, Reading, reading};

const STREAM: &str = "kind: stream\nname: readings\ntopics: [\"devices/{device_id}/telemetry\"]\n\
                      event_time: {field: ts, unit: ms}\nfields: {status: text}\n";

async fn send(line: &Line, readings: &[Reading]) {
    // One after the other: what a column becomes must not depend on which of two messages is first.
    for reading in readings {
        let message = Message::new(format!("devices/d{}/telemetry", reading.device), reading.payload());
        line.ingest.submit(message).await.expect("every message is taken");
    }
}

async fn rows(line: &Line, sql: &str) -> Vec<Value> {
    let request = QueryRequest { sql: sql.to_owned(), layer: Default::default(), max_rows: None };
    let answer = line.queries.execute(request).await.unwrap_or_else(|e| panic!("{sql}: {e}"));
    let mut json = arrow::json::ArrayWriter::new(Vec::new());
    json.write_batches(&answer.batches.iter().collect::<Vec<_>>()).expect("JSON");
    json.finish().expect("JSON");
    let bytes = json.into_inner();
    if bytes.is_empty() { Vec::new() } else { serde_json::from_slice(&bytes).expect("JSON") }
}

/// What happens to a line whose events bring columns as they like.
#[derive(Debug, Clone)]
enum Happening {
    Readings(Vec<Reading>),
    Step(Step),
}

fn happening() -> impl Strategy<Value = Happening> {
    let step = prop_oneof![
        3 => Just(Step::Seal),
        3 => Just(Step::Batch),
        1 => Just(Step::FullBatch),
        1 => Just(Step::Compact),
        1 => Just(Step::Restart),
    ];
    prop_oneof![
        1 => prop::collection::vec(reading(), 1..25).prop_map(Happening::Readings),
        1 => step.prop_map(Happening::Step),
    ]
}

async fn check(line: &Line, model: &Model, after: &Happening) {
    line.settle().await;
    for report in line.verify(None).await.expect("it verifies") {
        assert!(report.generated && report.view == "readings_last", "{report:?}");
        assert_eq!(report.differences, 0, "{after:?}: {:#?}", report.examples);
    }
    let found = rows(line, "SELECT * FROM readings_last").await;
    assert_eq!(Model::read(&found), model.rows(), "{after:?}");
}

async fn history(happenings: Vec<Happening>) {
    let dir = tempfile::tempdir().expect("a directory");
    let mut line = open(dir.path()).await;
    line.apply(STREAM, "test").await.expect("the stream applies");
    let mut model = Model::default();
    for happening in &happenings {
        line = happen(line, dir.path(), &mut model, happening).await;
        check(&line, &model, happening).await;
    }
    line.shutdown().await;
}

async fn happen(line: Arc<Line>, dir: &Path, model: &mut Model, happening: &Happening) -> Arc<Line> {
    match happening {
        Happening::Readings(readings) => {
            send(&line, readings).await;
            readings.iter().for_each(|reading| model.take(reading));
            line
        }
        Happening::Step(step) => take(line, dir, step).await,
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: cases(), max_shrink_iters: 40, ..ProptestConfig::default() })]

    #[test]
    fn the_last_values_are_those_of_a_model(happenings in prop::collection::vec(happening(), 3..12)) {
        run(history(happenings));
    }
}

/// Histories per run: few in CI, as many as `IOT_HISTORIES` says at night.
fn cases() -> u32 {
    std::env::var_os("IOT_HISTORIES").and_then(|n| n.to_str()?.parse().ok()).unwrap_or(24)
}

/// The files of the raw table, out of everybody's sight for as long as this lives.
struct WithoutRawFiles {
    raw: PathBuf,
    aside: PathBuf,
}

impl WithoutRawFiles {
    fn of(data: &Path) -> Self {
        let without = Self { raw: data.join("raw/readings"), aside: data.join("aside") };
        std::fs::create_dir(&without.aside).expect("a folder");
        assert!(move_rows(&without.raw, &without.aside) > 0, "something is sealed");
        without
    }
}

impl Drop for WithoutRawFiles {
    fn drop(&mut self) {
        move_rows(&self.aside, &self.raw);
        std::fs::remove_dir(&self.aside).expect("it is empty");
    }
}

/// Moves everything but the log, and says how many entries that was.
fn move_rows(from: &Path, to: &Path) -> usize {
    let entries = std::fs::read_dir(from).expect("a folder").map(|entry| entry.expect("an entry").path());
    let moved: Vec<PathBuf> = entries.filter(|path| !path.ends_with("_delta_log")).collect();
    for path in &moved {
        std::fs::rename(path, to.join(path.file_name().expect("a name"))).expect("moved");
    }
    moved.len()
}

async fn new_columns_read_no_event_again() {
    let dir = tempfile::tempdir().expect("a directory");
    let line = open(dir.path()).await;
    line.apply(STREAM, "test").await.expect("the stream applies");
    let event = |i: i64, field: &str, value: Value| {
        let payload = json!({ "ts": 1_760_000_000_000 + i * 1_000, field: value });
        Message::new("devices/a/telemetry", payload.to_string())
    };
    for i in 0..200 {
        line.ingest.submit(event(i, "n", json!(i))).await.expect("taken");
    }
    line.ingest.seal_now().await.expect("it seals");
    {
        let _away = WithoutRawFiles::of(dir.path());
        let started = Instant::now();
        for i in 0..100 {
            line.ingest.submit(event(200 + i, &format!("column_{i}"), json!(i))).await.expect("taken");
            line.settle().await;
        }
        line.ingest.submit(event(300, "n", json!(0.5))).await.expect("taken");
        line.settle().await;
        println!("a hundred columns, one after another, and a wider one: {:?}", started.elapsed());
        let found = rows(&line, "SELECT * FROM readings_last WHERE device_id = 'a'").await;
        assert_eq!(
            (&found[0]["n"], &found[0]["column_0"], &found[0]["column_99"]),
            (&json!(0.5), &json!(0), &json!(99))
        );
        assert!(line.status().await.expect("it answers")["problems"].as_array().is_some_and(Vec::is_empty));
        // (That nothing can be read is true.)
        let request = QueryRequest {
            sql: "SELECT count(n) FROM readings".into(),
            layer: Default::default(),
            max_rows: None,
        };
        line.queries.execute(request).await.expect_err("the files are away");
    }
    for _ in 0..2 {
        line.ingest.seal_now().await.expect("it seals");
        line.batch.run(BatchRequest::default()).await.expect("it runs");
        line.keep_up(&UpkeepConfig { min_files: 1, ..UpkeepConfig::default() }, true).await;
        let reports = line.verify(None).await.expect("it verifies");
        assert_eq!((reports.len(), reports[0].differences), (1, 0), "{reports:#?}");
        line.ingest.submit(event(301, "another", json!("x"))).await.expect("taken");
        line.settle().await;
    }
    line.shutdown().await;
}

#[test]
fn a_hundred_new_columns_read_no_event_again() {
    run(new_columns_read_no_event_again());
}

/// What the raw events say, asked as one asks without the view: per column the newest row that has a value.
fn from_raw(server: &Server, columns: &[&str]) -> Vec<Value> {
    let part = |column: &&str| {
        format!(
            "(SELECT device_id, {column} FROM (SELECT device_id, {column}, row_number() OVER \
             (PARTITION BY device_id ORDER BY event_time DESC, {column} DESC) AS nth FROM readings \
             WHERE {column} IS NOT NULL) AS numbered WHERE nth = 1) AS of_{column} ON of_{column}.device_id = newest.device_id"
        )
    };
    let joined: String = columns.iter().map(|column| format!(" LEFT JOIN {}", part(column))).collect();
    let sql = format!(
        "SELECT newest.device_id, newest.event_time, {} FROM (SELECT DISTINCT ON (device_id) device_id, event_time FROM readings \
         ORDER BY device_id, event_time DESC) AS newest{joined} ORDER BY newest.device_id",
        columns.join(", ")
    );
    server.query(&sql)
}

#[track_caller]
fn compare(server: &Server, columns: &[&str]) {
    // Raw has an event as soon as it is acknowledged; the view has it a moment later.
    server.wait_for("the view to have taken in everything", |status| {
        status["speed"]["processed"]["local"] == status["ingest"]["last_seq"]
    });
    let sql =
        format!("SELECT device_id, event_time, {} FROM readings_last ORDER BY device_id", columns.join(", "));
    assert_eq!(server.query(&sql), from_raw(server, columns));
    assert_eq!(server.verify(), 0);
}

#[test]
fn a_server_keeps_the_last_values_whatever_comes() {
    let dir = tempfile::tempdir().expect("a directory");
    let catalog = dir.path().join("catalog.yaml");
    std::fs::write(&catalog, STREAM).expect("written");
    let config = dir.path().join("config.yaml");
    std::fs::write(&config, "ingest: {seal_age: 1s}\n").expect("written");
    let args = ["--catalog", catalog.to_str().expect("utf-8"), "--config", config.to_str().expect("utf-8")];
    let server = Server::start(&dir.path().join("data"), &args);
    let publish = |device: &str, seconds: i64, fields: Value| {
        let mut payload = json!({ "ts": 1_760_000_000_000 + seconds * 1_000 });
        payload.as_object_mut().expect("an object").extend(fields.as_object().expect("an object").clone());
        server.publish(&format!("devices/{device}/telemetry"), &payload.to_string());
    };
    publish("a", 10, json!({ "status": "ok", "n": 1 }));
    publish("b", 10, json!({ "status": "ok", "n": 7 }));
    publish("a", 20, json!({ "status": null, "n": 2 }));
    publish("a", 5, json!({ "status": "late", "n": 3 }));
    publish("a", 20, json!({ "n": 4 }));
    compare(&server, &["status", "n"]);
    server.wait_for_seal();
    server.batch(false);
    // A column that is new, and one that widens, over state that a batch run has made.
    publish("b", 30, json!({ "n": 0.5, "humidity": 40 }));
    publish("a", 19, json!({ "n": 9.5, "humidity": 50, "ok": true }));
    let columns = ["status", "n", "humidity", "ok"];
    compare(&server, &columns);
    let of_a = server.query("SELECT status, n, humidity, ok FROM readings_last WHERE device_id = 'a'");
    assert_eq!(of_a, [json!({ "status": "ok", "n": 4.0, "humidity": 50, "ok": true })]);

    let mut server = server.kill_and_restart();
    compare(&server, &columns);
    for full in [false, true] {
        server.wait_for_seal();
        server.batch(full);
        compare(&server, &columns);
        server = server.kill_and_restart();
        compare(&server, &columns);
    }
    check_provenance(&server);
    assert!(server.stop());
}

/// The answer is read from state: the raw files may be gone.
fn check_provenance(server: &Server) {
    let sql = "SELECT * FROM readings_last WHERE device_id = 'a'";
    let answer = server.post_text("/v1/query", &json!({ "sql": sql }).to_string());
    assert_eq!(answer["meta"]["streams"], json!([]), "{answer}");
    assert_eq!(answer["meta"]["views"][0]["name"], "readings_last");
    let _away = WithoutRawFiles::of(&server.data_dir);
    let again = server.post_text("/v1/query", &json!({ "sql": sql }).to_string());
    assert_eq!(again["rows"], answer["rows"]);
    let raw = server.post_text("/v1/query", &json!({ "sql": "SELECT count(n) FROM readings" }).to_string());
    assert!(raw.get("rows").is_none(), "{raw}");
}

const OWN: &str = "kind: view\nname: readings_last\nsql: SELECT count(*) AS c FROM readings\n";

#[test]
fn it_is_marked_and_gives_way_to_names_of_the_catalog() {
    let dir = tempfile::tempdir().expect("a directory");
    let server = Server::start(&dir.path().join("data"), &[]);
    server.apply(STREAM);
    server.publish("devices/a/telemetry", r#"{"ts": 1760000000000, "n": 1}"#);
    let listed = |server: &Server, args: &[&str]| -> Vec<String> {
        let args = [args, &["--format", "json"]].concat();
        let rows: Vec<Value> = serde_json::from_str(&server.iotctl(&args)).expect("JSON");
        rows.iter()
            .map(|row| {
                format!(
                    "{}{}",
                    row["name"].as_str().unwrap_or_default(),
                    if row["generated"] == true { "*" } else { "" }
                )
            })
            .collect()
    };
    assert_eq!(listed(&server, &["get", "views"]), [""; 0]);
    assert_eq!(
        listed(&server, &["get", "views", "--all"]),
        ["readings_last*"],
        "events_last has gone with its stream"
    );
    assert_eq!(server.status()["views"], json!([]));
    let described = server.iotctl(&["describe", "view", "readings_last"]);
    assert!(described.contains("generated") && described.contains("last(\"n\""), "{described}");
    let refused = |args: &[&str], stdin: &str, says: &str| {
        let ran = server.run(args, stdin);
        assert!(ran.code != 0 && ran.stderr.contains(says), "{args:?}: {} {}", ran.code, ran.stderr);
    };
    refused(&["delete", "view", "readings_last"], "", "last_values: false");
    refused(&["get", "rules", "--all"], "", "get views");
    let reader = OWN.replace("readings_last", "reader").replace("FROM readings", "FROM readings_last");
    refused(&["apply", "-f", "-"], &reader, "read `readings` instead");
    refused(
        &["apply", "-f", "-"],
        "kind: rule\nname: r\non: readings_last\nwhen: n > 1\n",
        "read `readings` instead",
    );

    // A view of the catalog stands in its place, also after a restart, and it comes back when that goes.
    server.apply(OWN);
    assert_eq!(server.query("SELECT * FROM readings_last"), [json!({ "c": 1 })]);
    assert_eq!(listed(&server, &["get", "views", "--all"]), ["readings_last"]);
    let server = server.kill_and_restart();
    assert_eq!(server.query("SELECT * FROM readings_last"), [json!({ "c": 1 })]);
    server.iotctl(&["delete", "view", "readings_last"]);
    assert_eq!(server.query("SELECT n FROM readings_last"), [json!({ "n": 1 })]);
    // So does a stream.
    server.apply("kind: stream\nname: readings_last\ntopics: [\"x\"]\nlast_values: false\n");
    assert_eq!(listed(&server, &["get", "views", "--all"]), [""; 0]);
    assert_eq!(server.number("SELECT count(*) FROM readings_last"), 0);
    server.iotctl(&["delete", "stream", "readings_last"]);
    assert_eq!(server.query("SELECT n FROM readings_last"), [json!({ "n": 1 })]);
    assert_eq!(server.verify(), 0);
}

#[test]
fn it_can_be_switched_off_and_on_and_made_up_for() {
    let dir = tempfile::tempdir().expect("a directory");
    let config = dir.path().join("config.yaml");
    std::fs::write(&config, "ingest: {seal_age: 1s}\n").expect("written");
    let server = Server::start(&dir.path().join("data"), &["--config", config.to_str().expect("utf-8")]);
    server.apply(STREAM);
    let publish = |server: &Server, n: i64| {
        let payload = json!({ "ts": 1_760_000_000_000 + n * 1_000, "n": n });
        server.publish("devices/a/telemetry", &payload.to_string());
    };
    publish(&server, 1);
    let ask = |server: &Server| server.query("SELECT n, extra FROM readings_last");
    let wider = STREAM.replace("{status: text}", "{status: text, extra: double}");
    server.apply(&wider);
    assert_eq!(
        ask(&server),
        [json!({ "n": 1, "extra": null })],
        "a column that is declared is there at once"
    );
    server.apply(&format!("{wider}last_values: false\n"));
    let none = server.run(&["query", "SELECT * FROM readings_last"], "");
    assert!(none.code != 0 && none.stderr.contains("there is no table `readings_last`"), "{}", none.stderr);
    publish(&server, 2);
    server.wait_for_seal();
    let mut server = server.kill_and_restart();
    assert_eq!(server.run(&["query", "SELECT * FROM readings_last"], "").code, none.code);
    server.apply(&wider);
    assert_eq!(ask(&server), [json!({ "n": 2, "extra": null })], "what came meanwhile counts");

    // A data directory in which there never was one: made up for beside the line.
    server.kill();
    std::fs::remove_dir_all(dir.path().join("data/views/readings_last")).expect("there is state");
    let server = server.restart();
    let deadline = Instant::now() + iot_tests::PATIENCE;
    while server.run(&["query", "SELECT * FROM readings_last"], "").code != 0 {
        assert!(Instant::now() < deadline, "it is not made up for: {}", server.log());
        pause(std::time::Duration::from_millis(50));
    }
    assert_eq!(ask(&server), [json!({ "n": 2, "extra": null })]);
    publish(&server, 3);
    assert_eq!(server.verify(), 0);
    assert_eq!(server.status()["problems"], json!([]));
}
