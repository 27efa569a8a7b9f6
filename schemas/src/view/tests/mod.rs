mod windows;

use std::sync::Arc;

use arrow::array::{Float64Array, Int64Array, StringArray, TimestampMicrosecondArray};
use arrow::datatypes::{DataType, Field};
use arrow::util::pretty::pretty_format_batches;
use datafusion::prelude::SessionContext;
use proptest::prelude::*;

use super::*;
use crate::catalog::{BatchSchedule, Kind, ViewDef};
use crate::layout::raw_schema;
use crate::session::small_context;

fn def(sql: &str) -> Arc<ViewDef> {
    Arc::new(ViewDef {
        kind: Kind::View,
        name: "v".into(),
        sql: sql.into(),
        batch: BatchSchedule::default(),
        retention: None,
        generated: false,
    })
}

fn schema() -> SchemaRef {
    raw_schema([
        Field::new("temperature", DataType::Float64, true),
        Field::new("n", DataType::Int64, true),
        Field::new("status", DataType::Utf8, true),
    ])
}

type Event = (i64, u8, Option<f64>, Option<i64>, Option<u8>);

fn rows(events: &[Event]) -> RecordBatch {
    let micros = |e: &Event| e.0 * 1_000_000;
    let times =
        || TimestampMicrosecondArray::from_iter_values(events.iter().map(micros)).with_timezone("UTC");
    let text = |f: &dyn Fn(&Event) -> Option<String>| Arc::new(events.iter().map(f).collect::<StringArray>());
    RecordBatch::try_new(
        schema(),
        vec![
            Arc::new(times()),
            text(&|e| Some(format!("d{}", e.1))),
            Arc::new(events.iter().map(|e| e.2).collect::<Float64Array>()),
            Arc::new(events.iter().map(|e| e.3).collect::<Int64Array>()),
            text(&|e| e.4.map(|s| format!("s{s}"))),
            text(&|_| Some("t".into())),
            Arc::new(times()),
            text(&|_| Some("n".into())),
            Arc::new(Int64Array::from_iter_values(0..events.len() as i64)),
            Arc::new(arrow::array::Int32Array::from(vec![0; events.len()])),
        ],
    )
    .expect("a batch")
}

async fn run(context: &SessionContext, plan: LogicalPlan) -> Vec<RecordBatch> {
    context.execute_logical_plan(plan).await.expect("plans").collect().await.expect("runs")
}

fn sorted(batches: &[RecordBatch]) -> Vec<String> {
    let text = pretty_format_batches(batches).expect("prints").to_string();
    let mut lines: Vec<String> =
        text.lines().filter(|line| !line.starts_with('+')).map(str::to_owned).collect();
    lines.sort();
    lines
}

/// The answer of the view over events split into `parts`, each stored and restored, merged in steps.
async fn through_state(view: &CompiledView, parts: &[RecordBatch]) -> Vec<RecordBatch> {
    let context = small_context();
    let state =
        plan_over_batches(&context, view.input_schema(), |e| view.state_plan(e)).await.expect("plans");
    let merge =
        plan_over_batches(&context, view.state_schema(), |s| view.merge_plan(s)).await.expect("plans");
    let mut states = Vec::new();
    for part in parts {
        states.extend(state.run(vec![part.clone()]).await.expect("states"));
        if states.len() % 3 == 0 {
            states = merge.run(states).await.expect("merges");
        }
    }
    let stored: Vec<RecordBatch> =
        states.iter().map(|s| storage::to_storage(s, view.storage_schema()).expect("stored")).collect();
    let table = MemTable::try_new(view.storage_schema().clone(), vec![stored]).expect("a table");
    let restored = view.stored_states(Arc::new(table)).expect("restores");
    run(&context, view.finish_plan(restored).expect("finishes")).await
}

async fn directly(sql: &str, events: RecordBatch) -> Vec<RecordBatch> {
    let context = small_context();
    context.register_batch("readings", events).expect("registers");
    let plan = crate::sql::plan(&context, sql).await.expect(sql);
    run(&context, plan).await
}

