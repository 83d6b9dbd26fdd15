//! What can be seen of a member from outside, at one moment: for metrics and consoles.

use std::sync::atomic::Ordering::Relaxed;

use super::Node;
use crate::clock::Instant;
use crate::error::Result;
use crate::peer::{PeerStatus, TransferCounts, Transport};

/// The leaders a member has known since its start.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Leaders {
    /// Since when the current one leads, or the last one led.
    pub(super) since: Option<Instant>,
    /// How many there were.
    pub(super) count: u64,
}

/// A member at one moment.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Observed {
    /// This member's id.
    pub member_id: u64,
    /// Whether it has no vote.
    pub is_learner: bool,
    /// The current term.
    pub term: u64,
    /// The leader, if one is known and heard of.
    pub leader: Option<u64>,
    /// Whether this member leads.
    pub is_leader: bool,
    /// Leaders known since the start.
    pub leaders_seen: u64,
    /// Last index known to be committed.
    pub committed_index: u64,
    /// Last index applied here.
    pub applied_index: u64,
    /// Writes of this member's clients that were sent and wait for their outcome.
    pub pending_proposals: usize,
    /// Writes of this member's clients that were not decided, as far as could be told.
    pub failed_proposals: u64,
    /// Keys put that this member has applied since it started.
    pub puts: u64,
    /// Keys deleted that this member has applied since it started.
    pub deletes: u64,
    /// Current revision.
    pub revision: i64,
    /// Compact revision; 0 before any compaction.
    pub compact_revision: i64,
    /// Watchers on all streams.
    pub watchers: usize,
    /// Of those, watchers that have to be caught up with the present.
    pub watchers_behind: usize,
    /// Leases granted.
    pub leases: usize,
    /// Size of the store in bytes: approximate.
    pub disk_bytes: u64,
    /// The quota in bytes.
    pub quota_bytes: u64,
    /// Alarms that stand.
    pub alarms: usize,
    /// Snapshots received from the leader, since the start.
    pub snapshots_received: TransferCounts,
    /// Whether the state is being replaced by one.
    pub is_installing: bool,
    /// The connections to the peers.
    pub peers: Vec<PeerStatus>,
}

impl Node {
    /// How this member is, now. Asks no other member.
    ///
    /// # Errors
    /// Only when the program ends.
    pub async fn observe(&self) -> Result<Observed> {
        let disk_bytes = self.disk_bytes().await?;
        let shared = &self.shared;
        let known = self.leadership();
        let (puts, deletes) = shared.reader.written();
        let raft = shared.consensus.status();
        let transport = shared.transport.as_ref();
        let received = transport.map(Transport::snapshots_received);
        Ok(Observed {
            member_id: shared.member_id,
            is_learner: self.is_learner(),
            term: known.term,
            leader: known.leader,
            is_leader: known.leader == Some(shared.member_id),
            leaders_seen: shared.leaders.borrow().count,
            committed_index: raft.committed_index,
            applied_index: raft.applied_index,
            pending_proposals: shared.pending.len(),
            revision: shared.reader.revision(),
            compact_revision: shared.reader.compact_revision(),
            failed_proposals: shared.proposals_failed.load(Relaxed),
            puts,
            deletes,
            watchers_behind: shared.hub.watchers_behind(),
            watchers: shared.hub.watchers(),
            leases: shared.reader.lessor().len(),
            disk_bytes,
            quota_bytes: shared.quota_bytes,
            alarms: shared.reader.alarms().len(),
            snapshots_received: received.unwrap_or_default(),
            is_installing: raft.is_installing,
            peers: self.peers(),
        })
    }
}
