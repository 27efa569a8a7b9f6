//! Sparkplug B with a node that somebody else's library speaks for, over both kinds of broker.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use iot_tests::{Mosquitto, PATIENCE, Server, pause, python, wait_a_little};
use parking_lot::Mutex;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde_json::Value;

use crate::crash::wait_for_subscription;

const SETTINGS: &str =
    "ingest: {seal_age: 200ms, segment_bytes: 4096, sparkplug: {host_id: scada, rebirth_every: 100ms}}\n";
const CATALOG: &str = r#"
kind: stream
name: plant
format: sparkplug_b
fields: {Inputs_Temp: double, Inputs_Door_open: boolean}
---
kind: view
name: by_year
sql: |
  SELECT device_id, tumble(event_time, INTERVAL '365 days') AS year, count(*) AS n, max("Inputs_Temp") AS hottest
  FROM plant GROUP BY device_id, year
---
kind: rule
name: hot
on: plant
when: '"Inputs_Temp" > 80'
---
kind: rule
name: hot_year
on: by_year
when: hottest > 80
"#;
/// The node of `node.py`.
struct Node {
    child: Child,
    stdin: ChildStdin,
    said: Arc<Mutex<Vec<String>>>,
}

impl Node {
    fn start(port: u16) -> Self {
        let mut child = Command::new(python("pysparkplug").expect("it was asked for"))
            .args(["-c", include_str!("sparkplug/node.py"), &port.to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("python starts");
        let (stdin, stdout) = (child.stdin.take().expect("piped"), child.stdout.take().expect("piped"));
        let said = Arc::new(Mutex::new(Vec::new()));
        let lines = said.clone();
        std::thread::spawn(move || {
            BufReader::new(stdout).lines().map_while(Result::ok).for_each(|line| lines.lock().push(line));
        });
        Self { child, stdin, said }
    }

    fn tell(&mut self, what: &str) {
        writeln!(self.stdin, "{what}").expect("the node listens");
    }

    fn has_said(&self, what: &str) -> bool {
        self.said.lock().iter().any(|line| line == what)
    }

    fn births(&self) -> usize {
        self.said.lock().iter().filter(|line| line.starts_with("birth")).count()
    }

    /// Whether the host application is there, as the node was last told.
    fn host_is_online(&self) -> Option<bool> {
        let said = self.said.lock();
        let state = said.iter().rev().find_map(|line| line.strip_prefix("state "))?;
        let state: Value = serde_json::from_str(state).expect("a state is JSON");
        assert!(state["timestamp"].as_u64() > Some(1_700_000_000_000), "{state}");
        state["online"].as_bool()
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn wait_until(what: &str, server: &Server, condition: impl Fn() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        assert!(
            Instant::now() < deadline,
            "timed out waiting for {what}: nodes {:?}, dead {:?}",
            server.query("SELECT * FROM iot.sparkplug_nodes"),
            server.query("SELECT topic, reason FROM dead"),
        );
        wait_a_little();
    }
}

fn wait_for_temperatures(server: &Server, expected: &[f64]) {
    let sql = "SELECT \"Inputs_Temp\" AS t FROM plant WHERE message_type = 'DDATA' ORDER BY _seq, _index";
    let found = || server.query(sql).iter().filter_map(|row| row["t"].as_f64()).collect::<Vec<_>>();
    wait_until(&format!("{expected:?}"), server, || found().len() >= expected.len());
    assert_eq!(found(), expected);
}

fn online(server: &Server) -> Vec<(Option<String>, bool)> {
    let rows = server.query("SELECT device, online FROM iot.sparkplug_nodes ORDER BY device NULLS FIRST");
    let of = |row: &Value| (row["device"].as_str().map(str::to_owned), row["online"] == true);
    rows.iter().map(of).collect()
}

fn node_number(server: &Server, column: &str) -> i64 {
    server.number(&format!("SELECT {column} FROM iot.sparkplug_nodes WHERE device IS NULL"))
}

fn dead(server: &Server) -> Vec<String> {
    let rows = server.query("SELECT reason FROM dead WHERE stream = 'plant' ORDER BY _seq");
    rows.iter().map(|row| row["reason"].as_str().unwrap_or_default().to_owned()).collect()
}

/// The rules that have fired.
fn alerts(server: &Server) -> Vec<String> {
    let rows = server.query("SELECT rule FROM alerts WHERE state = 'firing' ORDER BY rule");
    rows.iter().map(|row| row["rule"].as_str().unwrap_or_default().to_owned()).collect()
}

fn start(dir: &Path, extra: &[&str]) -> Server {
    let (settings, catalog) = (dir.join("serve.yaml"), dir.join("catalog.yaml"));
    std::fs::write(&settings, SETTINGS).expect("written");
    std::fs::write(&catalog, CATALOG).expect("written");
    let path = |path: &Path| path.to_str().expect("utf-8").to_owned();
    let (settings, catalog) = (path(&settings), path(&catalog));
    let mut args = vec!["--config", settings.as_str(), "--catalog", catalog.as_str()];
    args.extend(extra);
    Server::start(&dir.join("data"), &args)
}

/// Births, data by alias, history, a gap, a crash, an unknown alias, deaths.
fn tell_the_story(mut server: Server, port: u16) {
    let mut node = Node::start(port);
    let up = vec![(None, true), (Some("oven".to_owned()), true)];
    wait_until("the births", &server, || online(&server) == up);
    wait_until("the host", &server, || node.host_is_online() == Some(true));

    node.tell("data 21.5");
    node.tell("past 95");
    wait_for_temperatures(&server, &[21.5, 95.0]);
    let past = "SELECT count(*) FROM plant WHERE is_historical AND \"Inputs_Temp\" = 95";
    assert_eq!(server.number(past), 1);
    wait_until("the view", &server, || server.number("SELECT max(hottest)::bigint FROM by_year") == 95);
    node.tell("data 22.5");
    wait_for_temperatures(&server, &[21.5, 95.0, 22.5]);
    // History counts in the view. The rule looks at its row when a live event has changed it, and not before.
    wait_until("the view's alert", &server, || alerts(&server) == ["hot_year"]);
    let live = server.number("SELECT _seq FROM plant WHERE \"Inputs_Temp\" = 22.5");
    assert_eq!(server.number("SELECT seq FROM alerts"), live);

    // A number is missing: the data are good, and the node is asked to declare itself anew.
    node.tell("skip");
    node.tell("data 23.5");
    wait_for_temperatures(&server, &[21.5, 95.0, 22.5, 23.5]);
    wait_until("the rebirth", &server, || node.births() == 2);
    wait_until("the new birth", &server, || node_number(&server, "last_seq") == 1);
    assert_eq!((node_number(&server, "gaps"), node_number(&server, "rebirths_requested")), (1, 1));

    // The births are sealed and their log is gone; then the process dies.
    node.tell("data 24.5");
    wait_for_temperatures(&server, &[21.5, 95.0, 22.5, 23.5, 24.5]);
    server.wait_for_seal();
    server.kill();
    if server.mqtt.is_none() {
        let said_off = || node.host_is_online() == Some(false);
        let deadline = Instant::now() + PATIENCE;
        while !said_off() {
            assert!(Instant::now() < deadline, "the broker did not say that the host has gone");
            wait_a_little();
        }
    }
    server = server.restart();
    assert_eq!(online(&server), up, "what was known is known");
    assert_eq!((node_number(&server, "gaps"), node_number(&server, "rebirths_requested")), (1, 1));
    wait_until("the host again", &server, || node.host_is_online() == Some(true));
    node.tell("data 90");
    wait_for_temperatures(&server, &[21.5, 95.0, 22.5, 23.5, 24.5, 90.0]);
    assert_eq!((node.births(), dead(&server).len()), (2, 0), "nothing had to be declared again");
    wait_until("the alert", &server, || alerts(&server) == ["hot", "hot_year"]);

    node.tell("ghost");
    wait_until("the dead letter", &server, || dead(&server) == ["the alias 999 is not in the last birth"]);
    wait_until("the second rebirth", &server, || node.births() == 3);
    wait_until("the third birth", &server, || node_number(&server, "last_seq") == 1);

    node.tell("down");
    wait_until("the device's death", &server, || online(&server)[1..] == [(Some("oven".to_owned()), false)]);
    assert!(online(&server)[0].1, "the node lives on");
    node.tell("die");
    wait_until("the node's death", &server, || online(&server).iter().all(|(_, online)| !online));
    let kinds = server.query("SELECT message_type AS k, count(*) AS n FROM plant GROUP BY 1 ORDER BY 1");
    let kinds: Vec<(String, i64)> = kinds
        .iter()
        .map(|row| (row["k"].as_str().unwrap_or_default().to_owned(), row["n"].as_i64().unwrap_or(0)))
        .collect();
    let expected = [("DBIRTH", 3), ("DDATA", 6), ("DDEATH", 1), ("NBIRTH", 3), ("NDEATH", 1)]
        .map(|(k, n)| (k.to_owned(), n));
    assert_eq!(kinds, expected);
    assert_eq!(server.verify(), 0);
    assert!(server.stop(), "it ends well");
}

/// Data by alias, one after the other, while the process is killed again and again: each is there once, none is
/// unreadable, no number is missing, and the node is never asked to declare itself anew.
#[test]
fn no_crash_makes_an_alias_unreadable() {
    const DATA: i64 = 3_000;
    if python("pysparkplug").is_none() {
        return;
    }
    let Some(mosquitto) = Mosquitto::start() else { return };
    let dir = tempfile::tempdir().expect("a directory");
    let mut server = start(dir.path(), &["--broker", &mosquitto.url()]);
    wait_for_subscription(&server);
    let mut node = Node::start(mosquitto.port);
    wait_until("the births", &server, || online(&server).len() == 2);
    node.tell(&format!("flood {DATA}"));
    let mut chance = ChaCha8Rng::seed_from_u64(5);
    let mut kills = 0;
    while !node.has_said("flooded") {
        pause(Duration::from_millis(chance.random_range(50..1_200)));
        server = server.kill_and_restart();
        kills += 1;
    }
    let count = "SELECT count(*) FROM plant WHERE message_type = 'DDATA'";
    wait_until("all data", &server, || server.number(count) >= DATA);
    let distinct = "SELECT count(DISTINCT \"Inputs_Temp\") FROM plant WHERE message_type = 'DDATA'";
    assert_eq!((server.number(count), server.number(distinct)), (DATA, DATA), "after {kills} kills");
    assert_eq!(dead(&server), Vec::<String>::new());
    assert_eq!(
        (node_number(&server, "gaps"), node_number(&server, "rebirths_requested"), node.births()),
        (0, 0, 1)
    );
    assert!(kills >= 3, "only {kills} kills");
    assert_eq!(server.verify(), 0);
}

#[test]
fn a_node_over_the_embedded_broker() {
    if python("pysparkplug").is_none() {
        return;
    }
    let dir = tempfile::tempdir().expect("a directory");
    let server = start(dir.path(), &[]);
    let port = server.mqtt.expect("the broker is embedded").port();
    tell_the_story(server, port);
}

#[test]
fn a_node_over_mosquitto() {
    if python("pysparkplug").is_none() {
        return;
    }
    let Some(mosquitto) = Mosquitto::start() else { return };
    let dir = tempfile::tempdir().expect("a directory");
    let server = start(dir.path(), &["--broker", &mosquitto.url()]);
    wait_for_subscription(&server);
    tell_the_story(server, mosquitto.port);
}
