//! Golden cases of other engines' windows, through the whole line: all in speed, all in batch, split at every
//! position, and killed half way.

use futures::future::try_join_all;
use iot_ingest::Message;
use iot_schemas::batch::{BatchRequest, BatchRunner};
use iot_schemas::control::Control;
use iot_serving::query::{Queries, QueryRequest};
use iot_tests::{Server, line::open, shared};
use iotctl::line::Line;
use serde_json::Value;

use super::lambda::run;

/// One case: input, and views with what they must show.
struct Golden {
    catalog: String,
    /// Payloads in the order of their arrival.
    messages: Vec<Value>,
    cases: Vec<Case>,
}

struct Case {
    name: String,
    view: String,
    expected: Vec<Vec<String>>,
}

const TOPIC: &str = "devices/d/telemetry";

/// Flink's cases, with the time column under Flink's name, in two sets. One row comes late: Flink drops it from the
/// windows that are closed, those that end at 00:00:05, and counts it in the others. We never drop an event, and the
/// first set says what we show. The second is fed without that row, where this makes Flink's own expectation ours.
fn flink() -> Option<Vec<Golden>> {
    let text = std::fs::read_to_string(shared("golden/windows_flink.json")?).expect("readable");
    let golden: Value = serde_json::from_str(&text).expect("JSON");
    let columns: Vec<&str> =
        golden["setup_T1"]["columns"].as_array().expect("columns").iter().filter_map(Value::as_str).collect();
    let rows = golden["setup_T1"]["rows_in_arrival_order"].as_array().expect("rows");
    let messages = rows.iter().map(|row| {
        let mut message = serde_json::Map::new();
        for (name, value) in columns.iter().zip(row.as_array().expect("a row")) {
            match (*name, value) {
                (_, Value::Null) => {}
                ("ts", Value::String(time)) => {
                    message.insert("rowtime".into(), format!("{}Z", time.replace(' ', "T")).into());
                }
                (name, value) => {
                    message.insert(name.to_owned(), value.clone());
                }
            }
        }
        Value::Object(message)
    });
    let messages: Vec<Value> = messages.collect();
    let mut in_order = messages.clone();
    in_order.remove(LATE_ROW);
    let stream = "kind: stream\nname: t1\ntopics: [\"devices/{device_id}/telemetry\"]\n\
                       event_time: {field: rowtime}\nfields: {rowtime: timestamp, int: bigint, double: double, \
                       float: double, bigdec: double, string: text, name: text}\n";
    let golden_of = |messages: Vec<Value>| Golden { catalog: stream.to_owned(), messages, cases: Vec::new() };
    let (mut sets, mut own) = ([golden_of(messages), golden_of(in_order)], Vec::new());
    for (i, case) in golden["cases"].as_array().expect("cases").iter().enumerate() {
        let (view, sql) = (format!("golden_{i}"), case["sql"].as_str().expect("SQL"));
        if case["setup"].is_object() {
            own.push(with_own_rows(case, &view, sql));
            continue;
        }
        let rows: Vec<&str> =
            case["expected_rows_csv"].as_array().expect("rows").iter().filter_map(Value::as_str).collect();
        let mut add = |set: usize, rows: Vec<String>| {
            let expected = rows.iter().map(|row| row.split(',').map(canonical).collect()).collect();
            let name = case["name"].as_str().unwrap_or_default().to_owned();
            sets[set].catalog.push_str(&document(&view, sql));
            sets[set].cases.push(Case { name, view: view.clone(), expected });
        };
        let theirs: Vec<String> = rows.iter().map(ToString::to_string).collect();
        add(0, rows.iter().map(|row| row.replace("4,11.10,5.0,1.0,2", "5,16.65,5.0,1.0,2")).collect());
        if sql.contains("TUMBLE(TABLE T1, DESCRIPTOR(rowtime), INTERVAL '5' SECOND)") {
            add(1, theirs);
        }
    }
    own.extend(sets);
    Some(own)
}

/// A case with rows of its own, in milliseconds.
fn with_own_rows(case: &Value, view: &str, sql: &str) -> Golden {
    let setup = &case["setup"];
    let columns: Vec<&str> =
        setup["columns"].as_array().expect("columns").iter().filter_map(Value::as_str).collect();
    let message = |row: &Value| {
        let names = columns.iter().map(|name| name.trim_end_matches("_ms").to_owned());
        names.zip(row.as_array().expect("a row").iter().cloned()).collect::<serde_json::Map<_, _>>().into()
    };
    let stream = "kind: stream\nname: t1\ntopics: [\"devices/{device_id}/telemetry\"]\n\
                  event_time: {field: rowtime}\nfields: {rowtime: timestamp, int: bigint, string: text, name: text}\n";
    let rows = case["expected_rows_csv"].as_array().expect("rows").iter().filter_map(Value::as_str);
    let expected = rows.map(|row| row.split(',').map(canonical).collect()).collect();
    let name = case["name"].as_str().unwrap_or_default().to_owned();
    Golden {
        catalog: stream.to_owned() + &document(view, sql),
        messages: setup["rows"].as_array().expect("rows").iter().map(message).collect(),
        cases: vec![Case { name, view: view.to_owned(), expected }],
    }
}

