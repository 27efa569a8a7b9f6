//! `iotctl publish`: sends one message.

use std::io::Read;
use std::time::Duration;

use anyhow::{Context, Result};
use bytes::Bytes;
use clap::Args;

use crate::args::MqttArgs;
use crate::mqtt::{Message, Publisher, PublisherOptions};

/// How long the acknowledgement may take.
const FINISH_TIMEOUT: Duration = Duration::from_secs(30);

/// Arguments of `publish`.
#[derive(Debug, Args)]
pub struct PublishArgs {
    /// The topic.
    pub topic: String,
    /// The payload, `-` for stdin.
    pub payload: String,
    /// The quality of service.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u8).range(0..=2))]
    pub qos: u8,
    /// Whether the broker keeps the message for later subscribers.
    #[arg(long)]
    pub retain: bool,
    /// What the payload is, for streams whose format is `auto`: application/cbor, text/csv.
    #[arg(long, value_name = "TYPE")]
    pub content_type: Option<String>,
    /// An MQTT user property; may be given several times.
    #[arg(long = "property", value_name = "NAME=VALUE", value_parser = property)]
    pub properties: Vec<(String, String)>,
    /// The broker.
    #[command(flatten)]
    pub mqtt: MqttArgs,
}

/// Runs the command. It succeeds once the message is acknowledged.
pub async fn run(args: PublishArgs) -> Result<()> {
    let payload = payload(args.payload)?;
    let mut publisher = Publisher::connect(PublisherOptions::new(&args.mqtt)?).await?;
    let message = Message {
        topic: args.topic,
        payload,
        qos: args.qos,
        retain: args.retain,
        content_type: args.content_type,
        properties: args.properties,
    };
    publisher.publish(message).await?;
    publisher.finish(FINISH_TIMEOUT).await?;
    Ok(())
}

fn property(argument: &str) -> Result<(String, String), String> {
    let (name, value) = argument.split_once('=').ok_or("write NAME=VALUE")?;
    Ok((name.to_owned(), value.to_owned()))
}

fn payload(argument: String) -> Result<Bytes> {
    if argument != "-" {
        return Ok(argument.into());
    }
    let mut bytes = Vec::new();
    std::io::stdin().read_to_end(&mut bytes).context("cannot read the payload from stdin")?;
    Ok(bytes.into())
}
