//! The speed layer alone: Arrow micro-batches in, view state out, through the engine as a server runs it.
//! `cargo bench --bench speed`
//!
//! 10 M events of 4,000 series in micro-batches of 8,192 rows, 5% of them late by up to 30 s; for 1, 10 and 50 views
//! on the stream. Printed per CPU-second of the whole process. `cargo bench --bench speed -- last` does so for one view on a
//! stream with 20 columns, without and with its last-value view.

use std::sync::Arc;
use std::time::Instant;

use arrow::array::{
    ArrayRef, Float64Array, Int32Array, Int64Array, RecordBatch, StringArray, TimestampMicrosecondArray,
};
use arrow::datatypes::{DataType, Field, SchemaRef};
use iot_schemas::batch::Views;
use iot_schemas::catalog::{BatchSchedule, Definition, Kind, StreamDef, ViewDef};
use iot_schemas::clock::Clock;
use iot_schemas::layout::raw_schema;
use iot_schemas::micro_batch::{LineEvent, LogGroup, MicroBatch};
use iot_schemas::position::NodeId;
use iot_schemas::raw::{Checkpoint, RawSnapshot, RawStreams};
use iot_schemas::table::{Store, Table, TableSpec};
use iot_schemas::view::Layer;
use iot_speed_layer::alert_log::{AlertLog, AlertLogLimits};
use iot_speed_layer::{Engine, EngineConfig};

#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

const EVENTS: usize = 10_000_000;
const ROWS: usize = 8_192;
const SERIES: usize = 4_000;
const STREAM: &str = "readings";

fn main() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    println!("views   events/CPU-s   CPU-s   wall-s   state rows   state MiB");
    if std::env::args().any(|arg| arg == "last") {
        let batches = events(&schema(18));
        for last_values in [false, true, false, true] {
            runtime.block_on(measure(1, last_values, &batches));
        }
        return;
    }
    let batches = events(&schema(0));
    let wanted = std::env::args().skip(1).filter_map(|arg| arg.parse().ok()).collect::<Vec<usize>>();
    let wanted = if wanted.is_empty() { vec![1, 10, 50] } else { wanted };
    for views in wanted {
        runtime.block_on(measure(views, false, &batches));
    }
}

/// The first is the one of the promise. The others are what a plant has: other windows, other keys, other measures.
fn views(count: usize) -> Vec<ViewDef> {
    let windows = ["1 minute", "5 minutes", "10 seconds", "15 minutes", "1 hour"];
    let keys = ["device_id, metric, ", "device_id, ", "metric, ", ""];
    let measures = [
        "count(*) AS c, sum(value) AS s, min(value) AS lo, max(value) AS hi, avg(value) AS a",
        "count(*) AS c, avg(value) AS a",
        "min(value) AS lo, max(value) AS hi",
    ];
    let sql = |i: usize| {
        let (key, window) = (keys[i % keys.len()], windows[i % windows.len()]);
        let measure = measures[i / 20 % measures.len()];
        format!(
            "SELECT {key}tumble(event_time, INTERVAL '{window}') AS w, {measure} FROM {STREAM} GROUP BY {key}w"
        )
    };
    let view = |i: usize| ViewDef {
        kind: Kind::View,
        name: format!("v{i}"),
        sql: sql(i),
        batch: BatchSchedule::default(),
        retention: None,
        generated: false,
    };
    (0..count).map(view).collect()
}

/// The stream's columns: the metric, its value, and so many more values.
fn schema(more: usize) -> SchemaRef {
    let value = |name: String| Field::new(name, DataType::Float64, true);
    let values = ["value".to_owned()].into_iter().chain((0..more).map(|i| format!("value_{i}"))).map(value);
    raw_schema([Field::new("metric", DataType::Utf8, true)].into_iter().chain(values))
}

/// All events, so that making them is not measured. Each series sends once a second.
fn events(schema: &SchemaRef) -> Vec<RecordBatch> {
    let batch = |from: usize| {
        let rows = from..(from + ROWS).min(EVENTS);
        let late = |i: usize| if i % 20 == 7 { (i * 7_919 % 30_000_000) as i64 } else { 0 };
        let time = |i: usize| 1_760_000_000_000_000 + (i / SERIES) as i64 * 1_000_000 - late(i);
        let times = |f: &dyn Fn(usize) -> i64| -> ArrayRef {
            Arc::new(TimestampMicrosecondArray::from_iter_values(rows.clone().map(f)).with_timezone("UTC"))
        };
        let series = |i: usize| i % SERIES;
        let value: ArrayRef =
            Arc::new(Float64Array::from_iter_values(rows.clone().map(|i| (i % 1_000) as f64 / 7.0)));
        let before: Vec<ArrayRef> = vec![
            times(&time),
            Arc::new(
                rows.clone().map(|i| Some(format!("device-{:04}", series(i) / 4))).collect::<StringArray>(),
            ),
            Arc::new(
                rows.clone()
                    .map(|i| Some(["temperature", "humidity", "vibration", "power"][series(i) % 4]))
                    .collect::<StringArray>(),
            ),
        ];
        let after: Vec<ArrayRef> = vec![
            Arc::new(StringArray::from(vec!["devices/d/telemetry"; rows.len()])),
            times(&|i| 1_760_000_000_000_000 + (i / SERIES) as i64 * 1_000_000),
            Arc::new(StringArray::from(vec!["local"; rows.len()])),
            Arc::new(Int64Array::from_iter_values(rows.clone().map(|i| (i / ROWS) as i64 + 1))),
            Arc::new(Int32Array::from_iter_values(rows.clone().map(|i| (i % ROWS) as i32))),
        ];
        let values = vec![value; schema.fields().len() - before.len() - after.len()];
        let columns = before.into_iter().chain(values).chain(after).collect();
        RecordBatch::try_new(schema.clone(), columns).expect("a batch")
    };
    (0..EVENTS).step_by(ROWS).map(batch).collect()
}

