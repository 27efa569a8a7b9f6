//! A subscription at an external broker: its messages are acknowledged once they are fsynced here.
//!
//! Three tasks, so that none waits for another: the *link* owns the connection, keeps it alive and
//! reconnects; the *taker* hands messages to ingest and acknowledges them in the order of delivery; `subscriptions`
//! keeps the broker's session in line with what the streams want. Up to the
//! receive maximum may be unacknowledged at once, which is what makes one fsync cover many.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use futures::StreamExt;
use futures::stream::FuturesOrdered;
use parking_lot::Mutex;
use rumqttc::mqttbytes::v5::{ConnAck, Packet, Publish, PublishProperties};
use rumqttc::{AckMode, AsyncClient, Event, EventLoop, IncomingPacketSizeLimit, ManualAck, MqttOptions};
use serde::Serialize;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use iot_schemas::device::Via;
use iot_schemas::{Error, Result};

use crate::message::{Delivery, Message, Properties, Receipt, Ticket};
use crate::pipeline::Ingest;
use crate::redelivery::RECEIVE_MAXIMUM;

use super::address::BrokerUrl;
use super::filters_file::FiltersFile;
use super::host::{Host, HostLink};
use super::remote::{OWN_GROUP, Remote};
use super::session::EmptySession;
use super::subscriptions::{Subscriptions, Verdict};

/// Deliveries and acknowledgements that may wait between the tasks: more than can be in flight. How many can be is the
/// lever for the durable rate of one connection.
const CHANNEL: usize = RECEIVE_MAXIMUM as usize + 1_024;
const KEEP_ALIVE_S: u16 = 30;
const CONNECT_TIMEOUT_S: u64 = 10;
/// The broker keeps our session for a day while we are away.
const SESSION_EXPIRY_S: u32 = 24 * 3_600;
const MAX_PACKET_BYTES: u32 = 8 << 20;
/// We send acknowledgements and subscriptions only; a large window makes each acknowledgement cost more.
const OUTGOING_INFLIGHT: u16 = 16;
const REQUEST_BATCH: usize = 256;
const FIRST_RETRY: Duration = Duration::from_millis(100);
const LAST_RETRY: Duration = Duration::from_secs(10);

/// How the subscription is doing.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct SubscriberStats {
    /// Whether the broker has accepted us, on every connection.
    pub connected: bool,
    /// How often a connection was lost or could not be made.
    pub reconnects: u64,
    /// Messages that were delivered, copies included.
    pub delivered: u64,
    /// Messages that were acknowledged.
    pub acknowledged: u64,
    /// Copies that came because several of our filters match, and were left out.
    pub copies: u64,
    /// Why the last connection ended.
    pub last_error: Option<String>,
    /// A subscription that the broker refuses, and why.
    pub refused: Option<String>,
    /// How many connections there are to be.
    pub connections: usize,
}

/// A running subscription. It ends when it is dropped; [`Self::stop`] waits for it.
#[derive(Debug)]
pub struct Subscriber {
    /// One for each connection.
    states: Vec<Arc<LinkState>>,
    /// One for each connection.
    subscriptions: Vec<Arc<Subscriptions>>,
    stop: CancellationToken,
    tasks: tokio::sync::Mutex<Vec<JoinHandle<()>>>,
    host: tokio::sync::Mutex<Option<HostLink>>,
}

impl Subscriber {
    /// Subscribes at `remote` to what the streams of `ingest` want, now and whenever that changes. Returns at once;
    /// the connection is made, and made again, in the background.
    pub fn start(remote: &Remote, ingest: Arc<Ingest>) -> Result<Self> {
        remote.check()?;
        let stop = CancellationToken::new();
        let (mut states, mut subscriptions, mut tasks) = (Vec::new(), Vec::new(), Vec::new());
        for number in 1..=remote.connections {
            let Session { link, taker, delivered } = Session::new(remote, number, ingest.clone())?;
            states.push(link.state.clone());
            subscriptions.push(link.subscriptions.clone());
            tasks.push(tokio::spawn(link.subscriptions.clone().keep(stop.clone())));
            tasks.push(tokio::spawn(link.run(stop.clone())));
            tasks.push(tokio::spawn(taker.run(delivered, stop.clone())));
        }
        let host = Host::new(&ingest).map(|host| HostLink::start(remote, host, stop.clone())).transpose()?;
        if remote.group().is_some() {
            tasks.push(tokio::spawn(warn_of_gaps(ingest, stop.clone())));
        }
        let (tasks, host) = (tokio::sync::Mutex::new(tasks), tokio::sync::Mutex::new(host));
        Ok(Self { states, subscriptions, stop, tasks, host })
    }

