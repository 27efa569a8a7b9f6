//! What can be typed: the commands and the groups of flags that several of them share.
//!
//! Help, completions and the `IOTCTL_*` variables all come from these definitions.

use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};
use iot_ingest::source::address::BrokerUrl;
use iot_ingest::source::remote::Remote;
use iot_ingest::source::secret::Secret;
use iot_ingest::source::tls::ClientTls;

use crate::commands::{
    alerts, apply, batch, completions, dead, delete, demo, describe, diff, get, late, publish, query, replay,
    schema, serve, simulate, status, tap, token, user, validate, verify,
};
use crate::exit::Failure;
use crate::line::Location;

/// Where a server listens unless told otherwise.
pub const DEFAULT_URL: &str = "http://127.0.0.1:8080";
/// Where a broker listens unless told otherwise.
pub const DEFAULT_MQTT: &str = "127.0.0.1:1883";

/// Streams, views and alerts over sensor data: one SQL text for the past and the present.
#[derive(Debug, Parser)]
#[command(name = "iotctl", version, propagate_version = true, arg_required_else_help = true)]
#[command(after_help = "Begin with `iotctl demo`, which needs nothing else.")]
pub struct Cli {
    /// What is logged to stderr: a level, or directives such as `info,rumqttc=debug`.
    #[arg(long, global = true, env = "IOTCTL_LOG", value_name = "FILTER", hide_env_values = true)]
    pub log: Option<String>,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Everything in one process, with a simulated fleet: the way to see what this is.
    Demo(demo::DemoArgs),
    /// Run the services.
    Serve(Box<serve::ServeArgs>),
    /// Put the definitions of streams, views, rules and devices in force.
    Apply(apply::ApplyArgs),
    /// Show what `apply` would change.
    Diff(diff::DiffArgs),
    /// List streams, views, rules, devices or batches.
    Get(get::GetArgs),
    /// Show everything about one stream, view, rule or device.
    Describe(describe::DescribeArgs),
    /// Remove a definition; its data stays.
    Delete(delete::DeleteArgs),
    /// Run SQL over views, streams and alerts.
    Query(query::QueryArgs),
    /// Run batch jobs by hand.
    Batch(batch::BatchArgs),
    /// Recompute views from the raw events and compare.
    Verify(verify::VerifyArgs),
    /// Look at alerts.
    Alerts(alerts::AlertsArgs),
    /// Look at the versions of streams' schemas, and at what a definition would change.
    Schema(schema::SchemaArgs),
    /// Look at messages that could not be decoded, replay or drop them.
    Dead(dead::DeadArgs),
    /// Look at events that came late, or from too far in the future.
    Late(late::LateArgs),
    /// Watch a stage of the line: the rows of a view as they change, or late events.
    Tap(tap::TapArgs),
    /// Send one MQTT message.
    Publish(publish::PublishArgs),
    /// Send the traffic of a simulated fleet.
    Simulate(simulate::SimulateArgs),
    /// Send a CSV, JSON lines or Parquet file as MQTT traffic, or a stream's history through rules that came later.
    Replay(Box<replay::ReplayArgs>),
    /// Show the health and the counters of a server.
    Status(status::StatusArgs),
    /// Who may log in to the embedded broker.
    User(user::UserArgs),
    /// Who may use HTTP.
    Token(token::TokenArgs),
    /// Check catalog files without a server.
    Validate(validate::ValidateArgs),
    /// Print the completions of a shell.
    Completions(completions::CompletionsArgs),
}

/// How to reach a server.
#[derive(Debug, Clone, Default, Args)]
pub struct ServerArgs {
    /// The server [default: http://127.0.0.1:8080].
    #[arg(long, env = "IOTCTL_URL", value_name = "URL")]
    pub url: Option<String>,
    /// The token that the server asks for.
    #[arg(
        long,
        env = "IOTCTL_TOKEN",
        value_name = "TOKEN",
        hide_env_values = true,
        conflicts_with = "token_file"
    )]
    pub token: Option<Secret>,
    /// A file whose first line is that token: other users of a machine can read command lines.
    #[arg(long, env = "IOTCTL_TOKEN_FILE", value_name = "FILE")]
    pub token_file: Option<PathBuf>,
}

impl ServerArgs {
    /// The server's address, given or default.
    pub fn address(&self) -> &str {
        self.url.as_deref().unwrap_or(DEFAULT_URL)
    }

    /// The token, wherever it stands.
    pub fn token(&self) -> anyhow::Result<Option<Secret>> {
        match &self.token_file {
            Some(file) => Ok(Some(Secret::from_file(file)?)),
            None => Ok(self.token.clone()),
        }
    }
}

