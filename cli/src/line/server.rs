//! A line that can be reached: HTTP, and MQTT by the embedded broker or as a client of an external one.

use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::{Context, Result};
use iot_ingest::source::MqttBroker;
use iot_ingest::source::embedded::{Broker, BrokerOptions, Door, Transport};
use iot_ingest::source::external::Subscriber;
use iot_ingest::source::remote::Remote;
use iot_schemas::clock::Clock;
use iot_serving::ViewFeeds;
use iot_serving::http::auth::HttpAccess;
use iot_serving::http::{App, HttpLimits, serve};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::Line;
use super::writer::Writer;
use crate::exit::Failure;

/// An address to listen on.
#[derive(Debug, Clone, Copy)]
pub struct Listen {
    /// The address; port 0 is any free port.
    pub addr: SocketAddr,
    /// Whether any free port will do if this one is taken.
    pub or_any_port: bool,
}

/// Where messages come from.
#[derive(Debug)]
pub enum MqttSource {
    /// Gateways connect to us.
    Embedded(Box<Embedded>),
    /// We connect to a broker.
    External(Box<Remote>),
}

/// The embedded broker, before it is started.
#[derive(Debug)]
pub struct Embedded {
    /// Where it listens and whom it lets in.
    pub door: Door,
    /// Its limits; where sessions are kept is filled in.
    pub options: BrokerOptions,
    /// Whether any free port will do where one is taken.
    pub or_any_port: bool,
}

impl MqttSource {
    /// The embedded broker for everybody on this machine.
    pub fn local(listen: Listen) -> Self {
        let Listen { addr, or_any_port } = listen;
        let (door, options) = (Door::local(addr), BrokerOptions::default());
        Self::Embedded(Box::new(Embedded { door, options, or_any_port }))
    }
}

/// A running server. [`Server::stop`] ends it in order.
#[derive(Debug)]
pub struct Server {
    line: Arc<Line>,
    source: Source,
    http: SocketAddr,
    http_task: JoinHandle<std::io::Result<()>>,
    stop: CancellationToken,
}

#[derive(Debug)]
enum Source {
    Embedded(Broker),
    External(Arc<Subscriber>),
}

impl Server {
    /// Begins to listen. Everything that was durable before has been taken in when this returns.
    pub async fn start(
        line: Arc<Line>,
        http: Listen,
        access: HttpAccess,
        mqtt: MqttSource,
        clock: Clock,
    ) -> Result<Self> {
        line.settle().await;
        let listener = bind(http, "http").await?;
        let http = listener.local_addr()?;
        let source = start_source(&line, mqtt).await?;
        let stop = CancellationToken::new();
        let app = Arc::new(App {
            queries: line.queries.clone(),
            alerts: line.alerts.clone(),
            feeds: ViewFeeds::new(line.speed.clone(), line.queries.runtime().clone()),
            batch: line.batch.clone(),
            control: line.clone(),
            schemas: line.clone(),
            dead: Arc::new(line.dead.clone()),
            writer: Arc::new(Writer(line.ingest.clone())),
            clock,
            access,
            limits: HttpLimits {
                write_bytes: line.ingest.config().max_payload_bytes,
                ..HttpLimits::default()
            },
            shutdown: stop.clone(),
        });
        let http_task = tokio::spawn(serve(listener, app, stop.clone()));
        Ok(Self { line, source, http, http_task, stop })
    }

    /// The line behind it.
    pub fn line(&self) -> &Arc<Line> {
        &self.line
    }

    /// Where HTTP is served.
    pub fn http(&self) -> SocketAddr {
        self.http
    }

    /// Where the embedded broker listens without TLS.
    pub fn mqtt(&self) -> Option<SocketAddr> {
        self.broker_addrs().iter().find(|(transport, _)| *transport == Transport::Mqtt).map(|(_, addr)| *addr)
    }

    /// The lines by which scripts know the addresses.
    pub fn listening(&self) -> Vec<String> {
        let broker = self.broker_addrs().iter();
        let broker = broker.map(|(transport, addr)| format!("listening {} {addr}", transport.name()));
        broker.chain([format!("listening http {}", self.http)]).collect()
    }

    fn broker_addrs(&self) -> &[(Transport, SocketAddr)] {
        match &self.source {
            Source::Embedded(broker) => broker.addrs(),
            Source::External(_) => &[],
        }
    }

    /// Ends it: no more messages, then no more requests, then everything in memory is sealed.
    pub async fn stop(self) -> Result<()> {
        match &self.source {
            Source::Embedded(broker) => broker.stop().await,
            Source::External(subscriber) => subscriber.stop().await,
        }
        self.stop.cancel();
        self.http_task.await.context("the HTTP server")??;
        self.line.shutdown().await;
        Ok(())
    }
}

async fn start_source(line: &Arc<Line>, mqtt: MqttSource) -> Result<Source> {
    match mqtt {
        MqttSource::Embedded(embedded) => {
            let Embedded { mut door, options, or_any_port } = *embedded;
            for (transport, addr) in &mut door.listen {
                // The port is tried out first, so that a taken one is told apart from other failures.
                let listen = Listen { addr: *addr, or_any_port };
                *addr = bind(listen, transport.name()).await?.local_addr()?;
            }
            let options = BrokerOptions { dir: Some(line.broker_dir.clone()), ..options };
            Ok(Source::Embedded(Broker::start(door, line.ingest.clone(), options).await?))
        }
        MqttSource::External(remote) => {
            let subscriber = Arc::new(Subscriber::start(&remote, line.ingest.clone())?);
            *line.subscriber.lock() = Some(subscriber.clone());
            Ok(Source::External(subscriber))
        }
    }
}

async fn bind(listen: Listen, what: &str) -> Result<TcpListener> {
    match TcpListener::bind(listen.addr).await {
        Err(e) if e.kind() == std::io::ErrorKind::AddrInUse && listen.or_any_port => {
            Ok(TcpListener::bind(SocketAddr::new(listen.addr.ip(), 0)).await?)
        }
        Err(e) => {
            let failure = Failure::failed(format!("cannot listen for {what} on {}: {e}", listen.addr));
            Err(failure
                .hint(format!("choose another address with --{what} HOST:PORT (port 0 is any free port)"))
                .into())
        }
        Ok(listener) => Ok(listener),
    }
}
