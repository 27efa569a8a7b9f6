//! Ingest as a whole: what the sources call, what the other layers read. Start reading here.

mod admission;

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::sync_channel;
use std::time::Duration;

use futures::future::try_join_all;
use parking_lot::{Mutex, RwLock};
use tokio::sync::{Semaphore, mpsc, oneshot, watch};
use tokio::task::JoinHandle;

use iot_schemas::catalog::{Format, OnPressure, StreamDef};
use iot_schemas::clock::Clock;
use iot_schemas::log::{Log, Recovery};
use iot_schemas::micro_batch::LineEvent;
use iot_schemas::position::{Frontier, Seq};
use iot_schemas::raw::{Checkpoint, RawSnapshot, RawStreams};
use iot_schemas::registry::{History, Why};
use iot_schemas::table::{Store, Table};
use iot_schemas::{Error, Result};

use crate::config::IngestConfig;
use crate::dead_letter::DEAD;
use crate::decode::{NodeStatus, Nodes, Rebirth, StreamDecoder};
use crate::dedup::{DedupRule, KeyWindow};
use crate::epoch::{Control, EpochThread, NewDefinition, epoch_queue, not_sealed_in_time};
use crate::group::{GroupDecoder, Lane};
use crate::left_out::{LeftOutEntry, LeftOutReason};
use crate::pressure::Policies;
use crate::route::Matcher;
use crate::schema_keeper::SchemaKeeper;
use crate::seal::{Sealer, blocking};
use crate::stats::{Counters, IngestStats, StreamStats};
use crate::stream::Stream;
use crate::wal::record::records;
use crate::wal::writer::{Gate, Input, Wal, Writer};
use crate::wal::{sparkplug_file, window_file};

/// Groups that may wait for the decoder; each is at most a group's bytes large.
const GROUPS_IN_FLIGHT: usize = 4;
/// Requests for a rebirth that may wait to be published. Those beyond it are made again later.
const REBIRTHS_IN_FLIGHT: usize = 256;
/// How long a shutdown waits for the last seal. What is not sealed by then is replayed at the next start.
const LAST_SEAL: Duration = Duration::from_secs(30);

/// The ingest node of this process. Shared as an [`Arc`]; sources hold one, the other layers another.
pub struct Ingest {
    config: Arc<IngestConfig>,
    store: Store,
    clock: Clock,
    checkpoint: Arc<Checkpoint>,
    counters: Arc<Counters>,
    gate: Arc<Gate>,
    pub(crate) wal: Arc<Mutex<Wal>>,
    input: mpsc::Sender<Input>,
    room: Arc<Semaphore>,
    registry: RwLock<Registry>,
    dead: Arc<Stream>,
    filters: watch::Sender<Arc<Vec<String>>>,
    /// Whether there is a Sparkplug stream.
    sparkplug: watch::Sender<bool>,
    /// What the Sparkplug host application takes over.
    rebirths: Mutex<Option<mpsc::Receiver<Rebirth>>>,
    /// What [`Self::start`] hands to the threads.
    parts: Mutex<Option<Parts>>,
    /// The threads and the sealer, once started.
    running: tokio::sync::Mutex<Option<Running>>,
    /// Definitions change one after the other.
    changing: tokio::sync::Mutex<()>,
}

impl fmt::Debug for Ingest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ingest").field("config", &self.config).finish_non_exhaustive()
    }
}

/// The streams by name.
#[derive(Debug, Default)]
struct Registry {
    streams: BTreeMap<Arc<str>, Arc<Stream>>,
    matcher: Matcher,
    policies: Policies,
}

struct Parts {
    queue: mpsc::Receiver<Input>,
    lanes: Vec<Lane>,
    /// Up to where the re-delivery window is complete.
    window_up_to: Seq,
    rebirths: mpsc::Sender<Rebirth>,
}

struct Running {
    threads: Vec<std::thread::JoinHandle<()>>,
    sealer: JoinHandle<()>,
}

