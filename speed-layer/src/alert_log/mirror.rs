//! The alert log on object storage: an open table of all transitions, which outlives the log's retention.

use std::sync::Arc;

use arrow::record_batch::RecordBatch;
use iot_schemas::alert::{AlertFeed, Transition, TransitionId};
use iot_schemas::layout::ALERTS_PATH;
use iot_schemas::position::{Frontier, NodeId};
use iot_schemas::table::{Commit, Store, Table, TableSnapshot, TableSpec};

use super::{AlertLog, alert_schema, to_batch};
use crate::error::Result;

/// The name under which the table's frontier counts transitions.
pub const ALERTS_NODE: &str = "alerts";

/// Transitions per commit.
const CHUNK: usize = 50_000;

/// The table `alerts` and the log that it follows.
#[derive(Debug)]
pub struct AlertTable {
    log: Arc<AlertLog>,
    table: Table,
}

/// All transitions at one moment, none missing, none twice.
#[derive(Debug, Clone)]
pub struct AlertRows {
    /// Those in the table.
    pub sealed: TableSnapshot,
    /// Those that are only in the log yet, with [`alert_schema`].
    pub tail: RecordBatch,
}

impl AlertTable {
    /// Opens the table, creating it if it is not there.
    ///
    /// If it is ahead of the log, the log has been lost; numbering then goes on behind the table.
    pub async fn open(store: &Store, log: Arc<AlertLog>) -> Result<Self> {
        let spec = TableSpec {
            path: ALERTS_PATH.to_owned(),
            schema: alert_schema(),
            partition_by: Vec::new(),
            stats_columns: ["id", "rule", "device_id", "at"].map(str::to_owned).to_vec(),
            nodes: vec![NodeId::from(ALERTS_NODE)],
        };
        let table = Table::open(store, spec).await?;
        table.evolve(&alert_schema()).await?;
        log.continue_after(mirrored(&table.snapshot()))?;
        Ok(Self { log, table })
    }

    /// Appends what the table does not have yet and returns how many transitions that was.
    ///
    /// Rows and the number of the last one are committed together: whenever it dies, the next call goes on
    /// exactly behind what is in the table.
    pub async fn mirror(&self) -> Result<usize> {
        let mut rows = 0;
        loop {
            let after = mirrored(&self.table.snapshot());
            let chunk = self.log.read_after(after, CHUNK)?;
            let (Some(first), Some(last)) = (chunk.first(), chunk.last()) else { return Ok(rows) };
            if first.id > after + 1 && after > 0 {
                let lost = first.id - after - 1;
                tracing::warn!(lost, "the alert log was shortened before the alert table had followed");
            }
            let frontier: Frontier = [(NodeId::from(ALERTS_NODE), last.id)].into_iter().collect();
            self.table.append(&[to_batch(&chunk)], Commit { frontier, ..Commit::default() }).await?;
            rows += chunk.len();
        }
    }

    /// All transitions that are retained, for a query.
    pub fn rows(&self) -> Result<AlertRows> {
        // The tail first: what is mirrored between the two readings is then in both, and taken out of one.
        let before = mirrored(&self.table.snapshot());
        let tail = self.log.read_after(before, usize::MAX)?;
        let sealed = self.table.snapshot();
        let covered = mirrored(&sealed);
        let tail: Vec<Transition> = tail.into_iter().filter(|transition| transition.id > covered).collect();
        Ok(AlertRows { sealed, tail: to_batch(&tail) })
    }

    /// The table itself, for compaction and clean-up.
    pub fn table(&self) -> &Table {
        &self.table
    }
}

fn mirrored(snapshot: &TableSnapshot) -> TransitionId {
    snapshot.frontier().get(ALERTS_NODE)
}
