//! Batch runs at the interval that each view asks for.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use iot_schemas::batch::Views;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::recompute::BatchLayer;

/// How often the schedule is looked at. Views run at most this late.
const TICK: Duration = Duration::from_millis(500);

/// Runs every view at its interval until `stop`. A run that fails is tried again at the next interval; its
/// events stay in the speed layer until then.
pub async fn run_schedule(batch: Arc<BatchLayer>, views: Arc<dyn Views>, stop: CancellationToken) {
    let mut due: HashMap<Arc<str>, Instant> = HashMap::new();
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(TICK) => {}
        }
        for view in views.names() {
            let Ok((compiled, _)) = views.compiled(&view) else { continue };
            let interval = compiled.def().batch.interval();
            let at = *due.entry(view.clone()).or_insert_with(|| Instant::now() + interval);
            if at > Instant::now() {
                continue;
            }
            if let Err(e) = batch.run_view(&view, false, false).await {
                tracing::error!("{e}");
            }
            due.insert(view, Instant::now() + interval);
        }
    }
}
