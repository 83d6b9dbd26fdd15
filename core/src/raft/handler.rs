//! What this member does with the consensus messages of its peers: they go to openraft, which
//! decides. Made by `consensus`, called by the peer transport.

use std::fmt;

use async_trait::async_trait;
use futures::StreamExt;
use openraft::{Raft, Snapshot};
use quorate_proto::peer as pb;
use quorate_proto::peer::failure::Kind as FailureKind;
use quorate_proto::peer::request::Kind as Asked;
use quorate_proto::peer::response::Kind as Answered;
use tracing::{info, warn};

use crate::peer::{Appends, Chunks, Handler, PeerError, Replies};
use crate::raft::state_machine::StateMachine;
use crate::raft::types::TypeConfig;
use crate::raft::{transfer, wire};
use crate::storage::snapshot::Stores;
use crate::storage::wal::WriterMode;

/// Hands messages to openraft.
#[derive(Clone)]
pub(super) struct RaftHandler {
    raft: Raft<TypeConfig, StateMachine>,
    stores: Stores,
    mode: WriterMode,
}

impl fmt::Debug for RaftHandler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RaftHandler").finish_non_exhaustive()
    }
}

impl RaftHandler {
    /// Messages go to `raft`, received snapshots to `stores`; `mode` says whether writing one may
    /// use other threads.
    pub(super) fn new(
        raft: Raft<TypeConfig, StateMachine>,
        stores: Stores,
        mode: WriterMode,
    ) -> Self {
        Self { raft, stores, mode }
    }

    async fn answer(&self, kind: Asked) -> Result<Answered, PeerError> {
        let stopped = |error: &dyn fmt::Display| PeerError::NotReady(error.to_string());
        match kind {
            Asked::Vote(request) => {
                let response = self.raft.vote(wire::to_vote_request(request)?).await;
                let response = response.map_err(|error| stopped(&error))?;
                Ok(Answered::Vote(wire::vote_response(&response)))
            }
            Asked::PreVote(request) => {
                let response = self.raft.pre_vote(wire::to_vote_request(request)?).await;
                let response = response.map_err(|error| stopped(&error))?;
                Ok(Answered::PreVote(wire::vote_response(&response)))
            }
            Asked::TransferLeader(request) => {
                let request = wire::to_transfer_request(request)?;
                let response = self.raft.handle_transfer_leader(request).await;
                let response = response.map_err(|error| stopped(&error))?;
                let response = wire::transfer_response(&response);
                Ok(Answered::TransferLeader(response))
            }
            Asked::Forward(_)
            | Asked::ReadIndex(_)
            | Asked::KeepAlive(_)
            | Asked::Status(_)
            | Asked::TimeToLive(_)
            | Asked::MemberChange(_)
            | Asked::HashKv(_) => Err(PeerError::Protocol("not a raft message".to_owned())),
        }
    }
}

#[async_trait]
impl Handler for RaftHandler {
    fn append_session(&self, from: u64, appends: Appends) -> Replies {
        // A malformed append ends the session, and with it the answers.
        let appends = appends
            .map(move |append| {
                let append = wire::to_append(append);
                if let Err(error) = &append {
                    warn!(peer = from, %error, "append session given up");
                }
                append.ok()
            })
            .take_while(|append| std::future::ready(append.is_some()))
            .filter_map(std::future::ready);
        let replies = self.raft.stream_append(appends);
        replies
            .map(|result| match result {
                Ok(result) => wire::append_reply(&result),
                Err(fatal) => pb::AppendReply {
                    outcome: Some(pb::append_reply::Outcome::Failure(pb::Failure {
                        kind: FailureKind::NotReady.into(),
                        detail: fatal.to_string(),
                    })),
                },
            })
            .boxed()
    }

    async fn request(&self, _from: u64, request: pb::Request) -> pb::Response {
        let unknown = || PeerError::Protocol("an empty request".to_owned());
        let answer = match request.kind {
            Some(kind) => self.answer(kind).await,
            None => Err(unknown()),
        };
        let kind = answer.unwrap_or_else(|error| {
            let kind = match error {
                PeerError::NotReady(_) => FailureKind::NotReady,
                PeerError::Protocol(_) => FailureKind::UnknownMessage,
                _ => FailureKind::Internal,
            };
            Answered::Failure(pb::Failure {
                kind: kind.into(),
                detail: error.to_string(),
            })
        });
        pb::Response { kind: Some(kind) }
    }

    async fn snapshot(
        &self,
        from: u64,
        header: pb::SnapshotHeader,
        chunks: Chunks,
    ) -> Result<pb::SnapshotReply, PeerError> {
        let (leader, meta) = (wire::to_vote(header.vote)?, wire::to_meta(&header)?);
        let last = header.last.unwrap_or_default();
        if last.term > leader.leader_id.term {
            // openraft takes it for granted that a leader has no entries of later terms.
            let why = "a snapshot of a later term than its leader's";
            return Err(PeerError::Protocol(why.to_owned()));
        }
        info!(
            peer = from,
            term = last.term,
            index = last.index,
            "snapshot coming in"
        );
        let (meta, snapshot) = transfer::receive(&self.stores, meta, chunks, self.mode).await?;
        let snapshot = Snapshot { meta, snapshot };
        let installed = self.raft.install_full_snapshot(leader, snapshot).await;
        let response = installed.map_err(|error| PeerError::Failed(error.to_string()))?;
        Ok(pb::SnapshotReply {
            handshake: None,
            vote: Some(wire::vote(&response.vote)),
        })
    }

    async fn fetch_snapshot(
        &self,
        from: u64,
        at_least_index: u64,
    ) -> Result<(pb::SnapshotHeader, Chunks), PeerError> {
        let snapshot = self.raft.get_snapshot().await;
        let snapshot = snapshot.map_err(|error| PeerError::NotReady(error.to_string()))?;
        let reaches = |last: u64| last >= at_least_index;
        match snapshot {
            Some(found) if found.meta.last_log_id.is_some_and(|id| reaches(id.index)) => {
                info!(peer = from, at_least_index, "snapshot asked for");
                let header = wire::header(&found.meta, None);
                Ok((header, transfer::chunks(found.snapshot, self.mode)))
            }
            _ => Err(PeerError::NotReady(format!(
                "no snapshot at or past index {at_least_index}"
            ))),
        }
    }
}
