//! The thread that decodes groups and cuts the log into epochs.
//!
//! An epoch is the stretch of positions that one seal of the raw tables covers. Its end is announced to the
//! speed layer in the stream of groups, so both sides mean the same position by it.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::Duration;

use arrow::datatypes::SchemaRef;
use parking_lot::Mutex;
use tokio::runtime::Handle;
use tokio::sync::{mpsc, oneshot};

use iot_schemas::catalog::StreamDef;
use iot_schemas::clock::Clock;
use iot_schemas::micro_batch::{LineEvent, LogGroup, MicroBatch};
use iot_schemas::position::{Frontier, Seq};
use iot_schemas::registry::Why;
use iot_schemas::{Error, Result};

use crate::config::IngestConfig;
use crate::dead_letter::resolved_at;
use crate::decode::StreamDecoder;
use crate::dedup::{DedupRule, KeyWindow};
use crate::group::{DecodedGroup, Group, GroupDecoder, Lane};
use crate::pipeline::closed;
use crate::redelivery::fingerprint_of_cut;
use crate::stats::{Counters, add};
use crate::stream::Stream;
use crate::wal::record::records;
use crate::wal::writer::Wal;

/// No epoch becomes larger, whatever the settings: its rows are put together in one piece.
const MAX_EPOCH_BYTES: u64 = 1 << 30;
/// Epochs that may wait for the sealer, besides those that are full.
const EPOCHS_IN_FLIGHT: usize = 16;
/// More full epochs do not wait, however small they are by the settings.
const MAX_FULL_EPOCHS: u64 = 4_096;
/// How often the thread looks at the clock when nothing arrives.
const IDLE_CHECK: Duration = Duration::from_millis(50);
/// How long nothing is decoded while a definition is exchanged: one seal of little, or the change is refused.
const EXCHANGE_WAIT: Duration = Duration::from_secs(30);

/// What the thread is told, in log order.
#[derive(Debug)]
pub(crate) enum Work {
    Group(Group),
    Control(Control),
}

/// A change that must happen between two groups.
#[derive(Debug)]
pub(crate) enum Control {
    /// A definition is put in force.
    Put(Box<NewDefinition>),
    /// A stream is taken out, once what it holds is in its table.
    Remove { name: Arc<str>, sealed: oneshot::Sender<Frontier> },
    /// What is open is sealed.
    Seal { sealed: oneshot::Sender<Frontier> },
}

/// A definition that is to be put in force.
pub(crate) struct NewDefinition {
    pub(crate) def: Arc<StreamDef>,
    /// The stream with its table, if it is a new one.
    pub(crate) opened: Option<(Arc<Stream>, StreamDecoder)>,
    /// Makes the definition durable.
    pub(crate) keep: Box<dyn FnOnce() -> Result<()> + Send>,
    pub(crate) reply: oneshot::Sender<Result<Arc<Stream>>>,
}

impl fmt::Debug for NewDefinition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NewDefinition").field("def", &self.def).finish_non_exhaustive()
    }
}

/// A finished epoch, on its way into the tables.
#[derive(Debug)]
pub(crate) struct Epoch {
    /// Its last position.
    pub(crate) seq: Seq,
    /// All streams, the dead letters too, and the schema that each had at the end of the epoch.
    pub(crate) streams: Vec<(Arc<Stream>, SchemaRef)>,
    /// Streams without rows record the position too. Set when a definition changes, so that a replay does not
    /// decode by the new one what was taken under the old one.
    pub(crate) mark_all: bool,
    /// What must be saved of Sparkplug's nodes before the log is trimmed.
    pub(crate) nodes: Option<Vec<u8>>,
    /// Whether the speed layer was told, so that its checkpoint must be waited for.
    pub(crate) announced: bool,
    /// Who wants to know when it is sealed.
    pub(crate) sealed: Vec<oneshot::Sender<Frontier>>,
}

/// The epoch that is being filled.
#[derive(Debug, Default)]
struct Open {
    /// When its first group came, microseconds since 1970; `None` if it is empty.
    since: Option<i64>,
    bytes: i64,
}

