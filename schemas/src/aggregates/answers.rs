//! Answers and errors of the functions through SQL.

use arrow::array::{ArrayRef, Float64Array, Int64Array, RecordBatch, StringArray, TimestampMicrosecondArray};
use arrow::datatypes::{DataType, Field, Schema};
use arrow::util::pretty::pretty_format_batches;
use datafusion::sql::parser::Statement as DfStatement;
use datafusion::sql::sqlparser::dialect::GenericDialect;
use datafusion::sql::sqlparser::parser::Parser;

use super::*;
use crate::catalog::{BatchSchedule, Kind, ViewDef};
use crate::layout::timestamp_type;
use crate::session::small_context;
use crate::view::CompiledView;

/// Five readings of one device: a counter that is reset, a status, a temperature.
fn readings() -> RecordBatch {
    let seconds = [0i64, 10, 20, 40, 30];
    let times =
        TimestampMicrosecondArray::from_iter_values(seconds.map(|s| 1_795_000_000_000_000 + s * 1_000_000));
    let schema = Schema::new(vec![
        Field::new("t", timestamp_type(), false),
        Field::new("energy", DataType::Int64, true),
        Field::new("status", DataType::Utf8, true),
        Field::new("temperature", DataType::Float64, true),
    ]);
    let columns: Vec<ArrayRef> = vec![
        Arc::new(times.with_timezone("UTC")),
        Arc::new(Int64Array::from(vec![Some(100), Some(110), Some(5), Some(25), None])),
        Arc::new(StringArray::from(vec!["on", "off", "on", "off", "on"])),
        Arc::new(Float64Array::from(vec![20.0, 21.0, 22.0, 24.0, 23.0])),
    ];
    RecordBatch::try_new(Arc::new(schema), columns).expect("a batch")
}

/// Runs SQL as the platform does: parsed, rewritten, planned.
async fn query(sql: &str) -> crate::Result<(String, String)> {
    let context = small_context();
    context.register_batch("readings", readings()).expect("registers");
    let state = context.state();
    let mut statement = state.sql_to_statement(sql, &datafusion::config::Dialect::Generic)?;
    let DfStatement::Statement(inner) = &mut statement else { panic!("a plain statement") };
    rewrite(inner)?;
    let plan = state.statement_to_plan(statement).await?;
    let text = plan.display_indent().to_string();
    let rows = context.execute_logical_plan(plan).await?.collect().await?;
    Ok((pretty_format_batches(&rows)?.to_string(), text))
}

#[tokio::test]
async fn functions_answer_as_documented() {
    for (call, answer) in [
        ("first(energy, t)", "100"),
        ("last(energy, t)", "25"),
        ("last(status, t)", "off"),
        ("last(status = 'on', t)", "false"),
        ("delta(energy, t)", "-75"),
        ("increase(energy, t)", "35.0"),
        ("rate(energy, t)", "0.875"),
        ("counter_resets(energy, t)", "1"),
        ("time_weighted_avg(temperature, t)", "21.5"),
        ("time_weighted_avg(temperature, t, 'linear')", "22.0"),
        ("state_duration(status = 'on', t)", "30.0"),
        ("slope(temperature, t)", "0.1"),
        ("mode(status)", "on"),
        ("histogram(temperature, 20, 24, 2)", "[0, 2, 2, 1]"),
        ("histogram(temperature, 21.5, 23, 1)", "[2, 1, 2]"),
        ("last([temperature, 1.0], t)", "[24.0, 1.0]"),
        ("approx_percentile(temperature, 0)", "20.125"),
        ("approx_percentile(temperature, [0, 1, NULL])", "[20.125, 24.125, ]"),
        ("approx_percentile(temperature, [0.5]) FILTER (WHERE energy > 1000)", ""),
        ("approx_percentile(energy, 0.5) FILTER (WHERE energy > 1000)", ""),
        ("increase(energy, t) FILTER (WHERE status = 'off')", "25.0"),
        ("first(energy, NULL)", ""),
        ("rate(energy, t) FILTER (WHERE energy = 5)", ""),
    ] {
        let (table, _) = query(&format!("SELECT {call} AS x FROM readings")).await.expect(call);
        let cell = table.lines().nth(3).expect("a row").trim_matches(['|', ' ']);
        assert_eq!(cell, answer, "{call}");
    }
}

