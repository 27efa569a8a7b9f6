use arrow::util::pretty::pretty_format_batches;
use datafusion::config::Dialect;
use datafusion::prelude::SessionContext;
use proptest::prelude::*;

use super::*;

/// Runs one text as a front end would and prints the rows.
pub(crate) async fn run(context: &SessionContext, sql: &str) -> Result<String> {
    let state = context.state();
    let mut statement = state.sql_to_statement(&prepare(sql), &Dialect::Generic)?;
    rewrite(&mut statement)?;
    let plan = state.statement_to_plan(statement).await?;
    let rows = context.execute_logical_plan(plan).await?.collect().await?;
    Ok(pretty_format_batches(&rows)?.to_string())
}

/// The cells of the rows in the order they came, one line per row, columns separated by a space.
pub(crate) async fn rows(context: &SessionContext, sql: &str) -> Vec<String> {
    let table = run(context, sql).await.unwrap_or_else(|e| panic!("{sql}\n{}", e.strip_backtrace()));
    let lines = table.lines().filter(|line| line.starts_with('|')).skip(1);
    lines
        .map(|line| {
            let cells: Vec<&str> = line.trim_matches('|').split('|').map(str::trim).collect();
            cells.join(" ")
        })
        .collect()
}

async fn fails(context: &SessionContext, sql: &str, why: &str) {
    let error = run(context, sql).await.expect_err(sql).to_string();
    assert!(error.contains(why), "{sql}\n{error}");
}

async fn prices() -> SessionContext {
    let context = crate::session::context(3, Default::default());
    for table in [
        "CREATE TABLE trades AS SELECT * FROM (VALUES ('x', 1, 10), ('x', 4, 11), ('x', 9, 12), ('y', 5, 20), \
         ('z', 5, 30), (NULL, 5, 40), ('x', NULL, 50)) AS v(k, t, amount)",
        "CREATE TABLE quotes AS SELECT * FROM (VALUES ('x', 2, 100), ('x', 4, 101), ('x', 6, 102), ('y', 9, 200), \
         (NULL, 1, 300), ('x', NULL, 400)) AS v(k, t, price)",
    ] {
        context.sql(table).await.unwrap().collect().await.unwrap();
    }
    context
}

#[tokio::test]
async fn asof_join_finds_the_row_of_the_time() {
    let context = prices().await;
    let select = "SELECT a.k, a.t, price FROM trades a ASOF";
    let order = "ORDER BY a.k, a.t";
    let check = async |from: &str, expected: &[&str]| {
        assert_eq!(rows(&context, &format!("{select} {from} {order}")).await, expected, "{from}");
    };
    check("JOIN quotes b ON a.k = b.k AND a.t >= b.t", &["x 4 101", "x 9 102"]).await;
    check("JOIN quotes b ON a.k = b.k AND b.t <= a.t", &["x 4 101", "x 9 102"]).await;
    check("JOIN quotes b ON a.k = b.k AND a.t > b.t", &["x 4 100", "x 9 102"]).await;
    check("JOIN quotes b ON a.k = b.k AND a.t <= b.t", &["x 1 100", "x 4 101", "y 5 200"]).await;
    check("JOIN quotes b ON a.k = b.k AND a.t < b.t", &["x 1 100", "x 4 102", "y 5 200"]).await;
    let all = ["x 1", "x 4 101", "x 9 102", "x", "y 5", "z 5", "5"];
    let left =
        rows(&context, &format!("{select} LEFT JOIN quotes b ON a.k = b.k AND a.t >= b.t {order}")).await;
    let left: Vec<&str> = left.iter().map(|row| row.trim()).collect();
    assert_eq!(
        left.iter().map(|row| row.split_whitespace().collect::<Vec<_>>().join(" ")).collect::<Vec<_>>(),
        all
    );
    // Snowflake's form, with and without an alias.
    check("JOIN quotes b MATCH_CONDITION (a.t >= b.t) ON a.k = b.k", &["x 4 101", "x 9 102"]).await;
    check("JOIN quotes MATCH_CONDITION (a.t >= quotes.t) ON a.k = quotes.k", &["x 4 101", "x 9 102"]).await;
    let kept = format!("{select} LEFT JOIN quotes b MATCH_CONDITION (a.t >= b.t) ON a.k = b.k {order}");
    assert_eq!(rows(&context, &kept).await.len(), 7);
}