/// The decoder thread's state.
#[derive(Debug)]
pub(crate) struct EpochThread {
    pub(crate) config: Arc<IngestConfig>,
    pub(crate) clock: Clock,
    pub(crate) counters: Arc<Counters>,
    pub(crate) groups: GroupDecoder,
    pub(crate) dead: Arc<Stream>,
    pub(crate) speed: mpsc::Sender<LineEvent>,
    pub(crate) sealer: mpsc::Sender<Epoch>,
    /// Where tables are read from while the log waits.
    runtime: Handle,
    open: Open,
    /// Who wants what is open to be sealed.
    asked: Vec<oneshot::Sender<Frontier>>,
    last: Seq,
}

impl EpochThread {
    /// To be called within a runtime.
    pub(crate) fn new(
        config: Arc<IngestConfig>,
        clock: Clock,
        counters: Arc<Counters>,
        groups: GroupDecoder,
        dead: Arc<Stream>,
        speed: mpsc::Sender<LineEvent>,
        sealer: mpsc::Sender<Epoch>,
    ) -> Self {
        let (open, runtime) = (Open::default(), Handle::current());
        Self {
            config,
            clock,
            counters,
            groups,
            dead,
            speed,
            sealer,
            runtime,
            open,
            asked: Vec::new(),
            last: 0,
        }
    }

    /// Takes the log's frames after `after`, as if they had just been written, and completes the re-delivery
    /// window, which knows everything up to `window_up_to`.
    pub(crate) fn replay(&mut self, wal: &Mutex<Wal>, after: Seq, window_up_to: Seq) -> Result<()> {
        let frames = wal.lock().log.read_after(after.min(window_up_to))?;
        for frame in frames {
            let frame = frame?;
            if frame.last > window_up_to {
                remember(&mut wal.lock(), frame.first, &frame.body);
            }
            if frame.last > after {
                self.group(Group { first: frame.first, last: frame.last, body: frame.body });
            }
        }
        Ok(())
    }

    /// Everything before this position has been seen, even if nothing of it was replayed.
    pub(crate) fn begin_after(&mut self, last: Seq) {
        self.last = self.last.max(last);
    }

