//! What a member serves to its peers: the gRPC side of incoming calls. Mounted on the peer
//! listener by the node.

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use futures::{Stream, StreamExt};
use quorate_proto::peer as pb;
use quorate_proto::peer::failure::Kind as FailureKind;
use quorate_proto::peer::peer_server::Peer;
use quorate_proto::peer::stream_frame::Kind;
use tokio::sync::{Semaphore, oneshot};
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming};
use tracing::debug;

use super::PeerError;
use super::connector::to_status;
use super::counts::{TransferCounts, Transfers};
use super::dispatch::{Dispatch, failed, refusal};
use super::handshake::{Contact, Gate};
use super::incoming::Incoming;
use super::lanes::{Frames, Lane, Lanes};
use super::snapshot::{Outgoing, read_frames};
use super::transport::Timings;
use crate::tasks::Tasks;

/// Small messages outside streams being handled at a time.
const UNARY_MAX: usize = 256;
/// Snapshots being received, and being served, at a time.
const SNAPSHOTS_MAX: usize = 2;
/// Members that ask to be added at a time.
const JOINING_MAX: usize = 4;
/// A snapshot call in which nothing arrives for this long is given up.
const SNAPSHOT_STALL: Duration = Duration::from_secs(30);
/// A caller pings each heartbeat interval; after this many silent election timeouts it is gone.
const SILENT_ELECTION_TIMEOUTS: u32 = 3;

type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send + 'static>>;

/// The peer service of one member.
#[derive(Debug, Clone)]
pub struct PeerService {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    gate: Arc<Gate>,
    dispatch: Arc<Dispatch>,
    timings: Timings,
    tasks: Tasks,
    streams: Streams,
    unary: Arc<Semaphore>,
    receiving: Semaphore,
    received: Arc<Transfers>,
    joining: Semaphore,
    serving: Arc<Semaphore>,
}

impl PeerService {
    pub(super) fn new(
        gate: Arc<Gate>,
        dispatch: Arc<Dispatch>,
        timings: Timings,
        tasks: Tasks,
    ) -> Self {
        Self {
            shared: Arc::new(Shared {
                gate,
                dispatch,
                timings,
                tasks,
                streams: Streams::default(),
                unary: Arc::new(Semaphore::new(UNARY_MAX)),
                receiving: Semaphore::new(SNAPSHOTS_MAX),
                received: Arc::default(),
                joining: Semaphore::new(JOINING_MAX),
                serving: Arc::new(Semaphore::new(SNAPSHOTS_MAX)),
            }),
        }
    }

    /// Whether a stream of the member `id` is open.
    pub(super) fn has_stream(&self, id: u64) -> bool {
        self.shared.streams.lock().contains_key(&id)
    }

    pub(super) fn snapshots_received(&self) -> TransferCounts {
        self.shared.received.counts()
    }

    /// Ends the stream of the member `id` if it would not be admitted any more.
    pub(super) fn end_refused_stream(&self, id: u64) {
        let gate = &self.shared.gate;
        let mut streams = self.shared.streams.lock();
        let refused = |open: &Open| !gate.still_admits(&open.contact);
        if streams.get(&id).is_some_and(refused)
            && let Some(open) = streams.remove(&id)
        {
            open.ticket.cancel();
        }
    }

    fn admit(&self, shown: Option<&pb::Handshake>) -> Result<Contact, Status> {
        if self.shared.tasks.is_cancelled() {
            return Err(to_status(&PeerError::NotReady("stopping".to_owned())));
        }
        let admitted = self.shared.gate.admit(shown);
        admitted.map_err(|why| to_status(&why))
    }

    fn handshake(&self, to: u64) -> pb::Handshake {
        self.shared.gate.handshake(to)
    }
}

#[async_trait]
impl Peer for PeerService {
    type StreamStream = Answers<pb::StreamFrame>;
    type FetchSnapshotStream = Answers<pb::SnapshotFrame>;

