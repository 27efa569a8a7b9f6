//! `iotctl diff`: what `apply` would change.

use std::path::PathBuf;

use anyhow::Result;
use clap::Args;
use iot_schemas::control::Change;

use super::apply;
use crate::args::ServerArgs;
use crate::exit::Failure;

/// Arguments of `diff`.
#[derive(Debug, Args)]
pub struct DiffArgs {
    /// A file, a directory of `.yaml` files, or `-` for stdin; may be given more than once.
    #[arg(short, long = "file", value_name = "FILE|DIR", required = true)]
    pub files: Vec<PathBuf>,
    /// Exit with 1 if anything would change.
    #[arg(long)]
    pub exit_code: bool,
    /// The server.
    #[command(flatten)]
    pub server: ServerArgs,
}

/// Runs the command.
pub async fn run(args: DiffArgs) -> Result<()> {
    let applied = apply::send(&args.files, true, &args.server).await?;
    apply::print(&applied)?;
    let changes = applied.iter().filter(|one| one.change != Change::Unchanged).count();
    if args.exit_code && changes > 0 {
        return Err(Failure::failed(format!("{changes} definitions would change")).into());
    }
    Ok(())
}
