//! The thread that makes messages durable: what waits is one group, one frame, one fsync.
//!
//! No linger is needed: while one group is being synced the next one gathers. A group that cannot be written
//! (a full disk) is kept and tried again; nothing is acknowledged meanwhile, so the gateways wait.

use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::SyncSender;
use std::time::Duration;

use parking_lot::{Condvar, Mutex};
use tokio::sync::{OwnedSemaphorePermit, mpsc, oneshot};

use iot_schemas::clock::Clock;
use iot_schemas::disk;
use iot_schemas::log::Log;
use iot_schemas::position::Seq;
use iot_schemas::{Error, Result};

use crate::config::IngestConfig;
use crate::dead_letter::Resolution;
use crate::epoch::{Control, Work};
use crate::group::Group;
use crate::left_out::LeftOutReason;
use crate::message::{Delivery, Message, Receipt, Refused};
use crate::pressure::Concerned;
use crate::redelivery::{Redelivery, fingerprint_of_cut};
use crate::stats::{Counters, add};
use crate::wal::record::GroupWriter;
use crate::wal::window_file;

const FIRST_RETRY: Duration = Duration::from_millis(100);
const LAST_RETRY: Duration = Duration::from_secs(5);
/// After so many microseconds a message has waited for long.
const LONG_WAIT: i64 = 1_000_000;
/// What is said when the log has no reader any more. Only a fault in the program ends it.
const DECODER_GONE: &str = "nothing is acknowledged: the thread that decodes messages has ended; restart the server, \
                            the log has everything";
/// How often the writer looks whether it may go on, should it miss being told.
const GATE_CHECK: Duration = Duration::from_millis(100);

/// The log and the deliveries that it holds or held.
#[derive(Debug)]
pub(crate) struct Wal {
    pub(crate) log: Log,
    pub(crate) window: Redelivery,
    /// Whether `window` knows more than its file and cannot be rebuilt from the log once that is trimmed.
    window_changed: bool,
    dir: PathBuf,
}

impl Wal {
    pub(crate) fn new(log: Log, window: Redelivery, dir: PathBuf) -> Self {
        Self { log, window, window_changed: false, dir }
    }

    /// Where the log and what belongs to it are kept.
    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    /// Remembers a delivery under `seq`.
    pub(crate) fn remember(&mut self, client: &str, packet_id: u16, fingerprint: u64, seq: Seq) {
        self.window.remember(client, packet_id, fingerprint, seq);
        self.window_changed = true;
    }

    /// Frees what the log holds up to `seq`, after saving what must be remembered of it. Blocking.
    pub(crate) fn trim(wal: &Mutex<Self>, seq: Seq) -> Result<()> {
        let (window, dir) = {
            let mut wal = wal.lock();
            let up_to = wal.log.next() - 1;
            let changed = std::mem::take(&mut wal.window_changed);
            (changed.then(|| wal.window.encode(up_to)), wal.dir.clone())
        };
        if let Some(window) = window
            && let Err(e) = window_file::save(&dir, &window)
        {
            wal.lock().window_changed = true;
            return Err(e);
        }
        wal.lock().log.trim(seq).map(drop)
    }
}

/// Holds the writer back while too much is unsealed, and wakes it when it must look around.
#[derive(Debug, Default)]
pub(crate) struct Gate {
    lock: Mutex<()>,
    changed: Condvar,
    closing: AtomicBool,
}

impl Gate {
    /// Something has changed: memory was freed.
    pub(crate) fn notify(&self) {
        self.changed.notify_all();
    }

    /// From now on nothing is taken and nobody waits.
    pub(crate) fn close(&self) {
        self.closing.store(true, Ordering::Release);
        self.notify();
    }

    pub(crate) fn is_closing(&self) -> bool {
        self.closing.load(Ordering::Acquire)
    }

    /// Waits for `time`, or less if something changes.
    fn pause(&self, time: Duration) {
        let mut guard = self.lock.lock();
        self.changed.wait_for(&mut guard, time);
    }
}

