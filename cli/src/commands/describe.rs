//! `iotctl describe`: everything about one definition, or one device.

use anyhow::Result;
use clap::{Args, ValueEnum};
use iot_schemas::catalog::Kind;
use serde_json::Value;

use crate::args::ServerArgs;
use crate::client::Client;
use crate::output;

/// Arguments of `describe`.
#[derive(Debug, Args)]
pub struct DescribeArgs {
    /// What it is.
    #[arg(value_enum)]
    pub kind: KindArg,
    /// Its name.
    pub name: String,
    /// How to print it.
    #[arg(long, value_enum, default_value_t)]
    pub format: TreeFormat,
    /// The server.
    #[command(flatten)]
    pub server: ServerArgs,
}

/// What can be defined.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum KindArg {
    /// A table of raw events.
    #[value(alias = "streams")]
    Stream,
    /// A windowed aggregate.
    #[value(alias = "views")]
    View,
    /// An alert condition.
    #[value(alias = "rules")]
    Rule,
    /// A device, declared or not.
    #[value(alias = "devices")]
    Device,
}

impl From<KindArg> for Kind {
    fn from(kind: KindArg) -> Self {
        match kind {
            KindArg::Stream => Self::Stream,
            KindArg::View => Self::View,
            KindArg::Rule => Self::Rule,
            KindArg::Device => Self::Device,
        }
    }
}

/// How one nested thing is printed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub enum TreeFormat {
    /// Indented lines.
    #[default]
    Text,
    /// JSON.
    Json,
}

/// Runs the command.
pub async fn run(args: DescribeArgs) -> Result<()> {
    let value = Client::new(&args.server)?.describe(args.kind.into(), &args.name).await?;
    print(&value, args.format)
}

/// Prints one nested thing.
pub(super) fn print(value: &Value, format: TreeFormat) -> Result<()> {
    match format {
        TreeFormat::Text => output::bytes(output::tree(value).as_bytes()),
        TreeFormat::Json => output::line(serde_json::to_string_pretty(value)?),
    }
}
