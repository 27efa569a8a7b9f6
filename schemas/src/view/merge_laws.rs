//! Every aggregate that a session knows either merges or is refused in a view with a reason.
//!
//! A view is fed with random events in random parts; the parts' states are merged in a random tree, through
//! storage and back at random; the answer must be that of one query over all events.

use std::collections::HashSet;
use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, AsArray, BooleanArray, Float64Array, Int64Array, RecordBatch, StringArray,
    TimestampMicrosecondArray,
};
use arrow::compute::concat_batches;
use arrow::datatypes::{DataType, Field, Float64Type, Schema, SchemaRef};
use datafusion::datasource::MemTable;
use datafusion::execution::FunctionRegistry;
use proptest::prelude::*;
use proptest::test_runner::TestRunner;

use super::*;
use crate::catalog::{BatchSchedule, Kind, ViewDef};
use crate::layout::timestamp_type;
use crate::session::small_context;

/// What becomes of a call in a view.
enum Outcome {
    /// The same answer.
    Exact,
    /// The same answer within this distance, relative for large numbers: sums of doubles in another order.
    Near(f64),
    /// An error with these words.
    Refused(&'static str),
}
use Outcome::{Exact, Near, Refused};

const ROUNDING: Outcome = Near(1e-9);
/// The values are spread over [-100, 100]; a t-digest that was merged differently is off by a little.
const DIGEST: Outcome = Near(8.0);

/// At least one call of each aggregate.
const CALLS: &[(&str, Outcome)] = &[
    ("count(*)", Exact),
    ("count(v)", Exact),
    ("count(DISTINCT s)", Exact),
    ("count(DISTINCT v)", Exact),
    ("count(n) FILTER (WHERE b)", Exact),
    ("sum(n)", Exact),
    ("sum(v)", ROUNDING),
    ("sum(DISTINCT n)", Exact),
    ("avg(n)", ROUNDING),
    ("avg(v)", ROUNDING),
    ("min(v)", Exact),
    ("max(s)", Exact),
    ("min(t)", Exact),
    ("max(b)", Exact),
    ("bool_and(b)", Exact),
    ("bool_or(b)", Exact),
    ("bit_and(n)", Exact),
    ("bit_or(n)", Exact),
    ("bit_xor(n)", Exact),
    ("bit_xor(DISTINCT n)", Exact),
    ("bit_and(DISTINCT n)", Exact),
    ("bool_or(DISTINCT b)", Exact),
    ("max(DISTINCT v)", Exact),
    ("avg(DISTINCT n)", ROUNDING),
    ("sum(DISTINCT v)", ROUNDING),
    ("approx_distinct(DISTINCT s)", Exact),
    ("var_samp(DISTINCT v)", Refused("DISTINCT")),
    ("corr(DISTINCT v, n)", Refused("DISTINCT")),
    ("approx_median(DISTINCT v)", Refused("DISTINCT")),
    ("last(DISTINCT v, t)", Refused("DISTINCT")),
    ("mode(DISTINCT s)", Refused("DISTINCT")),
    ("var_samp(v)", ROUNDING),
    ("var_pop(v)", ROUNDING),
    ("stddev(v)", ROUNDING),
    ("stddev_pop(v)", ROUNDING),
    ("covar_samp(v, n)", ROUNDING),
    ("covar_pop(v, n)", ROUNDING),
    ("corr(v, n)", ROUNDING),
    ("regr_slope(v, n)", ROUNDING),
    ("regr_intercept(v, n)", ROUNDING),
    ("regr_count(v, n)", Exact),
    ("regr_r2(v, n)", ROUNDING),
    ("regr_avgx(v, n)", ROUNDING),
    ("regr_avgy(v, n)", ROUNDING),
    ("regr_sxx(v, n)", ROUNDING),
    ("regr_syy(v, n)", ROUNDING),
    ("regr_sxy(v, n)", ROUNDING),
    ("median(v)", Exact),
    ("median(DISTINCT n)", Exact),
    ("percentile_cont(0.3) WITHIN GROUP (ORDER BY v)", Exact),
    ("approx_distinct(s)", Exact),
    ("approx_distinct(n)", Exact),
    ("approx_median(v)", DIGEST),
    ("approx_percentile_cont(v, 0.9)", DIGEST),
    ("approx_percentile_cont_with_weight(v, w, 0.5)", DIGEST),
    ("array_agg(n ORDER BY n)", Exact),
    ("array_agg(DISTINCT n ORDER BY n)", Exact),
    ("array_agg(n)", Refused("ORDER BY")),
    ("array_agg(DISTINCT n)", Refused("ORDER BY")),
    ("string_agg(s, ',' ORDER BY s)", Exact),
    ("string_agg(DISTINCT s, ',' ORDER BY s DESC)", Exact),
    ("percentile_cont(DISTINCT 0.3) WITHIN GROUP (ORDER BY v)", Exact),
    ("string_agg(s, ',')", Refused("ORDER BY")),
    ("first_value(n ORDER BY t, n)", Exact),
    ("first_value(n)", Refused("first(value, event_time)")),
    ("last_value(s ORDER BY t DESC, s)", Exact),
    ("last_value(s)", Refused("last(value, event_time)")),
    ("nth_value(n, 2 ORDER BY n)", Exact),
    ("nth_value(n, 2)", Refused("ORDER BY")),
    ("any_value(n)", Refused("first(value, event_time)")),
    ("grouping(k)", Exact),
    ("first(v, t)", Exact),
    ("first(s, t)", Exact),
    ("last(n, t)", Exact),
    ("last(b, t)", Exact),
    ("last(s, t) FILTER (WHERE b)", Exact),
    ("percentile_sketch(v)", Exact),
    ("sketch_percentile(percentile_sketch(v), 0.95)", Exact),
    ("time_series(v, t)", Exact),
    ("series_increase(time_series(v, t))", Exact),
    ("series_time_weighted_avg(time_series(v, t), 'linear')", Exact),
    ("series_state_duration(time_series(b, t))", Exact),
    ("histogram(v, -50, 50, 10)", Exact),
    ("mode(s)", Exact),
    ("mode(v)", Exact),
    ("slope(v, t)", Near(1e-6)),
];

fn schema() -> SchemaRef {
    Arc::new(Schema::new(vec![
        Field::new("k", DataType::Utf8, false),
        Field::new("t", timestamp_type(), true),
        Field::new("v", DataType::Float64, true),
        Field::new("n", DataType::Int64, true),
        Field::new("s", DataType::Utf8, true),
        Field::new("b", DataType::Boolean, true),
        Field::new("w", DataType::Int64, false),
    ]))
}

type Event = (u8, Option<i64>, Option<i16>, Option<i64>, Option<u8>, Option<bool>, i64);

fn event() -> impl Strategy<Value = Event> {
    (
        0u8..3,
        prop::option::weighted(0.95, 0i64..500),
        prop::option::weighted(0.9, -1000i16..1000),
        prop::option::weighted(0.9, -50i64..50),
        prop::option::weighted(0.9, 0u8..6),
        prop::option::weighted(0.9, any::<bool>()),
        1i64..5,
    )
}

fn rows(events: &[Event]) -> RecordBatch {
    let times = events.iter().map(|e| e.1.map(|t| t * 250_000)).collect::<TimestampMicrosecondArray>();
    let columns: Vec<ArrayRef> = vec![
        Arc::new(events.iter().map(|e| Some(format!("k{}", e.0))).collect::<StringArray>()),
        Arc::new(times.with_timezone("UTC")),
        Arc::new(events.iter().map(|e| e.2.map(|v| f64::from(v) / 10.0)).collect::<Float64Array>()),
        Arc::new(events.iter().map(|e| e.3).collect::<Int64Array>()),
        Arc::new(events.iter().map(|e| e.4.map(|s| format!("s{s}"))).collect::<StringArray>()),
        Arc::new(events.iter().map(|e| e.5).collect::<BooleanArray>()),
        Arc::new(events.iter().map(|e| Some(e.6)).collect::<Int64Array>()),
    ];
    RecordBatch::try_new(schema(), columns).expect("a batch")
}

fn sql(call: &str) -> String {
    format!("SELECT k, {call} AS x FROM events GROUP BY k")
}

async fn compile(call: &str) -> crate::Result<CompiledView> {
    let batch = BatchSchedule::default();
    let def = ViewDef {
        kind: Kind::View,
        name: "v".into(),
        sql: sql(call),
        batch,
        retention: None,
        generated: false,
    };
    CompiledView::compile(Arc::new(def), "events", &schema()).await
}

/// Column `x`, in the order of the keys.
async fn answers(plan: LogicalPlan) -> ArrayRef {
    let context = small_context();
    let rows = context.execute_logical_plan(plan).await.expect("plans");
    let rows = rows.sort_by(vec![datafusion::prelude::col("k")]).expect("sorts");
    let rows = rows.collect().await.expect("runs");
    concat_batches(&rows[0].schema(), &rows).expect("one batch").column(1).clone()
}

/// The plans of a view, to be run on parts.
struct Machine {
    view: CompiledView,
    state: BatchPlan,
    merge: BatchPlan,
}

impl Machine {
    async fn new(view: CompiledView) -> Self {
        let context = small_context();
        let state = plan_over_batches(&context, view.input_schema(), |e| view.state_plan(e)).await;
        let merge = plan_over_batches(&context, view.state_schema(), |s| view.merge_plan(s)).await;
        Self { state: state.expect("plans"), merge: merge.expect("plans"), view }
    }

