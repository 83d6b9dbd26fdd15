//! The state as a file that etcd understands: the bbolt database of an etcd member, as `etcdctl
//! snapshot save` takes it. Used by `node`, whose caller sends it and adds the checksum. And back: a
//! store from such a file ([`restore()`]), be it quorate's or etcd's, and what it holds in a few numbers
//! ([`BackupStatus`]).
//!
//! The file is written in one go from one read view, without a file of ours in between and in bounded
//! memory. Its first pages name its last ones, so the view is gone through twice: [`Backup::plan`]
//! finds out where everything will be, from lengths alone, and [`Backup::write`] writes it. A file that
//! does not come out as planned is an error, never a file.
//!
//! What is in it, and what etcd makes of it, is in `docs/formats.md`.

mod buckets;
mod restore;
mod revisions;
mod source;
mod status;

#[cfg(test)]
mod restore_tests;
#[cfg(test)]
mod tests;

pub use buckets::SCHEMA_VERSION;
pub use restore::{Restored, restore};
pub use source::{Source, SourceError};
pub use status::BackupStatus;

use std::fmt;
use std::sync::Arc;

use bytes::Bytes;

use crate::storage::bbolt::{self, Layout};
use crate::storage::kv::{KvError, View};

/// Size of the pieces a file is given out in, in bytes, as etcd has it; the last one may be smaller.
pub const PIECE_BYTES: usize = 32 * 1024;

/// Memory for putting pairs in the order of their revisions, in bytes. One more scan of the store is
/// needed for each time that the pairs are larger than this.
pub const SORT_BYTES: usize = 64 * 1024 * 1024;

/// A member of the cluster, as told in the file. Nothing is restored from it: who restores names the
/// members of the new cluster.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Member {
    /// Its id.
    pub id: u64,
    /// Its name; empty if it never started.
    pub name: String,
    /// Where peers reach it.
    pub peer_urls: Vec<String>,
    /// Where clients reach it.
    pub client_urls: Vec<String>,
    /// Whether it votes; otherwise it learns.
    pub is_voter: bool,
}

/// What a file is made of.
pub struct Backup {
    /// One state of the store, without change.
    pub view: Arc<dyn View>,
    /// The members.
    pub members: Vec<Member>,
    /// Ids of members that were removed.
    pub removed: Vec<u64>,
    /// Memory for ordering pairs; [`SORT_BYTES`] unless a test wants less.
    pub sort_bytes: usize,
    /// Asked now and then, while nothing is given out for long: whether to give up.
    pub is_abandoned: Box<dyn Fn() -> bool + Send>,
}

impl fmt::Debug for Backup {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Backup")
            .field("view", &self.view)
            .field("members", &self.members)
            .finish_non_exhaustive()
    }
}

/// Why there is no file.
#[derive(Debug, thiserror::Error)]
pub enum BackupError {
    /// The store could not be read, or does not hold together.
    #[error(transparent)]
    Storage(#[from] KvError),
    /// The store has something that is not written yet: leaving it out would be a silent loss.
    #[error("{0} cannot be backed up")]
    Unsupported(&'static str),
    /// An item that bbolt does not take.
    #[error(transparent)]
    Format(#[from] bbolt::Error),
    /// The second pass did not come out as planned.
    #[error("the file would not be what was announced: {0:?}")]
    Mismatch(Layout),
    /// It was not wanted any more.
    #[error("the backup was abandoned")]
    Abandoned,
    /// Whoever takes the pieces took no more.
    #[error(transparent)]
    NotTaken(#[from] crate::error::Error),
}

/// Whether the bytes of pairs matter, or only how many there are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Detail {
    Lengths,
    Bytes,
}

impl Backup {
    /// The first pass: the layout of the file. Reads the whole store.
    ///
    /// # Errors
    /// All but [`BackupError::NotTaken`] and [`BackupError::Mismatch`].
    pub fn plan(&self) -> Result<Layout, BackupError> {
        buckets::write(self, Detail::Lengths, &mut |written| {
            written.clear();
            Ok(())
        })
    }

    /// The second pass: gives the file to `take` piece by piece, [`Layout::file_bytes`] in all. Reads
    /// the whole store again.
    ///
    /// # Errors
    /// All; what was given out is to be thrown away then.
    pub fn write(
        &self,
        announced: Layout,
        mut take: impl FnMut(Bytes) -> Result<(), crate::error::Error>,
    ) -> Result<(), BackupError> {
        let mut left = announced.file_bytes();
        let mut piece = announced.head();
        let written = buckets::write(self, Detail::Bytes, &mut |written| {
            piece.append(written);
            if piece.len() < PIECE_BYTES {
                return Ok(());
            }
            let mut ready = Bytes::from(std::mem::take(&mut piece));
            while ready.len() >= PIECE_BYTES {
                left = left
                    .checked_sub(PIECE_BYTES as u64)
                    .ok_or(BackupError::Mismatch(announced))?;
                take(ready.split_to(PIECE_BYTES))?;
            }
            piece.extend_from_slice(&ready);
            Ok(())
        })?;
        if written != announced || piece.len() as u64 != left {
            return Err(BackupError::Mismatch(announced));
        }
        if !piece.is_empty() {
            take(Bytes::from(piece))?;
        }
        Ok(())
    }

    fn check_wanted(&self) -> Result<(), BackupError> {
        if (self.is_abandoned)() {
            return Err(BackupError::Abandoned);
        }
        Ok(())
    }
}
