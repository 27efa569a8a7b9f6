//! What can go wrong in the batch layer.

/// The result of this crate's fallible functions.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// An error whose kind says what to do about it.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A view's run failed; nothing was committed, and the next run starts from the same frontier.
    #[error("batch run of view `{view}`: {source}")]
    Run {
        /// The view.
        view: String,
        /// The cause.
        source: iot_schemas::Error,
    },
    /// What the vocabulary says.
    #[error(transparent)]
    Schemas(#[from] iot_schemas::Error),
}

impl From<Error> for iot_schemas::Error {
    fn from(e: Error) -> Self {
        match e {
            Error::Run { source, .. } | Error::Schemas(source) => source,
        }
    }
}

impl From<datafusion::error::DataFusionError> for Error {
    fn from(e: datafusion::error::DataFusionError) -> Self {
        Self::Schemas(e.into())
    }
}
