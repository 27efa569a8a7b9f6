//! What people ask and how they are answered: SQL, formats, definitions, with a server and without one.

use std::path::Path;
use std::time::{Duration, Instant};

use arrow::array::{AsArray, RecordBatch};
use arrow::datatypes::Int64Type;
use arrow::ipc::reader::StreamReader;
use bytes::Bytes;
use datafusion::parquet::arrow::arrow_reader::ParquetRecordBatchReader;
use iot_tests::{Ran, Server, iotctl, run};
use serde_json::{Value, json};

const STREAM: &str = r#"kind: stream
name: readings
topics: ["devices/{device_id}/telemetry"]
event_time: {field: ts, unit: ms}
fields: {temperature: double, status: text}
"#;
const VIEW: &str = "kind: view
name: climate_1m
sql: |
  SELECT device_id, tumble(event_time, INTERVAL '1 minute') AS window_start,
         count(*) AS n, avg(temperature) AS mean, max(temperature) AS hottest
  FROM readings GROUP BY device_id, window_start
batch: {every: 1d}
";
/// 2023-11-14T22:14:00Z.
const START_MS: i64 = 1_700_000_040_000;
const PER_DEVICE: &str =
    "SELECT device_id, count(*) AS n FROM readings GROUP BY device_id ORDER BY device_id";
/// Everything that a stream and a view hold, in an order.
const EVERYTHING: [&str; 2] = [
    "SELECT * FROM readings ORDER BY _seq, _index",
    "SELECT * FROM climate_1m ORDER BY device_id, window_start",
];

/// A server with a data directory of its own.
struct Place {
    dir: tempfile::TempDir,
    server: Server,
}

impl Place {
    /// With the default catalog. Nothing is sealed before the server stops.
    fn bare() -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let config = dir.path().join("config.yaml");
        std::fs::write(&config, "ingest: {seal_age: 1h}\n").expect("written");
        let server = Server::start(&dir.path().join("data"), &["--config", text(&config)]);
        Self { dir, server }
    }

    /// With the stream and the view from above, and six events of two devices.
    fn with_events() -> Self {
        let place = Self::bare();
        place.server.apply(&format!("{STREAM}---\n{VIEW}"));
        place.publish("a", &[(0, Some(20.0)), (1, Some(21.0)), (2, Some(22.0)), (60, Some(30.0))]);
        place.publish("b", &[(5, Some(10.0)), (125, None)]);
        place
    }

    /// One message with an event for each pair of seconds and temperature.
    fn publish(&self, device: &str, events: &[(i64, Option<f64>)]) {
        let event = |(seconds, temperature): &(i64, Option<f64>)| json!({ "ts": START_MS + seconds * 1000, "temperature": temperature, "status": "ok" });
        let payload = Value::from_iter(events.iter().map(event)).to_string();
        self.server.publish(&format!("devices/{device}/telemetry"), &payload);
    }

    /// Stops the server in order, which seals everything, and starts it again.
    fn sealed(self) -> Self {
        Self { dir: self.dir, server: self.server.stop_and_restart() }
    }

    fn write(&self, name: &str, contents: &str) -> String {
        let file = self.dir.path().join(name);
        std::fs::write(&file, contents).expect("written");
        text(&file).to_owned()
    }
}

fn text(path: &Path) -> &str {
    path.to_str().expect("utf-8")
}

#[track_caller]
fn check_failure(ran: &Ran, code: i32, says: &str) {
    assert_eq!(ran.code, code, "{}", ran.stderr);
    assert!(ran.stderr.contains(says), "it should say `{says}`: {}", ran.stderr);
    assert!(ran.stdout.is_empty(), "only results go to stdout: {}", String::from_utf8_lossy(&ran.stdout));
}

