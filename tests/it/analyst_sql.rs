//! SQL as analysts write it: the examples of `docs/sql.md`, and the questions of the TSBS benchmark about trucks.

use std::ops::ControlFlow;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use arrow::array::RecordBatch;
use arrow::csv::ReaderBuilder;
use arrow::datatypes::{DataType, Field, Schema};
use arrow::util::display::{ArrayFormatter, FormatOptions};
use arrow::util::pretty::pretty_format_batches;
use datafusion::config::Dialect;
use datafusion::datasource::{MemTable, ViewTable};
use datafusion::error::Result;
use datafusion::logical_expr::LogicalPlan;
use datafusion::prelude::SessionContext;
use datafusion::sql::parser::Statement;
use datafusion::sql::sqlparser::ast::{self, BinaryOperator, Expr, VisitMut, VisitorMut};
use iot_schemas::session::context;
use iot_schemas::sql_comfort::{prepare, rewrite};
use iot_schemas::view::last_values;
use iot_tests::{python, shared, workspace};
use serde_json::Value;

async fn run(session: &SessionContext, sql: &str, translate: fn(&mut Statement)) -> Result<Vec<RecordBatch>> {
    let state = session.state();
    let mut statement = state.sql_to_statement(&prepare(sql), &Dialect::Generic)?;
    translate(&mut statement);
    rewrite(&mut statement)?;
    let plan = state.statement_to_plan(statement).await?;
    session.execute_logical_plan(plan).await?.collect().await
}

async fn as_a_server_would(session: &SessionContext, sql: &str) -> Result<Vec<RecordBatch>> {
    let plan = as_a_server_would_plan(session, sql).await?;
    session.execute_logical_plan(plan).await?.collect().await
}

async fn as_a_server_would_plan(session: &SessionContext, sql: &str) -> Result<LogicalPlan> {
    iot_schemas::sql::plan(session, sql).await
}

/// `IOT_BLESS=1` writes the answers into the page.
#[tokio::test]
async fn the_examples_of_the_page_give_the_answers_beside_them() {
    let session = context(2, Arc::default());
    for table in [
        "CREATE TABLE readings AS SELECT arrow_cast(to_timestamp(column1), 'Timestamp(Microsecond, Some(\"UTC\"))') \
         AS event_time, column2 AS device_id, column3 AS temperature FROM (VALUES \
         ('2026-03-29T00:52:00Z', 'oven', 20.0), ('2026-03-29T00:58:00Z', 'press', 41.0), \
         ('2026-03-29T01:01:00Z', 'oven', 22.5), ('2026-03-29T01:21:00Z', 'oven', 30.5), \
         ('2026-03-29T01:24:00Z', 'press', 43.0))",
        "CREATE TABLE settings AS SELECT arrow_cast(to_timestamp(column1), 'Timestamp(Microsecond, Some(\"UTC\"))') \
         AS event_time, column2 AS device_id, column3 AS target FROM (VALUES \
         ('2026-03-29T00:00:00Z', 'oven', 20), ('2026-03-29T01:01:00Z', 'oven', 30), ('2026-03-29T01:00:00Z', 'press', 42))",
    ] {
        session.sql(table).await.unwrap().collect().await.unwrap();
    }
    let readings = session.table_provider("readings").await.unwrap().schema();
    let last = as_a_server_would_plan(&session, &last_values("readings", &readings, &Default::default()).sql)
        .await
        .unwrap();
    session.register_table("readings_last", Arc::new(ViewTable::new(last, None))).unwrap();
    let path = workspace().join("docs/sql.md");
    let page = std::fs::read_to_string(&path).unwrap();
    let mut blessed = String::new();
    let mut rest = page.as_str();
    let mut examples = 0;
    while let Some((before, after)) = rest.split_once("```sql\n") {
        let (sql, after) = after.split_once("```\n").unwrap();
        let rows = as_a_server_would(&session, sql)
            .await
            .unwrap_or_else(|e| panic!("{sql}\n{}", e.strip_backtrace()));
        let answer = format!("\n```text\n{}\n```\n", pretty_format_batches(&rows).unwrap());
        blessed.push_str(&format!("{before}```sql\n{sql}```\n{answer}"));
        // An answer that is there already is replaced.
        rest = match after.strip_prefix("\n```text\n") {
            Some(old) => old.split_once("```\n").unwrap().1,
            None => after,
        };
        examples += 1;
    }
    blessed.push_str(rest);
    assert!(examples > 10, "{examples}");
    if std::env::var_os("IOT_BLESS").is_some() {
        std::fs::write(&path, &blessed).unwrap();
    }
    for (line, (found, expected)) in blessed.lines().zip(page.lines()).enumerate() {
        assert!(
            found == expected || std::env::var_os("IOT_BLESS").is_some(),
            "docs/sql.md:{}: {found}",
            line + 1
        );
    }
    assert!(blessed == page || std::env::var_os("IOT_BLESS").is_some(), "docs/sql.md lacks answers");
}

