//! A peer's messages, taken into openraft's types and written out again: what the handler and the
//! network do with them, as one function. Hidden: it is there for the fuzz targets, which must reach
//! the conversions in `wire` without a running member.

use openraft::raft::TransferLeaderRequest;
use quorate_proto::peer as pb;
use quorate_proto::peer::request::Kind as Asked;
use quorate_proto::peer::response::Kind as Answered;
use quorate_proto::peer::stream_frame::Kind;

use crate::peer::PeerError;
use crate::raft::types::{LeaderId, Vote};
use crate::raft::wire;

/// The message as it would be sent on; those that are no raft messages as they are.
///
/// # Errors
///
/// What the member would refuse it with.
pub fn rewritten(kind: Kind) -> Result<Kind, PeerError> {
    Ok(match kind {
        Kind::Append(mut append) => {
            append.request = append.request.map(self::append).transpose()?;
            Kind::Append(append)
        }
        Kind::Reply(mut reply) => {
            let answer = reply.reply.map(wire::to_append_result).transpose()?;
            reply.reply = answer.as_ref().map(wire::append_reply);
            Kind::Reply(reply)
        }
        Kind::Request(mut tagged) => {
            let kind = tagged.request.and_then(|request| request.kind);
            let kind = kind.map(asked).transpose()?;
            tagged.request = Some(pb::Request { kind });
            Kind::Request(tagged)
        }
        Kind::Response(mut tagged) => {
            let kind = tagged.response.and_then(|response| response.kind);
            let kind = kind.map(answered).transpose()?;
            tagged.response = Some(pb::Response { kind });
            Kind::Response(tagged)
        }
        other => other,
    })
}

/// [`rewritten`] for an append.
///
/// # Errors
///
/// As there.
pub fn append(request: pb::AppendRequest) -> Result<pb::AppendRequest, PeerError> {
    wire::to_append(request).map(wire::append)
}

/// [`rewritten`] for the header of a snapshot.
///
/// # Errors
///
/// As there.
pub fn snapshot_header(header: &pb::SnapshotHeader) -> Result<pb::SnapshotHeader, PeerError> {
    let vote = header
        .vote
        .map(|vote| wire::to_vote(Some(vote)))
        .transpose()?;
    let meta = wire::to_meta(header)?;
    Ok(wire::header(&meta, vote.as_ref()))
}

fn asked(kind: Asked) -> Result<Asked, PeerError> {
    let vote = |request| wire::to_vote_request(request).map(|asked| wire::vote_request(&asked));
    Ok(match kind {
        Asked::Vote(request) => Asked::Vote(vote(request)?),
        Asked::PreVote(request) => Asked::PreVote(vote(request)?),
        Asked::TransferLeader(request) => {
            let request = wire::to_transfer_request(request)?;
            Asked::TransferLeader(wire::transfer_request(&request))
        }
        other => other,
    })
}

fn answered(kind: Answered) -> Result<Answered, PeerError> {
    let vote = |response| wire::to_vote_response(response).map(|told| wire::vote_response(&told));
    Ok(match kind {
        Answered::Vote(response) => Answered::Vote(vote(response)?),
        Answered::PreVote(response) => Answered::PreVote(vote(response)?),
        Answered::TransferLeader(response) => {
            // The answer leaves out what was asked, and so does what is written again.
            let leader = Vote {
                leader_id: LeaderId {
                    term: 1,
                    voted_for: 1,
                },
                committed: true,
            };
            let question = TransferLeaderRequest::new(leader, 1, None);
            let told = wire::to_transfer_response(response, &question)?;
            Answered::TransferLeader(wire::transfer_response(&told))
        }
        other => other,
    })
}