/// Every aggregate of DataFusion that is allowed in a view, by one call each.
const AGGREGATES: &[&str] = &[
    "count(*)",
    "count(temperature)",
    "count(DISTINCT status)",
    "sum(n)",
    "sum(temperature)",
    "avg(n)",
    "min(temperature)",
    "max(status)",
    "min(event_time)",
    "max(event_time)",
    "bool_and(n > 0)",
    "bool_or(n > 0)",
    "bit_and(n)",
    "bit_or(n)",
    "bit_xor(n)",
    "var_pop(n)",
    "var_samp(n)",
    "stddev(n)",
    "stddev_pop(n)",
    "covar_samp(n, n)",
    "covar_pop(n, n)",
    "corr(n, n)",
    "regr_slope(n, n)",
    "regr_count(n, n)",
    "median(n)",
    "approx_distinct(status)",
    "sum(n) FILTER (WHERE status = 's1')",
    "sum(DISTINCT n)",
    "first_value(n ORDER BY event_time, n)",
    "last_value(status ORDER BY event_time, status)",
    "array_agg(n ORDER BY n)",
    "nth_value(n, 2 ORDER BY n)",
    "string_agg(status, ',' ORDER BY status)",
    "approx_percentile_cont(n, 0.5)",
    "approx_median(n)",
    "percentile_cont(0.25) WITHIN GROUP (ORDER BY n)",
    "max(n) - min(n)",
    "sum(n) / count(*)",
];

#[tokio::test]
async fn every_aggregate_survives_splitting_storing_and_merging() {
    let events: Vec<Event> = (0..200)
        .map(|i| {
            (
                i * 7 % 300,
                (i % 3) as u8,
                (i % 5 > 0).then_some(i as f64 / 3.0),
                Some(i % 11),
                Some((i % 4) as u8),
            )
        })
        .collect();
    let parts: Vec<RecordBatch> = events.chunks(17).map(rows).collect();
    for aggregate in AGGREGATES {
        let sql = format!(
            "SELECT device_id, tumble(event_time, INTERVAL '1 minute') AS window_start, {aggregate} AS x \
             FROM readings GROUP BY device_id, window_start"
        );
        let view = match CompiledView::compile(def(&sql), "readings", &schema()).await {
            Ok(view) => view,
            Err(e) => panic!("{aggregate}: {e}"),
        };
        let merged = through_state(&view, &parts).await;
        let direct = directly(&sql, rows(&events)).await;
        assert_eq!(round(&sorted(&merged)), round(&sorted(&direct)), "{aggregate}");
    }
}

/// Digits beyond the tenth differ with the order of addition.
fn round(lines: &[String]) -> Vec<String> {
    let mut rounded: Vec<String> = lines
        .iter()
        .map(|line| {
            let words = line.split(' ').filter(|w| !w.is_empty());
            let words = words.map(|w| match w.parse::<f64>() {
                Ok(x) if w.contains('.') => format!("{x:.9}"),
                _ => w.to_owned(),
            });
            words.collect::<Vec<_>>().join(" ")
        })
        .collect();
    rounded.sort();
    rounded
}

#[tokio::test]
async fn where_having_expressions_and_aliases_are_kept() {
    let events: Vec<Event> = (0..100).map(|i| (i, (i % 4) as u8, Some(i as f64), Some(i), None)).collect();
    for sql in [
        "SELECT device_id AS d, avg(temperature) * 2 + 1 AS x FROM readings WHERE n > 10 GROUP BY device_id HAVING count(*) > 5",
        "SELECT r.device_id, count(*) AS c FROM readings r GROUP BY 1",
        "SELECT upper(device_id) AS u, sum(n) FROM readings GROUP BY upper(device_id)",
        "SELECT count(*) AS c, max(n) AS m FROM readings",
        "SELECT device_id FROM readings GROUP BY device_id",
        "SELECT d, max(t2) AS m FROM (SELECT device_id AS d, temperature * 2 AS t2 FROM readings WHERE n > 3) q GROUP BY d",
        "SELECT count(*) AS c FROM readings WHERE n > 1000",
        "SELECT avg(temperature) AS a FROM readings GROUP BY device_id",
    ] {
        let view = CompiledView::compile(def(sql), "readings", &schema()).await.expect(sql);
        let parts: Vec<RecordBatch> = events.chunks(9).map(rows).collect();
        assert_eq!(
            sorted(&through_state(&view, &parts).await),
            sorted(&directly(sql, rows(&events)).await),
            "{sql}"
        );
    }
}

