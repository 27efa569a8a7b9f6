//! Tables of dead letters that an older version has written.

use std::sync::Arc;

use arrow::array::AsArray;
use arrow::datatypes::{Int64Type, Schema};

use iot_schemas::session::small_context;
use iot_schemas::table::{Commit, Store, Table, TableSpec};

use super::{EVENTS, start};
use crate::dead_letter::{DeadLetter, DeadLetters};
use crate::raw_table::dead_spec;
use crate::wal::record::UserProperties;

/// The columns before there was `schema_version`, and a letter.
async fn write_an_older_table(dir: &std::path::Path) {
    let store = Store::local(&dir.join("store")).expect("a store");
    let spec = dead_spec(&"local".into());
    let older: Vec<_> =
        spec.schema.fields().iter().filter(|f| f.name() != "schema_version").cloned().collect();
    let older = Arc::new(Schema::new(older));
    let table = Table::open(&store, TableSpec { schema: older.clone(), ..spec }).await.expect("a table");
    let mut letters = DeadLetters::new("local".into());
    letters.push(DeadLetter {
        stream: "events",
        topic: "devices/a/telemetry",
        payload: b"old",
        reason: "no JSON",
        received_at: 1,
        seq: 1,
        cut_from: None,
        retry_of: None,
        content_type: None,
        user_properties: UserProperties::default(),
        schema_version: Some(7),
    });
    let rows = letters.finish().expect("a row");
    let columns = older.fields().iter().map(|f| rows.column_by_name(f.name()).expect("there").clone());
    let rows = arrow::array::RecordBatch::try_new(older.clone(), columns.collect()).expect("a batch");
    let commit = Commit { frontier: [("local".into(), 1)].into_iter().collect(), ..Commit::default() };
    table.append(&[rows], commit).await.expect("it commits");
}

#[tokio::test(flavor = "multi_thread")]
async fn older_dead_letters_are_read_and_have_no_schema_version() {
    let dir = tempfile::tempdir().expect("a directory");
    write_an_older_table(dir.path()).await;
    let world = start(dir.path(), &[EVENTS]).await;
    world.submit("a", "new").await;
    world.decoded(2).await;
    for sealed in [false, true] {
        if sealed {
            world.ingest.seal_now().await.expect("it seals");
        }
        let dead = iot_schemas::raw::RawStreams::snapshot(&*world.ingest, "dead").expect("the table");
        let plan = dead.events().await.expect("a plan");
        let frame = small_context().execute_logical_plan(plan).await.expect("it plans");
        let rows = frame.collect().await.expect("rows");
        let mut versions: Vec<Option<i64>> = Vec::new();
        for batch in &rows {
            let column = batch.column_by_name("schema_version").expect("the column");
            versions.extend(column.as_primitive::<Int64Type>().iter());
        }
        versions.sort();
        assert_eq!(versions, [None, Some(1)], "sealed: {sealed}");
    }
}
