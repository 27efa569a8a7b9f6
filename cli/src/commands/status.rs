//! `iotctl status`: the health and the counters of a server.

use anyhow::Result;
use clap::Args;

use super::describe::{self, TreeFormat};
use crate::args::ServerArgs;
use crate::client::Client;

/// Arguments of `status`.
#[derive(Debug, Args)]
pub struct StatusArgs {
    /// How to print it.
    #[arg(long, value_enum, default_value_t)]
    pub format: TreeFormat,
    /// The server.
    #[command(flatten)]
    pub server: ServerArgs,
}

/// Runs the command.
pub async fn run(args: StatusArgs) -> Result<()> {
    let status = Client::new(&args.server)?.status().await?;
    describe::print(&status, args.format)
}
