//! A client's connection to the embedded broker, with our ear on it.
//!
//! The messages that a client has sent are handed to ingest as they arrive, in order, while the broker still
//! works on the first of them. The broker then asks for each in turn (see [`Shared::next`]) and waits for its
//! receipt before it acknowledges. If ingest refuses, the connection is broken instead of answered.
//!
//! What the client may not publish is not handed on: the broker, which asks the same question when it comes to
//! the message, refuses it.

use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};

use mqtt5::broker::transport::WebSocketTransport;
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::message::{Delivery, Message, Properties, Ticket};
use crate::pipeline::Ingest;
use crate::redelivery::fingerprint;

use super::access::Grants;
use super::listener::ByteStream;
use super::scanner::{Scanner, Seen};

/// Bytes that are read from the socket at once: some hundred small messages, which then share an fsync.
const READ_BYTES: usize = 16 << 10;

/// The first version of the protocol in which a client can be told that it may not do something.
const MQTT_5: u8 = 5;

/// Messages that are remembered ahead of the broker. More than one read can hold, so only messages that the
/// broker has refused are ever forgotten.
const MAX_AHEAD: usize = 2 * READ_BYTES;

tokio::task_local! {
    /// The connection that the running task serves: how the broker's hook finds it.
    pub(super) static CONNECTION: Arc<Shared>;
}

/// What the connection and the broker's hook share.
pub(super) struct Shared {
    ingest: Arc<Ingest>,
    /// Set once the broker has accepted the client.
    client: Mutex<Option<Arc<str>>>,
    /// Set once it is known who the client is; until then it may do nothing.
    admitted: OnceLock<Admitted>,
    /// What the client wants to be said when it ends without a word.
    will: Mutex<Option<Message>>,
    ahead: Mutex<Ahead>,
    fleeting: Mutex<VecDeque<Fleeting>>,
    broken: AtomicBool,
}

/// What is known of a QoS 0 message that has arrived and that the broker has not come to yet.
#[derive(Debug)]
struct Fleeting {
    /// Of topic and payload: it has no packet identifier to be found by.
    fingerprint: u64,
    properties: Option<Box<Properties>>,
}

/// What a client may do, and whether it can be told that it may not.
#[derive(Debug)]
struct Admitted {
    grants: Grants,
    protocol_version: u8,
}

/// The QoS 1 and 2 messages that have arrived and that the broker has not come to yet, in order.
#[derive(Debug, Default)]
struct Ahead {
    messages: VecDeque<Arrived>,
    /// How many of them ingest does not have. While there are any, later ones may not overtake them.
    untaken: usize,
}

impl Ahead {
    fn push(&mut self, message: Arrived) {
        if self.messages.len() >= MAX_AHEAD {
            drop(self.pop());
        }
        self.untaken += usize::from(message.ticket.is_none());
        self.messages.push_back(message);
    }

    fn pop(&mut self) -> Option<Arrived> {
        let message = self.messages.pop_front()?;
        self.untaken -= usize::from(message.ticket.is_none());
        Some(message)
    }
}

/// A message as it was seen on the wire.
#[derive(Debug)]
pub(super) struct Arrived {
    packet_id: u16,
    pub(super) dup: bool,
    /// Present if ingest has it already.
    pub(super) ticket: Option<Ticket>,
    /// Present if there are any and ingest does not have them.
    pub(super) properties: Option<Box<Properties>>,
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shared").field("client", &*self.client.lock()).finish_non_exhaustive()
    }
}

impl Shared {
    pub(super) fn new(ingest: Arc<Ingest>) -> Self {
        let (client, admitted, will, ahead, fleeting, broken) = Default::default();
        Self { ingest, client, admitted, will, ahead, fleeting, broken }
    }

    /// It is known who the client is and what it may do.
    pub(super) fn admitted(&self, grants: Grants, protocol_version: u8) {
        // A second CONNECT ends the connection, so there is never another answer.
        _ = self.admitted.set(Admitted { grants, protocol_version });
    }

    /// Whether a message may be published. If not, a client that cannot be told so is cut off: what it would take
    /// for an acknowledgement would be a lie.
    pub(super) fn authorize_publish(&self, topic: &str) -> bool {
        let may = self.may_publish(topic);
        if !may {
            self.ingest.count_unauthorized();
            if self.admitted.get().is_none_or(|admitted| admitted.protocol_version < MQTT_5) {
                self.break_off();
            }
        }
        may
    }

    /// A client has tried what it may not.
    pub(super) fn count_unauthorized(&self) {
        self.ingest.count_unauthorized();
    }

    /// Whether everything that `filter` matches may be read.
    pub(super) fn may_subscribe(&self, filter: &str) -> bool {
        self.admitted.get().is_some_and(|admitted| admitted.grants.may_subscribe(filter))
    }

    fn may_publish(&self, topic: &str) -> bool {
        self.admitted.get().is_some_and(|admitted| admitted.grants.may_publish(topic))
    }

