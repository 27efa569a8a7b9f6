//! What the aggregates of time series cost beside the plain ones. `cargo bench --bench aggregates [-- ROWS]`
//!
//! Prints one line per query: its time and its ratio to count, sum, min, max and avg over the same rows and groups.
//! Three percentiles from one sketch are to stay below a ratio of 3.

use std::sync::Arc;
use std::time::{Duration, Instant};

use arrow::array::{Float64Array, RecordBatch, StringArray, TimestampMicrosecondArray};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use datafusion::datasource::MemTable;
use datafusion::execution::runtime_env::RuntimeEnv;
use datafusion::prelude::SessionContext;
use datafusion::sql::parser::Statement;
use iot_schemas::aggregates::rewrite;
use iot_schemas::layout::timestamp_type;
use iot_schemas::session::context;

const DEFAULT_ROWS: usize = 10_000_000;
/// One reading a second and a few lost: 170,000 groups of 59 rows in ten million.
const ROWS_PER_GROUP: usize = 59;
const DEVICES: usize = 1_000;
const BATCH: usize = 8_192;
const RUNS: usize = 3;

const QUERIES: &[(&str, &str)] = &[
    ("count, sum, min, max, avg", "count(*), sum(v), min(v), max(v), avg(v)"),
    (
        "approx_percentile x 3",
        "approx_percentile(v, 0.5), approx_percentile(v, 0.95), approx_percentile(v, 0.99)",
    ),
    ("first, last, delta", "first(v, t), last(v, t), delta(v, t)"),
    ("increase, rate, time_weighted_avg", "increase(v, t), rate(v, t), time_weighted_avg(v, t)"),
    ("slope", "slope(v, t)"),
    ("histogram", "histogram(v, 0, 100, 20)"),
    ("mode", "mode(v)"),
    (
        "DataFusion's approx_percentile_cont x 3",
        "approx_percentile_cont(v, 0.5), approx_percentile_cont(v, 0.95), approx_percentile_cont(v, 0.99)",
    ),
];

fn schema() -> SchemaRef {
    Arc::new(Schema::new(vec![
        Field::new("d", DataType::Utf8, false),
        Field::new("t", timestamp_type(), false),
        Field::new("v", DataType::Float64, false),
    ]))
}

/// Rows `from..from + rows`: all devices in turn, a second later in each round.
fn readings(from: usize, rows: usize) -> RecordBatch {
    let round = |i: usize| i / DEVICES;
    let second = |i: usize| (round(i) / ROWS_PER_GROUP * 60 + round(i) % ROWS_PER_GROUP) as i64;
    // A cheap hash of the row number, to have values in no order.
    let value =
        |i: usize| ((i as u64).wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 40) as f64 / (1u64 << 24) as f64;
    let rows = from..from + rows;
    let times = TimestampMicrosecondArray::from_iter_values(rows.clone().map(|i| second(i) * 1_000_000));
    RecordBatch::try_new(
        schema(),
        vec![
            Arc::new(
                rows.clone().map(|i| Some(format!("device-{:04}", i % DEVICES))).collect::<StringArray>(),
            ),
            Arc::new(times.with_timezone("UTC")),
            Arc::new(Float64Array::from_iter_values(rows.map(|i| (value(i) * 1e4).round() / 1e2))),
        ],
    )
    .expect("a batch")
}

async fn run(session: &SessionContext, aggregates: &str) -> Duration {
    let sql = format!(
        "SELECT d, tumble(t, INTERVAL '1 minute') AS w, {aggregates} FROM readings \
         GROUP BY d, tumble(t, INTERVAL '1 minute')"
    );
    let state = session.state();
    let mut statement = state.sql_to_statement(&sql, &datafusion::config::Dialect::Generic).expect("parses");
    if let Statement::Statement(inner) = &mut statement {
        rewrite(inner).expect("rewrites");
    }
    let plan = state.statement_to_plan(statement).await.expect("plans");
    let started = Instant::now();
    let rows = session.execute_logical_plan(plan).await.expect("plans").collect().await.expect("runs");
    assert!(!rows.is_empty());
    started.elapsed()
}

fn main() {
    let rows = std::env::args().filter_map(|arg| arg.parse().ok()).next().unwrap_or(DEFAULT_ROWS);
    let partitions = std::thread::available_parallelism().map_or(1, usize::from);
    let session = context(partitions, Arc::new(RuntimeEnv::default()));
    let mut parts = vec![Vec::new(); partitions];
    for (i, from) in (0..rows).step_by(BATCH).enumerate() {
        parts[i % partitions].push(readings(from, BATCH.min(rows - from)));
    }
    let table = MemTable::try_new(schema(), parts).expect("a table");
    session.register_table("readings", Arc::new(table)).expect("registers");
    println!(
        "{rows} rows, {} groups, {partitions} partitions, best of {RUNS}",
        rows.div_ceil(ROWS_PER_GROUP)
    );

    let runtime = tokio::runtime::Builder::new_multi_thread().build().expect("a runtime");
    let mut plain = None;
    for (name, aggregates) in QUERIES {
        let times = (0..RUNS).map(|_| runtime.block_on(run(&session, aggregates)));
        let best = times.min().expect("at least one run");
        let plain = *plain.get_or_insert(best);
        println!("{name:40} {:8.3} s {:6.2} x", best.as_secs_f64(), best.as_secs_f64() / plain.as_secs_f64());
    }
}
