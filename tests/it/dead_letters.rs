//! Dead letters: seen, mended and replayed once, dropped with a reason, and gone after their time.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use iot_tests::{PATIENCE, Server, pause, run, wait_a_little};
use serde_json::{Value, json};

/// `v` must be a number, and where it is not the message is dead.
const STRICT: &str = "kind: stream\nname: readings\ntopics: ['devices/{device_id}/telemetry']\n\
                      fields: {v: double}\n";
/// A field that is not declared kills the message.
const REJECTING: &str = "kind: stream\nname: readings\ntopics: ['devices/{device_id}/telemetry']\n\
                         fields: {v: integer}\nunknown_fields: reject\n";
/// And now it does not.
const MENDED: &str = "kind: stream\nname: readings\ntopics: ['devices/{device_id}/telemetry']\n\
                      fields: {v: integer}\n";

fn server(data_dir: &std::path::Path, catalog: &str, extra: &[&str]) -> Server {
    let server = Server::start(&data_dir.join("data"), extra);
    server.apply(catalog);
    server
}

/// Publishes these payloads in order.
fn publish(server: &Server, payloads: &[&str]) {
    payloads.iter().for_each(|payload| server.publish("devices/a/telemetry", payload));
}

fn dead(server: &Server, what: &str) -> Vec<Value> {
    server.query(&format!("SELECT {what} FROM dead ORDER BY _seq, stream"))
}

fn id(server: &Server, payload: &str) -> String {
    let sql = format!(
        "SELECT _node, _seq FROM dead WHERE payload = CAST('{payload}' AS BYTEA) AND retry_of IS NULL"
    );
    let row = server.query(&sql).pop().expect("it is there");
    format!("{}:{}", row["_node"].as_str().expect("a node"), row["_seq"])
}

fn resolve(server: &Server, action: &str, body: Value) -> Value {
    server.post_text(&format!("/v1/dead/{action}"), &body.to_string())
}

