//! Everything that can fail, at random moments and under load: this process and the broker are killed, the disk is
//! full for a while, and a third of the calls to the object store fail or hang. What was acknowledged is there, once.
//!
//! `IOT_CRASH_RUNS=300` for the long version.

use std::collections::BTreeMap;
use std::io::Write;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use iot_tests::load::{Load, Progress};
use iot_tests::{Mosquitto, PATIENCE, Server, pause, python, wait_a_little};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::crash::{loads, report, runs, wait_for_subscription};

/// As in the crash tests, and with keys: a broker that was killed delivers again, as new, what it has forgotten that
/// it had delivered.
const CATALOG: &str = r#"
kind: stream
name: readings
topics: ["devices/{device_id}/telemetry"]
event_time: {field: ts, unit: ms}
fields: {source: text, n: bigint, temperature: double}
dedup: [source, n]
---
kind: view
name: by_second
sql: |
  SELECT device_id, tumble(event_time, INTERVAL '1 second') AS window_start, count(*) AS c, sum(n) AS s
  FROM readings GROUP BY device_id, window_start
batch: {every: 2s}
---
kind: rule
name: hot
on: readings
when: temperature > 80
clear_when: temperature < 75
"#;
const SETTINGS: &str = "ingest: {seal_age: 500ms, segment_bytes: 262144}\n";
/// A third of the calls to the store goes wrong.
const STORE: [&str; 4] = ["--store-faults", "fail=0.25,hang=0.05", "--store-timeout", "250ms"];
const DISK_MIB: u32 = 512;
/// How often a large table is looked at.
const LOOK: Duration = Duration::from_millis(200);
/// How many faults; `IOT_CRASH_RUNS` says otherwise.
const RUNS: u32 = 12;

#[test]
fn with_the_embedded_broker_no_fault_loses_or_doubles_a_message() {
    if python("paho.mqtt.client").is_none() {
        return;
    }
    let disk = Disk::small();
    let server = start(disk.path(), &[]);
    let port = server.mqtt.expect("the broker is embedded").port();
    survive(server, None, &disk, loads(port, 1), 23);
}

#[test]
fn with_mosquitto_no_fault_loses_or_doubles_a_message() {
    if python("paho.mqtt.client").is_none() {
        return;
    }
    let Some(mosquitto) = Mosquitto::start() else { return };
    let disk = Disk::small();
    let server = start(disk.path(), &["--broker", &mosquitto.url()]);
    wait_for_subscription(&server);
    let loads = loads(mosquitto.port, 1);
    survive(server, Some(mosquitto), &disk, loads, 29);
}

/// Whatever is sealed is sealed for the sake of a change, through a store that fails.
#[test]
fn a_kill_right_after_a_change_of_topics_loses_nothing_that_came_before() {
    let dir = tempfile::tempdir().expect("a directory");
    let settings = dir.path().join("serve.yaml");
    std::fs::write(&settings, "ingest: {seal_age: 1h}\n").expect("written");
    let config = ["--config", settings.to_str().expect("utf-8")];
    let mut server = Server::start(&dir.path().join("data"), &[&config[..], &STORE].concat());
    for round in 0..4 {
        server.publish("devices/first/telemetry", "{\"v\":1}");
        server.apply(&format!("kind: stream\nname: moving\ntopics: [\"round{round}/{{device_id}}\"]\n"));
        server = server.kill_and_restart();
        for n in 0..3 {
            server.publish(&format!("round{round}/d"), &format!("{{\"v\":{n}}}"));
        }
        let rows = server.number("SELECT count(*) FROM moving");
        assert_eq!(rows, 3 * (round + 1), "after the change to round {round}");
    }
    let first = server.number("SELECT count(*) FROM events");
    assert_eq!(first, 4, "the stream that everybody begins with had them before there were others");
}

