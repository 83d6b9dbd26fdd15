//! Conversions between openraft's messages and those of the peer protocol. Used by the network and
//! its handler.

use openraft::raft::{
    AppendEntriesRequest, StreamAppendError, StreamAppendResult, TransferLeaderError,
    TransferLeaderRequest, TransferLeaderResponse, VoteRequest, VoteResponse,
};
use quorate_proto::peer as pb;

use crate::peer::PeerError;
use crate::raft::codec;
use crate::raft::types::{Entry, LeaderId, LogId, SnapshotMeta, TypeConfig, Vote};
use crate::storage::wal;

/// A message without a part it must have.
fn lacks(what: &str) -> PeerError {
    PeerError::Protocol(format!("a raft message without {what}"))
}

pub(super) fn log_id(id: &LogId) -> pb::LogId {
    pb::LogId {
        term: id.leader_id.term,
        index: id.index,
    }
}

pub(super) fn to_log_id(id: pb::LogId) -> LogId {
    codec::log_id(wal::EntryId::new(id.term, id.index))
}

pub(super) fn vote(vote: &Vote) -> pb::Vote {
    pb::Vote {
        term: vote.leader_id.term,
        voted_for: vote.leader_id.voted_for,
        committed: vote.committed,
    }
}

pub(super) fn to_vote(vote: Option<pb::Vote>) -> Result<Vote, PeerError> {
    let vote = vote.ok_or_else(|| lacks("a vote"))?;
    Ok(Vote {
        leader_id: LeaderId {
            term: vote.term,
            voted_for: vote.voted_for,
        },
        committed: vote.committed,
    })
}

fn entry(entry: Entry) -> pb::Entry {
    let entry = codec::wal_entry(entry);
    let kind = match entry.kind {
        wal::EntryKind::Blank => pb::EntryKind::Blank,
        wal::EntryKind::Normal => pb::EntryKind::Normal,
        wal::EntryKind::Membership => pb::EntryKind::Membership,
    };
    pb::Entry {
        term: entry.id.term,
        index: entry.id.index,
        kind: kind.into(),
        payload: entry.payload,
    }
}

fn to_entry(entry: pb::Entry) -> Result<Entry, PeerError> {
    let kind = match pb::EntryKind::try_from(entry.kind) {
        Ok(pb::EntryKind::Blank) => wal::EntryKind::Blank,
        Ok(pb::EntryKind::Normal) => wal::EntryKind::Normal,
        Ok(pb::EntryKind::Membership) => wal::EntryKind::Membership,
        Err(unknown) => return Err(PeerError::Protocol(unknown.to_string())),
    };
    let entry = wal::Entry {
        id: wal::EntryId::new(entry.term, entry.index),
        kind,
        payload: entry.payload,
    };
    codec::entry(entry).map_err(|error| PeerError::Protocol(error.to_string()))
}

pub(super) fn append(request: AppendEntriesRequest<TypeConfig>) -> pb::AppendRequest {
    pb::AppendRequest {
        vote: Some(vote(&request.vote)),
        previous: request.prev_log_id.as_ref().map(log_id),
        committed: request.leader_commit.as_ref().map(log_id),
        entries: request.entries.into_iter().map(entry).collect(),
    }
}

pub(super) fn to_append(
    request: pb::AppendRequest,
) -> Result<AppendEntriesRequest<TypeConfig>, PeerError> {
    let entries: Result<Vec<_>, _> = request.entries.into_iter().map(to_entry).collect();
    let entries = entries?;
    // openraft takes the order of what a leader sends for granted.
    let mut next = request
        .previous
        .map_or(Some(0), |id| id.index.checked_add(1));
    for entry in &entries {
        let index = entry.log_id.index;
        if next != Some(index) {
            let due = next.map_or("none".to_owned(), |next| next.to_string());
            return Err(PeerError::Protocol(format!(
                "entry {index} was sent where {due} was due"
            )));
        }
        next = index.checked_add(1);
    }
    Ok(AppendEntriesRequest {
        vote: to_vote(request.vote)?,
        prev_log_id: request.previous.map(to_log_id),
        leader_commit: request.committed.map(to_log_id),
        entries,
    })
}

pub(super) fn append_reply(result: &StreamAppendResult<TypeConfig>) -> pb::AppendReply {
    use pb::append_reply::Outcome;
    let outcome = match result {
        Ok(matching) => Outcome::Accepted(pb::Accepted {
            matching: matching.as_ref().map(log_id),
        }),
        Err(StreamAppendError::Conflict(at)) => Outcome::Conflict(log_id(at)),
        Err(StreamAppendError::HigherVote(higher)) => Outcome::HigherVote(vote(higher)),
    };
    pb::AppendReply {
        outcome: Some(outcome),
    }
}