/// Where data lies, for commands that can read it without a server.
#[derive(Debug, Clone, Default, Args)]
pub struct LocationArgs {
    /// Read this server's data directory, without a server.
    #[arg(long, env = "IOTCTL_DATA_DIR", value_name = "DIR")]
    pub data_dir: Option<PathBuf>,
    /// Read this store, without a server.
    #[arg(long, env = "IOTCTL_STORE", value_name = "URL")]
    pub store: Option<String>,
}

impl LocationArgs {
    /// Where to read without a server: where the user named a place and no server.
    pub fn offline(&self, server: &ServerArgs) -> Option<Location> {
        let named = self.data_dir.is_some() || self.store.is_some();
        (named && server.url.is_none())
            .then(|| Location { data_dir: self.data_dir.clone(), store: self.store.clone() })
    }
}

/// How to reach an MQTT broker.
#[derive(Debug, Clone, Args)]
pub struct MqttArgs {
    /// The broker: `HOST:PORT`, `mqtt://[USER[:PASSWORD]@]HOST:PORT` or `mqtts://...`.
    #[arg(long, env = "IOTCTL_MQTT", value_name = "ADDR", default_value = DEFAULT_MQTT, hide_env_values = true)]
    pub mqtt: BrokerAddress,
    /// The user to log in as.
    #[arg(long, env = "IOTCTL_MQTT_USER", value_name = "NAME")]
    pub mqtt_user: Option<String>,
    /// A file whose first line is the password; IOTCTL_MQTT_PASSWORD holds the password itself.
    #[arg(long, env = "IOTCTL_MQTT_PASSWORD_FILE", value_name = "FILE")]
    pub mqtt_password_file: Option<PathBuf>,
    // For the environment: other users of a machine can read command lines.
    #[arg(long, env = "IOTCTL_MQTT_PASSWORD", hide = true, hide_env_values = true)]
    mqtt_password: Option<Secret>,
    /// The authorities that may have signed the broker's certificate (PEM) [default: those of the system].
    #[arg(long, env = "IOTCTL_MQTT_CA", value_name = "FILE")]
    pub mqtt_ca: Option<PathBuf>,
    /// Our client certificate (PEM).
    #[arg(long, env = "IOTCTL_MQTT_CERT", value_name = "FILE", requires = "mqtt_key")]
    pub mqtt_cert: Option<PathBuf>,
    /// The private key of our client certificate (PEM).
    #[arg(long, env = "IOTCTL_MQTT_KEY", value_name = "FILE", requires = "mqtt_cert")]
    pub mqtt_key: Option<PathBuf>,
}

impl MqttArgs {
    /// The broker, and how to get in.
    pub fn remote(&self, client_id: impl Into<String>) -> anyhow::Result<Remote> {
        let password = match &self.mqtt_password_file {
            Some(file) => Some(Secret::from_file(file)?),
            None => self.mqtt_password.clone(),
        };
        let tls = ClientTls {
            ca: self.mqtt_ca.clone(),
            certificate: self.mqtt_cert.clone(),
            key: self.mqtt_key.clone(),
        };
        let user = self.mqtt_user.clone();
        Ok(Remote { user, password, tls, ..Remote::new(self.mqtt.url()?, client_id) })
    }
}

/// A broker's address as it was typed. It is looked at later, because clap would print a wrong one, with the
/// password in it.
#[derive(Debug, Clone)]
pub struct BrokerAddress(Result<BrokerUrl, String>);

impl BrokerAddress {
    /// The address, if it is one.
    pub fn url(&self) -> Result<BrokerUrl, Failure> {
        self.0.clone().map_err(Failure::usage)
    }
}

impl FromStr for BrokerAddress {
    type Err = std::convert::Infallible;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Ok(Self(text.parse().map_err(|e: iot_schemas::Error| e.to_string())))
    }
}

/// Which part of a view answers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub enum Layer {
    /// Batch and speed state together: the whole truth.
    #[default]
    Merged,
    /// Only what batch runs have covered.
    Batch,
    /// Only what came after the last batch run.
    Speed,
}

impl Layer {
    /// The name that the server knows it by.
    pub fn name(self) -> &'static str {
        match self {
            Self::Merged => "merged",
            Self::Batch => "batch",
            Self::Speed => "speed",
        }
    }
}

/// A length of time as people write it: `500ms`, `2s`, `1m 30s`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Span(pub Duration);

impl FromStr for Span {
    type Err = Failure;