#[tokio::test]
async fn asof_join_with_using_shows_the_columns_once() {
    let context = prices().await;
    let sql = "SELECT * FROM trades ASOF JOIN quotes USING (k, t) ORDER BY t";
    assert_eq!(rows(&context, sql).await, ["x 4 11 101", "x 9 12 102"]);
    let sql = "SELECT k, t, price FROM trades a ASOF LEFT JOIN quotes b USING (k, t) WHERE a.k = 'x' ORDER BY t NULLS FIRST";
    assert_eq!(rows(&context, sql).await, ["x  ", "x 1 ", "x 4 101", "x 9 102"]);
}

#[tokio::test]
async fn asof_join_without_keys_in_subqueries_and_with_filters() {
    let context = prices().await;
    let sql = "SELECT amount, price FROM trades a ASOF JOIN quotes b ON a.t >= b.t WHERE a.t IS NOT NULL ORDER BY amount";
    assert_eq!(rows(&context, sql).await, ["10 300", "11 101", "12 200", "20 101", "30 101", "40 101"]);
    // A condition on the right side is about the match, it does not choose another one.
    let sql = "SELECT amount FROM (SELECT * FROM trades a ASOF JOIN quotes b ON a.k = b.k AND a.t >= b.t WHERE price < 102) x";
    assert_eq!(rows(&context, sql).await, ["11"]);
    let sql = "WITH j AS (SELECT a.k, price FROM trades a ASOF JOIN quotes b ON a.k = b.k AND a.t >= b.t) \
               SELECT k, count(*), max(price) FROM j GROUP BY k UNION ALL \
               SELECT 'all', count(*), max(price) FROM trades a ASOF JOIN quotes b ON a.k = b.k AND a.t >= b.t ORDER BY 1";
    assert_eq!(rows(&context, sql).await, ["all 2 102", "x 2 102"]);
    let plan = run(
        &context,
        "EXPLAIN SELECT a.t FROM trades a ASOF JOIN quotes b ON a.k = b.k AND a.t >= b.t WHERE a.k = 'x'",
    );
    assert!(plan.await.unwrap().contains("AsofJoinExec"));
}

#[tokio::test]
async fn asof_joins_of_another_shape_say_what_is_missing() {
    let context = prices().await;
    let from = "SELECT * FROM trades a ASOF JOIN quotes b";
    fails(&context, &format!("{from} ON a.k = b.k"), "one inequality").await;
    fails(&context, &format!("{from} ON a.k = b.k AND a.t >= b.t AND a.t < b.price"), "one inequality").await;
    fails(&context, &format!("{from} ON a.k = b.k AND a.t >= b.t AND b.price = 100"), "put `b.price").await;
    fails(&context, &format!("{from} MATCH_CONDITION (a.t = b.t) ON a.k = b.k"), "MATCH_CONDITION must")
        .await;
    fails(&context, &format!("{from} MATCH_CONDITION (a.t >= 3) ON a.k = b.k"), "one inequality").await;
}

#[test]
fn only_asof_joins_are_touched_in_the_text() {
    for sql in [
        "SELECT 'asof join ' || x FROM asof",
        "SELECT 1 -- asof left join",
        "SELECT \"asof\" FROM t JOIN u ON true",
    ] {
        assert_eq!(prepare(sql), sql);
    }
    assert_eq!(
        prepare("SELECT 'it''s' FROM a ASOF LEFT JOIN b ON a.k=b.k JOIN c ON c.x > 1"),
        "SELECT 'it''s' FROM a ASOF   JOIN b MATCH_CONDITION (asof_left) ON a.k=b.k JOIN c ON c.x > 1"
            .replace("ASOF   JOIN", "ASOF  JOIN")
    );
}

