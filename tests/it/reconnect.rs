//! An external broker that stops and comes back under load.

use std::io::Write;
use std::ops::Range;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use iot_tests::load::{Progress, assert_stored_once};
use iot_tests::{Mosquitto, PATIENCE, Server, external, pause, python, wait_a_little};
use serde_json::json;

use crate::crash::{CATALOG, check_at_the_end, loads, report, start, wait_for_rows, wait_for_subscription};

/// How many readings are piped before the broker is stopped.
const BURST: u32 = 20_000;

/// Gateways publish at QoS 2 here: with QoS 1 the broker itself takes what was acknowledged into nowhere, and
/// sent again, for another message.
#[test]
fn ingest_comes_back_to_its_broker_and_nothing_is_lost_or_doubled() {
    if python("paho.mqtt.client").is_none() {
        return;
    }
    let Some(mut mosquitto) = Mosquitto::start() else { return };
    let dir = tempfile::tempdir().expect("a directory");
    let server = start(dir.path(), &["--broker", &mosquitto.url()]);
    wait_for_subscription(&server);
    wait_for_readiness(&server, true);
    let loads = loads(mosquitto.port, 2);
    for stop in 1..=3 {
        pause(Duration::from_millis(1_500));
        mosquitto.stop();
        wait_for_readiness(&server, false);
        let (_, reason) = server.get_text("/readyz");
        assert!(reason.contains("broker"), "the reason is told: {reason}");
        pause(Duration::from_millis(300 * stop));
        mosquitto.start_again();
        wait_for_readiness(&server, true);
        let acked = loads.each_ref().map(|load| load.progress().acked());
        loads.iter().zip(acked).for_each(|(load, acked)| load.wait_for_acked(acked + 100));
    }
    let sent: Vec<(&str, Progress)> = loads.into_iter().map(|load| (load.name(), load.finish())).collect();
    wait_for_rows(&server, &sent);
    check_at_the_end(&server, &sent);
    let broker = server.status()["broker"].clone();
    assert!(broker["reconnects"].as_u64() >= Some(3), "{broker}");
    eprintln!("{broker}");
    report(&sent);
}

/// As much as its socket holds is acknowledged at once by a process that gets no time in between, and a Mosquitto
/// that is stopped at that moment delivers more than the receive maximum again. The stream has no `dedup`.
#[test]
fn a_broker_that_stops_before_it_has_read_the_acknowledgements_doubles_nothing() {
    let (Some(mosquitto_pub), Some(mut mosquitto)) = (external("mosquitto_pub"), Mosquitto::start()) else {
        return;
    };
    let dir = tempfile::tempdir().expect("a directory");
    let server = start(dir.path(), &["--broker", &mosquitto.url()]);
    wait_for_subscription(&server);
    for round in 0..5 {
        let done = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !done.load(Ordering::Relaxed) {
                    signal(&server, "-STOP");
                    pause(Duration::from_millis(250));
                    signal(&server, "-CONT");
                    pause(Duration::from_millis(30));
                }
            });
            pipe(&mosquitto_pub, mosquitto.port, "piped", round * BURST..(round + 1) * BURST);
            mosquitto.stop();
            done.store(true, Ordering::Relaxed);
        });
        mosquitto.start_again();
        pause(Duration::from_millis(500));
    }
    wait_for_count(&server, "SELECT count(DISTINCT n) FROM readings", i64::from(5 * BURST));
    // A copy that is still on its way would come now.
    pause(Duration::from_millis(500));
    let doubled =
        server.number("SELECT count(*) FROM (SELECT n FROM readings GROUP BY n HAVING count(*) > 1)");
    assert_eq!(doubled, 0, "{}", server.status());
    eprintln!("{} deliveries again", server.status()["ingest"]["redelivered"]);
}

/// What several connections get by topic is in order, and what they share is not; a killed process changes nothing in that.
#[test]
fn topics_on_several_connections_keep_the_order_of_a_device() {
    let (Some(mosquitto_pub), Some(mosquitto)) = (external("mosquitto_pub"), Mosquitto::start()) else {
        return;
    };
    let dir = tempfile::tempdir().expect("a directory");
    let url = mosquitto.url();
    let settings = format!(
        "broker: {{url: \"{url}\", connections: 2, distribution: topics, topics: [\"devices/a/#\", \"devices/b/#\"]}}\n"
    );
    let mut server = Server::with_catalog(dir.path(), &settings, CATALOG, &[]);
    wait_for_subscription(&server);
    assert_eq!(server.status()["broker"]["connections"], 2);
    for round in 0..2 {
        server = std::thread::scope(|scope| {
            for device in ["a", "b", "c"] {
                let (program, port) = (&mosquitto_pub, mosquitto.port);
                scope.spawn(move || pipe(program, port, device, round * BURST..(round + 1) * BURST));
            }
            pause(Duration::from_millis(300));
            server.kill_and_restart()
        });
    }
    wait_for_count(&server, "SELECT count(*) FROM readings", i64::from(2 * 2 * BURST));
    pause(Duration::from_millis(500));
    let rows = server.query(
        "SELECT device_id, count(*) AS c, count(DISTINCT n) AS d, count(*) FILTER (WHERE n < before) AS swapped
         FROM (SELECT device_id, n, lag(n) OVER (PARTITION BY device_id ORDER BY _seq, _index) AS before FROM readings)
         GROUP BY 1 ORDER BY 1",
    );
    let all = |device| json!({"device_id": device, "c": 2 * BURST, "d": 2 * BURST, "swapped": 0});
    assert_eq!(rows, [all("a"), all("b")], "nobody subscribes to the topics of c");
}