/// The log has a small disk of its own and fills it while the store is down. Nobody makes room.
#[test]
fn a_log_that_has_filled_its_disk_frees_it_by_itself() {
    const MIB: u64 = 1 << 20;
    let disk = Disk::of(32);
    if !disk.can_be_filled() {
        return;
    }
    let dir = tempfile::tempdir().expect("a directory");
    std::fs::create_dir(dir.path().join("data")).expect("made");
    std::os::unix::fs::symlink(disk.path(), dir.path().join("data/wal")).expect("linked");
    let down = dir.path().join("DOWN");
    let outage = format!("outage={}", down.display());
    let settings = "ingest: {seal_age: 200ms, segment_bytes: 1048576}\n";
    let server = Server::with_catalog(dir.path(), settings, CATALOG, &["--store-faults", &outage]);
    std::fs::write(&down, "").expect("written");
    let (written, done) = (AtomicU64::new(0), AtomicBool::new(false));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                let n = written.load(Ordering::Relaxed) + 1;
                let is_nearly_full = server.status()["ingest"]["log_bytes"].as_u64() > Some(29 * MIB);
                let text = "x".repeat(if is_nearly_full { 4_000 } else { 500_000 });
                let line = format!(
                    r#"{{"device_id":"d","source":"{text}","n":{n},"temperature":20,"ts":1760000000000}}"#
                );
                server.write("readings", &line);
                written.store(n, Ordering::Relaxed);
            }
        });
        wait_for_answer(&server, "reserve");
        std::fs::remove_file(&down).expect("removed");
        wait_for_readiness(&server, true, "the store is there again");
        let before = written.load(Ordering::Relaxed);
        while written.load(Ordering::Relaxed) < before + 10 {
            wait_a_little();
        }
        done.store(true, Ordering::Relaxed);
    });
    let written = written.into_inner();
    wait_for_number(&server, written, "SELECT count(DISTINCT n) FROM readings");
    assert_eq!(server.number("SELECT count(*) FROM readings") as u64, written);
    assert_eq!(server.verify(), 0, "differences at the end");
}

fn wait_for_answer(server: &Server, expect: &str) {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let (_, answer) = server.get_text("/readyz");
        if answer.contains(expect) {
            return;
        }
        assert!(Instant::now() < deadline, "`{expect}` is not in {answer}: {}", server.status());
        wait_a_little();
    }
}

fn start(dir: &Path, extra: &[&str]) -> Server {
    Server::with_catalog(dir, SETTINGS, CATALOG, &[&STORE, extra].concat())
}

/// Lets faults happen, and looks what has become of the messages.
fn survive(mut server: Server, mut mosquitto: Option<Mosquitto>, disk: &Disk, loads: [Load; 2], seed: u64) {
    let mut chance = ChaCha8Rng::seed_from_u64(seed);
    let mut in_doubt = InDoubt::default();
    let mut counts = [0; 3];
    let began = Instant::now();
    for _ in 0..runs(RUNS) {
        pause(Duration::from_millis(chance.random_range(200..1_200)));
        match (chance.random_range(0..4), &mut mosquitto) {
            (0, Some(mosquitto)) => {
                counts[0] += 1;
                let acked = loads.each_ref().map(|load| load.progress().acked_up_to);
                wait_for_stored(&server, &loads, acked, &in_doubt);
                mosquitto.kill();
                pause(Duration::from_millis(200));
                mosquitto.start_again();
                // Until it has our subscription again it acknowledges what it has nobody for.
                wait_for_news(&server, &loads);
                for (load, acked) in loads.iter().zip(acked) {
                    in_doubt.add(load.name(), acked + 1..=load.progress().sent);
                }
            }
            (1, _) if disk.can_be_filled() => {
                counts[1] += 1;
                disk.fill();
                wait_for_readiness(&server, false, "the disk is full");
                pause(Duration::from_millis(chance.random_range(0..1_000)));
                disk.free();
                wait_for_readiness(&server, true, "the disk has room again");
            }
            _ => {
                counts[2] += 1;
                server = server.kill_and_restart();
            }
        }
    }
    let sent: Vec<(&str, Progress)> = loads.into_iter().map(|load| (load.name(), load.finish())).collect();
    wait_for_all(&server, &sent, &in_doubt);
    // A copy that is still on its way would come now.
    pause(Duration::from_millis(500));
    for (name, progress) in &sent {
        assert_eq!(doubled(&server, name), 0, "`{name}` has readings twice");
        let lost = lost(&server, name, progress.sent, &in_doubt);
        assert!(lost.is_empty(), "`{name}` has lost {lost:?}");
    }
    let rows = server.number("SELECT count(*) FROM readings");
    assert_eq!(server.number("SELECT sum(c) FROM by_second"), rows);
    assert_eq!(server.verify(), 0, "differences at the end");
    let [brokers, disks, processes] = counts;
    eprintln!(
        "killed {processes} times, the broker {brokers} times, disk full {disks} times, in {:.1?}; {rows} rows",
        began.elapsed()
    );
    report(&sent);
}

fn wait_for_readiness(server: &Server, ready: bool, when: &str) {
    let deadline = Instant::now() + PATIENCE;
    while server.is_ready() != ready {
        assert!(Instant::now() < deadline, "ready is not {ready} although {when}: {}", server.status());
        wait_a_little();
    }
}

/// Waits until the first so many readings of each publisher are stored, but for those that a broker may have lost.
fn wait_for_stored(server: &Server, loads: &[Load; 2], first: [u64; 2], in_doubt: &InDoubt) {
    for (load, first) in loads.iter().zip(first) {
        // What came before the last doubt was waited for at that time.
        let settled = in_doubt.up_to(load.name()).min(first);
        wait_for_number(
            server,
            first - settled,
            &format!(
                "SELECT count(*) FROM readings WHERE source = '{}' AND n > {settled} AND n <= {first}",
                load.name()
            ),
        );
    }
}