    /// How it is doing.
    pub fn stats(&self) -> SubscriberStats {
        let sum = |counter: fn(&LinkState) -> &AtomicU64| {
            self.states.iter().map(|state| counter(state).load(Ordering::Relaxed)).sum()
        };
        SubscriberStats {
            connected: self.states.iter().all(|state| state.connected.load(Ordering::Relaxed)),
            reconnects: sum(|state| &state.reconnects),
            delivered: sum(|state| &state.delivered),
            acknowledged: sum(|state| &state.acknowledged),
            copies: sum(|state| &state.copies),
            last_error: self.states.iter().find_map(|state| state.last_error.lock().clone()),
            refused: self.subscriptions.iter().find_map(|it| it.refused()),
            connections: self.states.len(),
        }
    }

    /// Ends the subscription. The broker keeps the session and delivers again what was not acknowledged.
    pub async fn stop(&self) {
        self.stop.cancel();
        for task in self.tasks.lock().await.drain(..) {
            _ = task.await;
        }
        if let Some(host) = self.host.lock().await.take() {
            host.stopped().await;
        }
    }
}

impl Drop for Subscriber {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

/// What one session needs: who owns the connection, and who takes the deliveries.
struct Session {
    link: Link,
    taker: Taker,
    delivered: mpsc::Receiver<Delivered>,
}

impl Session {
    fn new(remote: &Remote, number: usize, ingest: Arc<Ingest>) -> Result<Self> {
        let client_id = remote.session(number);
        let mut options = options(remote, &client_id)?;
        options
            .set_clean_start(false)
            .set_session_store(EmptySession {
                expiry_s: SESSION_EXPIRY_S,
                outgoing_inflight: OUTGOING_INFLIGHT,
            })
            .set_ack_mode(AckMode::Manual)
            .set_session_expiry_interval(Some(SESSION_EXPIRY_S))
            .set_receive_maximum(Some(RECEIVE_MAXIMUM))
            .set_incoming_packet_size_limit(IncomingPacketSizeLimit::Bytes(MAX_PACKET_BYTES))
            .set_outgoing_inflight_upper_limit(OUTGOING_INFLIGHT)
            .set_max_request_batch(REQUEST_BATCH);
        let (client, events) = AsyncClient::builder(options)
            .capacity(CHANNEL)
            .try_build()
            .map_err(|e| Error::invalid(format!("the broker `{}`: {e}", remote.url)))?;
        let (deliveries, delivered) = mpsc::channel(CHANNEL);
        let state = Arc::new(LinkState::default());
        let file = FiltersFile::new(
            &ingest.config().wal_dir,
            &client_id,
            &format!("{}:{}", remote.url.host, remote.url.port),
        );
        let (filters, group) = (ingest.watch_filters(), remote.group());
        let subscriptions = Arc::new(Subscriptions::new(
            client.clone(),
            filters,
            remote.topics_of(number),
            group,
            OWN_GROUP,
            file,
        ));
        let link = Link { events, subscriptions, deliveries, state: state.clone() };
        let taker = Taker { ingest, client, client_id, state };
        Ok(Self { link, taker, delivered })
    }
}

/// Warns whenever there is a Sparkplug stream: its messages mean something in their order only.
async fn warn_of_gaps(ingest: Arc<Ingest>, stop: CancellationToken) {
    let mut sparkplug = ingest.watch_sparkplug();
    loop {
        tokio::select! {
            found = sparkplug.wait_for(|is_there| *is_there) => if found.is_err() { return },
            () = stop.cancelled() => return,
        }
        tracing::warn!(
            "the messages of a Sparkplug stream come over a shared subscription, which may change their order, so that gaps are seen; \
             use one connection, without `share`"
        );
        tokio::select! {
            gone = sparkplug.wait_for(|is_there| !*is_there) => if gone.is_err() { return },
            () = stop.cancelled() => return,
        }
    }
}

/// What every connection to `remote` needs.
pub(super) fn options(remote: &Remote, client_id: &str) -> Result<MqttOptions> {
    let BrokerUrl { host, port, .. } = &remote.url;
    let mut options = MqttOptions::new(client_id, (host.clone(), *port));
    options.set_keep_alive(KEEP_ALIVE_S);
    if let Some((user, password)) = remote.credentials() {
        options.set_credentials(user, password.to_owned());
    }
    if let Some(tls) = remote.tls_configuration()? {
        options.set_transport(rumqttc::Transport::tls_with_config(tls));
    }
    let mut network = options.network_options();
    network.set_connection_timeout(CONNECT_TIMEOUT_S);
    options.set_network_options(network);
    Ok(options)
}

/// What the tasks share.
#[derive(Debug, Default)]
struct LinkState {
    /// Counts connections and their ends. An acknowledgement is sent only within the epoch of its delivery:
    /// on another connection the same packet identifier may mean another message.
    epoch: AtomicU64,
    connected: AtomicBool,
    reconnects: AtomicU64,
    delivered: AtomicU64,
    acknowledged: AtomicU64,
    copies: AtomicU64,
    last_error: Mutex<Option<String>>,
}

/// A delivery and the connection that it came over.
#[derive(Debug)]
struct Delivered {
    epoch: u64,
    publish: Publish,
    /// Decided in the order of the packets, by what the broker has said about our filters before it.
    verdict: Verdict,
}

/// Owns the connection.
struct Link {
    events: EventLoop,
    subscriptions: Arc<Subscriptions>,
    deliveries: mpsc::Sender<Delivered>,
    state: Arc<LinkState>,
}

impl Link {
    /// Runs until told to stop. Polling is interrupted by nothing else: that would not be safe.
    async fn run(mut self, stop: CancellationToken) {
        let state = self.state.clone();
        tokio::select! {
            () = self.work() => {}
            () = stop.cancelled() => {}
        }
        state.connected.store(false, Ordering::Relaxed);
    }

