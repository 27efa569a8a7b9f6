//! `iotctl delete`: removes a definition.

use anyhow::Result;
use clap::Args;
use iot_schemas::catalog::Kind;

use super::describe::KindArg;
use crate::args::ServerArgs;
use crate::client::Client;
use crate::output;

/// Arguments of `delete`.
#[derive(Debug, Args)]
pub struct DeleteArgs {
    /// What it is.
    #[arg(value_enum)]
    pub kind: KindArg,
    /// Its name.
    pub name: String,
    /// The server.
    #[command(flatten)]
    pub server: ServerArgs,
}

/// Runs the command.
pub async fn run(args: DeleteArgs) -> Result<()> {
    let kind: Kind = args.kind.into();
    Client::new(&args.server)?.delete(kind, &args.name).await?;
    output::line(format_args!("{kind}/{} deleted", args.name))
}
