//! Sparkplug's state through seals and crashes: an alias that could be resolved can be resolved afterwards.

use std::path::{Path, PathBuf};

use crate::tests::{World, start, stream};
use crate::{Message, Receipt};

const PLANT: &str = "kind: stream\nname: plant\nformat: sparkplug_b\n";

/// The golden message of that number: see `golden/sparkplug/messages.txt`.
fn golden(number: usize) -> Message {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("golden/sparkplug");
    let index = std::fs::read_to_string(dir.join("messages.txt")).expect("it is there");
    let topic = index.lines().nth(number - 1).and_then(|line| line.split_once(' ')).expect("a topic").1;
    Message::new(topic, std::fs::read(dir.join(format!("{number:02}.bin"))).expect("it is there"))
}

/// The births of a node and of its device `oven`, and data of the node and of the device by alias.
const NBIRTH: usize = 1;
const NDATA: usize = 2;
const DBIRTH: usize = 4;
const DDATA: usize = 5;

async fn submit(world: &World, number: usize) {
    let receipt = world.ingest.submit(golden(number)).await.expect("it is taken");
    let Receipt::Stored(seq) = receipt else { panic!("it is stored, not {receipt:?}") };
    world.decoded(seq).await;
}

/// Rows and dead letters.
async fn counts(world: &World) -> (usize, usize) {
    (world.positions("plant").await.len(), world.positions("dead").await.len())
}

/// Data of the device has three times and a value that comes twice: five rows.
const DDATA_ROWS: usize = 5;

#[tokio::test(flavor = "multi_thread")]
async fn aliases_outlast_the_log_that_declared_them() {
    let dir = tempfile::tempdir().expect("a directory");
    let world = start(dir.path(), &[PLANT]).await;
    submit(&world, NBIRTH).await;
    submit(&world, DBIRTH).await;
    world.ingest.seal_now().await.expect("it seals");
    assert_eq!(world.ingest.wal.lock().log.read_after(0).expect("it reads").count(), 0, "the log is trimmed");
    submit(&world, NDATA).await;
    world.crash().await;

    let world = start(dir.path(), &[PLANT]).await;
    assert_eq!(counts(&world).await, (3, 0));
    submit(&world, DDATA).await;
    assert_eq!(counts(&world).await, (3 + DDATA_ROWS, 0));
    let nodes = world.ingest.sparkplug_nodes();
    assert_eq!(nodes.iter().filter(|(_, node)| node.is_online).count(), 2);
    // A new definition of the stream takes them over, and so does a process that is stopped in order.
    world.put(stream(&format!("{PLANT}unknown_fields: ignore\n"))).await.expect("it fits");
    submit(&world, NDATA).await;
    assert_eq!(counts(&world).await, (4 + DDATA_ROWS, 0));
    world.ingest.shutdown().await;
    drop(world);
    let world = start(dir.path(), &[PLANT]).await;
    submit(&world, NDATA).await;
    assert_eq!(counts(&world).await, (5 + DDATA_ROWS, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_crash_between_the_tables_and_the_state_loses_no_birth() {
    let dir = tempfile::tempdir().expect("a directory");
    let world = start(dir.path(), &[PLANT]).await;
    submit(&world, NBIRTH).await;
    submit(&world, DBIRTH).await;
    // What a crash after the commit of all tables and before anything else leaves behind.
    let (wal, before) = (dir.path().join("wal"), dir.path().join("before"));
    copy_dir(&wal, &before);
    world.ingest.seal_now().await.expect("it seals");
    world.crash().await;
    std::fs::remove_dir_all(&wal).expect("it is removed");
    std::fs::rename(&before, &wal).expect("it is put back");

    let world = start(dir.path(), &[PLANT]).await;
    submit(&world, DDATA).await;
    assert_eq!(counts(&world).await, (2 + DDATA_ROWS, 0), "each birth once, and the data");
}

#[tokio::test(flavor = "multi_thread")]
async fn without_its_state_a_stream_asks_again_and_doubles_nothing() {
    let dir = tempfile::tempdir().expect("a directory");
    let world = start(dir.path(), &[PLANT]).await;
    submit(&world, NBIRTH).await;
    world.ingest.seal_now().await.expect("it seals");
    world.crash().await;
    let state = dir.path().join("wal/sparkplug.nodes");
    std::fs::write(&state, b"damaged").expect("it writes");

    let world = start(dir.path(), &[PLANT]).await;
    let mut rebirths = world.ingest.take_rebirths().expect("nobody has them");
    submit(&world, NDATA).await;
    assert_eq!(counts(&world).await, (1, 1));
    let rebirth = rebirths.recv().await.expect("a request");
    assert_eq!((rebirth.group.as_str(), rebirth.node.as_str()), ("plant", "line-1"));
    // It is not made again by a replay.
    world.crash().await;
    let world = start(dir.path(), &[PLANT]).await;
    let mut rebirths = world.ingest.take_rebirths().expect("nobody has them");
    assert_eq!(counts(&world).await, (1, 1));
    rebirths.try_recv().expect_err("it was made before");
    submit(&world, NBIRTH).await;
    submit(&world, NDATA).await;
    assert_eq!(counts(&world).await, (3, 1));
}

fn copy_dir(from: &Path, to: &PathBuf) {
    std::fs::create_dir(to).expect("it is made");
    for entry in std::fs::read_dir(from).expect("it reads") {
        let entry = entry.expect("an entry");
        std::fs::copy(entry.path(), to.join(entry.file_name())).expect("it copies");
    }
}
