//! Event time from outside: watermarks, windows that close once, corrections, the ledger of late events.

mod follower;

use std::io::Write;
use std::net::TcpStream;
use std::path::Path;
use std::time::Duration;

use iot_schemas::clock::Clock;
use iot_tests::load::{Load, LoadOptions};
use iot_tests::{Server, iotctl, pause};
use serde_json::{Value, json};

use follower::Follower;

/// A view by windows of ten seconds on a stream with `settings`.
fn start(dir: &Path, settings: &str) -> Server {
    let catalog = format!(
        r#"
kind: stream
name: readings
topics: ["devices/{{device_id}}/telemetry"]
event_time: {{field: ts, unit: ms}}
fields: {{n: bigint, temperature: double}}
{settings}
---
kind: view
name: by_10s
sql: |
  SELECT device_id, tumble(event_time, INTERVAL '10 seconds') AS window_start, count(*) AS c, sum(n) AS s
  FROM readings GROUP BY device_id, window_start
batch: {{every: 1d}}
"#
    );
    let path = dir.join("catalog.yaml");
    std::fs::write(&path, catalog).expect("written");
    Server::start(&dir.join("data"), &["--catalog", path.to_str().expect("utf-8")])
}

/// The start of a window about an hour ago, in milliseconds since 1970.
fn an_hour_ago() -> i64 {
    let now = Clock::system().now_micros() / 1_000;
    (now - 3_600_000) / 10_000 * 10_000
}

fn send(server: &Server, device: &str, ts: i64) {
    server.publish(&format!("devices/{device}/telemetry"), &json!({ "ts": ts, "n": 1 }).to_string());
}

/// What a reader is told of a row in short: device, seconds after `start`, count, state.
fn short(row: &Value, start: i64) -> String {
    let window = row["window_start"].as_str().expect("a window");
    let window = chrono::DateTime::parse_from_rfc3339(window).expect("a time").timestamp_millis();
    let state = match (row["closed"].as_bool(), row["correction"].as_bool()) {
        (Some(false), None) => "open".to_owned(),
        (Some(true), Some(false)) => "closed".to_owned(),
        (Some(true), Some(true)) => format!("correction {}", row["revision"]),
        _ => panic!("{row}"),
    };
    format!(
        "{} +{} {} {state}",
        row["device_id"].as_str().expect("a device"),
        (window - start) / 1_000,
        row["c"]
    )
}

#[test]
fn a_window_is_closed_once_and_corrected_after_that_whatever_restarts() {
    let dir = tempfile::tempdir().expect("a directory");
    let server = start(dir.path(), "allowed_lateness: 2s\nidle_timeout: 1h");
    let t = an_hour_ago();
    let in_short = |rows: Vec<Value>| rows.iter().map(|row| short(row, t)).collect::<Vec<_>>();
    let follow = |query: &str| Follower::start(&format!("{}/v1/views/by_10s/stream{query}", server.url()));
    let (all, closed, of_b) = (follow(""), follow("?closed=true"), follow("?device_id=b"));
    for reader in [&all, &closed, &of_b] {
        reader.wait_until_connected(1);
    }
    send(&server, "a", t + 1_000);
    send(&server, "b", t + 2_000);
    all.wait_for(|rows| in_short(rows).ends_with(&["b +0 1 open".into()]));
    // Device b holds the watermark back at t, whatever a does.
    send(&server, "a", t + 13_000);
    all.wait_for(|rows| in_short(rows).contains(&"a +10 1 open".into()));
    assert_eq!(closed.rows().len(), 0);
    send(&server, "b", t + 12_000);
    closed.wait_for(|rows| rows.len() == 2);
    assert_eq!(in_short(closed.rows()), ["a +0 1 closed", "b +0 1 closed"]);
    send(&server, "a", t + 3_000);
    closed.wait_for(|rows| rows.len() == 3);
    assert_eq!(in_short(closed.rows())[2], "a +0 2 correction 1");

    let watermark = server.query("SELECT watermark FROM watermarks WHERE device_id IS NULL");
    let server = server.kill_and_restart();
    assert_eq!(server.query("SELECT watermark FROM watermarks WHERE device_id IS NULL"), watermark);
    for reader in [&all, &closed, &of_b] {
        reader.wait_until_connected(2);
    }
    send(&server, "a", t + 4_000);
    closed.wait_for(|rows| rows.len() == 4);
    assert_eq!(in_short(closed.rows())[3], "a +0 3 correction 2");
    // While nobody is there to be told, the next windows end.
    let server = server.stop_and_restart();
    for reader in [&all, &closed, &of_b] {
        reader.wait_until_connected(3);
    }
    send(&server, "a", t + 25_000);
    send(&server, "b", t + 25_000);
    closed.wait_for(|rows| rows.len() == 6);
    assert_eq!(in_short(closed.rows())[4..], ["a +10 1 closed", "b +10 1 closed"]);
    pause(Duration::from_millis(600));

    let count = |reader: &Follower, what: &str| {
        in_short(reader.rows()).iter().filter(|row| row.ends_with(what)).count()
    };
    for (reader, windows) in [(&all, 4), (&closed, 4), (&of_b, 2)] {
        assert_eq!(count(reader, "closed"), windows, "{:?}", in_short(reader.rows()));
        assert_eq!(reader.missed(), 0);
    }
    assert!(in_short(of_b.rows()).iter().all(|row| row.starts_with("b ")), "{:?}", in_short(of_b.rows()));
    assert_eq!(server.verify(), 0);

    let late = "SELECT events, revision FROM late WHERE scope = 'window' AND view = 'by_10s'";
    assert_eq!(server.query(late), [json!({ "events": 2, "revision": 2 })]);
    let late = "SELECT events FROM late WHERE scope = 'device' AND device_id = 'a' AND kind = 'late'";
    assert_eq!(server.number(late), 2);
    let listed =
        server.iotctl(&["late", "list", "--stream", "readings", "--device", "a", "--format", "json"]);
    let listed: Vec<Value> = serde_json::from_str(&listed).expect("json");
    assert_eq!(
        (listed.len(), &listed[0]["events"], &listed[0]["worst_delay_ms"]),
        (1, &json!(2), &json!(7_000))
    );
}

