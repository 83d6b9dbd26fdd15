//! Makes one member that is left of a cluster the only member of its own: before consensus starts,
//! while nobody else has the log and the state. Used by `node::force`.

use std::collections::{BTreeMap, BTreeSet};

use quorate_proto::Reason;

use crate::apply::{self, Committed, Payload, State};
use crate::error::{Error, Result};
use crate::raft::snapshot::install_mark;
use crate::raft::types::{Membership, Peer, StoredMembership};
use crate::raft::{codec, members_in};
use crate::storage::codec::{MetaKey, meta_key};
use crate::storage::kv::WriteBatch;
use crate::storage::wal::{self, EntryId, Wal};
use uuid::Uuid;

/// Entries applied in one batch, in bytes, at least one entry.
const BATCH_BYTES: usize = 4 << 20;

/// Applies all that the log holds to the state, and records `id` as the only member, as of the last
/// entry; durable when it returns. Blocks.
///
/// Entries that are not known to be committed are applied too. A quorum may have had them, and their
/// clients an answer; nobody is left who could say otherwise.
///
/// # Errors
///
/// The state is not one that the log continues, nothing was ever applied, or storage fails.
pub fn make_alone(mut state: State, log: &Wal, id: u64, peer: &Peer) -> Result<EntryId> {
    let own = Uuid::nil();
    let held = log.log_state();
    let mut next = state.applied().0.map_or(0, |applied| applied.index + 1);
    while held.last.is_some_and(|last| next <= last.index) {
        let end = held.last.map_or(next, |last| last.index + 1);
        let entries = log.read(next..end, BATCH_BYTES).map_err(storage)?;
        let Some(last) = entries.last() else {
            return Err(Error::with_detail(
                Reason::StorageFailed,
                format!("the log has no entry {next}"),
            ));
        };
        next = last.id.index + 1;
        let entries = entries.into_iter().map(committed).collect();
        state.apply(entries, own)?;
    }
    let Some(last) = state.applied().0 else {
        let why = "this member has no data: there is nothing to form a cluster of";
        return Err(Error::with_detail(Reason::StorageFailed, why));
    };
    let alone = Membership::new(
        vec![BTreeSet::from([id])],
        BTreeMap::from([(id, peer.clone())]),
    );
    let alone = alone.map_err(storage)?;
    let at = codec::log_id(last);
    let alone = codec::encode_membership(&StoredMembership::new(Some(at), alone));
    let mut marks: WriteBatch = install_mark(Some(&at));
    marks.put(meta_key(MetaKey::Membership), alone);
    // What the lost members may have had and this one not will be given out again.
    let (key, mark) = apply::restored_mark();
    marks.put(key, mark);
    let kv = state.kv();
    kv.commit(marks)?;
    kv.persist()?;
    Ok(last)
}

/// Whether `id` is the only member in the state's membership already.
#[must_use]
pub fn is_alone(state: &State, id: u64) -> bool {
    let (_, membership) = state.applied();
    let members = membership.and_then(|membership| members_in(&membership).ok());
    members.is_some_and(|members| members.len() == 1 && members.contains_key(&id))
}

fn committed(entry: wal::Entry) -> Committed {
    let payload = match entry.kind {
        wal::EntryKind::Blank => Payload::Blank,
        wal::EntryKind::Normal => Payload::Normal(entry.payload),
        wal::EntryKind::Membership => Payload::Membership(entry.payload),
    };
    Committed {
        id: entry.id,
        payload,
    }
}

fn storage(error: impl std::error::Error + Send + Sync + 'static) -> Error {
    Error::with_detail(Reason::StorageFailed, error.to_string()).caused_by(error)
}
