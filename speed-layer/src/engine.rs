//! The engine: the one loop that turns durable log groups into view state and alerts, in log order.

mod devices;
mod last_values;
mod replay;
mod time;
mod views;
mod watch;

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use arrow::datatypes::SchemaRef;
use arrow::record_batch::RecordBatch;
use iot_schemas::alert::{AlertFeed, Transition};
use iot_schemas::batch::Views;
use iot_schemas::catalog::RuleDef;
use iot_schemas::clock::Clock;
use iot_schemas::error::is_passing;
use iot_schemas::micro_batch::{LineEvent, LogGroup, MicroBatch};
use iot_schemas::position::{Frontier, NodeId, Seq};
use iot_schemas::raw::{Checkpoint, RawStreams};
use iot_schemas::replay::ReplayReport;
use iot_schemas::table::{Store, Table};
use iot_schemas::view::{ChangeRecord, CompiledView, ViewSnapshot, WindowEnds};
use parking_lot::RwLock;
use serde::Serialize;
use tokio::sync::{mpsc, oneshot};

use crate::alert_log::AlertLog;
use crate::batch_devices::BatchDevices;
use crate::checkpoint_file::{self, Saved};
use crate::devices::{Declared, Registry};
use crate::error::Result;
use crate::event_time::{EventTime, Observed};
use crate::hot::HotRows;
use crate::live_view::LiveView;
use crate::progress::StreamProgress;
use crate::rules::{GroupPosition, RuleSet, without_historical};
use crate::view_feed::ViewFeed;
use replay::Replay;
pub use replay::{KnownAlerts, KnownStep, ReplayPlan};
use views::PreparedView;

/// Changes to the catalog that wait for the engine.
const COMMAND_QUEUE: usize = 64;
/// The wait before a failed write to the alert log or the checkpoint is tried again; it doubles up to 5 s.
const FIRST_RETRY: Duration = Duration::from_millis(50);
const LAST_RETRY: Duration = Duration::from_secs(5);

/// Where the engine keeps what it must not forget.
#[derive(Debug, Clone)]
pub struct EngineConfig {
    /// The ingest node whose log it follows.
    pub node: NodeId,
    /// The file with the rules' state.
    pub checkpoint_path: PathBuf,
    /// Where the tables of batch state are.
    pub store: Store,
}

/// The speed layer as readers see it.
#[derive(Debug)]
pub struct SpeedLayer {
    views: RwLock<BTreeMap<Arc<str>, Arc<LiveView>>>,
    raw: Arc<dyn RawStreams>,
    store: Store,
    node: NodeId,
    time: RwLock<EventTime>,
    feed: ViewFeed,
    processed: tokio::sync::watch::Sender<Frontier>,
    commands: mpsc::Sender<Command>,
    counters: Counters,
    /// What each device has sent and whether it is there.
    registry: RwLock<Registry>,
    declared: RwLock<Declared>,
    clock: Clock,
    /// Why the engine does not go on.
    trouble: RwLock<Option<String>>,
    /// Held by the one replay of history that runs.
    replays: Arc<tokio::sync::Mutex<()>>,
    /// Where that keeps its own state.
    scratch: PathBuf,
}

#[derive(Debug, Default)]
struct Counters {
    groups: AtomicU64,
    events: AtomicU64,
    failures: AtomicU64,
}

/// What the speed layer has done and holds.
#[derive(Debug, Clone, Default, Serialize)]
pub struct SpeedStats {
    /// Log groups taken in.
    pub groups: u64,
    /// Events taken in.
    pub events: u64,
    /// Steps that failed and were left out or tried again; the log says why.
    pub failures: u64,
    /// Everything up to here has been taken in.
    pub processed: Frontier,
    /// State rows in memory, all views together.
    pub state_rows: usize,
    /// Their bytes.
    pub state_bytes: usize,
    /// Devices in the registry.
    pub registered_devices: usize,
    /// Events and status messages of devices for which the registry has no room.
    pub unregistered_events: u64,
}

enum Command {
    SwitchView(Box<PreparedView>, oneshot::Sender<Result<()>>),
    RemoveView(String, oneshot::Sender<Result<()>>),
    PutRule(Arc<RuleDef>, oneshot::Sender<Result<()>>),
    RemoveRule(String, oneshot::Sender<Result<()>>),
    TakeOver(Box<Replay>, oneshot::Sender<Result<ReplayReport>>),
}

