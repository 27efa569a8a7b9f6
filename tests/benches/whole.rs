//! The line as a whole, in numbers: ingest rate, merged point queries at 1 M, 10 M and 100 M raw events, and 2,000 seals in
//! a row. `cargo bench --bench whole -- point` or `-- seals`

use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use futures::future::try_join_all;
use iot_batch_layer::upkeep::UpkeepConfig;
use iot_ingest::Message;
use iot_schemas::batch::{BatchRequest, BatchRunner};
use iot_schemas::control::Control;
use iot_serving::query::{Queries, QueryRequest};
use iotctl::line::Line;

// The allocator of `iotctl`, so that its memory is what is measured.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

const CATALOG: &str = r#"
kind: stream
name: readings
topics: ["devices/{device_id}/telemetry"]
event_time: {field: ts, unit: ms}
fields: {temperature: double, humidity: double}
---
kind: view
name: climate_1m
sql: |
  SELECT device_id, tumble(event_time, INTERVAL '1 minute') AS window_start, count(*) AS n,
         avg(temperature) AS avg_temperature, max(temperature) AS max_temperature
  FROM readings GROUP BY device_id, window_start
batch: {every: 1d}
"#;

const DEVICES: usize = 1_000;
/// Readings per message; gateways that batch send about so many.
const PER_MESSAGE: usize = 50;

fn main() {
    let filter = std::env::args().skip(1).find(|arg| !arg.starts_with('-')).unwrap_or_default();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let runtime = runtime.expect("a runtime");
    if "point".contains(&filter) {
        runtime.block_on(point());
    }
    if "seals".contains(&filter) {
        runtime.block_on(seals());
    }
}

async fn open(dir: &Path) -> Arc<Line> {
    let line = iot_tests::line::open(dir).await;
    line.apply(CATALOG, "bench").await.expect("the catalog applies");
    line
}

/// `count` readings, one per device and second in turn, from reading number `from` on.
async fn feed(line: &Line, from: usize, count: usize) {
    const START_MS: u64 = 1_760_000_000_000;
    let message = |m: usize| {
        let device = m % DEVICES;
        let readings = (0..PER_MESSAGE).map(|i| {
            let second = (m / DEVICES * PER_MESSAGE + i) as u64;
            let ts = START_MS + second * 1_000;
            format!(
                r#"{{"ts":{ts},"temperature":{}.5,"humidity":{}.25}}"#,
                20 + second % 17,
                40 + device % 31
            )
        });
        let payload = format!("[{}]", readings.collect::<Vec<_>>().join(","));
        Message::new(format!("devices/device-{device:04}/telemetry"), payload)
    };
    let messages: Vec<usize> = (from / PER_MESSAGE..(from + count) / PER_MESSAGE).collect();
    for chunk in messages.chunks(4_000) {
        try_join_all(chunk.iter().map(|m| line.ingest.submit(message(*m)))).await.expect("taken");
    }
    line.settle().await;
}

/// The time of a query for one device and one hour, the median of 31, in milliseconds.
async fn point_query(line: &Line) -> f64 {
    let sql = "SELECT * FROM climate_1m WHERE device_id = 'device-0042' \
               AND window_start >= to_timestamp_micros(1760000400000000) \
               AND window_start < to_timestamp_micros(1760004000000000)";
    let mut times = Vec::new();
    for _ in 0..31 {
        let started = Instant::now();
        let request = QueryRequest { sql: sql.to_owned(), layer: Default::default(), max_rows: None };
        let answer = line.queries.execute(request).await.expect("answers");
        assert!(answer.meta.rows > 0, "the query finds the device");
        times.push(started.elapsed().as_secs_f64() * 1e3);
    }
    times.sort_by(f64::total_cmp);
    times[times.len() / 2]
}

async fn point() {
    let dir = tempfile::tempdir().expect("a directory");
    let line = open(dir.path()).await;
    println!(
        "events     ingest events/s   state rows   point query: speed, sealed, batch, batch + speed (ms, median of 31)"
    );
    let mut fed = 0;
    for total in [1_000_000, 10_000_000, 100_000_000] {
        let started = Instant::now();
        feed(&line, fed, total - fed).await;
        let rate = (total - fed) as f64 / started.elapsed().as_secs_f64();
        fed = total;
        let speed = point_query(&line).await;
        line.ingest.seal_now().await.expect("seals");
        let sealed = point_query(&line).await;
        line.batch.run(BatchRequest::default()).await.expect("runs");
        line.keep_up(&UpkeepConfig::default(), false).await;
        let batch = point_query(&line).await;
        feed(&line, fed, 100_000).await;
        fed += 100_000;
        let both = point_query(&line).await;
        let rows = line.speed.stats().state_rows;
        println!("{total:>9}  {rate:>15.0}   {rows:>10}   {speed:.1}, {sealed:.1}, {batch:.1}, {both:.1}");
    }
    line.shutdown().await;
}

fn resident_mib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap_or_default().to_owned();
    line.split_whitespace().next().and_then(|kib| kib.parse::<u64>().ok()).unwrap_or(0) / 1024
}

/// 2,000 seals of 1,000 events each, with upkeep and a batch run every 25 seals, as a server with a short seal age would have it.
async fn seals() {
    let dir = tempfile::tempdir().expect("a directory");
    let line = open(dir.path()).await;
    println!("seals   median commit ms   p95 ms   files   resident MiB");
    let mut times = Vec::new();
    for seal in 1..=2_000usize {
        feed(&line, seal * 1_000, 1_000).await;
        let started = Instant::now();
        line.ingest.seal_now().await.expect("seals");
        times.push(started.elapsed().as_secs_f64() * 1e3);
        if seal % 25 == 0 {
            line.keep_up(&UpkeepConfig::default(), seal % 500 == 0).await;
            line.batch.run(BatchRequest::default()).await.expect("runs");
        }
        if seal % 100 == 0 && seal % 200 == 100 || seal == 2_000 {
            times.sort_by(f64::total_cmp);
            let files = line.ingest.table("readings").map_or(0, |table| table.snapshot().file_count());
            let (median, p95) = (times[times.len() / 2], times[times.len() * 95 / 100]);
            println!("{seal:>5}   {median:>16.1}   {p95:>6.1}   {files:>5}   {:>12}", resident_mib());
            times.clear();
        }
    }
    line.shutdown().await;
}
