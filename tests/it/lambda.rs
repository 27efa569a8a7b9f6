//! The heart: whatever happens in whatever order, the merged view equals a recomputation over all raw events.

use std::path::Path;
use std::sync::Arc;

use futures::future::try_join_all;
use iot_batch_layer::upkeep::UpkeepConfig;
use iot_ingest::Message;
use iot_schemas::batch::{BatchRequest, BatchRunner, Views};
use iot_schemas::control::Control;
use iot_schemas::view::Layer;
use iot_serving::query::{Queries, QueryRequest};
use iot_tests::line::open;
use iotctl::line::Line;
use proptest::prelude::*;

const CATALOG: &str = r#"
kind: stream
name: readings
topics: ["devices/{device_id}/telemetry"]
event_time: {field: ts, unit: ms}
fields: {temperature: double, n: bigint, status: text}
---
kind: view
name: by_minute
sql: |
  SELECT device_id, tumble(event_time, INTERVAL '1 minute') AS window_start, count(*) AS c, sum(n) AS s,
         min(temperature) AS lo, max(temperature) AS hi, avg(temperature) AS mean,
         count(DISTINCT status) AS kinds, last_value(n ORDER BY event_time, n) AS last_n,
         last(status, event_time) AS newest, mode(status) AS mode, slope(temperature, event_time) AS slope,
         sketch_percentile(percentile_sketch(temperature), 0.9) AS p90,
         series_increase(time_series(n, event_time)) AS grown, histogram(n, 0, 100, 4)[2] AS low
  FROM readings GROUP BY device_id, window_start
batch: {every: 1d}
---
kind: view
name: busy
sql: |
  SELECT tumble(event_time, INTERVAL '1 hour') AS hour, count(*) AS c, sum(n) + 1 AS s, stddev(temperature) AS d
  FROM readings WHERE status <> 's0' OR status IS NULL GROUP BY hour HAVING count(*) > 2
batch: {every: 1d}
---
kind: view
name: total
sql: SELECT count(*) AS c, median(n) AS m, max(event_time) AS newest FROM readings
batch: {every: 1d}
"#;

/// What can happen to a line.
#[derive(Debug, Clone)]
pub(super) enum Step {
    /// Events arrive: (minutes before or after the start, device, temperature, n, status).
    Events(Vec<Event>),
    /// The open epoch is sealed.
    Seal,
    /// An incremental batch run.
    Batch,
    /// A batch run from the first event.
    FullBatch,
    /// A batch run of one view only.
    OneView(usize),
    /// Small files are compacted, state is merged into state.
    Compact,
    /// The process ends and comes back.
    Restart,
}

type Event = (i64, u8, Option<i32>, i64, Option<u8>);

fn events() -> impl Strategy<Value = Vec<Event>> {
    // Mostly near the present, some days late, some ahead; few devices, so that keys repeat.
    let minutes = prop_oneof![6 => 0i64..90, 2 => -43_200i64..0, 1 => 90i64..3_000];
    let event = (minutes, 0u8..6, prop::option::of(-5_000..5_000), -50i64..50, prop::option::of(0u8..4));
    prop::collection::vec(event, 1..60)
}

pub(super) fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => events().prop_map(Step::Events),
        3 => Just(Step::Seal),
        3 => Just(Step::Batch),
        1 => Just(Step::FullBatch),
        1 => (0usize..3).prop_map(Step::OneView),
        1 => Just(Step::Compact),
        1 => Just(Step::Restart),
    ]
}

async fn send(line: &Line, events: &[Event]) {
    const START_MS: i64 = 1_760_000_000_000;
    let messages = events.iter().map(|(minutes, device, temperature, n, status)| {
        let mut payload = serde_json::json!({ "ts": START_MS + minutes * 60_000 + n * 7, "n": n });
        if let Some(temperature) = temperature {
            payload["temperature"] = (f64::from(*temperature) / 7.0).into();
        }
        if let Some(status) = status {
            payload["status"] = format!("s{status}").into();
        }
        line.ingest.submit(Message::new(format!("devices/d{device}/telemetry"), payload.to_string()))
    });
    try_join_all(messages).await.expect("every message is taken");
}

pub(super) async fn take(line: Arc<Line>, dir: &Path, step: &Step) -> Arc<Line> {
    let batch = |request: BatchRequest| async {
        line.batch.run(request).await.expect("the batch runs");
    };
    match step {
        Step::Events(events) => send(&line, events).await,
        Step::Seal => {
            line.ingest.seal_now().await.expect("it seals");
        }
        Step::Batch => batch(BatchRequest::default()).await,
        Step::FullBatch => batch(BatchRequest { full: true, ..BatchRequest::default() }).await,
        Step::OneView(i) => {
            let names = line.speed.names();
            let views = vec![names[*i % names.len()].to_string()];
            batch(BatchRequest { views, ..BatchRequest::default() }).await;
        }
        Step::Compact => line.keep_up(&UpkeepConfig { min_files: 2, ..UpkeepConfig::default() }, false).await,
        Step::Restart => {
            line.shutdown().await;
            drop(line);
            return open(dir).await;
        }
    }
    line
}