    /// The broker has accepted the client: what arrives from now on may go to ingest at once.
    /// A will that the client may not publish itself is not kept.
    pub(super) fn accepted(&self, client: Arc<str>, will: Option<Message>) {
        *self.client.lock() = Some(client);
        *self.will.lock() = will.filter(|will| self.may_publish(&will.topic));
    }

    /// The client's will, once.
    pub(super) fn take_will(&self) -> Option<Message> {
        self.will.lock().take()
    }

    /// What is known about the message that the broker has come to. Messages before it, if any, are those
    /// that the broker refused.
    pub(super) fn next(&self, packet_id: u16) -> Option<Arrived> {
        let mut ahead = self.ahead.lock();
        let before = ahead.messages.iter().position(|message| message.packet_id == packet_id)?;
        (0..before).for_each(|_| drop(ahead.pop()));
        ahead.pop()
    }

    /// The properties of the QoS 0 message that the broker has come to.
    pub(super) fn next_fleeting(&self, topic: &str, payload: &[u8]) -> Option<Box<Properties>> {
        let mut fleeting = self.fleeting.lock();
        let print = (!fleeting.is_empty()).then(|| fingerprint(topic, payload))?;
        let before = fleeting.iter().position(|message| message.fingerprint == print)?;
        fleeting.drain(..=before).next_back()?.properties
    }

    /// From now on nothing can be read or written: the client will never see an acknowledgement.
    pub(super) fn break_off(&self) {
        self.broken.store(true, Ordering::Release);
    }

    fn arrived(&self, seen: Vec<Seen>) {
        let client = self.client.lock().clone();
        let mut ahead = self.ahead.lock();
        let allowed = seen.into_iter().filter(|seen| self.may_take(seen));
        for Seen { packet_id, dup, topic, payload, properties } in allowed {
            let Some(packet_id) = packet_id else {
                self.fleeting_arrived(fingerprint(&topic, &payload), properties);
                continue;
            };
            let (ticket, properties) = match &client {
                Some(client) if ahead.untaken == 0 => {
                    let delivery =
                        Some(Delivery { client: client.to_string(), packet_id, dup, copies_before: 0 });
                    let message = Message { topic, payload, delivery, properties: properties.clone() };
                    match self.ingest.try_enqueue(message) {
                        Ok(ticket) => (Some(ticket), None),
                        Err(_) => (None, properties),
                    }
                }
                _ => (None, properties),
            };
            ahead.push(Arrived { packet_id, dup, ticket, properties });
        }
    }

    /// Before it is known who the client is, nothing goes to ingest here, and the broker asks about each message.
    fn may_take(&self, seen: &Seen) -> bool {
        self.admitted.get().is_none_or(|admitted| admitted.grants.may_publish(&seen.topic))
    }

    fn fleeting_arrived(&self, fingerprint: u64, properties: Option<Box<Properties>>) {
        let mut fleeting = self.fleeting.lock();
        if fleeting.len() >= MAX_AHEAD {
            fleeting.pop_front();
        }
        fleeting.push_back(Fleeting { fingerprint, properties });
    }

    fn check(&self) -> io::Result<()> {
        if self.broken.load(Ordering::Acquire) {
            return Err(io::Error::new(io::ErrorKind::ConnectionAborted, "a message was refused"));
        }
        Ok(())
    }
}

/// The connection, as the broker reads and writes it.
pub(super) struct Connection {
    stream: Box<dyn ByteStream>,
    peer: SocketAddr,
    shared: Arc<Shared>,
    scanner: Scanner,
    /// Read and scanned, but not yet asked for: `buffer[from..to]`.
    buffer: Box<[u8]>,
    from: usize,
    to: usize,
}

impl Connection {
    pub(super) fn new(
        stream: Box<dyn ByteStream>,
        peer: SocketAddr,
        shared: Arc<Shared>,
        max_packet_bytes: usize,
    ) -> Self {
        let scanner = Scanner::new(max_packet_bytes);
        let buffer = vec![0; READ_BYTES].into_boxed_slice();
        Self { stream, peer, shared, scanner, buffer, from: 0, to: 0 }
    }
}

impl AsyncRead for Connection {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, out: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        this.shared.check()?;
        if this.from == this.to {
            let mut read = ReadBuf::new(&mut this.buffer);
            ready!(Pin::new(&mut this.stream).poll_read(cx, &mut read))?;
            (this.from, this.to) = (0, read.filled().len());
            let seen = this.scanner.feed(&this.buffer[..this.to]);
            if this.scanner.connect_is_too_large() {
                return Poll::Ready(Err(io::Error::new(
                    io::ErrorKind::InvalidData,
                    "the CONNECT is too large",
                )));
            }
            this.shared.arrived(seen);
        }
        let n = out.remaining().min(this.to - this.from);
        out.put_slice(&this.buffer[this.from..this.from + n]);
        this.from += n;
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Connection {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        this.shared.check()?;
        Pin::new(&mut this.stream).poll_write(cx, bytes)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(cx)
    }
}

impl WebSocketTransport for Connection {
    fn peer_addr(&self) -> mqtt5::Result<SocketAddr> {
        Ok(self.peer)
    }
}
