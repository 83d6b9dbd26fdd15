//! One operation of a sequence, and what a store answers to it: the wire's own messages, so that
//! nothing in an answer can be forgotten.

use quorate_proto::etcdserverpb::{
    AlarmRequest, AlarmResponse, CompactionRequest, CompactionResponse, DefragmentResponse,
    DeleteRangeRequest, DeleteRangeResponse, DowngradeRequest, DowngradeResponse, HashKvRequest,
    HashKvResponse, HashResponse, LeaseGrantRequest, LeaseGrantResponse, LeaseKeepAliveResponse,
    LeaseLeasesResponse, LeaseRevokeRequest, LeaseRevokeResponse, LeaseTimeToLiveRequest,
    LeaseTimeToLiveResponse, MemberListResponse, MoveLeaderRequest, MoveLeaderResponse, PutRequest,
    PutResponse, RangeRequest, RangeResponse, StatusResponse, TxnRequest, TxnResponse,
    WatchCreateRequest, WatchResponse,
};
use quorate_proto::v3electionpb::{
    CampaignRequest, CampaignResponse, LeaderRequest, LeaderResponse, ProclaimRequest,
    ProclaimResponse, ResignRequest, ResignResponse,
};
use quorate_proto::v3lockpb::{LockRequest, LockResponse, UnlockRequest, UnlockResponse};
use tonic::{Code, Status};

/// From here on up, a lease id stands for one that the server chose: the first one of the sequence,
/// the second one, and so on. Servers choose at random, so that the ids themselves cannot be told.
pub(crate) const CHOSEN_LEASES: i64 = 8_000_000_000_000_000_000;

/// Stands for the id of the only member, which differs between stores.
pub(crate) const OWN_MEMBER: u64 = 1;

/// Something to do.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Op {
    Range(RangeRequest),
    Put(PutRequest),
    DeleteRange(DeleteRangeRequest),
    Txn(TxnRequest),
    Compact(CompactionRequest),
    LeaseGrant(LeaseGrantRequest),
    LeaseRevoke(LeaseRevokeRequest),
    LeaseKeepAlive(i64),
    LeaseTimeToLive(LeaseTimeToLiveRequest),
    LeaseLeases,
    WatchCreate {
        stream: usize,
        request: WatchCreateRequest,
    },
    WatchCancel {
        stream: usize,
        id: i64,
        /// Whether there is such a watcher: only then is there an answer.
        known: bool,
    },
    WatchProgress {
        stream: usize,
        /// Whether the stream has watchers and all of them are in sync: only then is there an
        /// answer, by the rule of etcd 3.5.30.
        in_sync: bool,
    },
    Alarm(AlarmRequest),
    Status,
    Hash,
    HashKv(HashKvRequest),
    Defragment,
    MoveLeader(MoveLeaderRequest),
    Downgrade(DowngradeRequest),
    MemberList {
        linearizable: bool,
    },
    Lock(LockRequest),
    Unlock(UnlockRequest),
    Campaign(CampaignRequest),
    Proclaim(ProclaimRequest),
    Resign(ResignRequest),
    Leader(LeaderRequest),
}

/// What came back.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Reply {
    Range(RangeResponse),
    Put(PutResponse),
    DeleteRange(DeleteRangeResponse),
    Txn(TxnResponse),
    Compact(CompactionResponse),
    LeaseGrant(LeaseGrantResponse),
    LeaseRevoke(LeaseRevokeResponse),
    LeaseKeepAlive(LeaseKeepAliveResponse),
    LeaseTimeToLive(LeaseTimeToLiveResponse),
    LeaseLeases(LeaseLeasesResponse),
    Watch(WatchResponse),
    Alarm(AlarmResponse),
    Status(StatusResponse),
    Hash(HashResponse),
    HashKv(HashKvResponse),
    Defragment(DefragmentResponse),
    MoveLeader(MoveLeaderResponse),
    Downgrade(DowngradeResponse),
    MemberList(MemberListResponse),
    Lock(LockResponse),
    Unlock(UnlockResponse),
    Campaign(CampaignResponse),
    Proclaim(ProclaimResponse),
    Resign(ResignResponse),
    Leader(LeaderResponse),
    /// No answer was due.
    Nothing,
}

/// An error, as clients see it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Refusal {
    pub code: Code,
    pub message: String,
}

impl From<Status> for Refusal {
    fn from(status: Status) -> Self {
        Self {
            code: status.code(),
            message: status.message().to_owned(),
        }
    }
}

/// A reply or an error.
pub(crate) type Answer = Result<Reply, Refusal>;
