//! What a source hands in and what it gets back.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use tokio::sync::oneshot;

use iot_schemas::position::Seq;

/// One message as it arrived, whatever brought it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// The MQTT topic, without wildcards.
    pub topic: String,
    /// The payload, uninterpreted.
    pub payload: Bytes,
    /// How an acknowledged delivery was labelled; `None` for QoS 0 and for HTTP.
    pub delivery: Option<Delivery>,
}

impl Message {
    /// A message that nobody delivers twice.
    pub fn new(topic: impl Into<String>, payload: impl Into<Bytes>) -> Self {
        Self { topic: topic.into(), payload: payload.into(), delivery: None }
    }

    /// What it takes up in queues.
    pub(crate) fn bytes(&self) -> usize {
        let client = self.delivery.as_ref().map_or(0, |delivery| delivery.client.len());
        self.topic.len() + self.payload.len() + client + 64
    }
}

/// The label of an acknowledged delivery, by which a second copy is recognised.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Delivery {
    /// The session that delivers: its packet identifiers form one sequence.
    pub client: String,
    /// The packet identifier.
    pub packet_id: u16,
    /// Whether the sender says that it may have delivered the message before.
    pub dup: bool,
}

/// The message is taken care of: it may be acknowledged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Receipt {
    /// It is durable under this number.
    Stored(Seq),
    /// It is a copy of the durable message of this number and was not stored again.
    Redelivered(Seq),
    /// No stream wants the topic; nothing was stored.
    Ignored,
}

/// The message must not be acknowledged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// Ingest is shutting down; a re-delivery after the restart will be taken.
    #[error("ingest is shutting down")]
    Closed,
    /// The queue is full and the caller did not want to wait.
    #[error("the queue in front of the log is full")]
    Full,
}

/// Resolves once a message that was taken is durable.
#[derive(Debug)]
#[must_use = "a message may only be acknowledged after its ticket has resolved"]
pub struct Ticket(State);

#[derive(Debug)]
enum State {
    Settled(Receipt),
    Waiting(oneshot::Receiver<Result<Receipt, Refused>>),
}

impl Ticket {
    pub(crate) fn settled(receipt: Receipt) -> Self {
        Self(State::Settled(receipt))
    }

    pub(crate) fn waiting(answer: oneshot::Receiver<Result<Receipt, Refused>>) -> Self {
        Self(State::Waiting(answer))
    }
}

impl Future for Ticket {
    type Output = Result<Receipt, Refused>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        match &mut self.0 {
            State::Settled(receipt) => Poll::Ready(Ok(*receipt)),
            State::Waiting(answer) => Pin::new(answer).poll(cx).map(|a| a.unwrap_or(Err(Refused::Closed))),
        }
    }
}
