//! Devices: who has been seen, who is declared, who is online; through wills, deaths, silence and SIGKILL.

mod gateway;

use std::path::Path;
use std::time::{Duration, Instant};

use iot_tests::{PATIENCE, Server, pause, wait_a_little};
use serde_json::{Value, json};

use gateway::{Gateway, Will, birth, death};

const SETTINGS: &str = "ingest: {seal_age: 200ms, segment_bytes: 4096}\n";
const CATALOG: &str = r#"
kind: stream
name: readings
topics: ["devices/{device_id}/telemetry"]
event_time: {field: ts, unit: ms}
status: {topics: ["devices/{device_id}/status"]}
---
kind: stream
name: fast
topics: ["fast/{device_id}"]
cadence: 400ms
---
kind: stream
name: plant
format: sparkplug_b
---
kind: device
name: pump-1
stream: readings
labels: {site: north, line: "4"}
description: feeds the boiler
---
kind: device
name: plant/line-1/oven
labels: {site: south}
---
kind: device
name: ghost/in the machine
cadence: 10s
labels: {site: north}
"#;

fn start(dir: &Path) -> Server {
    let (settings, catalog) = (dir.join("serve.yaml"), dir.join("catalog.yaml"));
    std::fs::write(&settings, SETTINGS).expect("written");
    std::fs::write(&catalog, CATALOG).expect("written");
    let path = |path: &Path| path.to_str().expect("utf-8").to_owned();
    let (settings, catalog) = (path(&settings), path(&catalog));
    Server::start(&dir.join("data"), &["--config", &settings, "--catalog", &catalog])
}

fn device(server: &Server, name: &str) -> Value {
    let rows = server.query(&format!("SELECT * FROM devices WHERE device_id = '{name}'"));
    rows.into_iter().next().unwrap_or_default()
}

/// Waits until the device is in this state for this reason, and returns its row.
#[track_caller]
fn wait_for_state(server: &Server, name: &str, state: &str, reason: &str) -> Value {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let row = device(server, name);
        if row["state"] == state && row["state_reason"] == reason {
            return row;
        }
        assert!(Instant::now() < deadline, "`{name}` is not {state} by {reason}: {row}");
        wait_a_little();
    }
}

fn telemetry(second: i64) -> String {
    json!({ "ts": 1_760_000_000_000 + second * 1_000, "temperature": 20.5 }).to_string()
}

fn pump(server: &Server) -> Gateway {
    let will = Will { topic: "devices/pump-1/status", payload: b"offline", retain: true };
    let mut pump = Gateway::connect(server, "pump-1", Some(will));
    pump.publish("devices/pump-1/status", b"online", true);
    pump
}

#[test]
fn a_device_is_online_until_its_will_says_otherwise() {
    let dir = tempfile::tempdir().expect("a directory");
    let mut server = start(dir.path());
    let never = device(&server, "ghost/in the machine");
    assert_eq!((&never["declared"], &never["state"]), (&json!(true), &json!("never_seen")));
    assert_eq!(
        (&never["first_seen"], &never["events"], &never["stream"]),
        (&Value::Null, &json!(0), &Value::Null)
    );

    let mut gateway = pump(&server);
    for second in [0, 10, 20, 30, 25] {
        gateway.publish("devices/pump-1/telemetry", telemetry(second).as_bytes(), false);
    }
    // Its word comes before its events, and both are taken in after they are acknowledged.
    server.wait_for("the events", |_| device(&server, "pump-1")["events"] == 5);
    let row = wait_for_state(&server, "pump-1", "online", "status");
    assert_eq!(
        (&row["events"], &row["cadence_s"], &row["declared"]),
        (&json!(5), &json!(10.0), &json!(true))
    );
    assert_eq!(
        (&row["first_seen"], &row["last_seen"]),
        (&json!("2025-10-09T08:53:20Z"), &json!("2025-10-09T08:53:50Z"))
    );
    assert_eq!(row["description"], "feeds the boiler");
    assert_eq!(
        server.number("SELECT count(*) FROM readings"),
        5,
        "what is said about a connection is no event"
    );

    drop(gateway);
    let gone = wait_for_state(&server, "pump-1", "offline", "will");
    server.wait_for_seal();
    server = server.kill_and_restart();
    assert_eq!(device(&server, "pump-1"), gone, "what was known is known");

    // It comes back, and its own word counts; a crash in between changes nothing.
    let gateway = pump(&server);
    let back = wait_for_state(&server, "pump-1", "online", "status");
    assert!(back["state_since"].as_str() > gone["state_since"].as_str());
    server = server.kill_and_restart();
    assert_eq!(device(&server, "pump-1"), back);
    drop(gateway);
    // What somebody else says counts too, and an event shows that the device is there after all.
    server.publish("devices/pump-1/status", "{\"state\": \"Offline\"}");
    wait_for_state(&server, "pump-1", "offline", "status");
    server.publish("devices/pump-1/telemetry", &telemetry(40));
    wait_for_state(&server, "pump-1", "online", "event");

    server.publish("devices/pump-1/status", "perhaps");
    let deadline = Instant::now() + PATIENCE;
    while server.number("SELECT count(*) FROM dead") == 0 {
        assert!(Instant::now() < deadline, "no dead letter");
        wait_a_little();
    }
    let dead = server.query("SELECT stream, reason FROM dead");
    assert!(dead[0]["reason"].as_str().is_some_and(|reason| reason.contains("`perhaps`")), "{dead:?}");
    assert_eq!(dead[0]["stream"], "readings");
    wait_for_state(&server, "pump-1", "online", "event");
}