    async fn work(&mut self) {
        let mut pause = FIRST_RETRY;
        loop {
            match self.events.poll().await {
                Ok(Event::Incoming(Packet::ConnAck(ack))) => {
                    pause = FIRST_RETRY;
                    self.connected(&ack);
                }
                Ok(Event::Incoming(Packet::Publish(publish))) => {
                    let epoch = self.state.epoch.load(Ordering::Acquire);
                    let verdict = self.subscriptions.judge(&publish);
                    if self.deliveries.send(Delivered { epoch, publish, verdict }).await.is_err() {
                        return;
                    }
                }
                Ok(Event::Incoming(Packet::SubAck(_) | Packet::UnsubAck(_))) => self.answered(),
                Ok(_) => {}
                Err(e) => {
                    self.disconnected(&e.to_string());
                    tokio::time::sleep(jittered(pause)).await;
                    pause = (pause * 2).min(LAST_RETRY);
                }
            }
        }
    }

    fn connected(&mut self, ack: &ConnAck) {
        self.state.epoch.fetch_add(1, Ordering::AcqRel);
        // From here on the library knows the session; without a store it need not describe it after each packet.
        self.events.options.clear_session_store();
        self.state.connected.store(true, Ordering::Relaxed);
        self.state.last_error.lock().take();
        self.subscriptions.begin(ack);
    }

    fn answered(&self) {
        if let Some(refusal) = self.subscriptions.answered() {
            *self.state.last_error.lock() = Some(refusal);
        }
    }