#[tokio::test]
async fn keys_and_windows_are_recognised() {
    let sql = "SELECT device_id, tumble(event_time, INTERVAL '1 minute') AS window_start, count(*) AS n \
               FROM readings GROUP BY device_id, window_start";
    let view = CompiledView::compile(def(sql), "readings", &schema()).await.expect("compiles");
    assert_eq!(
        view.keys(),
        [
            KeyColumn { name: "device_id".into(), output: Some("device_id".into()), window_micros: None },
            KeyColumn {
                name: "window_start".into(),
                output: Some("window_start".into()),
                window_micros: Some(60_000_000)
            },
        ]
    );
    assert_eq!(source_of(view.def()).expect("one stream"), "readings");
}

#[tokio::test]
async fn windows_of_every_kind_can_be_a_key() {
    const DAY_US: i64 = 86_400_000_000;
    for (window, micros) in [
        ("tumble(event_time, INTERVAL '1 hour', INTERVAL '-15 minutes')", Some(DAY_US / 24)),
        ("tumble(event_time, '1 hour')", Some(DAY_US / 24)),
        ("time_bucket('10 minutes', event_time)", Some(DAY_US / 144)),
        ("time_bucket(INTERVAL '1 month', event_time)", Some(31 * DAY_US)),
        // By a calendar it is the longest that counts, a day of 25 hours, say.
        ("tumble(event_time, INTERVAL '1 day', 'Europe/Berlin')", Some(2 * DAY_US)),
        ("tumble_end(event_time, INTERVAL '1 hour')", None),
    ] {
        let sql = format!("SELECT {window} AS w, count(*) AS n FROM readings GROUP BY w");
        let view = CompiledView::compile(def(&sql), "readings", &schema()).await.expect(window);
        assert_eq!(view.keys()[0].window_micros, micros, "{window}");
    }
}

#[tokio::test]
async fn what_cannot_be_a_view_is_refused_with_a_reason() {
    for (sql, reason) in [
        ("SELECT device_id FROM readings", "no aggregation"),
        ("SELECT device_id, count(*) FROM readings GROUP BY device_id ORDER BY 1", "ORDER BY"),
        ("SELECT device_id, count(*) FROM readings GROUP BY device_id LIMIT 3", "LIMIT"),
        ("SELECT count(*) FROM readings WHERE event_time > now()", "now()"),
        (
            "SELECT hop(event_time, INTERVAL '1 minute', INTERVAL '1 month') AS w, count(*) FROM readings GROUP BY w",
            "Calendar windows",
        ),
        (
            "SELECT hop(event_time, INTERVAL '1 minute', INTERVAL '5 minutes') AS w, session(event_time, INTERVAL '1 minute') AS s, count(*) FROM readings GROUP BY w, s",
            "two different windows",
        ),
        ("SELECT device_id, count(*) OVER () FROM readings", "OVER"),
        ("SELECT avg(nonsense) FROM readings", "nonsense"),
        (
            "SELECT tumble(event_time, INTERVAL '1 month') AS w, count(*) FROM readings GROUP BY w",
            "fixed length",
        ),
        (
            "SELECT time_bucket_gapfill('1 minute', event_time) AS w, count(*) FROM readings GROUP BY w",
            "time_bucket_gapfill() fills gaps",
        ),
        ("SELECT device_id, locf(count(*)) FROM readings GROUP BY device_id", "locf() fills gaps"),
        ("SELECT interpolate(avg(n)) FROM readings", "interpolate() fills gaps"),
    ] {
        let error = CompiledView::compile(def(sql), "readings", &schema()).await.expect_err(sql).to_string();
        assert!(error.contains(reason), "{sql}: {error}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn any_split_of_any_events_merges_to_the_whole(
        events in prop::collection::vec((0i64..600, 0u8..5, prop::option::of(-1e6f64..1e6), prop::option::of(-1000i64..1000), prop::option::of(0u8..3)), 1..120),
        size in 1usize..40,
    ) {
        let sql = "SELECT device_id, tumble(event_time, INTERVAL '1 minute') AS w, count(*) AS c, sum(n) AS s, \
                   min(temperature) AS lo, max(temperature) AS hi, count(DISTINCT status) AS k FROM readings GROUP BY device_id, w";
        let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
        runtime.block_on(async {
            let view = CompiledView::compile(def(sql), "readings", &schema()).await.expect("compiles");
            let parts: Vec<RecordBatch> = events.chunks(size).map(rows).collect();
            let merged = sorted(&through_state(&view, &parts).await);
            assert_eq!(merged, sorted(&directly(sql, rows(&events)).await));
        });
    }
}
