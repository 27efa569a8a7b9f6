//! Messages over real brokers: how much of what a broker can deliver the line makes durable, decodes and counts in a view.
//! `cargo bench --bench mqtt`
//!
//! Publishers, broker and whoever takes the messages share the machine, so every row says how many CPU-seconds each
//! of them took. The same publishers send the same messages to Mosquitto with a subscriber that only counts, to Mosquitto
//! with `iotctl`, and to the embedded broker; the rounds alternate, and each figure is the median of the rounds.
//!
//! JSON of 150 bytes with 4 fields, QoS 1, 100 gateways with 20 messages in flight each; then the same with 50
//! readings in a message.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use iot_tests::{Mosquitto, Server, pause, workspace};

/// Readings of a message, and messages of a round.
const SHAPES: [(usize, usize); 2] = [(1, 200_000), (50, 40_000)];
const ROUNDS: usize = 3;
const GATEWAYS: usize = 100;
/// Messages of a gateway that may be unacknowledged; what a broker of version 3.1.1 grants by default.
const IN_FLIGHT: usize = 20;
/// The kernel's clock ticks, in which it counts CPU time.
const TICKS_PER_S: f64 = 100.0;

const CATALOG: &str = r#"
kind: stream
name: readings
topics: ["devices/{device_id}/telemetry"]
event_time: {field: ts, unit: ms}
fields: {temperature: double, humidity: double, status: text}
---
kind: view
name: climate_1m
sql: |
  SELECT device_id, tumble(event_time, INTERVAL '1 minute') AS window_start, count(*) AS n,
         avg(temperature) AS avg_temperature, max(temperature) AS max_temperature
  FROM readings GROUP BY device_id, window_start
batch: {every: 1d}
"#;

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let numbers: Vec<usize> = args.iter().filter_map(|arg| arg.parse().ok()).collect();
    match (args.first().map(String::as_str), numbers.as_slice()) {
        (Some("publish"), [port, messages, readings]) => publish(*port, *messages, *readings),
        (Some("count"), [port, messages]) => count(*port, *messages),
        _ => compare(),
    }
}

/// What a round took.
#[derive(Debug, Clone, Copy)]
struct Round {
    seconds: f64,
    publishers: f64,
    broker: f64,
    taker: f64,
}

/// Sends so many messages of so many readings through one of the ways; `None` where Mosquitto is missing.
type Run = fn(usize, usize) -> Option<Round>;

fn compare() {
    build_iotctl();
    println!(
        "readings/message   taker                 messages/s   readings/s   CPU-s: publishers, broker, taker"
    );
    for (readings, messages) in SHAPES {
        let takers: [(&str, Run); 3] =
            [("Mosquitto, bare", bare), ("Mosquitto, iotctl", external), ("embedded broker", embedded)];
        let mut rounds = vec![Vec::new(); takers.len()];
        for _ in 0..ROUNDS {
            for ((_, run), rounds) in takers.iter().zip(&mut rounds) {
                rounds.extend(run(messages, readings));
            }
        }
        let mut bare_rate = None;
        for ((name, _), mut rounds) in takers.iter().zip(rounds) {
            rounds.sort_by(|a, b| a.seconds.total_cmp(&b.seconds));
            let Some(Round { seconds, publishers, broker, taker }) = rounds.get(rounds.len() / 2) else {
                continue;
            };
            let rate = messages as f64 / seconds;
            let share = rate / *bare_rate.get_or_insert(rate);
            println!(
                "{readings:>16}   {name:<19}   {rate:>10.0}   {:>10.0}   {publishers:.1}, {broker:.1}, {taker:.1}   {:.0}% of bare",
                rate * readings as f64,
                share * 100.0
            );
        }
    }
}

/// Builds `iotctl` as this was built: `cargo bench --bench mqtt` builds the bench alone, and would measure what was there before.
fn build_iotctl() {
    // Run by hand, it takes what lies beside it.
    let Some(cargo) = std::env::var_os("CARGO") else { return };
    let this = std::env::current_exe().expect("a bench has a path");
    let target_dir = this.ancestors().nth(3).expect("benches lie in target/<profile>/deps");
    let profile = if cfg!(debug_assertions) { "dev" } else { "release" };
    let built = Command::new(cargo)
        .args(["build", "--quiet", "--bin", "iotctl", "--profile", profile, "--target-dir"])
        .arg(target_dir)
        .current_dir(workspace())
        .status();
    assert!(built.expect("cargo starts").success(), "`iotctl` could not be built");
}

