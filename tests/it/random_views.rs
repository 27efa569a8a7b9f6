//! Any view, any history: views that a grammar makes up, under events, seals, batch runs, compactions and restarts
//! in any order. The merged answer equals the same query over all raw events.

use iot_schemas::control::Control;
use proptest::prelude::*;

use super::lambda::{Step, history_of, step};

const STREAM: &str = r#"
kind: stream
name: readings
topics: ["devices/{device_id}/telemetry"]
event_time: {field: ts, unit: ms}
fields: {temperature: double, n: bigint, status: text}
"#;

/// A window of the `GROUP BY`, if any.
fn window() -> impl Strategy<Value = Option<String>> {
    let seconds = prop_oneof![Just(30u32), Just(60), Just(90), Just(600), Just(3_600)];
    prop_oneof![
        1 => Just(None),
        3 => (seconds.clone(), 0u32..40).prop_map(|(size, offset)| Some(format!(
            "tumble(event_time, INTERVAL '{size} seconds', INTERVAL '{offset} seconds')"
        ))),
        3 => (seconds.clone(), 1u32..5).prop_map(|(slide, times)| Some(format!(
            "hop(event_time, INTERVAL '{slide} seconds', INTERVAL '{} seconds')", slide * times
        ))),
        1 => (20u32..100, 20u32..300).prop_map(|(slide, size)| Some(format!(
            "hop(event_time, INTERVAL '{slide} seconds', INTERVAL '{size} seconds')"
        ))),
        3 => (1u32..400).prop_map(|gap| Some(format!("session(event_time, INTERVAL '{gap} seconds')"))),
        1 => (30u32..200, 1u32..6).prop_map(|(step, times)| Some(format!(
            "cumulate(event_time, INTERVAL '{step} seconds', INTERVAL '{} seconds')", step * times
        ))),
        2 => (1u32..30).prop_map(|size| Some(format!("count_window({size})"))),
        1 => Just(Some("tumble(event_time, INTERVAL '1 month', 'Europe/Berlin')".to_owned())),
        1 => Just(Some("date_trunc('hour', event_time)".to_owned())),
    ]
}

fn keys() -> impl Strategy<Value = Vec<&'static str>> {
    prop::sample::subsequence(vec!["device_id", "status", "n % 3"], 0..=2)
}

fn aggregates() -> impl Strategy<Value = Vec<&'static str>> {
    let all = vec![
        "count(*)",
        "count(temperature)",
        "sum(n)",
        "avg(temperature)",
        "min(temperature)",
        "max(n)",
        "count(DISTINCT status)",
        "stddev_pop(temperature)",
        "first(n, event_time)",
        "last(temperature, event_time)",
        "delta(temperature, event_time)",
        "increase(n, event_time)",
        "rate(n, event_time)",
        "time_weighted_avg(temperature, event_time)",
        "state_duration(n > 0, event_time)",
        "approx_percentile(temperature, 0.9)",
        "mode(status)",
        "histogram(n, -50, 50, 5)",
        "slope(temperature, event_time)",
        "bool_or(n > 10)",
        "median(n)",
        "sum(n) FILTER (WHERE status = 's1')",
        "max(temperature) - min(temperature)",
        "array_agg(n ORDER BY n)",
    ];
    prop::sample::subsequence(all, 1..=5)
}

/// The text of a view.
fn sql() -> impl Strategy<Value = String> {
    let filter = prop::option::of(prop::sample::select(vec![
        "temperature > 0",
        "status IS NOT NULL",
        "n BETWEEN -10 AND 40",
        "device_id <> 'd1'",
    ]));
    let having = prop::option::weighted(0.3, Just("count(*) > 1"));
    (window(), keys(), aggregates(), filter, having).prop_map(|(window, keys, aggregates, filter, having)| {
        let mut group: Vec<String> = keys.iter().map(ToString::to_string).collect();
        let mut select: Vec<String> =
            keys.iter().enumerate().map(|(i, key)| format!("{key} AS k{i}")).collect();
        if let Some(window) = window {
            select.push(format!("{window} AS w"));
            group.push("w".to_owned());
        }
        select.extend(aggregates.iter().enumerate().map(|(i, aggregate)| format!("{aggregate} AS a{i}")));
        let mut sql = format!("SELECT {} FROM readings", select.join(", "));
        if let Some(filter) = filter {
            sql.push_str(&format!(" WHERE {filter}"));
        }
        if !group.is_empty() {
            sql.push_str(&format!(" GROUP BY {}", group.join(", ")));
        }
        if let Some(having) = having {
            sql.push_str(&format!(" HAVING {having}"));
        }
        sql
    })
}

fn catalog(views: &[String]) -> String {
    let documents = views
        .iter()
        .enumerate()
        .map(|(i, sql)| format!("---\nkind: view\nname: v{i}\nsql: |\n  {sql}\nbatch: {{every: 1d}}\n"));
    STREAM.to_owned() + &documents.collect::<String>()
}

async fn assert_merged_equals_recomputed(views: &[String], steps: &[Step]) {
    history_of(&catalog(views), steps, async |line, sent, step| {
        line.settle().await;
        for report in line.verify(None).await.expect("it verifies") {
            assert_eq!(report.differences, 0, "{step:?}: {} {:#?}\n{views:#?}", report.view, report.examples);
            assert_eq!(report.events, sent as u64, "no event is missing or doubled in raw");
        }
    })
    .await;
}

proptest! {
    #![proptest_config(ProptestConfig { cases: cases(), max_shrink_iters: 30, ..ProptestConfig::default() })]

    #[test]
    fn any_view_under_any_history(
        views in prop::collection::vec(sql(), 1..4),
        steps in prop::collection::vec(step(), 3..7),
    ) {
        super::lambda::run(assert_merged_equals_recomputed(&views, &steps));
    }
}

/// Histories per run: some in CI, as many as `IOT_HISTORIES` says at night.
fn cases() -> u32 {
    std::env::var_os("IOT_HISTORIES").and_then(|n| n.to_str()?.parse().ok()).unwrap_or(200)
}
