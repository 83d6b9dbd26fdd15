//! What operators ask of one member.

use std::sync::Arc;

use quorate_proto::Reason;
use quorate_proto::etcdserverpb::downgrade_request::DowngradeAction;
use quorate_proto::etcdserverpb::{
    AlarmMember, AlarmRequest, AlarmResponse, AlarmType, DefragmentResponse, DowngradeInfo,
    DowngradeRequest, DowngradeResponse, HashKvRequest, HashKvResponse, HashResponse,
    MoveLeaderRequest, MoveLeaderResponse, StatusResponse,
};
use quorate_proto::log::command::Kind;

use super::kv::unexpected;
use super::read::blocking;
use super::{ETCD_VERSION, Node};
use crate::apply::{Answer, check};
use crate::error::{Error, Result};
use crate::mvcc;
use crate::storage::kv::KvError;

impl Node {
    /// How this member stands: local, asks nobody.
    ///
    /// # Errors
    /// None today.
    pub async fn status(&self) -> Result<StatusResponse> {
        let raft = self.shared.consensus.status();
        let disk_bytes = i64::try_from(self.disk_bytes().await?).unwrap_or(i64::MAX);
        // None when the one there was is silent, which raft's own view does not say.
        let leader = self.leadership().leader;
        let leaderless = leader.is_none().then(|| Reason::NoLeader.text().to_owned());
        let errors = leaderless
            .into_iter()
            .chain(self.alarms().iter().map(describe))
            .collect();
        let members = self.shared.consensus.members();
        let own = members.get(&self.member_id());
        Ok(StatusResponse {
            header: Some(self.header()),
            version: ETCD_VERSION.to_owned(),
            db_size: disk_bytes,
            leader: leader.unwrap_or(0),
            raft_index: raft.committed_index,
            raft_term: raft.term,
            raft_applied_index: raft.applied_index,
            errors,
            db_size_in_use: disk_bytes,
            is_learner: own.is_some_and(|own| !own.is_voter),
            storage_version: ETCD_VERSION.to_owned(),
            db_size_quota: i64::try_from(self.shared.quota_bytes).unwrap_or(i64::MAX),
            downgrade_info: Some(DowngradeInfo::default()),
        })
    }

    /// What the store takes on the disk, in bytes.
    pub(super) async fn disk_bytes(&self) -> Result<u64> {
        let reader = self.shared.reader.clone();
        blocking(move || Ok::<_, Error>(reader.disk_bytes())).await
    }

    /// The alarms this member knows of.
    #[must_use]
    pub fn alarms(&self) -> Vec<AlarmMember> {
        self.shared
            .reader
            .alarms()
            .iter()
            .map(|alarm| AlarmMember {
                member_id: alarm.member,
                alarm: alarm.kind.into(),
            })
            .collect()
    }

    /// Lists, raises or lifts alarms.
    ///
    /// # Errors
    /// Unknown actions and types; as any write.
    pub async fn alarm(&self, request: AlarmRequest) -> Result<AlarmResponse> {
        check::alarm(&request)?;
        match self.propose(Kind::Alarm(request)).await? {
            (Answer::Alarm(mut answer), _) => {
                self.complete(&mut answer.header);
                Ok(answer)
            }
            (other, _) => Err(unexpected(&other)),
        }
    }

    /// A hash of this member's key space as it stands. Reads everything.
    ///
    /// # Errors
    /// Storage failures.
    pub async fn hash(&self) -> Result<HashResponse> {
        let hashed = self.hash_kv(HashKvRequest::default()).await?;
        Ok(HashResponse {
            header: hashed.header,
            hash: hashed.hash,
        })
    }

