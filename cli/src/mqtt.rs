//! A publisher that keeps its word: what it counts as acknowledged, the broker has acknowledged.
//!
//! Messages are pipelined: up to [`PublisherOptions::in_flight`] are on their way at any moment, and
//! [`Publisher::publish`] waits beyond that. A lost connection is made again, with growing pauses; messages whose
//! acknowledgement did not arrive, or that a broker without memory forgot, are sent again. At QoS 1 that can
//! deliver a message twice, never zero times.

use std::future::Future;
use std::pin::Pin;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use bytes::Bytes;
use futures::FutureExt;
use futures::stream::{FuturesUnordered, StreamExt};
use iot_ingest::source::remote::Remote;
use rand::RngExt;
use rumqttc::{
    AsyncClient, Broker, ClientError, ConnectionError, Event, EventLoop, MqttOptions, Packet,
    PublishNoticeError, PublishOptions, PublishProperties, QoS, SessionMode, Transport,
};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::args::MqttArgs;
use crate::exit::Failure;

/// How many messages may be on their way at once: enough for a group commit on the other side to be worth its
/// fsync, few enough that a slow broker is felt at once.
pub const DEFAULT_IN_FLIGHT: u16 = 1000;
/// A broker that does not answer in this time is as good as absent.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// The first pause before a reconnection.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
/// The longest pause between two attempts.
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// How long a broker is asked to remember an unfinished session of ours.
const SESSION_EXPIRY_S: u32 = 300;
/// Larger messages are refused by most brokers anyway.
const MAX_PACKET_BYTES: u32 = 8 << 20;
/// Requests that the client takes from its queue at once; one system call for all of them.
const REQUEST_BATCH: usize = 256;

/// Where to publish and how much at once.
#[derive(Debug, Clone)]
pub struct PublisherOptions {
    /// The broker, and how to get in.
    pub remote: Remote,
    /// How many messages may be unacknowledged at once.
    pub in_flight: u16,
}

impl PublisherOptions {
    /// The broker that was named on the command line, with the usual number of messages in flight.
    pub fn new(args: &MqttArgs) -> Result<Self> {
        Ok(Self { remote: args.remote(client_id())?, in_flight: DEFAULT_IN_FLIGHT })
    }

    /// A broker that lets everybody in, with the usual number of messages in flight.
    pub fn open(address: &str) -> Result<Self> {
        Ok(Self { remote: Remote::new(address.parse()?, client_id()), in_flight: DEFAULT_IN_FLIGHT })
    }
}

/// One message.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Message {
    /// Its topic, without wildcards.
    pub topic: String,
    /// Its bytes.
    pub payload: Bytes,
    /// The quality of service: 0, 1 or 2.
    pub qos: u8,
    /// Whether the broker keeps it for later subscribers.
    pub retain: bool,
    /// What the payload is said to be.
    pub content_type: Option<String>,
    /// User properties: names and values.
    pub properties: Vec<(String, String)>,
}

/// What became of the messages so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Handed to [`Publisher::publish`].
    pub published: u64,
    /// Acknowledged by the broker; at QoS 0, written to the connection.
    pub acknowledged: u64,
    /// Refused by the broker, for good.
    pub refused: u64,
    /// Sent once more because a session was lost.
    pub resent: u64,
}

impl Counts {
    /// On their way.
    pub fn open(&self) -> u64 {
        self.published - self.acknowledged - self.refused
    }
}

/// Publishes to one broker.
#[derive(Debug)]
pub struct Publisher {
    client: AsyncClient,
    in_flight: FuturesUnordered<Pin<Box<dyn Future<Output = Outcome> + Send>>>,
    limit: usize,
    counts: Counts,
    last_refusal: Option<String>,
    link: watch::Receiver<Link>,
    driver: JoinHandle<()>,
    address: String,
}

/// What became of one message, and the message, should it have to go again.
type Outcome = (Message, Result<(), PublishNoticeError>);

/// The connection, as the task that drives it sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Link {
    /// Not connected yet, not even once.
    New,
    Up,
    /// It broke for this reason and is being made again.
    Down(String),
    /// It will not be made again.
    Over(String),
}

impl Publisher {
    /// Connects, and fails if the broker is not there or does not want us.
    pub async fn connect(options: PublisherOptions) -> Result<Self> {
        let mqtt = mqtt_options(&options)?;
        let (client, events) = AsyncClient::builder(mqtt).capacity(usize::from(options.in_flight)).build();
        let (sender, link) = watch::channel(Link::New);
        let driver = tokio::spawn(drive(events, sender));
        let mut publisher = Self {
            client,
            in_flight: FuturesUnordered::new(),
            limit: usize::from(options.in_flight),
            counts: Counts::default(),
            last_refusal: None,
            link,
            driver,
            address: options.remote.url.to_string(),
        };
        publisher.wait_for_first_connection().await?;
        Ok(publisher)
    }

