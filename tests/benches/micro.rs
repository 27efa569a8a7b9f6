//! The costs of single steps: decoding, the log, state per micro-batch. `cargo bench --bench micro -- state`

use std::hint::black_box;
use std::sync::Arc;

use arrow::array::{Float64Array, Int64Array, RecordBatch, StringArray, TimestampMicrosecondArray};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use datafusion::catalog::memory::MemorySourceConfig;
use datafusion::physical_plan::aggregates::{AggregateExec, AggregateMode};
use datafusion::physical_plan::{ExecutionPlan, collect};
use datafusion::prelude::SessionContext;
use iot_ingest::bench::JsonBench;
use iot_schemas::catalog::{BatchSchedule, Kind, ViewDef};
use iot_schemas::layout::timestamp_type;
use iot_schemas::log::Log;
use iot_schemas::session::small_context;
use iot_schemas::view::{BatchPlan, CompiledView, plan_over_batches};

const SQL: &str = "SELECT device_id, metric, tumble(event_time, INTERVAL '1 minute') AS w, count(*) AS c, \
                   sum(value) AS s, avg(value) AS a, min(value) AS lo, max(value) AS hi \
                   FROM readings GROUP BY device_id, metric, w";

fn schema() -> SchemaRef {
    Arc::new(Schema::new(vec![
        Field::new("event_time", timestamp_type(), false),
        Field::new("device_id", DataType::Utf8, false),
        Field::new("metric", DataType::Utf8, false),
        Field::new("value", DataType::Float64, true),
        Field::new("n", DataType::Int64, true),
    ]))
}

/// `rows` readings of 1,000 devices with 4 metrics each, a second apart per round.
fn readings(rows: usize, from: usize) -> RecordBatch {
    let series = |i: usize| (from + i) % 4_000;
    let time = |i: usize| ((from + i) / 4_000) as i64 * 1_000_000;
    let devices: StringArray = (0..rows).map(|i| Some(format!("device-{:04}", series(i) / 4))).collect();
    let metrics: StringArray = (0..rows).map(|i| Some(["t", "h", "v", "p"][series(i) % 4])).collect();
    RecordBatch::try_new(
        schema(),
        vec![
            Arc::new(TimestampMicrosecondArray::from_iter_values((0..rows).map(time)).with_timezone("UTC")),
            Arc::new(devices),
            Arc::new(metrics),
            Arc::new(Float64Array::from_iter_values((0..rows).map(|i| i as f64 / 7.0))),
            Arc::new(Int64Array::from_iter_values((0..rows).map(|i| i as i64))),
        ],
    )
    .expect("a batch")
}

/// The view, compiled to logical combinators and planned once.
async fn combinators() -> (CompiledView, BatchPlan) {
    let def = ViewDef {
        kind: Kind::View,
        name: "v".into(),
        sql: SQL.into(),
        batch: BatchSchedule::default(),
        retention: None,
        generated: false,
    };
    let view = CompiledView::compile(Arc::new(def), "readings", &schema()).await.expect("compiles");
    let plan = plan_over_batches(&small_context(), view.input_schema(), |e| view.state_plan(e))
        .await
        .expect("plans");
    (view, plan)
}

/// The same aggregation taken out of DataFusion's physical plan and run as `Partial`.
struct Physical {
    context: SessionContext,
    aggregate: Arc<dyn ExecutionPlan>,
}

impl Physical {
    async fn new() -> Self {
        let context = small_context();
        context.register_batch("readings", readings(10, 0)).expect("registers");
        let plan = context.sql(SQL).await.expect("parses").create_physical_plan().await.expect("plans");
        let mut aggregate = plan;
        while aggregate.downcast_ref::<AggregateExec>().is_none() {
            aggregate = aggregate.children()[0].clone();
        }
        Self { context, aggregate }
    }