    async fn stream(
        &self,
        request: Request<Streaming<pb::StreamFrame>>,
    ) -> Result<Response<Self::StreamStream>, Status> {
        let shared = &self.shared;
        let mut frames = request.into_inner();
        let limit = shared.timings.election_timeout;
        let first = tokio::time::timeout(limit, frames.message())
            .await
            .map_err(|_| Status::deadline_exceeded("no handshake"))??;
        let shown = match first.and_then(|frame| frame.kind) {
            Some(Kind::Handshake(shown)) => Some(shown),
            _ => None,
        };
        let contact = self.admit(shown.as_ref())?;
        let lanes = Lanes::new();
        let answer = Kind::Handshake(self.handshake(contact.from));
        lanes
            .push(Lane::Urgent, answer, None)
            .map_err(|error| to_status(&error))?;
        let answers = Frames::of(&lanes).map(Ok).boxed();
        let incoming = Incoming {
            from: contact.from,
            dispatch: Arc::clone(&shared.dispatch),
            lanes,
            tasks: shared.tasks.clone(),
            silence: limit * SILENT_ELECTION_TIMEOUTS,
        };
        let service = self.clone();
        let ticket = shared.streams.enter(contact);
        self.end_refused_stream(contact.from);
        shared.gate.announce_arrival();
        shared.tasks.spawn("incoming peer stream", async move {
            let _leave = Leave {
                service: &service,
                from: contact.from,
                ticket: ticket.clone(),
            };
            // A newer stream of the same member takes the place of this one.
            ticket.run_until_cancelled(incoming.serve(frames)).await;
        });
        debug!(peer = contact.from, "incoming peer stream up");
        Ok(Response::new(answers))
    }

    async fn unary(
        &self,
        request: Request<pb::UnaryRequest>,
    ) -> Result<Response<pb::UnaryResponse>, Status> {
        use pb::unary_request::Kind as Asked;
        use pb::unary_response::Kind as Answered;
        let request = request.into_inner();
        let from = self.admit(request.handshake.as_ref())?.from;
        let permit = Arc::clone(&self.shared.unary).try_acquire_owned();
        let full = || failed(FailureKind::Full, "too many calls in flight");
        let dispatch = &self.shared.dispatch;
        let answer = match (request.kind, permit) {
            (Some(Asked::Append(_)), Err(_)) => Answered::Append(failed_append(full())),
            (Some(Asked::Append(append)), Ok(_permit)) => {
                Answered::Append(single_append(dispatch, from, append).await)
            }
            (Some(Asked::Request(_)), Err(_)) => {
                Answered::Response(refusal(FailureKind::Full, "too many calls in flight"))
            }
            (Some(Asked::Request(request)), Ok(permit)) => {
                // Finished even if the caller leaves: its effects may matter.
                let (answer, answered) = oneshot::channel();
                let dispatch = Arc::clone(dispatch);
                self.shared.tasks.spawn("peer call", async move {
                    let _permit = permit;
                    answer.send(dispatch.request(from, request).await).ok();
                });
                let stopping = |_| refusal(FailureKind::Internal, "stopping");
                Answered::Response(answered.await.unwrap_or_else(stopping))
            }
            (None, _) => return Err(Status::invalid_argument("a call without content")),
        };
        Ok(Response::new(pb::UnaryResponse {
            handshake: Some(self.handshake(from)),
            kind: Some(answer),
        }))
    }

    async fn snapshot(
        &self,
        request: Request<Streaming<pb::SnapshotFrame>>,
    ) -> Result<Response<pb::SnapshotReply>, Status> {
        let frames = request.into_inner();
        let (header, chunks) = read_frames(frames, SNAPSHOT_STALL)
            .await
            .map_err(|error| to_status(&error))?;
        let from = self.admit(header.handshake.as_ref())?.from;
        let _permit = self
            .shared
            .receiving
            .try_acquire()
            .map_err(|_| to_status(&PeerError::Full("snapshots")))?;
        let handler = self.raft()?;
        let transfer = self.shared.received.begin();
        let received = handler.snapshot(from, header, chunks).await;
        let mut reply = received.map_err(|error| to_status(&error))?;
        transfer.succeeded();
        reply.handshake = Some(self.handshake(from));
        Ok(Response::new(reply))
    }