/// The row of Flink's input that comes after its window of 5 s has closed.
const LATE_ROW: usize = 7;

/// Arroyo's: the query of `INSERT INTO`, or of the view that it reads; `timestamp` is the event time.
fn arroyo(name: &str, input: &str, fields: &str) -> Option<Golden> {
    let read = |file: String| {
        Some(std::fs::read_to_string(shared(&format!("golden/arroyo/{file}"))?).expect("readable"))
    };
    let script = read(format!("{name}.sql"))?;
    let lower = script.to_lowercase();
    let (stream, sql) = match lower.find("create view") {
        Some(at) => {
            let body = &script[at..];
            let (open, close) = (body.find('(').expect("a query"), body.find(';').expect("an end"));
            ("cars", body[open + 1..close].trim_end().trim_end_matches(')').to_owned() + ")")
        }
        None => {
            let at = lower.rfind("insert into").expect("an INSERT");
            let query = &script[at + "insert into".len()..];
            let select = query.to_lowercase().find("select").expect("a query");
            let stream = if input == "cars" { "cars" } else { "impulse_source" };
            (stream, query[select..].trim().trim_end_matches(';').to_owned())
        }
    };
    let catalog = format!(
        "kind: stream\nname: {stream}\ntopics: [\"devices/{{device_id}}/telemetry\"]\n\
         event_time: {{field: timestamp}}\nfields: {{timestamp: timestamp, {fields}}}\n"
    ) + &document("golden", &sql);
    let lines = |text: String| {
        text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect::<Vec<Value>>()
    };
    let messages = lines(read(format!("input_{input}.jsonl"))?);
    let mut rows: Vec<Value> = Vec::new();
    for row in lines(read(format!("{name}.golden.jsonl"))?) {
        // Debezium's form says what to take back.
        match (row.get("op"), row.get("before"), row.get("after")) {
            (Some(_), Some(before), Some(after)) => {
                rows.retain(|row| row != before);
                rows.extend((!after.is_null()).then(|| after.clone()));
            }
            _ => rows.push(row),
        }
    }
    let expected = rows.iter().map(|row| {
        // The columns of a sink have names of their own; values are compared in the order of the names' values.
        let values = row.as_object().expect("an object").iter().filter(|(name, _)| is_exact(name));
        let mut values: Vec<String> = values.map(|(_, value)| canonical(&text(value))).collect();
        values.sort();
        values
    });
    let case = Case { name: name.to_owned(), view: "golden".into(), expected: expected.collect() };
    Some(Golden { catalog, messages, cases: vec![case] })
}

fn document(view: &str, sql: &str) -> String {
    let indented = sql.lines().map(|line| format!("  {line}\n")).collect::<String>();
    format!("---\nkind: view\nname: {view}\nsql: |\n{indented}batch: {{every: 1d}}\n")
}

fn text(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Null => "null".into(),
        other => other.to_string(),
    }
}

/// Numbers rounded, times in full, whatever the spelling.
fn canonical(text: &str) -> String {
    let text = text.trim();
    if let Ok(number) = text.parse::<f64>() {
        return format!("{number:.6e}");
    }
    let time = if text.len() == 16 { format!("{text}:00") } else { text.trim_end_matches('Z').to_owned() };
    match chrono::NaiveDateTime::parse_from_str(&time, "%Y-%m-%dT%H:%M:%S%.f") {
        Ok(time) => time.and_utc().to_rfc3339(),
        Err(_) => text.to_owned(),
    }
}

/// Percentile sketches are those of the engine's version; what they state is tested elsewhere.
fn is_exact(column: &str) -> bool {
    !column.starts_with("approx_percentile") && !column.starts_with("approx_median")
}

/// The rows that a view must show; `sorted_within` compares the values of a row as a set.
fn assert_rows(case: &Case, columns: &[String], rows: &[Value], sorted_within: bool, when: &str) {
    let cell = |row: &Value, column: &String| canonical(&text(&row[column.as_str()]));
    let mut actual: Vec<Vec<String>> = rows
        .iter()
        .map(|row| {
            let columns = columns.iter().filter(|column| is_exact(column));
            let mut values: Vec<String> = columns.map(|column| cell(row, column)).collect();
            if sorted_within {
                values.sort();
            }
            values
        })
        .collect();
    let mut expected = case.expected.clone();
    actual.sort();
    expected.sort();
    assert_eq!(actual, expected, "{} {when}", case.name);
}

async fn send(line: &Line, messages: &[Value]) {
    let all = messages.iter().map(|message| line.ingest.submit(Message::new(TOPIC, message.to_string())));
    try_join_all(all).await.expect("every message is taken");
}

