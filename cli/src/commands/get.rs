//! `iotctl get`: lists.

use anyhow::Result;
use clap::{Args, ValueEnum};

use crate::args::ServerArgs;
use crate::client::Client;
use crate::output::{ListFormat, Rows};

/// Arguments of `get`.
#[derive(Debug, Args)]
pub struct GetArgs {
    /// What to list.
    #[arg(value_enum)]
    pub what: What,
    /// How to print it.
    #[arg(long, value_enum, default_value_t)]
    pub format: ListFormat,
    /// The server.
    #[command(flatten)]
    pub server: ServerArgs,
}

/// What can be listed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum What {
    /// The tables of raw events.
    #[value(alias = "stream")]
    Streams,
    /// The windowed aggregates.
    #[value(alias = "view")]
    Views,
    /// The alert conditions.
    #[value(alias = "rule")]
    Rules,
    /// The devices that have sent something.
    #[value(alias = "device")]
    Devices,
    /// The batch runs.
    #[value(alias = "batch")]
    Batches,
}

/// Runs the command.
pub async fn run(args: GetArgs) -> Result<()> {
    print(args.what, args.format, &args.server).await
}

/// Lists one kind of thing.
pub(super) async fn print(what: What, format: ListFormat, server: &ServerArgs) -> Result<()> {
    let rows = Client::new(server)?.list(what.path()).await?;
    let rows = Rows::new(rows)
        .first(&["name", "device_id", "view", "generation", "kind", "on"])
        .hidden(&["text", "sql"]);
    rows.print(format)
}

impl What {
    fn path(self) -> &'static str {
        match self {
            Self::Streams => "streams",
            Self::Views => "views",
            Self::Rules => "rules",
            Self::Devices => "devices",
            Self::Batches => "batches",
        }
    }
}