impl SpeedLayer {
    /// Takes a view out of force. Its batch state stays on the store.
    pub async fn remove_view(&self, name: &str) -> Result<()> {
        self.ask(|reply| Command::RemoveView(name.to_owned(), reply)).await
    }

    /// Puts a rule in force for the events that come from now on.
    pub async fn put_rule(&self, def: Arc<RuleDef>) -> Result<()> {
        self.ask(|reply| Command::PutRule(def, reply)).await
    }

    /// Takes a rule out of force; its alerts end.
    pub async fn remove_rule(&self, name: &str) -> Result<()> {
        self.ask(|reply| Command::RemoveRule(name.to_owned(), reply)).await
    }

    /// Waits until everything up to `frontier` has been taken in.
    pub async fn caught_up_with(&self, frontier: &Frontier) {
        let mut processed = self.processed.subscribe();
        let _ = processed.wait_for(|processed| processed.covers_all(frontier)).await;
    }

    /// Why it does not go on at present, or `None` if it does: events are durable, and wait.
    pub fn not_ready(&self) -> Option<String> {
        self.trouble.read().clone()
    }

    /// The event-time progress of a stream.
    pub fn progress(&self, stream: &str) -> StreamProgress {
        self.time.read().progress(stream)
    }

    /// What it has done and holds.
    pub fn stats(&self) -> SpeedStats {
        let (registered_devices, unregistered_events) = {
            let registry = self.registry.read();
            (registry.len(), registry.unregistered())
        };
        let sizes = self.views.read().values().map(|view| view.size()).collect::<Vec<_>>();
        SpeedStats {
            groups: self.counters.groups.load(Ordering::Relaxed),
            events: self.counters.events.load(Ordering::Relaxed),
            failures: self.counters.failures.load(Ordering::Relaxed),
            processed: self.processed.borrow().clone(),
            state_rows: sizes.iter().map(|size| size.0).sum(),
            state_bytes: sizes.iter().map(|size| size.1).sum(),
            registered_devices,
            unregistered_events,
        }
    }

    async fn ask<T>(&self, command: impl FnOnce(oneshot::Sender<Result<T>>) -> Command) -> Result<T> {
        let (reply, answer) = oneshot::channel();
        let stopped = || iot_schemas::Error::invalid("the server is shutting down");
        self.commands.send(command(reply)).await.map_err(|_| stopped())?;
        answer.await.map_err(|_| stopped())?
    }

    fn live(&self, view: &str) -> iot_schemas::Result<Arc<LiveView>> {
        self.views.read().get(view).cloned().ok_or_else(|| iot_schemas::Error::NotFound {
            kind: "view",
            name: view.to_owned(),
            hint: "; `iotctl get views` lists them".to_owned(),
        })
    }
}

impl Views for SpeedLayer {
    fn names(&self) -> Vec<Arc<str>> {
        self.views.read().keys().cloned().collect()
    }

    fn snapshot(&self, view: &str) -> iot_schemas::Result<ViewSnapshot> {
        let live = self.live(view)?;
        let mut snapshot = live.snapshot();
        let progress = self.progress(live.view().stream());
        snapshot.watermark = progress.watermark;
        snapshot.late_events = progress.late_events;
        Ok(snapshot)
    }

    fn compiled(&self, view: &str) -> iot_schemas::Result<(Arc<CompiledView>, Arc<Table>)> {
        let live = self.live(view)?;
        Ok((live.view().clone(), live.table().clone()))
    }

    fn record_changes(&self, view: &str) -> iot_schemas::Result<Arc<ChangeRecord>> {
        Ok(self.feed.record(self.live(view)?.view()))
    }

    fn batch_committed(&self, view: &str) {
        if let Ok(live) = self.live(view) {
            live.drop_covered();
        }
    }
}

/// The speed layer's loop. Make it, put views and rules in force, restore, then [`Engine::run`] it.
#[derive(Debug)]
pub struct Engine {
    config: EngineConfig,
    shared: Arc<SpeedLayer>,
    raw: Arc<dyn RawStreams>,
    alerts: Arc<AlertLog>,
    checkpoint: Arc<Checkpoint>,
    clock: Clock,
    commands: mpsc::Receiver<Command>,
    rules: RuleSet,
    /// Rules have seen everything up to here; after a crash this is ahead of what is replayed.
    ruled: Frontier,
    /// Whether the alert log has still to be compared with the rules' state that was restored.
    reconcile_due: bool,
    hot: HashMap<Arc<str>, HotRows>,
    processed: Frontier,
    /// Ends of epochs that may not be sealed yet.
    ends: VecDeque<(NodeId, Seq)>,
    /// The views of which somebody wants to see what the batch in hand changes.
    eager: Vec<Arc<LiveView>>,
    /// What the batch in hand has added to the states it was taken into.
    applied: Vec<(Arc<LiveView>, Option<Vec<RecordBatch>>)>,
    schemas: HashMap<Arc<str>, SchemaRef>,
}

