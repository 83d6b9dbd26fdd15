//! What goes into the state machine and what comes out of it. Used by `raft` and `node`.

use std::fmt;

use bytes::Bytes;
use quorate_proto::Reason;
use quorate_proto::etcdserverpb::{
    AlarmResponse, CompactionResponse, DeleteRangeResponse, PutResponse, TxnResponse,
};
use uuid::Uuid;

use crate::storage::wal::EntryId;
use crate::watch::Publication;

/// A committed log entry.
#[derive(Debug, Clone)]
pub struct Committed {
    /// Its term and index.
    pub id: EntryId,
    /// What it says.
    pub payload: Payload,
}

/// What a log entry says.
#[derive(Debug, Clone)]
pub enum Payload {
    /// Nothing: the first entry of a term.
    Blank,
    /// An encoded [`Batch`](quorate_proto::log::Batch) of proposals.
    Normal(Bytes),
    /// A membership, opaque here; stored together with the applied id.
    Membership(Bytes),
}

/// What the state machine is told about its member. Nothing in it changes what a command does.
#[derive(Debug, Clone)]
pub struct Options {
    /// Size of the store, in bytes, from which [`Reader::over_quota`](super::Reader::over_quota)
    /// says so; 0 means no quota.
    pub quota_backend_bytes: u64,
}

impl Default for Options {
    /// 2 GiB, as etcd.
    fn default() -> Self {
        Self {
            quota_backend_bytes: 2 * 1024 * 1024 * 1024,
        }
    }
}

/// Names a proposal among all ever made: who made it, and which of theirs it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ProposalId {
    /// The origin's process start.
    pub boot: Uuid,
    /// The origin's counter, from 1.
    pub sequence: u64,
}

impl fmt::Display for ProposalId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.boot, self.sequence)
    }
}

/// What became of a batch of entries.
#[derive(Debug)]
pub struct Applied {
    /// The last entry of the batch.
    pub last: EntryId,
    /// The main revision after it.
    pub revision: i64,
    /// The member's own proposals of the batch, in order.
    pub outcomes: Vec<Outcome>,
    /// For [`Hub::publish`](crate::watch::Hub::publish), before any outcome is told to a client.
    pub publication: Publication,
    /// The first entry of each term that the batch entered.
    pub terms: Vec<EntryId>,
}

/// What became of one proposal of this member.
#[derive(Debug, Clone)]
pub struct Outcome {
    /// Which proposal.
    pub id: ProposalId,
    /// The answer, or why it changed nothing.
    pub result: Result<Answer, Reason>,
}

/// The answer to a proposal. Headers carry only the revision; who answers fills in the rest.
#[derive(Debug, Clone, PartialEq)]
pub enum Answer {
    /// To a put.
    Put(PutResponse),
    /// To a delete.
    DeleteRange(DeleteRangeResponse),
    /// To a transaction.
    Txn(TxnResponse),
    /// To a compaction.
    Compaction(CompactionResponse),
    /// A lease is granted.
    LeaseGrant {
        /// The main revision, unchanged by the grant.
        revision: i64,
        /// Its id.
        id: i64,
        /// Its time to live in seconds.
        ttl_seconds: i64,
    },
    /// A lease is revoked and its keys are deleted.
    LeaseRevoke {
        /// The main revision afterwards.
        revision: i64,
    },
    /// Leases have expired and their keys are deleted; unknown ones were skipped.
    LeaseExpire,
    /// Checkpoints are recorded; unknown leases were skipped.
    LeaseCheckpoint,
    /// To an alarm request.
    Alarm(AlarmResponse),
    /// A member's attributes are recorded.
    MemberAttributes,
    /// A restored state takes what clients ask for from now on, if it did not before.
    FinishRestore,
}
