//! The answering side of one stream: takes the caller's frames apart into sessions and requests,
//! each handled on its own, and sends the answers back. Started by `service`.
//!
//! Reading never waits for a handler. A session has a bounded queue; a caller that overruns it
//! loses the session. Requests beyond the limit are refused.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use futures::StreamExt;
use prost::Message;
use quorate_proto::peer as pb;
use quorate_proto::peer::failure::Kind as FailureKind;
use quorate_proto::peer::stream_frame::Kind;
use tokio::sync::{Semaphore, mpsc};
use tonic::Streaming;
use tracing::{debug, warn};

use super::dispatch::{Dispatch, failed, refusal};
use super::handler::Appends;
use super::lanes::{Lane, Lanes};
use super::session::{SESSION_APPENDS_MAX, SESSION_BYTES_MAX};
use crate::tasks::Tasks;

/// Appends a session may have queued: twice what a caller sends without an answer.
const QUEUE_APPENDS_MAX: usize = 2 * SESSION_APPENDS_MAX;
/// Encoded bytes a session may have queued; one append may overshoot.
const QUEUE_BYTES_MAX: usize = 2 * SESSION_BYTES_MAX;
/// Sessions a caller may have open.
const SESSIONS_MAX: usize = 64;
/// Heartbeats and other single appends of a caller being handled at a time.
const SINGLES_MAX: usize = 64;
/// Requests of a caller being handled at a time.
const REQUESTS_MAX: usize = 1024;

/// One accepted stream.
#[derive(Debug)]
pub(super) struct Incoming {
    pub(super) from: u64,
    pub(super) dispatch: Arc<Dispatch>,
    pub(super) lanes: Arc<Lanes>,
    /// For requests, which are finished even if the stream breaks: their effects may matter.
    pub(super) tasks: Tasks,
    /// A stream without a frame for this long is given up; the caller pings far more often.
    pub(super) silence: Duration,
}

/// The queue of an open session.
#[derive(Debug)]
struct Session {
    queue: mpsc::Sender<pb::AppendRequest>,
    queued_bytes: Arc<AtomicUsize>,
    /// Sequence the next append must carry.
    expected: u64,
}

impl Incoming {
    /// Serves the stream until it ends. Dropping the future ends the sessions.
    pub(super) async fn serve(self, mut frames: Streaming<pb::StreamFrame>) {
        // Sessions end with the stream: their answers could not be told any more.
        let sessions = Sessions {
            open: BTreeMap::new(),
            tasks: self.tasks.child(),
        };
        let mut state = State {
            sessions,
            singles: Arc::new(Semaphore::new(SINGLES_MAX)),
            requests: Arc::new(Semaphore::new(REQUESTS_MAX)),
        };
        let why = loop {
            match tokio::time::timeout(self.silence, frames.message()).await {
                Err(_) => break format!("silent for {:?}", self.silence),
                Ok(Err(status)) => break status.to_string(),
                Ok(Ok(None)) => break "ended by the peer".to_owned(),
                Ok(Ok(Some(frame))) => {
                    let Some(kind) = frame.kind else {
                        continue; // A kind of a later version.
                    };
                    if let Err(why) = self.receive(&mut state, kind) {
                        warn!(peer = self.from, why, "incoming peer stream given up");
                        break why;
                    }
                }
            }
        };
        debug!(peer = self.from, why, "incoming peer stream down");
    }

    /// Takes in a frame. Never blocks.
    fn receive(&self, state: &mut State, kind: Kind) -> Result<(), String> {
        match kind {
            Kind::Ping(ping) => {
                let sequence = ping.sequence;
                self.send(Lane::Urgent, Kind::Pong(pb::Pong { sequence }))
            }
            Kind::Request(request) => self.request(state, request),
            Kind::Append(append) if append.single => self.single(state, append),
            Kind::Append(append) => self.append(&mut state.sessions, append),
            Kind::End(end) => {
                state.sessions.open.remove(&end.session);
                Ok(())
            }
            Kind::Handshake(_)
            | Kind::Reply(_)
            | Kind::Closed(_)
            | Kind::Response(_)
            | Kind::Pong(_) => Err("a frame only the callee sends".to_owned()),
        }
    }

    fn request(&self, state: &State, request: pb::TaggedRequest) -> Result<(), String> {
        use pb::request::Kind as Asked;
        let (id, body) = (request.id, request.request.unwrap_or_default());
        let lane = match body.kind {
            Some(Asked::Vote(_) | Asked::PreVote(_) | Asked::TransferLeader(_)) => Lane::Urgent,
            _ => Lane::Request,
        };
        let tagged = move |response| {
            let response = Some(response);
            Kind::Response(pb::TaggedResponse { id, response })
        };
        let Ok(permit) = Arc::clone(&state.requests).try_acquire_owned() else {
            let full = refusal(FailureKind::Full, "too many requests in flight");
            return self.send(lane, tagged(full));
        };
        let (from, dispatch) = (self.from, Arc::clone(&self.dispatch));
        let lanes = Arc::clone(&self.lanes);
        self.tasks.spawn("peer request", async move {
            let _permit = permit;
            let response = dispatch.request(from, body).await;
            respond(&lanes, lane, tagged(response));
        });
        Ok(())
    }