impl Engine {
    /// An engine without views and rules.
    pub fn new(
        config: EngineConfig,
        raw: Arc<dyn RawStreams>,
        alerts: Arc<AlertLog>,
        checkpoint: Arc<Checkpoint>,
        clock: Clock,
    ) -> (Self, Arc<SpeedLayer>) {
        let (sender, commands) = mpsc::channel(COMMAND_QUEUE);
        let shared = Arc::new(SpeedLayer {
            views: RwLock::default(),
            raw: raw.clone(),
            store: config.store.clone(),
            node: config.node.clone(),
            time: RwLock::default(),
            feed: ViewFeed::default(),
            processed: tokio::sync::watch::Sender::new(Frontier::empty()),
            commands: sender,
            counters: Counters::default(),
            registry: RwLock::default(),
            declared: RwLock::default(),
            clock: clock.clone(),
            trouble: RwLock::default(),
            replays: Arc::default(),
            scratch: config.checkpoint_path.with_file_name("replay"),
        });
        let engine = Self {
            config,
            shared: shared.clone(),
            raw,
            alerts,
            checkpoint,
            clock,
            commands,
            rules: RuleSet::default(),
            ruled: Frontier::empty(),
            reconcile_due: true,
            hot: HashMap::new(),
            processed: Frontier::empty(),
            ends: VecDeque::new(),
            schemas: HashMap::new(),
            eager: Vec::new(),
            applied: Vec::new(),
        };
        (engine, shared)
    }

    /// Takes up the rules' state where the last process left it. Call it after all rules have been put, and after
    /// [`Self::restore_devices`].
    pub fn restore(&mut self) -> Result<()> {
        replay::remove_scratch(&self.shared.scratch);
        if let Some(saved) = checkpoint_file::load(&self.config.checkpoint_path)? {
            *self.shared.time.write() = EventTime::restore(saved.time);
            self.publish_time();
            let at = self.position(saved.frontier.get(&self.config.node), "");
            let ended = self.rules.restore(saved.rules, &at)?;
            self.ruled = saved.frontier;
            self.alerts.append(ended)?;
        }
        self.processed.join(&self.ruled);
        self.shared.processed.send_replace(self.processed.clone());
        let registry = self.shared.registry.read();
        for (node, seq) in self.ruled.iter() {
            self.checkpoint.advance(node, seq.min(registry.applied().get(node)));
        }
        Ok(())
    }

    /// Runs until the line has ended. Every event is durable when it comes in, so nothing is lost by stopping.
    pub async fn run(mut self, mut line: mpsc::Receiver<LineEvent>) {
        loop {
            tokio::select! {
                biased;
                Some(command) = self.commands.recv() => self.obey(command).await,
                event = line.recv() => match event {
                    Some(LineEvent::Group(group)) => self.take(group).await,
                    Some(LineEvent::EpochEnd { node, seq }) => self.end_epoch(node, seq).await,
                    None => return,
                },
            }
        }
    }

    async fn obey(&mut self, command: Command) {
        // Whoever asked may have gone away; the change is made all the same.
        match command {
            Command::SwitchView(prepared, reply) => drop(reply.send(self.switch_view(*prepared).await)),
            Command::RemoveView(name, reply) => drop(reply.send(self.remove_view(&name))),
            Command::PutRule(def, reply) => {
                let done = self.put_rule(def).await;
                drop(reply.send(if done.is_ok() { self.save().await } else { done }));
            }
            Command::RemoveRule(name, reply) => {
                let at = self.position(self.processed.get(&self.config.node), "");
                let ended = self.rules.remove(&name, &at);
                self.record(ended).await;
                drop(reply.send(self.save().await));
            }
            Command::TakeOver(replay, reply) => drop(reply.send(self.take_over(*replay).await)),
        }
    }

