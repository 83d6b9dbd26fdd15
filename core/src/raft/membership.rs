//! Who takes part in consensus, and changing it one member at a time. Used by `node`, which decides
//! whether a change may be made; here it is only made.
//!
//! A change is one log entry that adds, removes or gives a vote to one member, so the quorums before
//! and after it always share a member (Ongaro's dissertation, section 4.1). openraft refuses one while
//! the last is not committed, and before the leader has committed an entry of its own term, without
//! which single changes would not be safe.

use std::collections::{BTreeMap, BTreeSet};

use openraft::async_runtime::watch::WatchReceiver as _;
use openraft::errors::{ChangeMembershipError, ClientWriteError, RaftError};
use openraft::raft::Precondition;
use openraft::{ChangeMembers, EntryPayload};
use quorate_proto::Reason;

use crate::error::{Error, Result};
use crate::raft::codec;
use crate::raft::consensus::Consensus;
use crate::raft::types::{Membership, Peer, StoredMembership, TypeConfig};

/// One member of the raft membership.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RaftMember {
    /// Its name and where peers find it.
    pub peer: Peer,
    /// Whether it votes; otherwise it learns.
    pub is_voter: bool,
}

/// One change of the membership.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// Adds a member that learns, under an id that no member ever had.
    Add(u64, Peer),
    /// Gives a member that learns a vote.
    Promote(u64),
    /// Removes a member.
    Remove(u64),
    /// Replaces what is known of a member.
    Update(u64, Peer),
}

/// The members in an encoded membership.
///
/// # Errors
///
/// It does not decode.
pub fn members_in(membership: &[u8]) -> Result<BTreeMap<u64, RaftMember>> {
    let decoded = codec::decode_membership(membership);
    let decoded =
        decoded.map_err(|error| Error::with_detail(Reason::StorageFailed, error.to_string()))?;
    Ok(members_of(&decoded))
}

fn members_of(membership: &StoredMembership) -> BTreeMap<u64, RaftMember> {
    let voters: BTreeSet<u64> = membership.voter_ids().collect();
    let members = membership.nodes().map(|(id, peer)| {
        let peer = peer.clone();
        let is_voter = voters.contains(id);
        (*id, RaftMember { peer, is_voter })
    });
    members.collect()
}

impl Consensus {
    /// The membership in effect here; the last entry of it may not be committed yet.
    #[must_use]
    pub fn members(&self) -> BTreeMap<u64, RaftMember> {
        let metrics = self.raft().metrics();
        let membership = metrics.borrow_watched().membership_config.clone();
        members_of(&membership)
    }

    /// How many entries of this leader's log a member is not known to have; `None` unless this
    /// member leads and replicates to it.
    #[must_use]
    pub fn lag(&self, id: u64) -> Option<u64> {
        let metrics = self.raft().metrics();
        let metrics = metrics.borrow_watched();
        let matched = metrics.replication.as_ref()?.get(&id)?.as_ref()?;
        Some(metrics.last_log_index?.saturating_sub(matched.index))
    }

    /// Makes a change as the leader, and returns once it is committed and applied here. The caller sets
    /// the deadline, and makes one change at a time.
    ///
    /// # Errors
    ///
    /// [`Reason::NotLeader`]: nothing was changed, or another leader replaced the entry and only the
    /// membership tells whether it was. [`Reason::ProposalDropped`]: not now, nothing was changed.
    /// [`Reason::Stopped`].
    ///
    /// # Cancel safety
    ///
    /// Dropping the future forgets the outcome, not the change.
    pub async fn change_membership(&self, change: &Change) -> Result<()> {
        let effective = self
            .raft()
            .with_raft_state(|state| state.membership_state.effective().clone());
        let effective = effective.await.map_err(|_| Error::from(Reason::Stopped))?;
        let observed = Precondition::LastMembershipLogId {
            last_membership_log_id: *effective.log_id(),
        };
        let written = match change {
            Change::Update(id, peer) => {
                let nodes = BTreeMap::from([(*id, peer.clone())]);
                let change = ChangeMembers::SetNodes(nodes);
                self.raft()
                    .change_membership_if(change, true, [observed])
                    .await
            }
            Change::Add(..) | Change::Promote(_) | Change::Remove(_) => {
                let changed = changed(effective.membership(), change)?;
                self.raft()
                    .append_membership(changed, EntryPayload::Blank, [observed])
                    .await
            }
        };
        written.map(drop).map_err(refused)
    }
}

/// The membership after a change that adds, promotes or removes a member.
fn changed(before: &Membership, change: &Change) -> Result<Membership> {
    let mut nodes: BTreeMap<u64, Peer> = before
        .nodes()
        .map(|(id, peer)| (*id, peer.clone()))
        .collect();
    let mut voters: BTreeSet<u64> = before.voter_ids().collect();
    match change {
        Change::Add(id, peer) => drop(nodes.insert(*id, peer.clone())),
        Change::Promote(id) => drop(voters.insert(*id)),
        Change::Remove(id) => {
            nodes.remove(id);
            voters.remove(id);
        }
        Change::Update(id, peer) => drop(nodes.insert(*id, peer.clone())),
    }
    Membership::new(vec![voters], nodes)
        .map_err(|error| Error::with_detail(Reason::Internal, error.to_string()))
}

/// What it means that openraft did not make a change.
fn refused(error: RaftError<TypeConfig, ClientWriteError<TypeConfig>>) -> Error {
    match error {
        RaftError::Fatal(_) => Reason::Stopped.into(),
        RaftError::APIError(
            ClientWriteError::ForwardToLeader(_) | ClientWriteError::LogEntryDiscarded(_),
        ) => Reason::NotLeader.into(),
        RaftError::APIError(
            ClientWriteError::ChangeMembershipError(
                ChangeMembershipError::InProgress(_)
                | ChangeMembershipError::UncommittedLeaderLog(_),
            )
            | ClientWriteError::PreconditionFailed(_),
        ) => Reason::ProposalDropped.into(),
        RaftError::APIError(other) => Error::with_detail(Reason::Internal, other.to_string()),
    }
}
