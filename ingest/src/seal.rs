//! Moves finished epochs from memory into the raw tables, exactly once.
//!
//! Each stream's rows and the position that they complete become visible in one commit. When all streams
//! have committed, the log is trimmed. A crash anywhere in between is harmless: a stream whose table covers a
//! position skips it when the log is replayed, the others take it.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use arrow::datatypes::SchemaRef;
use parking_lot::Mutex;
use tokio::sync::mpsc;

use iot_schemas::clock::Clock;
use iot_schemas::micro_batch::MicroBatch;
use iot_schemas::position::{Frontier, NodeId, Seq};
use iot_schemas::raw::Checkpoint;
use iot_schemas::table::Commit;
use iot_schemas::{Error, Result};

use crate::dead_letter::DEAD;
use crate::epoch::Epoch;
use crate::raw_table::{arrange, with_date_field};
use crate::stats::{Counters, add};
use crate::stream::Stream;
use crate::tail::join_all;
use crate::wal::sparkplug_file;
use crate::wal::writer::{Gate, Wal};

const FIRST_RETRY: Duration = Duration::from_millis(200);
const LAST_RETRY: Duration = Duration::from_secs(10);

/// Seals epochs one after the other.
#[derive(Debug)]
pub(crate) struct Sealer {
    pub(crate) node: NodeId,
    pub(crate) checkpoint: Arc<Checkpoint>,
    pub(crate) clock: Clock,
    pub(crate) counters: Arc<Counters>,
    pub(crate) gate: Arc<Gate>,
    pub(crate) wal: Arc<Mutex<Wal>>,
}

impl Sealer {
    /// Runs until no more epochs can come.
    pub(crate) async fn run(self, mut epochs: mpsc::Receiver<Epoch>) {
        while let Some(epoch) = epochs.recv().await {
            if epoch.announced {
                self.checkpoint.reached(&self.node, epoch.seq).await;
            }
            self.seal(epoch).await;
        }
    }

    async fn seal(&self, epoch: Epoch) {
        let began = self.clock.now_micros();
        for (stream, schema) in &epoch.streams {
            self.seal_stream_until_done(stream, schema, &epoch).await;
        }
        if let Some(nodes) = &epoch.nodes {
            self.save_nodes_until_done(nodes).await;
        }
        self.trim(epoch.seq).await;
        add(&self.counters.seals, 1);
        self.counters.sealed_seq.fetch_max(epoch.seq, Ordering::Relaxed);
        let took = self.clock.now_micros() - began;
        self.counters.last_seal_ms.store((took / 1_000).max(0) as u64, Ordering::Relaxed);
        let frontier: Frontier = [(self.node.clone(), epoch.seq)].into_iter().collect();
        for waiting in epoch.sealed {
            _ = waiting.send(frontier.clone());
        }
    }

    /// Tries until it works: the rows stay readable in memory and safe in the log meanwhile.
    async fn seal_stream_until_done(&self, stream: &Arc<Stream>, schema: &SchemaRef, epoch: &Epoch) {
        let mut pause = FIRST_RETRY;
        while let Err(e) = self.seal_stream(stream, schema, epoch).await {
            add(&self.counters.seal_failures, 1);
            tracing::error!(stream = %stream.name, "cannot seal: {e}");
            *self.counters.seal_trouble.lock() =
                Some(format!("stream `{}` cannot be sealed: {e}", stream.name));
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(LAST_RETRY);
        }
        self.counters.seal_trouble.lock().take();
    }

    async fn seal_stream(&self, stream: &Arc<Stream>, schema: &SchemaRef, epoch: &Epoch) -> Result<()> {
        if stream.has_new_schemas() {
            // Before the rows, and before the dead letters that name a version.
            let stream = stream.clone();
            blocking("saving a schema", move || stream.save_schemas()).await?;
        }
        let batches = stream.tail.read().up_to(epoch.seq);
        let covered = stream.sealed() >= epoch.seq;
        if !covered && (epoch.mark_all || !batches.is_empty()) {
            self.commit(stream, schema, batches, epoch.seq).await?;
        }
        let freed = stream.tail.write().drop_up_to(epoch.seq);
        self.counters.unsealed_bytes.fetch_sub(freed, Ordering::Relaxed);
        self.gate.notify();
        Ok(())
    }

    async fn commit(
        &self,
        stream: &Stream,
        schema: &SchemaRef,
        batches: Vec<MicroBatch>,
        seq: Seq,
    ) -> Result<()> {
        if *stream.name == *DEAD {
            stream.table.evolve(schema).await?;
        } else {
            stream.table.evolve(&with_date_field(schema)).await?;
        }
        let schema = schema.clone();
        let rows = blocking("arranging rows", move || arrange(&join_all(&batches, &schema)?)).await?;
        let frontier = [(self.node.clone(), seq)].into_iter().collect();
        let commit = Commit { frontier, ..Commit::default() };
        stream.table.append(&[rows], commit).await?;
        stream.set_sealed(seq);
        Ok(())
    }

    /// Tries until it works: were the next epoch sealed first, a crash could leave its births unknown.
    async fn save_nodes_until_done(&self, nodes: &[u8]) {
        let (dir, mut pause) = (self.wal.lock().dir().to_owned(), FIRST_RETRY);
        loop {
            let (dir, nodes) = (dir.clone(), nodes.to_vec());
            let saved =
                blocking("saving Sparkplug's nodes", move || sparkplug_file::save(&dir, &nodes)).await;
            let Err(e) = saved else { break };
            add(&self.counters.seal_failures, 1);
            tracing::error!("cannot save what is known of Sparkplug's nodes: {e}");
            *self.counters.seal_trouble.lock() = Some(e.to_string());
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(LAST_RETRY);
        }
        self.counters.seal_trouble.lock().take();
    }

    /// Not being able to trim costs disk space only; the next seal tries again.
    async fn trim(&self, seq: Seq) {
        let wal = self.wal.clone();
        if let Err(e) = blocking("trimming the log", move || Wal::trim(&wal, seq)).await {
            tracing::warn!("the log cannot be trimmed: {e}");
        }
        self.counters.log_bytes.store(self.wal.lock().log.bytes(), Ordering::Relaxed);
    }
}

/// Runs `work` where it may block.
pub(crate) async fn blocking<T: Send + 'static>(
    doing: &str,
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done,
        Err(e) => Err(Error::io(doing, std::io::Error::other(e))),
    }
}
