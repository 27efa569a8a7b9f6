//! Keys of a stream: a copy of an event is stored once, whatever happens in between.

use super::*;

const READINGS: &str = "kind: stream\nname: events\ntopics: [\"devices/{device_id}/telemetry\"]\n\
    fields: {n: bigint}\ndedup: [device_id, n]\n";

async fn send(world: &World, numbers: impl IntoIterator<Item = i64>) {
    for n in numbers {
        world.submit("d", &format!("{{\"n\":{n}}}")).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn copies_are_recognised_across_seals_and_crashes_and_counted() {
    let dir = tempfile::tempdir().expect("a directory");
    let world = start(dir.path(), &[READINGS]).await;
    send(&world, 1..=3).await;
    world.ingest.seal_now().await.expect("sealed");
    send(&world, 2..=5).await;
    world.decoded(7).await;
    let stats = world.ingest.stats();
    assert_eq!((stats.deduplicated, stats.events, stats.messages), (2, 5, 7));
    let copies: u64 = world.left_out().iter().map(|(.., count)| count).sum();
    assert_eq!(copies, 2, "{:?}", world.left_out());
    world.crash().await;

    // 1 to 3 are in the table, 4 and 5 in the log only.
    let world = start(dir.path(), &[READINGS]).await;
    send(&world, 1..=6).await;
    world.decoded(13).await;
    assert_eq!(world.positions("events").await, [(1, 0), (2, 0), (3, 0), (6, 0), (7, 0), (13, 0)]);
    world.ingest.seal_now().await.expect("sealed");
    world.crash().await;

    let world = start(dir.path(), &[READINGS]).await;
    send(&world, 1..=7).await;
    world.decoded(20).await;
    assert_eq!(world.positions("events").await.last(), Some(&(20, 0)));
    assert_eq!(world.positions("events").await.len(), 7);
    world.ingest.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_that_gets_keys_knows_those_of_its_past() {
    let dir = tempfile::tempdir().expect("a directory");
    let without = READINGS.replace("dedup: [device_id, n]\n", "");
    let world = start(dir.path(), &[&without]).await;
    send(&world, [1, 1, 2]).await;
    world.ingest.seal_now().await.expect("sealed");
    send(&world, [3]).await;
    world.put(stream(READINGS)).await.expect("put");
    send(&world, [1, 2, 3, 4]).await;
    world.decoded(8).await;
    assert_eq!(world.positions("events").await, [(1, 0), (2, 0), (3, 0), (4, 0), (8, 0)]);
    // Another definition with the same keys goes on with them.
    world.put(stream(&format!("{READINGS}cadence: 5s\n"))).await.expect("put");
    send(&world, [4, 5]).await;
    world.decoded(10).await;
    assert_eq!(world.positions("events").await.last(), Some(&(10, 0)));
    assert_eq!(world.ingest.stats().deduplicated, 4);
    world.ingest.shutdown().await;
}
