//! The crate's error: what a caller can do about it ([`Error::kind`]), the exact cause
//! ([`Error::reason`], which gRPC faces turn into etcd's code and text), and what was behind it.

use std::fmt;
use std::sync::Arc;

use quorate_proto::{Kind, Reason};

/// What went wrong, for a caller to act on. Cheap to clone, since one failure can answer many
/// waiting requests.
#[derive(Debug, Clone)]
pub struct Error {
    reason: Reason,
    detail: Option<Arc<str>>,
    source: Option<Arc<dyn std::error::Error + Send + Sync>>,
}

/// A result with the crate's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// An error of this reason, with what a person should know beyond the reason's own text.
    #[must_use]
    pub fn with_detail(reason: Reason, detail: impl Into<Arc<str>>) -> Self {
        Self {
            reason,
            detail: Some(detail.into()),
            source: None,
        }
    }

    /// The same error, caused by `source`.
    #[must_use]
    pub fn caused_by(mut self, source: impl std::error::Error + Send + Sync + 'static) -> Self {
        self.source = Some(Arc::new(source));
        self
    }

    /// What the caller can do about it.
    #[must_use]
    pub fn kind(&self) -> Kind {
        self.reason.kind()
    }

    /// The exact cause.
    #[must_use]
    pub fn reason(&self) -> Reason {
        self.reason
    }
}

impl From<Reason> for Error {
    fn from(reason: Reason) -> Self {
        Self {
            reason,
            detail: None,
            source: None,
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.detail {
            Some(detail) => write!(f, "{}: {detail}", self.reason.text()),
            None => f.write_str(self.reason.text()),
        }
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.source
            .as_ref()
            .map(|source| &**source as &(dyn std::error::Error + 'static))
    }
}

impl From<Error> for tonic::Status {
    /// The reason's code and text, without the detail: clients match on etcd's texts.
    fn from(error: Error) -> Self {
        error.reason.into()
    }
}
