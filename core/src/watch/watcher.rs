//! One watcher: its buffer, and how it catches up. Read by `node`.

use std::time::Duration;

use quorate_proto::{KeyRange, mvccpb};

use crate::storage::kv::KvError;

/// What to watch.
#[derive(Debug, Clone)]
pub struct Request {
    /// Which keys.
    pub range: KeyRange,
    /// The first revision to tell of; 0 means the next one, and may lie in the future.
    pub start_revision: i64,
    /// Whether events carry the pair before them.
    pub prev_kv: bool,
    /// Whether to tell of puts.
    pub puts: bool,
    /// Whether to tell of deletes.
    pub deletes: bool,
    /// How long the watcher may be silent before it says how far it is; `None` means for ever.
    pub progress_every: Option<Duration>,
}

/// What a watcher tells.
#[derive(Debug, Clone, PartialEq)]
pub enum Item {
    /// One or more whole revisions, in order.
    Events {
        /// For the response header: the last event's revision, or the store's if the watcher is
        /// catching up.
        revision: i64,
        /// At least one.
        events: Vec<mvccpb::Event>,
    },
    /// What the watcher wants next is compacted. The last item: it comes again if asked again.
    Compacted {
        /// The compact revision.
        compact_revision: i64,
    },
    /// Nothing happened for a while, and everything up to this revision has been told.
    Progress {
        /// The store's revision.
        revision: i64,
    },
}

/// A watcher. Dropping it ends it.
#[derive(Debug)]
pub struct Watcher {}

impl Watcher {
    /// The hub's revision when the watcher began.
    #[must_use]
    pub fn created_at(&self) -> i64 {
        unimplemented!()
    }

    /// Waits for what comes next.
    ///
    /// # Errors
    ///
    /// The store failed to read; the watcher is of no more use.
    ///
    /// # Cancel safety
    ///
    /// Safe: nothing is lost when the future is dropped.
    pub async fn next(&mut self) -> Result<Item, KvError> {
        unimplemented!()
    }

    /// The hub's revision, if everything up to it has been taken from this watcher, so that it may
    /// be told as progress; `None` while something waits, it is catching up, or it begins later.
    #[must_use]
    pub fn progress(&self) -> Option<i64> {
        unimplemented!()
    }
}