    fn single(&self, state: &State, append: pb::SessionAppend) -> Result<(), String> {
        let session = append.session;
        let permit = Arc::clone(&state.singles).try_acquire_owned();
        let (handler, permit) = match (self.dispatch.raft(), permit) {
            (Some(handler), Ok(permit)) => (handler, permit),
            (None, _) => return self.refuse(Lane::Urgent, session, FailureKind::NotReady),
            (_, Err(_)) => return self.refuse(Lane::Urgent, session, FailureKind::Full),
        };
        let request = append.request.unwrap_or_default();
        let appends: Appends = futures::stream::once(async { request }).boxed();
        let mut replies = handler.append_session(self.from, appends);
        let lanes = Arc::clone(&self.lanes);
        state.sessions.tasks.spawn("peer heartbeat", async move {
            let _permit = permit;
            let answer = match replies.next().await {
                Some(reply) => reply_frame(session, 0, reply),
                None => closed_frame(session, None),
            };
            respond(&lanes, Lane::Urgent, answer);
        });
        Ok(())
    }

    fn append(&self, sessions: &mut Sessions, append: pb::SessionAppend) -> Result<(), String> {
        let (id, sequence) = (append.session, append.sequence);
        if sequence == 0 {
            match self.open(sessions, id) {
                Ok(session) => drop(sessions.open.insert(id, session)),
                Err(kind) => return self.refuse(Lane::Append, id, kind),
            }
        }
        // A session that is not open has been given up here; the caller has been told.
        let Some(session) = sessions.open.get_mut(&id) else {
            return Ok(());
        };
        if session.expected != sequence {
            return Err(format!(
                "append {sequence} of a session instead of {}",
                session.expected
            ));
        }
        session.expected += 1;
        let request = append.request.unwrap_or_default();
        let bytes = request.encoded_len();
        let fits = session.queued_bytes.load(Ordering::Acquire) < QUEUE_BYTES_MAX;
        if fits {
            session.queued_bytes.fetch_add(bytes, Ordering::AcqRel);
            match session.queue.try_send(request) {
                Ok(()) => return Ok(()),
                Err(mpsc::error::TrySendError::Closed(_)) => {
                    // The handler ended it, and its task says so.
                    sessions.open.remove(&id);
                    return Ok(());
                }
                Err(mpsc::error::TrySendError::Full(_)) => {}
            }
        }
        debug!(peer = self.from, session = id, "append session overrun");
        sessions.open.remove(&id);
        self.refuse(Lane::Append, id, FailureKind::Full)
    }

    /// Starts handling a session.
    fn open(&self, sessions: &mut Sessions, id: u64) -> Result<Session, FailureKind> {
        let handler = self.dispatch.raft().ok_or(FailureKind::NotReady)?;
        if sessions.open.len() >= SESSIONS_MAX {
            sessions
                .open
                .retain(|_, session| !session.queue.is_closed());
        }
        if sessions.open.len() >= SESSIONS_MAX {
            return Err(FailureKind::Full);
        }
        let (queue, queued) = mpsc::channel::<pb::AppendRequest>(QUEUE_APPENDS_MAX);
        let queued_bytes = Arc::new(AtomicUsize::new(0));
        let taken_bytes = Arc::clone(&queued_bytes);
        let appends = futures::stream::unfold(queued, move |mut queued| {
            let taken_bytes = Arc::clone(&taken_bytes);
            async move {
                let request = queued.recv().await?;
                taken_bytes.fetch_sub(request.encoded_len(), Ordering::AcqRel);
                Some((request, queued))
            }
        });
        let mut replies = handler.append_session(self.from, appends.boxed());
        let lanes = Arc::clone(&self.lanes);
        sessions.tasks.spawn("peer append session", async move {
            let mut sequence = 0;
            while let Some(reply) = replies.next().await {
                respond(&lanes, Lane::Append, reply_frame(id, sequence, reply));
                sequence += 1;
            }
            respond(&lanes, Lane::Append, closed_frame(id, None));
        });
        Ok(Session {
            queue,
            queued_bytes,
            expected: 0,
        })
    }

    fn refuse(&self, lane: Lane, session: u64, kind: FailureKind) -> Result<(), String> {
        let failure = failed(kind, "append session");
        self.send(lane, closed_frame(session, Some(failure)))
    }

    fn send(&self, lane: Lane, kind: Kind) -> Result<(), String> {
        let sent = self.lanes.push(lane, kind, None);
        sent.map_err(|error| format!("answers pile up: {error}"))
    }
}

#[derive(Debug)]
struct State {
    sessions: Sessions,
    singles: Arc<Semaphore>,
    requests: Arc<Semaphore>,
}

/// The open sessions of a stream; dropping it stops their tasks.
#[derive(Debug)]
struct Sessions {
    open: BTreeMap<u64, Session>,
    tasks: Tasks,
}

impl Drop for Sessions {
    fn drop(&mut self) {
        self.tasks.cancel();
    }
}

/// The outgoing half ends with the incoming half, also if that was never read.
impl Drop for Incoming {
    fn drop(&mut self) {
        self.lanes.close();
    }
}

/// Sends an answer. An answer that finds no room would be missed for ever, so then the stream ends
/// and the caller knows that its answers are lost.
fn respond(lanes: &Lanes, lane: Lane, kind: Kind) {
    if lanes.push(lane, kind, None).is_err() {
        lanes.close();
    }
}

fn reply_frame(session: u64, sequence: u64, reply: pb::AppendReply) -> Kind {
    Kind::Reply(pb::SessionReply {
        session,
        sequence,
        reply: Some(reply),
    })
}

fn closed_frame(session: u64, failure: Option<pb::Failure>) -> Kind {
    Kind::Closed(pb::SessionClosed { session, failure })
}