    async fn run(&self, batch: RecordBatch) -> Vec<RecordBatch> {
        let aggregate = self.aggregate.downcast_ref::<AggregateExec>().expect("found above");
        let wanted: Vec<usize> = aggregate
            .input()
            .schema()
            .fields()
            .iter()
            .map(|field| batch.schema_ref().index_of(field.name()).expect("a column"))
            .collect();
        let input = batch.project(&wanted).expect("projects");
        let schema = input.schema();
        let leaf = MemorySourceConfig::try_new_exec(&[vec![input]], schema.clone(), None).expect("a source");
        let partial = AggregateExec::try_new(
            AggregateMode::Partial,
            aggregate.group_expr().clone(),
            aggregate.aggr_expr().to_vec(),
            aggregate.filter_expr().to_vec(),
            leaf,
            schema,
        );
        collect(Arc::new(partial.expect("rebuilds")), self.context.task_ctx()).await.expect("runs")
    }
}

/// State rows per micro-batch: logical combinators against the physical plan, on one thread.
fn state(c: &mut Criterion) {
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
    let (_, plan) = runtime.block_on(combinators());
    let physical = runtime.block_on(Physical::new());
    let mut group = c.benchmark_group("state");
    group.sample_size(20);
    for rows in [1_024, 8_192, 65_536] {
        let batch = readings(rows, 0);
        group.throughput(Throughput::Elements(rows as u64));
        group.bench_with_input(BenchmarkId::new("combinators", rows), &batch, |b, batch| {
            b.iter(|| runtime.block_on(plan.run(vec![batch.clone()])).expect("runs"));
        });
        group.bench_with_input(BenchmarkId::new("physical", rows), &batch, |b, batch| {
            b.iter(|| black_box(runtime.block_on(physical.run(batch.clone()))));
        });
    }
    group.finish();
}

/// Merging the states of 32 micro-batches into one row per group.
fn merge(c: &mut Criterion) {
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
    let (view, plan) = runtime.block_on(combinators());
    let session = small_context();
    let merge = plan_over_batches(&session, view.state_schema(), |s| view.merge_plan(s));
    let merge = runtime.block_on(merge).expect("plans");
    let states: Vec<RecordBatch> = (0..32)
        .flat_map(|i| runtime.block_on(plan.run(vec![readings(8_192, i * 8_192)])).expect("runs"))
        .collect();
    let rows: usize = states.iter().map(RecordBatch::num_rows).sum();
    let mut group = c.benchmark_group("merge");
    group.sample_size(20).throughput(Throughput::Elements(rows as u64));
    group.bench_function("32 micro-batches", |b| {
        b.iter(|| runtime.block_on(merge.run(states.clone())).expect("merges"));
    });
    group.finish();
}

/// JSON messages of about 80 bytes into columns, on one core.
fn decode(c: &mut Criterion) {
    let mut group = c.benchmark_group("decode");
    group.sample_size(20);
    let payload = |i: usize| {
        format!(
            r#"{{"ts":{},"temperature":{}.25,"humidity":{}.5,"status":"ok"}}"#,
            1_760_000_000_000u64 + i as u64,
            i % 60,
            i % 100
        )
    };
    let messages: Vec<String> = (0..8_192).map(payload).collect();
    let mut bench = JsonBench::new("temperature: double, humidity: double, status: text");
    group.throughput(Throughput::Elements(messages.len() as u64));
    group.bench_function("json 80 bytes", |b| b.iter(|| black_box(bench.decode(&messages))));
    group.finish();
}

/// A group of messages appended to the log and fsynced.
fn log(c: &mut Criterion) {
    let mut group = c.benchmark_group("log");
    group.sample_size(20);
    for messages in [1usize, 100, 1_000, 8_192] {
        let dir = tempfile::tempdir().expect("a directory");
        let (mut log, _) = Log::open(dir.path(), 64 << 20, 1).expect("opens");
        let body = vec![7u8; messages * 120];
        group.throughput(Throughput::Elements(messages as u64));
        group.bench_function(BenchmarkId::new("append and fsync", messages), |b| {
            b.iter(|| {
                log.append(messages as u64, &body).expect("appends");
                log.sync().expect("syncs");
            });
        });
    }
    group.finish();
}

criterion_group!(benches, state, merge, decode, log);
criterion_main!(benches);
