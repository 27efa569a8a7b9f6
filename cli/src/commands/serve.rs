//! `iotctl serve`: the services, until they are told to stop.

use std::net::SocketAddr;
use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::{Args, ValueEnum};
use iot_ingest::IngestConfig;
use iot_schemas::clock::Clock;
use serde::Deserialize;
use tokio::signal::unix::{SignalKind, signal};

use crate::exit::Failure;
use crate::line::server::{Listen, MqttSource, Server};
use crate::line::{Line, LineConfig};
use crate::output;

/// Where the services listen unless told otherwise.
pub const DEFAULT_MQTT: &str = "127.0.0.1:1883";
/// Where HTTP is served unless told otherwise.
pub const DEFAULT_HTTP: &str = "127.0.0.1:8080";

/// Arguments of `serve`.
#[derive(Debug, Args)]
pub struct ServeArgs {
    /// The services to run. All of them share this process for now, so only `broker` and `batch` can be left out.
    #[arg(long, env = "IOTCTL_ROLES", value_delimiter = ',', value_name = "ROLE,...")]
    roles: Vec<Role>,
    /// Settings (YAML); flags win over it.
    #[arg(long, env = "IOTCTL_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,
    /// Where the log and, unless --store says otherwise, the tables are kept [default: ./data].
    #[arg(long, env = "IOTCTL_DATA_DIR", value_name = "DIR")]
    data_dir: Option<PathBuf>,
    /// Where the tables are kept: a directory or a file:// URL.
    #[arg(long, env = "IOTCTL_STORE", value_name = "URL")]
    store: Option<String>,
    /// An external broker to subscribe to, instead of the embedded one: mqtt://[USER:PASSWORD@]HOST:PORT.
    #[arg(long, env = "IOTCTL_BROKER", value_name = "URL", hide_env_values = true)]
    broker: Option<String>,
    /// The catalog to apply at start: a YAML file or a directory of them.
    #[arg(long, env = "IOTCTL_CATALOG", value_name = "FILE|DIR")]
    catalog: Option<PathBuf>,
    /// Where the embedded broker listens [default: 127.0.0.1:1883].
    #[arg(long, env = "IOTCTL_MQTT", value_name = "ADDR")]
    mqtt: Option<SocketAddr>,
    /// Where HTTP is served [default: 127.0.0.1:8080].
    #[arg(long, env = "IOTCTL_HTTP", value_name = "ADDR")]
    http: Option<SocketAddr>,
    /// Listen on addresses that others can reach, although nobody has to authenticate.
    #[arg(long)]
    insecure: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Role {
    Broker,
    Ingest,
    Speed,
    Batch,
    Serving,
}

/// The configuration file.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct ServeConfig {
    data_dir: Option<PathBuf>,
    store: Option<String>,
    broker: Option<BrokerConfig>,
    catalog: Option<PathBuf>,
    mqtt: Option<SocketAddr>,
    http: Option<SocketAddr>,
    ingest: IngestConfig,
}

/// An external broker.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct BrokerConfig {
    url: String,
    #[serde(default)]
    client_id: Option<String>,
}

/// Runs until SIGINT or SIGTERM.
pub async fn run(args: ServeArgs) -> Result<()> {
    let config = read_config(args.config.as_deref())?;
    let clock = Clock::system();
    let line_config = LineConfig {
        store: args.store.clone().or(config.store.clone()),
        ingest: config.ingest.clone(),
        scheduled_batches: args.roles.is_empty() || args.roles.contains(&Role::Batch),
        ..LineConfig::new(args.data_dir.clone().or(config.data_dir.clone()).unwrap_or_else(|| "data".into()))
    };
    let http = args.http.or(config.http).map_or_else(|| DEFAULT_HTTP.parse(), Ok)?;
    let mqtt = mqtt_source(&args, &config)?;
    check_reach(&args, http, &mqtt)?;
    let line = Line::open(line_config, clock.clone()).await?;
    if let Some(catalog) = args.catalog.or(config.catalog) {
        super::documents::apply_locally(&line, &catalog).await?;
    }
    let server = Server::start(line, Listen { addr: http, or_any_port: false }, mqtt, clock).await?;
    for line in server.listening() {
        output::line(&line)?;
    }
    output::line("ready")?;
    wait_for_signal().await?;
    server.stop().await
}

fn read_config(path: Option<&std::path::Path>) -> Result<ServeConfig> {
    let Some(path) = path else { return Ok(ServeConfig::default()) };
    let wrong = |why: String| Failure::bad_configuration(format!("{}: {why}", path.display()));
    let text = std::fs::read_to_string(path).map_err(|e| wrong(e.to_string()))?;
    Ok(serde_saphyr::from_str(&text).map_err(|e| wrong(e.to_string()))?)
}

fn mqtt_source(args: &ServeArgs, config: &ServeConfig) -> Result<MqttSource> {
    check_roles(&args.roles)?;
    let node = &config.ingest.node;
    let default_id = format!("iot-ingest-{node}");
    let external = match (&args.broker, &config.broker) {
        (Some(url), _) => Some((url.clone(), default_id)),
        (None, Some(broker)) => Some((broker.url.clone(), broker.client_id.clone().unwrap_or(default_id))),
        (None, None) => None,
    };
    if let Some((url, client_id)) = external {
        return Ok(MqttSource::External { url, client_id });
    }
    if !args.roles.is_empty() && !args.roles.contains(&Role::Broker) {
        let failure = Failure::usage("without the role `broker` an external broker is needed");
        return Err(failure.hint("name it with --broker mqtt://HOST:PORT").into());
    }
    let addr = args.mqtt.or(config.mqtt).map_or_else(|| DEFAULT_MQTT.parse(), Ok)?;
    Ok(MqttSource::Embedded(Listen { addr, or_any_port: false }))
}

fn check_roles(roles: &[Role]) -> Result<()> {
    let needed = [Role::Ingest, Role::Speed, Role::Serving];
    if roles.is_empty() || needed.iter().all(|role| roles.contains(role)) {
        return Ok(());
    }
    let failure =
        Failure::usage("the roles ingest, speed and serving run in one process and cannot be parted yet");
    Err(failure.hint("leave --roles out, or name all three").into())
}

/// Without authentication nobody else on the network may reach us.
fn check_reach(args: &ServeArgs, http: SocketAddr, mqtt: &MqttSource) -> Result<()> {
    let mut open = vec![http];
    if let MqttSource::Embedded(listen) = mqtt {
        open.push(listen.addr);
    }
    match open.iter().find(|addr| !addr.ip().is_loopback()) {
        Some(addr) if !args.insecure => {
            let failure = Failure::bad_configuration(format!(
                "{addr} can be reached from other machines, and nobody would have to authenticate"
            ));
            Err(failure.hint("listen on 127.0.0.1, or say --insecure").into())
        }
        _ => Ok(()),
    }
}

/// Waits until the process is told to end.
pub(super) async fn wait_for_signal() -> Result<()> {
    let mut terminate = signal(SignalKind::terminate()).context("waiting for SIGTERM")?;
    tokio::select! {
        interrupted = tokio::signal::ctrl_c() => Ok(interrupted?),
        _ = terminate.recv() => Ok(()),
    }
}
