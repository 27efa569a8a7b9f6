//! All printing: results to stdout or a file, notices and progress to stderr, and nowhere else.
//!
//! Results are complete bytes by the time they get here, so that a reader of stdout never sees half a document
//! because an error came in between.

mod format;
mod listing;
mod progress;
mod table;
mod tree;

use std::fmt;
use std::io::{self, IsTerminal, Write};
use std::path::Path;

use anyhow::{Context, Result};

pub use format::{Format, encode};
pub use listing::{ListFormat, Rows};
pub use progress::Progress;
pub use table::Table;
pub use tree::tree;

/// Whoever read our stdout has gone away. Not an error, but a reason to stop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StdoutClosed;

impl fmt::Display for StdoutClosed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the reader of stdout has gone away")
    }
}

impl std::error::Error for StdoutClosed {}

/// Writes a result to stdout, at once.
pub fn bytes(result: &[u8]) -> Result<()> {
    let mut stdout = io::stdout().lock();
    match stdout.write_all(result).and_then(|()| stdout.flush()) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Err(StdoutClosed.into()),
        Err(error) => Err(error).context("cannot write to stdout"),
    }
}

/// Writes a line of result to stdout, at once.
pub fn line(text: impl fmt::Display) -> Result<()> {
    bytes(format!("{text}\n").as_bytes())
}

/// Writes a result to a file, or to stdout if there is none.
pub fn to(file: Option<&Path>, result: &[u8]) -> Result<()> {
    match file {
        Some(path) => {
            std::fs::write(path, result).with_context(|| format!("cannot write `{}`", path.display()))
        }
        None => bytes(result),
    }
}

/// Tells the user something that is not a result.
pub fn notice(text: impl fmt::Display) {
    // Nobody can be told that stderr does not work.
    let _ = writeln!(io::stderr().lock(), "{text}");
}

/// Tells the user what went wrong and what to try next.
pub fn error(message: &str, hint: Option<&str>) {
    notice(format_args!("error: {message}"));
    if let Some(hint) = hint {
        notice(format_args!("hint: {hint}"));
    }
}

/// Whether results go to a person.
pub fn stdout_is_terminal() -> bool {
    io::stdout().is_terminal()
}

/// Whether notices go to a person.
pub fn stderr_is_terminal() -> bool {
    io::stderr().is_terminal()
}

/// Empties the terminal, for a result that replaces the one before it. Does nothing elsewhere.
pub fn clear_screen() -> Result<()> {
    if stdout_is_terminal() {
        return bytes(b"\x1b[2J\x1b[H");
    }
    Ok(())
}
