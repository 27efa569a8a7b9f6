//! The broker in this process: a gateway's PUBACK means that its message is fsynced.
//!
//! The protocol is `mqtt5`'s; the connections are ours (see the modules `listener` and `connection`), because its
//! publish hook knows neither the DUP flag, content type and user properties nor the messages that have already arrived
//! behind the current one. Who may connect, publish and subscribe is decided in `access`.
//! Sessions outlast the process where [`BrokerOptions::dir`] says so. A client that is told that its session is
//! gone must forget what it has sent, so it would send what was not acknowledged as if it were new; one whose
//! session is there sends it again as a copy, which the log's re-delivery window recognises.

use std::future::Future;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use mqtt5::QoS;
use mqtt5::broker::client_handler::ClientHandler;
use mqtt5::broker::config::{BrokerConfig, StorageBackend as StorageKind, StorageConfig};
use mqtt5::broker::router::MessageRouter;
use mqtt5::broker::storage::client_queue::QueueLimits;
use mqtt5::broker::storage::{DynamicStorage, FileBackend, MemoryBackend, StorageBackend};
use mqtt5::broker::sys_topics::BrokerStats;
use mqtt5::broker::transport::BrokerTransport;
use mqtt5::broker::{
    BrokerEventHandler, ClientConnectEvent, ClientDisconnectEvent, ClientPublishEvent, PublishAction,
    ResourceLimits, ResourceMonitor,
};
use mqtt5::packet::publish::PublishPacket;
use serde::{Deserialize, Serialize};
use tokio::net::TcpStream;
use tokio::sync::{Mutex, broadcast};
use tokio::task::{JoinHandle, JoinSet};
use tokio_util::sync::CancellationToken;

use iot_schemas::device::Via;
use iot_schemas::{Error, Result};

use crate::message::{Delivery, Message, Properties, Refused};
use crate::pipeline::Ingest;
use crate::redelivery::RECEIVE_MAXIMUM;

use super::MqttBroker;
use super::access::{Access, Guest};
use super::connection::{CONNECTION, Connection, Shared};
use super::doorman::Doorman;
use super::host::{Host, Said};
pub use super::listener::Transport;
use super::listener::{Listeners, Opened, Opener};
use super::retained::Retained;
use super::tls::ServerTls;

/// How often expired sessions and rate windows are cleaned up.
const CLEAN_UP_EVERY: Duration = Duration::from_secs(60);
/// How long the session of a client that is away is kept.
const SESSION_EXPIRY: Duration = Duration::from_secs(7 * 24 * 3_600);
/// How long TLS and WebSocket handshakes may take.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// How long connections may take to end before they are cut.
const STOP_GRACE: Duration = Duration::from_secs(2);

/// What can be set about the embedded broker.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct BrokerOptions {
    /// Where sessions and retained messages are kept; without it they are forgotten at the end.
    pub dir: Option<PathBuf>,
    /// Clients that may be connected at once.
    pub max_clients: usize,
    /// Clients that may be connected at once from one address.
    pub max_clients_per_address: usize,
    /// The largest packet. Larger ones end the connection.
    pub max_packet_bytes: usize,
    /// Messages that may wait for a subscriber that is away; then the oldest are dropped.
    pub max_queued_messages: usize,
    /// Bytes that may wait for a subscriber that is away; then the oldest are dropped.
    pub max_queued_bytes: usize,
    /// Retained messages that are kept. One more goes to ingest like any other, but not to subscribers.
    pub max_retained_messages: usize,
    /// Subscriptions that a client may have at once. A further one is refused, those that it has stay.
    pub max_subscriptions_per_client: usize,
}

impl Default for BrokerOptions {
    fn default() -> Self {
        Self {
            dir: None,
            max_clients: 10_000,
            // Many gateways may stand behind one router; one of them alone should not shut out all others.
            max_clients_per_address: 5_000,
            // MQTT's own limit of 256 MiB makes some clients fail that compare signed.
            max_packet_bytes: 8 << 20,
            max_queued_messages: 10_000,
            max_queued_bytes: 64 << 20,
            max_retained_messages: 100_000,
            // A gateway subscribes to a few topics per device below it, and stands for some hundred devices at most.
            max_subscriptions_per_client: 1_000,
        }
    }
}

/// Where the broker listens and whom it lets in.
#[derive(Debug)]
pub struct Door {
    /// The addresses; port 0 takes a free one.
    pub listen: Vec<(Transport, SocketAddr)>,
    /// Needed where it listens for TLS.
    pub tls: Option<ServerTls>,
    /// Who may do what.
    pub access: Access,
}

impl Door {
    /// MQTT without TLS at `addr`, for everybody on this machine.
    pub fn local(addr: SocketAddr) -> Self {
        Self { listen: vec![(Transport::Mqtt, addr)], tls: None, access: Access::default() }
    }

