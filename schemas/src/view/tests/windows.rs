//! Windows through state, against the same query over all events: two independent ways to the same rows.

use super::*;

/// Queries with every kind of window.
const WINDOWED: &[&str] = &[
    "SELECT device_id, hop(event_time, INTERVAL '1 minute', INTERVAL '5 minutes') AS w, count(*) AS c, sum(n) AS s \
     FROM readings GROUP BY device_id, w",
    "SELECT hop(event_time, INTERVAL '40 seconds', INTERVAL '1 minute') AS w, window_end, count(*) AS c \
     FROM readings GROUP BY w",
    "SELECT hop(event_time, INTERVAL '90 seconds', INTERVAL '1 minute') AS w, count(*) AS c FROM readings GROUP BY w",
    "SELECT device_id, session(event_time, INTERVAL '20 seconds') AS window_start, window_end, count(*) AS c, \
     max(temperature) AS hi FROM readings GROUP BY device_id, window_start",
    "SELECT session(event_time, INTERVAL '10 seconds') AS window_start, window_end, count(*) AS c FROM readings GROUP BY 1",
    "SELECT device_id, status, session(event_time, INTERVAL '15 seconds') AS s, sum(n) AS n FROM readings \
     WHERE n > -500 GROUP BY device_id, status, s HAVING count(*) > 1",
    "SELECT cumulate(event_time, INTERVAL '1 minute', INTERVAL '5 minutes') AS w, window_end, avg(n) AS a \
     FROM readings GROUP BY w",
    "SELECT status, window_start, window_end, count(*) AS c FROM TABLE(SESSION(TABLE readings PARTITION BY device_id, \
     DESCRIPTOR(event_time), INTERVAL '30' SECOND)) GROUP BY status, window_start, window_end",
    "SELECT window_start, window_end, window_time, count(*) AS c FROM TABLE(SESSION(TABLE readings, \
     DESCRIPTOR(event_time), INTERVAL '5' SECOND)) GROUP BY window_start, window_end, window_time",
    "SELECT grouping_id(device_id) AS g, device_id, window_start, count(*) AS c, sum(n) AS s FROM TABLE(HOP(TABLE readings, \
     DESCRIPTOR(event_time), INTERVAL '1' MINUTE, INTERVAL '2' MINUTE, INTERVAL '10' SECOND)) \
     GROUP BY CUBE(device_id), window_start, window_end",
    "SELECT device_id, status, count(*) AS c, grouping(status) AS g FROM readings GROUP BY ROLLUP (device_id, status)",
    "SELECT count(*) AS groups, max(c) AS most FROM (SELECT device_id, count(*) AS c FROM readings GROUP BY device_id) q",
    "SELECT window_start, sum(c) AS c FROM (SELECT device_id, window_start, count(*) AS c FROM TABLE(CUMULATE(TABLE readings, \
     DESCRIPTOR(event_time), INTERVAL '30' SECOND, INTERVAL '2' MINUTE)) GROUP BY device_id, window_start, window_end) \
     GROUP BY window_start",
    "SELECT window.start AS start, window.\"end\" AS stop, c FROM (SELECT tumble(INTERVAL '1 minute') AS window, count(*) AS c \
     FROM readings GROUP BY window)",
    "SELECT date_trunc('minute', window_start) AS m, count(*) AS c FROM TABLE(HOP(TABLE readings, DESCRIPTOR(event_time), \
     INTERVAL '20' SECOND, INTERVAL '1' MINUTE)) GROUP BY date_trunc('minute', window_start)",
];

fn events(seed: u64, count: usize) -> Vec<Event> {
    use rand::{RngExt, SeedableRng};
    let mut random = rand_chacha::ChaCha8Rng::seed_from_u64(seed);
    (0..count)
        .map(|_| {
            (
                random.random_range(-300..900),
                random.random_range(0..4),
                random.random_bool(0.9).then(|| random.random_range(-100.0..100.0)),
                random.random_bool(0.9).then(|| random.random_range(-1000..1000)),
                random.random_bool(0.8).then(|| random.random_range(0..3)),
            )
        })
        .collect()
}

