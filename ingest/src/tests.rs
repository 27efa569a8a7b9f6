//! The pipeline on a real directory: durable, sealed, replayed, and each time every event exactly once.

mod change;
mod dead;
mod dedup;
mod measure;
mod pressure;
mod sparkplug;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use arrow::array::{Array, AsArray, RecordBatch};
use arrow::datatypes::{DataType, Float64Type, Int32Type, Int64Type};
use datafusion::prelude::SessionContext;
use parking_lot::Mutex;
use tokio::sync::mpsc;

use iot_schemas::catalog::{self, Definition, StreamDef};
use iot_schemas::clock::Clock;
use iot_schemas::micro_batch::{LineEvent, LogGroup};
use iot_schemas::position::Seq;
use iot_schemas::raw::{Checkpoint, RawStreams};
use iot_schemas::table::{Commit, Store};

use crate::raw_table::{arrange, with_date_field};
use crate::tail::join_all;
use crate::{Delivery, Ingest, IngestConfig, LeftOutEntry, LeftOutReason, Message, Receipt};

pub(crate) const EVENTS: &str = "kind: stream\nname: events\ntopics: [\"devices/{device_id}/telemetry\"]\n";
const OTHERS: &str = "kind: stream\nname: others\ntopics: [\"+/{device_id}/#\"]\nunknown_fields: ignore\n";

pub(crate) fn stream(yaml: &str) -> Arc<StreamDef> {
    match &catalog::parse(yaml, "test").expect("it parses")[0].def {
        Definition::Stream(def) => def.clone(),
        other => panic!("a stream, not {other:?}"),
    }
}

/// A running ingest with a speed layer that does nothing but keep up.
pub(crate) struct World {
    pub(crate) ingest: Arc<Ingest>,
    checkpoint: Arc<Checkpoint>,
    groups: Arc<Mutex<Vec<LogGroup>>>,
}

pub(crate) async fn start(dir: &Path, streams: &[&str]) -> World {
    start_with(dir, streams, IngestConfig::default(), true).await
}

async fn start_with(dir: &Path, streams: &[&str], config: IngestConfig, keeps_up: bool) -> World {
    let store = Store::local(&dir.join("store")).expect("a store");
    let checkpoint = Arc::new(Checkpoint::default());
    let config = IngestConfig { wal_dir: dir.join("wal"), ..config };
    let defs = streams.iter().map(|yaml| stream(yaml)).collect();
    let opened = Ingest::open(store, defs, config, checkpoint.clone(), Clock::system()).await;
    let (ingest, _) = opened.expect("it opens");
    let (speed, mut events) = mpsc::channel(16);
    let groups = Arc::new(Mutex::new(Vec::new()));
    let (seen, done) = (groups.clone(), checkpoint.clone());
    tokio::spawn(async move {
        while let Some(event) = events.recv().await {
            match event {
                LineEvent::Group(group) => seen.lock().push(group),
                LineEvent::EpochEnd { node, seq } if keeps_up => done.advance(&node, seq),
                LineEvent::EpochEnd { .. } => {}
            }
        }
    });
    ingest.start(speed).await.expect("it starts");
    World { ingest, checkpoint, groups }
}

impl World {
    async fn submit(&self, device: &str, payload: &str) -> Receipt {
        let message = Message::new(format!("devices/{device}/telemetry"), payload.to_owned());
        self.ingest.submit(message).await.expect("it is taken")
    }

    /// Puts a definition in force that is kept nowhere.
    async fn put(&self, def: Arc<StreamDef>) -> iot_schemas::Result<()> {
        self.ingest.put_stream(def, || Ok(())).await
    }

    /// What was not stored on purpose: stream, device, reason, how often.
    fn left_out(&self) -> Vec<(String, String, LeftOutReason, u64)> {
        let entries = self.ingest.left_out().into_iter();
        let of = |(stream, entry): (Arc<str>, LeftOutEntry)| {
            (stream.to_string(), entry.device.unwrap_or_default().into(), entry.reason, entry.count)
        };
        entries.map(of).collect()
    }