impl Ingest {
    /// Opens the tables of all streams, the dead letters and the log.
    ///
    /// Nothing is replayed and nothing is taken before [`Self::start`], but what is sealed can be read. The
    /// next position lies after everything that the log, a table or the speed layer's checkpoint has seen.
    pub async fn open(
        store: Store,
        streams: Vec<Arc<StreamDef>>,
        config: IngestConfig,
        checkpoint: Arc<Checkpoint>,
        clock: Clock,
    ) -> Result<(Arc<Self>, Recovery)> {
        let opened =
            try_join_all(streams.iter().map(|def| Stream::open(&store, def.clone(), &config.node))).await?;
        let dead = Arc::new(Stream::open_dead(&store, &config.node).await?);
        let lanes: Vec<Lane> = opened
            .into_iter()
            .zip(streams)
            .map(|((stream, decoder), def)| Lane { stream: Arc::new(stream), def, decoder, keys: None })
            .collect();
        let seen = lanes.iter().map(|lane| lane.stream.sealed()).chain([dead.sealed()]);
        let first = seen.max().unwrap_or(0).max(checkpoint.frontier().get(&config.node)) + 1;
        let (dir, segment_bytes) = (config.wal_dir.clone(), config.segment_bytes);
        let (wal, window_up_to, nodes, recovery) = blocking("opening the log", move || {
            let (log, recovery) = Log::open(&dir, segment_bytes, first)?;
            let (window, up_to) = window_file::load(&dir)?;
            let nodes = sparkplug_file::load(&dir)?;
            Ok((Wal::new(log, window, dir), up_to, nodes, recovery))
        })
        .await?;
        restore_nodes(&lanes, nodes, wal.dir())?;
        lanes.iter().for_each(|lane| warn_of_gaps(&lane.def));
        for lane in &lanes {
            lane.observe(Why::Applied, clock.now_micros(), &config.node, lane.stream.sealed() + 1);
            lane.stream.save_schemas()?;
        }
        if recovery.damaged_bytes > 0 {
            tracing::error!(bytes = recovery.damaged_bytes, "part of the log is damaged and was skipped");
        }
        let ingest = Self::assemble(store, config, checkpoint, clock, wal, window_up_to, lanes, dead);
        Ok((Arc::new(ingest), recovery))
    }

    #[expect(clippy::too_many_arguments, reason = "the parts of the whole, put together in one place")]
    fn assemble(
        store: Store,
        config: IngestConfig,
        checkpoint: Arc<Checkpoint>,
        clock: Clock,
        wal: Wal,
        window_up_to: Seq,
        lanes: Vec<Lane>,
        dead: Arc<Stream>,
    ) -> Self {
        let (input, queue) = mpsc::channel(config.queue_messages.max(1));
        let (rebirths, rebirths_out) = mpsc::channel(REBIRTHS_IN_FLIGHT);
        let streams: BTreeMap<_, _> =
            lanes.iter().map(|lane| (lane.stream.name.clone(), lane.stream.clone())).collect();
        let policies = Policies::new(streams.values());
        let matcher = Matcher::new(lanes.iter().map(|lane| &lane.def));
        let counters = Counters::default();
        counters.last_seq.store(wal.log.next() - 1, Ordering::Relaxed);
        counters.log_bytes.store(wal.log.bytes(), Ordering::Relaxed);
        Self {
            room: Arc::new(Semaphore::new(config.queue_bytes.clamp(1, Semaphore::MAX_PERMITS))),
            filters: watch::Sender::new(Arc::new(matcher.filters())),
            registry: RwLock::new(Registry { streams, matcher, policies }),
            sparkplug: watch::Sender::new(lanes.iter().any(|lane| lane.decoder.nodes().is_some())),
            rebirths: Mutex::new(Some(rebirths_out)),
            parts: Mutex::new(Some(Parts { queue, lanes, window_up_to, rebirths })),
            running: tokio::sync::Mutex::new(None),
            changing: tokio::sync::Mutex::new(()),
            counters: Arc::new(counters),
            gate: Arc::default(),
            wal: Arc::new(Mutex::new(wal)),
            config: Arc::new(config),
            store,
            clock,
            checkpoint,
            input,
            dead,
        }
    }