pub(super) fn to_append_result(
    reply: pb::AppendReply,
) -> Result<StreamAppendResult<TypeConfig>, PeerError> {
    use pb::append_reply::Outcome;
    match reply.outcome {
        Some(Outcome::Accepted(accepted)) => Ok(Ok(accepted.matching.map(to_log_id))),
        Some(Outcome::Conflict(at)) => Ok(Err(StreamAppendError::Conflict(to_log_id(at)))),
        Some(Outcome::HigherVote(vote)) => {
            let higher = to_vote(Some(vote))?;
            Ok(Err(StreamAppendError::HigherVote(higher)))
        }
        Some(Outcome::Failure(failure)) => Err(PeerError::Failed(failure.detail)),
        None => Err(lacks("an outcome")),
    }
}

pub(super) fn vote_request(request: &VoteRequest<TypeConfig>) -> pb::VoteRequest {
    pb::VoteRequest {
        vote: Some(vote(&request.vote)),
        last: request.last_log_id.as_ref().map(log_id),
        leadership_transfer: request.leadership_transfer,
    }
}

pub(super) fn to_vote_request(
    request: pb::VoteRequest,
) -> Result<VoteRequest<TypeConfig>, PeerError> {
    let last = request.last.map(to_log_id);
    let mut asked = VoteRequest::new(to_vote(request.vote)?, last);
    asked.leadership_transfer = request.leadership_transfer;
    Ok(asked)
}

pub(super) fn vote_response(response: &VoteResponse<TypeConfig>) -> pb::VoteResponse {
    pb::VoteResponse {
        vote: Some(vote(&response.vote)),
        granted: response.vote_granted,
        last: response.last_log_id.as_ref().map(log_id),
    }
}

pub(super) fn to_vote_response(
    response: pb::VoteResponse,
) -> Result<VoteResponse<TypeConfig>, PeerError> {
    let last = response.last.map(to_log_id);
    Ok(VoteResponse::new(
        to_vote(response.vote)?,
        last,
        response.granted,
    ))
}

pub(super) fn transfer_request(
    request: &TransferLeaderRequest<TypeConfig>,
) -> pb::TransferLeaderRequest {
    pb::TransferLeaderRequest {
        vote: Some(vote(request.from_leader())),
        to: *request.to_node_id(),
        last: request.last_log_id().map(log_id),
    }
}

pub(super) fn to_transfer_request(
    request: pb::TransferLeaderRequest,
) -> Result<TransferLeaderRequest<TypeConfig>, PeerError> {
    let leader = to_vote(request.vote)?;
    let last = request.last.map(to_log_id);
    Ok(TransferLeaderRequest::new(leader, request.to, last))
}

pub(super) fn transfer_response(
    response: &TransferLeaderResponse<TypeConfig>,
) -> pb::TransferLeaderResponse {
    use pb::transfer_leader_response::Outcome;
    let outcome = match response {
        Ok(()) => Outcome::Accepted(pb::Done {}),
        Err(TransferLeaderError::VoteChanged { actual, .. }) => Outcome::VoteChanged(vote(actual)),
        Err(TransferLeaderError::LogNotFlushed { actual, .. }) => {
            Outcome::LogBehind(pb::Accepted {
                matching: actual.as_ref().map(log_id),
            })
        }
    };
    pb::TransferLeaderResponse {
        outcome: Some(outcome),
    }
}

/// What the answer to `request` says; it does not repeat what was asked for.
pub(super) fn to_transfer_response(
    response: pb::TransferLeaderResponse,
    request: &TransferLeaderRequest<TypeConfig>,
) -> Result<TransferLeaderResponse<TypeConfig>, PeerError> {
    use pb::transfer_leader_response::Outcome;
    match response.outcome {
        Some(Outcome::Accepted(pb::Done {})) => Ok(Ok(())),
        Some(Outcome::VoteChanged(actual)) => Ok(Err(TransferLeaderError::VoteChanged {
            expected: *request.from_leader(),
            actual: to_vote(Some(actual))?,
        })),
        Some(Outcome::LogBehind(actual)) => Ok(Err(TransferLeaderError::LogNotFlushed {
            expected: request.last_log_id().copied(),
            actual: actual.matching.map(to_log_id),
        })),
        None => Err(lacks("an outcome")),
    }
}