#[test]
fn the_death_of_a_sparkplug_node_takes_its_devices_offline() {
    let dir = tempfile::tempdir().expect("a directory");
    let mut server = start(dir.path());
    let node = |server: &Server, session: u64| {
        let (topic, payload) = ("spBv1.0/plant/NDEATH/line-1", &death(session));
        let mut node = Gateway::connect(server, "line-1", Some(Will { topic, payload, retain: false }));
        node.publish("spBv1.0/plant/NBIRTH/line-1", &birth(0, session), false);
        node.publish("spBv1.0/plant/DBIRTH/line-1/oven", &birth(1, session), false);
        node
    };
    let first = node(&server, 1);
    let oven = wait_for_state(&server, "plant/line-1/oven", "online", "birth");
    assert_eq!((&oven["declared"], &oven["stream"]), (&json!(true), &json!("plant")));
    wait_for_state(&server, "plant/line-1", "online", "birth");
    server.wait_for_seal();
    server = server.kill_and_restart();
    assert_eq!(device(&server, "plant/line-1/oven"), oven, "what was known is known");
    drop(first);

    let mut second = node(&server, 2);
    wait_for_state(&server, "plant/line-1/oven", "online", "birth");
    second.publish("spBv1.0/plant/NBIRTH/line-1", &birth(0, 2), false);
    wait_for_state(&server, "plant/line-1/oven", "offline", "rebirth");
    wait_for_state(&server, "plant/line-1", "online", "birth");
    second.publish("spBv1.0/plant/DBIRTH/line-1/oven", &birth(1, 2), false);
    wait_for_state(&server, "plant/line-1/oven", "online", "birth");
    drop(second);
    wait_for_state(&server, "plant/line-1", "offline", "death");
    let dead = wait_for_state(&server, "plant/line-1/oven", "offline", "death");
    let events = server.number("SELECT count(*) FROM plant WHERE device_id = 'plant/line-1/oven'");
    assert_eq!((dead["events"].as_i64(), events), (Some(3), 3));
    server = server.kill_and_restart();
    assert_eq!(device(&server, "plant/line-1/oven"), dead);
}