    /// Replays what the log holds beyond the tables and the checkpoint, then takes messages.
    ///
    /// Replayed and live groups go through the same code: into the tails of the streams whose tables lack
    /// them, and to `speed` always. Somebody must be reading `speed`, or this waits.
    pub async fn start(self: &Arc<Self>, speed: mpsc::Sender<LineEvent>) -> Result<()> {
        let parts = self.parts.lock().take();
        let mut parts = parts.ok_or_else(|| Error::invalid("ingest was started already"))?;
        let (epochs, epochs_out) = epoch_queue(&self.config);
        let (work, work_out) = sync_channel(GROUPS_IN_FLIGHT);
        let known =
            parts.lanes.iter().filter_map(|lane| lane.decoder.nodes()).map(|nodes| nodes.lock().applied());
        let after = known.min().unwrap_or(Seq::MAX).min(self.replay_after());
        let last = self.counters.last_seq.load(Ordering::Relaxed);
        self.load_keys(&mut parts.lanes, after).await?;

        let sealer = tokio::spawn(self.sealer().run(epochs_out));
        let mut thread = EpochThread::new(
            self.config.clone(),
            self.clock.clone(),
            self.counters.clone(),
            GroupDecoder::new(self.config.node.clone(), parts.lanes, self.config.sparkplug.rebirth_every),
            self.dead.clone(),
            speed,
            epochs,
        );
        let (wal, window_up_to, rebirths) = (self.wal.clone(), parts.window_up_to, parts.rebirths);
        let (replayed, has_replayed) = oneshot::channel();
        let decoder = spawn_thread("ingest-decoder", move || {
            let outcome = thread.replay(&wal, after, window_up_to);
            thread.begin_after(last);
            thread.groups.rebirths = Some(rebirths);
            let go_on = outcome.is_ok();
            _ = replayed.send(outcome);
            if go_on {
                thread.run(work_out);
            }
        })?;
        has_replayed.await.map_err(|_| Error::invalid("the replay of the log ended unexpectedly"))??;

        let writer = Writer {
            wal: self.wal.clone(),
            queue: parts.queue,
            decoder: work,
            config: self.config.clone(),
            counters: self.counters.clone(),
            gate: self.gate.clone(),
            clock: self.clock.clone(),
        };
        let writer = spawn_thread("ingest-log", move || writer.run())?;
        *self.running.lock().await = Some(Running { threads: vec![writer, decoder], sealer });
        if self.counters.unsealed_bytes.load(Ordering::Relaxed) == 0 {
            self.counters.sealed_seq.fetch_max(last, Ordering::Relaxed);
        }
        self.counters.started.store(true, Ordering::Relaxed);
        Ok(())
    }

    /// Reads back what `dedup` must know before the log is replayed from after `after` on.
    async fn load_keys(&self, lanes: &mut [Lane], after: Seq) -> Result<()> {
        if lanes.iter().all(|lane| lane.def.dedup.is_empty()) {
            return Ok(());
        }
        let wal = self.wal.clone();
        let earliest = blocking("reading the log", move || earliest_arrival(&wal.lock(), after)).await?;
        let arrival = earliest.unwrap_or(i64::MAX).min(self.clock.now_micros());
        for lane in lanes {
            if let Some(rule) = DedupRule::of(&lane.def) {
                let raw = lane.stream.snapshot()?;
                lane.keys = Some(KeyWindow::load(rule, &raw, &self.config.node, after, arrival).await?);
            }
        }
        Ok(())
    }

    /// Whether a stream wants messages of this topic.
    pub fn wants(&self, topic: &str) -> bool {
        self.registry.read().matcher.wants(topic)
    }

    /// Puts a definition in force: a new stream, or another one for a stream of the same name.
    ///
    /// Everything accepted before this call is decoded by the old definition and in its tables before `keep` is called,
    /// which makes the new one durable; messages that only the new one wants are accepted after that. So a crash at any
    /// moment finds the definition by which the rest of the log is to be decoded. On error nothing is changed: the
    /// stream's rows do not fit the definition, `keep` has failed, or the store is too slow
    /// ([`IngestConfig::change_wait`]). Goes on if the caller does not.
    pub async fn put_stream(
        self: &Arc<Self>,
        def: Arc<StreamDef>,
        keep: impl FnOnce() -> Result<()> + Send + 'static,
    ) -> Result<()> {
        let (ingest, keep) = (self.clone(), Box::new(keep));
        let put = tokio::spawn(async move { ingest.exchange(def, keep).await });
        put.await.map_err(|e| Error::io("putting a stream in force", std::io::Error::other(e)))?
    }