    async fn fetch_snapshot(
        &self,
        request: Request<pb::FetchSnapshotRequest>,
    ) -> Result<Response<Self::FetchSnapshotStream>, Status> {
        let request = request.into_inner();
        let from = self.admit(request.handshake.as_ref())?.from;
        let permit = Arc::clone(&self.shared.serving)
            .try_acquire_owned()
            .map_err(|_| to_status(&PeerError::Full("snapshots")))?;
        let handler = self.raft()?;
        let (mut header, chunks) = handler
            .fetch_snapshot(from, request.at_least_index)
            .await
            .map_err(|error| to_status(&error))?;
        header.handshake = Some(self.handshake(from));
        let (frames, _progress) = Outgoing::frames(header, chunks, 0);
        let frames = frames.map(move |frame| {
            let _held_while_serving = &permit;
            Ok(frame)
        });
        Ok(Response::new(frames.boxed()))
    }

    async fn members(
        &self,
        _request: Request<pb::MembersRequest>,
    ) -> Result<Response<pb::MembersResponse>, Status> {
        let members = match self.shared.dispatch.node() {
            Some(handler) => handler.members().await,
            None => None,
        };
        members.map(Response::new).ok_or_else(not_ready)
    }

    async fn join(
        &self,
        request: Request<pb::JoinRequest>,
    ) -> Result<Response<pb::JoinResponse>, Status> {
        let permit = self.shared.joining.try_acquire();
        let _permit = permit.map_err(|_| to_status(&PeerError::Full("members that join")))?;
        let joined = match self.shared.dispatch.node() {
            Some(handler) => handler.join(request.into_inner()).await,
            None => None,
        };
        joined.map(Response::new).ok_or_else(not_ready)
    }
}

fn not_ready() -> Status {
    to_status(&PeerError::NotReady("starting".to_owned()))
}

impl PeerService {
    fn raft(&self) -> Result<Arc<dyn super::handler::Handler>, Status> {
        self.shared.dispatch.raft().ok_or_else(not_ready)
    }
}

/// Handles an append that is a session of its own.
async fn single_append(
    dispatch: &Dispatch,
    from: u64,
    append: pb::AppendRequest,
) -> pb::AppendReply {
    let Some(handler) = dispatch.raft() else {
        return failed_append(failed(FailureKind::NotReady, "starting"));
    };
    let appends = futures::stream::once(async { append }).boxed();
    let reply = handler.append_session(from, appends).next().await;
    let unanswered = || failed_append(failed(FailureKind::Internal, "the session ended"));
    reply.unwrap_or_else(unanswered)
}

fn failed_append(failure: pb::Failure) -> pb::AppendReply {
    pb::AppendReply {
        outcome: Some(pb::append_reply::Outcome::Failure(failure)),
    }
}

/// The open incoming streams, one a member.
#[derive(Debug, Default)]
struct Streams(Mutex<BTreeMap<u64, Open>>);

/// One open incoming stream.
#[derive(Debug)]
struct Open {
    contact: Contact,
    /// Ends it.
    ticket: CancellationToken,
}

impl Streams {
    /// Makes room for a new stream of a member, ending the one it has.
    fn enter(&self, contact: Contact) -> CancellationToken {
        let ticket = CancellationToken::new();
        let open = Open {
            contact,
            ticket: ticket.clone(),
        };
        if let Some(older) = self.lock().insert(contact.from, open) {
            older.ticket.cancel();
        }
        ticket
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<u64, Open>> {
        // Every section leaves the map whole, so a panic elsewhere does not spoil it.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Takes a stream off the list when it ends; whoever cancelled its ticket has done so.
struct Leave<'a> {
    service: &'a PeerService,
    from: u64,
    ticket: CancellationToken,
}

impl Drop for Leave<'_> {
    fn drop(&mut self) {
        let mut streams = self.service.shared.streams.lock();
        if !self.ticket.is_cancelled() {
            streams.remove(&self.from);
        }
    }
}