    fn check(&self) -> Result<()> {
        for (transport, addr) in &self.listen {
            let name = transport.name();
            if transport.is_secure() && self.tls.is_none() {
                return Err(Error::invalid(format!("{name} on {addr} needs a certificate and a key")));
            }
            if !self.access.is_useful_on(*addr) {
                return Err(Error::invalid(format!(
                    "nobody could connect to {name} on {addr}: there are neither users nor client certificates"
                )));
            }
            if !transport.is_secure() && !addr.ip().is_loopback() && !self.access.is_open() {
                tracing::warn!("passwords cross the network in the clear on {name} {addr}; use mqtts or wss");
            }
        }
        Ok(())
    }
}

/// A running broker. It ends when it is dropped; [`MqttBroker::stop`] waits for it.
#[derive(Debug)]
pub struct Broker {
    addrs: Vec<(Transport, SocketAddr)>,
    stats: Arc<BrokerStats>,
    stop: CancellationToken,
    task: Mutex<Option<JoinHandle<()>>>,
}

impl Broker {
    /// Listens, lets in whom `door` says, and hands the messages that a stream wants to `ingest`.
    pub async fn start(door: Door, ingest: Arc<Ingest>, options: BrokerOptions) -> Result<Self> {
        door.check()?;
        let tls = door.tls.as_ref().map(ServerTls::load).transpose()?;
        let listeners = Listeners::bind(&door.listen).await?;
        let addrs = listeners.addrs()?;
        let access = Arc::new(door.access);
        let opener = Opener { tls, max_message_bytes: options.max_packet_bytes, access: access.clone() };
        let served = Served::new(ingest, access, opener, &options).await?;
        served.recover().await.map_err(|e| Error::invalid(format!("the embedded broker: {e}")))?;
        let (stats, stop) = (served.stats.clone(), CancellationToken::new());
        let task = Mutex::new(Some(tokio::spawn(served.run(listeners, stop.clone()))));
        Ok(Self { addrs, stats, stop, task })
    }
}

#[async_trait::async_trait]
impl MqttBroker for Broker {
    fn addrs(&self) -> &[(Transport, SocketAddr)] {
        &self.addrs
    }

    fn clients(&self) -> usize {
        self.stats.clients_connected.load(Ordering::Relaxed)
    }