/// A subscriber that counts, and acknowledges at once.
fn bare(messages: usize, readings: usize) -> Option<Round> {
    let mosquitto = Mosquitto::start()?;
    let mut counter = this("count", &[mosquitto.port.into(), messages]);
    let mut said = counter.stdout.take().expect("piped");
    let mut word = [0; 1];
    said.read_exact(&mut word).expect("it subscribes");
    let started = Instant::now();
    let publishers = publishers(mosquitto.port, messages, readings);
    said.read_exact(&mut word).expect("it counts");
    let seconds = started.elapsed().as_secs_f64();
    let taker = cpu_seconds(counter.id());
    let round = Round { seconds, publishers: ended(publishers), broker: cpu_seconds(mosquitto.pid()), taker };
    drop(counter.stdin.take());
    _ = counter.wait();
    Some(round)
}

fn external(messages: usize, readings: usize) -> Option<Round> {
    let mosquitto = Mosquitto::start()?;
    let url = mosquitto.url();
    let mut round = taken(&["--broker", &url], Some(mosquitto.port), messages, readings);
    round.broker = cpu_seconds(mosquitto.pid());
    Some(round)
}

fn embedded(messages: usize, readings: usize) -> Option<Round> {
    Some(taken(&[], None, messages, readings))
}

fn taken(extra: &[&str], broker: Option<u16>, messages: usize, readings: usize) -> Round {
    let dir = tempfile::tempdir().expect("a directory");
    let catalog = dir.path().join("catalog.yaml");
    std::fs::write(&catalog, CATALOG).expect("written");
    let mut args = vec!["--catalog", catalog.to_str().expect("utf-8")];
    args.extend(extra);
    let server = Server::start(&dir.path().join("data"), &args);
    if broker.is_some() {
        server.wait_for("the broker", |_| server.is_ready());
    }
    let before = cpu_seconds(server.pid());
    let started = Instant::now();
    let publishers = publishers(broker.unwrap_or_else(|| server.port("mqtt")), messages, readings);
    server.wait_for("the messages", |status| status["ingest"]["messages"].as_u64() >= Some(messages as u64));
    let in_view = "SELECT sum(n) FROM climate_1m";
    while server.number(in_view) < (messages * readings) as i64 {
        pause(Duration::from_millis(5));
    }
    let seconds = started.elapsed().as_secs_f64();
    let taker = cpu_seconds(server.pid()) - before;
    Round { seconds, publishers: ended(publishers), broker: 0.0, taker }
}

/// This program in another role.
fn this(role: &str, numbers: &[usize]) -> Child {
    Command::new(std::env::current_exe().expect("a path"))
        .arg(role)
        .args(numbers.iter().map(ToString::to_string))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("it starts")
}

fn publishers(port: u16, messages: usize, readings: usize) -> Child {
    this("publish", &[port.into(), messages, readings])
}

/// The CPU time of the publishers, who say how much that was when all is acknowledged.
fn ended(publishers: Child) -> f64 {
    let output = publishers.wait_with_output().expect("they end");
    String::from_utf8_lossy(&output.stdout).trim().parse().expect("CPU-seconds")
}

/// The CPU time, in seconds, that a process has taken, in user and kernel mode.
fn cpu_seconds(pid: u32) -> f64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let after_name = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
    let ticks: u64 =
        after_name.split_whitespace().skip(11).take(2).filter_map(|n| n.parse::<u64>().ok()).sum();
    ticks as f64 / TICKS_PER_S
}

/// The gateways, as cheap as they can be: one thread, plain sockets, MQTT 3.1.1.
fn publish(port: usize, messages: usize, readings: usize) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let per_gateway = messages / GATEWAYS;
    runtime
        .block_on(futures::future::join_all((0..GATEWAYS).map(|g| gateway(port, g, per_gateway, readings))));
    println!("{}", cpu_seconds(std::process::id()));
}

async fn gateway(port: usize, number: usize, messages: usize, readings: usize) {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let port = u16::try_from(port).expect("a port");
    let mut socket = tokio::net::TcpStream::connect(("127.0.0.1", port)).await.expect("connects");
    socket.set_nodelay(true).expect("a socket");
    socket.write_all(&connect_packet(&format!("gateway-{number}"))).await.expect("writes");
    let mut answer = [0; 4];
    socket.read_exact(&mut answer).await.expect("is let in");
    let topic = format!("devices/gateway-{number}/telemetry");
    let (mut sent, mut acked) = (0, 0);
    let (mut out, mut acks, mut have) = (Vec::new(), vec![0; 4 * IN_FLIGHT], 0);
    while acked < messages {
        out.clear();
        while sent < messages && sent - acked < IN_FLIGHT {
            publish_packet(&mut out, &topic, sent % 60_000 + 1, &payload(sent, readings));
            sent += 1;
        }
        socket.write_all(&out).await.expect("writes");
        have += socket.read(&mut acks[have..]).await.expect("is acknowledged");
        acked += have / 4;
        have %= 4;
    }
}

