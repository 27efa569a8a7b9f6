//! `iotctl get`: lists.

use anyhow::Result;
use clap::{Args, ValueEnum};

use crate::args::ServerArgs;
use crate::client::Client;
use crate::exit::Failure;
use crate::output::{ListFormat, Rows};

/// The list of all views, as the server calls it.
const ALL_VIEWS: &str = "all-views";

/// Arguments of `get`.
#[derive(Debug, Args)]
pub struct GetArgs {
    /// What to list.
    #[arg(value_enum)]
    pub what: What,
    /// With `views`: also those that are kept without being asked for, one per stream (`STREAM_last`).
    #[arg(long)]
    pub all: bool,
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
    /// The devices that have been seen or declared.
    #[value(alias = "device")]
    Devices,
    /// The batch runs.
    #[value(alias = "batch")]
    Batches,
}

/// Runs the command.
pub async fn run(args: GetArgs) -> Result<()> {
    if args.all && args.what != What::Views {
        return Err(Failure::usage("--all is for `iotctl get views`; the other lists are whole").into());
    }
    let what = if args.all { ALL_VIEWS } else { args.what.path() };
    print_list(what, args.format, &args.server).await
}

/// Lists one kind of thing.
pub(super) async fn print(what: What, format: ListFormat, server: &ServerArgs) -> Result<()> {
    print_list(what.path(), format, server).await
}

async fn print_list(what: &str, format: ListFormat, server: &ServerArgs) -> Result<()> {
    let rows = Client::new(server)?.list(what).await?;
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