/// What waits in front of the log.
#[derive(Debug)]
pub(crate) enum Input {
    Message(Waiting),
    Control(Control),
    /// Nothing more is to be written.
    Stop,
}

/// A message whose sender waits for its receipt.
#[derive(Debug)]
pub(crate) struct Waiting {
    pub(crate) message: Message,
    /// Microseconds since 1970.
    pub(crate) arrival: i64,
    /// What is done about the dead letter whose message this is.
    pub(crate) resolution: Option<Box<Resolution>>,
    /// For which streams it counts if it is shed because it waits for too long; `None` if it must not be.
    pub(crate) sheddable: Option<Concerned>,
    pub(crate) reply: oneshot::Sender<Result<Receipt, Refused>>,
    /// The room that it takes up in the queue.
    pub(crate) _room: OwnedSemaphorePermit,
}

/// The writer thread's state.
#[derive(Debug)]
pub(crate) struct Writer {
    pub(crate) wal: Arc<Mutex<Wal>>,
    pub(crate) queue: mpsc::Receiver<Input>,
    pub(crate) decoder: SyncSender<Work>,
    pub(crate) config: Arc<IngestConfig>,
    pub(crate) counters: Arc<Counters>,
    pub(crate) gate: Arc<Gate>,
    pub(crate) clock: Clock,
}

impl Writer {
    /// Runs until [`Input::Stop`], or until nobody can send any more, or nobody decodes what is written.
    pub(crate) fn run(mut self) {
        let mut arrived = Vec::with_capacity(self.config.group_messages);
        let mut waiting = VecDeque::new();
        loop {
            if waiting.is_empty() {
                if self.queue.blocking_recv_many(&mut arrived, self.config.group_messages) == 0 {
                    return;
                }
                waiting.extend(arrived.drain(..));
            }
            self.wait_for_room(&mut waiting);
            if self.queue.len() > self.config.queue_messages / 2 {
                self.shed_oldest(&mut waiting);
            }
            let goes_on = match waiting.pop_front() {
                Some(Input::Message(first)) => {
                    let group = self.gather(first, &mut waiting);
                    self.write(group, &mut waiting)
                }
                Some(Input::Control(control)) => self.hand_on(Work::Control(control)),
                Some(Input::Stop) | None => false,
            };
            if !goes_on {
                return;
            }
        }
    }

    /// Waits until less is unsealed than may be, or ingest closes.
    fn wait_for_room(&mut self, waiting: &mut VecDeque<Input>) {
        let limit = self.config.max_unsealed_bytes;
        let has_room = |counters: &Counters| counters.unsealed_bytes.load(Ordering::Relaxed) < limit as i64;
        if has_room(&self.counters) {
            return;
        }
        self.counters.strained.store(true, Ordering::Relaxed);
        let since = self.clock.now_micros();
        while !has_room(&self.counters) && !self.gate.is_closing() {
            if self.clock.now_micros() - since > LONG_WAIT {
                *self.counters.room_trouble.lock() = Some(format!(
                    "nothing is acknowledged: {} MiB of events wait for the store, as many as may",
                    limit >> 20
                ));
            }
            self.shed_oldest(waiting);
            self.gate.pause(GATE_CHECK);
        }
        self.counters.room_trouble.lock().take();
        self.counters.strained.store(false, Ordering::Relaxed);
    }

    /// Answers messages that have waited for long, and whose streams would rather have newer ones, without storing
    /// them. To be called under pressure.
    fn shed_oldest(&mut self, waiting: &mut VecDeque<Input>) {
        while waiting.len() < self.config.queue_messages
            && let Ok(input) = self.queue.try_recv()
        {
            waiting.push_back(input);
        }
        let oldest = self.clock.now_micros() - LONG_WAIT;
        for input in std::mem::take(waiting) {
            match input {
                Input::Message(Waiting { message, arrival, sheddable: Some(streams), reply, .. })
                    if arrival < oldest =>
                {
                    let shed = LeftOutReason::Shed;
                    streams.iter().for_each(|stream| stream.leave_out(shed, &message.topic, arrival));
                    add(&self.counters.shed, 1);
                    _ = reply.send(Ok(Receipt::Shed));
                }
                kept => waiting.push_back(kept),
            }
        }
    }

