//! Conversions between openraft's types and the log's, and the encoding of a membership. Used by the
//! log store, the state machine, the network and its handler.
//!
//! The encodings are explicit records of this file: a change of openraft's types never changes what
//! is on disk or on the wire.

use std::collections::{BTreeMap, BTreeSet};
use std::io;

use bytes::Bytes;
use openraft::EntryPayload;
use prost::Message;

use crate::raft::types::{
    Command, CommittedLeaderId, Entry, LeaderId, LogId, Membership, Peer, StoredMembership, Vote,
};
use crate::storage::wal;

/// Bytes of an encoded membership at most; hundreds of members fit.
pub const MEMBERSHIP_BYTES_MAX: usize = 1 << 20;

/// A membership that does not decode, or that no cluster can have.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("damaged membership record: {0}")]
pub struct MembershipError(String);

impl From<MembershipError> for io::Error {
    fn from(error: MembershipError) -> Self {
        Self::new(io::ErrorKind::InvalidData, error)
    }
}

/// A stored membership: the voter sets, all nodes, and the entry it came in.
#[derive(Clone, PartialEq, Message)]
struct MembershipRecord {
    /// One set, or two while the membership is changing.
    #[prost(message, repeated, tag = "1")]
    configs: Vec<VotersRecord>,
    /// Voters and learners, by id.
    #[prost(message, repeated, tag = "2")]
    nodes: Vec<NodeRecord>,
    /// Absent: the membership of a member that has none yet.
    #[prost(message, optional, tag = "3")]
    log_id: Option<LogIdRecord>,
}

#[derive(Clone, PartialEq, Message)]
struct VotersRecord {
    #[prost(uint64, repeated, tag = "1")]
    ids: Vec<u64>,
}

#[derive(Clone, PartialEq, Message)]
struct NodeRecord {
    #[prost(uint64, tag = "1")]
    id: u64,
    #[prost(string, tag = "2")]
    name: String,
    #[prost(string, repeated, tag = "3")]
    peer_urls: Vec<String>,
    #[prost(bool, tag = "4")]
    wants_vote: bool,
}

#[derive(Clone, PartialEq, Message)]
struct LogIdRecord {
    #[prost(uint64, tag = "1")]
    term: u64,
    #[prost(uint64, tag = "2")]
    index: u64,
}

/// The log's name of a log id.
#[must_use]
pub fn entry_id(id: &LogId) -> wal::EntryId {
    wal::EntryId::new(id.leader_id.term, id.index)
}

/// openraft's name of an entry id.
#[must_use]
pub fn log_id(id: wal::EntryId) -> LogId {
    LogId::new(CommittedLeaderId::new(id.term), id.index)
}

/// A vote as the log stores it.
#[must_use]
pub fn wal_vote(vote: &Vote) -> wal::Vote {
    wal::Vote {
        term: vote.leader_id.term,
        node: vote.leader_id.voted_for,
        committed: vote.committed,
    }
}

/// A stored vote as openraft knows it.
#[must_use]
pub fn vote(vote: wal::Vote) -> Vote {
    Vote {
        leader_id: LeaderId {
            term: vote.term,
            voted_for: vote.node,
        },
        committed: vote.committed,
    }
}

/// An entry as the log stores it and as it travels.
#[must_use]
pub fn wal_entry(entry: Entry) -> wal::Entry {
    let (kind, payload) = match entry.payload {
        EntryPayload::Blank => (wal::EntryKind::Blank, Bytes::new()),
        EntryPayload::Normal(Command(batch)) => (wal::EntryKind::Normal, batch),
        EntryPayload::Membership(membership) => {
            let stored = StoredMembership::new(Some(entry.log_id), membership);
            (wal::EntryKind::Membership, encode_membership(&stored))
        }
    };
    wal::Entry {
        id: entry_id(&entry.log_id),
        kind,
        payload,
    }
}

/// A stored or received entry as openraft knows it.
///
/// # Errors
///
/// A membership that does not decode: damage that no checksum saw, or a foreign sender.
pub fn entry(entry: wal::Entry) -> Result<Entry, MembershipError> {
    let payload = match entry.kind {
        wal::EntryKind::Blank => EntryPayload::Blank,
        wal::EntryKind::Normal => EntryPayload::Normal(Command(entry.payload)),
        wal::EntryKind::Membership => {
            let stored = decode_membership(&entry.payload)?;
            EntryPayload::Membership(stored.membership().clone())
        }
    };
    Ok(Entry {
        log_id: log_id(entry.id),
        payload,
    })
}

