//! An event that a view's query cannot compute (a division by zero): the view leaves its group out and says so; other
//! views, and what comes after, are not touched.

use arrow::array::AsArray;
use arrow::datatypes::Int64Type;
use iot_ingest::Message;
use iot_schemas::control::Control;
use iot_serving::query::{Queries, QueryRequest};
use iot_tests::line::open;
use iotctl::line::Line;

use super::lambda::run;

const CATALOG: &str = "kind: stream\nname: readings\ntopics: [\"devices/{device_id}/telemetry\"]\nfields: {n: bigint}\n\
    ---\nkind: view\nname: ratio\nsql: SELECT sum(100 / (n - 5)) AS r, count(*) AS c FROM readings\n\
    ---\nkind: view\nname: total\nsql: SELECT count(*) AS c FROM readings\n";

/// The count of a view's only row. All columns are asked for: what a query does not need is not computed.
async fn count(line: &Line, view: &str) -> Result<i64, String> {
    let request =
        QueryRequest { sql: format!("SELECT * FROM {view}"), layer: Default::default(), max_rows: None };
    let answer = line.queries.execute(request).await.map_err(|e| e.to_string())?;
    let counts = answer.batches[0].column_by_name("c").expect("the view counts");
    Ok(counts.as_primitive::<Int64Type>().value(0))
}

/// Each message in a group of its own.
async fn send(line: &Line, numbers: &[i64]) {
    for n in numbers {
        let message = Message::new("devices/a/telemetry", format!("{{\"n\":{n}}}"));
        line.ingest.submit(message).await.expect("it is taken all the same");
    }
    line.settle().await;
}

async fn one_bad_event() {
    let dir = tempfile::tempdir().expect("a directory");
    let line = open(dir.path()).await;
    line.apply(CATALOG, "test").await.expect("applies");
    send(&line, &[1, 2]).await;
    assert_eq!(count(&line, "ratio").await, Ok(2));
    send(&line, &[5, 6]).await;
    let refused = count(&line, "ratio").await.expect_err("the query says why");
    assert!(refused.contains("Divide by zero"), "{refused}");
    assert_eq!(count(&line, "total").await, Ok(4));
    // The end of the epoch makes state of what has waited.
    line.ingest.seal_now().await.expect("it seals");
    assert!(line.speed.stats().failures >= 1);
    assert_eq!(count(&line, "ratio").await, Ok(3));
    send(&line, &[7]).await;
    assert_eq!((count(&line, "ratio").await, count(&line, "total").await), (Ok(4), Ok(5)));
    let verified = line.verify(None).await.expect_err("a recomputation cannot work either").to_string();
    assert!(verified.contains("`ratio`"), "it names the view: {verified}");
    line.shutdown().await;
}

#[test]
fn an_event_that_a_view_cannot_compute_harms_nothing_else() {
    run(one_bad_event());
}