    /// The messages that go into one group with `first`.
    fn gather(&self, first: Waiting, waiting: &mut VecDeque<Input>) -> Vec<Waiting> {
        let mut bytes = first.message.bytes();
        let mut group = vec![first];
        while let Some(Input::Message(next)) = waiting.front() {
            bytes += next.message.bytes();
            if bytes > self.config.group_bytes || group.len() >= self.config.group_messages {
                break;
            }
            if let Some(Input::Message(next)) = waiting.pop_front() {
                group.push(next);
            }
        }
        group
    }

    /// Numbers the messages, makes them durable, answers, and hands the group on. `false` if there is no point in
    /// going on.
    ///
    /// `waiting` are the messages behind them.
    fn write(&mut self, messages: Vec<Waiting>, waiting: &mut VecDeque<Input>) -> bool {
        let Draft { first, frame, answers } = self.number(messages);
        let count = frame.count();
        let body = frame.finish();
        if count > 0 && !self.make_durable(count, first, &body, &answers, waiting) {
            answers.into_iter().for_each(|answer| _ = answer.reply.send(Err(Refused::Closed)));
            return true;
        }
        if count > 0 {
            add(&self.counters.messages, count);
            self.counters.last_seq.store(first + count - 1, Ordering::Relaxed);
        }
        self.answer(answers);
        count == 0 || self.hand_on(Work::Group(Group { first, last: first + count - 1, body }))
    }

    /// `false` if there is nobody any more who decodes: what is in the log stays there, and nothing is added to it.
    fn hand_on(&self, work: Work) -> bool {
        if self.decoder.send(work).is_ok() {
            return true;
        }
        tracing::error!("the thread that decodes messages has ended; no more are taken");
        self.counters.strained.store(true, Ordering::Relaxed);
        *self.counters.log_trouble.lock() = Some(DECODER_GONE.to_owned());
        false
    }

    fn number(&self, messages: Vec<Waiting>) -> Draft {
        let wal = self.wal.lock();
        let mut draft = Draft::new(&self.config, wal.log.next());
        messages.into_iter().for_each(|waiting| draft.add(waiting, &wal.window));
        draft
    }

    /// Appends and syncs, again and again until it works. `false` if ingest closes before it does.
    fn make_durable(
        &mut self,
        count: u64,
        first: Seq,
        body: &[u8],
        answers: &[Answer],
        waiting: &mut VecDeque<Input>,
    ) -> bool {
        let mut pause = FIRST_RETRY;
        loop {
            match self.append(count, first, body, answers) {
                Ok(()) => {
                    if self.counters.log_trouble.lock().take().is_some() {
                        tracing::info!("the log can be written again");
                        self.counters.strained.store(false, Ordering::Relaxed);
                    }
                    return true;
                }
                Err(e) => {
                    add(&self.counters.log_failures, 1);
                    tracing::error!("the log cannot be written, nothing is acknowledged: {e}");
                    *self.counters.log_trouble.lock() =
                        Some(format!("nothing is acknowledged: the log cannot be written: {e}"));
                    self.counters.strained.store(true, Ordering::Relaxed);
                }
            }
            if self.gate.is_closing() {
                return false;
            }
            self.gate.pause(pause);
            self.shed_oldest(waiting);
            pause = (pause * 2).min(LAST_RETRY);
        }
    }