    /// Runs until the writer is gone.
    pub(crate) fn run(mut self, work: Receiver<Work>) {
        loop {
            match work.recv_timeout(IDLE_CHECK) {
                Ok(Work::Group(group)) => self.group(group),
                Ok(Work::Control(control)) => self.control(control),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
            if self.is_due() {
                self.close(None);
            }
        }
    }

    /// Whether the epoch is to end although it is not full. While the store is down epochs wait: then this one grows, so that
    /// those that are full find room and nobody waits for the sealer.
    fn is_due(&self) -> bool {
        let is_wanted = self.is_old() || !self.asked.is_empty();
        is_wanted && self.sealer.capacity() > full_epochs(&self.config)
    }

    fn group(&mut self, group: Group) {
        let mut decoded = self.groups.decode(&group);
        let statuses = std::mem::take(&mut decoded.statuses);
        let replayed = decoded.dead.as_ref().map(|dead| resolved_at(&dead.rows)).unwrap_or_default();
        let batches = self.keep(&mut decoded);
        // What is counted can be queried.
        self.count(&decoded);
        self.last = group.last;
        self.open.since.get_or_insert_with(|| self.clock.now_micros());
        let node = self.config.node.clone();
        let (first_seq, last_seq) = (group.first, group.last);
        let event = LogGroup { node, first_seq, last_seq, batches, statuses, replayed };
        self.tell_speed(LineEvent::Group(event));
        if self.open.bytes >= self.config.seal_bytes.min(MAX_EPOCH_BYTES) as i64 {
            self.close(None);
        }
    }

    fn count(&self, decoded: &DecodedGroup) {
        add(&self.counters.events, decoded.events);
        add(&self.counters.dead_letters, decoded.dead_letters);
        add(&self.counters.deduplicated, decoded.copies);
        if decoded.unreadable {
            add(&self.counters.unreadable_groups, 1);
            tracing::error!("a group of the log cannot be read by this version; its messages are skipped");
        }
    }

    /// Appends the batches to the tails of their streams, except what the tables have already.
    fn keep(&mut self, decoded: &mut DecodedGroup) -> Vec<MicroBatch> {
        let mut grown = 0;
        for (lane, batch) in &decoded.batches {
            grown += self.push(&self.groups.lanes[*lane].stream, batch.clone());
        }
        if let Some(batch) = decoded.dead.take() {
            grown += self.push(&self.dead, batch);
        }
        self.open.bytes += grown;
        self.counters.unsealed_bytes.fetch_add(grown, Ordering::Relaxed);
        std::mem::take(&mut decoded.batches).into_iter().map(|(_, batch)| batch).collect()
    }

    fn push(&self, stream: &Stream, batch: MicroBatch) -> i64 {
        if stream.sealed() >= batch.last_seq {
            return 0;
        }
        // Joining fails only if a schema has shrunk, which no code does.
        stream.tail.write().push(batch).expect("a later schema of a stream covers an earlier one")
    }

    fn is_old(&self) -> bool {
        let age = i64::try_from(self.config.seal_age.as_micros()).unwrap_or(i64::MAX);
        self.open.since.is_some_and(|since| self.clock.now_micros().saturating_sub(since) >= age)
    }

    /// Ends the epoch and sends it off; whoever asked for it will be told. All tables are to record its end if it is for a
    /// `change`, that of a new stream too.
    fn close(&mut self, change: Option<&NewDefinition>) {
        let sealed = std::mem::take(&mut self.asked);
        let node = self.config.node.clone();
        let announced = self.open.since.is_some();
        if announced {
            self.tell_speed(LineEvent::EpochEnd { node, seq: self.last });
        }
        self.open = Open::default();
        let lanes = self.groups.lanes.iter();
        let mut streams: Vec<(Arc<Stream>, SchemaRef)> =
            lanes.map(|lane| (lane.stream.clone(), lane.decoder.schema().clone())).collect();
        streams.push((self.dead.clone(), self.dead.schema()));
        let opened = change.and_then(|change| change.opened.as_ref());
        streams.extend(opened.map(|(stream, decoder)| (stream.clone(), decoder.schema().clone())));
        streams.iter().for_each(|(stream, _)| stream.tail.write().close_epoch());
        let nodes = self.groups.nodes_to_save(self.last);
        let mark_all = change.is_some();
        let epoch = Epoch { seq: self.last, streams, mark_all, nodes, announced, sealed };
        // The sealer is gone only when ingest is being dropped; the log keeps what it would have sealed.
        _ = self.sealer.blocking_send(epoch);
    }

    fn control(&mut self, control: Control) {
        match control {
            Control::Put(new) => self.put(*new),
            Control::Remove { name, sealed } => {
                self.asked.push(sealed);
                self.close(None);
                self.groups.remove(&name);
            }
            Control::Seal { sealed } => self.asked.push(sealed),
        }
    }

    /// Puts a definition in force, or changes nothing.
    fn put(&mut self, new: NewDefinition) {
        let keys = self.check(&new).and_then(|keys| {
            self.seal_before(&new)?;
            Ok(keys)
        });
        let NewDefinition { def, opened, keep, reply } = new;
        // Kept here, between two groups: whenever the process ends, what the log has beyond the tables is decoded again
        // by the definition that it was taken under.
        let outcome = keys.and_then(|keys| {
            keep()?;
            self.install(def, opened, keys)
        });
        _ = reply.send(outcome);
    }

    /// Whether a definition can be put in force, and the keys that it needs.
    fn check(&self, new: &NewDefinition) -> Result<Option<KeyWindow>> {
        match (self.groups.lane(&new.def.name), &new.opened) {
            (Some(lane), _) => _ = StreamDecoder::new(&new.def, lane.decoder.schema())?,
            (None, Some(_)) => {}
            (None, None) => {
                return Err(Error::NotFound {
                    kind: "stream",
                    name: new.def.name.clone(),
                    hint: "; it was removed at the same moment, apply it again".into(),
                });
            }
        }
        self.keys_for(&new.def, new.opened.as_ref().map(|(stream, _)| &**stream))
    }

    /// Waits until the tables have everything that was decoded so far, and record that a definition ends here.
    fn seal_before(&mut self, new: &NewDefinition) -> Result<()> {
        let wait = EXCHANGE_WAIT.min(self.config.change_wait);
        if self.sealer.capacity() == 0 {
            return Err(not_sealed_in_time(&new.def.name, wait));
        }
        let (sealed, answer) = oneshot::channel();
        self.asked.push(sealed);
        self.close(Some(new));
        let answer = async { tokio::time::timeout(wait, answer).await };
        match self.runtime.block_on(answer) {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(_)) => Err(closed()),
            Err(_) => Err(not_sealed_in_time(&new.def.name, wait)),
        }
    }