/// Waits until a reading of each publisher is stored that is sent from now on.
fn wait_for_news(server: &Server, loads: &[Load; 2]) {
    for load in loads {
        let sent = load.progress().sent;
        wait_for_number(
            server,
            1,
            &format!("SELECT count(*) FROM readings WHERE source = '{}' AND n > {sent}", load.name()),
        );
    }
}

/// Waits until a query answers so much, as long as its answer grows: what a broker holds for a process that has been away
/// for most of the time may take it minutes.
fn wait_for_number(server: &Server, least: u64, sql: &str) {
    let (mut before, mut deadline) = (-1, Instant::now());
    loop {
        let number = server.number(sql);
        if number as u64 >= least {
            return;
        }
        if number > before {
            (before, deadline) = (number, Instant::now() + PATIENCE);
        }
        assert!(Instant::now() < deadline, "{number} instead of {least}: {sql}: {}", server.status());
        pause(LOOK);
    }
}

/// Waits until nothing is lost any more, as long as readings arrive.
fn wait_for_all(server: &Server, sent: &[(&str, Progress)], in_doubt: &InDoubt) {
    for (name, progress) in sent {
        let (mut before, mut deadline) = (-1, Instant::now());
        while !lost(server, name, progress.sent, in_doubt).is_empty() {
            let rows = server.number("SELECT count(*) FROM readings");
            if rows > before {
                (before, deadline) = (rows, Instant::now() + PATIENCE);
            }
            if Instant::now() > deadline {
                return;
            }
            pause(LOOK);
        }
    }
}

/// What a broker had acknowledged when it was killed and had not passed on is lost by the broker: for each
/// publisher, in ascending order, the numbers of the readings of which that may be so.
#[derive(Default)]
struct InDoubt(BTreeMap<&'static str, Vec<RangeInclusive<u64>>>);

impl InDoubt {
    fn add(&mut self, name: &'static str, readings: RangeInclusive<u64>) {
        self.0.entry(name).or_default().push(readings);
    }

    /// The last of them.
    fn up_to(&self, name: &str) -> u64 {
        self.0.get(name).and_then(|ranges| ranges.last()).map_or(0, |range| *range.end())
    }

    fn covers(&self, name: &str, reading: u64) -> bool {
        self.0.get(name).into_iter().flatten().any(|range| range.contains(&reading))
    }
}

fn doubled(server: &Server, name: &str) -> i64 {
    server.number(&format!(
        "SELECT count(*) FROM (SELECT n FROM readings WHERE source = '{name}' GROUP BY n HAVING count(*) > 1)"
    ))
}

/// Readings that are not there, apart from those that a broker may have lost; at most ten.
fn lost(server: &Server, name: &str, sent: u64, in_doubt: &InDoubt) -> Vec<u64> {
    let rows = server.query(&format!(
        "SELECT sent.value AS n FROM generate_series(1, {sent}) AS sent
         LEFT ANTI JOIN (SELECT n FROM readings WHERE source = '{name}') AS stored ON sent.value = stored.n
         ORDER BY 1 LIMIT 100000"
    ));
    rows.iter().filter_map(|row| row["n"].as_u64()).filter(|n| !in_doubt.covers(name, *n)).take(10).collect()
}

/// A small disk of its own where that can be had, which takes root; a plain directory otherwise.
struct Disk {
    dir: tempfile::TempDir,
    is_mounted: bool,
}

impl Disk {
    fn small() -> Self {
        Self::of(DISK_MIB)
    }

    fn of(mib: u32) -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let size = format!("size={mib}m");
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", &size, "tmpfs"]).arg(dir.path());
        let is_mounted = mount.output().is_ok_and(|output| output.status.success());
        if !is_mounted {
            eprintln!("skipped: the disk is never full, as mounting a small one takes root");
        }
        Self { dir, is_mounted }
    }

    fn path(&self) -> &Path {
        self.dir.path()
    }

    fn can_be_filled(&self) -> bool {
        self.is_mounted
    }

    fn filler(&self) -> PathBuf {
        self.path().join("filler")
    }

    /// Takes up all that is free.
    fn fill(&self) {
        let mut file = std::fs::File::create(self.filler()).expect("created");
        let chunk = vec![0; 64 << 10];
        while file.write_all(&chunk).is_ok() {}
        while file.write_all(&[0]).is_ok() {}
    }

    fn free(&self) {
        std::fs::remove_file(self.filler()).expect("removed");
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        if self.is_mounted {
            // Lazily: the process that is about to be killed may still have files open.
            let _ = Command::new("umount").arg("-l").arg(self.path()).status();
        }
    }
}
