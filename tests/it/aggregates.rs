//! Each aggregate against DuckDB, over real sensor readings: through state, half of it in batch and half in speed.

use std::path::Path;
use std::process::Command;

use futures::future::try_join_all;
use iot_ingest::Message;
use iot_schemas::batch::{BatchRequest, BatchRunner};
use iot_schemas::control::Control;
use iot_serving::query::{Queries, QueryRequest};
use iot_tests::{line::open, python, shared};
use serde_json::Value;

use super::lambda::run;

/// What we are asked, what DuckDB is asked, and the relative difference that is allowed (sketches state theirs).
const AGGREGATES: &[(&str, &str, f64)] = &[
    ("count(*)", "count(*)", 0.0),
    ("count(light) FILTER (WHERE light > 0)", "count(light) FILTER (WHERE light > 0)", 0.0),
    ("count(DISTINCT occupancy)", "count(DISTINCT occupancy)", 0.0),
    ("sum(co2)", "sum(co2)", 1e-9),
    ("sum(DISTINCT occupancy)", "sum(DISTINCT occupancy)", 0.0),
    ("avg(temperature)", "avg(temperature)", 1e-9),
    ("min(humidity)", "min(humidity)", 0.0),
    ("max(humidity)", "max(humidity)", 0.0),
    ("stddev_samp(temperature)", "stddev_samp(temperature)", 1e-6),
    ("stddev_pop(temperature)", "stddev_pop(temperature)", 1e-6),
    ("var_samp(co2)", "var_samp(co2)", 1e-6),
    ("var_pop(co2)", "var_pop(co2)", 1e-6),
    ("corr(temperature, humidity)", "corr(temperature, humidity)", 1e-6),
    ("covar_pop(temperature, co2)", "covar_pop(temperature, co2)", 1e-6),
    ("covar_samp(temperature, co2)", "covar_samp(temperature, co2)", 1e-6),
    ("regr_slope(temperature, humidity)", "regr_slope(temperature, humidity)", 1e-6),
    ("regr_intercept(temperature, humidity)", "regr_intercept(temperature, humidity)", 1e-6),
    ("regr_r2(temperature, humidity)", "regr_r2(temperature, humidity)", 1e-6),
    ("median(co2)", "median(co2)", 1e-12),
    ("bool_or(light > 400)", "bool_or(light > 400)", 0.0),
    ("bool_and(light > 0)", "bool_and(light > 0)", 0.0),
    ("bit_or(occupancy)", "bit_or(occupancy)", 0.0),
    ("bit_and(occupancy)", "bit_and(occupancy)", 0.0),
    ("bit_xor(occupancy)", "bit_xor(occupancy)", 0.0),
    ("first(co2, event_time)", "arg_min(co2, t)", 0.0),
    ("last(co2, event_time)", "arg_max(co2, t)", 0.0),
    ("first_value(co2 ORDER BY event_time)", "first(co2 ORDER BY t)", 0.0),
    ("last_value(co2 ORDER BY event_time)", "last(co2 ORDER BY t)", 0.0),
    ("delta(co2, event_time)", "arg_max(co2, t) - arg_min(co2, t)", 1e-9),
    ("approx_percentile(co2, 0.5)", "list_sort(list(co2))[floor(0.5 * (count(*) - 1))::INT + 1]", 0.0079),
    ("approx_percentile(co2, 0.95)", "list_sort(list(co2))[floor(0.95 * (count(*) - 1))::INT + 1]", 0.0079),
    ("slope(temperature, event_time)", "regr_slope(temperature, epoch(t))", 1e-5),
    ("increase(occupancy, event_time)", "sum(step)", 1e-9),
    (
        "rate(occupancy, event_time)",
        "CASE WHEN count(*) > 1 THEN sum(step) / (max(epoch(t)) - min(epoch(t))) END",
        1e-9,
    ),
    ("state_duration(light > 400, event_time)", "coalesce(sum(lasted) FILTER (WHERE light > 400), 0)", 1e-9),
    (
        "time_weighted_avg(temperature, event_time)",
        "CASE WHEN count(*) > 1 THEN sum(temperature * lasted) / sum(lasted) ELSE max(temperature) END",
        1e-9,
    ),
];

const ORACLE: &str = r#"
import duckdb, json, sys
task = json.loads(sys.argv[1])
c = duckdb.connect()
c.execute("SET TimeZone = 'UTC'")
c.execute(f"""
CREATE TABLE r AS SELECT date::TIMESTAMP AS t, * FROM read_csv('{task["file"]}', header = false, skip = 1,
  names = ['row', 'date', 'temperature', 'humidity', 'light', 'co2', 'humidityratio', 'occupancy'])""")
