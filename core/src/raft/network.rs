//! How openraft reaches the other members: its network traits over [`Transport`]. Made by
//! `consensus`.
//!
//! Replication goes as append sessions of the stream, heartbeats as single appends that overtake
//! them, snapshots over connections of their own. While the stream is down no append goes at all: a
//! stream is up only while the peer answers, and a leader that is heard and hears nobody must not
//! keep its followers from electing another.

use std::future::Future;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures::{Stream, StreamExt};
use openraft::OptionalSend;
use openraft::base::{BoxFuture, BoxStream};
use openraft::errors::{
    NetworkError, RPCError, ReplicationClosed, StreamingError, Timeout, Unreachable,
};
use openraft::network::{
    Backoff, NetBackoff, NetSnapshot, NetStreamAppend, NetTransferLeader, NetVote, RPCOption,
    RPCTypes, RaftNetworkFactory,
};
use openraft::raft::{
    AppendEntriesRequest, SnapshotResponse, StreamAppendError, StreamAppendResult,
    TransferLeaderRequest, TransferLeaderResponse, VoteRequest, VoteResponse,
};
use quorate_proto::peer as pb;
use quorate_proto::peer::request::Kind as Asked;
use quorate_proto::peer::response::Kind as Answered;

use crate::peer::{AppendSession, Peer, PeerError, Timings, Transport};
use crate::raft::retention::Transfers;
use crate::raft::snapshot::SnapshotData;
use crate::raft::state_machine::RaftSnapshot;
use crate::raft::types::{self, TypeConfig, Vote};
use crate::raft::{transfer, wire};
use crate::storage::wal::WriterMode;

type Rpc<T> = Result<T, RPCError<TypeConfig>>;
type Replies<'s> = BoxStream<'s, Rpc<StreamAppendResult<TypeConfig>>>;

/// Makes openraft's clients. Cheap to clone.
#[derive(Debug, Clone)]
pub(super) struct Network {
    transport: Transport,
    timings: Timings,
    mode: WriterMode,
    transfers: Transfers,
}

impl Network {
    /// Clients over `transport`; `mode` says whether reading a snapshot may use other threads, and
    /// `transfers` is told of those that are sent.
    #[must_use]
    pub(super) fn new(
        transport: Transport,
        timings: Timings,
        mode: WriterMode,
        transfers: Transfers,
    ) -> Self {
        Self {
            transport,
            timings,
            mode,
            transfers,
        }
    }

    fn client(&self, target: u64, node: &types::Peer, purpose: Purpose) -> Client {
        // Raft's membership is what says where a member is.
        let urls = &node.peer_urls;
        self.transport.set_peer(target, &node.name, urls);
        Client {
            network: self.clone(),
            target,
            purpose,
            acknowledged: AtomicU64::new(0),
            has_forgotten: AtomicBool::new(false),
        }
    }
}

impl RaftNetworkFactory<TypeConfig> for Network {
    type Network = Client;

    async fn new_client(&mut self, target: u64, node: &types::Peer) -> Client {
        self.client(target, node, Purpose::Replication)
    }

    async fn new_heartbeat_client(&mut self, target: u64, node: &types::Peer) -> Client {
        self.client(target, node, Purpose::Heartbeat)
    }
}

/// What openraft uses a client for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Purpose {
    /// Sessions of appends, and everything else.
    Replication,
    /// Appends without entries, one a session, which must never queue behind those with entries.
    Heartbeat,
}

/// openraft's way to one other member.
#[derive(Debug)]
pub(super) struct Client {
    network: Network,
    target: u64,
    purpose: Purpose,
    /// The highest index that the target has acknowledged to this client, one leadership's.
    acknowledged: AtomicU64,
    /// Whether it turned out to lack some of that.
    has_forgotten: AtomicBool,
}

impl Client {
    /// A member that lacks what it has acknowledged was put back to an older state. It can never be
    /// caught up as it is; openraft goes on trying, so this is what people hear of it.
    fn watch_memory(&self, result: &StreamAppendResult<TypeConfig>) {
        match result {
            Ok(matched) => {
                let matched = matched.map_or(0, |id| id.index);
                self.acknowledged.fetch_max(matched, Ordering::Relaxed);
            }
            Err(StreamAppendError::Conflict(at)) => {
                let acknowledged = self.acknowledged.load(Ordering::Relaxed);
                if at.index <= acknowledged && !self.has_forgotten.swap(true, Ordering::Relaxed) {
                    tracing::error!(
                        peer = self.target,
                        acknowledged,
                        lacks = at.index,
                        "this member has lost entries that it had acknowledged: its data was put \
                         back or damaged. Remove it from the cluster, delete its data folder and \
                         add it as a new member"
                    );
                }
            }
            Err(StreamAppendError::HigherVote(_)) => {}
        }
    }