#[tokio::test]
async fn every_window_survives_splitting_storing_and_merging() {
    for (seed, sql) in WINDOWED.iter().enumerate() {
        let view = CompiledView::compile(def(sql), "readings", &schema()).await.expect(sql);
        for (count, size) in [(1, 1), (40, 7), (150, 11)] {
            let events = events(seed as u64, count);
            let parts: Vec<RecordBatch> = events.chunks(size).map(rows).collect();
            let merged = through_state(&view, &parts).await;
            let direct = directly(sql, rows(&events)).await;
            assert_eq!(round(&sorted(&merged)), round(&sorted(&direct)), "{sql}");
        }
    }
}

#[tokio::test]
async fn sessions_join_when_a_late_event_closes_the_gap() {
    let sql = "SELECT session(event_time, INTERVAL '10 seconds') AS window_start, window_end, count(*) AS c \
               FROM readings GROUP BY window_start";
    let view = CompiledView::compile(def(sql), "readings", &schema()).await.expect("compiles");
    let at = |second: i64| rows(&[(second, 0, None, None, None)]);
    let two = through_state(&view, &[at(0), at(15)]).await;
    assert_eq!(two.iter().map(RecordBatch::num_rows).sum::<usize>(), 2);
    let one = through_state(&view, &[at(0), at(15), at(8)]).await;
    let text = pretty_format_batches(&one).expect("prints").to_string();
    assert_eq!(one.iter().map(RecordBatch::num_rows).sum::<usize>(), 1, "{text}");
    assert!(text.contains("1970-01-01T00:00:25Z"), "it ends a gap after its last event: {text}");
}

#[tokio::test]
async fn state_is_the_same_where_only_the_finish_differs() {
    let base = "FROM readings GROUP BY device_id, tumble(event_time, INTERVAL '1 minute')";
    let with = async |select: &str, having: &str| {
        let sql = format!(
            "SELECT device_id, tumble(event_time, INTERVAL '1 minute') AS w, {select} {base} {having}"
        );
        CompiledView::compile(def(&sql), "readings", &schema()).await.expect("compiles").fingerprint()
    };
    let plain = with("avg(n) AS a", "").await;
    assert_eq!(plain, with("avg(n) * 2 AS twice", "HAVING avg(n) > 3").await);
    assert_ne!(plain, with("sum(n) AS a", "").await);
}

#[tokio::test]
async fn a_view_over_a_view_has_the_state_of_the_lower_one() {
    let minute =
        def("SELECT device_id, tumble(event_time, INTERVAL '1 minute') AS window_start, count(*) AS c, \
                      max(temperature) AS hi FROM readings GROUP BY device_id, window_start");
    let hour =
        def("SELECT device_id, tumble(window_start, INTERVAL '5 minutes') AS w, sum(c) AS c, max(hi) AS hi \
                    FROM v GROUP BY device_id, w");
    assert_eq!(source_of(&hour).expect("one table"), "v");
    let upper = CompiledView::compile_over(hour, vec![minute.clone()], "readings", &schema())
        .await
        .expect("compiles");
    let lower = CompiledView::compile(minute, "readings", &schema()).await.expect("compiles");
    assert_eq!(upper.fingerprint(), lower.fingerprint());
    let events = events(3, 120);
    let parts: Vec<RecordBatch> = events.chunks(13).map(rows).collect();
    let direct = directly(
        "SELECT device_id, tumble(event_time, INTERVAL '5 minutes') AS w, count(*) AS c, max(temperature) AS hi \
         FROM readings GROUP BY device_id, w",
        rows(&events),
    );
    assert_eq!(sorted(&through_state(&upper, &parts).await), sorted(&direct.await));
}