#[test]
fn a_word_that_was_a_dead_letter_counts_as_of_its_arrival() {
    let dir = tempfile::tempdir().expect("a directory");
    let server = start(dir.path());
    let dead = |open: i64| {
        let deadline = Instant::now() + PATIENCE;
        while server.number("SELECT count(*) FROM dead WHERE status = 'open'") != open {
            assert!(Instant::now() < deadline, "{:?}", server.query("SELECT * FROM dead"));
            wait_a_little();
        }
    };
    for device in ["valve", "gate"] {
        server.publish(&format!("devices/{device}/status"), "bye");
    }
    dead(2);
    // A topic without a device is about nobody.
    server.publish("devices//status", "offline");
    server.publish("devices/valve/telemetry", &telemetry(0));
    server.wait_for("an event", |status| status["ingest"]["events"] == 1);
    server.apply(
        "kind: stream\nname: readings\ntopics: ['devices/{device_id}/telemetry']\nevent_time: {field: ts, unit: ms}\n\
         status: {topics: ['devices/{device_id}/status'], offline: [bye]}\n",
    );
    assert_eq!(
        server.iotctl(&["dead", "replay", "--all"]),
        "replayed 2, of which 0 are dead letters again\n"
    );
    dead(0);
    let gate = wait_for_state(&server, "gate", "offline", "status");
    let arrived = server.query("SELECT received_at FROM dead WHERE topic = 'devices/gate/status'");
    assert_eq!(gate["state_since"], arrived[0]["received_at"]);
    assert_eq!(device(&server, "valve")["state"], "unknown", "its event came after its word");
    assert_eq!(server.number("SELECT count(*) FROM devices WHERE device_id = ''"), 0);
}

#[test]
fn an_event_from_the_future_does_not_stay_the_newest() {
    let dir = tempfile::tempdir().expect("a directory");
    let mut server = start(dir.path());
    // In 2099, by a clock that is wrong; and a device that has sent nothing else.
    let future = "{\"ts\": 4070908800000}";
    let clock = [telemetry(0), future.to_owned(), telemetry(10), telemetry(20)];
    clock.iter().for_each(|payload| server.publish("devices/clock/telemetry", payload));
    server.publish("devices/dreamer/telemetry", future);
    server.wait_for("the events", |status| status["ingest"]["events"] == 5);
    let seen = |server: &Server| {
        let row = device(server, "clock");
        assert_eq!((&row["events"], &row["first_seen"]), (&json!(4), &json!("2025-10-09T08:53:20Z")));
        assert_eq!(row["last_seen"], "2025-10-09T08:53:40Z");
        let dreamer = device(server, "dreamer");
        assert_eq!((&dreamer["events"], &dreamer["last_seen"]), (&json!(1), &Value::Null));
        row["cadence_s"].clone()
    };
    assert_eq!(seen(&server), json!(10.0));
    server.wait_for_seal();
    server.kill();
    std::fs::remove_file(server.data_dir.join("wal/devices.ckpt")).expect("it was saved");
    server = server.restart();
    seen(&server);
}

#[test]
fn silence_makes_a_device_stale_and_an_event_ends_that() {
    let dir = tempfile::tempdir().expect("a directory");
    let server = start(dir.path());
    server.publish("fast/a", "{\"v\": 1}");
    let stale = wait_for_state(&server, "a", "stale", "silence");
    assert_eq!(stale["expected_cadence_s"], json!(0.4));
    server.publish("fast/a", "{\"v\": 2}");
    let back = wait_for_state(&server, "a", "online", "event");
    assert_eq!(back["events"], 2);
    assert!(back["state_since"].as_str() > stale["state_since"].as_str(), "{back} {stale}");
    // A declaration with another cadence counts more than the stream's.
    server.apply("kind: device\nname: a\nstream: fast\ncadence: 1h\n");
    pause(Duration::from_millis(1_500));
    wait_for_state(&server, "a", "online", "event");
    // Without any cadence nobody can tell.
    server.publish("devices/lonely/telemetry", &telemetry(0));
    let deadline = Instant::now() + PATIENCE;
    while device(&server, "lonely")["state"] != "unknown" {
        assert!(Instant::now() < deadline, "{}", device(&server, "lonely"));
        wait_a_little();
    }
}

