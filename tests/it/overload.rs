//! Far more load than can be taken: memory stays within its bound, nothing that was acknowledged is lost, and when
//! it is over all is well again within seconds. `IOT_OVERLOAD_SECONDS=60` for the long version.

use std::io::Write;
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use iot_tests::load::{Load, LoadOptions, assert_stored_once};
use iot_tests::{Server, pause};

const CATALOG: &str = r#"
kind: stream
name: readings
topics: ["devices/{device_id}/telemetry"]
event_time: {field: ts, unit: ms}
fields: {source: text, n: bigint, temperature: double}
---
kind: stream
name: chatter
topics: ["chatter/{device_id}"]
on_pressure: shed_newest
---
kind: view
name: by_second
sql: |
  SELECT device_id, tumble(event_time, INTERVAL '1 second') AS window_start, count(*) AS c
  FROM readings GROUP BY device_id, window_start
"#;
/// Half a MiB of events between two seals, each of which takes a second or more: that is all that can be taken.
const SETTINGS: &str = "ingest: {seal_age: 500ms, max_unsealed_bytes: 524288, queue_bytes: 4194304}\n";
const STORE: [&str; 4] = ["--store-faults", "hang=0.15", "--store-timeout", "400ms"];
/// What the process may have in memory beyond what it had before its first message. Unsealed events and the queue are
/// 5 MiB of it; nearly all is what a seal a second needs (docs/performance.md).
const MEMORY: u64 = 256 << 20;

#[test]
fn twenty_times_more_than_can_be_taken_costs_neither_memory_nor_messages() {
    let dir = tempfile::tempdir().expect("a directory");
    let server = Server::with_catalog(dir.path(), SETTINGS, CATALOG, &STORE);
    let port = server.port("mqtt");
    let before = server.resident_bytes();

    let names = ["load-a", "load-b", "load-c", "load-d"];
    let options = |name| LoadOptions { port, name, rate: 20_000, qos: 1, stretch: 1_000 };
    let loads = names.map(|name| Load::rumqttc(&options(name)));
    let flood = Flood::start(port);
    let (mut peak, mut waited) = (0, false);
    let until = Instant::now() + Duration::from_secs(seconds());
    while Instant::now() < until {
        peak = peak.max(server.resident_bytes());
        waited |= !server.is_ready();
        pause(Duration::from_millis(100));
    }
    let flooded = flood.stop();
    let stored: u64 = loads.iter().map(|load| load.progress().acked()).sum();
    let sent: Vec<_> = loads.into_iter().map(|load| (load.name(), load.finish())).collect();
    let began = Instant::now();
    server.wait_for("readiness", |_| server.is_ready());
    let recovery = began.elapsed();

    for (name, progress) in &sent {
        assert_stored_once(&server, name, progress);
    }
    let grown = peak.saturating_sub(before);
    assert!(grown < MEMORY, "memory grew by {} MiB", grown >> 20);
    assert!(waited, "it was never overloaded, or never said so");
    assert!(recovery < Duration::from_secs(20), "it took {recovery:?} to recover");
    assert_eq!(server.verify(), 0, "differences at the end");
    let shed = server.status()["ingest"]["shed"].as_u64().unwrap_or(0);
    assert!(shed > 0, "nothing was shed");
    let listed = "SELECT coalesce(sum(count), 0) FROM dropped WHERE device_id = 'd' AND reason = 'shed'";
    assert_eq!(server.number(listed), shed as i64, "what is shed is listed");
    eprintln!(
        "{stored} readings acknowledged under load, {flooded} more messages offered of which {shed} were shed; \
         memory grew by {} MiB; recovered in {recovery:.1?}",
        grown >> 20
    );
}

/// Messages at QoS 0 that come as fast as the socket takes them.
struct Flood {
    stop: Arc<AtomicBool>,
    sent: Arc<AtomicU64>,
    thread: std::thread::JoinHandle<()>,
}

impl Flood {
    fn start(port: u16) -> Self {
        let (stop, sent) = (Arc::<AtomicBool>::default(), Arc::<AtomicU64>::default());
        let (told, counted) = (stop.clone(), sent.clone());
        let thread = std::thread::spawn(move || flood(port, &told, &counted));
        Self { stop, sent, thread }
    }

    fn stop(self) -> u64 {
        self.stop.store(true, Ordering::Release);
        self.thread.join().expect("it ends");
        self.sent.load(Ordering::Relaxed)
    }
}

fn flood(port: u16, stop: &AtomicBool, sent: &AtomicU64) {
    let mut socket = TcpStream::connect(("127.0.0.1", port)).expect("connects");
    socket.set_write_timeout(Some(Duration::from_millis(200))).expect("a socket");
    socket.write_all(b"\x10\x11\x00\x04MQTT\x04\x02\x00\x3c\x00\x05flood").expect("writes");
    let body: &[u8] = br#"{"a":"the machine says the same again and again and again"}"#;
    let mut message = vec![0x30, (2 + 9 + body.len()) as u8, 0, 9];
    message.extend(b"chatter/d");
    message.extend(body);
    let burst = message.repeat(100);
    // A socket that is not read is not written to.
    let mut from = 0;
    while !stop.load(Ordering::Acquire) {
        match socket.write(&burst[from..]) {
            Ok(written) => {
                from += written;
                if from == burst.len() {
                    (from, _) = (0, sent.fetch_add(100, Ordering::Relaxed));
                }
            }
            Err(e) if matches!(e.kind(), std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut) => {}
            Err(e) => panic!("the connection is lost: {e}"),
        }
    }
}

#[expect(clippy::disallowed_methods, reason = "how long a test runs is for whoever runs it to say")]
fn seconds() -> u64 {
    std::env::var("IOT_OVERLOAD_SECONDS").ok().and_then(|seconds| seconds.parse().ok()).unwrap_or(8)
}