    async fn exchange(
        &self,
        def: Arc<StreamDef>,
        keep: Box<dyn FnOnce() -> Result<()> + Send>,
    ) -> Result<()> {
        warn_of_gaps(&def);
        let _turn = self.changing.lock().await;
        let known = self.registry.read().streams.contains_key(def.name.as_str());
        let opened = if known {
            None
        } else {
            let (stream, decoder) = Stream::open(&self.store, def.clone(), &self.config.node).await?;
            Some((Arc::new(stream), decoder))
        };
        // Most of it while messages are taken: during the exchange itself they wait.
        let wait = self.config.change_wait;
        let sealed = tokio::time::timeout(wait, self.seal_now()).await;
        sealed.map_err(|_| not_sealed_in_time(&def.name, wait))??;
        let (reply, answer) = oneshot::channel();
        self.control(Control::Put(Box::new(NewDefinition { def, opened, keep, reply }))).await?;
        let stream = answer.await.map_err(|_| closed())??;
        self.change_registry(|streams| _ = streams.insert(stream.name.clone(), stream.clone()));
        let saved = stream.clone();
        if let Err(e) = blocking("saving a schema", move || saved.save_schemas()).await {
            tracing::warn!("the new version of a schema is saved with the next seal only: {e}");
        }
        Ok(())
    }

    /// Refuses a definition that [`Self::put_stream`] would refuse for its columns. Changes nothing, makes no table.
    pub fn check_stream(&self, def: &StreamDef) -> Result<()> {
        let table = match self.stream(&def.name) {
            Some(stream) => stream.schema(),
            // The table of a stream that was deleted has these, if it is there.
            None => self.schema_history(&def.name)?.schema(),
        };
        StreamDecoder::new(def, &table).map(drop)
    }

    /// Takes a stream out after sealing what it holds. Its table stays. Unknown names are fine.
    pub async fn remove_stream(&self, name: &str) -> Result<()> {
        let _turn = self.changing.lock().await;
        let Some(stream) = self.registry.read().streams.get(name).cloned() else { return Ok(()) };
        let (sealed, answer) = oneshot::channel();
        self.control(Control::Remove { name: stream.name.clone(), sealed }).await?;
        answer.await.map_err(|_| closed())?;
        self.change_registry(|streams| _ = streams.remove(name));
        Ok(())
    }

    /// The MQTT filters that all streams together need.
    pub fn filters(&self) -> Vec<String> {
        self.filters.borrow().to_vec()
    }

    /// The filters now and whenever they change.
    pub fn watch_filters(&self) -> watch::Receiver<Arc<Vec<String>>> {
        self.filters.subscribe()
    }

    /// Whether there is a Sparkplug stream, now and whenever that changes.
    pub fn watch_sparkplug(&self) -> watch::Receiver<bool> {
        self.sparkplug.subscribe()
    }

    /// The requests for a rebirth from now on, for whoever can publish them; `None` if somebody has them already.
    pub fn take_rebirths(&self) -> Option<mpsc::Receiver<Rebirth>> {
        self.rebirths.lock().take()
    }

    /// Sparkplug's edge nodes and devices as they are now, by stream.
    pub fn sparkplug_nodes(&self) -> Vec<(Arc<str>, NodeStatus)> {
        let streams: Vec<Arc<Stream>> = self.registry.read().streams.values().cloned().collect();
        let of_stream = |stream: &Arc<Stream>| {
            let name = stream.name.clone();
            stream.node_status().into_iter().map(move |status| (name.clone(), status)).collect::<Vec<_>>()
        };
        streams.iter().flat_map(of_stream).collect()
    }

    /// What the streams did not store on purpose, by stream, device and reason.
    pub fn left_out(&self) -> Vec<(Arc<str>, LeftOutEntry)> {
        let streams: Vec<Arc<Stream>> = self.registry.read().streams.values().cloned().collect();
        let of_stream = |stream: &Arc<Stream>| {
            let name = stream.name.clone();
            stream.left_out.entries().into_iter().map(move |entry| (name.clone(), entry)).collect::<Vec<_>>()
        };
        streams.iter().flat_map(of_stream).collect()
    }

