//! The file-system seam: the few file operations the WAL needs, on a real disk or in memory.
//!
//! Everything under here is blocking and positional: no cursors, no buffering, no hidden retry.
//! [`RealFs`] is the machine's file system. [`MemFs`] keeps files in memory, for nodes without a
//! data directory and for tests that cut the power, fill the disk or fail a sync.

mod mem;
mod real;

#[cfg(test)]
mod tests;

use std::{fmt::Debug, io, path::Path, sync::Arc};

pub use mem::{Block, MemFs, SyncHold};
pub use real::RealFs;

/// A file system, as the WAL sees it.
///
/// A change of a directory (create, rename, remove) survives a power cut only after
/// [`sync_dir`](Fs::sync_dir); the bytes of a file only after [`sync_data`](File::sync_data).
///
/// # Errors
///
/// Every method returns the operating system's error, with its kind: `AlreadyExists`, `NotFound`,
/// `StorageFull`, and so on. No method retries.
pub trait Fs: Send + Sync + Debug {
    /// Creates a file for reading and writing; it must not exist. With `preallocate_bytes` > 0 a
    /// disk reserves that many bytes and writes zeros to them, so that later syncs need not change
    /// the file's metadata; a file system in memory may leave the file empty. Nothing is synced.
    fn create(&self, path: &Path, preallocate_bytes: u64) -> io::Result<Arc<dyn File>>;

    /// Opens an existing file for reading and writing.
    fn open(&self, path: &Path) -> io::Result<Arc<dyn File>>;

    /// Removes a file. Handles that are open keep reading it.
    fn remove(&self, path: &Path) -> io::Result<()>;

    /// Gives a file another name, replacing what had that name, atomically.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;

    /// The names of the files directly in `dir`, sorted; names that are not UTF-8 and folders are
    /// left out.
    fn list(&self, dir: &Path) -> io::Result<Vec<String>>;

    /// Creates `dir` and its parents, readable by the owner only, where they do not exist.
    fn create_dir(&self, dir: &Path) -> io::Result<()>;

    /// Makes the creations, renames and removals in `dir` durable.
    fn sync_dir(&self, dir: &Path) -> io::Result<()>;

    /// Takes the exclusive lock of `dir`, held until the answer is dropped or the process ends.
    ///
    /// # Errors
    ///
    /// `WouldBlock` when somebody else, in this process or another, holds it.
    fn lock_dir(&self, dir: &Path) -> io::Result<Box<dyn DirLock>>;
}

/// An open file. All methods are positional and may be called from several threads.
pub trait File: Send + Sync + Debug {
    /// Writes all of `bytes` at `offset`, growing the file as needed. Not synced.
    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()>;

    /// Reads from `offset` until `buffer` is full or the file ends; returns the bytes read.
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<usize>;

    /// Makes the file's bytes and length durable. After an error it is unknown which bytes are, and
    /// calling it again proves nothing: treat the file as lost to this process.
    fn sync_data(&self) -> io::Result<()>;

    /// The length in bytes.
    fn len(&self) -> io::Result<u64>;

    /// Cuts the file, or extends it with zeros, to `bytes`. Not synced.
    fn set_len(&self, bytes: u64) -> io::Result<()>;

    /// Whether the file has no bytes.
    ///
    /// # Errors
    ///
    /// As [`len`](File::len).
    fn is_empty(&self) -> io::Result<bool> {
        self.len().map(|bytes| bytes == 0)
    }
}

/// The exclusive lock of a directory; dropping it releases the lock.
pub trait DirLock: Send + Sync + Debug {}
