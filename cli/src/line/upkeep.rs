//! Upkeep in the background: compaction of all tables, clean-up, and the alert table that follows the log.

use std::sync::{Arc, Weak};
use std::time::Duration;

use iot_batch_layer::upkeep::{UpkeepConfig, compact_rows, compact_state, expire_rows, vacuum};
use iot_ingest::DEAD;
use iot_schemas::batch::Views;
use iot_schemas::raw::RawStreams;
use iot_schemas::table::Table;
use tokio_util::sync::CancellationToken;

use super::Line;

/// Rounds between two clean-ups of dead files.
const ROUNDS_PER_VACUUM: u32 = 40;

/// The background task. It holds the line weakly, so that it does not keep it alive.
#[derive(Debug)]
pub(super) struct UpkeepLoop {
    line: Weak<Line>,
    every: Duration,
    config: UpkeepConfig,
}

impl UpkeepLoop {
    pub(super) fn new(line: &Arc<Line>, every: Duration) -> Self {
        Self { line: Arc::downgrade(line), every, config: UpkeepConfig::default() }
    }

    pub(super) async fn run(self, stop: CancellationToken) {
        for round in 1u32.. {
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(self.every) => {}
            }
            let Some(line) = self.line.upgrade() else { return };
            let (config, clean) = (self.config, round % ROUNDS_PER_VACUUM == 0);
            // A task of its own: should a library panic over a file, the next round comes all the same.
            let done = tokio::spawn(async move { line.keep_up(&config, clean).await }).await;
            if let Err(e) = done {
                tracing::error!("upkeep: {e}");
            }
        }
    }
}

impl Line {
    /// One round of upkeep over all tables. Failures are logged and tried again in the next round.
    pub async fn keep_up(&self, config: &UpkeepConfig, clean: bool) {
        if let Err(e) = self.alert_table.mirror().await {
            tracing::warn!("the alert table cannot follow the alert log: {e}");
        }
        self.expire_dead_letters().await;
        let mut streams: Vec<Arc<str>> = self.ingest.names();
        streams.push(DEAD.into());
        for stream in streams {
            let Some(table) = self.ingest.table(&stream) else { continue };
            if let Err(e) = compact_rows(&table, config).await {
                tracing::warn!("compaction of stream `{stream}`: {e}");
            }
            clean_up(&table, config, clean, &stream).await;
        }
        for view in self.speed.names() {
            let Ok((compiled, table)) = self.speed.compiled(&view) else { continue };
            if let Err(e) = compact_state(&compiled, &table, config).await {
                tracing::warn!("compaction of view `{view}`: {e}");
            }
            clean_up(&table, config, clean, &view).await;
        }
        if let Err(e) = compact_rows(self.alert_table.table(), config).await {
            tracing::warn!("compaction of the alert table: {e}");
        }
        clean_up(self.alert_table.table(), config, clean, "alerts").await;
    }

    /// What was done about a letter goes with it: both bear the time at which the message arrived.
    async fn expire_dead_letters(&self) {
        let Some(table) = self.ingest.table(DEAD) else { return };
        let keep = i64::try_from(self.dead_retention.as_micros()).unwrap_or(i64::MAX);
        let before = self.clock.now_micros().saturating_sub(keep);
        match expire_rows(&table, "received_at", before).await {
            Ok(0) => {}
            Ok(rows) => tracing::info!(rows, "dead letters have expired"),
            Err(e) => tracing::warn!("expiry of dead letters: {e}"),
        }
    }
}

async fn clean_up(table: &Table, config: &UpkeepConfig, clean: bool, name: &str) {
    if clean && let Err(e) = vacuum(table, config).await {
        tracing::warn!("clean-up of `{name}`: {e}");
    }
}
