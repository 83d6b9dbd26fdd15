//! What this member does with the consensus messages of its peers: they go to openraft, which
//! decides. Made by `consensus`, called by the peer transport.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures::StreamExt;
use openraft::{Raft, Snapshot};
use quorate_proto::peer as pb;
use quorate_proto::peer::failure::Kind as FailureKind;
use quorate_proto::peer::request::Kind as Asked;
use quorate_proto::peer::response::Kind as Answered;
use tokio::sync::oneshot;
use tracing::{info, warn};

use crate::failpoint;
use crate::peer::{Appends, Chunks, Handler, PeerError, Replies};
use crate::raft::state_machine::StateMachine;
use crate::raft::transfer::{Broken, Part};
use crate::raft::types::{SnapshotMeta, TypeConfig};
use crate::raft::{transfer, wire};
use crate::storage::snapshot::Stores;
use crate::storage::wal::WriterMode;
use crate::tasks::Tasks;

/// How long the part of a snapshot is kept whose connection broke.
const PART_KEPT: Duration = Duration::from_secs(120);

/// Hands messages to openraft.
#[derive(Clone)]
pub(super) struct RaftHandler {
    raft: Raft<TypeConfig, StateMachine>,
    stores: Stores,
    mode: WriterMode,
    tasks: Tasks,
    /// What came of a snapshot whose connection broke; its sender may come back with the rest.
    kept: Arc<Mutex<Option<Kept>>>,
}

/// A part of a snapshot.
struct Kept {
    from: u64,
    view: Bytes,
    part: Part,
}

impl fmt::Debug for RaftHandler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RaftHandler").finish_non_exhaustive()
    }
}

impl RaftHandler {
    /// Messages go to `raft`, received snapshots to `stores`; `mode` says whether writing one may
    /// use other threads. Snapshots are received by `tasks`, so that a connection that breaks does
    /// not take along what came.
    pub(super) fn new(
        raft: Raft<TypeConfig, StateMachine>,
        stores: Stores,
        mode: WriterMode,
        tasks: Tasks,
    ) -> Self {
        Self {
            raft,
            stores,
            mode,
            tasks,
            kept: Arc::default(),
        }
    }

    fn kept(&self) -> MutexGuard<'_, Option<Kept>> {
        // It is replaced as a whole, so a panic elsewhere does not spoil it.
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is kept for the sender of `header`, or an empty store if it sends all.
    async fn part(
        &self,
        from: u64,
        header: &pb::SnapshotHeader,
        meta: SnapshotMeta,
    ) -> Result<Part, PeerError> {
        // Whoever sends a snapshot now is the leader: nobody else comes back for another.
        let kept = self.kept().take();
        if header.first_chunk == 0 {
            drop(kept);
            return Part::begin(&self.stores, meta, self.mode).await;
        }
        let continues = |kept: &Kept| {
            (kept.from, &kept.view) == (from, &header.view)
                && kept.part.chunks() == header.first_chunk
                && *kept.part.meta() == meta
        };
        match kept.filter(continues) {
            Some(kept) => Ok(kept.part),
            None => Err(PeerError::NotReady(
                "what came before of this snapshot is gone, send it whole".to_owned(),
            )),
        }
    }

    /// Receives a snapshot and installs it.
    async fn take_snapshot(
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
            first_chunk = header.first_chunk,
            "snapshot coming in"
        );
        let part = self.part(from, &header, meta).await?;
        let (meta, snapshot) = match part.receive(chunks, self.mode).await {
            Ok(received) => received,
            Err(Broken { error, part }) => {
                if let Some(part) = part.filter(|part| part.chunks() > 0 && !header.view.is_empty())
                {
                    info!(peer = from, chunks = part.chunks(), %error, "snapshot broke off");
                    let view = header.view;
                    self.keep(Kept { from, view, part });
                }
                return Err(error);
            }
        };
        failpoint::reach("install: received");
        let snapshot = Snapshot { meta, snapshot };
        let installed = self.raft.install_full_snapshot(leader, snapshot).await;
        let response = installed.map_err(|error| PeerError::Failed(error.to_string()))?;
        failpoint::reach("install: answered");
        Ok(pb::SnapshotReply {
            handshake: None,
            vote: Some(wire::vote(&response.vote)),
        })
    }

    /// Keeps a part for a while.
    fn keep(&self, kept: Kept) {
        let (view, chunks) = (kept.view.clone(), kept.part.chunks());
        self.kept().replace(kept);
        let handler = self.clone();
        self.tasks.spawn("part of a snapshot", async move {
            tokio::time::sleep(PART_KEPT).await;
            let is_same = |kept: &mut Kept| kept.view == view && kept.part.chunks() == chunks;
            let stale = handler.kept().take_if(is_same);
            if stale.is_some() {
                info!("nobody came back with the rest of a snapshot");
            }
        });
    }

    async fn answer(&self, from: u64, kind: Asked) -> Result<Answered, PeerError> {
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
            Asked::SnapshotProgress(request) => {
                let kept = self.kept();
                let same = kept
                    .as_ref()
                    .filter(|kept| (kept.from, &kept.view) == (from, &request.view));
                let chunks = same.map_or(0, |kept| kept.part.chunks());
                let progress = pb::SnapshotProgressResponse { chunks };
                Ok(Answered::SnapshotProgress(progress))
            }
            Asked::Forward(_)
            | Asked::ReadIndex(_)
            | Asked::KeepAlive(_)
            | Asked::Status(_)
            | Asked::TimeToLive(_)
            | Asked::MemberChange(_)
            | Asked::HashKv(_)
            | Asked::Drain(_) => Err(PeerError::Protocol("not a raft message".to_owned())),
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

    async fn request(&self, from: u64, request: pb::Request) -> pb::Response {
        let unknown = || PeerError::Protocol("an empty request".to_owned());
        let answer = match request.kind {
            Some(kind) => self.answer(from, kind).await,
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
        let (done, received) = oneshot::channel();
        let handler = self.clone();
        self.tasks.spawn("receive a snapshot", async move {
            let taken = handler.take_snapshot(from, header, chunks).await;
            // The sender may have gone meanwhile.
            done.send(taken).ok();
        });
        let stopping = |_| PeerError::NotReady("stopping".to_owned());
        received.await.map_err(stopping)?
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
                Ok((header, transfer::chunks(found.snapshot, 0, self.mode)))
            }
            _ => Err(PeerError::NotReady(format!(
                "no snapshot at or past index {at_least_index}"
            ))),
        }
    }
}
