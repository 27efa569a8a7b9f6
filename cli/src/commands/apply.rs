//! `iotctl apply`: puts definitions in force.

use std::path::PathBuf;

use anyhow::Result;
use clap::Args;
use iot_schemas::control::{Applied, Change};

use super::documents;
use crate::args::ServerArgs;
use crate::client::Client;
use crate::exit::Failure;
use crate::output;

/// Arguments of `apply`.
#[derive(Debug, Args)]
pub struct ApplyArgs {
    /// A file, a directory of `.yaml` files, or `-` for stdin; may be given more than once.
    #[arg(short, long = "file", value_name = "FILE|DIR", required = true)]
    pub files: Vec<PathBuf>,
    /// Only say what would be done.
    #[arg(long)]
    pub dry_run: bool,
    /// The server.
    #[command(flatten)]
    pub server: ServerArgs,
}

/// Runs the command.
pub async fn run(args: ApplyArgs) -> Result<()> {
    print(&send(&args.files, args.dry_run, &args.server).await?)
}

/// Sends the files' documents to the server, after a check that they parse.
pub(super) async fn send(files: &[PathBuf], dry_run: bool, server: &ServerArgs) -> Result<Vec<Applied>> {
    let files = documents::read(files)?;
    if files.iter().all(|file| file.documents.is_empty()) {
        return Err(Failure::bad_configuration("there is no document in the given files")
            .hint("a document begins with `kind: stream`, `kind: view`, `kind: rule` or `kind: device`")
            .into());
    }
    let names: Vec<&str> = files.iter().map(|file| file.name.as_str()).collect();
    Client::new(server)?.apply(documents::join(&files), &names.join(", "), dry_run).await
}

/// One line per definition: `view/climate_1m created`.
pub(super) fn print(applied: &[Applied]) -> Result<()> {
    for one in applied {
        output::line(format_args!("{}/{} {}", one.kind, one.name, word(one.change)))?;
    }
    Ok(())
}

fn word(change: Change) -> &'static str {
    match change {
        Change::Created => "created",
        Change::Changed => "changed",
        Change::Unchanged => "unchanged",
        Change::Deleted => "deleted",
    }
}
