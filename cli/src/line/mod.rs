//! The line: all layers of one process, wired together.
//!
//! ```text
//! ingest ──LineEvent──▶ engine (speed layer) ──▶ alert log
//!    ▲  │ RawStreams        │ Views
//!    │  └──────┬────────────┤
//!  sources     ▼            ▼
//!         batch layer    query engine ──▶ http
//! ```
//! [`Line::open`] brings everything to where the last process left it: tables, log, rules, view state. Nothing
//! listens yet; [`server`] does that.

mod catalog_store;
mod control;
mod dead;
mod devices;
mod dropped;
mod judge;
mod last_values;
mod offline;
mod replay;
mod schemas;
pub mod server;
mod sparkplug_nodes;
mod system_tables;
mod upkeep;
mod view_status;
mod writer;

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use iot_batch_layer::{BatchLayer, run_schedule};
use iot_ingest::source::external::Subscriber;
use iot_ingest::{Ingest, IngestConfig};
use iot_schemas::batch::Views;
use iot_schemas::catalog::{Catalog, ViewDef};
use iot_schemas::clock::Clock;
use iot_schemas::error::is_passing;
use iot_schemas::raw::{Checkpoint, RawStreams};
use iot_schemas::table::Store;
use iot_schemas::view::lineage;
use iot_serving::{QueryEngine, QueryLimits, Sources};
use iot_speed_layer::alert_log::{AlertLog, AlertLogLimits, AlertTable};
use iot_speed_layer::{Engine, EngineConfig, SpeedLayer};
use parking_lot::Mutex;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::exit::Failure;
use catalog_store::CatalogStore;
use dead::DeadDesk;
pub use offline::{Location, offline_batch, offline_query, offline_verify};
use system_tables::LineTables;
use upkeep::UpkeepLoop;

/// Log groups that may wait for the speed layer. Each is at most one group fsync large.
const LINE_QUEUE: usize = 8;

/// What a line is made with.
#[derive(Debug, Clone)]
pub struct LineConfig {
    /// The local directory: log, alert log, lock; and the store, unless that is elsewhere.
    pub data_dir: PathBuf,
    /// The root of the store; the data directory if absent.
    pub store: Option<String>,
    /// Ingest's settings; its node and directory are filled in.
    pub ingest: IngestConfig,
    /// The limits of queries.
    pub query: QueryLimits,
    /// The interval of upkeep (compaction, clean-up, the alert table).
    pub upkeep_every: Duration,
    /// How long dead letters are kept after their message arrived.
    pub dead_retention: Duration,
    /// Whether views are recomputed at their intervals.
    pub scheduled_batches: bool,
}

impl LineConfig {
    /// The defaults in `data_dir`.
    pub fn new(data_dir: impl Into<PathBuf>) -> Self {
        Self {
            data_dir: data_dir.into(),
            store: None,
            ingest: IngestConfig::default(),
            query: QueryLimits::default(),
            upkeep_every: Duration::from_secs(15),
            dead_retention: Duration::from_secs(30 * 24 * 3600),
            scheduled_batches: true,
        }
    }
}

/// All layers of one process.
#[derive(Debug)]
pub struct Line {
    /// From messages to raw tables.
    pub ingest: Arc<Ingest>,
    /// View state and rules.
    pub speed: Arc<SpeedLayer>,
    /// Batch runs.
    pub batch: Arc<BatchLayer>,
    /// Answers.
    pub queries: Arc<QueryEngine>,
    /// The alert log.
    pub alerts: Arc<AlertLog>,
    alert_table: Arc<AlertTable>,
    dead: DeadDesk,
    dead_retention: Duration,
    /// Where the embedded broker keeps its sessions.
    broker_dir: PathBuf,
    catalog: tokio::sync::Mutex<Catalog>,
    catalog_store: CatalogStore,
    /// Definitions of the stored catalog that could not be put in force, and why.
    problems: Mutex<Vec<String>>,
    clock: Clock,
    node: Arc<str>,
    started: Instant,
    stop: CancellationToken,
    tasks: TaskTracker,
    /// The connection to an external broker, if that is where messages come from.
    subscriber: Mutex<Option<Arc<Subscriber>>>,
    /// Held as long as the process uses the directory.
    _lock: File,
}

impl Line {
    /// Opens the line and takes it up where the last process left it. Nothing is lost if this is interrupted.
    pub async fn open(config: LineConfig, clock: Clock) -> Result<Arc<Self>> {
        Self::try_open(config, clock).await.map_err(|e| match is_passing(e.as_ref()) {
            true => Failure::unreachable(format!("{e:#}"))
                .hint("the store did not answer for a minute; nothing is lost: start again when it does")
                .into(),
            false => e,
        })
    }