/// The stream, of which nothing is sealed.
#[derive(Debug)]
struct Raw {
    def: Arc<StreamDef>,
    schema: SchemaRef,
    table: Table,
}

impl RawStreams for Raw {
    fn names(&self) -> Vec<Arc<str>> {
        vec![STREAM.into()]
    }

    fn definition(&self, stream: &str) -> Option<Arc<StreamDef>> {
        (stream == STREAM).then(|| self.def.clone())
    }

    fn snapshot(&self, _: &str) -> iot_schemas::Result<RawSnapshot> {
        Ok(RawSnapshot {
            schema: self.schema.clone(),
            sealed: self.table.snapshot(),
            tail: Vec::new(),
            renames: Default::default(),
        })
    }
}

async fn measure(count: usize, last_values: bool, batches: &[RecordBatch]) {
    let schema = batches[0].schema();
    let dir = tempfile::tempdir().expect("a directory");
    let store = Store::local(dir.path()).expect("a store");
    let node: NodeId = "local".into();
    let spec = TableSpec {
        path: "raw".into(),
        schema: schema.clone(),
        partition_by: vec![],
        stats_columns: vec![],
        nodes: vec![node.clone()],
    };
    let table = Table::open(&store, spec).await.expect("a table");
    let yaml =
        "kind: stream\nname: readings\ntopics: [\"devices/{device_id}/telemetry\"]\nallowed_lateness: 1m\n";
    let documents = iot_schemas::catalog::parse(yaml, "bench").expect("parses");
    let Definition::Stream(def) = documents[0].def.clone() else { unreachable!("it is a stream") };
    let raw = Arc::new(Raw { def, schema, table });
    let alerts = AlertLog::open(&dir.path().join("alerts"), AlertLogLimits::default()).expect("a log");
    let config = EngineConfig { node: node.clone(), checkpoint_path: dir.path().join("rules.ckpt"), store };
    let (mut engine, speed) =
        Engine::new(config, raw, Arc::new(alerts), Arc::new(Checkpoint::default()), Clock::system());
    for view in views(count) {
        engine.put_view(Arc::new(view)).await.expect("the view is put");
    }
    if last_values {
        assert!(engine.keep_last_values_at_hand(STREAM).await.expect("the view is put"));
    }
    let (sender, receiver) = tokio::sync::mpsc::channel(64);
    let engine = tokio::spawn(engine.run(receiver));
    let (started, cpu) = (Instant::now(), cpu_seconds());
    for (i, rows) in batches.iter().enumerate() {
        let seq = i as u64 + 1;
        let batch = MicroBatch {
            stream: STREAM.into(),
            node: node.clone(),
            first_seq: seq,
            last_seq: seq,
            rows: rows.clone(),
        };
        let group = LogGroup {
            node: node.clone(),
            first_seq: seq,
            last_seq: seq,
            batches: vec![batch],
            statuses: Vec::new(),
            replayed: Vec::new(),
        };
        sender.send(LineEvent::Group(group)).await.expect("the engine runs");
    }
    drop(sender);
    engine.await.expect("the engine ends");
    let counted = check(&*speed).await;
    let cpu = cpu_seconds() - cpu;
    assert_eq!(counted, EVENTS as i64, "every event is in the view");
    let stats = speed.stats();
    println!(
        "{count:>5}{} {:>12.2e}   {cpu:>5.1}   {:>6.1}   {:>10}   {:>9}",
        if last_values { "+l" } else { "  " },
        EVENTS as f64 / cpu,
        started.elapsed().as_secs_f64(),
        stats.state_rows,
        stats.state_bytes >> 20
    );
}

/// The number of events that the first view counts.
async fn check(views: &dyn Views) -> i64 {
    let snapshot = views.snapshot("v0").expect("there");
    let rows = snapshot.rows(Layer::Merged).await.expect("plans");
    let context = iot_schemas::session::small_context();
    let rows = context.execute_logical_plan(rows).await.expect("plans").collect().await.expect("runs");
    let count = |batch: &RecordBatch| {
        let counts = batch.column_by_name("c").expect("a column").clone();
        let counts = arrow::array::AsArray::as_primitive::<arrow::datatypes::Int64Type>(&counts).clone();
        arrow::compute::sum(&counts).unwrap_or(0)
    };
    rows.iter().map(count).sum()
}

/// User and system time of this process.
fn cpu_seconds() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    let ticks = |at: usize| fields.get(at).and_then(|field| field.parse::<f64>().ok()).unwrap_or(0.0);
    (ticks(11) + ticks(12)) / 100.0
}
