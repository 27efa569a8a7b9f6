use super::*;

fn rewritten(sql: &str) -> String {
    parse(sql).map_or_else(|e| e.strip_backtrace(), |statement| statement.to_string())
}

#[test]
fn table_functions_become_subqueries() {
    assert_eq!(
        rewritten(
            "SELECT * FROM TABLE(HOP(TABLE t, DESCRIPTOR(ts), INTERVAL '5' SECOND, INTERVAL '10' SECOND)) w"
        ),
        "SELECT * FROM (SELECT *, window_start(hop_window(ts, INTERVAL '5' SECOND, INTERVAL '10' SECOND)) AS window_start, \
         window_end(hop_window(ts, INTERVAL '5' SECOND, INTERVAL '10' SECOND)) AS window_end, \
         window_time(hop_window(ts, INTERVAL '5' SECOND, INTERVAL '10' SECOND)) AS window_time FROM t) w"
    );
    let named =
        "SELECT * FROM TABLE(TUMBLE(DATA => TABLE t, TIMECOL => DESCRIPTOR(ts), SIZE => INTERVAL '1' DAY))";
    assert!(
        rewritten(named).contains("tumble_end(ts, INTERVAL '1' DAY) AS window_end"),
        "{}",
        rewritten(named)
    );
    let keyed =
        "SELECT * FROM TABLE(SESSION(TABLE t PARTITION BY a, b, DESCRIPTOR(ts), INTERVAL '5' SECOND))";
    assert!(
        rewritten(keyed).contains("session_window(ts, INTERVAL '5' SECOND, a, b)"),
        "{}",
        rewritten(keyed)
    );
}

#[test]
fn errors_say_where() {
    for (sql, why) in [
        ("SELECT *\nFROM TABLE(HOP(TABLE t, DESCRIPTOR(ts), INTERVAL '5' SECOND))", "line 2, column 12"),
        ("SELECT * FROM TABLE(TUMBLE(TABLE t, ts, DESCRIPTOR(x)))", "DESCRIPTOR(event_time)"),
        ("SELECT * FROM TABLE(TUMBLE(TABLE t, DESCRIPTOR(ts), INTERVAL '1' DAY)", "not closed"),
        ("SELECT 1; SELECT 2", "one at a time"),
        ("", "no statement"),
    ] {
        assert!(rewritten(sql).contains(why), "{sql}: {}", rewritten(sql));
    }
}

#[test]
fn windows_of_a_group_by_are_named() {
    assert_eq!(
        rewritten("SELECT k, session(ts, INTERVAL '5 s') AS s, window_end FROM t GROUP BY k, s"),
        "SELECT k, window_start(session_window(ts, INTERVAL '5 s', k)) AS s, \
         window_end(session_window(ts, INTERVAL '5 s', k)) AS window_end FROM t \
         GROUP BY k, s, window_end(session_window(ts, INTERVAL '5 s', k))"
    );
    let flink = "SELECT hop_start(ts, INTERVAL '1' HOUR, INTERVAL '2' HOUR) AS a, \
                 hop_end(ts, INTERVAL '1' HOUR, INTERVAL '2' HOUR) AS b FROM t \
                 GROUP BY hop(ts, INTERVAL '1' HOUR, INTERVAL '2' HOUR)";
    assert!(rewritten(flink).ends_with(", window_end(hop_window(ts, INTERVAL '1' HOUR, INTERVAL '2' HOUR))"));
    let unnamed = "SELECT HOP(ts, INTERVAL '1' HOUR, INTERVAL '2' HOUR), count(*) FROM t GROUP BY 1";
    assert!(
        rewritten(unnamed).contains(" AS \"hop(ts, interval '1' hour, interval '2' hour)\""),
        "{}",
        rewritten(unnamed)
    );
    let own = "SELECT window_start, count(*) FROM v GROUP BY window_start";
    assert_eq!(rewritten(own), own);
}
