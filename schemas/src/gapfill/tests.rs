use datafusion::prelude::SessionContext;
use proptest::prelude::*;

use crate::sql_comfort::tests::{rows, run};

async fn readings() -> SessionContext {
    let context = crate::session::context(3, Default::default());
    let table = "CREATE TABLE r AS SELECT arrow_cast(to_timestamp(column1), 'Timestamp(Microsecond, Some(\"UTC\"))') AS t, \
                 column2 AS k, CAST(column3 AS DOUBLE) AS x, CAST(column3 AS BIGINT) AS n \
                 FROM (VALUES ('2026-01-01T00:01:10Z', 'a', 1), ('2026-01-01T00:01:50Z', 'a', 3), \
                 ('2026-01-01T00:04:00Z', 'a', 5), ('2026-01-01T00:02:30Z', 'b', 7), ('2026-01-01T00:03:30Z', 'b', NULL), \
                 ('2026-01-01T00:30:00Z', 'b', 9))";
    context.sql(table).await.unwrap().collect().await.unwrap();
    context
}

const RANGE: &str = "t >= '2026-01-01T00:00:00Z' AND t < '2026-01-01T00:06:00Z'";

/// Minutes and the other columns.
async fn minutes(context: &SessionContext, sql: &str) -> Vec<String> {
    let found = rows(context, sql).await;
    found
        .into_iter()
        .map(|row| row.replace("2026-01-01T00:0", "").replace(":00Z", "").trim_end().to_owned())
        .collect()
}

#[tokio::test]
async fn every_series_has_every_bucket() {
    let context = readings().await;
    let sql = format!(
        "SELECT time_bucket_gapfill('1 minute', t) AS m, k, count(*) AS c, locf(avg(x)) AS l, interpolate(avg(x)) AS i \
         FROM r WHERE {RANGE} GROUP BY m, k ORDER BY k, m"
    );
    let expected = [
        "0 a",
        "1 a 2 2.0 2.0",
        "2 a  2.0 3.0",
        "3 a  2.0 4.0",
        "4 a 1 5.0 5.0",
        "5 a  5.0",
        "0 b",
        "1 b",
        "2 b 1 7.0 7.0",
        "3 b 1",
        "4 b",
        "5 b",
    ];
    assert_eq!(minutes(&context, &sql).await, expected);
}

#[tokio::test]
async fn nulls_that_count_as_missing_are_filled_as_well() {
    let context = readings().await;
    let sql = format!(
        "SELECT gapfill(INTERVAL '1 minute', t), locf(avg(x), true), round(locf(avg(x), treat_null_as_missing => true) + 1) AS y \
         FROM r WHERE k = 'b' AND {RANGE} GROUP BY 1 ORDER BY 1"
    );
    assert_eq!(minutes(&context, &sql).await, ["0", "1", "2 7.0 8.0", "3 7.0 8.0", "4 7.0 8.0", "5 7.0 8.0"]);
}

#[tokio::test]
async fn the_range_is_read_off_where_or_given() {
    let context = readings().await;
    for (extras, condition) in [
        ("", "t BETWEEN '2026-01-01T00:01:00Z' AND '2026-01-01T00:04:00Z'"),
        ("", "'2026-01-01T00:01:30Z' > t AND k <> 'c' AND (t >= '2026-01-01T00:00:00Z' AND n > 0)"),
        (", '2026-01-01T00:01:00Z', '2026-01-01T00:05:00Z'", "true"),
        (", TIMESTAMP '2026-01-01T00:01:00Z', TIMESTAMP '2026-01-01T00:05:00Z'", "t < now()"),
        (", 'Europe/Berlin', '2026-01-01T00:01:00Z', '2026-01-01T00:05:00Z'", "true"),
    ] {
        let sql = format!(
            "SELECT time_bucket_gapfill('1 minute', t{extras}) AS m, interpolate(max(n)) FROM r \
             WHERE k = 'a' AND {condition} GROUP BY m ORDER BY m"
        );
        let expected: &[&str] =
            if condition.starts_with('\'') { &["0", "1 1"] } else { &["1 3", "2 3", "3 4", "4 5"] };
        assert_eq!(minutes(&context, &sql).await, expected, "{sql}");
    }
    let nested = "SELECT m, l FROM (SELECT gapfill('1 minute', s.time) AS m, locf(max(v)) AS l FROM \
                  (SELECT t AS time, n AS v FROM r WHERE t < '2026-01-01T00:05:00Z' AND k = 'a') s \
                  WHERE s.time >= '2026-01-01T00:01:00Z' GROUP BY 1) WHERE l > 3 ORDER BY m";
    assert_eq!(minutes(&context, nested).await, ["4 5"]);
}