    fn peer(&self) -> Result<Peer, PeerError> {
        let peer = self.network.transport.peer(self.target);
        peer.ok_or(PeerError::Unknown(self.target))
    }

    async fn ask(&self, kind: Asked, action: RPCTypes, limit: Duration) -> Rpc<Answered> {
        let failed = |error| self.rpc_error(action, &error);
        let request = pb::Request { kind: Some(kind) };
        let peer = self.peer().map_err(failed)?;
        let response = peer.request(request, limit).await.map_err(failed)?;
        let empty = || PeerError::Protocol("an empty response".to_owned());
        response.kind.ok_or_else(|| failed(empty()))
    }

    fn unfit(&self, action: RPCTypes) -> RPCError<TypeConfig> {
        let error = PeerError::Protocol("the response to another request".to_owned());
        self.rpc_error(action, &error)
    }

    /// What an error means to openraft: `Unreachable` makes it wait before it tries again.
    fn rpc_error(&self, action: RPCTypes, error: &PeerError) -> RPCError<TypeConfig> {
        match error {
            PeerError::Timeout { after, .. } => RPCError::Timeout(Timeout {
                action,
                id: self.network.transport.local().member_id,
                target: self.target,
                timeout: *after,
            }),
            PeerError::Lost { .. } => RPCError::Network(NetworkError::from_string(error)),
            PeerError::Unknown(_)
            | PeerError::Full(_)
            | PeerError::Unreachable(_)
            | PeerError::Refused(_)
            | PeerError::Removed(_)
            | PeerError::NotReady(_)
            | PeerError::Failed(_)
            | PeerError::Protocol(_)
            | PeerError::Cancelled(_) => RPCError::Unreachable(Unreachable::from_string(error)),
        }
    }

    fn append_result(
        &self,
        reply: Result<pb::AppendReply, PeerError>,
    ) -> Rpc<StreamAppendResult<TypeConfig>> {
        let result = reply.and_then(wire::to_append_result);
        if let Ok(result) = &result {
            self.watch_memory(result);
        }
        result.map_err(|error| self.rpc_error(RPCTypes::AppendEntries, &error))
    }

    /// Sends the next append alone and ends: a heartbeat.
    fn one<'s, S>(&'s self, mut input: S, peer: Peer, limit: Duration) -> Replies<'s>
    where
        S: Stream<Item = AppendEntriesRequest<TypeConfig>> + Send + Unpin + 'static,
    {
        let reply = async move {
            let append = wire::append(input.next().await?);
            Some(self.append_result(peer.append(append, limit).await))
        };
        Box::pin(futures::stream::once(reply).filter_map(std::future::ready))
    }

    /// Sends all appends through one session. The limit openraft gives is a heartbeat interval,
    /// which a follower's disk may well exceed: a session ends when there has been no progress for
    /// an election timeout.
    fn all<'s, S>(&'s self, input: S, session: AppendSession) -> Replies<'s>
    where
        S: Stream<Item = AppendEntriesRequest<TypeConfig>> + Send + Unpin + 'static,
    {
        let stall = self.network.timings.election_timeout;
        let replies = session.pipe(input.map(wire::append), stall);
        Box::pin(replies.map(|reply| self.append_result(reply)))
    }
}

impl NetStreamAppend<TypeConfig> for Client {
    fn stream_append<'s, S>(
        &'s mut self,
        input: S,
        option: RPCOption,
    ) -> BoxFuture<'s, Rpc<Replies<'s>>>
    where
        S: Stream<Item = AppendEntriesRequest<TypeConfig>> + OptionalSend + Unpin + 'static,
    {
        let this = &*self;
        Box::pin(async move {
            let failed = |error| this.rpc_error(RPCTypes::AppendEntries, &error);
            let peer = this.peer().map_err(failed)?;
            if this.purpose == Purpose::Heartbeat {
                if !peer.is_active() {
                    let down = PeerError::Unreachable("the stream is down".to_owned());
                    return Err(failed(down));
                }
                return Ok(this.one(input, peer, option.hard_ttl()));
            }
            let session = peer.append_session().map_err(failed)?;
            Ok(this.all(input, session))
        })
    }
}