    async fn stop(&self) {
        self.stop.cancel();
        if let Some(task) = self.task.lock().await.take() {
            _ = task.await;
        }
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

/// What all connections share.
struct Served {
    ingest: Arc<Ingest>,
    config: Arc<BrokerConfig>,
    router: Arc<MessageRouter>,
    retained: Arc<Retained>,
    access: Arc<Access>,
    opener: Opener,
    doorman: Arc<Doorman>,
    storage: Arc<DynamicStorage>,
    stats: Arc<BrokerStats>,
    monitor: Arc<ResourceMonitor>,
    shutdown: broadcast::Sender<()>,
}

impl Served {
    async fn new(
        ingest: Arc<Ingest>,
        access: Arc<Access>,
        opener: Opener,
        options: &BrokerOptions,
    ) -> Result<Self> {
        let retained = Retained::new(options.max_retained_messages);
        let hook: Arc<dyn BrokerEventHandler> =
            Arc::new(Hook { ingest: ingest.clone(), retained: retained.clone() });
        let queues =
            QueueLimits { max_messages: options.max_queued_messages, max_bytes: options.max_queued_bytes };
        let storage = Arc::new(open_storage(options, queues).await?);
        // Without a limit of its own for retained messages: `retained` says why.
        let router = MessageRouter::with_storage(storage.clone())
            .with_fallback_queue_limits(queues)
            .with_event_handler(hook.clone());
        let router = Arc::new(router);
        retained.count_in(&router);
        // The doorman counts connections; the library's own monitor would count those that have logged in only.
        let limits = ResourceLimits {
            max_connections: usize::MAX,
            max_connections_per_ip: usize::MAX,
            max_message_rate_per_client: 0,
            max_bandwidth_per_client: 0,
            max_connection_rate: 10_000,
            rate_limit_window: Duration::from_secs(1),
        };
        Ok(Self {
            ingest,
            config: Arc::new(broker_config(options, hook)),
            router,
            retained,
            access,
            opener,
            doorman: Doorman::new(options.max_clients, options.max_clients_per_address),
            storage,
            stats: Arc::new(BrokerStats::new()),
            monitor: Arc::new(ResourceMonitor::new(limits)),
            shutdown: broadcast::Sender::new(1),
        })
    }

    /// Takes up the sessions and retained messages that an earlier process left.
    async fn recover(&self) -> mqtt5::Result<()> {
        let longest = self.config.session_expiry_interval.as_secs();
        self.router.recover_sessions(u32::try_from(longest).unwrap_or(u32::MAX)).await?;
        self.router.initialize().await
    }

    /// Accepts until told to stop, then lets the connections end.
    async fn run(self, listeners: Listeners, stop: CancellationToken) {
        let served = Arc::new(self);
        let mut connections = JoinSet::new();
        let mut clean_up = tokio::time::interval(CLEAN_UP_EVERY);
        let mut host = Host::new(&served.ingest);
        loop {
            tokio::select! {
                accepted = listeners.accept() => match accepted {
                    Ok((transport, stream, peer)) => {
                        served.accept(transport, stream, peer, &mut connections).await;
                    }
                    Err(e) => {
                        tracing::warn!("an MQTT connection could not be accepted: {e}");
                        // Out of file descriptors, most likely: give connections time to end.
                        tokio::time::sleep(Duration::from_millis(50)).await;
                    }
                },
                Some(_) = connections.join_next() => {}
                _ = clean_up.tick() => served.clean_up().await,
                said = next_of(&mut host) => served.publish(said).await,
                () = stop.cancelled() => break,
            }
        }
        drop(listeners);
        if let Some(said) = host.and_then(|host| host.farewell()) {
            served.publish(said).await;
        }
        _ = served.shutdown.send(());
        let all_ended = async { while connections.join_next().await.is_some() {} };
        if tokio::time::timeout(STOP_GRACE, all_ended).await.is_err() {
            connections.shutdown().await;
        }
        if let DynamicStorage::File(files) = &*served.storage {
            files.flush_queue_writes().await;
        }
    }

    async fn accept(
        self: &Arc<Self>,
        transport: Transport,
        stream: TcpStream,
        peer: SocketAddr,
        connections: &mut JoinSet<()>,
    ) {
        let Some(pass) = self.doorman.let_in(peer.ip()) else {
            tracing::warn!(%peer, "an MQTT connection was refused: there are too many");
            return;
        };
        if !self.monitor.can_accept_connection(peer.ip()).await {
            tracing::warn!(%peer, "an MQTT connection was refused: they come too fast");
            return;
        }
        // Acknowledgements are small; waiting to fill a segment would delay each of them.
        _ = stream.set_nodelay(true);
        let (served, shutdown) = (self.clone(), self.shutdown.subscribe());
        connections.spawn(async move {
            let _pass = pass;
            match tokio::time::timeout(HANDSHAKE, served.opener.open(transport, stream, peer.ip())).await {
                Ok(Ok(opened)) => served.serve(opened, peer, shutdown).await,
                Ok(Err(e)) => tracing::info!(%peer, "no {} connection: {e}", transport.name()),
                Err(_) => tracing::info!(%peer, "no {} connection: it took too long", transport.name()),
            }
        });
    }

    /// Serves a client until it goes away.
    async fn serve(&self, opened: Opened, peer: SocketAddr, shutdown: broadcast::Receiver<()>) {
        let shared = Arc::new(Shared::new(self.ingest.clone()));
        let guest = Guest {
            access: self.access.clone(),
            sessions: self.storage.clone(),
            retained: self.retained.clone(),
            shared: shared.clone(),
            // A certificate without a usable name is nobody's.
            certificate: opened.certificate.map(Option::unwrap_or_default),
        };
        let connection = Connection::new(opened.stream, peer, shared.clone(), self.config.max_packet_size);
        let handler = ClientHandler::new(
            BrokerTransport::WebSocket(Box::new(connection)),
            peer,
            self.config.clone(),
            self.router.clone(),
            Arc::new(guest),
            Some(self.storage.clone()),
            self.stats.clone(),
            self.monitor.clone(),
            shutdown,
        );
        if let Err(e) = CONNECTION.scope(shared, handler.run()).await
            && !e.is_normal_disconnect()
        {
            tracing::debug!(%peer, "an MQTT connection ended: {e}");
        }
    }

    /// Publishes what the Sparkplug host application says.
    async fn publish(&self, Said { topic, payload, is_state }: Said) {
        let qos = if is_state { QoS::AtLeastOnce } else { QoS::AtMostOnce };
        let packet = PublishPacket::new(topic, payload, qos).with_retain(is_state);
        self.router.route_message(&packet, None).await;
    }

    async fn clean_up(&self) {
        if let Err(e) = self.storage.cleanup_expired().await {
            tracing::debug!("cleaning up MQTT sessions: {e}");
        }
        self.router.sweep_sessions().await;
        self.monitor.cleanup_expired_windows().await;
    }
}

async fn next_of(host: &mut Option<Host>) -> Said {
    match host {
        Some(host) => host.next().await,
        None => std::future::pending().await,
    }
}

async fn open_storage(options: &BrokerOptions, queues: QueueLimits) -> Result<DynamicStorage> {
    let Some(dir) = &options.dir else {
        return Ok(DynamicStorage::Memory(MemoryBackend::with_queue_limits(queues)));
    };
    let opened = FileBackend::with_queue_limits(dir, queues).await;
    opened
        .map(DynamicStorage::File)
        .map_err(|e| Error::invalid(format!("the sessions of the embedded broker in {}: {e}", dir.display())))
}

fn broker_config(options: &BrokerOptions, hook: Arc<dyn BrokerEventHandler>) -> BrokerConfig {
    let storage = StorageConfig::new()
        .with_backend(StorageKind::Memory)
        .with_max_queued_messages_per_client(options.max_queued_messages)
        .with_max_queued_bytes_per_client(options.max_queued_bytes);
    BrokerConfig::new()
        .with_bind_addresses(Vec::new())
        .with_max_clients(options.max_clients)
        .with_max_packet_size(options.max_packet_bytes)
        .with_session_expiry(SESSION_EXPIRY)
        // A client that has more in flight may send again what is no longer recognised.
        .with_server_receive_maximum(RECEIVE_MAXIMUM)
        .with_max_subscriptions_per_client(options.max_subscriptions_per_client)
        .with_storage(storage)
        .with_event_handler(hook)
}

/// Where the broker asks what to do with a message, and waits for the answer before it acknowledges.
struct Hook {
    ingest: Arc<Ingest>,
    retained: Arc<Retained>,
}

impl Hook {
    async fn take(&self, event: ClientPublishEvent) -> Result<(), Refused> {
        let topic = event.topic.to_string();
        let Some(packet_id) = event.packet_id.filter(|_| event.qos != QoS::AtMostOnce) else {
            let properties =
                CONNECTION.try_with(|it| it.next_fleeting(&topic, &event.payload)).ok().flatten();
            let message = Message { properties, ..Message::new(topic, event.payload) };
            // Nobody waits for an answer; waiting for room in the queue is all that is needed.
            drop(self.ingest.enqueue(message).await?);
            return Ok(());
        };
        let arrived = CONNECTION.try_with(|connection| connection.next(packet_id)).ok().flatten();
        let (dup, ticket, properties) = match arrived {
            Some(arrived) => (arrived.dup, arrived.ticket, arrived.properties),
            None => (false, None, None),
        };
        let ticket = match ticket {
            Some(ticket) => ticket,
            None => {
                let delivery =
                    Some(Delivery { client: event.client_id.to_string(), packet_id, dup, copies_before: 0 });
                let message = Message { topic, payload: event.payload, delivery, properties };
                self.ingest.enqueue(message).await?
            }
        };
        ticket.await.map(drop)
    }
}

/// The message that the broker sends for a client that has gone away without a word.
fn will_message(topic: String, payload: impl Into<bytes::Bytes>) -> Message {
    let mut properties = Properties::default();
    properties.set_via(Via::Will);
    Message { properties: properties.boxed(), ..Message::new(topic, payload) }
}

type Answer<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

impl BrokerEventHandler for Hook {
    fn on_client_connect<'a>(&'a self, event: ClientConnectEvent) -> Answer<'a, ()> {
        // Runs in the connection's own task, before its first PUBLISH is looked at.
        let will = event.will_topic.zip(event.will_payload);
        let will = will.map(|(topic, payload)| will_message(topic.to_string(), payload));
        _ = CONNECTION.try_with(|connection| connection.accepted(event.client_id, will));
        Box::pin(std::future::ready(()))
    }

