//! SIGKILL at random moments under load: what was acknowledged is there, once.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::{Duration, Instant};

use iot_tests::load::{Load, LoadOptions, Progress, assert_stored_once};
use iot_tests::{Mosquitto, PATIENCE, Server, pause, python, wait_a_little};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// A stream, a view whose batches run often, and a rule on each: so that crashes meet seals, batch commits,
/// checkpoints and trims of the log.
const CATALOG: &str = r#"
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
    let (settings, catalog) = (dir.join("serve.yaml"), dir.join("catalog.yaml"));
    std::fs::write(&settings, SETTINGS).expect("written");
    std::fs::write(&catalog, CATALOG).expect("written");
    let path = |path: &Path| path.to_str().expect("utf-8").to_owned();
    let (settings, catalog) = (path(&settings), path(&catalog));
    let mut args = vec!["--config", settings.as_str(), "--catalog", catalog.as_str()];
    args.extend(extra);
    Server::start(&dir.join("data"), &args)
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
    assert_eq!(twice, Vec::<serde_json::Value>::new(), "transitions were recorded twice");
}

/// The rule on the stream fired and resolved once for each time that a device's temperature rose and fell.
fn assert_all_alerts(server: &Server) {
    let turns = |condition: &str| {
        let sql = format!(
            "SELECT device_id, event_time AS at FROM (SELECT device_id, event_time, temperature AS t, \
             lag(temperature, 1, 0) OVER (PARTITION BY device_id ORDER BY _seq) AS prior FROM readings) WHERE {condition}"
        );
        moments(server, &sql)
    };
    for (state, condition) in [("firing", "t > 80 AND prior <= 80"), ("resolved", "t <= 80 AND prior > 80")] {
        let alerts = format!("SELECT device_id, at FROM alerts WHERE rule = 'hot' AND state = '{state}'");
        let (expected, found) = (turns(condition), moments(server, &alerts));
        let missing: Vec<_> = expected.difference(&found).collect();
        let surplus: Vec<_> = found.difference(&expected).collect();
        assert!(
            missing.is_empty() && surplus.is_empty(),
            "{state}: missing {missing:?}, surplus {surplus:?}"
        );
    }
}

/// Devices and times.
fn moments(server: &Server, sql: &str) -> BTreeSet<(String, String)> {
    let text = |value: &serde_json::Value| value.as_str().unwrap_or_default().to_owned();
    server.query(sql).iter().map(|row| (text(&row["device_id"]), text(&row["at"]))).collect()
}

#[expect(clippy::disallowed_methods, reason = "how long a test runs is for whoever runs it to say")]
fn runs(default: u32) -> u32 {
    std::env::var("IOT_CRASH_RUNS").ok().and_then(|runs| runs.parse().ok()).unwrap_or(default)
}