    /// Sends a message. Returns when it is on its way, not when it is acknowledged; waits while too many are.
    ///
    /// A call that is given up before it returns has either sent its message or not touched it.
    pub async fn publish(&mut self, message: Message) -> Result<()> {
        check_topic(&message.topic)?;
        while self.in_flight.len() >= self.limit {
            self.settle_one().await?;
        }
        self.settle_ready()?;
        self.send(message)?;
        self.counts.published += 1;
        Ok(())
    }

    /// The counters, after a look at which acknowledgements have arrived.
    pub fn counts(&mut self) -> Result<Counts> {
        self.settle_ready()?;
        Ok(self.counts)
    }

    /// Waits until everything is acknowledged or refused, and disconnects.
    pub async fn finish(mut self, timeout: Duration) -> Result<Counts> {
        let deadline = tokio::time::Instant::now() + timeout;
        while !self.in_flight.is_empty() {
            match tokio::time::timeout_at(deadline, self.settle_one()).await {
                Ok(settled) => settled?,
                Err(_) => return Err(self.unfinished(timeout).into()),
            }
        }
        self.disconnect().await;
        match &self.last_refusal {
            Some(reason) => {
                let message =
                    format!("`{}` refused {} messages: {reason}", self.address, self.counts.refused);
                Err(Failure::failed(message).hint("check what the broker allows this user to publish").into())
            }
            None => Ok(self.counts),
        }
    }

    async fn wait_for_first_connection(&mut self) -> Result<()> {
        let link = self
            .link
            .wait_for(|link| *link != Link::New)
            .await
            .context("the connection task has died")?
            .clone();
        match link {
            Link::Down(reason) | Link::Over(reason) => {
                self.driver.abort();
                let message = format!("cannot reach the MQTT broker `{}`: {reason}", self.address);
                Err(Failure::unreachable(message)
                    .hint("is a broker running? `iotctl serve` has one, or name another with --mqtt")
                    .into())
            }
            Link::New | Link::Up => Ok(()),
        }
    }

    /// Hands a message to the connection. Its queue is as long as the number of messages that may be in flight,
    /// so that there is always room.
    fn send(&mut self, message: Message) -> Result<()> {
        let options = publish_options(&message)?;
        match self.client.try_publish_tracked(message.topic.as_str(), message.payload.clone(), options) {
            Ok(notice) => {
                self.in_flight.push(Box::pin(async move { (message, notice.wait_completion_async().await) }));
                Ok(())
            }
            Err(ClientError::RequestChannelDisconnected(_)) => Err(self.over().into()),
            Err(error) => bail!("cannot publish to `{}`: {error}", message.topic),
        }
    }

    /// Takes in the outcomes that are there already.
    fn settle_ready(&mut self) -> Result<()> {
        while let Some(Some(outcome)) = self.in_flight.next().now_or_never() {
            self.settle(outcome)?;
        }
        Ok(())
    }

    /// Waits for one outcome. When the connection is over for good, all outcomes arrive at once, as failures.
    async fn settle_one(&mut self) -> Result<()> {
        match self.in_flight.next().await {
            Some(outcome) => self.settle(outcome),
            None => Ok(()),
        }
    }

    fn settle(&mut self, (message, result): Outcome) -> Result<()> {
        match result {
            Ok(()) => self.counts.acknowledged += 1,
            Err(error) if is_final(&error) => {
                self.counts.refused += 1;
                self.last_refusal = Some(error.to_string());
            }
            Err(error) => {
                tracing::debug!(%error, topic = message.topic, "sending again");
                self.counts.resent += 1;
                self.send(message)?;
            }
        }
        Ok(())
    }

    fn over(&self) -> Failure {
        let why = match &*self.link.borrow() {
            Link::Down(reason) | Link::Over(reason) => reason.clone(),
            Link::New | Link::Up => "it was closed".to_owned(),
        };
        let open = self.counts.open();
        Failure::unreachable(format!(
            "the connection to `{}` is over ({why}); {open} messages are not acknowledged",
            self.address
        ))
    }

