//! `iotctl batch`: batch jobs by hand, on a server or straight on the store.

use anyhow::Result;
use clap::{Args, Subcommand};
use iot_schemas::batch::BatchRequest;

use super::get::{self, What};
use super::reports;
use crate::args::{LocationArgs, ServerArgs};
use crate::client::Client;
use crate::line;
use crate::output::ListFormat;

/// Arguments of `batch`.
#[derive(Debug, Args)]
pub struct BatchArgs {
    /// What to do.
    #[command(subcommand)]
    pub command: BatchCommand,
}

/// The sub-commands.
#[derive(Debug, Subcommand)]
pub enum BatchCommand {
    /// Cover everything up to the newest sealed event.
    Run(RunArgs),
    /// List the batch runs.
    Status(StatusArgs),
}

/// Arguments of `batch run`.
#[derive(Debug, Args)]
pub struct RunArgs {
    /// The view to run, may be given more than once; all views by default.
    #[arg(long = "view", value_name = "VIEW")]
    pub views: Vec<String>,
    /// Recompute from the first event instead of from the last frontier.
    #[arg(long)]
    pub full: bool,
    /// Only say what would be done.
    #[arg(long)]
    pub dry_run: bool,
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

/// Arguments of `batch status`.
#[derive(Debug, Args)]
pub struct StatusArgs {
    /// How to print the runs.
    #[arg(long, value_enum, default_value_t)]
    pub format: ListFormat,
    /// The server.
    #[command(flatten)]
    pub server: ServerArgs,
}

/// Runs the command.
pub async fn run(args: BatchArgs) -> Result<()> {
    match args.command {
        BatchCommand::Run(args) => run_jobs(args).await,
        BatchCommand::Status(args) => get::print(What::Batches, args.format, &args.server).await,
    }
}

async fn run_jobs(args: RunArgs) -> Result<()> {
    let request = BatchRequest { views: args.views, full: args.full, dry_run: args.dry_run };
    let reports = match args.location.offline(&args.server) {
        Some(location) => line::offline_batch(&location, request).await?,
        None => Client::new(&args.server)?.batch_run(&request).await?,
    };
    reports::print_batch(&reports, args.format)
}