/// `readings` readings, each of 150 bytes, a second apart.
fn payload(message: usize, readings: usize) -> String {
    let reading = |i: usize| {
        let second = message * readings + i;
        let ts = 1_760_000_000_000_u64 + second as u64 * 1_000;
        let (temperature, humidity) = (second % 170, 400 + second % 310);
        format!(
            r#"{{"ts":{ts},"temperature":{}.{}5,"humidity":{}.{},"status":"{:<82}"}}"#,
            20 + temperature / 10,
            temperature % 10,
            humidity / 10,
            humidity % 10,
            "running; last self-test passed; firmware 4.11.2"
        )
    };
    match readings {
        1 => reading(0),
        _ => format!("[{}]", (0..readings).map(reading).collect::<Vec<_>>().join(",")),
    }
}

fn connect_packet(client_id: &str) -> Vec<u8> {
    let mut body = vec![0, 4, b'M', b'Q', b'T', b'T', 4, 2, 0, 60];
    text(&mut body, client_id);
    packet(0x10, &body)
}

fn publish_packet(out: &mut Vec<u8>, topic: &str, id: usize, payload: &str) {
    out.push(0x32);
    length(out, 2 + topic.len() + 2 + payload.len());
    text(out, topic);
    out.extend((id as u16).to_be_bytes());
    out.extend(payload.as_bytes());
}

fn text(out: &mut Vec<u8>, text: &str) {
    out.extend((text.len() as u16).to_be_bytes());
    out.extend(text.as_bytes());
}

fn packet(kind: u8, body: &[u8]) -> Vec<u8> {
    let mut out = vec![kind];
    length(&mut out, body.len());
    out.extend(body);
    out
}

fn length(out: &mut Vec<u8>, mut length: usize) {
    loop {
        let more = if length > 127 { 0x80 } else { 0 };
        out.push((length % 128) as u8 | more);
        length /= 128;
        if length == 0 {
            return;
        }
    }
}

/// The subscriber that only counts: plain sockets, every message acknowledged, as few writes as reads.
fn count(port: usize, messages: usize) {
    let port = u16::try_from(port).expect("a port");
    let mut socket = TcpStream::connect(("127.0.0.1", port)).expect("connects");
    socket.set_nodelay(true).expect("a socket");
    socket.write_all(&connect_packet("bare")).expect("writes");
    let mut answer = [0; 4];
    socket.read_exact(&mut answer).expect("is let in");
    let mut body = vec![0, 1];
    text(&mut body, "devices/+/telemetry");
    body.push(1);
    socket.write_all(&packet(0x82, &body)).expect("writes");
    let mut granted = [0; 5];
    socket.read_exact(&mut granted).expect("is granted");
    say(b"r");

    let (mut buffer, mut have, mut counted) = (vec![0; 1 << 20], 0, 0);
    while counted < messages {
        have += socket.read(&mut buffer[have..]).expect("reads");
        let (mut at, mut acks) = (0, Vec::new());
        while let Some((id, next)) = next_publish(&buffer[at..have]) {
            acks.extend([0x40, 2, id[0], id[1]]);
            counted += 1;
            at += next;
        }
        buffer.copy_within(at..have, 0);
        have -= at;
        socket.write_all(&acks).expect("writes");
    }
    say(b"d");
    // It goes on living until its time has been read.
    _ = std::io::stdin().read(&mut [0; 1]);
}

/// The packet identifier of the PUBLISH at the beginning of `bytes`, and where the next packet begins.
fn next_publish(bytes: &[u8]) -> Option<([u8; 2], usize)> {
    let (mut length, mut header) = (0, 1);
    loop {
        let byte = *bytes.get(header)?;
        length |= usize::from(byte & 127) << (7 * (header - 1));
        header += 1;
        if byte < 128 {
            break;
        }
    }
    let packet = bytes.get(header..header + length)?;
    assert!(packet.len() > 4 && bytes[0] >> 4 == 3, "only messages come");
    let id = 2 + usize::from(u16::from_be_bytes([packet[0], packet[1]]));
    Some(([packet[id], packet[id + 1]], header + length))
}

fn say(word: &[u8]) {
    let mut stdout = std::io::stdout();
    stdout.write_all(word).and_then(|()| stdout.flush()).expect("somebody listens");
}
