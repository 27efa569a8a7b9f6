//! Figures, not checks: `cargo test -- --ignored --nocapture measure`.

use super::*;

/// What Linux says of this process's memory.
fn memory(which: &str) -> String {
    let status = std::fs::read_to_string("/proc/self/status").expect("linux");
    status.lines().find(|line| line.starts_with(which)).expect("a line").to_owned()
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "a measurement: cargo test -- --ignored --nocapture pipeline_speed"]
async fn pipeline_speed() {
    let dir = tempfile::tempdir().expect("a directory");
    let world = start(dir.path(), &[EVENTS]).await;
    let count = 300_000;
    let began = std::time::Instant::now();
    let (tickets, mut taken) = mpsc::channel(8_192);
    let ingest = world.ingest.clone();
    tokio::spawn(async move {
        for i in 0..count {
            let payload = format!(
                "{{\"ts\":{},\"temperature\":21.5,\"humidity\":40.25,\"rpm\":1500}}",
                1_700_000_000_000_i64 + i
            );
            let message = Message::new(format!("devices/d{}/telemetry", i % 100), payload);
            tickets.send(ingest.enqueue(message).await.expect("taken")).await.expect("wanted");
        }
    });
    while let Some(ticket) = taken.recv().await {
        ticket.await.expect("durable");
    }
    let durable = began.elapsed().as_secs_f64();
    world.ingest.seal_now().await.expect("it seals");
    let (sealed, stats) = (began.elapsed().as_secs_f64(), world.ingest.stats());
    println!(
        "{:.0} durable/s, {:.0} sealed/s, {} fsyncs, {} seals",
        count as f64 / durable,
        count as f64 / sealed,
        stats.fsyncs,
        stats.seals
    );
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "a measurement: cargo test -- --ignored --nocapture many_seals"]
async fn many_seals() {
    let dir = tempfile::tempdir().expect("a directory");
    let world = start(dir.path(), &[EVENTS]).await;
    for round in 0..5 {
        let began = std::time::Instant::now();
        for i in 0..100 {
            world.submit("a", &format!("{{\"v\":{i}}}")).await;
            world.ingest.seal_now().await.expect("it seals");
        }
        println!("round {round}: {:.1} ms a seal, {}", began.elapsed().as_secs_f64() * 10.0, memory("VmRSS"));
    }
}

/// A message with an event of each of 3,000 days.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "a measurement: cargo test -- --ignored --nocapture many_dates"]
async fn many_dates() {
    let dir = tempfile::tempdir().expect("a directory");
    let world = start(dir.path(), &["kind: stream\nname: events\ntopics: [\"devices/{device_id}/telemetry\"]\nevent_time: {field: ts, unit: ms}\n"]).await;
    let days = 3_000;
    let events: Vec<String> = (0..days).map(|day| format!("{{\"ts\":{}}}", day * 86_400_000)).collect();
    let began = std::time::Instant::now();
    world.submit("a", &format!("[{}]", events.join(","))).await;
    world.ingest.seal_now().await.expect("it seals");
    println!("{days} dates in {:.1?}, {}", began.elapsed(), memory("VmHWM"));
    let table = world.ingest.table("events").expect("a table").snapshot();
    assert_eq!((table.file_count() as i64, table.row_count() as i64), (days, days));
}
