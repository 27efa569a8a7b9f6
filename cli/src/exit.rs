//! How the process ends: one code for each kind of outcome, and an error that says what to try next.

use std::fmt;
use std::process::ExitCode;

use crate::output;

/// The exit codes that scripts may rely on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Code {
    /// It was done.
    Done = 0,
    /// It failed, or what was checked is not as it should be.
    Failed = 1,
    /// The command line makes no sense.
    Usage = 2,
    /// The server or the broker cannot be reached.
    Unreachable = 69,
    /// A configuration or catalog file is wrong.
    BadConfiguration = 78,
}

impl From<Code> for ExitCode {
    fn from(code: Code) -> Self {
        Self::from(code as u8)
    }
}

/// An error that knows its exit code and, where there is one, the next thing to try.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// How the process ends.
    pub code: Code,
    /// What was wrong, and where.
    pub message: String,
    /// What to try next.
    pub hint: Option<String>,
}

impl Failure {
    /// The general failure.
    pub fn failed(message: impl Into<String>) -> Self {
        Self { code: Code::Failed, message: message.into(), hint: None }
    }

    /// The command line makes no sense.
    pub fn usage(message: impl Into<String>) -> Self {
        Self { code: Code::Usage, message: message.into(), hint: None }
    }

    /// The other side cannot be reached.
    pub fn unreachable(message: impl Into<String>) -> Self {
        Self { code: Code::Unreachable, message: message.into(), hint: None }
    }

    /// A file that configures something is wrong.
    pub fn bad_configuration(message: impl Into<String>) -> Self {
        Self { code: Code::BadConfiguration, message: message.into(), hint: None }
    }

    /// Adds the next thing to try.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Failure {}

/// Tells the user about an error and chooses the exit code.
///
/// A reader of our output who has gone away (`iotctl query ... | head`) is no error.
pub fn report(error: &anyhow::Error) -> Code {
    if reader_is_gone(error) {
        return Code::Done;
    }
    let failure = error.downcast_ref::<Failure>();
    output::error(&format!("{error:#}"), failure.and_then(|failure| failure.hint.as_deref()));
    failure.map_or(Code::Failed, |failure| failure.code)
}

fn reader_is_gone(error: &anyhow::Error) -> bool {
    error.downcast_ref::<output::StdoutClosed>().is_some()
}

#[cfg(test)]
mod tests {
    use anyhow::Context;

    use super::*;

    #[test]
    fn a_failure_keeps_its_code_under_added_context() {
        let error =
            Err::<(), _>(Failure::unreachable("nobody there")).context("asking").expect_err("an error");
        assert_eq!(report(&error), Code::Unreachable);
    }

    #[test]
    fn other_errors_are_plain_failures() {
        assert_eq!(report(&anyhow::anyhow!("oops")), Code::Failed);
    }

    #[test]
    fn a_reader_who_went_away_is_no_error() {
        let error = anyhow::Error::new(output::StdoutClosed).context("printing");
        assert_eq!(report(&error), Code::Done);
    }
}