async fn assert_golden(line: &Line, golden: &Golden, sorted_within: bool, when: &str) {
    line.settle().await;
    for case in &golden.cases {
        let sql = format!("SELECT * FROM {}", case.view);
        let request = QueryRequest { sql, layer: Default::default(), max_rows: None };
        let answer = line.queries.execute(request).await.expect("answers");
        let columns: Vec<String> = answer.schema.fields().iter().map(|f| f.name().clone()).collect();
        let mut writer = arrow::json::ArrayWriter::new(Vec::new());
        writer.write_batches(&answer.batches.iter().collect::<Vec<_>>()).expect("JSON");
        writer.finish().expect("JSON");
        let rows: Vec<Value> = serde_json::from_slice(&writer.into_inner()).unwrap_or_default();
        assert_rows(case, &columns, &rows, sorted_within, when);
    }
    for report in line.verify(None).await.expect("verifies") {
        assert_eq!(report.differences, 0, "{} {when}: {:?}", report.view, report.examples);
    }
}

/// The part before `at` in batch, the rest in speed, then all in batch, and once more after a restart.
async fn split(golden: &Golden, at: usize, sorted_within: bool) {
    let dir = tempfile::tempdir().expect("a directory");
    let line = open(dir.path()).await;
    line.apply(&golden.catalog, "test").await.expect("applies");
    send(&line, &golden.messages[..at]).await;
    line.ingest.seal_now().await.expect("seals");
    line.batch.run(BatchRequest::default()).await.expect("runs");
    send(&line, &golden.messages[at..]).await;
    assert_golden(&line, golden, sorted_within, &format!("split at {at}")).await;
    if at == golden.messages.len() / 2 {
        line.ingest.seal_now().await.expect("seals");
        line.batch.run(BatchRequest::default()).await.expect("runs");
        assert_golden(&line, golden, sorted_within, "all in batch, in two runs").await;
    }
    line.shutdown().await;
    drop(line);
    if at.is_multiple_of(5) {
        let line = open(dir.path()).await;
        assert_golden(&line, golden, sorted_within, &format!("split at {at}, after a restart")).await;
        line.shutdown().await;
    }
}

#[test]
fn flink_windows_split_at_every_position() {
    let Some(sets) = flink() else { return };
    assert!(sets.iter().all(|golden| !golden.cases.is_empty()));
    for golden in &sets {
        for at in 0..=golden.messages.len() {
            run(split(golden, at, false));
        }
    }
}

#[test]
fn flink_windows_survive_a_kill() {
    let Some(golden) = flink().and_then(|sets| sets.into_iter().max_by_key(|golden| golden.cases.len()))
    else {
        return;
    };
    let dir = tempfile::tempdir().expect("a directory");
    let settings = dir.path().join("settings.yaml");
    std::fs::write(&settings, "ingest: {seal_age: 1s}\n").expect("writable");
    let server = Server::start(&dir.path().join("data"), &["--config", settings.to_str().expect("utf-8")]);
    server.apply(&golden.catalog);
    let half = golden.messages.len() / 2;
    let publish = |server: &Server, messages: &[Value]| {
        messages.iter().for_each(|message| server.publish(TOPIC, &message.to_string()));
    };
    publish(&server, &golden.messages[..half]);
    server.wait_for_seal();
    server.batch(false);
    let server = server.kill_and_restart();
    publish(&server, &golden.messages[half..]);
    for case in &golden.cases {
        let body = serde_json::json!({ "sql": format!("SELECT * FROM {}", case.view) }).to_string();
        let answer = server.post_text("/v1/query", &body);
        let columns: Vec<String> = answer["columns"]
            .as_array()
            .unwrap_or_else(|| panic!("{answer}"))
            .iter()
            .filter_map(|column| Some(column["name"].as_str()?.to_owned()))
            .collect();
        assert_rows(case, &columns, answer["rows"].as_array().expect("rows"), false, "after a kill");
    }
    assert_eq!(server.verify(), 0);
}

#[test]
fn arroyo_queries() {
    const CARS: &str = "driver_id: bigint, event_type: text, location: text";
    const IMPULSE: &str = "counter: bigint, subtask_index: bigint";
    for (name, input, fields) in [
        ("active_drivers", "cars", CARS),
        ("every_aggregate", "cars", CARS),
        ("grouped_aggregates", "impulse", IMPULSE),
        ("hourly_by_event_type", "cars", CARS),
        ("session_window", "impulse", IMPULSE),
        ("sliding_window_end", "impulse", IMPULSE),
        ("tight_watermark", "cars", CARS),
    ] {
        let Some(golden) = arroyo(name, input, fields) else { return };
        let all = golden.messages.len();
        for at in [0, all / 3, all] {
            run(split(&golden, at, true));
        }
    }
}
