//! The Sparkplug host application that ingest is: edge nodes see that it is there, and are asked for rebirths.
//!
//! Its state is a retained message at `spBv1.0/STATE/HOST_ID`. At an external broker it speaks over a connection
//! of its own, whose will says that it has gone; the connection that delivers has enough to do.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::time::Duration;

use rumqttc::mqttbytes::QoS;
use rumqttc::mqttbytes::v5::{LastWill, Packet};
use rumqttc::{AsyncClient, Event, EventLoop, Outgoing, PublishOptions};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use iot_schemas::clock::Clock;
use iot_schemas::{Error, Result};

use crate::decode::{Rebirth, rebirth_command};
use crate::pipeline::Ingest;

use super::external::{jittered, options};
use super::remote::Remote;

/// Messages that may wait for the connection: they are few.
const CHANNEL: usize = 256;
const FIRST_RETRY: Duration = Duration::from_millis(100);
const LAST_RETRY: Duration = Duration::from_secs(10);
/// How long the last message may take.
const STOP_GRACE: Duration = Duration::from_secs(1);

/// What the host application has to say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Said {
    pub(super) topic: String,
    pub(super) payload: Vec<u8>,
    /// A state is retained and acknowledged, a command is neither.
    pub(super) is_state: bool,
}

/// Decides what is said, and knows nothing of connections.
#[derive(Debug)]
pub(super) struct Host {
    id: String,
    clock: Clock,
    rebirths: mpsc::Receiver<Rebirth>,
    /// Whether there is a Sparkplug stream.
    wanted: watch::Receiver<bool>,
    is_online: bool,
}

impl Host {
    /// The host application of `ingest`; `None` if another source speaks for it.
    pub(super) fn new(ingest: &Ingest) -> Option<Self> {
        let (id, clock) = (ingest.config().sparkplug.host_id.clone(), ingest.clock().clone());
        let mut wanted = ingest.watch_sparkplug();
        wanted.mark_changed();
        Some(Self { id, clock, rebirths: ingest.take_rebirths()?, wanted, is_online: false })
    }

    /// Waits for something to say. Nothing is lost if the future is dropped.
    pub(super) async fn next(&mut self) -> Said {
        loop {
            tokio::select! {
                Some(rebirth) = self.rebirths.recv() => {
                    let now = self.clock.now_micros();
                    let (topic, payload) = rebirth_command(&rebirth, millis(now));
                    return Said { topic, payload, is_state: false };
                }
                Ok(()) = self.wanted.changed() => {
                    let wanted = *self.wanted.borrow_and_update();
                    if std::mem::replace(&mut self.is_online, wanted) != wanted {
                        return self.state(wanted);
                    }
                }
                else => return std::future::pending().await,
            }
        }
    }

    /// What is to be said at the end, if anything.
    pub(super) fn farewell(&self) -> Option<Said> {
        self.is_online.then(|| self.state(false))
    }

    fn state(&self, is_online: bool) -> Said {
        state(&self.id, is_online, self.clock.now_micros())
    }
}

fn state(id: &str, is_online: bool, micros: i64) -> Said {
    let payload = serde_json::json!({ "online": is_online, "timestamp": millis(micros) });
    Said { topic: state_topic(id), payload: payload.to_string().into_bytes(), is_state: true }
}

fn state_topic(id: &str) -> String {
    format!("spBv1.0/STATE/{id}")
}

/// Whether a state says that the host application has gone.
fn says_offline(payload: &[u8]) -> bool {
    let state: Option<serde_json::Value> = serde_json::from_slice(payload).ok();
    state.is_some_and(|state| state["online"] == false)
}

fn millis(micros: i64) -> u64 {
    u64::try_from(micros / 1_000).unwrap_or(0)
}

/// The host application's connection to an external broker, which is made once there is a Sparkplug stream.
#[derive(Debug)]
pub(super) struct HostLink {
    task: JoinHandle<()>,
}

impl HostLink {
    /// Connects to `remote` in the background, beside the subscription.
    pub(super) fn start(remote: &Remote, host: Host, stop: CancellationToken) -> Result<Self> {
        let mut options = options(remote, &format!("{}-host", remote.client_id))?;
        options.set_clean_start(true).set_session_expiry_interval(None);
        let (client, events) = AsyncClient::builder(options)
            .capacity(CHANNEL)
            .try_build()
            .map_err(|e| Error::invalid(format!("the broker `{}`: {e}", remote.url)))?;
        Ok(Self { task: tokio::spawn(speak(client, events, host, stop)) })
    }