/// The columns of a truck, in the order of the files.
const TAGS: &str =
    "name, fleet, driver, model, device_version, load_capacity, fuel_capacity, nominal_fuel_consumption";
const READINGS: &str = "latitude, longitude, elevation, velocity, heading, grade, fuel_consumption";
const DIAGNOSTICS: &str = "fuel_state, current_load, status";

/// The tables of the benchmark: a row of `tags` is a combination of tags that occurs, some of them null.
async fn tsbs(data: &Path) -> SessionContext {
    let session = context(2, Arc::default());
    for (name, fields) in [("readings", READINGS), ("diagnostics", DIAGNOSTICS)] {
        let text = |field: &str| ["name", "fleet", "driver", "model", "device_version"].contains(&field);
        let columns = TAGS.split(", ").chain(fields.split(", ")).map(|field| {
            Field::new(field, if text(field) { DataType::Utf8 } else { DataType::Float64 }, true)
        });
        let columns: Vec<Field> =
            [Field::new("ms", DataType::Int64, true)].into_iter().chain(columns).collect();
        let schema = Arc::new(Schema::new(columns));
        let file = std::fs::File::open(data.join(format!("{name}_20trucks_72h_60s.csv.gz"))).expect("a file");
        let reader = ReaderBuilder::new(schema.clone()).with_header(true);
        let rows = reader.build(flate2::read::GzDecoder::new(file)).expect("CSV");
        let rows: Vec<RecordBatch> = rows.map(|batch| batch.expect("CSV")).collect();
        let table = MemTable::try_new(schema, vec![rows]).expect("a table");
        session.register_table(format!("{name}_csv"), Arc::new(table)).expect("a new name");
    }
    let same: Vec<String> =
        TAGS.split(", ").map(|tag| format!("(s.{tag} IS NOT DISTINCT FROM t.{tag})")).collect();
    let same = same.join(" AND ");
    let mut tables = vec![format!(
        "CREATE TABLE tags AS SELECT row_number() OVER (ORDER BY {TAGS}) AS id, * FROM \
         (SELECT {TAGS} FROM readings_csv UNION SELECT {TAGS} FROM diagnostics_csv)"
    )];
    for (name, fields) in [("readings", READINGS), ("diagnostics", DIAGNOSTICS)] {
        tables.push(format!(
            "CREATE TABLE {name} AS SELECT arrow_cast(to_timestamp_millis(ms), 'Timestamp(Microsecond, Some(\"UTC\"))') \
             AS time, id AS tags_id, {fields} FROM {name}_csv s JOIN tags t ON {same}"
        ));
    }
    for table in tables {
        session.sql(&table).await.expect(&table).collect().await.expect(&table);
    }
    session
}