fn signal(server: &Server, name: &str) {
    let _ = Command::new("kill").args([name, &server.pid().to_string()]).status();
}

/// Publishes numbered readings at QoS 1 as fast as `mosquitto_pub` does it, and waits until the broker has them.
fn pipe(mosquitto_pub: &Path, port: u16, device: &str, numbers: Range<u32>) {
    let topic = format!("devices/{device}/telemetry");
    let mut client = Command::new(mosquitto_pub)
        .args(["-p", &port.to_string(), "-V", "mqttv5", "-q", "1", "-l", "-t", &topic])
        .stdin(Stdio::piped())
        .spawn()
        .expect("mosquitto_pub starts");
    let lines: String = numbers
        .map(|n| format!("{{\"source\":\"{device}\",\"n\":{n},\"temperature\":20,\"ts\":1760000000000}}\n"))
        .collect();
    // Dropped, the pipe ends.
    client.stdin.take().expect("a pipe").write_all(lines.as_bytes()).expect("it reads");
    assert!(client.wait().expect("it ends").success());
}

fn wait_for_readiness(server: &Server, ready: bool) {
    let deadline = Instant::now() + PATIENCE;
    while server.is_ready() != ready {
        assert!(Instant::now() < deadline, "ready is not {ready}: {}", server.status());
        wait_a_little();
    }
}

/// Several sessions share the load, and when one takes over alone it does not get everything twice.
#[test]
fn several_connections_share_the_load_and_nothing_is_lost_or_doubled() {
    if python("paho.mqtt.client").is_none() {
        return;
    }
    let Some(mosquitto) = Mosquitto::start() else { return };
    let dir = tempfile::tempdir().expect("a directory");
    let url = mosquitto.url();
    let server = start(dir.path(), &["--broker", &url, "--broker-connections", "4"]);
    wait_for_subscription(&server);
    assert_eq!(server.status()["broker"]["connections"], 4);
    let loads = loads(mosquitto.port, 1);
    loads.iter().for_each(|load| load.wait_for_acked(500));
    let server = server.kill_and_restart();
    let acked = loads.each_ref().map(|load| load.progress().acked());
    loads.iter().zip(acked).for_each(|(load, acked)| load.wait_for_acked(acked + 500));
    let sent: Vec<(&str, Progress)> = loads.into_iter().map(|load| (load.name(), load.finish())).collect();
    wait_for_rows(&server, &sent);
    for (name, progress) in &sent {
        assert_stored_once(&server, name, progress);
    }
    assert_eq!(server.verify(), 0);
    let stored = server.number("SELECT count(*) FROM readings");
    assert!(server.stop());

    let alone = start(dir.path(), &["--broker", &url]);
    wait_for_subscription(&alone);
    let payload = r#"{"source":"alone","n":1,"temperature":20,"ts":1760000000000}"#;
    iot_tests::iotctl(&["publish", "devices/alone-1/telemetry", payload, "--mqtt", &url]);
    wait_for_count(&alone, "SELECT count(*) FROM readings", stored + 1);
    pause(Duration::from_millis(500));
    assert_eq!(alone.number("SELECT count(*) FROM readings"), stored + 1, "it came twice");

    // In a session that an earlier process has begun, too, new streams are subscribed to.
    alone.apply("kind: stream\nname: extra\ntopics: [\"extra/{device_id}\"]\n");
    pause(Duration::from_millis(500));
    iot_tests::iotctl(&["publish", "extra/d", r#"{"a":1}"#, "--mqtt", &url]);
    wait_for_count(&alone, "SELECT count(*) FROM extra", 1);
}

fn wait_for_count(server: &Server, sql: &str, rows: i64) {
    let deadline = Instant::now() + PATIENCE;
    while server.number(sql) < rows {
        assert!(Instant::now() < deadline, "it does not arrive");
        wait_a_little();
    }
}
