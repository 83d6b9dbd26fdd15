//! The beginning of a cluster that was restored from a backup, written by each member by itself: as if
//! all of them had been sent the same snapshot, of an entry before any leader. Used by `node`.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use quorate_proto::Reason;

use crate::apply::applied_record;
use crate::error::{Error, Result};
use crate::raft::codec;
use crate::raft::snapshot::install_mark;
use crate::raft::types::{Membership, Peer, StoredMembership};
use crate::storage::codec::{MetaKey, meta_key};
use crate::storage::kv::WriteBatch;
use crate::storage::wal::EntryId;

/// The entry that a restored state was applied up to, and that its log begins after. Of term 0, which
/// no leader ever has: the first one, of term 1 or later, finds nothing that could be taken for its own.
pub const RESTORED_AT: EntryId = EntryId::new(0, 1);

/// What makes a store the state of a cluster of `members`, all of them voters, at [`RESTORED_AT`].
///
/// # Errors
///
/// There is no cluster without members.
pub fn restored_marks(members: BTreeMap<u64, Peer>) -> Result<WriteBatch> {
    let voters: BTreeSet<u64> = members.keys().copied().collect();
    let membership = Membership::new(vec![voters], members)
        .map_err(|error| Error::with_detail(Reason::Internal, error.to_string()))?;
    let at = codec::log_id(RESTORED_AT);
    let stored = StoredMembership::new(Some(at), membership);
    let mut marks = install_mark(Some(&at));
    let (key, record) = applied_record(RESTORED_AT);
    marks.put(key, record);
    let membership: Bytes = codec::encode_membership(&stored);
    marks.put(meta_key(MetaKey::Membership), membership);
    Ok(marks)
}