    /// Takes in one durable group.
    async fn take(&mut self, group: LogGroup) {
        let mut found = self.reconcile(&group);
        let at_rules = !self.ruled.covers(&group.node, group.last_seq);
        let devices: Vec<_> = group.batches.iter().map(|batch| BatchDevices::of(&batch.rows)).collect();
        for (batch, devices) in group.batches.iter().zip(&devices) {
            self.note_schema(batch).await;
            let seen = at_rules.then(|| self.observe(batch, devices));
            if at_rules {
                let at = self.position(group.last_seq, &batch.stream);
                found.extend(self.rules.evaluate(&batch.stream, &batch.rows, &at));
                found.extend(self.rules.advance(&batch.stream, &at));
            }
            let views = self.views_on(&batch.stream);
            self.applied.clear();
            self.eager =
                views.iter().filter(|live| self.is_eager(live.view(), seen.as_ref())).cloned().collect();
            for live in views {
                match self.take_into(&live, batch, seen.as_ref()).await {
                    Ok(transitions) => found.extend(transitions),
                    Err(e) => self.failed(&format!("view `{}`", live.view().name()), &e),
                }
            }
        }
        for live in self.shared.views.read().values() {
            live.skip_to(&group.node, group.last_seq);
        }
        self.record(found).await;
        if at_rules {
            self.advance_time(&group);
        }
        self.register(&group, &devices);
        self.publish_time();
        self.ruled.advance(&group.node, group.last_seq);
        self.processed.advance(&group.node, group.last_seq);
        self.shared.processed.send_replace(self.processed.clone());
        let events: usize = group.batches.iter().map(|batch| batch.rows.num_rows()).sum();
        self.shared.counters.groups.fetch_add(1, Ordering::Relaxed);
        self.shared.counters.events.fetch_add(events as u64, Ordering::Relaxed);
    }

    /// Once the replay has passed what the alert log recorded: ends alerts whose rules were taken away or changed
    /// while the server was down.
    fn reconcile(&mut self, group: &LogGroup) -> Vec<Transition> {
        let passed = self.alerts.recorded(&group.node).is_none_or(|(seq, _)| group.last_seq > seq);
        if !self.reconcile_due || !passed || self.ruled.covers(&group.node, group.last_seq) {
            return Vec::new();
        }
        self.reconcile_due = false;
        let at = self.position(group.last_seq, "");
        self.rules.reconcile(&self.alerts.current(), &at)
    }

    /// Whether somebody wants to see what a group changes in a view: a rule, a reader, the ledger of late events.
    fn is_eager(&self, view: &CompiledView, seen: Option<&Observed>) -> bool {
        (seen.is_some_and(Observed::has_late) && WindowEnds::of(view).is_some())
            || self.rules.watches(view.name())
            || self.shared.feed.is_followed(view.name())
    }

    /// Takes a batch into a view's state, once for all views that share it.
    async fn apply(&mut self, live: &Arc<LiveView>, batch: &MicroBatch) -> Result<Option<Vec<RecordBatch>>> {
        if let Some((_, states)) = self.applied.iter().find(|(done, _)| done.shares_state_with(live)) {
            return Ok(states.clone());
        }
        let eager = self.eager.iter().any(|view| view.shares_state_with(live));
        let states = live.apply(batch, eager).await?;
        self.applied.push((live.clone(), states.clone()));
        Ok(states)
    }

    /// Updates a view's state and evaluates the rules on the rows that have changed.
    async fn take_into(
        &mut self,
        live: &Arc<LiveView>,
        batch: &MicroBatch,
        seen: Option<&Observed>,
    ) -> Result<Vec<Transition>> {
        let states = self.apply(live, batch).await?;
        let name: Arc<str> = live.view().name().into();
        if let Some(states) = &states {
            self.note_changes(live.view(), states, seen);
        }
        if seen.is_none() || !self.rules.watches(&name) {
            return Ok(Vec::new());
        }
        // A view may have been seeded with events that its rules have not seen (a crash after the checkpoint):
        // then the states are in the merged view and looked up from there.
        let Some(states) = states else { return Ok(Vec::new()) };
        let mut hot = match self.hot.remove(&name) {
            Some(hot) => hot,
            None => HotRows::new(live.view())?,
        };
        let changed = self.changed_rows(&mut hot, live, &states, batch).await;
        self.hot.insert(name.clone(), hot);
        let Some(changed) = changed? else { return Ok(Vec::new()) };
        let rows = live.finish(changed).await?;
        let mut at = self.position(batch.last_seq, &batch.stream);
        // A row's time is the start of its window, which lies behind the events in it.
        at.now -= live.view().keys().iter().filter_map(|key| key.window_micros).max().unwrap_or(0);
        let mut found = self.rules.evaluate(&name, &rows, &at);
        found.extend(self.rules.advance(&name, &at));
        Ok(found)
    }

