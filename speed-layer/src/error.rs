//! What can go wrong in the speed layer, sorted by who can mend it.

/// The result of this crate's fallible functions.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// An error whose kind says what to do about it.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A rule's definition does not fit what it watches; its author can mend it.
    #[error("rule `{rule}`: {reason}")]
    InvalidRule {
        /// The rule's name.
        rule: String,
        /// What is wrong, where, and what to try.
        reason: String,
    },
    /// The alert log could not be written or read. Nothing has changed; the same call may succeed later.
    #[error("alert log, {doing}: {source}")]
    AlertLog {
        /// What was being done.
        doing: &'static str,
        /// The cause.
        source: iot_schemas::Error,
    },
    /// What the vocabulary says.
    #[error(transparent)]
    Schemas(#[from] iot_schemas::Error),
}

impl Error {
    /// An [`Error::InvalidRule`] from anything that prints.
    pub fn invalid_rule(rule: impl Into<String>, reason: impl Into<String>) -> Self {
        Self::InvalidRule { rule: rule.into(), reason: reason.into() }
    }

    /// For `map_err`: the alert log failed while `doing` something.
    pub(crate) fn alert_log(doing: &'static str) -> impl FnOnce(iot_schemas::Error) -> Self {
        move |source| Self::AlertLog { doing, source }
    }
}

/// For the narrow traits of the vocabulary, which know its errors only.
impl From<Error> for iot_schemas::Error {
    fn from(e: Error) -> Self {
        match e {
            Error::InvalidRule { .. } => Self::Invalid(e.to_string()),
            Error::AlertLog { source, .. } | Error::Schemas(source) => source,
        }
    }
}

impl From<arrow::error::ArrowError> for Error {
    fn from(e: arrow::error::ArrowError) -> Self {
        Self::Schemas(e.into())
    }
}

impl From<datafusion::error::DataFusionError> for Error {
    fn from(e: datafusion::error::DataFusionError) -> Self {
        Self::Schemas(e.into())
    }
}
