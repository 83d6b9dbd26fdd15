//! The ordered key-value store under the state machine: two engines behind one small seam.
//!
//! [`FjallKv`] keeps its data on disk, [`MemKv`] in memory (in-memory nodes and simulations).
//! `apply` writes one [`WriteBatch`] for each applied batch; every reader takes a [`View`].
//! A commit is atomic but not synced: after a crash an engine comes back as an older, consistent
//! state, and the raft log replays what is missing.

mod behind;
mod dir;
mod disk;
mod mem;
mod poison;

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::io;
use std::ops::Bound;
use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;

pub use dir::{current_dir, current_number, dir_of, folders, install, next_number, remove_stale};
pub use disk::{DiskOptions, FjallKv};
pub use mem::MemKv;

/// Longest key an engine takes, in bytes (fjall's limit; it panics beyond).
pub const KEY_BYTES_MAX: usize = 65_535;

/// An ordered store of byte keys and values with atomic batches and consistent read views.
pub trait Kv: Send + Sync + Debug {
    /// A consistent view of all that is committed now. Cheap; it pins the data it shows, and the
    /// engine itself, for as long as it lives.
    fn view(&self) -> Arc<dyn View>;

    /// Applies one batch atomically. It is visible to views taken afterwards and survives a killed
    /// process, but survives a power cut only after [`persist`](Kv::persist).
    ///
    /// # Errors
    ///
    /// [`KvError::KeyLength`] if a key is empty or too long: nothing is changed. Any other error
    /// poisons the engine: what reached the disk is unknown, and every later write gets the error.
    fn commit(&self, batch: WriteBatch) -> Result<(), KvError>;

    /// Makes everything committed so far durable.
    ///
    /// # Errors
    ///
    /// A failure poisons the engine; a failed sync is never retried.
    fn persist(&self) -> Result<(), KvError>;

    /// Space taken on the disk, in bytes: journals included, and what was overwritten or deleted and
    /// not yet given back.
    fn disk_bytes(&self) -> u64;

    /// Gives back what was overwritten or deleted, by writing anew what is left: blocks for as long
    /// as that takes, at the cost of a core or two. Views and commits go on beside it; but the engine does no other merge
    /// meanwhile, so commits wait once they have brought more than it takes unmerged. What a view
    /// still shows stays.
    ///
    /// # Errors
    ///
    /// [`KvError::DiskFull`] if what might be written has no room beside what is there; an engine
    /// that failed, now or before. Nothing is lost.
    fn reclaim(&self) -> Result<(), KvError>;
}

/// One unchanging state of a [`Kv`].
pub trait View: Send + Sync + Debug {
    /// The value of `key`.
    ///
    /// # Errors
    ///
    /// A storage failure or a damaged block.
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, KvError>;

    /// The pairs between two bounds, in key order or in reverse. Bounds that cross give nothing.
    /// After an error the iterator should be dropped.
    fn range(&self, start: Bound<Bytes>, end: Bound<Bytes>, direction: Direction) -> Pairs<'_>;
}

/// Pairs in key order, as [`View::range`] gives them.
pub type Pairs<'a> = Box<dyn Iterator<Item = Result<(Bytes, Bytes), KvError>> + Send + 'a>;

/// Order of a scan.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// Smallest key first.
    Forward,
    /// Largest key first.
    Reverse,
}

/// Puts and deletes that take effect together.
#[derive(Debug, Clone, Default)]
pub struct WriteBatch {
    ops: Vec<(Bytes, Option<Bytes>)>,
}

impl WriteBatch {
    /// An empty batch.
    #[must_use]
    pub fn new() -> WriteBatch {
        WriteBatch::default()
    }

    /// Sets `key` to `value`. A later operation on the same key wins.
    pub fn put(&mut self, key: impl Into<Bytes>, value: impl Into<Bytes>) {
        self.ops.push((key.into(), Some(value.into())));
    }

