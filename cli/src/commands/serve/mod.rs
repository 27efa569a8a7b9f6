//! `iotctl serve`: the services, until they are told to stop.

mod mqtt;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::{Args, ValueEnum};
use iot_ingest::IngestConfig;
use iot_ingest::source::access::AccessConfig;
use iot_ingest::source::embedded::BrokerOptions;
use iot_ingest::source::tls::ServerTls;
use iot_schemas::catalog::duration_text;
use iot_schemas::clock::Clock;
use iot_schemas::table::{self, Faults, Patience};
use iot_serving::http::auth::HttpAccess;
use serde::Deserialize;
use tokio::signal::unix::{SignalKind, signal};

use self::mqtt::{BrokerConfig, MqttServerArgs};
use crate::args::Span;
use crate::exit::Failure;
use crate::line::server::{Listen, Server};
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
    /// How long one call to the store may take before it is made again [default: 30s].
    #[arg(long, env = "IOTCTL_STORE_TIMEOUT", value_name = "DURATION")]
    store_timeout: Option<Span>,
    /// A drill: which share of the calls to the store fails or hangs, as in `fail=0.2,hang=0.05,seed=1`.
    #[arg(long, env = "IOTCTL_STORE_FAULTS", value_name = "FAULTS", hide = true)]
    store_faults: Option<Faults>,
    /// The catalog to apply at start: a YAML file or a directory of them.
    #[arg(long, env = "IOTCTL_CATALOG", value_name = "FILE|DIR")]
    catalog: Option<PathBuf>,
    /// How long dead letters are kept after their message arrived [default: 30d].
    #[arg(long, env = "IOTCTL_DEAD_RETENTION", value_name = "DURATION")]
    dead_retention: Option<Span>,
    /// Where HTTP is served [default: 127.0.0.1:8080].
    #[arg(long, env = "IOTCTL_HTTP", value_name = "ADDR")]
    http: Option<SocketAddr>,
    /// Who may use HTTP: a file that `iotctl token create` writes. Requests from this machine need no token.
    #[arg(long, env = "IOTCTL_TOKENS", value_name = "FILE")]
    tokens: Option<PathBuf>,
    /// Requests from this machine need a token too: right behind a proxy, where all requests come from here.
    #[arg(long, env = "IOTCTL_TOKEN_ON_LOOPBACK")]
    token_on_loopback: bool,
    /// Listen on addresses that others can reach, although nobody has to authenticate.
    #[arg(long)]
    insecure: bool,
    /// Where messages come from.
    #[command(flatten)]
    mqtt: MqttServerArgs,
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
    /// How long one call to the store may take.
    #[serde(with = "duration_text")]
    store_timeout: Option<Duration>,
    catalog: Option<PathBuf>,
    http: Option<SocketAddr>,
    tokens_file: Option<PathBuf>,
    token_on_loopback: bool,
    ingest: IngestConfig,
    /// How long dead letters are kept.
    #[serde(with = "duration_text")]
    dead_retention: Option<Duration>,
    mqtt: Option<SocketAddr>,
    mqtts: Option<SocketAddr>,
    ws: Option<SocketAddr>,
    wss: Option<SocketAddr>,
    tls: Option<ServerTls>,
    access: AccessConfig,
    limits: BrokerOptions,
    broker: Option<BrokerConfig>,
}

/// Runs until SIGINT or SIGTERM.
pub async fn run(args: ServeArgs) -> Result<()> {
    let config = read_config(args.config.as_deref())?;
    let clock = Clock::system();
    let data_dir = args.data_dir.clone().or(config.data_dir.clone());
    let defaults = LineConfig::new(data_dir.unwrap_or_else(|| "data".into()));
    let line_config = LineConfig {
        store: args.store.clone().or(config.store.clone()),
        ingest: config.ingest.clone(),
        scheduled_batches: args.roles.is_empty() || args.roles.contains(&Role::Batch),
        dead_retention: args
            .dead_retention
            .map(|Span(keep)| keep)
            .or(config.dead_retention)
            .unwrap_or(defaults.dead_retention),
        ..defaults
    };
    let http = args.http.or(config.http).map_or_else(|| DEFAULT_HTTP.parse(), Ok)?;
    check_roles(&args.roles)?;
    let has_broker = args.roles.is_empty() || args.roles.contains(&Role::Broker);
    let mqtt = mqtt::source(&args.mqtt, &config, has_broker, args.insecure)?;
    let access = http_access(&args, &config)?;
    check_reach(&args, http, &access)?;
    install_store(&args, &config);
    let line = Line::open(line_config, clock.clone()).await?;
    if let Some(catalog) = args.catalog.or(config.catalog) {
        super::documents::apply_locally(&line, &catalog).await?;
    }
    let listen = Listen { addr: http, or_any_port: false };
    let server = Server::start(line, listen, access, mqtt, clock).await?;
    for line in server.listening() {
        output::line(&line)?;
    }
    output::line("ready")?;
    wait_for_signal().await?;
    server.stop().await
}

