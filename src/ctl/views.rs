//! What a cluster answers, as JSON: in etcdctl's shape, where numbers are numbers and what is nothing is
//! left out, and in the one for people, where ids are in hex.

use quorate_proto::etcdserverpb::{
    AlarmMember, AlarmResponse, AlarmType, HashKvResponse, Member, ResponseHeader, StatusResponse,
};
use serde::Serialize;

/// Whether a value is what Go's encoder leaves out.
fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

/// An id as people and the command line write it.
pub(crate) fn id(id: u64) -> String {
    format!("{id:x}")
}

/// A member's state in etcdctl's words: it has told its name once it ran.
pub(crate) fn state(member: &Member) -> &'static str {
    if member.name.is_empty() {
        "unstarted"
    } else {
        "started"
    }
}

/// An alarm's kind in etcd's words.
pub(crate) fn alarm_name(alarm: &AlarmMember) -> &'static str {
    match alarm.alarm() {
        AlarmType::None => "NONE",
        AlarmType::Nospace => "NOSPACE",
        AlarmType::Corrupt => "CORRUPT",
    }
}

/// A response header, as etcdctl prints it.
#[derive(Debug, Serialize)]
pub(crate) struct EtcdHeader {
    #[serde(skip_serializing_if = "is_default")]
    cluster_id: u64,
    #[serde(skip_serializing_if = "is_default")]
    member_id: u64,
    #[serde(skip_serializing_if = "is_default")]
    revision: i64,
    #[serde(skip_serializing_if = "is_default")]
    raft_term: u64,
}

impl EtcdHeader {
    pub(crate) fn of(header: Option<&ResponseHeader>) -> Option<Self> {
        header.map(|header| Self {
            cluster_id: header.cluster_id,
            member_id: header.member_id,
            revision: header.revision,
            raft_term: header.raft_term,
        })
    }
}

/// A member, as etcdctl prints it.
#[derive(Debug, Serialize)]
pub(crate) struct EtcdMember {
    #[serde(rename = "ID", skip_serializing_if = "is_default")]
    id: u64,
    #[serde(skip_serializing_if = "is_default")]
    name: String,
    #[serde(rename = "peerURLs", skip_serializing_if = "is_default")]
    peer_urls: Vec<String>,
    #[serde(rename = "clientURLs", skip_serializing_if = "is_default")]
    client_urls: Vec<String>,
    #[serde(rename = "isLearner", skip_serializing_if = "is_default")]
    is_learner: bool,
}

impl From<&Member> for EtcdMember {
    fn from(member: &Member) -> Self {
        Self {
            id: member.id,
            name: member.name.clone(),
            peer_urls: member.peer_ur_ls.clone(),
            client_urls: member.client_ur_ls.clone(),
            is_learner: member.is_learner,
        }
    }
}

/// An answer about members, as etcdctl prints it.
#[derive(Debug, Serialize)]
pub(crate) struct EtcdMembers {
    #[serde(skip_serializing_if = "Option::is_none")]
    header: Option<EtcdHeader>,
    #[serde(skip_serializing_if = "Option::is_none")]
    member: Option<EtcdMember>,
    #[serde(skip_serializing_if = "is_default_vec")]
    members: Vec<EtcdMember>,
}

fn is_default_vec<T>(values: &[T]) -> bool {
    values.is_empty()
}

impl EtcdMembers {
    /// `added` is the member the answer is about, if it is about one.
    pub(crate) fn of(
        header: Option<&ResponseHeader>,
        added: Option<&Member>,
        members: &[Member],
    ) -> Self {
        Self {
            header: EtcdHeader::of(header),
            member: added.map(EtcdMember::from),
            members: members.iter().map(EtcdMember::from).collect(),
        }
    }
}

/// A member's status, as etcdctl prints it.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct EtcdStatus {
    #[serde(skip_serializing_if = "Option::is_none")]
    header: Option<EtcdHeader>,
    #[serde(skip_serializing_if = "is_default")]
    version: String,
    #[serde(skip_serializing_if = "is_default")]
    db_size: i64,
    #[serde(skip_serializing_if = "is_default")]
    leader: u64,
    #[serde(skip_serializing_if = "is_default")]
    raft_index: u64,
    #[serde(skip_serializing_if = "is_default")]
    raft_term: u64,
    #[serde(skip_serializing_if = "is_default")]
    raft_applied_index: u64,
    #[serde(skip_serializing_if = "is_default")]
    errors: Vec<String>,
    #[serde(skip_serializing_if = "is_default")]
    db_size_in_use: i64,
    #[serde(skip_serializing_if = "is_default")]
    is_learner: bool,
}

