//! The alert log as server-sent events: every reader that comes back sees every transition once.

mod browser;
mod reader;

use std::path::Path;
use std::process::Command;
use std::time::Instant;

use iot_tests::load::{Load, LoadOptions};
use iot_tests::{PATIENCE, Server, external, wait_a_little};
use serde_json::Value;

use browser::Browser;
use reader::{Event, Reader, events};

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
  SELECT device_id, tumble(event_time, INTERVAL '1 second') AS window_start, count(*) AS c, max(temperature) AS hottest
  FROM readings GROUP BY device_id, window_start
batch: {every: 2s}
---
kind: rule
name: hot
on: readings
when: temperature > 80
severity: critical
labels: {team: plant}
annotations: {summary: "{device_id} at {temperature} C"}
---
kind: rule
name: warm
on: readings
when: temperature > 30
severity: info
labels: {team: office}
"#;

#[test]
fn readers_that_drop_and_come_back_see_each_transition_once() {
    let Some(curl) = external("curl") else { return };
    let dir = tempfile::tempdir().expect("a directory");
    let mut server = start(dir.path());
    let url = format!("{}/v1/alerts/stream", server.url());
    let readers = [Reader::in_rust(&url), Reader::curl(&curl, &url)];
    let load = load(&server);
    for round in 1..=4 {
        let acked = load.progress().acked();
        load.wait_for_acked(acked + 300);
        server = if round % 2 == 0 { server.kill_and_restart() } else { server.stop_and_restart() };
    }
    load.wait_for_acked(load.progress().acked() + 300);
    load.finish();
    let expected = all_transitions(&server);
    for reader in readers {
        let name = reader.name();
        let seen = reader.finish(expected.len() as u64);
        assert_eq!(seen.ids(), expected, "{name}");
        eprintln!("{name}: {} transitions over {} connections", seen.ids().len(), seen.connections);
    }
}

#[test]
fn a_silent_stream_has_a_heart_beat_and_tells_how_to_come_back() {
    let Some(curl) = external("curl") else { return };
    let dir = tempfile::tempdir().expect("a directory");
    let server = start(dir.path());
    let output = curl_for(&curl, 17, &format!("{}/v1/alerts/stream", server.url()));
    assert!(output.starts_with("retry: 2000\n"), "{output:?}");
    let beats = output.lines().filter(|line| line.starts_with(':')).count();
    assert!(beats >= 1, "nothing was said for 17 seconds: {output:?}");
    assert_eq!(events(&output).iter().filter(|event| !event.data.is_empty()).count(), 0, "{output:?}");
}

#[test]
fn a_reader_gets_what_it_asked_for() {
    let Some(curl) = external("curl") else { return };
    let dir = tempfile::tempdir().expect("a directory");
    let server = start(dir.path());
    let load = load(&server);
    load.wait_for_acked(400);
    load.finish();
    let count = |condition: &str| server.number(&format!("SELECT count(*) FROM alerts WHERE {condition}"));
    let all = all_transitions(&server).len() as i64;
    let cases = [
        ("", "true"),
        ("rule=hot", "rule = 'hot'"),
        ("rule=hot,warm", "true"),
        ("rule=nobody", "false"),
        ("severity=critical", "severity = 'critical'"),
        ("state=resolved", "state = 'resolved'"),
        ("device_id=load-1", "device_id = 'load-1'"),
        ("label.team=office", "rule = 'warm'"),
        (
            "severity=critical&device_id=load-2&state=firing",
            "rule = 'hot' AND device_id = 'load-2' AND state = 'firing'",
        ),
    ];
    for (filter, condition) in cases {
        let url = format!("{}/v1/alerts/stream?last_event_id=0&{filter}", server.url());
        let seen = alerts(&curl_for(&curl, 1, &url));
        assert_eq!(seen.len() as i64, count(condition), "{filter}");
        let ids: Vec<u64> = seen.iter().filter_map(|event| event.id).collect();
        assert!(
            ids.is_sorted() && seen.iter().all(|event| event.json()["id"].as_u64() == event.id),
            "{filter}"
        );
    }
    assert!(all > 10, "{all} transitions are too few for this test");
    for wrong in ["colour=red", "state=burning", "last_event_id=x", "snapshot=maybe"] {
        let (status, body) = server.get_text(&format!("/v1/alerts/stream?{wrong}"));
        assert_eq!(status, 400, "{wrong}: {body}");
        assert!(
            serde_json::from_str::<Value>(&body).is_ok_and(|problem| problem["type"].is_string()),
            "{body}"
        );
    }
}