    fn on_client_disconnect<'a>(&'a self, event: ClientDisconnectEvent) -> Answer<'a, ()> {
        // The broker publishes a will without asking the publish hook. One with a delay comes here at once.
        let will = CONNECTION.try_with(|connection| connection.take_will()).ok().flatten();
        Box::pin(async move {
            if let Some(will) = will.filter(|_| event.unexpected)
                && let Err(refused) = self.ingest.submit(will).await
            {
                tracing::warn!(client = %event.client_id, "the will of a client is not stored: {refused}");
            }
        })
    }

    fn on_client_publish<'a>(&'a self, event: ClientPublishEvent) -> Answer<'a, PublishAction> {
        Box::pin(async move {
            let to_keep = (event.retain && !event.payload.is_empty()).then(|| event.topic.clone());
            if let Err(refused) = self.take(event).await {
                tracing::debug!("a message is not acknowledged: {refused}");
                _ = CONNECTION.try_with(|connection| connection.break_off());
                return PublishAction::Handled;
            }
            match to_keep {
                Some(topic) if !self.retained.has_room_for(&topic).await => {
                    tracing::warn!(%topic, "a message is stored but neither retained nor passed on: too many are");
                    PublishAction::Handled
                }
                _ => PublishAction::Continue,
            }
        })
    }
}