    /// A hash of the key space at a revision (0 or less: the current one), equal on all members
    /// that agree. Local; reads everything.
    ///
    /// # Errors
    /// Compacted and future revisions; storage failures.
    pub async fn hash_kv(&self, request: HashKvRequest) -> Result<HashKvResponse> {
        let reader = self.shared.reader.clone();
        let hash = move || mvcc::hash::hash_kv(&*reader.view(), request.revision);
        let hashed = self.scan(hash).await?;
        Ok(HashKvResponse {
            header: Some(self.header_at(hashed.current_revision)),
            hash: hashed.hash,
            compact_revision: hashed.compact_revision,
            hash_revision: hashed.revision,
        })
    }

    /// Gives back the space of what was overwritten, deleted or compacted away, on this member: its
    /// store writes anew what is left of it, for which it needs as much free space. Takes the longer
    /// the more that is, and goes on when the caller does not wait. Reads and writes go on beside it;
    /// some hundred MiB of writes later they wait for its end. One runs at a time.
    ///
    /// # Errors
    /// Too little free space, and storage failures; nothing is lost then.
    pub async fn defragment(&self) -> Result<DefragmentResponse> {
        let reclaim = Arc::clone(&self.shared.reclaim);
        let Ok(permit) = reclaim.acquire_owned().await else {
            return Err(Reason::Stopped.into());
        };
        // One was given at the start.
        self.shared.consensus.unpin().await;
        let node = self.clone();
        let reclaim = move || {
            let _permit = permit;
            let kv = node.shared.reader.kv();
            let before = kv.disk_bytes();
            kv.reclaim()?;
            node.look_at_quota();
            let after = kv.disk_bytes();
            tracing::info!(before, after, "defragmented the store, sizes in bytes");
            Ok::<_, KvError>(DefragmentResponse::default())
        };
        blocking(reclaim).await
    }

    /// Hands leadership to another member; only the leader can. The answer has no header, as on etcd.
    ///
    /// # Errors
    /// Not leader; a target that is no voter; a time-out when the target does not take over.
    pub async fn move_leader(&self, request: MoveLeaderRequest) -> Result<MoveLeaderResponse> {
        self.shared
            .consensus
            .transfer_leader(request.target_id)
            .await?;
        Ok(MoveLeaderResponse { header: None })
    }

    /// There is no older version to go back to: every target is refused, and there is never a
    /// downgrade to cancel. In etcd's order of checks, which asks the leader last.
    ///
    /// # Errors
    /// Always: of the request, of the target, or time-outs.
    pub async fn downgrade(&self, request: &DowngradeRequest) -> Result<DowngradeResponse> {
        let reason = match DowngradeAction::try_from(request.action) {
            Ok(DowngradeAction::Cancel) => Reason::NoDowngrade,
            Ok(DowngradeAction::Validate | DowngradeAction::Enable) => {
                if !is_cluster_version(&request.version) {
                    return Err(Reason::DowngradeBadVersion.into());
                }
                Reason::DowngradeInvalidTarget
            }
            Err(_) => return Err(Reason::UnknownMethod.into()),
        };
        self.read_barrier().await?;
        Err(reason.into())
    }
}

/// Whether a text names a version, as etcd reads it: three numbers, or two, with what may follow them.
fn is_cluster_version(text: &str) -> bool {
    let is_version = |text: &str| {
        let (text, metadata) = text.split_once('+').unwrap_or((text, ""));
        let (numbers, release) = text.split_once('-').unwrap_or((text, ""));
        let is_identifier = |part: &str| {
            part.bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || b".-".contains(&byte))
        };
        numbers.split('.').count() == 3
            && numbers.split('.').all(|part| part.parse::<i64>().is_ok())
            && is_identifier(release)
            && is_identifier(metadata)
    };
    is_version(text) || is_version(&format!("{text}.0"))
}

/// An alarm in the words of etcd's status.
fn describe(alarm: &AlarmMember) -> String {
    let kind = match alarm.alarm() {
        AlarmType::None => "NONE",
        AlarmType::Nospace => "NOSPACE",
        AlarmType::Corrupt => "CORRUPT",
    };
    format!("memberID:{} alarm:{kind} ", alarm.member_id)
}