c.execute("""
CREATE TABLE s AS SELECT *, date_trunc('hour', t) AS w,
  CASE WHEN occupancy >= lag(occupancy) OVER p THEN occupancy - lag(occupancy) OVER p
       WHEN lag(occupancy) OVER p IS NULL THEN 0 ELSE occupancy END AS step,
  epoch(lead(t) OVER p) - epoch(t) AS lasted
FROM r WINDOW p AS (PARTITION BY date_trunc('hour', t) ORDER BY t)""")
select = ", ".join(task["aggregates"])
rows = c.execute(f"SELECT epoch_us(w), {select} FROM s GROUP BY w ORDER BY w").fetchall()
readings = c.execute("SELECT epoch_us(t), temperature, humidity, light, co2, occupancy FROM r ORDER BY row").fetchall()
print(json.dumps({"rows": rows, "readings": readings}, default = float))
"#;

const CATALOG: &str = "kind: stream\nname: room\ntopics: [\"devices/{device_id}/telemetry\"]\n\
    event_time: {field: ts, unit: us}\n\
    fields: {temperature: double, humidity: double, light: double, co2: double, occupancy: bigint}\n";

fn oracle(python: &Path, file: &Path) -> Value {
    let theirs: Vec<&str> = AGGREGATES.iter().map(|(_, theirs, _)| *theirs).collect();
    let task = serde_json::json!({ "file": file, "aggregates": theirs }).to_string();
    let output = Command::new(python).args(["-c", ORACLE, &task]).output().expect("python starts");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).expect("the script prints JSON")
}

fn message(reading: &Value) -> Message {
    let payload = serde_json::json!({
        "ts": reading[0], "temperature": reading[1], "humidity": reading[2], "light": reading[3],
        "co2": reading[4], "occupancy": reading[5],
    });
    Message::new("devices/room/telemetry", payload.to_string())
}

/// Null, a truth value or a number as a number.
fn number(value: &Value) -> Option<f64> {
    match value {
        Value::Bool(truth) => Some(f64::from(u8::from(*truth))),
        // Not a number is how DuckDB says that there is no answer.
        other => other.as_f64().filter(|number| !number.is_nan()),
    }
}

async fn compare(oracle: Value) {
    let dir = tempfile::tempdir().expect("a directory");
    let line = open(dir.path()).await;
    let ours: Vec<String> =
        AGGREGATES.iter().enumerate().map(|(i, (ours, ..))| format!("{ours} AS a{i:02}")).collect();
    let view = format!(
        "---\nkind: view\nname: hourly\nsql: SELECT tumble(event_time, INTERVAL '1 hour') AS w, {} FROM room GROUP BY w\n",
        ours.join(", ")
    );
    line.apply(&(CATALOG.to_owned() + &view), "test").await.expect("applies");
    let readings = oracle["readings"].as_array().expect("readings");
    // Every third reading comes late, so that hours have state in both layers.
    let (early, late): (Vec<_>, Vec<_>) = readings.iter().enumerate().partition(|(i, _)| i % 3 != 0);
    let send = async |part: Vec<(usize, &Value)>| {
        try_join_all(part.iter().map(|(_, reading)| line.ingest.submit(message(reading))))
            .await
            .expect("taken");
    };
    send(early).await;
    line.ingest.seal_now().await.expect("seals");
    line.batch.run(BatchRequest::default()).await.expect("runs");
    send(late).await;
    line.settle().await;

    let request = QueryRequest {
        sql: "SELECT * FROM hourly ORDER BY w".to_owned(),
        layer: Default::default(),
        max_rows: None,
    };
    let answer = line.queries.execute(request).await.expect("answers");
    let mut writer = arrow::json::ArrayWriter::new(Vec::new());
    writer.write_batches(&answer.batches.iter().collect::<Vec<_>>()).expect("JSON");
    writer.finish().expect("JSON");
    let rows: Vec<Value> = serde_json::from_slice(&writer.into_inner()).expect("JSON");
    let expected = oracle["rows"].as_array().expect("rows");
    assert_eq!(rows.len(), expected.len());
    for (row, expected) in rows.iter().zip(expected) {
        for (i, (ours, _, allowed)) in AGGREGATES.iter().enumerate() {
            let got = number(row.get(format!("a{i:02}")).unwrap_or(&Value::Null));
            let want = number(&expected[i + 1]);
            let close = match (got, want) {
                (Some(got), Some(want)) => {
                    (got - want).abs() <= allowed * want.abs() + 1e-7 * f64::from(*allowed > 0.0)
                }
                (got, want) => got == want,
            };
            assert!(close, "{ours} at {}: {got:?}, DuckDB has {want:?}", row["w"]);
        }
    }
    for report in line.verify(None).await.expect("verifies") {
        assert_eq!(report.differences, 0, "{:?}", report.examples);
    }
    line.shutdown().await;
}

#[test]
fn every_aggregate_has_duckdbs_answer() {
    let (Some(python), Some(file)) = (python("duckdb"), shared("data/sensors/occupancy_datatraining.csv"))
    else {
        return;
    };
    run(compare(oracle(&python, &file)));
}