#[test]
fn a_reader_that_comes_back_is_given_the_windows_that_closed_meanwhile() {
    let dir = tempfile::tempdir().expect("a directory");
    let server = start(dir.path(), "");
    let t = an_hour_ago();
    let url = format!("{}/v1/views/by_10s/stream?closed=true", server.url());
    send(&server, "a", t + 1_000);
    send(&server, "a", t + 11_000);
    send(&server, "a", t + 21_000);
    let late = Follower::start(&url);
    late.wait_until_connected(1);
    let resumed = Follower::start(&format!("{url}&last_event_id={}", (t + 10_000) * 1_000));
    resumed.wait_for(|rows| rows.len() == 1);
    assert_eq!(short(&resumed.rows()[0], t), "a +10 1 closed");
    send(&server, "a", t + 31_000);
    for (reader, windows) in [(late, 1), (resumed, 2)] {
        reader.wait_for(|rows| rows.len() == windows);
        assert_eq!(short(&reader.rows()[windows - 1], t), "a +20 1 closed");
    }
}

#[test]
fn tap_prints_what_readers_of_the_stream_are_told() {
    let dir = tempfile::tempdir().expect("a directory");
    let server = start(dir.path(), "");
    let t = an_hour_ago();
    let (url, mqtt) = (server.url(), server.broker());
    let taps = ["view by_10s --closed", "late --stream readings"].map(|stage| {
        let line = format!("tap {stage} --limit 1 --for 30s --url {url}");
        std::thread::spawn(move || iotctl(&line.split(' ').collect::<Vec<_>>()))
    });
    // The commands have had time to connect; what comes from now on is news to them.
    pause(Duration::from_millis(2_500));
    for seconds in [1, 11, 2] {
        let payload = json!({ "ts": t + seconds * 1_000 }).to_string();
        iotctl(&["publish", "devices/a/telemetry", &payload, "--mqtt", &mqtt]);
    }
    let [row, late] = taps.map(|tap| {
        let printed = tap.join().expect("it ends well");
        serde_json::from_str::<Value>(&printed).unwrap_or_else(|e| panic!("{e}: {printed}"))
    });
    assert!(short(&row, t).starts_with("a +0 ") && row["closed"] == true, "{row}");
    assert_eq!((&late["gained"], &late["kind"]), (&json!(1), &json!("late")), "{late}");
}

#[test]
fn a_clock_that_is_ahead_neither_closes_windows_nor_is_lost() {
    let dir = tempfile::tempdir().expect("a directory");
    let server = start(dir.path(), "max_future: 10m");
    let t = an_hour_ago();
    let reader = Follower::start(&format!("{}/v1/views/by_10s/stream", server.url()));
    reader.wait_until_connected(1);
    send(&server, "a", t);
    send(&server, "ahead", t + 2 * 3_600_000);
    send(&server, "a", t + 5_000);
    reader.wait_for(|rows| rows.iter().any(|row| row["c"] == 2));
    assert!(reader.rows().iter().all(|row| row["closed"] == false), "{:?}", reader.rows());
    assert_eq!(server.number("SELECT count(*) FROM readings"), 3);
    assert_eq!(server.number("SELECT sum(c)::bigint FROM by_10s"), 3);
    let future = "SELECT events FROM late WHERE kind = 'future' AND device_id = 'ahead'";
    assert_eq!(server.number(future), 1);
    let streams = server.get("/v1/catalog/streams");
    let readings = streams["items"].as_array().expect("a list").iter().find(|s| s["name"] == "readings");
    let readings = readings.expect("the stream");
    assert_eq!((&readings["future_events"], &readings["late_events"]), (&json!(1), &json!(0)));
    let watermark = readings["watermark"].as_str().expect("a watermark");
    let watermark = chrono::DateTime::parse_from_rfc3339(watermark).expect("a time").timestamp_millis();
    assert_eq!(watermark, t + 5_000);
}