impl From<&StatusResponse> for EtcdStatus {
    fn from(status: &StatusResponse) -> Self {
        Self {
            header: EtcdHeader::of(status.header.as_ref()),
            version: status.version.clone(),
            db_size: status.db_size,
            leader: status.leader,
            raft_index: status.raft_index,
            raft_term: status.raft_term,
            raft_applied_index: status.raft_applied_index,
            errors: status.errors.clone(),
            db_size_in_use: status.db_size_in_use,
            is_learner: status.is_learner,
        }
    }
}

/// A hash of the keys, as etcdctl prints it.
#[derive(Debug, Serialize)]
pub(crate) struct EtcdHash {
    #[serde(skip_serializing_if = "Option::is_none")]
    header: Option<EtcdHeader>,
    #[serde(skip_serializing_if = "is_default")]
    hash: u32,
    #[serde(skip_serializing_if = "is_default")]
    compact_revision: i64,
}

impl From<&HashKvResponse> for EtcdHash {
    fn from(hashed: &HashKvResponse) -> Self {
        Self {
            header: EtcdHeader::of(hashed.header.as_ref()),
            hash: hashed.hash,
            compact_revision: hashed.compact_revision,
        }
    }
}

/// Alarms, as etcdctl prints them.
#[derive(Debug, Serialize)]
pub(crate) struct EtcdAlarms {
    #[serde(skip_serializing_if = "Option::is_none")]
    header: Option<EtcdHeader>,
    #[serde(skip_serializing_if = "is_default_vec")]
    alarms: Vec<EtcdAlarm>,
}

#[derive(Debug, Serialize)]
struct EtcdAlarm {
    #[serde(rename = "memberID", skip_serializing_if = "is_default")]
    member_id: u64,
    #[serde(skip_serializing_if = "is_default")]
    alarm: i32,
}

impl From<&AlarmResponse> for EtcdAlarms {
    fn from(answer: &AlarmResponse) -> Self {
        let alarm = |alarm: &AlarmMember| EtcdAlarm {
            member_id: alarm.member_id,
            alarm: alarm.alarm,
        };
        Self {
            header: EtcdHeader::of(answer.header.as_ref()),
            alarms: answer.alarms.iter().map(alarm).collect(),
        }
    }
}

/// A member, for people.
#[derive(Debug, Serialize)]
pub(crate) struct MemberView {
    id: String,
    name: String,
    started: bool,
    learner: bool,
    peer_urls: Vec<String>,
    client_urls: Vec<String>,
}

impl From<&Member> for MemberView {
    fn from(member: &Member) -> Self {
        Self {
            id: id(member.id),
            name: member.name.clone(),
            started: !member.name.is_empty(),
            learner: member.is_learner,
            peer_urls: member.peer_ur_ls.clone(),
            client_urls: member.client_ur_ls.clone(),
        }
    }
}

/// An alarm, for people.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub(crate) struct AlarmView {
    pub(crate) member: String,
    pub(crate) alarm: String,
}

impl From<&AlarmMember> for AlarmView {
    fn from(alarm: &AlarmMember) -> Self {
        Self {
            member: id(alarm.member_id),
            alarm: alarm_name(alarm).to_owned(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_for_etcds_readers_leaves_out_what_is_nothing() {
        let header = ResponseHeader {
            cluster_id: 17_368_989_521_238_926_805,
            member_id: 17_628_310_501_313_495_538,
            revision: 0,
            raft_term: 2,
        };
        let learner = Member {
            id: 7,
            peer_ur_ls: vec!["http://h:1".to_owned()],
            is_learner: true,
            ..Member::default()
        };
        let members = EtcdMembers::of(Some(&header), None, &[learner]);
        assert_eq!(
            serde_json::to_string(&members).unwrap(),
            r#"{"header":{"cluster_id":17368989521238926805,"member_id":17628310501313495538,"raft_term":2},"members":[{"ID":7,"peerURLs":["http://h:1"],"isLearner":true}]}"#
        );
        let nothing = AlarmResponse::default();
        assert_eq!(
            serde_json::to_string(&EtcdAlarms::from(&nothing)).unwrap(),
            "{}"
        );
    }

    #[test]
    fn json_for_people_has_ids_in_hex() {
        let alarm = AlarmMember {
            member_id: 0x8e9e_05c5_2164_694d,
            alarm: AlarmType::Nospace.into(),
        };
        assert_eq!(
            serde_json::to_string(&AlarmView::from(&alarm)).unwrap(),
            r#"{"member":"8e9e05c52164694d","alarm":"NOSPACE"}"#
        );
    }
}