/// Encodes a membership together with the id of its entry: what an entry, a snapshot header and the
/// state carry.
#[must_use]
pub fn encode_membership(stored: &StoredMembership) -> Bytes {
    let membership = stored.membership();
    let configs = membership.get_joint_config().iter();
    let record = MembershipRecord {
        configs: configs
            .map(|ids| VotersRecord {
                ids: ids.iter().copied().collect(),
            })
            .collect(),
        nodes: membership
            .nodes()
            .map(|(id, node)| NodeRecord {
                id: *id,
                name: node.name.clone(),
                peer_urls: node.peer_urls.clone(),
                wants_vote: node.wants_vote,
            })
            .collect(),
        log_id: stored.log_id().as_ref().map(|id| LogIdRecord {
            term: id.leader_id.term,
            index: id.index,
        }),
    };
    Bytes::from(record.encode_to_vec())
}

/// Decodes what [`encode_membership`] encoded. Empty bytes are the membership of a member that has
/// none yet.
///
/// # Errors
///
/// Bytes that are too long, do not decode, or name a voter that has no node.
pub fn decode_membership(bytes: &[u8]) -> Result<StoredMembership, MembershipError> {
    if bytes.len() > MEMBERSHIP_BYTES_MAX {
        return Err(MembershipError(format!(
            "{} bytes, at most {MEMBERSHIP_BYTES_MAX}",
            bytes.len()
        )));
    }
    let record =
        MembershipRecord::decode(bytes).map_err(|error| MembershipError(error.to_string()))?;
    let log_id = record
        .log_id
        .map(|id| LogId::new(CommittedLeaderId::new(id.term), id.index));
    let mut nodes = BTreeMap::new();
    for node in record.nodes {
        let peer = Peer {
            name: node.name,
            peer_urls: node.peer_urls,
            wants_vote: node.wants_vote,
        };
        if nodes.insert(node.id, peer).is_some() {
            return Err(MembershipError(format!("node {} twice", node.id)));
        }
    }
    let configs: Vec<BTreeSet<u64>> = record
        .configs
        .into_iter()
        .map(|voters| voters.ids.into_iter().collect())
        .collect();
    if configs.is_empty() && nodes.is_empty() {
        return Ok(StoredMembership::new(log_id, Membership::default()));
    }
    let membership =
        Membership::new(configs, nodes).map_err(|error| MembershipError(error.to_string()))?;
    Ok(StoredMembership::new(log_id, membership))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(name: &str) -> Peer {
        Peer {
            name: name.to_owned(),
            peer_urls: vec![format!("http://{name}:2380"), "http://x".to_owned()],
            wants_vote: true,
        }
    }

    fn joint() -> Membership {
        let nodes = BTreeMap::from([(1, peer("a")), (2, peer("b")), (9, peer("learner"))]);
        Membership::new(vec![BTreeSet::from([1]), BTreeSet::from([1, 2])], nodes).unwrap()
    }

    #[test]
    fn entries_of_every_kind_survive_the_log() {
        let id = LogId::new(CommittedLeaderId::new(7), u64::MAX);
        for payload in [
            EntryPayload::Blank,
            EntryPayload::Normal(Command(Bytes::from_static(b"batch"))),
            EntryPayload::Membership(joint()),
        ] {
            let before = Entry {
                log_id: id,
                payload,
            };
            let after = entry(wal_entry(before.clone())).unwrap();
            assert_eq!(after.log_id, before.log_id);
            assert!(after.payload == before.payload, "{:?}", before.payload);
        }
    }

    #[test]
    fn votes_and_ids_survive_the_log() {
        for committed in [true, false] {
            let before = Vote {
                leader_id: LeaderId {
                    term: 3,
                    voted_for: u64::MAX,
                },
                committed,
            };
            assert_eq!(vote(wal_vote(&before)), before);
        }
        let id = wal::EntryId::new(u64::MAX, 0);
        assert_eq!(entry_id(&log_id(id)), id);
    }

    #[test]
    fn a_membership_keeps_its_joint_sets_learners_addresses_and_log_id() {
        let id = LogId::new(CommittedLeaderId::new(2), 5);
        for stored in [
            StoredMembership::new(Some(id), joint()),
            StoredMembership::default(),
        ] {
            let decoded = decode_membership(&encode_membership(&stored)).unwrap();
            assert_eq!(decoded, stored);
        }
        assert_eq!(decode_membership(b"").unwrap(), StoredMembership::default());
    }

    #[test]
    fn damaged_memberships_are_refused() {
        let good = encode_membership(&StoredMembership::new(None, joint()));
        assert!(decode_membership(&good[..good.len() - 1]).is_err());
        let voter_without_node = MembershipRecord {
            configs: vec![VotersRecord { ids: vec![1, 2] }],
            nodes: vec![NodeRecord {
                id: 1,
                ..NodeRecord::default()
            }],
            log_id: None,
        };
        assert!(decode_membership(&voter_without_node.encode_to_vec()).is_err());
        assert!(decode_membership(&vec![0; MEMBERSHIP_BYTES_MAX + 1]).is_err());
    }
}
