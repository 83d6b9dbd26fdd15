//! The hub: takes what each applied batch published and hands it to the watchers it concerns.

use std::sync::Arc;

use quorate_proto::Reason;

use super::watcher::{Request, Watcher};
use crate::storage::kv::View;

/// Gives the current read view of the store; after a snapshot install, of the new one.
pub type ViewSource = Arc<dyn Fn() -> Arc<dyn View> + Send + Sync>;

/// Bounds of a hub.
#[derive(Debug, Clone)]
pub struct Options {
    /// Watchers there may be; one more is refused.
    pub watchers_max: usize,
    /// Recent events kept in memory, in bytes; older ones are read from the store.
    pub recent_bytes_max: usize,
    /// Events waiting for one watcher, in bytes; beyond it the watcher catches up later.
    pub watcher_bytes_max: usize,
    /// Events waiting for all watchers together, in bytes; beyond it every watcher that would
    /// need more catches up later.
    pub waiting_bytes_max: usize,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            watchers_max: 1_000_000,
            recent_bytes_max: 32 * 1024 * 1024,
            watcher_bytes_max: 1024 * 1024,
            waiting_bytes_max: 256 * 1024 * 1024,
        }
    }
}

/// What one applied batch has to tell the watchers. Made by `apply`, passed on as it is.
#[derive(Debug, Clone, Default)]
pub struct Publication {
    /// The main revision after the batch.
    pub revision: i64,
    /// The compact revision after the batch.
    pub compact_revision: i64,
}

/// Where events go to and watchers come from. Cheap to clone; all clones are one hub.
#[derive(Debug, Clone)]
pub struct Hub {}

impl Hub {
    /// A hub over a store that is at `revision` and compacted at `compact_revision`.
    #[must_use]
    pub fn new(
        _source: ViewSource,
        _revision: i64,
        _compact_revision: i64,
        _options: &Options,
    ) -> Self {
        unimplemented!()
    }

    /// Hands on what an applied batch published. To be called once for each, in order, after the
    /// batch is committed to the store and before any of its outcomes is told to a client. Never
    /// blocks on a watcher or on the disk.
    pub fn publish(&self, _publication: Publication) {
        unimplemented!()
    }

    /// Starts over on a store installed from a snapshot: every watcher catches up from where it
    /// is, in the new store. To be called once the [`ViewSource`] gives views of that store.
    pub fn reset(&self, _revision: i64, _compact_revision: i64) {
        unimplemented!()
    }

    /// The last revision published: every event up to it is with, or available to, each watcher.
    #[must_use]
    pub fn revision(&self) -> i64 {
        unimplemented!()
    }

    /// Begins to watch. The watcher ends when it is dropped.
    ///
    /// # Errors
    ///
    /// [`Reason::WatchRangeEmpty`], [`Reason::TooManyWatchers`], and [`Reason::Compacted`] for a
    /// negative start revision.
    pub fn watch(&self, _request: Request) -> Result<Watcher, Reason> {
        unimplemented!()
    }
}