/// The one rule that carries DuckDB's SQL over: its `/` divides as doubles, ours, as Postgres's, integers as integers.
fn from_duckdb(statement: &mut Statement) {
    struct Divisions;
    impl VisitorMut for Divisions {
        type Break = ();
        fn post_visit_expr(&mut self, expr: &mut Expr) -> ControlFlow<()> {
            if let Expr::BinaryOp { left, op: BinaryOperator::Divide, .. } = expr {
                let divided = std::mem::replace(left.as_mut(), Expr::value(ast::Value::Null));
                **left = Expr::Cast {
                    kind: ast::CastKind::Cast,
                    expr: Box::new(divided),
                    data_type: ast::DataType::Double(ast::ExactNumberInfo::None),
                    array: false,
                    format: None,
                };
            }
            ControlFlow::Continue(())
        }
    }
    if let Statement::Statement(statement) = statement {
        let _ = VisitMut::visit(statement, &mut Divisions);
    }
}

/// The cells as text, sorted; null is empty.
fn cells(rows: &[RecordBatch]) -> Vec<Vec<String>> {
    let options = FormatOptions::default();
    let mut found = Vec::new();
    for batch in rows {
        let columns: Vec<ArrayFormatter<'_>> = batch
            .columns()
            .iter()
            .map(|column| ArrayFormatter::try_new(column, &options).expect("printable"))
            .collect();
        let row = |row: usize| columns.iter().map(|column| column.value(row).to_string()).collect();
        found.extend((0..batch.num_rows()).map(row));
    }
    found
}

