//! Definitions that change while messages come in: at whatever moment the process ends, what the log has is decoded
//! again by the definition that it was taken under.

use std::sync::atomic::{AtomicBool, Ordering};

use iot_schemas::{Error, Result};

use super::*;

const MOVED: &str = "kind: stream\nname: events\ntopics: [\"moved/{device_id}/telemetry\"]\n";

/// What a process that is killed now leaves behind.
fn copied(from: &Path) -> tempfile::TempDir {
    let to = tempfile::tempdir().expect("a directory");
    copy(from, to.path());
    to
}

fn copy(from: &Path, to: &Path) {
    for entry in std::fs::read_dir(from).expect("it lists") {
        let entry = entry.expect("an entry").path();
        let target = to.join(entry.file_name().expect("a name"));
        if entry.is_dir() {
            std::fs::create_dir(&target).expect("made");
            copy(&entry, &target);
        } else {
            std::fs::copy(&entry, &target).expect("copied");
        }
    }
}

/// A `keep` that says when it was called.
fn noting(kept: &Arc<AtomicBool>) -> impl FnOnce() -> Result<()> + Send + 'static {
    let kept = kept.clone();
    move || {
        kept.store(true, Ordering::SeqCst);
        Ok(())
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_definition_is_kept_once_the_tables_have_what_came_before() {
    let dir = tempfile::tempdir().expect("a directory");
    let world = start_with(dir.path(), &[EVENTS], IngestConfig::default(), false).await;
    assert_eq!(world.submit("a", "{}").await, Receipt::Stored(1));
    let kept = Arc::new(AtomicBool::new(false));
    let (ingest, keep) = (world.ingest.clone(), noting(&kept));
    let change = tokio::spawn(async move { ingest.put_stream(stream(MOVED), keep).await });
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(world.submit("a", "{}").await, Receipt::Stored(2), "messages are taken meanwhile");
    world.decoded(2).await;
    assert!(!kept.load(Ordering::SeqCst) && !change.is_finished(), "nothing is sealed yet");
    let killed = copied(dir.path());
    let after = start(killed.path(), &[EVENTS]).await;
    after.decoded(2).await;
    assert_eq!(after.positions("events").await, each(1..=2));

    world.checkpoint.advance(&"local".into(), Seq::MAX);
    change.await.expect("it ends").expect("it is put");
    assert!(kept.load(Ordering::SeqCst));
    let killed = copied(dir.path());
    let after = start(killed.path(), &[MOVED]).await;
    assert_eq!(after.positions("events").await, each(1..=2), "they are in the table");
    assert!(world.ingest.wants("moved/a/telemetry") && !world.ingest.wants("devices/a/telemetry"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_change_that_a_slow_store_stands_in_the_way_of_changes_nothing() {
    let dir = tempfile::tempdir().expect("a directory");
    let config = IngestConfig { change_wait: Duration::from_millis(200), ..IngestConfig::default() };
    let world = start_with(dir.path(), &[EVENTS], config, false).await;
    world.submit("a", "{}").await;
    let kept = Arc::new(AtomicBool::new(false));
    for definition in [MOVED, OTHERS] {
        let refused = world.ingest.put_stream(stream(definition), noting(&kept)).await.expect_err("too slow");
        assert!(refused.to_string().contains("is left as it was: what came before"), "{refused}");
    }
    assert!(!kept.load(Ordering::SeqCst) && !world.ingest.wants("moved/a/telemetry"));
    world.submit("a", "{}").await;
    world.checkpoint.advance(&"local".into(), Seq::MAX);
    world.ingest.seal_now().await.expect("it seals");
    assert_eq!(world.positions("events").await, each(1..=2));
    assert!(world.ingest.snapshot("others").is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_stream_is_kept_before_its_topics_are_wanted() {
    let dir = tempfile::tempdir().expect("a directory");
    let world = start(dir.path(), &[EVENTS]).await;
    world.submit("a", "{}").await;
    let refused = world.ingest.put_stream(stream(OTHERS), || Err(Error::invalid("a full disk"))).await;
    assert!(refused.expect_err("not kept").to_string().contains("a full disk"));
    assert!(!world.ingest.wants("any/a/thing") && world.ingest.snapshot("others").is_err());

    let (ingest, path) = (world.ingest.clone(), dir.path().to_owned());
    let (killed, mut copies) = mpsc::unbounded_channel();
    let keep = move || {
        assert!(!ingest.wants("any/a/thing"), "a crash would drop it");
        killed.send(copied(&path)).map_err(|_| Error::invalid("nobody waits"))
    };
    world.ingest.put_stream(stream(OTHERS), keep).await.expect("it is put");
    assert!(world.ingest.wants("any/a/thing"));
    let killed = copies.recv().await.expect("a copy");
    let after = start(killed.path(), &[EVENTS, OTHERS]).await;
    after.submit("a", "{}").await;
    after.decoded(2).await;
    assert_eq!(after.positions("events").await, each(1..=2));
    assert_eq!(after.positions("others").await, each(2..=2), "what came before it is not its own");
}
