//! Raw streams as their readers see them: sealed rows in the table, unsealed ones in memory.

use std::sync::Arc;

use arrow::datatypes::SchemaRef;

use crate::catalog::StreamDef;
use crate::error::Result;
use crate::micro_batch::MicroBatch;
use crate::position::{Frontier, NodeId, Seq};
use crate::table::TableSnapshot;

/// One stream at one moment: the table up to a frontier and the events after it, none missing, none twice.
#[derive(Debug, Clone)]
pub struct RawSnapshot {
    /// The schema of the raw rows; the table and the tail may have fewer or narrower columns.
    pub schema: SchemaRef,
    /// The sealed rows. Their frontier is [`TableSnapshot::frontier`].
    pub sealed: TableSnapshot,
    /// The durable events after that frontier, in log order.
    pub tail: Vec<MicroBatch>,
}

impl RawSnapshot {
    /// Everything up to here is in this snapshot.
    pub fn frontier(&self) -> Frontier {
        let mut frontier = self.sealed.frontier().clone();
        for batch in &self.tail {
            frontier.advance(&batch.node, batch.last_seq);
        }
        frontier
    }
}

/// Where the other layers read raw streams. Implemented by ingest.
pub trait RawStreams: Send + Sync + std::fmt::Debug {
    /// The names of all streams of the catalog.
    fn names(&self) -> Vec<Arc<str>>;

    /// The definition of a stream of the catalog.
    fn definition(&self, stream: &str) -> Option<Arc<StreamDef>>;

    /// A consistent snapshot of one stream, or of the dead letters (`dead`); cheap, no I/O.
    ///
    /// The tail is read before the table and what the table covers is dropped from it, so that no moment
    /// exists at which an event is in neither or in both.
    fn snapshot(&self, stream: &str) -> Result<RawSnapshot>;
}

/// How far the speed layer has made its own state durable. Ingest seals and trims the log only up to there.
#[derive(Debug)]
pub struct Checkpoint {
    sender: tokio::sync::watch::Sender<Frontier>,
}

impl Default for Checkpoint {
    fn default() -> Self {
        Self { sender: tokio::sync::watch::Sender::new(Frontier::empty()) }
    }
}

impl Checkpoint {
    /// Reports that everything up to `seq` of `node` is durable in the speed layer.
    pub fn advance(&self, node: &NodeId, seq: Seq) {
        self.sender.send_modify(|frontier| frontier.advance(node, seq));
    }

    /// Waits until `seq` of `node` is durable.
    pub async fn reached(&self, node: &str, seq: Seq) {
        let mut receiver = self.sender.subscribe();
        // The sender lives as long as `self`, so waiting cannot fail.
        let _ = receiver.wait_for(|frontier| frontier.covers(node, seq)).await;
    }

    /// The durable frontier now.
    pub fn frontier(&self) -> Frontier {
        self.sender.borrow().clone()
    }
}
