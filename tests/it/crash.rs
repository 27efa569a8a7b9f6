//! SIGKILL at random moments under load: what was acknowledged is there, once.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::{Duration, Instant};

use iot_tests::load::{Load, LoadOptions, Progress, assert_stored_once};
use iot_tests::{Mosquitto, PATIENCE, Server, pause, python, wait_a_little};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde_json::Value;

/// A stream, a view whose batches run often, and a rule on each: so that crashes meet seals, batch commits,
/// checkpoints and trims of the log.
pub(crate) const CATALOG: &str = r#"
kind: stream
name: readings
topics: ["devices/{device_id}/telemetry"]
event_time: {field: ts, unit: ms}
fields: {source: text, n: bigint, temperature: double}
---
kind: view
name: by_second
sql: |
  SELECT device_id, tumble(event_time, INTERVAL '1 second') AS window_start, count(*) AS c, sum(n) AS s,
         avg(temperature) AS mean, max(temperature) AS hottest, count(DISTINCT source) AS sources
  FROM readings GROUP BY device_id, window_start
batch: {every: 2s}
---
kind: rule
name: hot
on: readings
when: temperature > 80
clear_when: temperature < 75
severity: critical
---
kind: rule
name: hot_second
on: by_second
when: hottest > 80
"#;
const SETTINGS: &str = "ingest: {seal_age: 500ms, segment_bytes: 262144}\n";

/// How many crashes; `IOT_CRASH_RUNS` says otherwise.
const RUNS: u32 = 50;
/// Every so many crashes the view is recomputed and compared.
const RUNS_PER_VERIFY: u32 = 5;

#[test]
fn no_crash_loses_or_doubles_an_acknowledged_message() {
    if python("paho.mqtt.client").is_none() {
        return;
    }
    let dir = tempfile::tempdir().expect("a directory");
    let mut server = start(dir.path(), &[]);
    let port = server.mqtt.expect("the broker is embedded").port();
    let loads = loads(port, 1);
    let mut chance = ChaCha8Rng::seed_from_u64(7);
    let (runs, began) = (runs(RUNS), Instant::now());
    let mut slowest = Duration::ZERO;
    for run in 1..=runs {
        pause(Duration::from_millis(chance.random_range(50..1500)));
        server.kill();
        let acked: Vec<(&str, Progress)> = loads.iter().map(|load| (load.name(), load.progress())).collect();
        let restart = Instant::now();
        server = server.restart();
        slowest = slowest.max(restart.elapsed());
        for (name, progress) in &acked {
            assert_stored_once(&server, name, progress);
        }
        assert_alerts_once(&server);
        if run % RUNS_PER_VERIFY == 0 {
            assert_eq!(server.verify(), 0, "differences after crash {run}");
        }
    }
    let sent: Vec<(&str, Progress)> = loads.into_iter().map(|load| (load.name(), load.finish())).collect();
    wait_for_rows(&server, &sent);
    check_at_the_end(&server, &sent);
    let (elapsed, alerts) = (began.elapsed(), server.status()["alerts"]["latest"].clone());
    eprintln!("{runs} crashes in {elapsed:.1?}, slowest start {slowest:.1?}, {alerts} transitions");
    report(&sent);
}

#[test]
fn no_crash_loses_or_doubles_what_an_external_broker_has() {
    if python("paho.mqtt.client").is_none() {
        return;
    }
    let Some(mosquitto) = Mosquitto::start() else { return };
    let dir = tempfile::tempdir().expect("a directory");
    let mut server = start(dir.path(), &["--broker", &mosquitto.url()]);
    wait_for_subscription(&server);
    let loads = loads(mosquitto.port, 1);
    let mut chance = ChaCha8Rng::seed_from_u64(11);
    for _ in 0..runs(10) {
        pause(Duration::from_millis(chance.random_range(200..1500)));
        server = server.kill_and_restart();
    }
    let sent: Vec<(&str, Progress)> = loads.into_iter().map(|load| (load.name(), load.finish())).collect();
    wait_for_rows(&server, &sent);
    check_at_the_end(&server, &sent);
    report(&sent);
}

/// A server with the catalog and settings of these tests.
pub(crate) fn start(dir: &Path, extra: &[&str]) -> Server {
    Server::with_catalog(dir, SETTINGS, CATALOG, extra)
}

/// The two publishers: another language, another protocol version, another library.
pub(crate) fn loads(port: u16, qos: u8) -> [Load; 2] {
    let options = |name, rate| LoadOptions { port, name, rate, qos, stretch: 200 };
    [Load::paho(&options("paho", 800)).expect("it was asked for"), Load::rumqttc(&options("rumqttc", 1_000))]
}

