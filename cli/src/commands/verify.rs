//! `iotctl verify`: the proof that merged views equal a recomputation from raw events.

use anyhow::Result;
use clap::Args;

use super::reports;
use crate::args::{LocationArgs, ServerArgs};
use crate::client::Client;
use crate::line;
use crate::output::ListFormat;

/// Arguments of `verify`.
#[derive(Debug, Args)]
pub struct VerifyArgs {
    /// The view; all views by default.
    pub view: Option<String>,
    /// How to print the reports.
    #[arg(long, value_enum, default_value_t)]
    pub format: ListFormat,
    /// The server.
    #[command(flatten)]
    pub server: ServerArgs,
    /// Or the data, without a server.
    #[command(flatten)]
    pub location: LocationArgs,
}

/// Runs the command. Differences are a failure.
pub async fn run(args: VerifyArgs) -> Result<()> {
    let view = args.view.as_deref();
    let reports = match args.location.offline(&args.server) {
        Some(location) => line::offline_verify(&location, view).await?,
        None => Client::new(&args.server)?.verify(view).await?,
    };
    reports::print_verify(&reports, args.format)
}
