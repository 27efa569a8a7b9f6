//! The rows of a view as they change, for any number of readers: each change is looked up once.
//!
//! ```text
//! engine ──keys, watermark──▶ ChangeRecord ──at most every 250 ms──▶ hub ──rows──▶ a mailbox per reader
//!                                                                    │
//!                                                   merged view ─────┘
//! ```
//! A hub lives for as long as its view has readers. Each round it takes the keys that were touched, looks their rows
//! up in the merged view and posts them; then it posts the rows whose windows the watermark has passed, and says how
//! far that is. Because windows are closed by a range of time and not key by key, none is closed twice and none is
//! left out, whether or not an event comes for it.

use std::collections::HashMap;
use std::sync::{Arc, Weak};
use std::time::Duration;

use arrow::array::RecordBatch;
use datafusion::execution::runtime_env::RuntimeEnv;
use iot_schemas::batch::Views;
use iot_schemas::layout::DEVICE_ID;
use iot_schemas::view::{ChangeRecord, Changes};
use iot_schemas::{Error, Result};
use parking_lot::Mutex;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::mailbox::{Mailbox, Row, RowState, Wish};
use super::view_rows::ViewRows;

/// The shortest time between two pushes of the same row.
const ROUND: Duration = Duration::from_millis(250);
/// The longest wait after rounds that failed.
const LONGEST_WAIT: Duration = Duration::from_secs(5);
/// Rows that are posted before it is seen to that the readers keep up.
const CHUNK: usize = 5_000;
/// How long a round waits for slow readers in all; after that they lose rows and the others go on.
const PATIENCE: Duration = Duration::from_secs(2);

/// Where readers of views come to. A clone shares the hubs.
#[derive(Debug, Clone)]
pub struct ViewFeeds {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    views: Arc<dyn Views>,
    runtime: Arc<RuntimeEnv>,
    hubs: Mutex<HashMap<String, Weak<Hub>>>,
}

/// One view with readers.
#[derive(Debug)]
struct Hub {
    view: String,
    record: Arc<ChangeRecord>,
    readers: Mutex<Readers>,
    /// Ends the task with the hub.
    _task: DropGuard,
}

#[derive(Debug)]
struct Readers {
    joined: Vec<Weak<Mailbox>>,
    /// Those that have not been given what they missed yet.
    new: Vec<Weak<Mailbox>>,
}

/// A reader's end: what waits for it, and the hub, which lives as long as any reader does.
#[derive(Debug)]
pub(crate) struct Subscription {
    pub(crate) mailbox: Arc<Mailbox>,
    _hub: Arc<Hub>,
}

impl ViewFeeds {
    /// Feeds of `views`. Look-ups share the memory of `runtime` with queries.
    pub fn new(views: Arc<dyn Views>, runtime: Arc<RuntimeEnv>) -> Self {
        Self { shared: Arc::new(Shared { views, runtime, hubs: Mutex::default() }) }
    }

    /// Begins to follow a view.
    pub(crate) fn subscribe(&self, view: &str, wish: Wish) -> Result<Subscription> {
        let (compiled, _) = self.shared.views.compiled(view)?;
        if wish.device.is_some() && compiled.output_schema().field_with_name(DEVICE_ID).is_err() {
            return Err(Error::invalid(format!("view `{view}` has no column `{DEVICE_ID}`")));
        }
        let rows = ViewRows::new(compiled, self.shared.runtime.clone())?;
        let mut hubs = self.shared.hubs.lock();
        hubs.retain(|_, hub| hub.strong_count() > 0);
        let hub = match hubs.get(view).and_then(Weak::upgrade) {
            Some(hub) if !hub.record.has_ended() => hub,
            _ => {
                let hub = self.open(view, rows)?;
                hubs.insert(view.to_owned(), Arc::downgrade(&hub));
                hub
            }
        };
        let mailbox = Arc::new(Mailbox::new(wish));
        hub.readers.lock().new.push(Arc::downgrade(&mailbox));
        hub.record.wake();
        Ok(Subscription { mailbox, _hub: hub })
    }

