//! The raft log on disk: votes, entries, truncations, the committed pointer and the purge point, in
//! one ordered stream of checksummed batches. Used by `raft` only; independent of the raft library.

mod error;
mod types;

use std::{io, ops::Range, path::Path, sync::Arc};

use tokio::sync::watch;

pub use error::WalError;
pub use types::{
    Entry, EntryId, EntryKind, Identity, LogState, Position, Vote, WalOptions, WriterMode,
};

use super::fs::Fs;

/// Called once, on the writer thread and in the order of the calls, when what it belongs to is
/// durable, or with the error after which it never will be.
pub type FlushCallback = Box<dyn FnOnce(io::Result<()>) + Send>;

/// A handle of an open log. Clones are the same log.
#[derive(Clone, Debug)]
pub struct Wal {}

#[expect(
    missing_docs,
    clippy::needless_pass_by_value,
    unused_variables,
    reason = "skeleton"
)]
impl Wal {
    pub fn open(fs: Arc<dyn Fs>, dir: &Path, options: WalOptions) -> Result<Self, WalError> {
        unimplemented!()
    }
    pub fn append(
        &self,
        entries: Vec<Entry>,
        on_flushed: FlushCallback,
    ) -> Result<Position, WalError> {
        unimplemented!()
    }
    pub fn save_vote(&self, vote: Vote, on_flushed: FlushCallback) -> Result<Position, WalError> {
        unimplemented!()
    }
    pub fn truncate_after(
        &self,
        last: Option<EntryId>,
        on_flushed: FlushCallback,
    ) -> Result<Position, WalError> {
        unimplemented!()
    }
    pub fn save_committed(&self, committed: Option<EntryId>) -> Result<Position, WalError> {
        unimplemented!()
    }
    pub fn purge(&self, upto: EntryId) -> Result<Position, WalError> {
        unimplemented!()
    }
    pub fn reset_to(&self, upto: EntryId, on_flushed: FlushCallback) -> Result<Position, WalError> {
        unimplemented!()
    }
    pub fn position(&self) -> Position {
        unimplemented!()
    }
    pub fn flushed(&self) -> watch::Receiver<Position> {
        unimplemented!()
    }
    pub async fn wait_flushed(&self, position: Position) -> Result<(), WalError> {
        unimplemented!()
    }
    pub fn failure(&self) -> watch::Receiver<Option<Arc<WalError>>> {
        unimplemented!()
    }
    pub fn log_state(&self) -> LogState {
        unimplemented!()
    }
    pub fn vote(&self) -> Option<Vote> {
        unimplemented!()
    }
    pub fn committed(&self) -> Option<EntryId> {
        unimplemented!()
    }
    pub fn entry_id(&self, index: u64) -> Option<EntryId> {
        unimplemented!()
    }
    pub fn is_cached(&self, range: Range<u64>) -> bool {
        unimplemented!()
    }
    pub fn read(&self, range: Range<u64>, bytes_max: usize) -> Result<Vec<Entry>, WalError> {
        unimplemented!()
    }
    pub fn disk_bytes(&self) -> u64 {
        unimplemented!()
    }
    pub fn close(&self) -> Result<(), WalError> {
        unimplemented!()
    }
}