#[test]
fn crashes_neither_lose_nor_double_what_devices_have_sent() {
    let dir = tempfile::tempdir().expect("a directory");
    let mut server = start(dir.path());
    for round in 0..5 {
        let mut gateway = Gateway::connect(&server, "crowd", None);
        for i in 0..200 {
            let topic = format!("devices/d{}/telemetry", i % 7);
            gateway.publish(&topic, telemetry(round * 1_000 + i).as_bytes(), false);
            if i % 20 == 0 {
                gateway.publish(&format!("devices/d{}/status", i % 7), b"1", false);
            }
        }
        // Some rounds end with everything in the tables, some with everything in the log.
        if round % 2 == 1 {
            server.wait_for_seal();
        }
        server = server.kill_and_restart();
    }
    let raw = "SELECT device_id, count(*) AS events, min(event_time) AS first_seen, max(event_time) AS last_seen, \
               min(_ingest_time) AS first_arrival, max(_ingest_time) AS last_arrival \
               FROM readings GROUP BY device_id ORDER BY device_id";
    let registry = "SELECT device_id, events, first_seen, last_seen, first_arrival, last_arrival FROM devices \
                    WHERE stream = 'readings' AND events > 0 ORDER BY device_id";
    assert_eq!(server.query(registry), server.query(raw));
    assert_eq!(server.number("SELECT sum(events)::bigint FROM devices"), 1_000);
    assert_eq!(server.number("SELECT count(*) FROM devices WHERE state = 'online'"), 7);
    // Without its file the registry begins with the tables and the log.
    server.kill();
    std::fs::remove_file(server.data_dir.join("wal/devices.ckpt")).expect("it was saved");
    server = server.restart();
    assert_eq!(server.query(registry), server.query(raw));
}

#[test]
fn devices_are_declared_listed_described_and_deleted() {
    let dir = tempfile::tempdir().expect("a directory");
    let mut server = start(dir.path());
    let north = |server: &Server| {
        let sql = "SELECT device_id FROM devices WHERE labels['site'] = 'north' ORDER BY device_id";
        server
            .iotctl(&["query", sql, "--format", "csv"])
            .lines()
            .skip(1)
            .map(str::to_owned)
            .collect::<Vec<_>>()
    };
    assert_eq!(north(&server), ["ghost/in the machine", "pump-1"]);
    let file = dir.path().join("catalog.yaml");
    let file = file.to_str().expect("utf-8");
    assert!(server.iotctl(&["apply", "-f", file]).contains("device/ghost/in the machine unchanged"));
    let more = dir.path().join("more.yaml");
    std::fs::write(&more, "kind: device\nname: ../../x%2F\nlabels: {site: north}\n---\nkind: device\nname: pump-1\nstream: readings\n")
        .expect("written");
    let more = more.to_str().expect("utf-8");
    let diff = server.iotctl(&["diff", "-f", more]);
    assert!(diff.contains("device/../../x%2F created") && diff.contains("device/pump-1 changed"), "{diff}");
    server.iotctl(&["apply", "-f", more]);
    server = server.kill_and_restart();
    // The catalog that the server is started with has put `pump-1` back as it was.
    assert_eq!(north(&server), ["../../x%2F", "ghost/in the machine", "pump-1"]);
    assert!(!dir.path().join("data/x%2F.yaml").exists());

    let list = server.iotctl(&["get", "devices"]);
    assert!(list.contains("ghost/in the machine") && list.contains("never_seen"), "{list}");
    let described = server.iotctl(&["describe", "device", "plant/line-1/oven", "--format", "json"]);
    let described: Value = serde_json::from_str(&described).expect("JSON");
    assert_eq!(described["streams"][0]["labels"]["site"], "south");
    assert!(described["definition"].as_str().is_some_and(|text| text.contains("plant/line-1/oven")));
    let unknown = server.run(&["describe", "device", "nobody"], "");
    assert!(unknown.code == 1 && unknown.stderr.contains("nobody"), "{}", unknown.stderr);

    assert_eq!(server.iotctl(&["delete", "device", "../../x%2F"]), "device/../../x%2F deleted\n");
    assert_eq!(north(&server), ["ghost/in the machine", "pump-1"]);
    let refused = server.run(&["delete", "stream", "readings"], "");
    assert!(refused.code == 1 && refused.stderr.contains("device `pump-1`"), "{}", refused.stderr);
    let lost = server.post_text("/v1/apply", "kind: device\nname: z\nstream: nowhere\n");
    assert!(lost["detail"].as_str().is_some_and(|detail| detail.contains("nowhere")), "{lost}");
}
