//! The replicated state machine: opens on a store, applies batches of the log, and is swapped onto
//! another store by a snapshot. Owned by `raft`'s storage thread.

use std::sync::Arc;

use bytes::Bytes;
use uuid::Uuid;

use super::{Applied, Committed, Options, Reader};
use crate::storage::kv::{Kv, KvError, View};
use crate::storage::wal::EntryId;

/// The state machine.
#[derive(Debug)]
pub struct State {}

/// The applied id and the membership stored in `view`; `None` each if there is none yet.
///
/// # Errors
///
/// A storage failure or a damaged record.
pub fn applied_in(_view: &dyn View) -> Result<(Option<EntryId>, Option<Bytes>), KvError> {
    unimplemented!()
}

impl State {
    /// Opens on a store, at whatever prefix of the log it holds.
    ///
    /// # Errors
    ///
    /// A storage failure or a damaged record.
    pub fn open(_kv: Arc<dyn Kv>, _options: Options) -> Result<Self, KvError> {
        unimplemented!()
    }

    /// The last applied entry and the membership as of it.
    #[must_use]
    pub fn applied(&self) -> (Option<EntryId>, Option<Bytes>) {
        unimplemented!()
    }

    /// Applies entries in order, as one atomic batch of the store with the applied id in it.
    /// Outcomes are given for the proposals of `own` alone. Blocking disk work.
    ///
    /// # Errors
    ///
    /// A storage failure: nothing of the batch is to be trusted and the member has to stop.
    ///
    /// # Panics
    ///
    /// If the entries do not follow the applied one: the log would have a hole.
    pub fn apply(&mut self, _entries: Vec<Committed>, _own: Uuid) -> Result<Applied, KvError> {
        unimplemented!()
    }

    /// Swaps to a store installed from a snapshot and rebuilds what is kept in memory. Readers see
    /// the new store from here on.
    ///
    /// # Errors
    ///
    /// As for [`State::open`]; the state is then as before.
    pub fn install(&mut self, _kv: Arc<dyn Kv>) -> Result<(), KvError> {
        unimplemented!()
    }

    /// The store in use.
    #[must_use]
    pub fn kv(&self) -> Arc<dyn Kv> {
        unimplemented!()
    }

    /// A reader of this state.
    #[must_use]
    pub fn reader(&self) -> Reader {
        unimplemented!()
    }
}
