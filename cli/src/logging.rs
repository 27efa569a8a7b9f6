//! Where diagnostics go: to stderr, as much of them as `--log`, `IOTCTL_LOG` or `RUST_LOG` ask for.

use tracing_subscriber::EnvFilter;

use crate::output;

/// What is logged where nobody asked for more.
const DEFAULT_FILTER: &str = "warn";

/// Starts logging for the process. A filter that cannot be read is replaced by the default, with a warning.
pub fn start(filter: Option<&str>) {
    let (filter, problem) = match filter {
        Some(text) => parse(text),
        None => (EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(DEFAULT_FILTER)), None),
    };
    let started = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(output::stderr_is_terminal())
        // What cannot be logged (a full disk) would be said on stderr, and panic as that cannot be said either.
        .log_internal_errors(false)
        .try_init();
    if started.is_ok()
        && let Some(problem) = problem
    {
        tracing::warn!("{problem}");
    }
}

fn parse(text: &str) -> (EnvFilter, Option<String>) {
    match EnvFilter::try_new(text) {
        Ok(filter) => (filter, None),
        Err(error) => (
            EnvFilter::new(DEFAULT_FILTER),
            Some(format!("`{text}` is no log filter ({error}); using `{DEFAULT_FILTER}`")),
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bad_filter_falls_back_to_warnings_and_says_so() {
        assert!(parse("info,rumqttc=debug").1.is_none());
        let (filter, problem) = parse("loudest=,,=");
        assert_eq!(filter.to_string(), DEFAULT_FILTER);
        assert!(problem.expect("a problem").contains("loudest"));
    }
}