#[tokio::test]
async fn questions_of_one_state_are_one_aggregate() {
    let (table, plan) = query(
        "SELECT approx_percentile(temperature, 0.5), approx_percentile(temperature, 0.95) * 2, \
         rate(energy, t), increase(energy, t), first(energy, t), delta(energy, t) FROM readings",
    )
    .await
    .expect("runs");
    let header = table.lines().nth(1).expect("a header");
    assert!(
        header.contains("approx_percentile(temperature, 0.5)") && header.contains("rate(energy, t)"),
        "{header}"
    );
    let aggregate = plan.lines().find(|line| line.contains("Aggregate:")).expect("an aggregation");
    for state in ["percentile_sketch(", "time_series(", "first(", "last("] {
        assert_eq!(aggregate.matches(state).count(), 1, "{aggregate}");
    }
}

#[tokio::test]
async fn a_view_keeps_one_state_for_all_its_percentiles() {
    let sql = "SELECT status, approx_percentile(temperature, 0.5) AS p50, approx_percentile(temperature, 0.99) AS p99, \
               rate(energy, t) AS r, increase(energy, t) AS i FROM readings GROUP BY status";
    let mut statements = Parser::parse_sql(&GenericDialect {}, sql).expect("parses");
    rewrite(&mut statements[0]).expect("rewrites");
    let def = ViewDef {
        kind: Kind::View,
        name: "v".into(),
        sql: statements[0].to_string(),
        batch: BatchSchedule::default(),
        retention: None,
        generated: false,
    };
    let schema = readings().schema();
    let view = CompiledView::compile(Arc::new(def), "readings", &schema).await.expect("compiles");
    let states: Vec<&String> = view.state_schema().fields().iter().map(|f| f.name()).collect();
    assert_eq!(states, ["status", "state_0", "state_1"]);
    let outputs: Vec<&String> = view.output_schema().fields().iter().map(|f| f.name()).collect();
    assert_eq!(outputs, ["status", "p50", "p99", "r", "i"]);
}

#[tokio::test]
async fn functions_work_in_windows_and_groups() {
    let (table, _) = query(
        "SELECT status, increase(energy, t) AS x FROM readings GROUP BY status \
         HAVING counter_resets(energy, t) = 1 ORDER BY delta(energy, t)",
    )
    .await
    .expect("runs");
    assert!(table.contains("| on ") || table.contains("| off "), "{table}");
    let (table, _) = query("SELECT t, delta(temperature, t) OVER (ORDER BY t) AS x FROM readings ORDER BY t")
        .await
        .expect("runs");
    assert!(table.lines().nth(7).expect("the last row").contains("4.0"), "{table}");
}

#[tokio::test]
async fn wrong_calls_say_what_is_right() {
    for (call, reason) in [
        ("first(energy)", "first(temperature, event_time)"),
        ("last(energy, energy)", "last(temperature, event_time)"),
        ("last()", "nothing"),
        ("percentile_sketch(status)", "percentile_sketch(temperature)"),
        ("approx_percentile(temperature, 95)", "0.95"),
        ("approx_percentile(temperature, [0.5, 99])", "0.95"),
        ("approx_percentile(temperature, 'high')", "approx_percentile(temperature, 0.95)"),
        ("time_series(status, t)", "time_series(energy, event_time)"),
        ("rate(status, t)", "a number and a timestamp"),
        ("time_weighted_avg(temperature, t, 'cubic')", "'locf' and 'linear'"),
        ("histogram(temperature, 0, 10)", "histogram(temperature, 0, 100, 20)"),
        ("histogram(temperature, 10, 0, 5)", "lower bound"),
        ("histogram(temperature, 0, 10, 0)", "buckets"),
        ("histogram(temperature, energy, 10, 5)", "constants"),
        ("mode(status, t)", "mode(status)"),
        ("slope(temperature, 5)", "slope(temperature, event_time)"),
        ("mode(DISTINCT status) AS m, count(t)", "DISTINCT"),
        ("series_rate(temperature)", "a time_series"),
        ("sketch_percentile(percentile_sketch(temperature), 2.0)", "from 0 to 1"),
    ] {
        let error = query(&format!("SELECT {call} AS x FROM readings")).await.expect_err(call).to_string();
        assert!(error.contains(reason), "{call}: {error}");
    }
}
