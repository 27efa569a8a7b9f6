//! `replay --from-raw`: a rule that came late has, in the end, what a rule from the start has.

use std::path::Path;
use std::time::Duration;

use iot_tests::{Server, pause};
use serde_json::{Value, json};

const SETTINGS: &str = "ingest: {seal_age: 400ms, segment_bytes: 16384}\n";
const DATA: &str = r#"
kind: stream
name: readings
topics: ["devices/{device_id}/telemetry"]
event_time: {field: ts, unit: ms}
allowed_lateness: 30s
fields: {temperature: double}
---
kind: view
name: minutes
sql: >
  SELECT device_id, tumble(event_time, INTERVAL '1 minute') AS w, max(temperature) AS hi, count(*) AS n
  FROM readings GROUP BY device_id, w
"#;
const RULES: &str = r#"
kind: rule
name: hot
on: readings
when: temperature > 70
for: 20s
keep_firing_for: 15s
severity: critical
labels: {team: plant}
annotations: {summary: "{device_id} is at {temperature} C"}
---
kind: rule
name: latched
on: readings
when: temperature > 80
clear_when: temperature < 40
---
kind: rule
name: hot_minute
on: minutes
when: hi > 75 AND n > 2
annotations: {summary: "{device_id}: {hi}"}
"#;

const DEVICES: usize = 6;

fn start(dir: &Path, catalog: &str) -> Server {
    std::fs::create_dir(dir).expect("a directory");
    Server::with_catalog(dir, SETTINGS, catalog, &[])
}

/// What the devices send in one step: five seconds after the step before, every now and then a reading that is late.
fn message(step: u64) -> String {
    let reading = |device: usize| {
        let wave = (step as f64 / (7.0 + device as f64)).sin() * 40.0 + 50.0;
        let noise = ((step * 7_919 + device as u64 * 104_729) % 23) as f64 - 11.0;
        let late = if (step + device as u64 * 5).is_multiple_of(17) { 42_000 } else { 0 };
        let ts = 1_760_000_000_000 + step * 5_000 - late + device as u64;
        json!({ "device_id": format!("d{device}"), "ts": ts, "temperature": (wave + noise).round() })
            .to_string()
            + "\n"
    };
    (0..DEVICES).map(reading).collect()
}

/// Sends the steps, one message each, and waits until they are evaluated.
fn send(server: &Server, steps: std::ops::Range<u64>) {
    for step in steps {
        server.write("readings", &message(step));
    }
    let written = server.number("SELECT max(_seq) FROM readings");
    server.wait_for("the rules to have seen everything", |status| {
        status["speed"]["processed"]["local"].as_i64() >= Some(written)
    });
}

/// All transitions without what tells when and where they were recorded.
fn transitions(server: &Server, more: &str) -> Vec<Value> {
    server.query(&format!(
        "SELECT rule, device_id, started_at, at, state, previous, alert_id, severity, labels, annotations, \"values\"
         FROM alerts {more} ORDER BY rule, device_id, started_at, at, state"
    ))
}

/// Where the alerts stand: id and state of the newest transition of each.
fn standing(server: &Server) -> Vec<String> {
    let list = server.get("/v1/alerts?limit=1000");
    let state = |alert: &Value| format!("{} {}", alert["alert_id"], alert["state"]);
    let mut standing: Vec<String> = list["alerts"].as_array().expect("a list").iter().map(state).collect();
    standing.sort_unstable();
    standing
}

fn replay(server: &Server, more: &[&str]) -> Vec<Value> {
    let args = ["replay", "--from-raw", "readings", "--report", "json"];
    let text = server.iotctl(&[&args, more].concat());
    serde_json::from_str(&text).expect("JSON")
}

fn total(report: &[Value], what: &str) -> u64 {
    report.iter().map(|rule| rule[what].as_u64().expect("a number")).sum()
}

#[test]
fn a_rule_that_comes_late_ends_up_where_a_rule_from_the_start_is() {
    let dir = tempfile::tempdir().expect("a directory");
    let first = start(&dir.path().join("first"), &format!("{DATA}---{RULES}"));
    let mut late = start(&dir.path().join("late"), DATA);
    send(&first, 0..150);
    send(&late, 0..100);
    late.wait_for_seal();
    send(&late, 100..150);
    late.apply(RULES);

    let dry = replay(&late, &["--dry-run"]);
    assert_eq!(late.number("SELECT count(*) FROM alerts"), 0, "a dry run records nothing");
    let report = replay(&late, &[]);
    for (dry, done) in dry.iter().zip(&report) {
        assert_eq!(dry, done, "a dry run says what would be done");
    }
    assert_eq!(total(&report, "alerts"), total(&report, "recorded"));
    let expect = transitions(&first, "");
    assert!(expect.len() > 100 && total(&report, "active") > 0, "{} transitions, {report:?}", expect.len());
    assert_eq!(transitions(&late, ""), expect);
    assert_eq!(standing(&late), standing(&first));
    let news = "WHERE NOT historical";
    let active =
        "WHERE alert_id NOT IN (SELECT alert_id FROM alerts WHERE state IN ('resolved', 'inactive'))";
    assert_eq!(transitions(&late, news), transitions(&first, active), "only what goes on is news");

    // Again, and after a crash: nothing is recorded twice, and nothing that goes on is forgotten.
    assert_eq!(total(&replay(&late, &[]), "recorded"), 0);
    late = late.kill_and_restart();
    assert_eq!(total(&replay(&late, &[]), "recorded"), 0);
    assert_eq!(transitions(&late, ""), expect);

    // It goes on as a rule from the start does.
    for server in [&first, &late] {
        send(server, 150..220);
    }
    let more = transitions(&first, "");
    assert!(more.len() > expect.len());
    assert_eq!(transitions(&late, ""), more);
    assert_eq!(standing(&late), standing(&first));
    assert_eq!(late.verify(), 0);
}

