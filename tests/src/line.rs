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
    // Between its fork and its exec, a process that another test starts holds the lock of the line before.
    for _ in 0..100 {
        match Line::open(config.clone(), Clock::system()).await {
            Err(e) if e.to_string().contains("in use by another process") => {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            opened => return opened.expect("the line opens"),
        }
    }
    panic!("{} stays in use", dir.display());
}