    fn disconnected(&self, why: &str) {
        self.state.epoch.fetch_add(1, Ordering::AcqRel);
        self.subscriptions.end();
        if self.state.connected.swap(false, Ordering::Relaxed) {
            tracing::warn!("the connection to the broker was lost: {why}");
        }
        self.state.reconnects.fetch_add(1, Ordering::Relaxed);
        *self.state.last_error.lock() = Some(why.to_owned());
    }
}

/// Hands messages to ingest and acknowledges them.
struct Taker {
    ingest: Arc<Ingest>,
    client: AsyncClient,
    client_id: String,
    state: Arc<LinkState>,
}

impl Taker {
    async fn run(self, mut delivered: mpsc::Receiver<Delivered>, stop: CancellationToken) {
        let mut pending = FuturesOrdered::new();
        loop {
            let went_well = tokio::select! {
                Some(delivery) = delivered.recv() => match self.take(delivery).await {
                    Ok(Some(taken)) => {
                        pending.push_back(taken.settle());
                        true
                    }
                    Ok(None) => true,
                    Err(_) => false,
                },
                Some(settled) = pending.next() => self.acknowledge(settled),
                () = stop.cancelled() => false,
                else => false,
            };
            // If ingest takes nothing more, nothing may be acknowledged: the broker keeps what it has.
            if !went_well {
                return;
            }
        }
    }

    async fn take(&self, delivered: Delivered) -> Result<Option<Taken>, crate::Refused> {
        let Delivered { epoch, publish, verdict } = delivered;
        self.state.delivered.fetch_add(1, Ordering::Relaxed);
        let ack = self.client.prepare_ack(&publish);
        let Verdict::Take(copies_before) = verdict else {
            self.state.copies.fetch_add(1, Ordering::Relaxed);
            let ticket = Ticket::settled(Receipt::Ignored);
            return Ok(ack.map(|ack| Taken { epoch, ack, ticket }));
        };
        let delivery = ack.is_some().then(|| Delivery {
            client: self.client_id.clone(),
            packet_id: publish.pkid,
            dup: publish.dup,
            copies_before,
        });
        let topic = String::from_utf8_lossy(&publish.topic).into_owned();
        let properties = properties(publish.properties.as_ref(), publish.retain);
        let message = Message { topic, payload: publish.payload, delivery, properties };
        let ticket = self.ingest.enqueue(message).await?;
        Ok(ack.map(|ack| Taken { epoch, ack, ticket }))
    }

    /// `false` if the message must not be acknowledged.
    fn acknowledge(&self, settled: Result<(u64, ManualAck), crate::Refused>) -> bool {
        let Ok((epoch, ack)) = settled else { return false };
        if epoch != self.state.epoch.load(Ordering::Acquire) {
            return true;
        }
        match self.client.try_manual_ack(ack) {
            Ok(()) => _ = self.state.acknowledged.fetch_add(1, Ordering::Relaxed),
            // The queue has room for all that can be in flight, so the link is gone; a copy will come.
            Err(e) => tracing::debug!("an acknowledgement could not be sent: {e}"),
        }
        true
    }
}

/// What matters to decoding of what MQTT says about a message. The broker marks as retained what it had kept, not
/// what somebody has just published.
fn properties(publish: Option<&PublishProperties>, is_retained: bool) -> Option<Box<Properties>> {
    let mut properties = Properties::default();
    if let Some(content_type) = publish.and_then(|publish| publish.content_type.as_ref()) {
        properties.set_content_type(content_type);
    }
    let user = publish.into_iter().flat_map(|publish| &publish.user_properties);
    user.for_each(|(name, value)| properties.add_user(name, value));
    if is_retained {
        properties.set_via(Via::Retained);
    }
    properties.boxed()
}

/// A message that ingest has.
struct Taken {
    epoch: u64,
    ack: ManualAck,
    ticket: Ticket,
}

impl Taken {
    async fn settle(self) -> Result<(u64, ManualAck), crate::Refused> {
        self.ticket.await.map(|_| (self.epoch, self.ack))
    }
}

/// Between half of `pause` and all of it, so that many clients do not come back at the same moment.
pub(super) fn jittered(pause: Duration) -> Duration {
    pause.mul_f64(rand::random_range(0.5..1.0))
}