/// Which alerts there are of the rules with this ending, since when, and where they stand; none may be in a state twice.
fn alerts_of(server: &Server, ending: &str) -> Vec<Value> {
    let of = format!("FROM alerts WHERE rule LIKE '%{ending}'");
    let twice =
        format!("SELECT count(*) FROM (SELECT alert_id {of} GROUP BY alert_id, state HAVING count(*) > 1)");
    assert_eq!(server.number(&twice), 0, "a state was entered twice");
    server.query(&format!(
        "SELECT replace(rule, '{ending}', '') AS rule, device_id, started_at,
                bool_or(state IN ('resolved', 'inactive')) AS over, max(at) FILTER (WHERE state = 'resolved') AS resolved
         {of} GROUP BY rule, alert_id, device_id, started_at ORDER BY rule, device_id, started_at"
    ))
}

#[test]
fn a_replay_that_is_killed_is_run_again() {
    let dir = tempfile::tempdir().expect("a directory");
    let mut server = start(&dir.path().join("data"), DATA);
    send(&server, 0..150);
    let mut expect: Option<Vec<Value>> = None;
    for round in 0..8u64 {
        let ending = format!("_{round}");
        let mut rules = RULES.to_owned();
        for name in ["hot", "latched", "hot_minute"] {
            rules = rules.replace(&format!("name: {name}\n"), &format!("name: {name}{ending}\n"));
        }
        server.apply(&rules);
        // The first is left in peace: it is what the others must come to.
        if round > 0 {
            let url = server.url();
            let replaying = std::thread::spawn(move || {
                iot_tests::run(&["replay", "--from-raw", "readings", "--url", &url], "").code
            });
            pause(Duration::from_millis(10 + round * 17));
            server = server.kill_and_restart();
            replaying.join().expect("it ends");
        }
        replay(&server, &[]);
        let found = alerts_of(&server, &ending);
        assert!(found.len() > 50, "{} alerts", found.len());
        assert_eq!(expect.get_or_insert_with(|| found.clone()), &found, "round {round}");
        assert!(!server.data_dir.join("wal/replay").exists(), "nothing is left behind");
    }
    assert_eq!(server.verify(), 0);
}

#[test]
fn one_replay_after_another_and_a_restart_records_all_of_both() {
    let dir = tempfile::tempdir().expect("a directory");
    let mut server = start(&dir.path().join("data"), DATA);
    send(&server, 0..120);
    let mut recorded = 0;
    for (round, restart) in ["kill", "stop", "none", "kill"].into_iter().enumerate() {
        // Nothing arrives in between, so all of it is recorded at the same position of the log.
        server.apply(&RULES.replace("name: ", &format!("name: r{round}_")));
        let report = replay(&server, &[]);
        recorded += total(&report, "recorded");
        let alerts = "SELECT count(DISTINCT alert_id) FROM alerts";
        assert_eq!(server.number(alerts), recorded as i64, "round {round}: {report:?}");
        server = match restart {
            "kill" => server.kill_and_restart(),
            "stop" => server.stop_and_restart(),
            _ => server,
        };
        assert_eq!(server.number(alerts), recorded as i64, "round {round}, after `{restart}`");
    }
}

#[test]
fn a_range_has_the_alerts_that_begin_and_end_within_it() {
    let dir = tempfile::tempdir().expect("a directory");
    let server = start(&dir.path().join("data"), DATA);
    send(&server, 0..120);
    server.apply(RULES);
    let range = ["--from", "2025-10-09T08:54:00Z", "--to", "2025-10-09T08:59:00Z", "--rule", "latched"];
    let report = replay(&server, &range);
    assert_eq!(report.len(), 1, "only the rule that was named: {report:?}");
    let open = total(&report, "open");
    assert!(open > 0 && total(&report, "recorded") > 0, "{report:?}");
    let outside =
        "at < '2025-10-09T08:54:00Z' OR at >= '2025-10-09T08:59:00Z' OR rule <> 'latched' OR NOT historical";
    assert_eq!(server.number(&format!("SELECT count(*) FROM alerts WHERE {outside}")), 0);
    let unended = "SELECT count(*) FROM (SELECT alert_id FROM alerts GROUP BY alert_id HAVING bool_and(state = 'firing'))";
    assert_eq!(server.number(unended), 0, "an alert is recorded whole or not at all");

    let all = replay(&server, &["--rule", "latched"]);
    assert_eq!(total(&all, "known"), total(&report, "recorded"), "{all:?}");
    assert_eq!(total(&replay(&server, &["--rule", "latched"]), "recorded"), 0);

    let file = server.run(&["replay", "--from", "30d", "readings.csv"], "");
    assert!(file.code == 2 && file.stderr.contains("--from-raw"), "{}", file.stderr);
    let error = |more: &[&str]| {
        let args = [&["replay", "--from-raw", "readings"], more].concat();
        let ran = server.run(&args, "");
        assert_ne!(ran.code, 0, "{more:?}");
        ran.stderr
    };
    assert!(error(&["--from", "yesterday"]).contains("`yesterday` is no time"));
    assert!(error(&["--from", "2025-10-10", "--to", "2025-10-09"]).contains("not before"));
    assert!(error(&["--rule", "cold"]).contains("`cold`"));
    let nothing = server.run(&["replay", "--from-raw", "nowhere"], "");
    assert!(
        nothing.stderr.contains("`nowhere`") && nothing.stderr.contains("readings"),
        "{}",
        nothing.stderr
    );
}
