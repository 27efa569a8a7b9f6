//! What a source hands in and what it gets back.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use tokio::sync::oneshot;

use iot_schemas::device::Via;
use iot_schemas::position::Seq;

/// User properties that are kept of one message.
pub const MAX_USER_PROPERTIES: usize = 64;
/// Bytes of user properties, names and values, that are kept of one message.
pub const MAX_USER_PROPERTY_BYTES: usize = 16 << 10;
/// Characters of a content type that are kept. Those that exist are shorter.
const MAX_CONTENT_TYPE: usize = 255;

/// With what the topic of events begins that were written to a stream by name. No MQTT client can publish there: a
/// topic with a wildcard in it is a protocol error.
pub(crate) const WRITTEN: &str = "#write/";

/// One message as it arrived, whatever brought it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// The MQTT topic, without wildcards.
    pub topic: String,
    /// The payload, uninterpreted.
    pub payload: Bytes,
    /// How an acknowledged delivery was labelled; `None` for QoS 0 and for HTTP.
    pub delivery: Option<Delivery>,
    /// What else MQTT 5 says about it; `None` if that is nothing.
    pub properties: Option<Box<Properties>>,
}

impl Message {
    /// A message that nobody delivers twice.
    pub fn new(topic: impl Into<String>, payload: impl Into<Bytes>) -> Self {
        Self { topic: topic.into(), payload: payload.into(), delivery: None, properties: None }
    }

    /// Events that are written to a stream by name. The content type says how they are encoded, and with the
    /// parameter `precision` (`s`, `ms`, `us` or `ns`) what their times count.
    pub fn written(stream: &str, content_type: &str, payload: impl Into<Bytes>) -> Self {
        let mut properties = Properties::default();
        properties.set_content_type(content_type);
        Self { properties: properties.boxed(), ..Self::new(format!("{WRITTEN}{stream}"), payload) }
    }

    /// What it takes up in queues.
    pub(crate) fn bytes(&self) -> usize {
        let client = self.delivery.as_ref().map_or(0, |delivery| delivery.client.len());
        let properties = self.properties.as_ref().map_or(0, |properties| properties.bytes());
        self.topic.len() + self.payload.len() + client + properties + 64
    }
}

/// What is known of a message beyond topic and payload and matters to decoding, within bounds.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Properties {
    content_type: Option<String>,
    user: Vec<(String, String)>,
    user_bytes: usize,
    is_cut: bool,
    via: Via,
}

impl Properties {
    /// Notes the content type.
    pub fn set_content_type(&mut self, content_type: &str) {
        self.content_type = Some(content_type.chars().take(MAX_CONTENT_TYPE).collect());
    }

    /// Adds a user property. Those beyond the bounds are left out, and that is noted.
    pub fn add_user(&mut self, name: &str, value: &str) {
        let bytes = self.user_bytes + name.len() + value.len();
        if self.is_cut || self.user.len() >= MAX_USER_PROPERTIES || bytes > MAX_USER_PROPERTY_BYTES {
            self.is_cut = true;
            return;
        }
        self.user_bytes = bytes;
        self.user.push((name.to_owned(), value.to_owned()));
    }

    /// Notes how the message came.
    pub fn set_via(&mut self, via: Via) {
        self.via = via;
    }

    /// How the message came.
    pub fn via(&self) -> Via {
        self.via
    }

    /// What the payload is said to be.
    pub fn content_type(&self) -> Option<&str> {
        self.content_type.as_deref()
    }

    /// The user properties in their order, names perhaps more than once.
    pub fn user(&self) -> &[(String, String)] {
        &self.user
    }

    /// Whether there were more user properties than are kept.
    pub fn is_cut(&self) -> bool {
        self.is_cut
    }

    /// Itself, unless it says nothing.
    pub fn boxed(self) -> Option<Box<Self>> {
        (self != Self::default()).then(|| Box::new(self))
    }

    fn bytes(&self) -> usize {
        let content_type = self.content_type.as_ref().map_or(0, String::len);
        size_of::<Self>() + content_type + self.user_bytes + self.user.len() * size_of::<(String, String)>()
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
    /// How many packet identifiers before this one may be those of copies of the same message, which the session has by
    /// other subscriptions. Only looked at if it is a `dup` that is not known by its own identifier.
    pub copies_before: u16,
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
    /// It was not stored, as its streams say: its device is over its rate, or more comes than can be taken.
    Shed,
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
