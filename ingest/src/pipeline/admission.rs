//! Where messages come in: which are queued for the log, and what becomes of the others.

use std::sync::atomic::Ordering;

use tokio::sync::{OwnedSemaphorePermit, mpsc, oneshot};

use super::Ingest;
use crate::dead_letter::Resolution;
use crate::message::{Message, Receipt, Refused, Ticket};
use crate::pressure::{Concerned, Verdict};
use crate::stats::add;
use crate::wal::writer::{Input, Waiting};

impl Ingest {
    /// Takes a message and waits until it is durable.
    ///
    /// The future may be dropped: the message is then stored or not, and a re-delivery is recognised.
    pub async fn submit(&self, message: Message) -> Result<Receipt, Refused> {
        self.enqueue(message).await?.await
    }

    /// Takes a message; waits only while the queue is full. Messages are numbered in the order of these calls.
    /// The ticket resolves once the message is durable.
    pub async fn enqueue(&self, message: Message) -> Result<Ticket, Refused> {
        if let Some(settled) = self.settle_at_once(&message)? {
            return Ok(settled);
        }
        let sheddable = match self.judge(&message) {
            Ok(sheddable) => sheddable,
            Err(settled) => return Ok(settled),
        };
        let permits = self.permits(&message);
        let room = self.room.clone().acquire_many_owned(permits).await.map_err(|_| Refused::Closed)?;
        let (mut waiting, ticket) = self.waiting(message, room);
        waiting.sheddable = sheddable;
        self.input.send(Input::Message(waiting)).await.map_err(|_| Refused::Closed)?;
        Ok(ticket)
    }

    /// Takes a decision about a dead letter, together with its message if that is to go through ingest again.
    ///
    /// The two are one record of the log. The message is decoded for the letter's stream only, as of its first arrival.
    pub async fn resolve(&self, message: Message, resolution: Resolution) -> Result<Ticket, Refused> {
        let permits = self.permits(&message);
        let room = self.room.clone().acquire_many_owned(permits).await.map_err(|_| Refused::Closed)?;
        let (mut waiting, ticket) = self.waiting(message, room);
        waiting.arrival = resolution.received_at;
        waiting.resolution = Some(Box::new(resolution));
        self.input.send(Input::Message(waiting)).await.map_err(|_| Refused::Closed)?;
        Ok(ticket)
    }

    /// Like [`Self::enqueue`], but refuses instead of waiting when the queue is full.
    pub fn try_enqueue(&self, message: Message) -> Result<Ticket, Refused> {
        if let Some(settled) = self.settle_at_once(&message)? {
            return Ok(settled);
        }
        let permits = self.permits(&message);
        let room = self.room.clone().try_acquire_many_owned(permits).map_err(|_| Refused::Full)?;
        let place = match self.input.try_reserve() {
            Ok(place) => place,
            Err(mpsc::error::TrySendError::Full(())) => return Err(Refused::Full),
            Err(mpsc::error::TrySendError::Closed(())) => return Err(Refused::Closed),
        };
        // Last, as it counts: a message for which there was no place comes again.
        let sheddable = match self.judge(&message) {
            Ok(sheddable) => sheddable,
            Err(settled) => return Ok(settled),
        };
        let (mut waiting, ticket) = self.waiting(message, room);
        waiting.sheddable = sheddable;
        place.send(Input::Message(waiting));
        Ok(ticket)
    }

    /// Counts a message that was refused because its sender may not send it.
    pub(crate) fn count_unauthorized(&self) {
        add(&self.counters.unauthorized, 1);
    }

    /// A ticket for a message that need not be queued: nobody wants it.
    fn settle_at_once(&self, message: &Message) -> Result<Option<Ticket>, Refused> {
        if self.room.is_closed() {
            return Err(Refused::Closed);
        }
        if self.wants(&message.topic) {
            return Ok(None);
        }
        add(&self.counters.ignored, 1);
        Ok(Some(Ticket::settled(Receipt::Ignored)))
    }

    /// Whether a message may wait for room, and for which streams it may be shed meanwhile; otherwise what its
    /// sender is told.
    fn judge(&self, message: &Message) -> Result<Option<Concerned>, Ticket> {
        let now = self.clock.now_micros();
        match self.registry.read().policies.judge(&message.topic, now, || self.is_pressed()) {
            Verdict::Wait => Ok(None),
            Verdict::MayBeShed(streams) => Ok(Some(streams)),
            Verdict::Shed => {
                add(&self.counters.shed, 1);
                Err(Ticket::settled(Receipt::Shed))
            }
            Verdict::Limited => {
                add(&self.counters.rate_limited, 1);
                Err(Ticket::settled(Receipt::Shed))
            }
        }
    }

    /// Whether more comes than can be taken.
    fn is_pressed(&self) -> bool {
        self.counters.strained.load(Ordering::Relaxed)
            || self.input.capacity() < self.input.max_capacity() / 2
            || self.room.available_permits() < self.config.queue_bytes / 2
    }

    fn permits(&self, message: &Message) -> u32 {
        message.bytes().min(self.config.queue_bytes.max(1)).try_into().unwrap_or(u32::MAX)
    }

    fn waiting(&self, message: Message, room: OwnedSemaphorePermit) -> (Waiting, Ticket) {
        let (reply, answer) = oneshot::channel();
        let arrival = self.clock.now_micros();
        let waiting = Waiting { message, arrival, resolution: None, sheddable: None, reply, _room: room };
        (waiting, Ticket::waiting(answer))
    }
}
