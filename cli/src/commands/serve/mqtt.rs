//! Where a server's messages come from: the flags and settings of the embedded broker and of an external one.

use std::net::SocketAddr;
use std::path::PathBuf;

use anyhow::Result;
use clap::Args;
use clap::builder::RangedU64ValueParser;
use iot_ingest::source::access::Access;
use iot_ingest::source::embedded::{Door, Transport};
use iot_ingest::source::remote::{Distribution, MAX_CONNECTIONS, Remote};
use iot_ingest::source::secret::Secret;
use iot_ingest::source::tls::{ClientTls, ServerTls};
use serde::Deserialize;

use super::{DEFAULT_MQTT, ServeConfig};
use crate::args::BrokerAddress;
use crate::exit::Failure;
use crate::line::server::{Embedded, MqttSource};

/// The flags.
#[derive(Debug, Args)]
pub(super) struct MqttServerArgs {
    /// Where the embedded broker listens [default: 127.0.0.1:1883, unless it listens elsewhere only].
    #[arg(long, env = "IOTCTL_MQTT", value_name = "ADDR")]
    mqtt: Option<SocketAddr>,
    /// Where the embedded broker listens for MQTT over TLS.
    #[arg(long, env = "IOTCTL_MQTTS", value_name = "ADDR")]
    mqtts: Option<SocketAddr>,
    /// Where the embedded broker listens for MQTT over WebSocket, at the path /mqtt.
    #[arg(long, env = "IOTCTL_WS", value_name = "ADDR")]
    ws: Option<SocketAddr>,
    /// Where the embedded broker listens for MQTT over WebSocket over TLS, at the path /mqtt.
    #[arg(long, env = "IOTCTL_WSS", value_name = "ADDR")]
    wss: Option<SocketAddr>,
    /// The embedded broker's certificate and what leads from it to an authority (PEM).
    #[arg(long, env = "IOTCTL_TLS_CERT", value_name = "FILE", requires = "tls_key")]
    tls_cert: Option<PathBuf>,
    /// The private key of the embedded broker's certificate (PEM).
    #[arg(long, env = "IOTCTL_TLS_KEY", value_name = "FILE", requires = "tls_cert")]
    tls_key: Option<PathBuf>,
    /// The authorities that sign clients' certificates (PEM); clients must then show one.
    #[arg(long, env = "IOTCTL_TLS_CLIENT_CA", value_name = "FILE", requires = "tls_cert")]
    tls_client_ca: Option<PathBuf>,
    /// Who may log in to the embedded broker: a file that `iotctl user add` writes.
    #[arg(long, env = "IOTCTL_USERS", value_name = "FILE")]
    users: Option<PathBuf>,
    /// An external broker to subscribe to, instead of the embedded one: mqtt://HOST:PORT or mqtts://HOST:PORT.
    #[arg(long, env = "IOTCTL_BROKER", value_name = "URL", hide_env_values = true)]
    broker: Option<BrokerAddress>,
    /// How many connections to the external broker share the load, as `$share/iotctl/...` [default: 1].
    #[arg(long, env = "IOTCTL_BROKER_CONNECTIONS", value_name = "N", value_parser = connections())]
    broker_connections: Option<usize>,
    /// The user to log in as at the external broker.
    #[arg(long, env = "IOTCTL_BROKER_USER", value_name = "NAME")]
    broker_user: Option<String>,
    /// A file whose first line is that user's password; IOTCTL_BROKER_PASSWORD holds the password itself.
    #[arg(long, env = "IOTCTL_BROKER_PASSWORD_FILE", value_name = "FILE")]
    broker_password_file: Option<PathBuf>,
    // For the environment: other users of a machine can read command lines.
    #[arg(long, env = "IOTCTL_BROKER_PASSWORD", hide = true, hide_env_values = true)]
    broker_password: Option<Secret>,
    /// The authorities that may have signed the external broker's certificate (PEM) [default: those of the system].
    #[arg(long, env = "IOTCTL_BROKER_CA", value_name = "FILE")]
    broker_ca: Option<PathBuf>,
    /// Our certificate for the external broker (PEM).
    #[arg(long, env = "IOTCTL_BROKER_CERT", value_name = "FILE", requires = "broker_key")]
    broker_cert: Option<PathBuf>,
    /// The private key of that certificate (PEM).
    #[arg(long, env = "IOTCTL_BROKER_KEY", value_name = "FILE", requires = "broker_cert")]
    broker_key: Option<PathBuf>,
}