    fn from_str(text: &str) -> Result<Self, Failure> {
        humantime::parse_duration(text).map(Self).map_err(|error| {
            Failure::usage(format!("`{text}` is no duration ({error}); write 500ms, 2s, 5m"))
        })
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    fn parse(line: &str) -> Result<Cli, clap::Error> {
        Cli::try_parse_from(line.split_whitespace())
    }

    #[test]
    fn the_definitions_are_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn the_lines_of_the_manual_parse() {
        for line in [
            "iotctl apply -f catalog.yaml",
            "iotctl get streams",
            "iotctl describe view climate_1m --url http://h:1",
            "iotctl delete rule overheating",
            "iotctl diff -f dir",
            "iotctl query --format csv -o out.csv --layer speed --watch 2s --meta",
            "iotctl query -f q.sql --data-dir d",
            "iotctl batch run --view a --view b --full --dry-run",
            "iotctl batch status",
            "iotctl verify climate_1m",
            "iotctl alerts list --state firing",
            "iotctl alerts show abc",
            "iotctl alerts watch",
            "iotctl schema list",
            "iotctl schema list readings --format json",
            "iotctl schema show readings --version 2",
            "iotctl schema check readings.yaml catalog.d",
            "iotctl dead list --limit 5",
            "iotctl dead list --status open --stream readings --reason number",
            "iotctl dead show n1:7",
            "iotctl dead show n1:7/readings --raw",
            "iotctl dead replay n1:7 n1:8/readings --note fixed",
            "iotctl dead replay --stream readings --reason number --where _seq>5",
            "iotctl dead drop n1:7 --reason nonsense",
            "iotctl serve --dead-retention 7d",
            "iotctl tap view climate_1m --device-id a --closed --limit 5 --for 2s",
            "iotctl tap late --stream readings --limit 1",
            "iotctl late list --stream readings --device a --limit 5",
            "iotctl publish devices/a/telemetry {} --qos 1 --retain",
            "iotctl simulate --devices 5 --rate 100 --for 2s --seed 1",
            "iotctl replay f.csv --speed 60 --topic devices/{name}/telemetry --limit 5 --shuffle-late 0.2 --seed 3",
            "iotctl status --token t",
            "iotctl query --token-file token",
            "iotctl user add oven-1 --file users",
            "iotctl token create grafana --scope read --file tokens",
            "iotctl token list --file tokens",
            "iotctl serve --http 0.0.0.0:8080 --tokens tokens --token-on-loopback",
            "iotctl publish a b --mqtt mqtts://h --mqtt-ca ca.pem --mqtt-cert c.pem --mqtt-key k.pem",
            "iotctl serve --mqtts 0.0.0.0:8883 --tls-cert c --tls-key k --users users --insecure",
            "iotctl validate a.yaml b.yaml",
            "iotctl completions zsh",
            "iotctl demo --devices 12 --for 60s --ephemeral",
        ] {
            assert!(parse(line).is_ok(), "{line}: {}", parse(line).expect_err("an error"));
        }
    }

    #[test]
    fn a_wrong_duration_says_how_to_write_one() {
        let error = parse("iotctl query --watch often").expect_err("no duration").to_string();
        assert!(error.contains("500ms"), "{error}");
    }

    #[test]
    fn nothing_prints_a_password() {
        let line = "iotctl publish a b --mqtt mqtt://u:hunter2@h:99999 --mqtt-password hunter2";
        let status = parse("iotctl status --token hunter2").expect("a line");
        assert!(!format!("{status:?}").contains("hunter2"), "{status:?}");
        let cli = parse(line).expect("it is looked at later");
        assert!(!format!("{cli:?}").contains("hunter2"), "{cli:?}");
        let Command::Publish(publish) = cli.command else { panic!("not publish") };
        let error = publish.mqtt.remote("id").expect_err("no port").to_string();
        assert!(error.contains("port") && !error.contains("hunter2"), "{error}");
    }

    #[test]
    fn a_named_place_is_read_without_a_server_unless_one_is_named_too() {
        let place = LocationArgs { data_dir: Some("d".into()), store: None };
        assert!(place.offline(&ServerArgs::default()).is_some());
        assert!(place.offline(&ServerArgs { url: Some("h:1".into()), ..ServerArgs::default() }).is_none());
        assert!(LocationArgs::default().offline(&ServerArgs::default()).is_none());
    }

    #[test]
    fn a_token_can_stand_in_a_file_and_there_is_only_one() {
        let dir = tempfile::tempdir().expect("a directory");
        let file = dir.path().join("token");
        std::fs::write(&file, "hunter2\n").expect("written");
        let server = ServerArgs { token_file: Some(file.clone()), ..ServerArgs::default() };
        assert_eq!(server.token().expect("a token").expect("a token").expose(), "hunter2");
        std::fs::remove_file(&file).expect("removed");
        assert!(server.token().expect_err("no file").to_string().contains("token"));
        let both = parse("iotctl status --token hunter2 --token-file f").expect_err("two tokens");
        assert!(!both.to_string().contains("hunter2"), "{both}");
    }
}