#[test]
fn events_from_the_future_become_dead_letters_where_the_stream_says_so() {
    let dir = tempfile::tempdir().expect("a directory");
    let server = start(dir.path(), "future_events: dead_letter");
    let t = an_hour_ago();
    send(&server, "a", t);
    send(&server, "ahead", t + 3 * 3_600_000);
    server.wait_for("both messages", |status| status["ingest"]["dead_letters"] == 1);
    assert_eq!(server.number("SELECT count(*) FROM readings"), 1);
    assert_eq!(server.number("SELECT count(*) FROM dead WHERE reason LIKE '%max_future%'"), 1);
}

#[test]
fn a_device_that_fell_silent_no_longer_holds_windows_open() {
    let dir = tempfile::tempdir().expect("a directory");
    let server = start(dir.path(), "idle_timeout: 1500ms");
    let t = an_hour_ago();
    let reader = Follower::start(&format!("{}/v1/views/by_10s/stream?closed=true", server.url()));
    reader.wait_until_connected(1);
    send(&server, "silent", t + 1_000);
    send(&server, "a", t + 2_000);
    send(&server, "a", t + 12_000);
    pause(Duration::from_millis(500));
    assert_eq!(reader.rows().len(), 0);
    pause(Duration::from_millis(1_500));
    send(&server, "a", t + 13_000);
    // No event comes for the silent device, and its window is closed all the same.
    reader.wait_for(|rows| rows.len() == 2);
    let rows: Vec<String> = reader.rows().iter().map(|row| short(row, t)).collect();
    assert_eq!(rows, ["a +0 1 closed", "silent +0 1 closed"]);
    let holds =
        server.query("SELECT device_id, holds FROM watermarks WHERE device_id IS NOT NULL ORDER BY 1");
    let expect =
        [("a", true), ("silent", false)].map(|(device, holds)| json!({"device_id": device, "holds": holds}));
    assert_eq!(holds, expect);
}

#[test]
fn a_reader_that_does_not_read_holds_nobody_up() {
    let dir = tempfile::tempdir().expect("a directory");
    let server = start(dir.path(), "");
    let mut stuck = TcpStream::connect(server.http).expect("connected");
    stuck.write_all(b"GET /v1/views/by_10s/stream HTTP/1.1\r\nHost: localhost\r\n\r\n").expect("written");
    let reader = Follower::start(&format!("{}/v1/views/by_10s/stream", server.url()));
    reader.wait_until_connected(1);
    let port = server.mqtt.expect("the broker is embedded").port();
    let load = Load::rumqttc(&LoadOptions { port, name: "load", rate: 1_000, qos: 1, stretch: 40 });
    load.wait_for_acked(3_000);
    let acked = load.finish().acked();
    server.wait_for("the engine", |status| status["speed"]["events"].as_u64() >= Some(acked));
    reader.wait_for(|rows| newest_counts(rows) >= acked);
    drop(stuck);
}

/// The sum of the newest count of each row.
fn newest_counts(rows: Vec<Value>) -> u64 {
    let mut newest = std::collections::HashMap::new();
    for row in rows {
        newest.insert((row["device_id"].to_string(), row["window_start"].to_string()), row["c"].as_u64());
    }
    newest.into_values().flatten().sum()
}

#[test]
fn what_cannot_be_followed_is_refused_with_the_reason() {
    let dir = tempfile::tempdir().expect("a directory");
    let server = start(dir.path(), "");
    server.apply(
        "kind: view\nname: hidden\nsql: SELECT count(*) AS c FROM readings GROUP BY device_id\n---\n\
         kind: view\nname: odd\nsql: SELECT device_id, count(*) AS closed FROM readings GROUP BY device_id\n",
    );
    for (path, status, word) in [
        ("nothing/stream", 404, "nothing"),
        ("hidden/stream", 400, "SELECT list"),
        ("odd/stream", 400, "rename"),
        ("by_10s/stream?closed=maybe", 400, "maybe"),
        ("by_10s/stream?color=red", 400, "color"),
        ("by_10s/stream?last_event_id=x", 400, "x"),
    ] {
        let (got, body) = server.get_text(&format!("/v1/views/{path}"));
        assert!(got == status && body.contains(word), "{path}: {got} {body}");
    }
}
