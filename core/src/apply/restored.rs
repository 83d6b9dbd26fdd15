//! A state that was restored from a backup: it takes nothing from clients until the leader has raised
//! the epoch of fencing tokens. Marked by `backup`, applied by the executor, and shown to `node`, whose
//! leader proposes it.
//!
//! Revisions that came after the backup were forgotten and will be given out again, and with them the
//! tokens of locks. The epoch before each token must therefore be one that was never used. It cannot
//! be decided when the file is restored: each member does that by itself, at a moment of its own, and
//! all of them have to arrive at the same bytes. So the first leader decides it, in the log, before any
//! other write.

use bytes::Bytes;
use quorate_proto::epoch::{self, EPOCH_KEY};
use quorate_proto::log::command::Kind;
use quorate_proto::{KeyRange, Reason};

use super::Answer;
use super::executor::Executor;
use crate::mvcc::{self, Error, RangeQuery};
use crate::storage::codec::{self, MetaKey};
use crate::storage::kv::{KvError, View};

/// The record in table `meta` that marks a restored state: its key and its value.
#[must_use]
pub fn restored_mark() -> (Bytes, Bytes) {
    let key = codec::meta_key(MetaKey::Restored);
    (key, Bytes::from_static(&[codec::FORMAT]))
}

/// Whether the state in `view` was restored and no leader has let clients in yet.
///
/// # Errors
///
/// A storage failure.
pub fn is_restore_unfinished(view: &dyn View) -> Result<bool, KvError> {
    Ok(view.get(&codec::meta_key(MetaKey::Restored))?.is_some())
}

/// The epoch of fencing tokens in `view`. A value that is no number counts as none, since no token
/// was ever given out under it.
///
/// # Errors
///
/// A storage failure.
pub fn epoch_in(view: &dyn View) -> Result<u64, Error> {
    let query = RangeQuery::new(KeyRange::single(EPOCH_KEY));
    let found = mvcc::range(view, &query)?.kvs;
    let value = found.first().map(|kv| &*kv.value);
    Ok(epoch::parse(value).unwrap_or_default())
}

impl Executor {
    /// Refuses what clients ask for while the restore is not finished. What members do by themselves
    /// goes on: none of it makes a token.
    pub(super) fn admit_clients(&self, kind: &Kind) -> Result<(), Reason> {
        let is_of_client = match kind {
            Kind::Put(_)
            | Kind::DeleteRange(_)
            | Kind::Txn(_)
            | Kind::Compact(_)
            | Kind::LeaseGrant(_)
            | Kind::LeaseRevoke(_) => true,
            Kind::LeaseExpire(_)
            | Kind::LeaseCheckpoint(_)
            | Kind::Alarm(_)
            | Kind::MemberAttributes(_)
            | Kind::FinishRestore(_) => false,
        };
        if is_of_client && self.is_restore_unfinished {
            return Err(Reason::RestoreUnfinished);
        }
        Ok(())
    }

    /// Raises the epoch, to what the leader's clock says or at least by one, as one more revision, and
    /// lets clients in. Whatever alarms there are.
    pub(super) fn finish_restore(&mut self, wall_millis: u64) -> Result<Answer, Error> {
        if self.is_restore_unfinished {
            let epoch = epoch_in(&self.overlay)?.saturating_add(1).max(wall_millis);
            let mut txn = self.overlay.begin()?;
            txn.put(EPOCH_KEY.into(), epoch.to_string().into(), 0)?;
            txn.set(codec::meta_key(MetaKey::Restored), None);
            let committed = txn.commit();
            self.keep(committed);
            self.is_restore_unfinished = false;
        }
        Ok(Answer::FinishRestore)
    }
}