    fn open(&self, view: &str, rows: ViewRows) -> Result<Arc<Hub>> {
        let record = self.shared.views.record_changes(view)?;
        let stop = CancellationToken::new();
        let readers = Mutex::new(Readers { joined: Vec::new(), new: Vec::new() });
        let hub = Hub { view: view.to_owned(), record, readers, _task: stop.clone().drop_guard() };
        let hub = Arc::new(hub);
        let closed_up_to = hub.record.watermark();
        let rounds = Rounds { shared: self.shared.clone(), rows, closed_up_to, pacing: Pacing::new() };
        tokio::spawn(rounds.run(Arc::downgrade(&hub), stop));
        Ok(hub)
    }
}

/// The work of a hub.
struct Rounds {
    shared: Arc<Shared>,
    rows: ViewRows,
    /// Windows that end by then were closed, and posted to whoever was there.
    closed_up_to: Option<i64>,
    pacing: Pacing,
}

/// How a round that posts very many rows spares readers that keep up.
struct Pacing {
    posted: usize,
    patience: Duration,
}

/// What a round has found.
struct Found {
    changed: Vec<RecordBatch>,
    ended: Vec<RecordBatch>,
    /// The readers that have come, with the rows of closed windows that each has missed.
    missed: Vec<(Arc<Mailbox>, Vec<RecordBatch>)>,
}

impl Rounds {
    async fn run(mut self, hub: Weak<Hub>, stop: CancellationToken) {
        let Some(mut version) = hub.upgrade().map(|hub| hub.record.version()) else { return };
        version.mark_changed();
        let mut wait = ROUND;
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                changed = version.changed() => if changed.is_err() { return },
            }
            let Some(hub) = hub.upgrade() else { return };
            match self.round(&hub).await {
                Ok(true) => wait = ROUND,
                Ok(false) => return,
                Err(e) => {
                    tracing::warn!("the stream of view `{}` is behind: {e}", hub.view);
                    wait = LONGEST_WAIT.min(wait * 2);
                }
            }
            drop(hub);
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(wait) => {}
            }
        }
    }

    /// Posts what has changed since the last round. `false` at the end of the view.
    async fn round(&mut self, hub: &Hub) -> Result<bool> {
        let Some(changes) = hub.record.take() else {
            hub.end();
            return Ok(false);
        };
        let new = hub.take_new();
        match self.find(&changes, &new).await {
            Ok(found) => {
                hub.join(&new);
                self.post(hub, &changes, found).await;
                Ok(true)
            }
            Err(e) => {
                hub.record.put_back(changes);
                hub.put_back_new(new);
                Err(e)
            }
        }
    }

    /// Reads; nothing is posted before all of it has been read.
    async fn find(&mut self, changes: &Changes, new: &[Arc<Mailbox>]) -> Result<Found> {
        let snapshot = self.shared.views.snapshot(self.rows.view().name())?;
        if !Arc::ptr_eq(&snapshot.view, self.rows.view()) {
            self.rows = ViewRows::new(snapshot.view.clone(), self.shared.runtime.clone())?;
        }
        let changed = match changes.keys.is_empty() {
            true => Vec::new(),
            false => self.rows.with_keys(&snapshot, &changes.keys).await?,
        };
        if self.closed_up_to.is_none()
            && let Some(watermark) = changes.watermark
        {
            // The stream has had its first events: of what is over, only what they belong to is to be closed.
            let first = changed.iter().flat_map(|batch| self.rows.window_ends(batch)).flatten().min();
            self.closed_up_to = Some(first.map_or(watermark, |end| watermark.min(end - 1)));
        }
        let ended = match (changes.watermark, self.closed_up_to) {
            (Some(up_to), Some(after)) if up_to > after => {
                self.rows.ending(&snapshot, Some(after), up_to).await?
            }
            _ => Vec::new(),
        };
        let mut missed = Vec::new();
        for mailbox in new {
            let rows = match (mailbox.wish().resume_after, self.closed_up_to) {
                (Some(after), Some(up_to)) if up_to > after => {
                    self.rows.ending(&snapshot, Some(after), up_to).await?
                }
                _ => Vec::new(),
            };
            missed.push((mailbox.clone(), rows));
        }
        Ok(Found { changed, ended, missed })
    }

    async fn post(&mut self, hub: &Hub, changes: &Changes, found: Found) {
        self.pacing = Pacing::new();
        for (mailbox, missed) in found.missed {
            let readers = [mailbox];
            for batch in &missed {
                self.post_batch(&readers, batch, |_| Some(RowState::Closed)).await;
            }
            if let Some(position) = self.closed_up_to {
                readers[0].post_position(position);
            }
        }
        let readers = hub.readers();
        if changes.lost > 0 {
            readers.iter().for_each(|mailbox| mailbox.post_missed(changes.lost));
        }
        let (before, now) = (self.closed_up_to, changes.watermark.max(self.closed_up_to));
        for batch in &found.changed {
            let (starts, ends) = (self.rows.window_starts(batch), self.rows.window_ends(batch));
            let revision = |at: usize| starts[at].and_then(|start| changes.revisions.get(&start).copied());
            let state = |at: usize| match ends[at] {
                // A row of no window is never closed.
                None => Some(RowState::Open),
                Some(end) if before.is_some_and(|before| end <= before) => {
                    Some(RowState::Corrected(revision(at).unwrap_or(1)))
                }
                // It is among those whose windows have just ended.
                Some(end) if now.is_some_and(|now| end <= now) => None,
                Some(_) => Some(RowState::Open),
            };
            self.post_batch(&readers, batch, state).await;
        }
        for batch in &found.ended {
            self.post_batch(&readers, batch, |_| Some(RowState::Closed)).await;
        }
        if now > before
            && let Some(position) = now
        {
            readers.iter().for_each(|mailbox| mailbox.post_position(position));
        }
        self.closed_up_to = now;
    }

    async fn post_batch(
        &mut self,
        readers: &[Arc<Mailbox>],
        batch: &RecordBatch,
        state: impl Fn(usize) -> Option<RowState>,
    ) {
        for from in (0..batch.num_rows()).step_by(CHUNK) {
            let chunk = batch.slice(from, CHUNK.min(batch.num_rows() - from));
            match self.rows.rows(&chunk, |at| state(from + at)) {
                Ok(rows) => self.pacing.post(readers, &rows).await,
                Err(e) => {
                    tracing::error!("rows of view `{}` cannot be pushed: {e}", self.rows.view().name());
                    readers.iter().for_each(|mailbox| mailbox.post_missed(chunk.num_rows() as u64));
                }
            }
        }
    }
}