    async fn try_open(config: LineConfig, clock: Clock) -> Result<Arc<Self>> {
        let lock = lock(&config.data_dir)?;
        let wal_dir = config.data_dir.join("wal");
        let store = match &config.store {
            Some(location) => Store::parse(location)?,
            None => Store::local(&config.data_dir)?,
        };
        let catalog_store = CatalogStore::open(&store)?;
        let catalog = catalog_store.load()?;
        let node = config.ingest.node.clone();
        let ingest_config = IngestConfig { wal_dir: wal_dir.join("ingest"), ..config.ingest.clone() };
        let checkpoint = Arc::new(Checkpoint::default());
        let streams = catalog.streams().cloned().collect();
        let (ingest, recovery) =
            Ingest::open(store.clone(), streams, ingest_config, checkpoint.clone(), clock.clone()).await?;
        tracing::info!(?recovery, "the log is open");
        let alerts = Arc::new(AlertLog::open(&wal_dir.join("alerts"), AlertLogLimits::default())?);
        let alert_table = Arc::new(AlertTable::open(&store, alerts.clone()).await?);

        let engine_config = EngineConfig {
            node: node.clone(),
            checkpoint_path: wal_dir.join("rules.ckpt"),
            store: store.clone(),
        };
        let raw: Arc<dyn RawStreams> = ingest.clone();
        let (mut engine, speed) =
            Engine::new(engine_config, raw.clone(), alerts.clone(), checkpoint, clock.clone());
        let problems = put_in_force(&mut engine, &catalog).await?;
        let last_values = last_values::put_at_hand(&mut engine, &catalog).await;
        engine.restore_devices().await?;
        engine.restore()?;
        let (sender, receiver) = mpsc::channel(LINE_QUEUE);
        let tasks = TaskTracker::new();
        tasks.spawn(engine.run(receiver));
        ingest.start(sender).await?;

        let views: Arc<dyn Views> = speed.clone();
        let tables = LineTables::new(alert_table.clone(), speed.clone(), ingest.clone());
        let sources = Sources { raw: raw.clone(), views: views.clone(), system: Arc::new(tables) };
        let queries = Arc::new(QueryEngine::new(sources, config.query)?);
        let batch = Arc::new(BatchLayer::new(raw, views, queries.runtime().clone(), config.query.partitions));
        let dead = DeadDesk::new(ingest.clone(), speed.clone(), queries.clone(), node.clone(), clock.clone());
        let line = Arc::new(Self {
            dead,
            dead_retention: config.dead_retention,
            ingest,
            speed,
            batch,
            queries,
            alerts,
            alert_table,
            broker_dir: wal_dir.join("broker"),
            catalog: tokio::sync::Mutex::new(catalog),
            catalog_store,
            problems: Mutex::new(problems),
            clock,
            node,
            started: Instant::now(),
            stop: CancellationToken::new(),
            tasks,
            subscriber: Mutex::default(),
            _lock: lock,
        });
        line.make_up_last_values(last_values, &config).await;
        line.start_upkeep(&config);
        Ok(line)
    }

    fn start_upkeep(self: &Arc<Self>, config: &LineConfig) {
        let upkeep = UpkeepLoop::new(self, config.upkeep_every);
        self.tasks.spawn(upkeep.run(self.stop.clone()));
        if config.scheduled_batches {
            self.tasks.spawn(run_schedule(self.batch.clone(), self.speed.clone(), self.stop.clone()));
        }
    }

    /// Waits until everything that is durable now has been taken in by views and rules.
    pub async fn settle(&self) {
        let last = self.ingest.stats().last_seq;
        if last > 0 {
            let frontier = [(self.node.clone(), last)].into_iter().collect();
            self.speed.caught_up_with(&frontier).await;
        }
    }

    /// Ends all layers in order: sources have stopped; what is in memory is sealed; the alert table follows.
    pub async fn shutdown(&self) {
        self.stop.cancel();
        self.ingest.shutdown().await;
        if let Err(e) = self.alert_table.mirror().await {
            tracing::warn!("the alert table does not have the newest alerts yet: {e}");
        }
        self.tasks.close();
        self.tasks.wait().await;
    }
}

/// Definitions that no longer fit are left out and named; the rest of the server runs. One that only the store stands in
/// the way of is not left out: that ends alerts and makes queries fail, so it is an error.
async fn put_in_force(engine: &mut Engine, catalog: &Catalog) -> Result<Vec<String>> {
    let mut problems = Vec::new();
    let mut views: Vec<Arc<ViewDef>> = catalog.views().cloned().collect();
    views.sort_by_cached_key(|view| depth(view, &catalog.views().cloned().collect::<Vec<_>>()));
    for view in &views {
        if let Err(e) = engine.put_view(view.clone()).await {
            if is_passing(&e) {
                return Err(e).with_context(|| format!("view `{}`", view.name));
            }
            problems.push(format!("view `{}` is not in force: {e}", view.name));
        }
    }
    for rule in catalog.rules() {
        if let Err(e) = engine.put_rule(rule.clone()).await {
            problems.push(format!("rule `{}` is not in force: {e}", rule.name));
        }
    }
    catalog.devices().for_each(|device| engine.put_device(device.clone()));
    problems.iter().for_each(|problem| tracing::error!("{problem}"));
    Ok(problems)
}

/// Through how many of `views` a view reads its stream.
fn depth(view: &ViewDef, views: &[Arc<ViewDef>]) -> usize {
    let find = |name: &str| views.iter().find(|view| view.name == name).cloned();
    lineage(view, find).map_or(0, |(bases, _)| bases.len())
}

/// Two processes on one directory would overwrite each other's log.
fn lock(data_dir: &Path) -> Result<File> {
    let named = || format!("the data directory {}", data_dir.display());
    std::fs::create_dir_all(data_dir).with_context(named)?;
    let file = File::create(data_dir.join("LOCK")).with_context(named)?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(std::fs::TryLockError::WouldBlock) => {
            let failure = Failure::failed(format!("{} is in use by another process", named()));
            Err(failure.hint("ask the running server with --url, or stop it first").into())
        }
        Err(std::fs::TryLockError::Error(e)) => Err(e).with_context(named),
    }
}