#[test]
fn chromium_sees_each_transition_once_and_a_living_dashboard() {
    let (Some(chromium), Some(driver)) = (external("chromium"), external("chromedriver")) else { return };
    let dir = tempfile::tempdir().expect("a directory");
    let mut server = start(dir.path());
    let load = load(&server);
    load.wait_for_acked(100);
    let browser = Browser::start(&driver, &chromium, dir.path());
    browser.open(&server.url());
    wait_for_dashboard(&browser);
    let errors = browser.errors();
    assert!(errors.is_empty(), "the console has errors: {errors:?}");
    browser.screenshot("dashboard");
    browser.run(
        "window.seen = []; window.opened = 0;
         const source = new EventSource('/v1/alerts/stream?last_event_id=0');
         source.onopen = () => { window.opened += 1; };
         source.addEventListener('alert', (event) => window.seen.push(Number(event.lastEventId)));",
    );
    wait_until("the browser listens", || browser.number("return window.opened") == 1);
    for killed in [true, false] {
        let connections = browser.number("return window.opened");
        load.wait_for_acked(load.progress().acked() + 200);
        server = if killed { server.kill_and_restart() } else { server.stop_and_restart() };
        wait_until("the browser is back", || browser.number("return window.opened") > connections);
    }
    load.wait_for_acked(load.progress().acked() + 200);
    load.finish();
    let expected = all_transitions(&server);
    let last = *expected.last().expect("there are transitions");
    wait_until("the browser has seen all", || browser.number("return window.seen.at(-1) ?? 0") >= last);
    let seen = browser.run("return window.seen");
    assert_eq!(seen, serde_json::json!(expected));
    wait_for_dashboard(&browser);
    eprintln!(
        "chromium saw {} transitions over {} connections",
        expected.len(),
        browser.number("return window.opened")
    );
}

/// Waits until the dashboard shows what it is there for.
fn wait_for_dashboard(browser: &Browser) {
    let missing = "
        const text = (id) => document.getElementById(id).textContent.trim();
        const canvas = document.getElementById('chart');
        const pixels = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data;
        const wrong = [];
        for (const id of ['throughput', 'freshness', 'devices', 'firing', 'pending'])
          if (!/^[0-9]/.test(text(id))) wrong.push(`${id} is '${text(id)}'`);
        if (text('throughput') === '0') wrong.push('no throughput');
        if (text('devices') !== '5') wrong.push(`${text('devices')} devices`);
        if (document.getElementById('connection').dataset.state !== 'live') wrong.push(text('connection'));
        if (document.getElementById('stream').dataset.state !== 'live') wrong.push(`alerts: ${text('stream')}`);
        if (document.querySelectorAll('#legend li').length < 5) wrong.push('no five series in the legend');
        if (!pixels.some((value) => value !== 0)) wrong.push('the chart is blank');
        if (!document.querySelector('#alerts li')) wrong.push('no alerts');
        if (!document.querySelector('#layers tr')) wrong.push('no layers');
        if (document.documentElement.scrollWidth > window.innerWidth) wrong.push('the page is wider than the window');
        return wrong.join('; ')";
    let deadline = Instant::now() + PATIENCE;
    loop {
        let wrong = browser.run(missing);
        if wrong == "" {
            return;
        }
        if Instant::now() > deadline {
            browser.screenshot("dashboard-wrong");
            panic!("the dashboard is not right: {wrong}");
        }
        wait_a_little();
    }
}

fn start(dir: &Path) -> Server {
    let catalog = dir.join("catalog.yaml");
    std::fs::write(&catalog, CATALOG).expect("written");
    Server::start(&dir.join("data"), &["--catalog", catalog.to_str().expect("utf-8")])
}

fn load(server: &Server) -> Load {
    let port = server.mqtt.expect("the broker is embedded").port();
    Load::rumqttc(&LoadOptions { port, name: "load", rate: 200, qos: 1, stretch: 40 })
}

/// The ids of all transitions: 1, 2, 3, ...
fn all_transitions(server: &Server) -> Vec<u64> {
    // An event is judged within a second of its acknowledgement; then the number stands still.
    iot_tests::pause(std::time::Duration::from_secs(1));
    let latest = server.status()["alerts"]["latest"].as_u64().expect("a number");
    assert_eq!(server.number("SELECT count(*) FROM alerts"), latest as i64);
    (1..=latest).collect()
}

fn curl_for(curl: &Path, seconds: u32, url: &str) -> String {
    let seconds = seconds.to_string();
    let output = Command::new(curl).args(["--silent", "--no-buffer", "--max-time", &seconds, url]).output();
    String::from_utf8(output.expect("curl runs").stdout).expect("utf-8")
}

fn alerts(text: &str) -> Vec<Event> {
    events(text).into_iter().filter(|event| event.kind == "alert").collect()
}

fn wait_until(what: &str, condition: impl Fn() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < deadline, "timed out waiting until {what}");
        wait_a_little();
    }
}