/// An external broker in the configuration file.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct BrokerConfig {
    url: BrokerText,
    #[serde(default)]
    client_id: Option<String>,
    /// How many connections share the load.
    #[serde(default)]
    connections: Option<usize>,
    /// How they share it.
    #[serde(default)]
    distribution: Distribution,
    /// The group of the shared subscription, for nodes that share the load.
    #[serde(default)]
    share: Option<String>,
    /// This node's part of the topics.
    #[serde(default)]
    topics: Vec<String>,
    #[serde(default)]
    user: Option<String>,
    #[serde(default)]
    password_file: Option<PathBuf>,
    #[serde(default)]
    tls: ClientTls,
}

/// An address in the configuration file.
#[derive(Debug, Clone, Deserialize)]
#[serde(from = "String")]
struct BrokerText(BrokerAddress);

impl From<String> for BrokerText {
    fn from(text: String) -> Self {
        let Ok(address) = text.parse();
        Self(address)
    }
}

fn connections() -> RangedU64ValueParser<usize> {
    RangedU64ValueParser::new().range(1..=MAX_CONNECTIONS as u64)
}

/// Where messages come from. Flags win over the file.
pub(super) fn source(
    args: &MqttServerArgs,
    config: &ServeConfig,
    has_broker: bool,
    insecure: bool,
) -> Result<MqttSource> {
    if args.broker.is_some() || config.broker.is_some() {
        return Ok(MqttSource::External(Box::new(external(
            args,
            config.broker.clone(),
            &config.ingest.node,
        )?)));
    }
    if args.broker_connections.is_some() {
        let failure = Failure::usage("--broker-connections is for an external broker, and none is named");
        return Err(failure.hint("name it with --broker mqtt://HOST:PORT").into());
    }
    if !has_broker {
        let failure = Failure::usage("without the role `broker` an external broker is needed");
        return Err(failure.hint("name it with --broker mqtt://HOST:PORT").into());
    }
    Ok(MqttSource::Embedded(Box::new(embedded(args, config, insecure)?)))
}

fn external(args: &MqttServerArgs, config: Option<BrokerConfig>, node: &str) -> Result<Remote> {
    let default_id = format!("iot-ingest-{node}");
    let mut remote = match (&args.broker, config) {
        // Another broker than that of the file: none of the file's secrets are sent to it.
        (Some(address), _) => Remote::new(address.url()?, default_id),
        (None, Some(config)) => Remote {
            user: config.user,
            password: config.password_file.as_deref().map(Secret::from_file).transpose()?,
            tls: config.tls,
            connections: config.connections.unwrap_or(1),
            distribution: config.distribution,
            share: config.share,
            topics: config.topics,
            ..Remote::new(config.url.0.url()?, config.client_id.unwrap_or(default_id))
        },
        (None, None) => return Err(Failure::usage("no broker is named").into()),
    };
    let password = match &args.broker_password_file {
        Some(file) => Some(Secret::from_file(file)?),
        None => args.broker_password.clone(),
    };
    remote.connections = args.broker_connections.unwrap_or(remote.connections);
    remote.user = args.broker_user.clone().or(remote.user);
    remote.password = password.or(remote.password);
    remote.tls.ca = args.broker_ca.clone().or(remote.tls.ca);
    if args.broker_cert.is_some() {
        (remote.tls.certificate, remote.tls.key) = (args.broker_cert.clone(), args.broker_key.clone());
    }
    Ok(remote)
}