    /// Makes a group durable and remembers its deliveries, in one: a window that is saved in between would claim to
    /// know them.
    fn append(&self, count: u64, first: Seq, body: &[u8], answers: &[Answer]) -> Result<()> {
        let mut wal = self.wal.lock();
        // Before the log can be trimmed other files must be written. A log that took the last byte would never end.
        disk::check_reserve(wal.dir()).map_err(|e| Error::io("the disk is full", e))?;
        let at = wal.log.append(count, body)?;
        debug_assert_eq!(at, first, "only this thread appends");
        wal.log.sync()?;
        for answer in answers {
            if let (Receipt::Stored(seq), Some(delivery)) = (answer.receipt, &answer.delivery) {
                wal.remember(&delivery.client, delivery.packet_id, delivery.fingerprint, seq);
            }
        }
        self.counters.remembered.store(wal.window.len() as u64, Ordering::Relaxed);
        add(&self.counters.groups, 1);
        add(&self.counters.fsyncs, 1);
        add(&self.counters.bytes, body.len() as u64);
        self.counters.log_bytes.store(wal.log.bytes(), Ordering::Relaxed);
        Ok(())
    }

    fn answer(&self, answers: Vec<Answer>) {
        for answer in answers {
            if matches!(answer.receipt, Receipt::Redelivered(_)) {
                add(&self.counters.redelivered, 1);
            }
            // Whoever no longer waits will send again and be told that it is a copy.
            _ = answer.reply.send(Ok(answer.receipt));
        }
    }
}

/// A group before it is written.
struct Draft {
    first: Seq,
    frame: GroupWriter,
    answers: Vec<Answer>,
}

/// What a sender will be told once the group is durable.
struct Answer {
    receipt: Receipt,
    delivery: Option<Labelled>,
    reply: oneshot::Sender<Result<Receipt, Refused>>,
    _room: OwnedSemaphorePermit,
}

struct Labelled {
    client: String,
    packet_id: u16,
    fingerprint: u64,
}

impl Draft {
    fn new(config: &IngestConfig, first: Seq) -> Self {
        Self { first, frame: GroupWriter::new(config.max_payload_bytes), answers: Vec::new() }
    }

    /// Numbers a message, unless it is a copy of one that is durable or in this very group.
    fn add(&mut self, waiting: Waiting, window: &Redelivery) {
        let Waiting { message, arrival, resolution, reply, _room, .. } = waiting;
        let print = message.delivery.as_ref().map(|_| {
            let kept = self.frame.kept_of(&message.payload);
            fingerprint_of_cut(&message.topic, kept, message.payload.len() as u64)
        });
        let known = match (&message.delivery, print) {
            (Some(delivery), Some(print)) if delivery.dup => identifiers(delivery).find_map(|packet_id| {
                window
                    .lookup(&delivery.client, packet_id, print)
                    .or_else(|| self.in_this_group(&delivery.client, packet_id, print))
            }),
            _ => None,
        };
        let receipt = match known {
            Some(seq) => Receipt::Redelivered(seq),
            None => {
                self.frame.push(&message, arrival, resolution.as_deref());
                Receipt::Stored(self.first + self.frame.count() - 1)
            }
        };
        let delivery = message.delivery.zip(print).map(|(delivery, fingerprint)| Labelled {
            client: delivery.client,
            packet_id: delivery.packet_id,
            fingerprint,
        });
        self.answers.push(Answer { receipt, delivery, reply, _room });
    }

    fn in_this_group(&self, client: &str, packet_id: u16, print: u64) -> Option<Seq> {
        let same = |label: &Labelled| {
            label.packet_id == packet_id && label.fingerprint == print && label.client == client
        };
        self.answers.iter().rev().find_map(|answer| match answer.receipt {
            Receipt::Stored(seq) if answer.delivery.as_ref().is_some_and(same) => Some(seq),
            _ => None,
        })
    }
}

/// The packet identifiers under which a delivery may be known: its own, and those of copies just before it. They go from 1 to
/// 65,535 and around.
fn identifiers(delivery: &Delivery) -> impl Iterator<Item = u16> {
    let before = |id: &u16| Some(id.checked_sub(1).filter(|id| *id > 0).unwrap_or(u16::MAX));
    std::iter::successors(Some(delivery.packet_id), before).take(1 + usize::from(delivery.copies_before))
}

#[cfg(test)]
mod tests;