#[tokio::test]
async fn lateral_with_limit_takes_the_last_rows_of_each() {
    let context = prices().await;
    context
        .sql("CREATE TABLE devices AS SELECT * FROM (VALUES ('x', 1), ('y', 2), ('z', 3)) AS v(id, site)")
        .await
        .unwrap();
    let from = "FROM devices d";
    let lateral = "LATERAL (SELECT q.t, price FROM quotes q WHERE q.k = d.id AND q.t IS NOT NULL ORDER BY q.t DESC LIMIT";
    let check = async |sql: String, expected: &[&str]| {
        let found = rows(&context, &sql).await;
        let found: Vec<&str> = found.iter().map(|row| row.trim_end()).collect();
        assert_eq!(found, expected, "{sql}");
    };
    check(format!("SELECT d.id, l.* {from} JOIN {lateral} 1) l ON true ORDER BY 1"), &["x 6 102", "y 9 200"])
        .await;
    check(format!("SELECT * {from}, {lateral} 1) AS l ORDER BY 1"), &["x 1 6 102", "y 2 9 200"]).await;
    check(
        format!("SELECT id, price {from} LEFT JOIN {lateral} 1) l ON price > 150 ORDER BY 1"),
        &["x", "y 200", "z"],
    )
    .await;
    check(
        format!("SELECT id, price {from} CROSS JOIN {lateral} 2) l ORDER BY 1, 2"),
        &["x 101", "x 102", "y 200"],
    )
    .await;
    check(format!("SELECT id, price {from} CROSS JOIN {lateral} 1 OFFSET 1) l ORDER BY 1, 2"), &["x 101"])
        .await;
    check(
        format!("SELECT l.* EXCLUDE (price), d.* {from} JOIN {lateral} 1) AS l(a, price) ON true ORDER BY 1"),
        &["6 x 1", "9 y 2"],
    )
    .await;
    let later = "LATERAL (SELECT q.t AS at FROM quotes q WHERE q.k = d.id AND q.t < d.site ORDER BY at LIMIT 1) l ON true";
    fails(&context, &format!("SELECT * {from} JOIN {later}"), "ASOF JOIN").await;
    fails(
        &context,
        &format!("SELECT * {from} JOIN LATERAL (SELECT max(q.t) FROM quotes q WHERE q.k = d.id GROUP BY q.k LIMIT 1) l ON true"),
        "it groups",
    )
    .await;
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    #[test]
    fn asof_join_is_the_correlated_subquery(
        left in prop::collection::vec((0i64..4, 0i64..40), 0..60),
        right in prop::collection::vec((0i64..4, 0i64..40), 0..60),
        op in prop::sample::select(vec![">=", ">", "<=", "<"]),
        partitions in 1usize..4,
        batch_size in prop::sample::select(vec![1usize, 2, 7, 8192]),
    ) {
        let values = |rows: &[(i64, i64)]| {
            let rows: Vec<String> = rows.iter().map(|(k, t)| format!("({k}, {t})")).collect();
            if rows.is_empty() { "(SELECT 1 AS k, 1 AS t WHERE false)".to_owned() }
            else { format!("(SELECT DISTINCT * FROM (VALUES {}) AS v(k, t))", rows.join(", ")) }
        };
        let (best, other) = if op.starts_with('>') { ("max", "<=") } else { ("min", ">=") };
        let strict = if op.len() == 1 { other.trim_end_matches('=') } else { other };
        let (left, right) = (values(&left), values(&right));
        let asof = format!("SELECT a.k, a.t, b.t FROM {left} a ASOF LEFT JOIN {right} b ON a.k = b.k AND a.t {op} b.t ORDER BY 1, 2");
        let plain = format!(
            "SELECT a.k, a.t, {best}(b.t) FROM {left} a LEFT JOIN {right} b ON a.k = b.k AND b.t {strict} a.t \
             GROUP BY a.k, a.t ORDER BY 1, 2"
        );
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let (found, expected) = runtime.block_on(async {
            let context = crate::session::context(partitions, Default::default());
            context.sql(&format!("SET datafusion.execution.batch_size = {batch_size}")).await.unwrap();
            (rows(&context, &asof).await, rows(&context, &plain).await)
        });
        prop_assert_eq!(found, expected);
    }
}