/// How patient this process is with its store.
fn install_store(args: &ServeArgs, config: &ServeConfig) {
    let given = args.store_timeout.map(|Span(timeout)| timeout).or(config.store_timeout);
    let patience = given.map(|deadline| Patience { deadline, ..Patience::default() });
    if let Some(faults) = &args.store_faults {
        tracing::warn!("a drill: calls to the store go wrong on purpose: {faults:?}");
    }
    table::install(patience.unwrap_or_default(), args.store_faults.clone());
}

fn read_config(path: Option<&std::path::Path>) -> Result<ServeConfig> {
    let Some(path) = path else { return Ok(ServeConfig::default()) };
    let wrong = |why: String| Failure::bad_configuration(format!("{}: {why}", path.display()));
    let text = std::fs::read_to_string(path).map_err(|e| wrong(e.to_string()))?;
    Ok(parse_config(&text).map_err(wrong)?)
}

/// The error names line and column but shows neither the line nor its neighbours, and no part of an address that may
/// be a password: it ends in logs.
fn parse_config(text: &str) -> Result<ServeConfig, String> {
    serde_saphyr::from_str(text).map_err(|e| without_credentials(&e.without_snippet().to_string()))
}

/// Replaces what stands between `://` and `@` in addresses.
fn without_credentials(text: &str) -> String {
    let mut parts = text.split("://");
    let mut shown = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        shown.push_str("://");
        // A password may hold any character, so all up to the last `@` goes.
        match part.rsplit_once('@') {
            Some((_, rest)) => shown.extend(["***@", rest]),
            None => shown.push_str(part),
        }
    }
    shown
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

fn http_access(args: &ServeArgs, config: &ServeConfig) -> Result<HttpAccess> {
    let Some(file) = args.tokens.as_ref().or(config.tokens_file.as_ref()) else {
        return Ok(HttpAccess::default());
    };
    let loopback_is_free = !(args.token_on_loopback || config.token_on_loopback);
    Ok(HttpAccess::tokens(file, loopback_is_free).map_err(|e| Failure::bad_configuration(e.to_string()))?)
}

/// Without authentication nobody else on the network may reach us. Of MQTT the broker takes care itself.
fn check_reach(args: &ServeArgs, http: SocketAddr, access: &HttpAccess) -> Result<()> {
    if http.ip().is_loopback() || args.insecure {
        return Ok(());
    }
    if access.is_guarded() {
        tracing::warn!("tokens cross the network in the clear on http {http}; put a proxy with TLS in front");
        return Ok(());
    }
    let failure = Failure::bad_configuration(format!(
        "{http} can be reached from other machines, and nobody would have to authenticate"
    ));
    Err(failure.hint("name tokens with --tokens, serve HTTP on 127.0.0.1, or say --insecure").into())
}

/// Waits until the process is told to end.
pub(super) async fn wait_for_signal() -> Result<()> {
    let mut terminate = signal(SignalKind::terminate()).context("waiting for SIGTERM")?;
    tokio::select! {
        interrupted = tokio::signal::ctrl_c() => Ok(interrupted?),
        _ = terminate.recv() => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wrong_configuration_is_located_but_no_secret_is_shown() {
        for (text, line) in [
            ("broker:\n  url: mqtt://iot:hunter2@h:1883\n  client: x\n", 3),
            ("broker: {url: 'mqtt://iot:hunter2@h:1883'}\nhttp: nowhere\n", 2),
            ("data_dir: d\nbroker: mqtt://iot:hunter2@h:1883\n", 2),
            ("data_dir: d\nhttp: mqtt://iot:hunter2@@h:1883\n", 2),
            ("broker:\n  url: mqtt://iot:hunter2@h:1883\n bad\n", 3),
        ] {
            let error = parse_config(text).expect_err("a mistake");
            assert!(!error.contains("hunter2"), "{error}");
            assert!(error.contains(&format!("line {line}")), "{text}: {error}");
        }
    }
}