fn expected_cells(rows: &Value) -> Vec<Vec<String>> {
    let cell = |value: &Value| match value {
        Value::Null => String::new(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    };
    let array = |value: &Value| value.as_array().cloned().expect("an array");
    array(rows).iter().map(|row| array(row).iter().map(cell).collect()).collect()
}

/// Rows in any order; numbers within the rounding of another order of addition.
#[track_caller]
fn assert_same(name: &str, mut found: Vec<Vec<String>>, mut expected: Vec<Vec<String>>) {
    // Numbers are written in different ways, and sorted by their rounded values.
    let sortable = |row: &Vec<String>| -> Vec<String> {
        let rounded = |cell: &String| cell.parse::<f64>().map_or(cell.clone(), |n| format!("{n:025.6}"));
        row.iter().map(rounded).collect()
    };
    found.sort_by_key(sortable);
    expected.sort_by_key(sortable);
    let same = |(a, b): (&String, &String)| match (a.parse::<f64>(), b.parse::<f64>()) {
        (Ok(a), Ok(b)) => (a - b).abs() <= 1e-9 * a.abs().max(1.0),
        _ => a == b,
    };
    assert_eq!(found.len(), expected.len(), "{name}\n{found:?}\n{expected:?}");
    for (a, b) in found.iter().zip(&expected) {
        assert!(a.len() == b.len() && a.iter().zip(b).all(same), "{name}: {a:?} is not {b:?}");
    }
}

#[tokio::test]
async fn the_golden_questions_about_trucks_have_duckdbs_answers() {
    let (Some(golden), Some(data)) = (shared("golden/tsbs_iot.json"), shared("data/tsbs_iot")) else {
        return;
    };
    let golden: Value = serde_json::from_slice(&std::fs::read(golden).unwrap()).unwrap();
    let session = tsbs(&data).await;
    for query in golden["queries"].as_array().unwrap() {
        let (name, sql) = (query["name"].as_str().unwrap(), query["sql"].as_str().unwrap());
        let rows = run(&session, sql, from_duckdb)
            .await
            .unwrap_or_else(|e| panic!("{name}: {}", e.strip_backtrace()));
        assert_same(name, cells(&rows), expected_cells(&query["rows"]));
    }
}

/// The other questions of the benchmark, as DuckDB and we both understand them.
const QUESTIONS: &[(&str, &str)] = &[
    (
        "last-loc",
        "SELECT t.name AS name, t.driver AS driver, r.* FROM tags t INNER JOIN LATERAL (SELECT longitude, latitude \
         FROM readings r WHERE r.tags_id = t.id ORDER BY time DESC LIMIT 1) r ON true \
         WHERE t.name IS NOT NULL AND t.fleet = 'South'",
    ),
    (
        "single-last-loc",
        "SELECT t.name AS name, t.driver AS driver, r.* FROM tags t INNER JOIN LATERAL (SELECT longitude, latitude \
         FROM readings r WHERE r.tags_id=t.id ORDER BY time DESC LIMIT 1) r ON true WHERE t.name IN ('truck_5')",
    ),
    (
        "high-load",
        "SELECT t.name AS name, t.driver AS driver, d.* FROM tags t INNER JOIN LATERAL (SELECT current_load \
         FROM diagnostics d WHERE d.tags_id=t.id ORDER BY time DESC LIMIT 1) d ON true \
         WHERE t.name IS NOT NULL AND d.current_load/t.load_capacity > 0.9 AND t.fleet = 'South'",
    ),
    (
        "long-driving-sessions",
        "SELECT t.name AS name, t.driver AS driver FROM tags t INNER JOIN LATERAL (SELECT time_bucket(INTERVAL '10 \
         minutes', time) AS ten_minutes, tags_id FROM readings WHERE time >= '2016-01-02 08:00:00' \
         AND time < '2016-01-02 12:00:00' GROUP BY ten_minutes, tags_id HAVING avg(velocity) > 1 \
         ORDER BY ten_minutes, tags_id) AS r ON t.id = r.tags_id WHERE t.name IS NOT NULL AND t.fleet = 'South' \
         GROUP BY name, driver HAVING count(r.ten_minutes) > 10",
    ),
    (
        "avg-vs-projected-fuel-consumption",
        "SELECT t.fleet AS fleet, avg(r.fuel_consumption) AS avg_fuel_consumption, \
         avg(t.nominal_fuel_consumption) AS projected_fuel_consumption FROM tags t INNER JOIN LATERAL(SELECT tags_id, \
         fuel_consumption FROM readings r WHERE r.tags_id = t.id AND velocity > 1) r ON true WHERE t.fleet IS NOT NULL \
         AND t.nominal_fuel_consumption IS NOT NULL AND t.name IS NOT NULL GROUP BY fleet",
    ),
    (
        "avg-daily-driving-session",
        "WITH driver_status AS (SELECT tags_id, time_bucket(INTERVAL '10 mins', TIME) AS ten_minutes, \
         avg(velocity) > 5 AS driving FROM readings GROUP BY tags_id, ten_minutes ORDER BY tags_id, ten_minutes), \
         driver_status_change AS (SELECT tags_id, ten_minutes AS start, lead(ten_minutes) OVER (PARTITION BY tags_id \
         ORDER BY ten_minutes) AS stop, driving FROM (SELECT tags_id, ten_minutes, driving, lag(driving) OVER \
         (PARTITION BY tags_id ORDER BY ten_minutes) AS prev_driving FROM driver_status) x \
         WHERE x.driving <> x.prev_driving) SELECT t.name AS name, extract(epoch from time_bucket(INTERVAL '24 hours', \
         start)) AS day, avg(extract(epoch from stop) - extract(epoch from start)) AS duration FROM tags t \
         INNER JOIN driver_status_change d ON t.id = d.tags_id WHERE t.name IS NOT NULL AND d.driving = true \
         GROUP BY name, day ORDER BY name, day",
    ),
    (
        "avg-load",
        "SELECT t.fleet AS fleet, t.model AS model, t.load_capacity AS load_capacity, avg(d.avg_load / \
         t.load_capacity) AS avg_load_percentage FROM tags t INNER JOIN (SELECT tags_id, avg(current_load) AS avg_load \
         FROM diagnostics d GROUP BY tags_id) d ON t.id = d.tags_id WHERE t.name IS NOT NULL \
         GROUP BY fleet, model, load_capacity",
    ),
    (
        "daily-activity",
        "SELECT t.fleet AS fleet, t.model AS model, extract(epoch from y.day) AS d, sum(y.ten_mins_per_day) / 144 AS \
         daily_activity FROM tags t INNER JOIN (SELECT time_bucket(INTERVAL '24 hours', TIME) AS day, \
         time_bucket(INTERVAL '10 minutes', TIME) AS ten_minutes, tags_id, count(*) AS ten_mins_per_day \
         FROM diagnostics GROUP BY day, ten_minutes, tags_id HAVING avg(STATUS) < 1) y ON y.tags_id = t.id \
         WHERE t.name IS NOT NULL GROUP BY fleet, model, y.day ORDER BY y.day",
    ),
    (
        "breakdown-frequency",
        "WITH breakdown_per_truck_per_ten_minutes AS (SELECT time_bucket(INTERVAL '10 minutes', TIME) AS ten_minutes, \
         tags_id, count(STATUS = 0) / count(*) >= 0.5 AS broken_down FROM diagnostics GROUP BY ten_minutes, tags_id), \
         breakdowns_per_truck AS (SELECT ten_minutes, tags_id, broken_down, lead(broken_down) OVER (PARTITION BY \
         tags_id ORDER BY ten_minutes) AS next_broken_down FROM breakdown_per_truck_per_ten_minutes) \
         SELECT t.model AS model, count(*) FROM tags t INNER JOIN breakdowns_per_truck b ON t.id = b.tags_id \
         WHERE t.name IS NOT NULL AND broken_down = false AND next_broken_down = true GROUP BY model",
    ),
    (
        "fuel as of each reading",
        "SELECT count(*), sum(d.fuel_state), sum(r.velocity * d.current_load) FROM \
         (SELECT DISTINCT ON (tags_id, time) * FROM readings ORDER BY tags_id, time, latitude, longitude, velocity) r \
         ASOF JOIN (SELECT tags_id, time, max(fuel_state) AS fuel_state, max(current_load) AS current_load \
         FROM diagnostics GROUP BY tags_id, time) d ON r.tags_id = d.tags_id AND r.time >= d.time",
    ),
];

/// The same tables in DuckDB; questions on stdin, answers on stdout, as JSON.
const DUCKDB: &str = r#"
import duckdb, json, sys
data, tags, fields = sys.argv[1], sys.argv[2], {"readings": sys.argv[3], "diagnostics": sys.argv[4]}
c = duckdb.connect()
for name in fields:
    c.sql(f"create table {name}_csv as select * from read_csv('{data}/{name}_20trucks_72h_60s.csv.gz')")
c.sql(f"""create table tags as select row_number() over (order by {tags}) as id, * from
          (select {tags} from readings_csv union select {tags} from diagnostics_csv)""")
same = " and ".join(f"s.{t} is not distinct from t.{t}" for t in tags.split(", "))
for name in fields:
    c.sql(f"""create table {name} as select make_timestamp(time * 1000) as time, id as tags_id, {fields[name]}
              from {name}_csv s join tags t on {same}""")
print(json.dumps([c.sql(sql).fetchall() for sql in json.load(sys.stdin)], default=float))
"#;

#[tokio::test]
async fn the_other_questions_about_trucks_have_duckdbs_answers() {
    let (Some(python), Some(data)) = (python("duckdb"), shared("data/tsbs_iot")) else { return };
    let dir = tempfile::tempdir().unwrap();
    let questions = dir.path().join("questions.json");
    let texts: Vec<&str> = QUESTIONS.iter().map(|(_, sql)| *sql).collect();
    std::fs::write(&questions, serde_json::to_vec(&texts).unwrap()).unwrap();
    let answers = Command::new(python)
        .args(["-c", DUCKDB, data.to_str().unwrap(), TAGS, READINGS, DIAGNOSTICS])
        .stdin(std::fs::File::open(questions).unwrap())
        .output()
        .unwrap();
    assert!(answers.status.success(), "{}", String::from_utf8_lossy(&answers.stderr));
    let answers: Value = serde_json::from_slice(&answers.stdout).unwrap();
    let session = tsbs(&data).await;
    for ((name, sql), answer) in QUESTIONS.iter().zip(answers.as_array().unwrap()) {
        let rows = run(&session, sql, from_duckdb)
            .await
            .unwrap_or_else(|e| panic!("{name}: {}", e.strip_backtrace()));
        assert_same(name, cells(&rows), expected_cells(answer));
    }
}