fn embedded(args: &MqttServerArgs, config: &ServeConfig, insecure: bool) -> Result<Embedded> {
    let mut listen = Vec::new();
    for (transport, flag, setting) in [
        (Transport::Mqtt, args.mqtt, config.mqtt),
        (Transport::Mqtts, args.mqtts, config.mqtts),
        (Transport::Ws, args.ws, config.ws),
        (Transport::Wss, args.wss, config.wss),
    ] {
        listen.extend(flag.or(setting).map(|addr| (transport, addr)));
    }
    if listen.is_empty() {
        listen.push((Transport::Mqtt, DEFAULT_MQTT.parse()?));
    }
    let tls = match (&args.tls_cert, &args.tls_key) {
        (Some(certificate), Some(key)) => Some(ServerTls {
            certificate: certificate.clone(),
            key: key.clone(),
            client_ca: args.tls_client_ca.clone(),
            client_certificate: Default::default(),
        }),
        _ => config.tls.clone(),
    };
    let mut access = config.access.clone();
    access.users_file = args.users.clone().or(access.users_file);
    let certificates = tls.as_ref().is_some_and(|tls| tls.client_ca.is_some());
    let access = Access::open(access, certificates, insecure)
        .map_err(|e| Failure::bad_configuration(e.to_string()))?;
    check_reach(&listen, &access)?;
    Ok(Embedded { door: Door { listen, tls, access }, options: config.limits.clone(), or_any_port: false })
}

fn check_reach(listen: &[(Transport, SocketAddr)], access: &Access) -> Result<()> {
    let Some((transport, addr)) = listen.iter().find(|(_, addr)| !access.is_useful_on(*addr)) else {
        return Ok(());
    };
    let failure = Failure::bad_configuration(format!(
        "{} on {addr} can be reached from other machines, and nobody would have to authenticate",
        transport.name()
    ));
    Err(failure.hint("name users with --users, listen on 127.0.0.1, or say --insecure").into())
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        args: MqttServerArgs,
    }

    fn source_of(line: &str, config: &str) -> Result<MqttSource> {
        let line = Line::try_parse_from(["x"].into_iter().chain(line.split_whitespace())).expect("flags");
        source(&line.args, &serde_saphyr::from_str(config).expect("settings"), true, false)
    }

    fn listen_of(line: &str, config: &str) -> Vec<(Transport, u16)> {
        match source_of(line, config).expect("a source") {
            MqttSource::Embedded(broker) => {
                broker.door.listen.iter().map(|(transport, addr)| (*transport, addr.port())).collect()
            }
            MqttSource::External(_) => panic!("not embedded"),
        }
    }

    #[test]
    fn flags_win_and_the_default_listens_only_if_nothing_else_does() {
        assert_eq!(listen_of("", ""), [(Transport::Mqtt, 1883)]);
        assert_eq!(listen_of("", "ws: 127.0.0.1:9001"), [(Transport::Ws, 9001)]);
        let both = [(Transport::Mqtt, 1), (Transport::Ws, 2)];
        assert_eq!(listen_of("--mqtt 127.0.0.1:1 --ws 127.0.0.1:2", "ws: 127.0.0.1:9001"), both);
    }

    #[test]
    fn an_address_that_others_reach_needs_users() {
        let error = source_of("--mqtt 0.0.0.0:1883", "").expect_err("nobody authenticates");
        let failure = error.downcast_ref::<Failure>().expect("a failure");
        assert_eq!(failure.code, crate::exit::Code::BadConfiguration);
        assert!(source_of("--mqtt 0.0.0.0:1883", "access: {anonymous: anywhere}").is_ok());
    }

    #[test]
    fn a_secret_comes_from_a_file_and_is_not_shown() {
        let dir = tempfile::tempdir().expect("a directory");
        let file = dir.path().join("password");
        std::fs::write(&file, "hunter2\n").expect("written");
        let config = format!("broker: {{url: 'mqtts://h', user: u, password_file: {}}}", file.display());
        let MqttSource::External(remote) = source_of("", &config).expect("a source") else {
            panic!("not external")
        };
        assert_eq!(remote.credentials(), Some(("u", "hunter2")));
        assert!(!format!("{remote:?}").contains("hunter2"), "{remote:?}");
        let MqttSource::External(other) = source_of("--broker mqtt://other", &config).expect("a source")
        else {
            panic!("not external")
        };
        assert_eq!(other.credentials(), None, "another broker does not get the password");
    }
}
