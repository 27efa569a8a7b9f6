//! What an external broker's session holds: a message is stored once, however many filters match it, whatever an earlier
//! process or the broker's own store have left there.

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use iot_tests::load::{Progress, assert_stored_once};
use iot_tests::{Mosquitto, PATIENCE, Server, iotctl, pause, python, run, wait_a_little};

use crate::crash::{loads, wait_for_rows, wait_for_subscription};

const READINGS: &str = "kind: stream\nname: readings\ntopics: [\"devices/{device_id}/telemetry\"]\n\
    event_time: {field: ts, unit: ms}\nfields: {source: text, n: bigint, temperature: double}\n";
const SETTINGS: &str = "ingest: {seal_age: 500ms, segment_bytes: 262144}\n";
/// A filter that covers that of the readings.
const OTHERS: &str = "---\nkind: stream\nname: others\ntopics: [\"{site}/{device_id}/telemetry\"]\n\
    event_time: {field: ts, unit: ms}\nfields: {source: text, n: bigint}\n";
/// A filter that covers that of the readings too, and overlaps in part with that of the others.
const WIDE: &str = "kind: stream\nname: wide\ntopics: [\"devices/{device_id}/#\"]\n\
    event_time: {field: ts, unit: ms}\nfields: {source: text, n: bigint}\n";

fn start(dir: &Path, settings: &str, catalog: &str, extra: &[&str]) -> Server {
    Server::with_catalog(dir, &format!("{SETTINGS}{settings}"), catalog, extra)
}

fn publish(mosquitto: &Mosquitto, topic: &str, payload: &str, extra: &[&str]) {
    iotctl(&[&["publish", topic, payload, "--mqtt", &mosquitto.url()][..], extra].concat());
}

fn wait_for_count(server: &Server, stream: &str, rows: i64) {
    let deadline = Instant::now() + PATIENCE;
    while server.number(&format!("SELECT count(*) FROM {stream}")) < rows {
        assert!(Instant::now() < deadline, "it does not arrive: {}", server.status());
        wait_a_little();
    }
}

/// Waits for so many rows, and whether more of them come.
fn assert_count(server: &Server, stream: &str, rows: i64) {
    wait_for_count(server, stream, rows);
    pause(Duration::from_millis(500));
    assert_eq!(server.number(&format!("SELECT count(*) FROM {stream}")), rows, "{}", server.status());
}

/// Readings of a stream that are there more than once.
fn doubled(server: &Server, stream: &str) -> i64 {
    server.number(&format!(
        "SELECT count(*) FROM (SELECT source, n FROM {stream} GROUP BY source, n HAVING count(*) > 1)"
    ))
}

#[test]
fn a_message_that_several_filters_match_is_stored_once() {
    if python("paho.mqtt.client").is_none() {
        return;
    }
    let Some(mut mosquitto) = Mosquitto::start() else { return };
    let dir = tempfile::tempdir().expect("a directory");
    let url = mosquitto.url();
    let server = start(dir.path(), "", &format!("{READINGS}{OTHERS}"), &["--broker", &url]);
    wait_for_subscription(&server);
    let loads = loads(mosquitto.port, 2);
    let go_on = || {
        let acked = loads.each_ref().map(|load| load.progress().acked());
        loads.iter().zip(acked).for_each(|(load, acked)| load.wait_for_acked(acked + 300));
    };
    go_on();
    server.apply(WIDE);
    go_on();
    let server = server.kill_and_restart();
    go_on();
    mosquitto.stop();
    pause(Duration::from_millis(300));
    mosquitto.start_again();
    go_on();
    server.iotctl(&["delete", "stream", "wide"]);
    go_on();
    server.apply(WIDE);
    go_on();
    let sent: Vec<(&str, Progress)> = loads.into_iter().map(|load| (load.name(), load.finish())).collect();
    wait_for_rows(&server, &sent);
    pause(Duration::from_millis(500));
    for (name, progress) in &sent {
        assert_stored_once(&server, name, progress);
    }
    let rows = |stream| server.number(&format!("SELECT count(*) FROM {stream}"));
    assert_eq!(rows("others"), rows("readings"), "everybody has what they want");
    assert!(rows("wide") > 0, "{}", server.status());
    assert_eq!((doubled(&server, "others"), doubled(&server, "wide")), (0, 0));
    let broker = server.status()["broker"].clone();
    assert!(broker["copies"].as_u64() > Some(0), "some filters overlap in part: {broker}");
}