/// Waits until the server's subscription at an external broker is in force.
pub(crate) fn wait_for_subscription(server: &Server) {
    server.wait_for("the connection", |status| status["broker"]["connected"] == true);
    // The subscription follows the connection by some milliseconds, and nothing tells when it is there.
    pause(Duration::from_millis(500));
}

/// Waits until as many rows are there as were sent: what an external broker has arrives in its own time.
pub(crate) fn wait_for_rows(server: &Server, sent: &[(&str, Progress)]) {
    let expected: u64 = sent.iter().map(|(_, progress)| progress.sent).sum();
    let deadline = Instant::now() + PATIENCE;
    loop {
        let rows = server.number("SELECT count(*) FROM readings") as u64;
        if rows >= expected {
            return;
        }
        assert!(Instant::now() < deadline, "{rows} of {expected} rows have arrived");
        wait_a_little();
    }
}

/// Everything that was sent is there once, in the raw table, in the view and in the alerts.
pub(crate) fn check_at_the_end(server: &Server, sent: &[(&str, Progress)]) {
    // A copy that is still on its way would come now.
    pause(Duration::from_millis(500));
    for (name, progress) in sent {
        assert_stored_once(server, name, progress);
    }
    let total: u64 = sent.iter().map(|(_, progress)| progress.sent).sum();
    assert_eq!(server.number("SELECT count(*) FROM readings") as u64, total);
    assert_eq!(server.number("SELECT sum(c) FROM by_second") as u64, total);
    assert_eq!(server.verify(), 0, "differences at the end");
    assert_alerts_once(server);
    assert_all_alerts(server);
}

pub(crate) fn report(sent: &[(&str, Progress)]) {
    for (name, Progress { sent, given_up, .. }) in sent {
        eprintln!("`{name}` sent {sent} readings, {given_up} of them anew after a lost session");
    }
}

/// Transitions are numbered without gaps, and no alert enters a state twice.
fn assert_alerts_once(server: &Server) {
    let rows = server
        .query("SELECT count(*) AS c, count(DISTINCT id) AS ids, min(id) AS lo, max(id) AS hi FROM alerts");
    let number = |name: &str| rows[0][name].as_i64().unwrap_or(0);
    let (count, newest) = (number("c"), number("hi"));
    assert_eq!(
        (count, number("ids"), number("lo")),
        (newest, newest, newest.min(1)),
        "the numbers have gaps"
    );
    let twice =
        server.query("SELECT alert_id, state, count(*) AS c FROM alerts GROUP BY 1, 2 HAVING count(*) > 1");
    assert_eq!(twice, Vec::<Value>::new(), "transitions were recorded twice");
}

/// The rule on the stream fired and resolved as it does when its definition is read over the log without a crash.
///
/// A client that comes back may overtake what it has to send again. A reading that is older than what its alert
/// has seen changes nothing, and one that is older than the end of the last alert begins none.
fn assert_all_alerts(server: &Server) {
    let log = server.query("SELECT device_id, event_time, temperature FROM readings ORDER BY _seq, _index");
    let (mut active, mut ended) = (BTreeMap::new(), BTreeMap::new());
    let mut expected = BTreeSet::new();
    for row in &log {
        let (device, time) = (text(&row["device_id"]), time(&row["event_time"]));
        let is_hot = row["temperature"].as_f64() > Some(80.0);
        match active.get_mut(&device) {
            Some(last) if time < *last => {}
            Some(last) if is_hot => *last = time,
            Some(_) => {
                active.remove(&device);
                ended.insert(device.clone(), time);
                expected.insert((device, time, "resolved".to_owned()));
            }
            None if is_hot && ended.get(&device).is_none_or(|end| time >= *end) => {
                active.insert(device.clone(), time);
                expected.insert((device, time, "firing".to_owned()));
            }
            None => {}
        }
    }
    let alerts = server.query("SELECT device_id, at, state FROM alerts WHERE rule = 'hot'");
    let found: BTreeSet<_> =
        alerts.iter().map(|row| (text(&row["device_id"]), time(&row["at"]), text(&row["state"]))).collect();
    let missing: Vec<_> = expected.difference(&found).collect();
    let surplus: Vec<_> = found.difference(&expected).collect();
    assert!(missing.is_empty() && surplus.is_empty(), "missing {missing:?}, surplus {surplus:?}");
}

/// Microseconds since 1970.
fn time(value: &Value) -> i64 {
    let time = chrono::DateTime::parse_from_rfc3339(value.as_str().unwrap_or_default());
    time.unwrap_or_else(|e| panic!("{value}: {e}")).timestamp_micros()
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

#[expect(clippy::disallowed_methods, reason = "how long a test runs is for whoever runs it to say")]
pub(crate) fn runs(default: u32) -> u32 {
    std::env::var("IOT_CRASH_RUNS").ok().and_then(|runs| runs.parse().ok()).unwrap_or(default)
}