    fn unfinished(&self, timeout: Duration) -> Failure {
        let (open, s) = (self.counts.open(), timeout.as_secs());
        let message = format!("`{}` has not acknowledged {open} messages within {s} s", self.address);
        match &*self.link.borrow() {
            Link::Down(reason) | Link::Over(reason) => {
                Failure::unreachable(format!("{message}; the connection is down: {reason}"))
                    .hint("is the broker still running?")
            }
            Link::New | Link::Up => Failure::unreachable(message)
                .hint("the broker, or whoever stores behind it, may be overloaded; a slower rate may help"),
        }
    }

    /// Says good-bye. All is acknowledged, so nothing is lost if the broker does not hear it.
    async fn disconnect(&mut self) {
        if self.client.disconnect().await.is_ok() {
            let _ = tokio::time::timeout(Duration::from_secs(1), &mut self.driver).await;
        }
    }
}

impl Drop for Publisher {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

/// Polls the connection until it is over, and makes it again when it breaks.
async fn drive(mut events: EventLoop, link: watch::Sender<Link>) {
    let mut pause = FIRST_PAUSE;
    loop {
        match events.poll().await {
            Ok(Event::Incoming(Packet::ConnAck(_))) => {
                pause = FIRST_PAUSE;
                if let Link::Down(_) = link.send_replace(Link::Up) {
                    tracing::warn!("connection to the broker is back");
                }
            }
            Ok(_) => {}
            Err(ConnectionError::RequestsDone) => {
                link.send_replace(Link::Over("closed".to_owned()));
                return;
            }
            Err(ConnectionError::ConnectionRefused(code)) => {
                link.send_replace(Link::Over(format!("the broker refused the connection ({code:?})")));
                return;
            }
            Err(error) => {
                match link.send_replace(Link::Down(error.to_string())) {
                    Link::Up => tracing::warn!(%error, "connection to the broker lost; connecting again"),
                    _ => tracing::debug!(%error, "still no connection to the broker"),
                }
                // Without jitter all clients of a restarted broker would come back at the same moment.
                let jitter = rand::rng().random_range(0.5..1.0);
                tokio::time::sleep(pause.mul_f64(jitter)).await;
                pause = (pause * 2).min(LONGEST_PAUSE);
            }
        }
    }
}

/// Whether sending the message again would end the same way.
fn is_final(error: &PublishNoticeError) -> bool {
    matches!(
        error,
        PublishNoticeError::V5PubAck(_)
            | PublishNoticeError::V5PubRec(_)
            | PublishNoticeError::V5PubComp(_)
            | PublishNoticeError::RetainNotSupported
    )
}

fn publish_options(message: &Message) -> Result<PublishOptions> {
    let options = PublishOptions::new(qos(message.qos)?).retain(message.retain);
    if message.content_type.is_none() && message.properties.is_empty() {
        return Ok(options);
    }
    Ok(options.properties(PublishProperties {
        content_type: message.content_type.clone(),
        user_properties: message.properties.clone(),
        ..PublishProperties::default()
    }))
}

fn client_id() -> String {
    format!("iotctl-{:016x}", rand::rng().random::<u64>())
}

fn mqtt_options(options: &PublisherOptions) -> Result<MqttOptions> {
    let remote = &options.remote;
    let broker = Broker::tcp(remote.url.host.clone(), remote.url.port);
    let mut mqtt = MqttOptions::new(&remote.client_id, broker);
    mqtt.set_session_mode(SessionMode::Persistent)
        .set_session_expiry_interval(Some(SESSION_EXPIRY_S))
        .set_connect_timeout(CONNECT_TIMEOUT)
        .set_keep_alive(30)
        .set_max_packet_size(Some(MAX_PACKET_BYTES))
        .set_outgoing_inflight_upper_limit(options.in_flight)
        .set_max_request_batch(REQUEST_BATCH);
    if let Some((user, password)) = remote.credentials() {
        mqtt.set_credentials(user, password.to_owned());
    }
    if let Some(tls) = remote.tls_configuration()? {
        mqtt.set_transport(Transport::tls_with_config(tls));
    }
    Ok(mqtt)
}

fn qos(level: u8) -> Result<QoS> {
    match level {
        0 => Ok(QoS::AtMostOnce),
        1 => Ok(QoS::AtLeastOnce),
        2 => Ok(QoS::ExactlyOnce),
        other => Err(Failure::usage(format!("`{other}` is no quality of service; it is 0, 1 or 2")).into()),
    }
}

fn check_topic(topic: &str) -> Result<()> {
    if topic.is_empty() || topic.contains(['+', '#', '\0']) {
        return Err(Failure::usage(format!("`{topic}` is no topic to publish to"))
            .hint("a topic is not empty and has no `+`, `#` or NUL")
            .into());
    }
    Ok(())
}

#[cfg(test)]
mod tests;