    /// Ends like a killed process: nothing is sealed, nothing is said.
    pub(crate) async fn crash(self) {
        let wal = Arc::downgrade(&self.ingest.wal);
        drop(self);
        while wal.strong_count() > 0 {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }

    /// Waits until the decoder has passed on everything up to `seq`.
    pub(crate) async fn decoded(&self, seq: Seq) {
        while self.groups.lock().last().is_none_or(|group| group.last_seq < seq) {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    /// All rows of a stream, sealed and not, with the columns of its newest schema.
    async fn rows(&self, stream: &str) -> RecordBatch {
        let snapshot = self.ingest.snapshot(stream).expect("the stream is there");
        let provider = snapshot.sealed.provider().await.expect("a provider");
        let sealed =
            SessionContext::new().read_table(provider).expect("a table").collect().await.expect("rows");
        let mut rows: Vec<RecordBatch> = Vec::new();
        for batch in sealed.iter().chain(snapshot.tail.iter().map(|batch| &batch.rows)) {
            rows.push(iot_schemas::table::cast_to(batch, &snapshot.schema).expect("the schema covers it"));
        }
        arrow::compute::concat_batches(&snapshot.schema, &rows).expect("one schema")
    }

    /// Number and index of every row, sorted.
    pub(crate) async fn positions(&self, stream: &str) -> Vec<(i64, i32)> {
        let rows = self.rows(stream).await;
        let seq = rows.column_by_name("_seq").expect("a column").as_primitive::<Int64Type>();
        let index = rows.column_by_name("_index").map(|c| c.as_primitive::<Int32Type>());
        let position = |row| (seq.value(row), index.map_or(0, |index| index.value(row)));
        let mut positions: Vec<_> = (0..rows.num_rows()).map(position).collect();
        positions.sort_unstable();
        positions
    }

    /// The values of a text column.
    pub(crate) async fn texts(&self, stream: &str, column: &str) -> Vec<String> {
        let rows = self.rows(stream).await;
        let column = rows.column_by_name(column).expect("the column is there").as_string::<i32>();
        column.iter().flatten().map(str::to_owned).collect()
    }

    async fn sum(&self, column: &str) -> f64 {
        let rows = self.rows("events").await;
        let column = rows.column_by_name(column).expect("the column is there");
        let column = arrow::compute::cast(column, &DataType::Float64).expect("a number");
        arrow::compute::sum(column.as_primitive::<Float64Type>()).unwrap_or(0.0)
    }

    fn unsealed(&self, stream: &str) -> usize {
        let snapshot = self.ingest.snapshot(stream).expect("the stream is there");
        snapshot.tail.iter().map(|batch| batch.rows.num_rows()).sum()
    }
}

fn each(seqs: std::ops::RangeInclusive<i64>) -> Vec<(i64, i32)> {
    seqs.map(|seq| (seq, 0)).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_is_there_once_unsealed_sealed_and_after_a_restart() {
    let dir = tempfile::tempdir().expect("a directory");
    let world = start(dir.path(), &[EVENTS]).await;
    assert_eq!(world.submit("a", r#"[{"v":1},{"v":2}]"#).await, Receipt::Stored(1));
    assert_eq!(world.submit("a", "no JSON").await, Receipt::Stored(2));
    assert_eq!(world.ingest.submit(Message::new("elsewhere", "{}")).await, Ok(Receipt::Ignored));
    world.decoded(2).await;
    assert_eq!(world.positions("events").await, [(1, 0), (1, 1)]);
    assert_eq!(world.unsealed("events"), 2);
    assert_eq!(world.ingest.seal_now().await.expect("it seals").get("local"), 2);
    assert_eq!((world.unsealed("events"), world.unsealed("dead")), (0, 0));
    assert_eq!(world.positions("events").await, [(1, 0), (1, 1)]);
    assert_eq!(world.positions("dead").await, [(2, 0)]);
    let stats = world.ingest.stats();
    assert_eq!((stats.messages, stats.events, stats.dead_letters, stats.ignored), (2, 2, 1, 1));
    assert_eq!((stats.last_seq, stats.sealed_seq, stats.unsealed_bytes, stats.seals), (2, 2, 0, 1));
    world.ingest.shutdown().await;
    assert_eq!(
        world.ingest.submit(Message::new("devices/a/telemetry", "{}")).await,
        Err(crate::Refused::Closed)
    );

    let world = start(dir.path(), &[EVENTS]).await;
    assert_eq!(world.positions("events").await, [(1, 0), (1, 1)]);
    assert_eq!(world.submit("b", "{}").await, Receipt::Stored(3), "positions go on");
    world.ingest.shutdown().await;
    let world = start(dir.path(), &[EVENTS]).await;
    assert_eq!(world.positions("events").await, [(1, 0), (1, 1), (3, 0)]);
    assert_eq!(world.unsealed("events"), 0, "a shutdown seals");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_crash_loses_nothing_and_replays_the_same_groups() {
    let dir = tempfile::tempdir().expect("a directory");
    let world = start(dir.path(), &[EVENTS, OTHERS]).await;
    for i in 1..=20 {
        let payload =
            if i % 7 == 0 { "broken".to_owned() } else { format!("{{\"v\":{i},\"c{}\":1.5}}", i % 3) };
        world.submit("a", &payload).await;
    }
    world.decoded(20).await;
    let before = world.groups.lock().clone();
    let (events, dead) = (world.positions("events").await, world.positions("dead").await);
    world.crash().await;

    let world = start(dir.path(), &[EVENTS, OTHERS]).await;
    world.decoded(20).await;
    let after = world.groups.lock().clone();
    assert_eq!(before.len(), after.len());
    for (before, after) in before.iter().zip(&after) {
        assert_eq!((before.first_seq, before.last_seq), (after.first_seq, after.last_seq));
        let rows = |group: &LogGroup| group.batches.iter().map(|b| b.rows.clone()).collect::<Vec<_>>();
        assert_eq!(rows(before), rows(after));
    }
    assert_eq!(world.positions("events").await, events);
    assert_eq!(world.positions("dead").await, dead);
    assert_eq!(
        world.positions("others").await.len(),
        18,
        "a message is stored in every stream that wants it"
    );
    world.ingest.seal_now().await.expect("it seals");
    assert_eq!(world.positions("events").await, events);
    world.crash().await;
    let world = start(dir.path(), &[EVENTS, OTHERS]).await;
    assert_eq!(world.positions("events").await, events);
    assert_eq!(world.positions("dead").await, dead);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_crash_between_the_seals_of_two_streams_doubles_nothing() {
    let dir = tempfile::tempdir().expect("a directory");
    let world = start(dir.path(), &[EVENTS, OTHERS]).await;
    for _ in 0..5 {
        world.submit("a", r#"{"v":1}"#).await;
    }
    world.decoded(5).await;
    // What the sealer does for the first stream before the process dies.
    let snapshot = world.ingest.snapshot("events").expect("the stream is there");
    let rows = arrange(&join_all(&snapshot.tail, &snapshot.schema).expect("rows")).expect("rows");
    let table = world.ingest.table("events").expect("a table");
    table.evolve(&with_date_field(&snapshot.schema)).await.expect("it evolves");
    let commit = Commit { frontier: [("local".into(), 5)].into_iter().collect(), ..Commit::default() };
    table.append(&[rows], commit).await.expect("it commits");
    drop((table, snapshot));
    world.crash().await;

    let world = start(dir.path(), &[EVENTS, OTHERS]).await;
    world.decoded(5).await;
    assert_eq!((world.unsealed("events"), world.unsealed("others")), (0, 5));
    let replayed: usize =
        world.groups.lock().iter().flat_map(|group| &group.batches).map(|b| b.rows.num_rows()).sum();
    assert_eq!(replayed, 10, "the speed layer gets everything");
    world.ingest.seal_now().await.expect("it seals");
    assert_eq!(world.positions("events").await, each(1..=5));
    assert_eq!(world.positions("others").await, each(1..=5));
}

#[tokio::test(flavor = "multi_thread")]
async fn columns_widen_across_seals_and_restarts() {
    let dir = tempfile::tempdir().expect("a directory");
    let world = start(dir.path(), &[EVENTS]).await;
    world.submit("a", r#"{"v":1}"#).await;
    world.ingest.seal_now().await.expect("it seals");
    world.submit("a", r#"{"v":2}"#).await;
    world.submit("a", r#"{"v":1.5,"w":10}"#).await;
    world.decoded(3).await;
    assert_eq!(world.sum("v").await, 4.5, "sealed integers, unsealed doubles");
    world.crash().await;

    let world = start(dir.path(), &[EVENTS]).await;
    assert_eq!((world.sum("v").await, world.sum("w").await), (4.5, 10.0));
    world.ingest.seal_now().await.expect("it seals");
    assert_eq!((world.sum("v").await, world.sum("w").await), (4.5, 10.0));
    world.submit("a", r#"{"v":3,"w":0.5}"#).await;
    world.ingest.shutdown().await;

    let world = start(dir.path(), &[EVENTS]).await;
    assert_eq!((world.sum("v").await, world.sum("w").await), (7.5, 10.5));
    assert_eq!(world.positions("events").await, each(1..=4));
    let rows = world.rows("events").await;
    assert_eq!(rows.column_by_name("w").expect("a column").null_count(), 2);
}

fn delivery(packet_id: u16, dup: bool, payload: &str) -> Message {
    let delivery = Some(Delivery { client: "gateway".into(), packet_id, dup, copies_before: 0 });
    Message { delivery, ..Message::new("devices/a/telemetry", payload.to_owned()) }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_is_recognised_at_once_after_a_crash_and_after_the_log_was_trimmed() {
    let dir = tempfile::tempdir().expect("a directory");
    let world = start(dir.path(), &[EVENTS]).await;
    let submit = async |world: &World, message| world.ingest.submit(message).await.expect("it is taken");
    assert_eq!(submit(&world, delivery(1, false, "{}")).await, Receipt::Stored(1));
    assert_eq!(submit(&world, delivery(1, true, "{}")).await, Receipt::Redelivered(1));
    assert_eq!(
        submit(&world, delivery(2, true, "{}")).await,
        Receipt::Stored(2),
        "its first copy never arrived"
    );
    let (original, copy) =
        (world.ingest.enqueue(delivery(3, false, "{}")), world.ingest.enqueue(delivery(3, true, "{}")));
    let (original, copy) = (original.await.expect("taken"), copy.await.expect("taken"));
    assert_eq!((original.await, copy.await), (Ok(Receipt::Stored(3)), Ok(Receipt::Redelivered(3))));
    world.crash().await;

    let world = start(dir.path(), &[EVENTS]).await;
    assert_eq!(submit(&world, delivery(1, true, "{}")).await, Receipt::Redelivered(1));
    world.ingest.seal_now().await.expect("it seals");
    world.crash().await;

    let world = start(dir.path(), &[EVENTS]).await;
    assert_eq!(submit(&world, delivery(3, true, "{}")).await, Receipt::Redelivered(3));
    assert_eq!(
        submit(&world, delivery(3, false, "{}")).await,
        Receipt::Stored(4),
        "the identifier is used again"
    );
    assert_eq!(world.ingest.stats().redelivered, 1);
    world.ingest.shutdown().await;
    let world = start(dir.path(), &[EVENTS]).await;
    assert_eq!(submit(&world, delivery(3, true, "{}")).await, Receipt::Redelivered(4));
    assert_eq!(world.positions("events").await, each(1..=4));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_by_another_filter_is_recognised_after_a_crash() {
    let dir = tempfile::tempdir().expect("a directory");
    let world = start(dir.path(), &[EVENTS]).await;
    let submit = async |world: &World, message| world.ingest.submit(message).await.expect("it is taken");
    assert_eq!(submit(&world, delivery(65_535, false, "{}")).await, Receipt::Stored(1));
    assert_eq!(submit(&world, delivery(2, false, "{\"v\":1}")).await, Receipt::Stored(2));
    world.crash().await;

    let world = start(dir.path(), &[EVENTS]).await;
    let again = |packet_id, copies_before, payload| {
        let mut message = delivery(packet_id, true, payload);
        message.delivery.as_mut().expect("it has a label").copies_before = copies_before;
        message
    };
    assert_eq!(submit(&world, again(1, 1, "{}")).await, Receipt::Redelivered(1), "they go around");
    assert_eq!(submit(&world, again(3, 1, "{}")).await, Receipt::Stored(3), "another message");
    assert_eq!(submit(&world, again(3, 1, "{\"v\":1}")).await, Receipt::Redelivered(2));
    // The same reading again, in two copies, of which none was stored.
    assert_eq!(submit(&world, again(4, 1, "{\"v\":1}")).await, Receipt::Stored(4));
    assert_eq!(submit(&world, again(5, 1, "{\"v\":1}")).await, Receipt::Redelivered(4));
    assert_eq!(submit(&world, again(6, 0, "{\"v\":1}")).await, Receipt::Stored(5), "no other filter matches");
    world.ingest.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_of_what_is_too_large_to_keep_is_recognised_after_a_crash() {
    let dir = tempfile::tempdir().expect("a directory");
    let large = " ".repeat(5 << 20);
    let world = start(dir.path(), &[EVENTS]).await;
    let taken = world.ingest.submit(delivery(1, false, &large)).await;
    assert_eq!(taken.expect("it is taken"), Receipt::Stored(1));
    world.crash().await;

    let world = start(dir.path(), &[EVENTS]).await;
    let taken = world.ingest.submit(delivery(1, true, &large)).await;
    assert_eq!(taken.expect("it is taken"), Receipt::Redelivered(1));
    let longer = world.ingest.submit(delivery(1, true, &(large + " "))).await;
    assert_eq!(longer.expect("it is taken"), Receipt::Stored(2), "another one");
}

#[tokio::test(flavor = "multi_thread")]
async fn streams_come_and_go_between_messages() {
    let dir = tempfile::tempdir().expect("a directory");
    let world = start(dir.path(), &[EVENTS]).await;
    let mut filters = world.ingest.watch_filters();
    world.submit("a", r#"{"v":1}"#).await;
    world.put(stream(OTHERS)).await.expect("it fits");
    assert!(filters.has_changed().expect("open"));
    assert_eq!(**filters.borrow_and_update(), ["+/+/#", "devices/+/telemetry"]);
    world.submit("a", r#"{"v":2}"#).await;
    world.decoded(2).await;
    assert_eq!(world.positions("others").await, each(2..=2), "a stream has what came after it was made");
    let conflict = format!("{EVENTS}fields: {{v: text}}\n");
    let refused = world.put(stream(&conflict)).await.expect_err("v is an integer");
    assert!(refused.to_string().contains("is bigint in the table"), "{refused}");
    let fixed = format!("{EVENTS}fields: {{v: double}}\nunknown_fields: reject\n");
    world.put(stream(&fixed)).await.expect("integers become doubles");
    world.submit("a", r#"{"v":2.5}"#).await;
    world.submit("a", r#"{"x":1}"#).await;
    world.ingest.remove_stream("others").await.expect("it is sealed and gone");
    assert!(world.ingest.snapshot("others").is_err());
    world.crash().await;

    let world = start(dir.path(), &[&fixed, OTHERS]).await;
    assert_eq!(world.positions("events").await, each(1..=3));
    assert_eq!(
        world.positions("others").await,
        each(2..=4),
        "the replay adds nothing that was before the change"
    );
    assert_eq!(world.positions("dead").await, [(4, 0)]);
    assert_eq!(world.sum("v").await, 5.5);
    world.ingest.remove_stream("others").await.expect("it is gone");
    world.submit("b", "{}").await;
    world.put(stream(OTHERS)).await.expect("it comes back");
    assert_eq!(world.positions("others").await, each(2..=4), "what came while it was gone is not its own");
}

#[tokio::test(flavor = "multi_thread")]
async fn at_the_limit_ingest_waits_and_goes_on_when_there_is_room() {
    let dir = tempfile::tempdir().expect("a directory");
    let config = IngestConfig { seal_bytes: 100_000, max_unsealed_bytes: 400_000, ..IngestConfig::default() };
    let world = start_with(dir.path(), &[EVENTS], config, false).await;
    let payload = format!("{{\"text\":\"{}\"}}", "x".repeat(10_000));
    let mut stuck = false;
    for _ in 0..200 {
        if tokio::time::timeout(Duration::from_secs(2), world.submit("a", &payload)).await.is_err() {
            stuck = true;
            break;
        }
    }
    assert!(stuck, "nothing held the source back");
    assert!(world.ingest.stats().unsealed_bytes >= 400_000);
    world.checkpoint.advance(&"local".into(), Seq::MAX);
    world.submit("a", &payload).await;
    world.ingest.seal_now().await.expect("it seals");
    let last = world.ingest.stats().last_seq as i64;
    assert_eq!(world.positions("events").await, each(1..=last));
    assert_eq!(world.ingest.stats().unsealed_bytes, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn ten_thousand_malformed_payloads_harm_nobody() {
    let dir = tempfile::tempdir().expect("a directory");
    let world = start(dir.path(), &[EVENTS]).await;
    let bad =
        ["\u{0}\u{1}", "{\"v\":", "[1]", "{\"v\":1e400}", "{\"v\":NaN}", "{\"_\":1}", "{\"v\":{\"v\":[}}"];
    let deep = "[".repeat(100_000);
    let mut tickets = Vec::new();
    for i in 0..10_000_usize {
        let payload = if i % 1_000 == 0 { deep.clone() } else { bad[i % bad.len()].to_owned() };
        let payload = if i % 10 == 9 { "{\"v\":1}".to_owned() } else { payload };
        let message = Message::new("devices/a/telemetry", payload);
        tickets.push(world.ingest.enqueue(message).await.expect("it is taken"));
    }
    for ticket in tickets {
        ticket.await.expect("it is acknowledged");
    }
    world.ingest.seal_now().await.expect("it seals");
    assert_eq!(world.positions("events").await.len(), 1_000);
    assert_eq!(world.positions("dead").await.len(), 9_000);
    assert_eq!(world.ingest.stats().dead_letters, 9_000);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_epoch_is_sealed_by_age_alone() {
    let dir = tempfile::tempdir().expect("a directory");
    let config = IngestConfig { seal_age: Duration::from_millis(100), ..IngestConfig::default() };
    let world = start_with(dir.path(), &[EVENTS], config, true).await;
    world.submit("a", "{}").await;
    while world.ingest.stats().seals == 0 {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(world.unsealed("events"), 0);
    assert_eq!(world.positions("events").await, each(1..=1));
    assert_eq!(world.ingest.stats().sealed_seq, 1);
    assert_eq!(world.ingest.not_ready(), None);
}
