//! `iotctl`: the command line, and the processes that it wires together from the layers.
//!
//! Read [`args`] for what can be typed, [`commands`] for what happens then (one file per command), and [`mod@line`]
//! for how the layers become one process.

pub mod args;
pub mod client;
pub mod commands;
pub mod exit;
pub mod line;
pub mod logging;
pub mod mqtt;
pub mod output;
pub mod replay;
pub mod simulate;

use std::process::ExitCode;

use clap::Parser;

use crate::exit::Code;

/// Parses the command line, runs the command and says how it went.
pub fn run() -> ExitCode {
    let cli = args::Cli::parse();
    logging::start(cli.log.as_deref());
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            output::error(&format!("cannot start the runtime: {error}"), None);
            return Code::Failed.into();
        }
    };
    match runtime.block_on(cli.command.run()) {
        Ok(()) => Code::Done.into(),
        Err(error) => exit::report(&error).into(),
    }
}