    /// Removes `key`; a missing key is fine. A later operation on the same key wins.
    pub fn delete(&mut self, key: impl Into<Bytes>) {
        self.ops.push((key.into(), None));
    }

    /// Number of operations.
    #[must_use]
    pub fn len(&self) -> usize {
        self.ops.len()
    }

    /// Whether there is nothing to write.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.ops.is_empty()
    }

    /// The operations in the order given.
    pub(crate) fn ops(&self) -> &[(Bytes, Option<Bytes>)] {
        &self.ops
    }

    /// The operations with one for each key, the last given, in key order.
    pub(crate) fn into_final_ops(self) -> Vec<(Bytes, Option<Bytes>)> {
        if self.ops.is_sorted_by(|a, b| a.0 < b.0) {
            return self.ops;
        }
        let last: BTreeMap<_, _> = self.ops.into_iter().collect();
        last.into_iter().collect()
    }

    /// Refuses keys no engine can store.
    fn check(&self) -> Result<(), KvError> {
        match self
            .ops
            .iter()
            .find(|(key, _)| key.is_empty() || key.len() > KEY_BYTES_MAX)
        {
            Some((key, _)) => Err(KvError::KeyLength {
                length_bytes: key.len(),
            }),
            None => Ok(()),
        }
    }
}

impl FromIterator<(Bytes, Option<Bytes>)> for WriteBatch {
    /// `None` deletes the key.
    fn from_iter<I: IntoIterator<Item = (Bytes, Option<Bytes>)>>(ops: I) -> WriteBatch {
        WriteBatch {
            ops: ops.into_iter().collect(),
        }
    }
}

/// What can go wrong in an engine. None of it is a client's doing.
#[derive(Debug, Clone, thiserror::Error)]
pub enum KvError {
    /// The store on disk could not be opened or does not hold together: rebuild it from a
    /// snapshot, never replay onto it.
    #[error("key-value store {}: {cause}", path.display())]
    Open {
        /// Folder of the store.
        path: PathBuf,
        /// What the engine said.
        cause: String,
    },
    /// A file or folder around the engine could not be read or written.
    #[error("{action} {}: {source}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// On which file or folder.
        path: PathBuf,
        /// The system's answer.
        source: Arc<io::Error>,
    },
    /// No space is left on the device.
    #[error("key-value store: disk full: {cause}")]
    DiskFull {
        /// What the engine said.
        cause: String,
    },
    /// The engine failed to read or write.
    #[error("key-value store: {cause}")]
    Engine {
        /// What the engine said.
        cause: String,
    },
    /// An earlier write failed: the engine takes no more, the member has to stop and recover.
    #[error("key-value store refuses writes since an earlier failure: {0}")]
    Poisoned(Box<KvError>),
    /// A stored record cannot be decoded.
    #[error("key-value store: damaged record: {what}")]
    Corrupt {
        /// Which record, and what is wrong with it.
        what: String,
    },
    /// A key is empty or longer than [`KEY_BYTES_MAX`]; nothing was written.
    #[error("key-value store: a key of {length_bytes} bytes (1 to 65535 are possible)")]
    KeyLength {
        /// Its length.
        length_bytes: usize,
    },
}

impl KvError {
    /// A record that does not decode.
    pub(crate) fn corrupt(what: impl Into<String>) -> KvError {
        KvError::Corrupt { what: what.into() }
    }
}

/// Whether no key can lie between the bounds; `BTreeMap` panics on some of these.
pub(crate) fn bounds_cross(start: &Bound<Bytes>, end: &Bound<Bytes>) -> bool {
    match (start, end) {
        (Bound::Unbounded, _) | (_, Bound::Unbounded) => false,
        (Bound::Included(start), Bound::Included(end)) => start > end,
        (
            Bound::Included(start) | Bound::Excluded(start),
            Bound::Included(end) | Bound::Excluded(end),
        ) => start >= end,
    }
}
