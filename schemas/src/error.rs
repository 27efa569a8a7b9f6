//! What can go wrong in the vocabulary, sorted by who can mend it.

/// The result of this crate's fallible functions.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// An error whose kind says what to do about it.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The user's input (SQL, YAML, a name) is wrong; the text says where and what to try.
    #[error("{0}")]
    Invalid(String),
    /// Something that was named does not exist.
    #[error("no {kind} `{name}`{hint}")]
    NotFound {
        /// `stream`, `view`, `rule`, ...
        kind: &'static str,
        /// What was asked for.
        name: String,
        /// Empty, or a sentence that starts with `; `.
        hint: String,
    },
    /// Bytes on disk or in the store are not what was written.
    #[error("{path}: {reason}")]
    Corrupt {
        /// The file or table.
        path: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The store or the disk failed; the same call may succeed later.
    #[error("{context}: {cause}")]
    Io {
        /// What was being done.
        context: String,
        /// The cause, which the text says: it is no source, so that nobody who prints a chain says it twice.
        cause: std::io::Error,
    },
    /// The query engine refused or failed. Which of its rules noticed is of no use to anybody.
    #[error("{}", without_context(.0))]
    DataFusion(#[from] datafusion::error::DataFusionError),
    /// The table format refused or failed.
    #[error(transparent)]
    Delta(Box<deltalake::DeltaTableError>),
    /// An Arrow kernel failed.
    #[error(transparent)]
    Arrow(#[from] arrow::error::ArrowError),
    /// The object store failed.
    #[error(transparent)]
    Store(#[from] object_store::Error),
}

impl Error {
    /// An [`Error::Invalid`] from anything that prints.
    pub fn invalid(reason: impl Into<String>) -> Self {
        Self::Invalid(reason.into())
    }

    /// An [`Error::Io`] with what was being done.
    pub fn io(context: impl Into<String>, cause: std::io::Error) -> Self {
        Self::Io { context: context.into(), cause }
    }

    /// Whether the person who asked can mend it, as opposed to an operator.
    pub fn is_users(&self) -> bool {
        use datafusion::error::DataFusionError as E;
        match self {
            Self::Invalid(_) | Self::NotFound { .. } => true,
            Self::DataFusion(e) => {
                matches!(
                    e.find_root(),
                    E::SQL(..)
                        | E::Plan(_)
                        | E::SchemaError(..)
                        | E::NotImplemented(_)
                        | E::Configuration(_)
                        | E::ArrowError(..)
                        | E::Execution(_)
                )
            }
            _ => false,
        }
    }
}

/// Whether `error` comes of a store that was asked in vain for as long as its [`crate::table::Patience`] lasts.
pub fn is_passing(error: &(dyn std::error::Error + 'static)) -> bool {
    let mut causes = std::iter::successors(Some(error), |error| error.source());
    causes.any(|cause| cause.to_string().contains(crate::table::IN_VAIN))
}

fn without_context(error: &datafusion::error::DataFusionError) -> &datafusion::error::DataFusionError {
    match error {
        datafusion::error::DataFusionError::Context(_, inner) => without_context(inner),
        other => other,
    }
}

impl From<deltalake::DeltaTableError> for Error {
    fn from(e: deltalake::DeltaTableError) -> Self {
        Self::Delta(Box::new(e))
    }
}
