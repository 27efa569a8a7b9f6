//! More than can be taken: who waits, what is shed, and that it is counted.

use super::*;

/// A world whose speed layer never keeps up, so that nothing is sealed, and which has no room left.
async fn full(dir: &Path, streams: &[&str]) -> World {
    let config = IngestConfig { max_unsealed_bytes: 1, queue_messages: 64, ..IngestConfig::default() };
    let world = start_with(dir, streams, config, false).await;
    // What is taken before the first message has been decoded fills the room.
    let first = world.ingest.submit(Message::new("full/first", r#"{"a":1}"#)).await.expect("taken");
    assert_eq!(first, Receipt::Stored(1));
    world.decoded(1).await;
    // One more, so that the writer has come to see it.
    let second = world.ingest.enqueue(Message::new("full/second", r#"{"a":1}"#)).await.expect("queued");
    while world.ingest.not_ready().is_none() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    drop(second);
    world
}

fn policy(name: &str, policy: &str) -> String {
    format!("kind: stream\nname: {name}\ntopics: [\"{name}/{{device_id}}\"]\n{policy}\n")
}

async fn receipt(world: &World, topic: &str) -> Option<Receipt> {
    let message = Message::new(topic, r#"{"a":1}"#);
    let submitted = tokio::time::timeout(Duration::from_millis(300), world.ingest.submit(message)).await;
    submitted.ok().map(|receipt| receipt.expect("it is taken"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn under_pressure_streams_wait_or_shed_as_they_say() {
    let dir = tempfile::tempdir().expect("a directory");
    let streams = [
        policy("full", ""),
        policy("newest", "on_pressure: shed_newest"),
        policy("sampled", "on_pressure: {sample: 4}"),
    ];
    let world = full(dir.path(), &streams.each_ref().map(String::as_str)).await;
    let trouble = world.ingest.not_ready().expect("it says so");
    assert!(trouble.contains("nothing is acknowledged"), "{trouble}");

    assert_eq!(receipt(&world, "full/d").await, None, "it waits");
    assert_eq!(receipt(&world, "newest/d").await, Some(Receipt::Shed));
    let mut shed = 0;
    for _ in 0..8 {
        shed += i32::from(receipt(&world, "sampled/d").await == Some(Receipt::Shed));
    }
    assert_eq!(shed, 6, "two of eight wait");
    let stats = world.ingest.stats();
    assert_eq!((stats.shed, stats.streams["newest"].shed, stats.streams["sampled"].shed), (7, 1, 6));
    world.crash().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_has_waited_for_long_makes_room_where_the_stream_says_so() {
    let dir = tempfile::tempdir().expect("a directory");
    let streams = [policy("full", ""), policy("oldest", "on_pressure: shed_oldest")];
    let world = full(dir.path(), &streams.each_ref().map(String::as_str)).await;
    let old = world.ingest.enqueue(Message::new("oldest/d", r#"{"a":1}"#)).await.expect("queued");
    let waits = world.ingest.enqueue(Message::new("full/d", r#"{"a":1}"#)).await.expect("queued");
    assert_eq!(old.await, Ok(Receipt::Shed));
    assert_eq!(world.ingest.stats().streams["oldest"].shed, 1);
    assert_eq!(world.left_out(), [("oldest".to_owned(), "d".to_owned(), LeftOutReason::Shed, 1)]);
    assert!(tokio::time::timeout(Duration::from_millis(200), waits).await.is_err(), "others go on waiting");
    world.crash().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_device_over_its_rate_is_counted_and_the_others_are_not_touched() {
    let dir = tempfile::tempdir().expect("a directory");
    let limited = policy("limited", "rate_limit: {per_device: 0.01, burst: 3}");
    let both = "kind: stream\nname: all\ntopics: [\"limited/{device_id}\"]\n";
    let world = start(dir.path(), &[&limited]).await;
    for n in 0..5 {
        let expected = if n < 3 { Receipt::Stored(n + 1) } else { Receipt::Shed };
        assert_eq!(receipt(&world, "limited/a").await, Some(expected));
    }
    assert_eq!(receipt(&world, "limited/b").await, Some(Receipt::Stored(4)));
    let stats = world.ingest.stats();
    assert_eq!((stats.rate_limited, stats.streams["limited"].rate_limited), (2, 2));
    assert_eq!(world.left_out(), [("limited".to_owned(), "a".to_owned(), LeftOutReason::RateLimited, 2)]);
    // A stream without a limit wants them too: then they are stored.
    world.put(stream(both)).await.expect("put");
    for n in 5..=9 {
        assert_eq!(receipt(&world, "limited/a").await, Some(Receipt::Stored(n)));
    }
    world.ingest.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn events_written_by_name_wait_whatever_the_topics_of_a_stream_match() {
    let dir = tempfile::tempdir().expect("a directory");
    // Its pattern matches the topics under which events are written.
    let sheds = "kind: stream\nname: sheds\ntopics: [\"{site}/{device_id}\"]\non_pressure: shed_newest\n\
                 rate_limit: {per_device: 0.01, burst: 1}\n";
    let world = full(dir.path(), &[&policy("full", ""), sheds]).await;
    let write = async || {
        let message = Message::written("sheds", "application/json", r#"{"a":1}"#);
        tokio::time::timeout(Duration::from_millis(300), world.ingest.submit(message)).await.ok()
    };
    for _ in 0..3 {
        assert_eq!(write().await, None, "it waits");
    }
    assert_eq!(receipt(&world, "site/d").await, Some(Receipt::Shed));
    assert_eq!(world.ingest.stats().shed, 1);
    assert_eq!(world.ingest.stats().rate_limited, 0);
    world.crash().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_says_the_state_of_a_device_waits_whoever_else_wants_it() {
    let dir = tempfile::tempdir().expect("a directory");
    let full_stream = policy("full", "status: {topics: [\"devices/{device_id}/status\"]}");
    let sheds = "kind: stream\nname: sheds\ntopics: [\"devices/{device_id}/#\"]\non_pressure: shed_newest\n";
    let world = full(dir.path(), &[&full_stream, sheds]).await;
    assert_eq!(receipt(&world, "devices/d/status").await, None, "it waits");
    assert_eq!(receipt(&world, "devices/d/telemetry").await, Some(Receipt::Shed));
    world.crash().await;
}