    /// Waits until the farewell is said.
    pub(super) async fn stopped(self) {
        _ = self.task.await;
    }
}

async fn speak(client: AsyncClient, events: EventLoop, mut host: Host, stop: CancellationToken) {
    tokio::select! {
        wanted = host.wanted.wait_for(|wanted| *wanted) => if wanted.is_err() { return },
        () = stop.cancelled() => return,
    }
    host.is_online = true;
    let connection = Arc::new(Connection {
        client: client.clone(),
        id: host.id.clone(),
        clock: host.clock.clone(),
        is_wanted: AtomicBool::new(true),
        since: AtomicI64::new(0),
    });
    let mut driver = tokio::spawn(connection.clone().drive(events));
    loop {
        tokio::select! {
            said = host.next() => {
                connection.is_wanted.store(host.is_online, Ordering::Relaxed);
                connection.say(said);
            }
            () = stop.cancelled() => break,
        }
    }
    // From here on it is true that we have gone.
    connection.is_wanted.store(false, Ordering::Relaxed);
    if let Some(said) = host.farewell() {
        connection.say(said);
    }
    _ = client.try_disconnect();
    if tokio::time::timeout(STOP_GRACE, &mut driver).await.is_err() {
        driver.abort();
    }
}

/// What speaking and keeping the connection share.
struct Connection {
    client: AsyncClient,
    id: String,
    clock: Clock,
    /// Whether the host application is to be seen.
    is_wanted: AtomicBool,
    /// The time in the will of the present connection, which the state after it must repeat.
    since: AtomicI64,
}

impl Connection {
    fn say(&self, Said { topic, payload, is_state }: Said) {
        let qos = if is_state { QoS::AtLeastOnce } else { QoS::AtMostOnce };
        if let Err(e) = self.client.try_publish(topic, payload, PublishOptions::new(qos).retain(is_state)) {
            tracing::debug!("the Sparkplug host application cannot say something now: {e}");
        }
    }

    /// Keeps the connection until it is ended on purpose.
    async fn drive(self: Arc<Self>, mut events: EventLoop) {
        let mut pause = FIRST_RETRY;
        self.set_will(&mut events);
        loop {
            match events.poll().await {
                Ok(Event::Incoming(Packet::ConnAck(_))) => {
                    pause = FIRST_RETRY;
                    self.watch();
                    self.say_online();
                }
                Ok(Event::Incoming(Packet::Publish(said))) if says_offline(&said.payload) => {
                    self.say_online()
                }
                Ok(Event::Outgoing(Outgoing::Disconnect)) => return,
                Ok(_) => {}
                Err(e) => {
                    tracing::debug!("the connection of the Sparkplug host application: {e}");
                    tokio::time::sleep(jittered(pause)).await;
                    pause = (pause * 2).min(LAST_RETRY);
                    self.set_will(&mut events);
                }
            }
        }
    }

    /// Says that the host application is there, if it is to be seen.
    fn say_online(&self) {
        if self.is_wanted.load(Ordering::Relaxed) {
            self.say(state(&self.id, true, self.since.load(Ordering::Relaxed)));
        }
    }

    /// Lets us hear our own state: a will that comes late, or another process of our name, may say that we have gone.
    fn watch(&self) {
        if let Err(e) = self.client.try_subscribe(state_topic(&self.id), QoS::AtLeastOnce) {
            tracing::debug!("the Sparkplug host application cannot watch its state now: {e}");
        }
    }

    fn set_will(&self, events: &mut EventLoop) {
        let now = self.clock.now_micros();
        self.since.store(now, Ordering::Relaxed);
        let Said { topic, payload, .. } = state(&self.id, false, now);
        events.options.set_last_will(LastWill::new(topic, payload, QoS::AtLeastOnce, true, None));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_state_is_what_the_specification_asks_for() {
        let said = state("plant", true, 1_700_000_000_123_456);
        assert_eq!(said.topic, "spBv1.0/STATE/plant");
        assert_eq!(said.payload, br#"{"online":true,"timestamp":1700000000123}"#);
        assert!(!says_offline(&said.payload) && says_offline(&state("plant", false, 0).payload));
        assert!(!says_offline(b"OFFLINE") && !says_offline(b""));
    }
}