/// The header of a snapshot; sent by the leader of `leader`, or without one in answer to a fetch.
pub(super) fn header(meta: &SnapshotMeta, leader: Option<&Vote>) -> pb::SnapshotHeader {
    pb::SnapshotHeader {
        handshake: None,
        vote: leader.map(vote),
        last: meta.last_log_id.as_ref().map(log_id),
        membership: codec::encode_membership(&meta.last_membership),
        view: bytes::Bytes::new(),
        first_chunk: 0,
    }
}

/// What a header says is in the snapshot.
pub(super) fn to_meta(header: &pb::SnapshotHeader) -> Result<SnapshotMeta, PeerError> {
    let last_membership = codec::decode_membership(&header.membership)
        .map_err(|error| PeerError::Protocol(error.to_string()))?;
    Ok(SnapshotMeta {
        last_log_id: header.last.map(to_log_id),
        last_membership,
    })
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use bytes::Bytes;
    use openraft::EntryPayload;

    use pb::EntryKind::{Blank, Membership, Normal};

    use super::*;
    use crate::raft::types::{Command, Membership as Members, Peer};

    fn at(index: u64) -> LogId {
        codec::log_id(wal::EntryId::new(3, index))
    }

    fn a_vote(committed: bool) -> Vote {
        Vote {
            leader_id: LeaderId {
                term: 3,
                voted_for: 7,
            },
            committed,
        }
    }

    #[test]
    fn appends_arrive_as_they_were_sent() {
        let peer = Peer {
            name: "a".to_owned(),
            peer_urls: vec!["http://a:1".to_owned()],
            wants_vote: false,
        };
        let nodes = BTreeMap::from([(1, peer)]);
        let membership = Members::new(vec![BTreeSet::from([1])], nodes).unwrap();
        let payloads = [
            EntryPayload::Blank,
            EntryPayload::Normal(Command(Bytes::from_static(b"batch"))),
            EntryPayload::Membership(membership),
        ];
        let entries = (6..).zip(payloads).map(|(index, payload)| Entry {
            log_id: at(index),
            payload,
        });
        let sent = AppendEntriesRequest {
            vote: a_vote(true),
            prev_log_id: Some(at(5)),
            leader_commit: Some(at(4)),
            entries: entries.collect(),
        };
        let sent = append(sent);
        assert_eq!(append(to_append(sent.clone()).unwrap()), sent);
        let kinds: Vec<_> = sent.entries.iter().map(pb::Entry::kind).collect();
        assert_eq!(kinds, [Blank, Normal, Membership]);
        let mut gap = sent.clone();
        gap.entries.remove(1);
        assert!(to_append(gap).is_err());
        // Beyond the last index there is, the same one must not come again.
        let mut endless = sent.clone();
        endless.previous = Some(log_id(&at(u64::MAX - 1)));
        for entry in &mut endless.entries {
            entry.index = u64::MAX;
        }
        assert!(to_append(endless).is_err());
        let mut voteless = sent;
        voteless.vote = None;
        assert!(to_append(voteless).is_err());
    }

    #[test]
    fn answers_arrive_as_they_were_given() {
        for result in [
            Ok(None),
            Ok(Some(at(9))),
            Err(StreamAppendError::Conflict(at(2))),
            Err(StreamAppendError::HigherVote(a_vote(false))),
        ] {
            assert_eq!(to_append_result(append_reply(&result)).unwrap(), result);
        }
        let mut asked = VoteRequest::new(a_vote(false), Some(at(1)));
        asked.leadership_transfer = true;
        assert_eq!(to_vote_request(vote_request(&asked)).unwrap(), asked);
        let answer = VoteResponse::new(a_vote(true), None, true);
        assert_eq!(to_vote_response(vote_response(&answer)).unwrap(), answer);
        let asked = TransferLeaderRequest::new(a_vote(true), 4, Some(at(8)));
        let request = to_transfer_request(transfer_request(&asked)).unwrap();
        assert_eq!(request, asked);
        for answer in [
            Ok(()),
            Err(TransferLeaderError::VoteChanged {
                expected: a_vote(true),
                actual: a_vote(false),
            }),
            Err(TransferLeaderError::LogNotFlushed {
                expected: Some(at(8)),
                actual: Some(at(7)),
            }),
        ] {
            let told = to_transfer_response(transfer_response(&answer), &asked).unwrap();
            assert_eq!(told, answer);
        }
    }
}