#[test]
fn a_server_without_a_catalog_infers_columns_and_widens_them() {
    let place = Place::bare();
    let publish = |place: &Place, payload: &str| place.server.publish("devices/a/telemetry", payload);
    let rows = |place: &Place| {
        place.server.query("SELECT event_time, device_id, x, ok, gps_lat FROM events ORDER BY event_time")
    };
    let row = |second: u32, x: Value, ok: Value, lat: Value| json!({ "event_time": format!("2023-11-14T22:14:0{second}Z"), "device_id": "a", "x": x, "ok": ok, "gps_lat": lat });
    publish(&place, r#"{"ts": 1700000040000, "x": 20, "ok": true}"#);
    assert_eq!(place.server.query("SELECT x FROM events"), [json!({ "x": 20 })]);

    publish(
        &place,
        r#"[{"ts": "2023-11-14T23:14:01+01:00", "gps": {"lat": 3}}, {"ts": 1700000042000, "x": 20.5}]"#,
    );
    let mut expect = vec![
        row(0, json!(20.0), json!(true), Value::Null),
        row(1, Value::Null, Value::Null, json!(3)),
        row(2, json!(20.5), Value::Null, Value::Null),
    ];
    assert_eq!(rows(&place), expect, "a column widens among events that are not sealed yet");

    let place = place.sealed();
    publish(&place, r#"{"ts": 1700000043000, "x": 1, "gps": {"lat": 3.25}}"#);
    expect[1]["gps_lat"] = json!(3.0);
    expect.push(row(3, json!(1.0), Value::Null, json!(3.25)));
    assert_eq!(rows(&place), expect, "a column of the table widens");

    let place = place.sealed();
    assert_eq!(rows(&place), expect, "... and is rewritten");
    let place = Place { server: place.server.kill_and_restart(), ..place };
    assert_eq!(rows(&place), expect);
}

#[test]
fn an_event_is_found_within_a_second_of_its_acknowledgement() {
    let place = Place::with_events();
    let mut slowest = Duration::ZERO;
    for n in 1..=20 {
        place.publish("c", &[(n, Some(1.0))]);
        let acknowledged = Instant::now();
        for sql in [
            "SELECT count(*) FROM readings WHERE device_id = 'c'",
            "SELECT coalesce(sum(n), 0) FROM climate_1m WHERE device_id = 'c'",
        ] {
            while place.server.number(sql) < n {
                assert!(acknowledged.elapsed() < Duration::from_secs(1), "{sql} does not see event {n}");
            }
        }
        slowest = slowest.max(acknowledged.elapsed());
    }
    println!("found in a stream and in a view after at most {slowest:?}");
    assert!(slowest < Duration::from_secs(1));
}

#[test]
fn what_is_sealed_and_what_is_not_add_up() {
    let place = Place::with_events().sealed();
    place.server.batch(false);
    place.publish("a", &[(3, Some(23.0)), (61, Some(31.0)), (600, Some(5.0))]);

    let answer = place.server.post_text("/v1/query", r#"{"sql": "SELECT count(*) AS n FROM readings"}"#);
    assert_eq!(answer["rows"], json!([{ "n": 9 }]));
    assert_eq!(answer["meta"]["streams"][0]["unsealed_rows"], 3, "{answer}");

    let per_layer = |sql: &str| {
        ["batch", "speed", "merged"].map(|layer| place.server.query_layer(sql, layer)[0]["n"].clone())
    };
    assert_eq!(per_layer("SELECT sum(n) AS n FROM climate_1m"), [6, 3, 9]);
    let minute = "SELECT n FROM climate_1m WHERE device_id = 'a' AND window_start = '2023-11-14T22:14:00Z'";
    assert_eq!(per_layer(minute), [3, 1, 4]);
    let both = "SELECT (SELECT sum(n) FROM batch.climate_1m) + (SELECT sum(n) FROM speed.climate_1m) AS n";
    assert_eq!(place.server.number(both), 9, "the layers are schemas, too");

    let provenance = place.server.post_text("/v1/query", r#"{"sql": "SELECT * FROM climate_1m"}"#);
    let view = &provenance["meta"]["views"][0];
    assert_eq!(view["batch_generation"], 1, "{view}");
    assert!(view["speed_rows"].as_u64() > Some(0) && view["batch_frontier"] != view["frontier"], "{view}");

    let place = place.sealed();
    place.server.batch(false);
    let per_layer = ["batch", "merged"]
        .map(|layer| place.server.query_layer("SELECT sum(n) AS n FROM climate_1m", layer)[0]["n"].clone());
    assert_eq!(per_layer, [9, 9]);
    assert_eq!(place.server.query_layer("SELECT * FROM climate_1m", "speed"), Vec::<Value>::new());
    assert_eq!(place.server.verify(), 0);
}

#[test]
fn every_format_carries_the_same_rows() {
    let place = Place::with_events();
    let ask = |format: &str| {
        let ran = place.server.run(&["query", PER_DEVICE, "--format", format], "");
        assert_eq!(ran.code, 0, "{format}: {}", ran.stderr);
        ran.stdout
    };
    let words = |format: &str| String::from_utf8(ask(format)).expect("utf-8");
    assert_eq!(words("csv"), "device_id,n\na,4\nb,2\n");
    assert_eq!(words("jsonl"), "{\"device_id\":\"a\",\"n\":4}\n{\"device_id\":\"b\",\"n\":2}\n");
    let rows: Value = serde_json::from_slice(&ask("json")).expect("JSON");
    assert_eq!(rows, json!([{ "device_id": "a", "n": 4 }, { "device_id": "b", "n": 2 }]));
    assert_eq!(words("table"), " device_id | n\n-----------+---\n a         | 4\n b         | 2\n");

    let check = |batches: Vec<RecordBatch>| {
        let counts = batches.iter().flat_map(|b| b.column(1).as_primitive::<Int64Type>().values().to_vec());
        assert_eq!(counts.collect::<Vec<_>>(), [4, 2]);
        assert_eq!(batches[0].column(0).as_string::<i32>().value(0), "a");
    };
    let arrow = ask("arrow");
    check(
        StreamReader::try_new(arrow.as_slice(), None)
            .expect("a stream")
            .map(|b| b.expect("a batch"))
            .collect(),
    );
    let parquet = |bytes: Vec<u8>| {
        let reader = ParquetRecordBatchReader::try_new(Bytes::from(bytes), 100).expect("a file");
        reader.map(|b| b.expect("a batch")).collect()
    };
    check(parquet(ask("parquet")));

    let file = place.dir.path().join("rows.parquet");
    let ran = place.server.run(&["query", PER_DEVICE, "-o", text(&file)], "");
    assert!(ran.code == 0 && ran.stdout.is_empty(), "{}", ran.stderr);
    check(parquet(std::fs::read(&file).expect("the ending chose the format")));
}

#[test]
fn a_query_comes_as_an_argument_from_a_file_or_on_stdin() {
    let place = Place::with_events();
    let file = place.write("query.sql", &format!("-- per device\n{PER_DEVICE};\n"));
    for (args, stdin) in [
        (vec!["query", PER_DEVICE], ""),
        (vec!["query", "-f", &file], ""),
        (vec!["query", "-f", "-"], PER_DEVICE),
        (vec!["query"], PER_DEVICE),
    ] {
        let ran = place.server.run(&[args.clone(), vec!["--format", "csv"]].concat(), stdin);
        assert_eq!(
            String::from_utf8_lossy(&ran.stdout),
            "device_id,n\na,4\nb,2\n",
            "{args:?}: {}",
            ran.stderr
        );
    }
    let ran = place.server.run(&["query", "SELECT * FROM climate_1m", "--meta"], "");
    assert!(ran.code == 0 && ran.stderr.contains("frontier") && !ran.stdout.is_empty(), "{}", ran.stderr);
    let ran = place.server.run(&["query", "SELECT * FROM climate_1m", "--meta", "--format", "json"], "");
    let document: Value = serde_json::from_slice(&ran.stdout).expect("JSON");
    assert_eq!(document["meta"]["views"][0]["name"], "climate_1m");
    assert_eq!(document["rows"].as_array().map(Vec::len), Some(4));
    assert_eq!(document["columns"][1], json!({ "name": "window_start", "type": "timestamp" }));
}

#[test]
fn a_query_that_fails_says_why_and_by_its_exit_code_what_kind_of_failure_it_is() {
    let place = Place::with_events();
    let check = |sql: &str, code: i32, says: &str| {
        check_failure(&place.server.run(&["query", sql], ""), code, says);
    };
    check("SELEC 1", 1, "SELEC");
    check("SELECT temprature FROM readings", 1, "temprature");
    check("SELECT nosuch(1)", 1, "nosuch");
    check("SELECT 1 / 0", 1, "zero");
    check(
        "SELECT * FROM nope",
        1,
        "there is no table `nope`; the tables are: climate_1m, readings, dead, alerts, devices",
    );
    check(";", 2, "SQL");
    check_failure(&place.server.run(&["query"], " \n"), 2, "SQL");
    check_failure(&place.server.run(&["query", "-f", "/no/such/file"], ""), 1, "/no/such/file");
    check_failure(&run(&["query", "SELECT 1", "--url", "http://127.0.0.1:1"], ""), 69, "iotctl serve");
    check_failure(&run(&["query", "SELECT 1", "--data-dir", "/no/such/dir"], ""), 1, "/no/such/dir");
}

#[test]
fn the_rows_of_a_view_can_be_had_without_sql() {
    let place = Place::with_events();
    let check = |parameters: &str, expect: &[(&str, &str, i64)]| {
        let answer = place.server.get(&format!("/v1/views/climate_1m{parameters}"));
        let rows = answer["rows"].as_array().unwrap_or_else(|| panic!("{parameters}: {answer}"));
        let short = |row: &Value| (row["device_id"].clone(), row["window_start"].clone(), row["n"].clone());
        let expect: Vec<_> =
            expect.iter().map(|(d, w, n)| (json!(d), json!(format!("2023-11-14T{w}Z")), json!(n))).collect();
        assert_eq!(rows.iter().map(short).collect::<Vec<_>>(), expect, "{parameters}");
    };
    let all = [("b", "22:16:00", 1), ("a", "22:15:00", 1), ("a", "22:14:00", 3), ("b", "22:14:00", 1)];
    check("", &all);
    check("?limit=2", &all[..2]);
    check("?limit=0", &[]);
    check("?device_id=a", &all[1..3]);
    check("?from=2023-11-14T22:15:00Z", &all[..2]);
    check("?to=2023-11-14T22:15:00Z", &all[2..]);
    check("?from=2023-11-14T23:15:00%2B01:00&to=2023-11-14T22:16:00Z&device_id=a", &all[1..2]);
    check("?device_id=nobody", &[]);

    let refused = |path: &str, status: u16, says: &str| {
        let (found, answer) = place.server.get_text(path);
        assert!(found == status && answer.contains(says), "{path}: {found} {answer}");
    };
    refused("/v1/views/nope", 404, "nope");
    refused("/v1/views/climate_1m?from=yesterday", 400, "yesterday");
    refused("/v1/views/climate_1m?form=2023-11-14T22:15:00Z", 400, "form");
    refused("/v1/views/climate_1m?limit=-1", 400, "limit");
    assert_eq!(place.server.get("/v1/views"), json!({ "views": ["climate_1m"] }));
}

#[test]
fn what_could_not_be_decoded_can_be_queried() {
    let place = Place::with_events();
    for bad in ["not json", r#"{"ts": 1700000040000, "temperature": "hot"}"#, r#"{"temperature": 1}"#, "[1]"]
    {
        place.server.publish("devices/broken/telemetry", bad);
    }
    let check = |place: &Place| {
        let letters = place.server.query("SELECT stream, topic, reason, payload FROM dead ORDER BY _seq");
        let reasons: Vec<&str> = letters.iter().filter_map(|letter| letter["reason"].as_str()).collect();
        for (reason, word) in reasons.iter().zip(["JSON", "temperature", "event time", "object"]) {
            assert!(reason.contains(word), "{reasons:?}");
        }
        assert_eq!(letters.len(), 4);
        assert!(
            letters.iter().all(|l| l["stream"] == "readings" && l["topic"] == "devices/broken/telemetry")
        );
        assert_eq!(place.server.number("SELECT count(*) FROM readings"), 6, "the good ones are unharmed");
        let listed = place.server.iotctl(&["dead", "list"]);
        assert!(listed.contains("devices/broken/telemetry") && listed.contains("hot"), "{listed}");
    };
    check(&place);
    check(&place.sealed());
}

#[test]
fn tables_and_columns_can_be_listed() {
    let place = Place::with_events();
    let tables = place.server.query("SHOW TABLES");
    let names: Vec<&Value> =
        tables.iter().filter(|row| row["table_schema"] == "public").map(|row| &row["table_name"]).collect();
    for name in ["readings", "climate_1m", "dead", "alerts", "devices"] {
        assert!(names.contains(&&json!(name)), "{name}: {names:?}");
    }
    let columns = place.server.query(
        "SELECT column_name, data_type FROM information_schema.columns \
         WHERE table_schema = 'public' AND table_name = 'climate_1m' ORDER BY ordinal_position",
    );
    let names: Vec<&str> = columns.iter().filter_map(|row| row["column_name"].as_str()).collect();
    assert_eq!(names, ["device_id", "window_start", "n", "mean", "hottest"]);
    assert!(!place.server.query("DESCRIBE readings").is_empty());
    assert!(!place.server.query("EXPLAIN SELECT * FROM climate_1m").is_empty());
    assert_eq!(place.server.number("SELECT count(*) FROM devices"), 2);
}

#[test]
fn queries_only_read() {
    let place = Place::with_events();
    let copy = place.dir.path().join("copy.csv");
    let copy_to = format!("COPY (SELECT * FROM readings) TO '{}'", copy.display());
    let sealed = format!("SELECT * FROM '{}'", place.write("secret.csv", "a,b\n1,2\n"));
    for sql in [
        "CREATE TABLE t (a INT)",
        "CREATE TABLE t AS SELECT 1",
        "CREATE VIEW v AS SELECT 1",
        "CREATE OR REPLACE VIEW climate_1m AS SELECT 1",
        "CREATE EXTERNAL TABLE t STORED AS CSV LOCATION '/etc/passwd'",
        "CREATE SCHEMA s",
        "DROP TABLE readings",
        "DROP VIEW climate_1m",
        "INSERT INTO readings SELECT * FROM readings",
        "DELETE FROM readings",
        "UPDATE readings SET temperature = 0",
        "SET datafusion.execution.batch_size = 1",
        "BEGIN",
        "PREPARE p AS SELECT 1",
        "SELECT 1; DROP TABLE readings",
        "EXPLAIN ANALYZE INSERT INTO readings SELECT * FROM readings",
        &copy_to,
        &sealed,
    ] {
        let answer = place.server.post_text("/v1/query", &json!({ "sql": sql }).to_string());
        assert_eq!(answer["status"], 400, "{sql}: {answer}");
        assert!(answer["type"].as_str().is_some_and(|kind| kind.starts_with("urn:iot:problem:")), "{answer}");
    }
    assert!(!copy.exists());
    assert_eq!(place.server.number("SELECT count(*) FROM readings"), 6);
    assert_eq!(place.server.number("SELECT sum(n) FROM climate_1m"), 6);
}

#[test]
fn definitions_come_change_and_go() {
    let place = Place::bare();
    let both = place.write("both.yaml", &format!("{VIEW}---\n{STREAM}"));
    let wider = place.write("wider.yaml", &format!("{STREAM}---\n{}", VIEW.replace("1 minute", "5 minutes")));
    let ask = |args: &[&str]| place.server.iotctl(args);
    assert_eq!(ask(&["diff", "-f", &both]), "stream/readings created\nview/climate_1m created\n");
    assert_eq!(ask(&["apply", "-f", &both]), "stream/readings created\nview/climate_1m created\n");
    assert_eq!(ask(&["apply", "-f", &both]), "stream/readings unchanged\nview/climate_1m unchanged\n");

    assert_eq!(ask(&["diff", "-f", &wider]), "stream/readings unchanged\nview/climate_1m changed\n");
    assert_eq!(place.server.run(&["diff", "-f", &wider, "--exit-code"], "").code, 1);
    assert_eq!(place.server.run(&["diff", "-f", &both, "--exit-code"], "").code, 0, "diff changes nothing");
    assert_eq!(ask(&["apply", "-f", &wider]), "stream/readings unchanged\nview/climate_1m changed\n");

    let views: Value = serde_json::from_str(&ask(&["get", "views", "--format", "json"])).expect("JSON");
    assert_eq!((views.as_array().map(Vec::len), &views[0]["name"]), (Some(1), &json!("climate_1m")));
    let described = ask(&["describe", "view", "climate_1m"]);
    assert!(described.contains("5 minutes") && described.contains("readings"), "{described}");
    let described = ask(&["describe", "stream", "readings"]);
    assert!(
        described.contains("temperature") && described.contains("devices/{device_id}/telemetry"),
        "{described}"
    );

    let place = Place { server: place.server.kill_and_restart(), ..place };
    assert_eq!(
        place.server.iotctl(&["diff", "-f", &wider]),
        "stream/readings unchanged\nview/climate_1m unchanged\n"
    );

    check_failure(&place.server.run(&["delete", "stream", "readings"], ""), 1, "view `climate_1m`");
    assert_eq!(place.server.iotctl(&["delete", "view", "climate_1m"]), "view/climate_1m deleted\n");
    check_failure(
        &place.server.run(&["query", "SELECT * FROM climate_1m"], ""),
        1,
        "there is no table `climate_1m`",
    );
    check_failure(&place.server.run(&["delete", "view", "climate_1m"], ""), 1, "climate_1m");
    check_failure(&place.server.run(&["describe", "view", "climate_1m"], ""), 1, "iotctl get views");
    assert_eq!(place.server.iotctl(&["delete", "stream", "readings"]), "stream/readings deleted\n");
    check_failure(
        &place.server.run(&["query", "SELECT * FROM readings"], ""),
        1,
        "there is no table `readings`",
    );
}

#[test]
fn a_definition_that_does_not_fit_is_refused_with_all_that_came_with_it() {
    let place = Place::with_events();
    let check = |yaml: &str, code: i32, says: &str| {
        let file = place.write("refused.yaml", &yaml.replace("climate_1m", "refused"));
        check_failure(&place.server.run(&["apply", "-f", &file], ""), code, says);
        check_failure(&place.server.run(&["describe", "view", "refused"], ""), 1, "refused");
    };
    check(&VIEW.replace("FROM readings", "FROM nope"), 1, "nope");
    check(&VIEW.replace("FROM readings", "FROM nope"), 1, "readings");
    check(&VIEW.replace("avg(temperature)", "avg(temprature)"), 1, "temprature");
    check(&VIEW.replace("count(*)", "nosuch(*)"), 1, "nosuch");
    check("kind: view\nname: climate_1m\nsql: SELECT device_id FROM readings\n", 1, "refused");
    check(&VIEW.replace("name: climate_1m", "name: readings"), 1, "readings");
    check(
        &format!("{VIEW}---\n{}", VIEW.replace("climate_1m", "other").replace("FROM readings", "FROM nope")),
        1,
        "nope",
    );
    check(&VIEW.replace("sql:", "sqk:"), 78, "sqk");
    check("kind: view\nname: [", 78, "refused.yaml");
    check(&STREAM.replace("temperature: double", "temperature: text"), 1, "temperature");
    assert_eq!(place.server.number("SELECT sum(n) FROM climate_1m"), 6);
}

#[test]
fn a_changed_view_answers_anew_over_old_events_too() {
    let place = Place::with_events().sealed();
    place.server.batch(false);
    place.publish("a", &[(4, Some(19.0))]);
    let wider = VIEW
        .replace("1 minute", "1 hour")
        .replace("max(temperature) AS hottest", "min(temperature) AS coldest");
    place.server.apply(&wider);
    let rows = |place: &Place| {
        place.server.query("SELECT device_id, n, mean, coldest FROM climate_1m ORDER BY device_id")
    };
    let expect = [
        json!({ "device_id": "a", "n": 5, "mean": 22.4, "coldest": 19.0 }),
        json!({ "device_id": "b", "n": 2, "mean": 10.0, "coldest": 10.0 }),
    ];
    assert_eq!(rows(&place), expect);
    check_failure(&place.server.run(&["query", "SELECT hottest FROM climate_1m"], ""), 1, "hottest");
    place.server.batch(false);
    assert_eq!(rows(&place), expect);
    let place = Place { server: place.server.kill_and_restart(), ..place };
    assert_eq!(rows(&place), expect);
    let place = place.sealed();
    place.server.batch(false);
    assert_eq!(rows(&place), expect);

    place.server.apply(&wider.replace("FROM readings", "FROM readings WHERE temperature > 20"));
    assert_eq!(
        rows(&place),
        [json!({ "device_id": "a", "n": 3, "mean": (21.0 + 22.0 + 30.0) / 3.0, "coldest": 21.0 })]
    );
    assert_eq!(place.server.verify(), 0);
}

#[test]
fn a_view_follows_a_column_that_widens() {
    let place = Place::bare();
    let view = "kind: view
name: totals
sql: SELECT device_id, count(*) AS n, sum(x) AS total, min(x) AS least, avg(x) AS mean FROM events GROUP BY device_id
batch: {every: 1d}
";
    let check = |place: &Place, n: i64, total: Value, least: Value, mean: f64| {
        let expect = [json!({ "device_id": "a", "n": n, "total": total, "least": least, "mean": mean })];
        let deadline = Instant::now() + Duration::from_secs(1);
        let rows = || place.server.query("SELECT * FROM totals");
        while rows() != expect && Instant::now() < deadline {}
        assert_eq!(rows(), expect);
        assert_eq!(place.server.verify(), 0);
    };
    place.server.publish("devices/a/telemetry", r#"{"x": 3}"#);
    place.server.apply(view);
    check(&place, 1, json!(3), json!(3), 3.0);
    let place = place.sealed();
    place.server.batch(false);
    check(&place, 1, json!(3), json!(3), 3.0);

    place.server.publish("devices/a/telemetry", r#"{"x": 1.5}"#);
    check(&place, 2, json!(4.5), json!(1.5), 2.25);
    let place = Place { server: place.server.kill_and_restart(), ..place };
    check(&place, 2, json!(4.5), json!(1.5), 2.25);
    let place = place.sealed();
    place.server.batch(false);
    place.server.publish("devices/a/telemetry", r#"{"x": 6}"#);
    check(&place, 3, json!(10.5), json!(1.5), 3.5);
}

#[test]
fn a_store_answers_without_its_server_as_with_it() {
    let place = Place::with_events();
    let data = text(&place.server.data_dir).to_owned();
    let online = |server: &Server| EVERYTHING.map(|sql| server.iotctl(&["query", sql, "--format", "csv"]));
    let offline = || EVERYTHING.map(|sql| iotctl(&["query", sql, "--data-dir", &data, "--format", "csv"]));
    check_failure(&run(&["query", "SELECT 1", "--data-dir", &data], ""), 1, "in use");

    let expect = online(&place.server);
    assert!(place.server.stop());
    assert_eq!(offline(), expect, "after the server was stopped");

    let config = place.dir.path().join("config.yaml");
    let mut server = Server::start(Path::new(&data), &["--config", text(&config)]);
    server.batch(false);
    server.publish("devices/b/telemetry", r#"{"ts": 1700000041000, "temperature": 0.1}"#);
    let expect = online(&server);
    server.kill();
    assert_eq!(offline(), expect, "after SIGKILL, with an event that is only in the log");
    assert_eq!(offline(), expect, "asking changes nothing");

    let verified = run(&["verify", "--data-dir", &data], "");
    assert_eq!(verified.code, 0, "{}", verified.stderr);
    let ran = run(&["batch", "run", "--data-dir", &data, "--format", "json"], "");
    let reports: Value = serde_json::from_slice(&ran.stdout).expect("JSON");
    assert_eq!(reports[0]["events"], 1, "{reports}: {}", ran.stderr);
    assert_eq!(offline(), expect, "after a batch run without a server");
    let sum = "SELECT sum(n) AS n FROM batch.climate_1m";
    let batch = iotctl(&["query", sum, "--data-dir", &data, "--format", "csv"]);
    assert_eq!(batch, "n\n7\n");
}