    /// The versions of a stream's schema, those of a stream that was deleted too; none if it never was.
    pub fn schema_history(&self, stream: &str) -> Result<History> {
        let found = self.registry.read().streams.get(stream).cloned();
        match found.as_ref().and_then(|stream| stream.schemas.as_ref()) {
            Some(schemas) => Ok(schemas.history()),
            None => Ok(SchemaKeeper::open(&self.store, stream)?.history()),
        }
    }

    /// Its settings.
    pub fn config(&self) -> &IngestConfig {
        &self.config
    }

    /// The present, as it numbers messages by.
    pub(crate) fn clock(&self) -> &Clock {
        &self.clock
    }

    /// The raw table of a stream, or that of the dead letters (`dead`).
    pub fn table(&self, stream: &str) -> Option<Arc<Table>> {
        self.stream(stream).map(|stream| stream.table.clone())
    }

    /// Seals everything accepted so far and returns the position up to which the tables are complete.
    pub async fn seal_now(&self) -> Result<Frontier> {
        let (sealed, answer) = oneshot::channel();
        self.control(Control::Seal { sealed }).await?;
        answer.await.map_err(|_| closed())
    }

    /// What has been done and how things stand.
    pub fn stats(&self) -> IngestStats {
        let streams = self.registry.read().streams.values().map(stream_stats).collect();
        IngestStats { streams, ..self.counters.stats() }
    }

    /// Why ingest does not work as it should at the moment, `None` if it does.
    pub fn not_ready(&self) -> Option<String> {
        self.counters.not_ready()
    }

    /// Takes nothing more, seals what is open, and ends the threads. Calling it again does nothing.
    ///
    /// If the store is down the last seal is given up after half a minute; the log has everything.
    pub async fn shutdown(&self) {
        let running = self.running.lock().await.take();
        self.room.close();
        let Some(running) = running else { return };
        match tokio::time::timeout(LAST_SEAL, self.seal_now()).await {
            Ok(Ok(_)) => {}
            Ok(Err(e)) => tracing::warn!("the last seal failed, the log keeps the events: {e}"),
            Err(_) => tracing::warn!("the last seal takes too long, the log keeps the events"),
        }
        self.gate.close();
        let ended = self.end_threads(running);
        if tokio::time::timeout(LAST_SEAL, ended).await.is_err() {
            tracing::warn!("ingest did not end in time; the log keeps the events");
        }
    }

    async fn end_threads(&self, running: Running) {
        // Without it the decoder cannot be stuck behind a seal that does not work.
        if self.counters.seal_trouble.lock().is_some() {
            running.sealer.abort();
        }
        _ = self.input.send(Input::Stop).await;
        for thread in running.threads {
            _ = tokio::task::spawn_blocking(move || thread.join()).await;
        }
        _ = running.sealer.await;
    }

    fn sealer(&self) -> Sealer {
        Sealer {
            node: self.config.node.clone(),
            checkpoint: self.checkpoint.clone(),
            clock: self.clock.clone(),
            counters: self.counters.clone(),
            gate: self.gate.clone(),
            wal: self.wal.clone(),
        }
    }

    /// The position after which somebody lacks what the log holds.
    fn replay_after(&self) -> Seq {
        let registry = self.registry.read();
        let sealed = registry.streams.values().map(|stream| stream.sealed()).min().unwrap_or(Seq::MAX);
        let checkpoint = self.checkpoint.frontier().get(&self.config.node);
        sealed.min(self.dead.sealed()).min(checkpoint)
    }

    async fn control(&self, control: Control) -> Result<()> {
        self.input.send(Input::Control(control)).await.map_err(|_| closed())
    }

    fn change_registry(&self, change: impl FnOnce(&mut BTreeMap<Arc<str>, Arc<Stream>>)) {
        let mut registry = self.registry.write();
        change(&mut registry.streams);
        let defs: Vec<Arc<StreamDef>> = registry.streams.values().filter_map(|stream| stream.def()).collect();
        registry.matcher = Matcher::new(&defs);
        registry.policies = Policies::new(registry.streams.values());
        let filters = registry.matcher.filters();
        drop(registry);
        let has_sparkplug = defs.iter().any(|def| def.format == Format::SparkplugB);
        self.sparkplug.send_if_modified(|had| std::mem::replace(had, has_sparkplug) != has_sparkplug);
        self.filters.send_if_modified(|old| {
            let changed = **old != filters;
            if changed {
                *old = Arc::new(filters);
            }
            changed
        });
    }

