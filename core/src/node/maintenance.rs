//! What operators ask of one member.

use quorate_proto::Reason;
use quorate_proto::etcdserverpb::{
    AlarmMember, AlarmRequest, AlarmResponse, AlarmType, HashKvRequest, HashKvResponse,
    HashResponse, MoveLeaderRequest, MoveLeaderResponse, StatusResponse,
};
use quorate_proto::log::command::Kind;

use super::kv::unexpected;
use super::{ETCD_VERSION, Node};
use crate::apply::{Answer, check};
use crate::error::Result;
use crate::mvcc;

impl Node {
    /// How this member stands: local, asks nobody.
    ///
    /// # Errors
    /// None today.
    pub async fn status(&self) -> Result<StatusResponse> {
        let raft = self.shared.consensus.status();
        let disk_bytes = i64::try_from(self.shared.reader.disk_bytes()).unwrap_or(i64::MAX);
        let mut errors: Vec<String> = self.alarms().iter().map(describe).collect();
        if raft.leader.is_none() {
            errors.push(Reason::NoLeader.text().to_owned());
        }
        let members = self.shared.consensus.members();
        let own = members.get(&self.member_id());
        Ok(StatusResponse {
            header: Some(self.header()),
            version: ETCD_VERSION.to_owned(),
            db_size: disk_bytes,
            leader: raft.leader.unwrap_or(0),
            raft_index: raft.committed_index,
            raft_term: raft.term,
            raft_applied_index: raft.applied_index,
            errors,
            db_size_in_use: disk_bytes,
            is_learner: own.is_some_and(|own| !own.is_voter),
            storage_version: ETCD_VERSION.to_owned(),
            db_size_quota: i64::try_from(self.shared.quota_bytes).unwrap_or(i64::MAX),
            downgrade_info: None,
        })
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
        let hashed = self.read(false, hash).await?;
        Ok(HashKvResponse {
            header: Some(self.header_at(hashed.current_revision)),
            hash: hashed.hash,
            compact_revision: hashed.compact_revision,
            hash_revision: hashed.revision,
        })
    }

    /// Hands leadership to another member; only the leader can.
    ///
    /// # Errors
    /// Not leader; a target that is no voter; a time-out when the target does not take over.
    pub async fn move_leader(&self, request: MoveLeaderRequest) -> Result<MoveLeaderResponse> {
        self.shared
            .consensus
            .transfer_leader(request.target_id)
            .await?;
        Ok(MoveLeaderResponse {
            header: Some(self.header()),
        })
    }
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