#[test]
fn a_dead_letter_is_shown_with_its_bytes() {
    let dir = tempfile::tempdir().expect("a directory");
    let server = server(dir.path(), STRICT, &[]);
    publish(&server, &[r#"{"v":"hot"}"#, "\u{1}\u{2}not json"]);
    let list = server.iotctl(&["dead", "list", "--status", "open", "--format", "json"]);
    let list: Vec<Value> = serde_json::from_str(&list).expect("JSON");
    assert_eq!(list.len(), 2, "{list:?}");
    assert_eq!(list[1]["bytes"], 11);
    let (text, binary) = (id(&server, r#"{"v":"hot"}"#), id(&server, "\u{1}\u{2}not json"));
    let shown = server.iotctl(&["dead", "show", &text]);
    assert!(shown.contains("payload (11 bytes):\n{\"v\":\"hot\"}"), "{shown}");
    let shown = server.iotctl(&["dead", "show", &binary]);
    assert!(shown.contains("00000000  01 02 6e 6f"), "{shown}");
    assert_eq!(server.iotctl(&["dead", "show", &binary, "--raw"]), "\u{1}\u{2}not json");
    let missing = server.run(&["dead", "show", "local:999"], "");
    assert!(missing.code == 1 && missing.stderr.contains("no dead letter"), "{}", missing.stderr);
    assert_eq!(server.get(&format!("/v1/dead/{text}"))["rows"][0]["stream"], "readings");
    assert_eq!(server.get("/v1/dead?limit=1")["rows"].as_array().map(Vec::len), Some(1));
    assert_eq!(server.get_text("/v1/dead/local:999").0, 404);
}

#[test]
fn what_was_mended_is_replayed_once_for_the_stream_that_lacked_it() {
    let dir = tempfile::tempdir().expect("a directory");
    let other = "kind: stream\nname: everything\ntopics: ['devices/{device_id}/#']\n";
    let server = server(dir.path(), &format!("{REJECTING}---\n{other}"), &[]);
    publish(&server, &[r#"{"v":1,"w":2}"#, r#"{"v":3}"#, "broken"]);
    // `everything` took the first, and nobody can take what is no JSON.
    assert_eq!(dead(&server, "stream").len(), 3);
    server.apply(MENDED);
    let first = id(&server, r#"{"v":1,"w":2}"#);
    let out = server.iotctl(&["dead", "replay", "--stream", "readings", "--note", "w is welcome"]);
    assert_eq!(out, "replayed 2, of which 1 are dead letters again\n");
    let again = server.iotctl(&["dead", "replay", &first]);
    assert!(again.starts_with("replayed 0") && again.contains("replayed already"), "{again}");
    assert_eq!(server.number("SELECT count(*) FROM readings"), 2);
    assert_eq!(server.number("SELECT count(*) FROM everything"), 2, "the other stream had it already");
    let left = server.query("SELECT stream, retry_of FROM dead WHERE status = 'open' ORDER BY stream");
    assert_eq!(left.len(), 2, "{left:?}");
    assert_eq!((&left[0]["stream"], &left[0]["retry_of"]), (&json!("everything"), &Value::Null));
    assert_eq!(left[1]["stream"], "readings");
    assert!(left[1]["retry_of"].is_string(), "{left:?}");
    let both = server.run(&["dead", "show", left[1]["retry_of"].as_str().expect("an id")], "");
    assert!(both.code == 1 && both.stderr.contains("several streams"), "{}", both.stderr);
}

#[test]
fn a_replayed_message_keeps_its_arrival_and_a_second_failure_names_the_first_letter() {
    let dir = tempfile::tempdir().expect("a directory");
    let server = server(dir.path(), REJECTING, &[]);
    publish(&server, &[r#"{"v":1,"w":2}"#, "broken", r#"{"v":3}"#]);
    let (good, bad) = (id(&server, r#"{"v":1,"w":2}"#), id(&server, "broken"));
    let arrived =
        server.query("SELECT received_at FROM dead ORDER BY _seq LIMIT 1")[0]["received_at"].clone();
    pause(Duration::from_millis(20));

    // Nothing is mended yet: it is dead again.
    let report = resolve(&server, "replay", json!({"ids": [good], "by": "me"}));
    assert_eq!((&report["done"], &report["dead_again"]), (&json!(1), &json!(1)), "{report}");
    server.apply(MENDED);
    let report = resolve(&server, "replay", json!({"all": true, "note": "w is welcome"}));
    assert_eq!((&report["done"], &report["dead_again"]), (&json!(2), &json!(1)), "{report}");
    assert_eq!(server.number("SELECT count(*) FROM readings"), 2);
    let row = server.query("SELECT event_time, w FROM readings WHERE v = 1").pop().expect("it is stored");
    assert_eq!((&row["event_time"], &row["w"]), (&arrived, &json!(2)), "it happened when it arrived first");
    let firsts: BTreeSet<String> = dead(&server, "retry_of")
        .iter()
        .filter_map(|letter| letter["retry_of"].as_str().map(str::to_owned))
        .collect();
    assert_eq!(firsts, BTreeSet::from([good, bad]));
    assert_eq!(server.number("SELECT count(*) FROM dead WHERE status = 'open'"), 1);
    assert_eq!(server.verify(), 0);

    // Everything is as it was after a restart, whether or not it was sealed before.
    let before = dead(&server, "*");
    let server = server.kill_and_restart();
    assert_eq!(dead(&server, "*"), before);
    let server = server.stop_and_restart();
    assert_eq!(dead(&server, "*"), before);
    assert_eq!(server.number("SELECT count(*) FROM readings"), 2);
}

#[test]
fn a_letter_is_dropped_with_a_reason_and_stays_in_the_list() {
    let dir = tempfile::tempdir().expect("a directory");
    let server = server(dir.path(), STRICT, &[]);
    publish(&server, &["one", "two"]);
    let one = id(&server, "one");
    let nothing = resolve(&server, "drop", json!({"ids": [one], "note": " "}));
    assert_eq!(nothing["type"], "urn:iot:problem:invalid-request", "{nothing}");
    for body in [json!({}), json!({"ids": ["local:999"]}), json!({"where": "no_such_column = 1"})] {
        let refused = resolve(&server, "replay", body);
        assert!(
            refused["type"].as_str().is_some_and(|kind| kind.starts_with("urn:iot:problem")),
            "{refused}"
        );
    }
    let out = server.iotctl(&["dead", "drop", &one, "--reason", "a test of the fitter's", "--by", "ann"]);
    assert_eq!(out, "dropped 1\n");
    let rows = server.query("SELECT status, note, resolved_by, resolved_at FROM dead WHERE status <> 'open'");
    assert_eq!(rows.len(), 1);
    assert_eq!(
        (&rows[0]["note"], &rows[0]["resolved_by"]),
        (&json!("a test of the fitter's"), &json!("ann"))
    );
    // It is done with: a replay of everything leaves it alone.
    let report = resolve(&server, "replay", json!({"all": true}));
    assert_eq!(report["done"], 1, "{report}");
    let usage = run(&["dead", "drop", "--reason", "x", "--url", &server.url()], "");
    assert_eq!(usage.code, 2, "{}", usage.stderr);
}

#[test]
fn half_a_payload_is_not_replayed() {
    let dir = tempfile::tempdir().expect("a directory");
    let config = dir.path().join("config.yaml");
    std::fs::write(&config, "ingest: {max_payload_bytes: 20}\n").expect("written");
    let server = server(dir.path(), STRICT, &["--config", config.to_str().expect("utf-8")]);
    publish(&server, &[r#"{"v":1,"text":"much too long"}"#]);
    let report = resolve(&server, "replay", json!({"all": true}));
    assert_eq!((&report["done"], &report["skipped"]), (&json!(0), &json!(1)), "{report}");
    assert!(report["reasons"][0].as_str().is_some_and(|why| why.contains("only the beginning")), "{report}");
    assert_eq!(dead(&server, "cut_from")[0]["cut_from"], 30);
}

#[test]
fn dead_letters_expire_with_what_was_done_about_them() {
    let dir = tempfile::tempdir().expect("a directory");
    let config = dir.path().join("config.yaml");
    std::fs::write(&config, "ingest: {seal_age: 200ms}\n").expect("written");
    let flags = ["--config", config.to_str().expect("utf-8"), "--dead-retention", "3s"];
    let server = server(dir.path(), STRICT, &flags);
    publish(&server, &["one", "two"]);
    resolve(&server, "drop", json!({"ids": [id(&server, "one")], "note": "x"}));
    assert_eq!(dead(&server, "status").len(), 2);
    let deadline = Instant::now() + PATIENCE;
    while server.number("SELECT count(*) FROM dead") > 0 {
        assert!(Instant::now() < deadline, "they are still there: {:?}", dead(&server, "*"));
        pause(Duration::from_millis(500));
    }
    publish(&server, &["three"]);
    assert_eq!(dead(&server, "status")[0]["status"], "open");
}

/// Killed in the middle of a replay again and again; asked again until nothing is open.
#[test]
fn a_replay_that_is_killed_doubles_nothing_and_forgets_nothing() {
    const LETTERS: usize = 3_000;
    let dir = tempfile::tempdir().expect("a directory");
    let config = dir.path().join("config.yaml");
    std::fs::write(&config, "ingest: {seal_age: 50ms}\n").expect("written");
    let mut server = server(dir.path(), REJECTING, &["--config", config.to_str().expect("utf-8")]);
    let lines: String = (0..LETTERS).map(|v| format!("{{\"v\":{v},\"w\":1}}\n")).collect();
    let file = dir.path().join("lines.jsonl");
    std::fs::write(&file, lines).expect("written");
    let topic = "devices/a/telemetry";
    let replay = ["replay", file.to_str().expect("utf-8"), "--topic", topic, "--mqtt", &server.broker()];
    let ran = run(&replay, "");
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    assert_eq!(server.number("SELECT count(*) FROM dead"), LETTERS as i64);
    server.apply(MENDED);

    let (mut kills, mut stored) = (0, Vec::new());
    for round in 0u64.. {
        let url = server.url();
        let asked = std::thread::spawn(move || run(&["dead", "replay", "--all", "--url", &url], ""));
        pause(Duration::from_millis(60 + 35 * round));
        if asked.is_finished() || round > 30 {
            let ran = asked.join().expect("it ran");
            assert_eq!(ran.code, 0, "{}", ran.stderr);
            break;
        }
        server = server.kill_and_restart();
        let _ = asked.join();
        kills += 1;
        stored.push(server.number("SELECT count(*) FROM readings"));
        assert_eq!(
            server.number("SELECT count(*) FROM readings"),
            server.number("SELECT count(*) FROM dead WHERE status = 'replayed'"),
            "a letter is replayed if and only if its event is there"
        );
    }
    eprintln!("{kills} kills; events after each: {stored:?}");
    assert!(stored.iter().any(|n| *n > 0 && *n < LETTERS as i64), "no kill was in the middle: {stored:?}");
    let deadline = Instant::now() + PATIENCE;
    while server.number("SELECT count(*) FROM dead WHERE status = 'open'") > 0 {
        assert!(Instant::now() < deadline, "some are open");
        server.iotctl(&["dead", "replay", "--all"]);
        wait_a_little();
    }
    let counts = server.query("SELECT count(*) AS n, count(DISTINCT v) AS d FROM readings");
    assert_eq!((&counts[0]["n"], &counts[0]["d"]), (&json!(LETTERS), &json!(LETTERS)));
    assert_eq!(server.number("SELECT count(*) FROM dead"), LETTERS as i64);
}