    fn stream(&self, name: &str) -> Option<Arc<Stream>> {
        if name == DEAD {
            return Some(self.dead.clone());
        }
        self.registry.read().streams.get(name).cloned()
    }
}

impl Drop for Ingest {
    fn drop(&mut self) {
        self.gate.close();
    }
}

impl RawStreams for Ingest {
    fn names(&self) -> Vec<Arc<str>> {
        self.registry.read().streams.keys().cloned().collect()
    }

    fn definition(&self, stream: &str) -> Option<Arc<StreamDef>> {
        self.stream(stream)?.def()
    }

    fn snapshot(&self, stream: &str) -> Result<RawSnapshot> {
        let found = self.stream(stream).ok_or_else(|| Error::NotFound {
            kind: "stream",
            name: stream.to_owned(),
            hint: String::new(),
        })?;
        found.snapshot()
    }
}

/// When the earliest message after `after` arrived; the first one may be later, as the clock may have been set back.
/// Replayed dead letters, which arrived long ago, are stored whatever is known.
fn earliest_arrival(wal: &Wal, after: Seq) -> Result<Option<i64>> {
    let mut earliest = None;
    for frame in wal.log.read_after(after)? {
        let frame = frame?;
        let records = records(&frame.body).into_iter().flatten();
        let arrivals = records.filter(|record| record.resolution.is_none()).map(|record| record.arrival);
        earliest = arrivals.chain(earliest).min();
    }
    Ok(earliest)
}

/// Puts what was saved of Sparkplug's nodes into the decoders, and saves it as the state to begin with.
///
/// A stream that has none begins with its table: what is sealed is not decoded by a state that it did not have.
fn restore_nodes(lanes: &[Lane], mut saved: BTreeMap<String, Nodes>, wal_dir: &Path) -> Result<()> {
    let had_nodes = !saved.is_empty();
    for lane in lanes {
        if let Some(nodes) = lane.decoder.nodes() {
            let mut nodes = nodes.lock();
            match saved.remove(&*lane.stream.name) {
                Some(saved) => *nodes = saved,
                None => nodes.applied_up_to(lane.stream.sealed()),
            }
        }
    }
    let guards: Vec<_> =
        lanes.iter().filter_map(|lane| Some((&*lane.stream.name, lane.decoder.nodes()?.lock()))).collect();
    if !had_nodes && guards.is_empty() {
        return Ok(());
    }
    let nodes = guards.iter().map(|(name, nodes)| (*name, &**nodes)).collect();
    sparkplug_file::save(wal_dir, &sparkplug_file::encode(&nodes))
}

/// A Sparkplug message that is not stored on purpose is a gap, for which the node is asked for a rebirth.
fn warn_of_gaps(def: &StreamDef) {
    let leaves_out = def.on_pressure != OnPressure::Wait || def.rate_limit.is_some();
    if def.format == Format::SparkplugB && leaves_out {
        tracing::warn!(
            "the Sparkplug stream `{}` leaves messages out, which its nodes' sequence numbers show as gaps; \
             take `on_pressure` and `rate_limit` away",
            def.name
        );
    }
}

fn stream_stats(stream: &Arc<Stream>) -> (Arc<str>, StreamStats) {
    let get = |counter: &std::sync::atomic::AtomicU64| counter.load(Ordering::Relaxed);
    let stats = StreamStats {
        events: get(&stream.events),
        dead_letters: get(&stream.dead),
        deduplicated: stream.left_out.total(LeftOutReason::Duplicate),
        shed: stream.left_out.total(LeftOutReason::Shed),
        rate_limited: stream.left_out.total(LeftOutReason::RateLimited),
        dedup_keys: get(&stream.keys),
    };
    (stream.name.clone(), stats)
}

/// What is said to whoever asks too late.
pub(crate) fn closed() -> Error {
    Error::invalid("ingest is shutting down; try again after the restart")
}

fn spawn_thread(name: &str, run: impl FnOnce() + Send + 'static) -> Result<std::thread::JoinHandle<()>> {
    let builder = std::thread::Builder::new().name(name.to_owned());
    builder.spawn(run).map_err(|e| Error::io(format!("starting the thread {name}"), e))
}