    /// The merged state of the rows that live events of the batch have changed. A store that does not answer is waited
    /// for: a group that is not evaluated now is never evaluated, and a replay would decide otherwise.
    async fn changed_rows(
        &self,
        hot: &mut HotRows,
        live: &LiveView,
        states: &[RecordBatch],
        batch: &MicroBatch,
    ) -> Result<Option<RecordBatch>> {
        let mut wait = FIRST_RETRY;
        let mut changed = hot.update(live, states).await;
        while let Err(e) = &changed
            && is_passing(e)
        {
            self.wait_out(&format!("the state of view `{}`", live.view().name()), e, &mut wait).await;
            changed = hot.update(live, states).await;
        }
        self.clear_trouble(wait);
        let Some(changed) = changed? else { return Ok(None) };
        // Historical events change the row too, but it is only looked at where a live one has changed it.
        let Some(only_live) = without_historical(&batch.rows)? else { return Ok(Some(changed)) };
        let touched = if only_live.num_rows() > 0 { live.states_of(&only_live).await? } else { Vec::new() };
        Ok(Some(hot.touched_by(&changed, &touched)?))
    }

    async fn end_epoch(&mut self, node: NodeId, seq: Seq) {
        for live in self.all_views() {
            if let Err(e) = live.close_epoch(&node, seq).await {
                self.failed(&format!("view `{}`", live.view().name()), &e);
            }
        }
        self.ends.push_back((node.clone(), seq));
        while self.ends.len() > 1024 {
            self.ends.pop_front();
        }
        self.ruled.advance(&node, seq);
        self.shared.registry.write().advance(&node, seq);
        self.save_surely().await;
        self.checkpoint.advance(&node, seq);
    }

    /// Makes the rules' state durable, however long it takes.
    async fn save_surely(&mut self) {
        let mut wait = FIRST_RETRY;
        while let Err(e) = self.save().await {
            self.wait_out("the checkpoint of the rules", &e, &mut wait).await;
        }
        self.shared.trouble.write().take();
    }

    /// Waits before what must be done is tried again, and lets it be known meanwhile.
    async fn wait_out(&self, what: &str, error: &crate::Error, wait: &mut Duration) {
        self.failed(what, error);
        *self.shared.trouble.write() = Some(format!("nothing is evaluated: {what}: {error}"));
        tokio::time::sleep(*wait).await;
        *wait = LAST_RETRY.min(*wait * 2);
    }

    /// What was waited out is over, if anything was.
    fn clear_trouble(&self, wait: Duration) {
        if wait > FIRST_RETRY {
            self.shared.trouble.write().take();
        }
    }

    /// Records transitions, however long it takes: until then nothing else happens, and the log waits.
    async fn record(&mut self, transitions: Vec<Transition>) {
        if transitions.is_empty() {
            return;
        }
        let mut wait = FIRST_RETRY;
        while let Err(e) = self.alerts.append(transitions.clone()) {
            self.wait_out("the alert log", &e, &mut wait).await;
        }
        self.shared.trouble.write().take();
    }

    async fn save(&mut self) -> Result<()> {
        // Devices first: the log may be trimmed up to where the rules' state says.
        self.save_devices()?;
        let saved = Saved {
            frontier: self.ruled.clone(),
            rules: self.rules.checkpoint(),
            time: self.shared.time.read().save(),
        };
        checkpoint_file::save(&self.config.checkpoint_path, &saved)
    }

    fn all_views(&self) -> Vec<Arc<LiveView>> {
        self.shared.views.read().values().cloned().collect()
    }

    fn views_on(&self, stream: &str) -> Vec<Arc<LiveView>> {
        self.shared.views.read().values().filter(|live| &**live.view().stream() == stream).cloned().collect()
    }

    fn position(&self, seq: Seq, stream: &str) -> GroupPosition {
        let recorded_at = self.clock.now_micros();
        let now = self.shared.time.read().watermark(stream).unwrap_or(recorded_at);
        GroupPosition { node: self.config.node.clone(), seq, recorded_at, now }
    }

    fn failed(&self, what: &str, error: &crate::Error) {
        self.shared.counters.failures.fetch_add(1, Ordering::Relaxed);
        tracing::error!("{what}: {error}");
    }
}