impl Pacing {
    fn new() -> Self {
        Self { posted: 0, patience: PATIENCE }
    }

    async fn post(&mut self, readers: &[Arc<Mailbox>], rows: &[Row]) {
        if self.posted + rows.len() > CHUNK && !self.patience.is_zero() {
            let all_keep_up = async {
                for mailbox in readers {
                    mailbox.has_room().await;
                }
            };
            let began = tokio::time::Instant::now();
            // Whoever is too slow is told that it has missed rows.
            let _ = tokio::time::timeout(self.patience, all_keep_up).await;
            self.patience = self.patience.saturating_sub(began.elapsed());
            self.posted = 0;
        }
        self.posted += rows.len();
        for mailbox in readers {
            rows.iter().for_each(|row| mailbox.post(row));
        }
    }
}

impl Hub {
    fn readers(&self) -> Vec<Arc<Mailbox>> {
        let mut readers = self.readers.lock();
        readers.joined.retain(|mailbox| mailbox.strong_count() > 0);
        readers.joined.iter().filter_map(Weak::upgrade).collect()
    }

    fn take_new(&self) -> Vec<Arc<Mailbox>> {
        std::mem::take(&mut self.readers.lock().new).iter().filter_map(Weak::upgrade).collect()
    }

    fn put_back_new(&self, new: Vec<Arc<Mailbox>>) {
        self.readers.lock().new.extend(new.iter().map(Arc::downgrade));
    }

    fn join(&self, new: &[Arc<Mailbox>]) {
        self.readers.lock().joined.extend(new.iter().map(Arc::downgrade));
    }

    fn end(&self) {
        let mut new = self.take_new();
        new.extend(self.readers());
        new.iter().for_each(|mailbox| mailbox.end());
    }
}
