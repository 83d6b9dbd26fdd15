//! Why a WAL refuses: each variant says what a caller, or the operator, can do.

use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

use super::types::Identity;

/// An error of the WAL. The messages name file, offset and the way out: log them as they are.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WalError {
    /// The file system failed. From the writer, this is what poisons the WAL.
    #[error("the log could not {action} {}: {source}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// On which file.
        path: PathBuf,
        /// What the file system said.
        source: io::Error,
    },

    /// A damaged or missing batch is followed by later batches: acknowledged records are lost.
    #[error(
        "the log has a hole: {} is damaged at offset {offset} (batch {batch} is unreadable) but later \
         batch {later_batch} is in {} at offset {later_offset}, so records that were \
         acknowledged are lost. This member must not vote with this log. Way out: remove the member \
         from the cluster, delete its data directory and add it as a new member; for a cluster of \
         one, restore a snapshot",
        file.display(), later_file.display()
    )]
    Hole {
        /// The damaged file.
        file: PathBuf,
        /// Where the first unreadable batch begins, in bytes.
        offset: u64,
        /// The number of the unreadable batch.
        batch: u64,
        /// The file in which a later batch was found.
        later_file: PathBuf,
        /// Where, in bytes.
        later_offset: u64,
        /// Its number.
        later_batch: u64,
    },

    /// Bytes that no power cut leaves behind, or records that contradict each other.
    #[error(
        "the log is corrupt: {} at offset {offset}: {what}. Way out: remove the member from the \
         cluster, delete its data directory and add it as a new member; for a cluster of one, \
         restore a snapshot",
        file.display()
    )]
    Corrupt {
        /// The file.
        file: PathBuf,
        /// Where in it, in bytes.
        offset: u64,
        /// What is wrong.
        what: String,
    },

    /// A segment file that the log needs is not there.
    #[error(
        "the log lacks its segment {} ({why}). Put the file back, or remove the member from the \
         cluster, delete its data directory and add it as a new member; for a cluster of one, \
         restore a snapshot",
        file.display()
    )]
    MissingSegment {
        /// The file that should be there.
        file: PathBuf,
        /// How it is known.
        why: &'static str,
    },

    /// The log belongs to another cluster or another member.
    #[error(
        "{} belongs to member {:016x} of cluster {:016x}, not to member {:016x} of cluster {:016x}: \
         this is another member's data directory",
        file.display(), found.member_id, found.cluster_id, expected.member_id, expected.cluster_id
    )]
    WrongIdentity {
        /// The segment file.
        file: PathBuf,
        /// Whose it is.
        found: Identity,
        /// Who wanted to open it.
        expected: Identity,
    },

    /// The log was written by a newer version of this program.
    #[error(
        "{} has log format {found}, this version reads up to {supported}: start the newer version",
        file.display()
    )]
    NewerFormat {
        /// The segment file.
        file: PathBuf,
        /// Its format version.
        found: u32,
        /// The newest version known here.
        supported: u32,
    },

    /// Another process, or another WAL in this one, has the directory open.
    #[error("{} is in use by another process", dir.display())]
    Locked {
        /// The WAL's directory.
        dir: PathBuf,
    },

    /// A write or a sync failed before: nothing is accepted any more, for good. The member must
    /// stop; what was acknowledged is on disk.
    #[error("the log stopped after a failure: {0}")]
    Poisoned(Arc<WalError>),

    /// Too much is waiting for the disk; nothing was accepted. Try again later.
    #[error("the log's queue is full: {queued_bytes} bytes wait, at most {bytes_max} may")]
    Full {
        /// Bytes that wait.
        queued_bytes: usize,
        /// The limit.
        bytes_max: usize,
    },

    /// The call contradicts the log (a gap, an older term, an unknown entry); nothing was changed.
    #[error("invalid change of the log: {0}")]
    Invalid(String),

    /// The WAL was closed.
    #[error("the log is closed")]
    Closed,
}

impl WalError {
    pub(super) fn io(action: &'static str, path: impl Into<PathBuf>, source: io::Error) -> Self {
        let path = path.into();
        Self::Io {
            action,
            path,
            source,
        }
    }

    /// [`WalError::io`] for `map_err`.
    pub(super) fn io_of(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::io(action, path, source)
    }

    /// Whether the log on disk is damaged or incomplete: the member must be replaced.
    #[must_use]
    pub fn is_damage(&self) -> bool {
        match self {
            Self::Hole { .. } | Self::Corrupt { .. } | Self::MissingSegment { .. } => true,
            Self::Poisoned(cause) => cause.is_damage(),
            _ => false,
        }
    }
}

impl WalError {
    /// The same error for callers that speak `io::Error`; the kind of an [`Io`](WalError::Io) is
    /// kept.
    #[must_use]
    pub fn into_io(self: Arc<Self>) -> io::Error {
        let kind = match &*self {
            Self::Io { source, .. } => source.kind(),
            Self::Full { .. } => io::ErrorKind::WouldBlock,
            Self::Invalid(_) => io::ErrorKind::InvalidInput,
            Self::Hole { .. } | Self::Corrupt { .. } | Self::MissingSegment { .. } => {
                io::ErrorKind::InvalidData
            }
            _ => io::ErrorKind::Other,
        };
        io::Error::new(kind, self)
    }
}

impl From<WalError> for io::Error {
    fn from(error: WalError) -> Self {
        Arc::new(error).into_io()
    }
}