    fn install(
        &mut self,
        def: Arc<StreamDef>,
        opened: Option<(Arc<Stream>, StreamDecoder)>,
        keys: Option<KeyWindow>,
    ) -> Result<Arc<Stream>> {
        let stream = match opened {
            Some((stream, decoder)) if self.groups.lane(&def.name).is_none() => {
                self.groups.add(Lane { stream: stream.clone(), def, decoder, keys });
                stream
            }
            _ => self.groups.redefine(def, keys)?,
        };
        if let Some(lane) = self.groups.lane(&stream.name) {
            lane.observe(Why::Applied, self.clock.now_micros(), &self.config.node, self.last + 1);
        }
        Ok(stream)
    }

    /// What `dedup` of a new definition needs, `None` if nothing, or if the stream has it. Reads the table.
    fn keys_for(&self, def: &StreamDef, opened: Option<&Stream>) -> Result<Option<KeyWindow>> {
        let lane = self.groups.lane(&def.name);
        let Some(rule) = DedupRule::of(def).filter(|rule| !lane.is_some_and(|lane| lane.goes_by(rule, def)))
        else {
            return Ok(None);
        };
        let Some(stream) = lane.map(|lane| &*lane.stream).or(opened) else { return Ok(None) };
        let (raw, now) = (stream.snapshot()?, self.clock.now_micros());
        self.runtime.block_on(KeyWindow::load(rule, &raw, &self.config.node, self.last, now)).map(Some)
    }

    fn tell_speed(&self, event: LineEvent) {
        if self.speed.blocking_send(event).is_err() {
            tracing::warn!("the speed layer no longer listens; events are kept but not sealed");
        }
    }
}

/// How many full epochs there can be before nothing more is taken in.
fn full_epochs(config: &IngestConfig) -> usize {
    (config.max_unsealed_bytes / config.seal_bytes.max(1) + 1).min(MAX_FULL_EPOCHS) as usize
}

/// A queue for epochs on their way to the sealer, with room for all that can wait.
pub(crate) fn epoch_queue(config: &IngestConfig) -> (mpsc::Sender<Epoch>, mpsc::Receiver<Epoch>) {
    mpsc::channel(EPOCHS_IN_FLIGHT + full_epochs(config))
}

/// A change that the store stands in the way of.
pub(crate) fn not_sealed_in_time(stream: &str, waited: Duration) -> Error {
    let why = format!(
        "what came before is not in its tables after {waited:?}; the store is slow, try again when /readyz answers 200"
    );
    let cause = std::io::Error::new(std::io::ErrorKind::TimedOut, why);
    Error::io(format!("stream `{stream}` is left as it was"), cause)
}

/// Puts the deliveries of a group into the window.
fn remember(wal: &mut Wal, first: Seq, body: &[u8]) {
    for (record, seq) in records(body).into_iter().flatten().zip(first..) {
        if let Some(delivery) = record.delivery {
            let length = record.cut_from.unwrap_or(record.payload.len() as u64);
            let print = fingerprint_of_cut(record.topic, record.payload, length);
            wal.remember(delivery.client, delivery.packet_id, print, seq);
        }
    }
}
