//! A line in this process, which does nothing unless it is told to.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use iot_ingest::IngestConfig;
use iot_schemas::clock::Clock;
use iotctl::line::{Line, LineConfig};

/// Opens a line that seals, compacts and runs batches only when the caller does.
pub async fn open(dir: &Path) -> Arc<Line> {
    let config = LineConfig {
        ingest: IngestConfig { seal_age: Duration::from_secs(3600), ..IngestConfig::default() },
        scheduled_batches: false,
        upkeep_every: Duration::from_secs(3600),
        ..LineConfig::new(dir)
    };
    Line::open(config, Clock::system()).await.expect("the line opens")
}