#[tokio::test]
async fn having_goes_before_and_windows_after() {
    let context = readings().await;
    let sql = format!(
        "SELECT gapfill('1 minute', t) AS m, count(*) AS c, sum(locf(count(*))) OVER (ORDER BY gapfill('1 minute', t)) AS s \
         FROM r WHERE k = 'a' AND {RANGE} GROUP BY m HAVING count(*) > 1 ORDER BY m"
    );
    assert_eq!(minutes(&context, &sql).await, ["0", "1 2 2", "2  4", "3  6", "4  8", "5  10"]);
    let empty = format!(
        "SELECT gapfill('2 minutes', t) AS m, count(*) FROM r WHERE k = 'none' AND {RANGE} GROUP BY m ORDER BY m"
    );
    assert_eq!(minutes(&context, &empty).await, ["0", "2", "4"]);
    let empty =
        format!("SELECT gapfill('2 minutes', t) AS m, k FROM r WHERE k = 'none' AND {RANGE} GROUP BY m, k");
    assert_eq!(minutes(&context, &empty).await, [""; 0]);
}

#[tokio::test]
async fn days_of_a_place_are_filled_across_the_change_of_the_clock() {
    let context = readings().await;
    let sql = "SELECT gapfill('1 day', t, 'Europe/Berlin', '2026-03-27T23:00:00Z', '2026-03-30T22:00:00Z') AS d, count(*) \
               FROM r GROUP BY 1 ORDER BY 1";
    let found = rows(&context, sql).await;
    let days: Vec<&str> =
        found.iter().map(|row| row.trim_end()).filter(|row| row.starts_with("2026-03")).collect();
    assert_eq!(days, ["2026-03-27T23:00:00Z", "2026-03-28T23:00:00Z", "2026-03-29T22:00:00Z"]);
}

#[tokio::test]
async fn what_cannot_be_filled_is_refused_with_a_hint() {
    let context = readings().await;
    for (sql, why) in [
        ("SELECT gapfill('1 minute', t), count(*) FROM r GROUP BY 1", "the start of its range"),
        (
            "SELECT gapfill('1 minute', t), count(*) FROM r WHERE t > '2026-01-01' GROUP BY 1",
            "the finish of its range",
        ),
        (
            "SELECT gapfill('1 microsecond', t), count(*) FROM r WHERE t > '2026-01-01' AND t < '2026-01-02' GROUP BY 1",
            "larger buckets",
        ),
        ("SELECT gapfill('1 minute', t) FROM r", "must itself be a key"),
        (
            "SELECT date_trunc('hour', gapfill('1 minute', t)), count(*) FROM r GROUP BY 1",
            "must itself be a key",
        ),
        ("SELECT locf(x) FROM r", "time_bucket_gapfill"),
        ("SELECT k, interpolate(avg(x)) FROM r GROUP BY k", "time_bucket_gapfill"),
        ("SELECT locf(avg(x)), time_bucket('1 minute', t) AS m FROM r GROUP BY m", "time_bucket_gapfill"),
        ("SELECT interpolate(k) FROM r", "takes a number"),
    ] {
        let error = run(&context, sql).await.expect_err(sql).to_string();
        assert!(error.contains(why), "{sql}\n{error}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]
    #[test]
    fn filling_is_the_join_with_all_buckets(
        events in prop::collection::vec((0i64..3, 0i64..30, prop::option::of(-9i64..9)), 1..40),
        partitions in 1usize..4,
        batch_size in prop::sample::select(vec![1usize, 3, 8192]),
    ) {
        let values: Vec<String> = events
            .iter()
            .map(|(k, t, x)| format!("({k}, {t}, {})", x.map_or("NULL".to_owned(), |x| x.to_string())))
            .collect();
        let events = format!("(SELECT column1 AS k, to_timestamp(column2 * 60) AS t, CAST(column3 AS BIGINT) AS x FROM (VALUES {}))", values.join(", "));
        let filled = format!(
            "SELECT k, gapfill('1 minute', t, to_timestamp(0), to_timestamp(1800)) AS m, sum(x) AS s, locf(sum(x), true) AS l \
             FROM {events} GROUP BY k, m ORDER BY k, m"
        );
        let joined = format!(
            "SELECT k, m, s, last_value(s) IGNORE NULLS OVER (PARTITION BY k ORDER BY m) AS l FROM \
             (SELECT d.k, time_bucket('1 minute', g.m) AS m, sum(x) AS s FROM (SELECT DISTINCT k FROM {events}) d \
              CROSS JOIN (SELECT to_timestamp(value * 60) AS m FROM generate_series(0, 29)) g \
              LEFT JOIN {events} e ON e.k = d.k AND e.t = g.m GROUP BY 1, 2) ORDER BY k, m"
        );
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let (found, expected) = runtime.block_on(async {
            let context = crate::session::context(partitions, Default::default());
            context.sql(&format!("SET datafusion.execution.batch_size = {batch_size}")).await.unwrap();
            (rows(&context, &filled).await, rows(&context, &joined).await)
        });
        prop_assert_eq!(found, expected);
    }
}