    /// The answer over `parts`, whose states are merged two by two as `choices` say.
    async fn answer(&self, parts: &[RecordBatch], choices: &[prop::sample::Index]) -> ArrayRef {
        let mut states = Vec::new();
        for part in parts {
            states.push(self.state.run(vec![part.clone()]).await.expect("states"));
        }
        for choice in choices {
            if states.len() < 2 {
                break;
            }
            let mut two = states.swap_remove(choice.index(states.len()));
            two.extend(states.swap_remove(choice.index(states.len())));
            let merged = self.merge.run(two).await.expect("merges");
            states.push(if choice.index(2) == 0 { merged } else { self.restored(merged).await });
        }
        let states: Vec<RecordBatch> = states.into_iter().flatten().collect();
        let stored = self.stored(&states);
        let finish = self.view.finish_plan(self.view.stored_states(stored).expect("restores"));
        answers(finish.expect("finishes")).await
    }

    fn stored(&self, states: &[RecordBatch]) -> Arc<MemTable> {
        let schema = self.view.storage_schema();
        let stored = states.iter().map(|s| storage::to_storage(s, schema).expect("stored")).collect();
        Arc::new(MemTable::try_new(schema.clone(), vec![stored]).expect("a table"))
    }

    async fn restored(&self, states: Vec<RecordBatch>) -> Vec<RecordBatch> {
        let plan = self.view.stored_states(self.stored(&states)).expect("restores");
        small_context().execute_logical_plan(plan).await.expect("plans").collect().await.expect("runs")
    }
}

fn assert_same(merged: &ArrayRef, direct: &ArrayRef, tolerance: f64, call: &str) {
    if tolerance == 0.0 || merged.data_type() != &DataType::Float64 {
        assert_eq!(merged, direct, "{call}");
        return;
    }
    let (merged, direct) = (merged.as_primitive::<Float64Type>(), direct.as_primitive::<Float64Type>());
    assert_eq!(merged.len(), direct.len(), "{call}");
    for (a, b) in merged.iter().zip(direct) {
        let same = match (a, b) {
            (Some(a), Some(b)) => a.is_nan() && b.is_nan() || (a - b).abs() <= tolerance * b.abs().max(1.0),
            (a, b) => a == b,
        };
        assert!(same, "{call}: {a:?} instead of {b:?}");
    }
}

async fn directly(call: &str, events: RecordBatch) -> ArrayRef {
    let context = small_context();
    context.register_batch("events", events).expect("registers");
    answers(context.sql(&sql(call)).await.expect("plans").into_optimized_plan().expect("optimizes")).await
}

#[test]
fn every_aggregate_of_a_session_is_tried_here() {
    let context = small_context();
    // Some are tried within another call, and some under another of their names.
    let words = CALLS.iter().flat_map(|(call, _)| call.split(['(', ' ']));
    let tried: HashSet<String> =
        words.filter_map(|word| Some(context.udaf(word).ok()?.name().to_owned())).collect();
    for name in context.udafs() {
        let name = context.udaf(&name).expect("known").name().to_owned();
        assert!(tried.contains(&name), "no call of {name}() is tried");
    }
}

#[tokio::test]
async fn what_does_not_merge_is_refused_with_a_reason() {
    for (call, outcome) in CALLS {
        let Refused(reason) = outcome else { continue };
        let error = compile(call).await.expect_err(call).to_string();
        assert!(error.contains(reason), "{call}: {error}");
    }
}

#[test]
fn every_other_aggregate_gives_the_same_answer_merged_in_any_tree() {
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
    let mut failures = Vec::new();
    for (call, outcome) in CALLS {
        let tolerance = match outcome {
            Exact => 0.0,
            Near(tolerance) => *tolerance,
            Refused(_) => continue,
        };
        let machine = runtime.block_on(async { Machine::new(compile(call).await.expect(call)).await });
        let history = (
            prop::collection::vec(prop::collection::vec(event(), 0..60), 1..6),
            prop::collection::vec(any::<prop::sample::Index>(), 0..5),
        );
        let config = ProptestConfig { cases: 6, failure_persistence: None, ..ProptestConfig::default() };
        let run = TestRunner::new(config).run(&history, |(parts, choices)| {
            let whole = rows(&parts.concat());
            prop_assume!(whole.num_rows() > 0);
            let parts: Vec<RecordBatch> = parts.iter().map(|part| rows(part)).collect();
            runtime.block_on(async {
                let merged = machine.answer(&parts, &choices).await;
                assert_same(&merged, &directly(call, whole).await, tolerance, call);
            });
            Ok(())
        });
        if let Err(failure) = run {
            failures.push(format!("{call}: {failure}"));
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}