async fn count(line: &Line, sql: &str, layer: Layer) -> i64 {
    let request = QueryRequest { sql: sql.to_owned(), layer, max_rows: None };
    let answer = line.queries.execute(request).await.expect(sql);
    let column = answer.batches[0].column(0);
    arrow::array::AsArray::as_primitive::<arrow::datatypes::Int64Type>(column).value(0)
}

async fn check(line: &Line, sent: usize, step: &Step) {
    line.settle().await;
    for report in line.verify(None).await.expect("it verifies") {
        assert_eq!(report.differences, 0, "{step:?}: {} {:#?}", report.view, report.examples);
        assert_eq!(report.events, sent as u64, "{step:?}: no event is missing or doubled in raw");
    }
    assert_eq!(count(line, "SELECT count(*) FROM readings", Layer::Merged).await, sent as i64, "{step:?}");
    if sent > 0 {
        let sum = "SELECT coalesce(sum(c), 0)::bigint FROM by_minute";
        let (batch, speed) = (count(line, sum, Layer::Batch).await, count(line, sum, Layer::Speed).await);
        assert_eq!(batch + speed, sent as i64, "{step:?}: batch {batch} and speed {speed} share the events");
    }
}

/// Event time never moves back, whatever comes late; and a restart changes nothing about it.
fn check_time(before: &Time, now: &Time, step: &Step) {
    assert!(now.watermark >= before.watermark, "{step:?}: {before:?}, then {now:?}");
    let (late, late_before) = (now.late.num_rows(), before.late.num_rows());
    assert!(late >= late_before, "{step:?}: entries are forgotten, {late_before}, then {late}");
    if !matches!(step, Step::Events(_)) {
        assert_eq!(now, before, "{step:?}");
    }
}

/// Event time as readers see it.
#[derive(Debug, PartialEq)]
struct Time {
    watermark: Option<i64>,
    late: arrow::array::RecordBatch,
}

impl Time {
    fn of(line: &Line) -> Self {
        Self { watermark: line.speed.progress("readings").watermark, late: line.speed.late_rows() }
    }
}

async fn history(steps: Vec<Step>) {
    let mut time: Option<Time> = None;
    history_of(CATALOG, &steps, async |line, sent, step| {
        check(line, sent, step).await;
        let now = Time::of(line);
        if let Some(before) = &time {
            check_time(before, &now, step);
        }
        time = Some(now);
    })
    .await;
}

/// Takes a new line of `catalog` through `steps`; `check` sees it after each, with the number of events sent so far.
pub(super) async fn history_of(
    catalog: &str,
    steps: &[Step],
    mut check: impl AsyncFnMut(&Line, usize, &Step),
) {
    let dir = tempfile::tempdir().expect("a directory");
    let mut line = open(dir.path()).await;
    line.apply(catalog, "test").await.expect("the catalog applies");
    let mut sent = 0;
    for step in steps {
        if let Step::Events(events) = step {
            sent += events.len();
        }
        line = take(line, dir.path(), step).await;
        check(&line, sent, step).await;
    }
    line.shutdown().await;
}

pub(super) fn run(work: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    runtime.expect("a runtime").block_on(work);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: cases(), max_shrink_iters: 40, ..ProptestConfig::default() })]

    #[test]
    fn merged_equals_recomputed_after_every_step(steps in prop::collection::vec(step(), 4..14)) {
        run(history(steps));
    }
}

/// Histories per run: few in CI, as many as `IOT_HISTORIES` says at night.
fn cases() -> u32 {
    std::env::var_os("IOT_HISTORIES").and_then(|n| n.to_str()?.parse().ok()).unwrap_or(24)
}

#[test]
fn the_known_hard_histories() {
    let some: Vec<Event> =
        (0..40).map(|i| (i % 7, (i % 3) as u8, Some(i as i32), i, Some((i % 3) as u8))).collect();
    let late: Vec<Event> = (0..10).map(|i| (i % 3, 0, None, i, None)).collect();
    let events = |events: &Vec<Event>| Step::Events(events.clone());
    // A batch while an epoch is open; late events into windows that batch has; a full run between incremental ones.
    for steps in [
        vec![Step::Batch, events(&some), Step::Batch, Step::Seal, Step::Batch, events(&late), Step::Batch],
        vec![events(&some), Step::Seal, events(&late), Step::Batch, Step::Restart, Step::Seal, Step::Batch],
        vec![
            events(&some),
            Step::Seal,
            Step::Batch,
            events(&late),
            Step::Seal,
            Step::FullBatch,
            Step::Compact,
        ],
        vec![
            events(&some),
            Step::Seal,
            Step::OneView(1),
            Step::Restart,
            events(&late),
            Step::Seal,
            Step::Compact,
        ],
        vec![
            events(&some),
            Step::Seal,
            Step::Batch,
            events(&some),
            Step::Seal,
            Step::Batch,
            Step::Compact,
            Step::FullBatch,
            Step::Restart,
        ],
    ] {
        run(history(steps));
    }
}