impl NetVote<TypeConfig> for Client {
    async fn vote(
        &mut self,
        rpc: VoteRequest<TypeConfig>,
        option: RPCOption,
    ) -> Rpc<VoteResponse<TypeConfig>> {
        let asked = Asked::Vote(wire::vote_request(&rpc));
        let answer = self.ask(asked, RPCTypes::Vote, option.soft_ttl()).await?;
        let Answered::Vote(response) = answer else {
            return Err(self.unfit(RPCTypes::Vote));
        };
        wire::to_vote_response(response).map_err(|error| self.rpc_error(RPCTypes::Vote, &error))
    }

    async fn pre_vote(
        &mut self,
        rpc: VoteRequest<TypeConfig>,
        option: RPCOption,
    ) -> Rpc<VoteResponse<TypeConfig>> {
        let asked = Asked::PreVote(wire::vote_request(&rpc));
        let answer = self.ask(asked, RPCTypes::Vote, option.soft_ttl()).await?;
        let Answered::PreVote(response) = answer else {
            return Err(self.unfit(RPCTypes::Vote));
        };
        wire::to_vote_response(response).map_err(|error| self.rpc_error(RPCTypes::Vote, &error))
    }
}

impl Client {
    /// How many chunks of a view the target has from an earlier attempt.
    async fn snapshot_progress(&self, peer: &Peer, view: &Bytes) -> u64 {
        let asked = Asked::SnapshotProgress(pb::SnapshotProgressRequest { view: view.clone() });
        let request = pb::Request { kind: Some(asked) };
        let limit = self.network.timings.election_timeout;
        match peer.request(request, limit).await {
            Ok(pb::Response {
                kind: Some(Answered::SnapshotProgress(progress)),
            }) => progress.chunks,
            // It cannot tell: it gets the whole.
            Ok(_) | Err(_) => 0,
        }
    }
}

impl NetSnapshot<TypeConfig> for Client {
    type SnapshotData = SnapshotData;

    /// Sends a snapshot. openraft's limit is meant for one chunk; here the peer layer gives up when
    /// no chunk moves.
    async fn full_snapshot(
        &mut self,
        vote: Vote,
        snapshot: RaftSnapshot,
        cancel: impl Future<Output = ReplicationClosed> + OptionalSend + 'static,
        _option: RPCOption,
    ) -> Result<SnapshotResponse<TypeConfig>, StreamingError<TypeConfig>> {
        let failed = |error| {
            let error = self.rpc_error(RPCTypes::InstallSnapshot, &error);
            StreamingError::from(error)
        };
        let peer = self.peer().map_err(failed)?;
        let index = snapshot.meta.last_log_id.map_or(0, |id| id.index);
        let _sending = self.network.transfers.begin(self.target, index);
        let sending = async {
            let mut header = wire::header(&snapshot.meta, Some(&vote));
            if let Some(name) = snapshot.snapshot.name() {
                header.view = Bytes::copy_from_slice(name.as_bytes());
                header.first_chunk = self.snapshot_progress(&peer, &header.view).await;
            }
            let skip = header.first_chunk;
            let chunks = transfer::chunks(snapshot.snapshot, skip, self.network.mode);
            peer.send_snapshot(header, chunks).await
        };
        let reply = tokio::select! {
            reply = sending => reply.map_err(failed)?,
            // Breaks the connection; the receiver keeps what came for a while.
            closed = cancel => return Err(StreamingError::Closed(closed)),
        };
        let vote = wire::to_vote(reply.vote).map_err(failed)?;
        Ok(SnapshotResponse::new(vote))
    }
}

impl NetTransferLeader<TypeConfig> for Client {
    async fn transfer_leader(
        &mut self,
        rpc: TransferLeaderRequest<TypeConfig>,
        option: RPCOption,
    ) -> Rpc<TransferLeaderResponse<TypeConfig>> {
        let action = RPCTypes::TransferLeader;
        let asked = Asked::TransferLeader(wire::transfer_request(&rpc));
        // The target waits for its log to be synced before it answers.
        let limit = option.soft_ttl().max(self.network.timings.election_timeout);
        let answer = self.ask(asked, action, limit).await?;
        let Answered::TransferLeader(response) = answer else {
            return Err(self.unfit(action));
        };
        wire::to_transfer_response(response, &rpc).map_err(|error| self.rpc_error(action, &error))
    }
}

impl NetBackoff<TypeConfig> for Client {
    /// From a heartbeat interval up to an election timeout. `consensus` ends a pause early when the
    /// peer can be reached again.
    fn backoff(&self) -> Option<Backoff> {
        let (mut pause, most) = (
            self.network.timings.heartbeat_interval,
            self.network.timings.election_timeout,
        );
        Some(Backoff::new(std::iter::from_fn(move || {
            let this = pause.min(most);
            pause = this.saturating_mul(2);
            Some(this)
        })))
    }
}

#[cfg(test)]
mod tests;