#[test]
fn what_is_retained_is_stored_once_and_not_again_after_each_start() {
    let Some(mosquitto) = Mosquitto::start() else { return };
    let dir = tempfile::tempdir().expect("a directory");
    publish(&mosquitto, "devices/a/telemetry", r#"{"n":1,"ts":1760000000000}"#, &["--retain"]);
    let server = start(dir.path(), "", READINGS, &["--broker", &mosquitto.url()]);
    assert_count(&server, "readings", 1);
    let server = server.stop_and_restart();
    wait_for_subscription(&server);
    let server = server.kill_and_restart();
    wait_for_subscription(&server);
    assert_count(&server, "readings", 1);
}

#[test]
fn a_subscription_that_a_killed_broker_has_forgotten_is_made_again() {
    let Some(mut mosquitto) = Mosquitto::start() else { return };
    let dir = tempfile::tempdir().expect("a directory");
    let server = start(dir.path(), "", READINGS, &["--broker", &mosquitto.url()]);
    wait_for_subscription(&server);
    // It saves its store, with our session, and is killed after more was subscribed to.
    let _ = Command::new("kill").args(["-USR1", &mosquitto.pid().to_string()]).status();
    pause(Duration::from_millis(500));
    server.apply("kind: stream\nname: extra\ntopics: [\"extra/{device_id}\"]\n");
    pause(Duration::from_millis(500));
    publish(&mosquitto, "extra/d", r#"{"n":1}"#, &[]);
    wait_for_count(&server, "extra", 1);
    mosquitto.kill();
    server.wait_for("the end of the connection", |status| status["broker"]["connected"] == false);
    mosquitto.start_again();
    wait_for_subscription(&server);
    publish(&mosquitto, "extra/d", r#"{"n":2}"#, &[]);
    assert_count(&server, "extra", 2);
}

#[test]
fn filters_of_an_earlier_process_are_left() {
    let Some(mosquitto) = Mosquitto::start() else { return };
    let dir = tempfile::tempdir().expect("a directory");
    let mut rows = 0;
    for (more, filters_of) in [
        (", topics: [\"+/a/#\"]", "a wide filter"),
        (", topics: [\"devices/+/telemetry\"]", "a narrower one"),
        (", share: one", "a group"),
        (", share: two", "another group"),
        ("", "nobody else"),
    ] {
        let broker = format!("broker: {{url: \"{}\"{more}}}\n", mosquitto.url());
        let server = start(dir.path(), &broker, READINGS, &[]);
        wait_for_subscription(&server);
        publish(&mosquitto, "devices/a/telemetry", &format!(r#"{{"n":{rows},"ts":1760000000000}}"#), &[]);
        rows += 1;
        assert_count(&server, "readings", rows);
        assert!(server.stop(), "with {filters_of}");
    }
}

#[test]
fn a_refused_subscription_is_told() {
    let (near, far) = (tempfile::tempdir().expect("a directory"), tempfile::tempdir().expect("a directory"));
    let text = |path: &Path| path.to_str().expect("utf-8").to_owned();
    let (users, password) = (text(&far.path().join("users")), text(&far.path().join("password")));
    std::fs::write(&password, "hunter2\n").expect("written");
    assert_eq!(run(&["user", "add", "oven-1", "--file", &users], "hunter2\n").code, 0);
    let other = Server::start(&far.path().join("data"), &["--users", &users]);
    let login = ["--broker-user", "oven-1", "--broker-password-file", &password];
    let server = start(near.path(), "", READINGS, &[&["--broker", &other.broker()][..], &login].concat());
    server.wait_for("the refusal", |status| status["broker"]["refused"].is_string());
    let (status, reason) = server.get_text("/readyz");
    assert_eq!(status, 503);
    assert!(reason.contains("refuses the subscription to `devices/+/telemetry`"), "{reason}");
}
