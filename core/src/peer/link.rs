//! The calling side of one established stream: who waits for which answer. Used by `stream`, which
//! feeds it the frames that arrive, and by [`Peer`](super::Peer), which sends through it.
//!
//! A link never comes back: when its call ends, everything that waits fails at once, and the next
//! connection is a new link.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use quorate_proto::peer as pb;
use quorate_proto::peer::stream_frame::Kind;
use tokio::sync::{mpsc, oneshot};

use super::PeerError;
use super::handshake::Contact;
use super::lanes::{Lane, Lanes, Ticket};
use super::session::{AppendSession, SESSION_APPENDS_MAX};

/// Requests and single appends that may wait for an answer at a time.
const WAITING_MAX: usize = 4096;
/// Sessions that may be open at a time. The peer accepts twice as many.
const SESSIONS_MAX: usize = 32;

/// An answer, or why there is none.
type Answer = Result<Reply, PeerError>;

/// What answers a request or a single append.
#[derive(Debug)]
enum Reply {
    Response(pb::Response),
    Append(pb::AppendReply),
}

/// Someone who waits for one answer.
#[derive(Debug)]
struct Waiter {
    answer: oneshot::Sender<Answer>,
    ticket: Arc<Ticket>,
}

/// An open session, as the reading side sees it.
#[derive(Debug)]
struct Slot {
    replies: mpsc::Sender<Result<pb::AppendReply, PeerError>>,
    /// Appends queued so far.
    queued: u64,
    /// Sequence the next reply must carry.
    expected: u64,
}

#[derive(Debug, Default)]
struct State {
    /// By request id or session number: one counter numbers both.
    waiting: BTreeMap<u64, Waiter>,
    sessions: BTreeMap<u64, Slot>,
    next: u64,
    /// Set when the call has ended.
    lost: Option<String>,
}

/// One established outgoing stream.
pub(super) struct Link {
    /// Which life of the peer it leads to.
    contact: Contact,
    lanes: Arc<Lanes>,
    state: Mutex<State>,
}

impl fmt::Debug for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Link")
            .field("lanes", &self.lanes)
            .finish_non_exhaustive()
    }
}

impl Link {
    /// A link to the peer that shook hands as `contact`, sending through `lanes`.
    pub(super) fn new(contact: Contact, lanes: Arc<Lanes>) -> Arc<Self> {
        Arc::new(Self {
            contact,
            lanes,
            state: Mutex::default(),
        })
    }

    /// Whom it leads to.
    pub(super) const fn contact(&self) -> &Contact {
        &self.contact
    }

    /// Sends a request and waits for the response.
    pub(super) async fn request(
        self: &Arc<Self>,
        request: pb::Request,
        timeout: Duration,
    ) -> Result<pb::Response, PeerError> {
        use pb::request::Kind as Asked;
        let lane = match request.kind {
            Some(Asked::Vote(_) | Asked::PreVote(_) | Asked::TransferLeader(_)) => Lane::Urgent,
            _ => Lane::Request,
        };
        let tagged = |id| {
            Kind::Request(pb::TaggedRequest {
                id,
                request: Some(request),
            })
        };
        match self.ask(lane, tagged, timeout).await? {
            Reply::Response(response) => Ok(response),
            Reply::Append(_) => Err(PeerError::Protocol("append answers a request".to_owned())),
        }
    }

    /// Sends an append that is a session of its own and waits for its answer.
    pub(super) async fn append(
        self: &Arc<Self>,
        request: pb::AppendRequest,
        timeout: Duration,
    ) -> Result<pb::AppendReply, PeerError> {
        let tagged = |session| {
            Kind::Append(pb::SessionAppend {
                session,
                sequence: 0,
                single: true,
                request: Some(request),
            })
        };
        match self.ask(Lane::Urgent, tagged, timeout).await? {
            Reply::Append(reply) => Ok(reply),
            Reply::Response(_) => Err(PeerError::Protocol("response to an append".to_owned())),
        }
    }

    async fn ask(
        self: &Arc<Self>,
        lane: Lane,
        tagged: impl FnOnce(u64) -> Kind,
        timeout: Duration,
    ) -> Result<Reply, PeerError> {
        let (answer, answered) = oneshot::channel();
        let ticket = Arc::new(Ticket::default());
        let id = {
            let mut state = self.lock();
            state.usable()?;
            if state.waiting.len() >= WAITING_MAX {
                return Err(PeerError::Full("requests in flight"));
            }
            let id = state.number();
            let ticket = Arc::clone(&ticket);
            state.waiting.insert(id, Waiter { answer, ticket });
            id
        };
        let waiting = Waiting {
            link: self,
            id,
            ticket: &ticket,
        };
        self.lanes.push(lane, tagged(id), Some(&ticket))?;
        match tokio::time::timeout(timeout, answered).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(_)) => Err(PeerError::Lost {
                sent: ticket.sent(),
                detail: "the stream ended".to_owned(),
            }),
            Err(_) => {
                let sent = waiting.give_up();
                Err(PeerError::Timeout {
                    sent,
                    after: timeout,
                })
            }
        }
    }

    /// Opens a session.
    ///
    /// # Errors
    /// [`PeerError::Full`] when too many are open, [`PeerError::Lost`] when the stream has ended.
    pub(super) fn open_session(self: &Arc<Self>) -> Result<AppendSession, PeerError> {
        // One more than the window, for the error that ends the session.
        let (replies, received) = mpsc::channel(SESSION_APPENDS_MAX + 1);
        let id = {
            let mut state = self.lock();
            state.usable()?;
            if state.sessions.len() >= SESSIONS_MAX {
                return Err(PeerError::Full("append sessions"));
            }
            let id = state.number();
            let slot = Slot {
                replies,
                queued: 0,
                expected: 0,
            };
            state.sessions.insert(id, slot);
            id
        };
        Ok(AppendSession::new(Arc::clone(self), id, received))
    }

    /// Queues an append of a session.
    pub(super) fn push_append(
        &self,
        append: pb::SessionAppend,
        ticket: &Arc<Ticket>,
    ) -> Result<(), PeerError> {
        let session = append.session;
        self.lanes
            .push(Lane::Append, Kind::Append(append), Some(ticket))?;
        if let Some(slot) = self.lock().sessions.get_mut(&session) {
            slot.queued += 1;
        }
        Ok(())
    }

    /// Waits until the append lane has room, or the stream has ended.
    pub(super) async fn append_room(&self) {
        self.lanes.append_room().await;
    }

    /// Forgets a session, and tells the peer if it knows of it.
    pub(super) fn end_session(&self, session: u64, ticket: &Ticket) {
        let open = self.lock().sessions.remove(&session).is_some();
        let known = ticket.abandon();
        if open && known {
            let end = Kind::End(pb::SessionEnd { session });
            // If the lane is full or closed, the peer forgets the session with the stream.
            self.lanes.push(Lane::Urgent, end, None).ok();
        }
    }

    /// Appends and requests that wait for an answer.
    pub(super) fn in_flight(&self) -> usize {
        let state = self.lock();
        let appends = state.sessions.values();
        let appends: u64 = appends.map(|s| s.queued.saturating_sub(s.expected)).sum();
        state.waiting.len() + usize::try_from(appends).unwrap_or(usize::MAX)
    }

    /// Takes in a frame from the peer. Never blocks.
    ///
    /// # Errors
    /// [`PeerError::Protocol`] when the peer makes no sense: the stream must be given up.
    pub(super) fn receive(&self, kind: Kind) -> Result<(), PeerError> {
        match kind {
            Kind::Response(response) => {
                let body = response.response.unwrap_or_default();
                self.answer(response.id, Ok(Reply::Response(body)));
                Ok(())
            }
            Kind::Reply(reply) => self.reply(reply),
            Kind::Closed(closed) => {
                self.close(&closed);
                Ok(())
            }
            Kind::Handshake(_)
            | Kind::Append(_)
            | Kind::End(_)
            | Kind::Request(_)
            | Kind::Ping(_)
            | Kind::Pong(_) => Err(PeerError::Protocol(
                "a frame only a caller sends".to_owned(),
            )),
        }
    }

    fn answer(&self, id: u64, answer: Answer) {
        let waiter = self.lock().waiting.remove(&id);
        if let Some(waiter) = waiter {
            // Whoever asked may have left.
            waiter.answer.send(answer).ok();
        }
    }

    fn reply(&self, reply: pb::SessionReply) -> Result<(), PeerError> {
        let body = reply.reply.unwrap_or_default();
        let mut state = self.lock();
        let Some(slot) = state.sessions.get_mut(&reply.session) else {
            drop(state);
            self.answer(reply.session, Ok(Reply::Append(body)));
            return Ok(());
        };
        if slot.expected != reply.sequence {
            return Err(PeerError::Protocol(format!(
                "reply {} of a session instead of {}",
                reply.sequence, slot.expected
            )));
        }
        slot.expected += 1;
        slot.replies
            .try_send(Ok(body))
            .map_err(|_| PeerError::Protocol("more replies than appends in a session".to_owned()))
    }

    fn close(&self, closed: &pb::SessionClosed) {
        let why = closed.failure.as_ref().map(failure);
        let mut state = self.lock();
        if let Some(slot) = state.sessions.remove(&closed.session) {
            if let Some(why) = why {
                // There is always room for one more than the window.
                slot.replies.try_send(Err(why)).ok();
            }
        } else {
            drop(state);
            let why = why.unwrap_or_else(|| {
                PeerError::Failed("the session ended without an answer".to_owned())
            });
            self.answer(closed.session, Err(why));
        }
    }

    /// The call has ended: fails everything that waits, now and later.
    pub(super) fn fail(&self, why: &str) {
        // First, so that nothing queued counts as sent from here on.
        self.lanes.close();
        let (waiting, sessions) = {
            let mut state = self.lock();
            state.lost.get_or_insert_with(|| why.to_owned());
            (
                std::mem::take(&mut state.waiting),
                std::mem::take(&mut state.sessions),
            )
        };
        let lost = |sent| PeerError::Lost {
            sent,
            detail: why.to_owned(),
        };
        for waiter in waiting.into_values() {
            let error = lost(waiter.ticket.sent());
            waiter.answer.send(Err(error)).ok();
        }
        for slot in sessions.into_values() {
            slot.replies.try_send(Err(lost(true))).ok();
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Every section leaves the maps whole, so a panic elsewhere does not spoil them.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn usable(&self) -> Result<(), PeerError> {
        match &self.lost {
            None => Ok(()),
            Some(why) => Err(PeerError::Lost {
                sent: false,
                detail: why.clone(),
            }),
        }
    }

    fn number(&mut self) -> u64 {
        self.next += 1;
        self.next
    }
}

/// Keeps the place of someone who waits; leaving it takes the message back if it is still here.
struct Waiting<'a> {
    link: &'a Link,
    id: u64,
    ticket: &'a Ticket,
}

impl Waiting<'_> {
    /// Gives up, and says whether the message had been sent.
    fn give_up(&self) -> bool {
        self.link.lock().waiting.remove(&self.id);
        self.ticket.abandon()
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.give_up();
    }
}

/// What a failure the peer reports means here.
pub(super) fn failure(failure: &pb::Failure) -> PeerError {
    let detail = failure.detail.clone();
    match failure.kind() {
        pb::failure::Kind::Internal => PeerError::Failed(detail),
        pb::failure::Kind::Full => PeerError::Full("the peer's"),
        pb::failure::Kind::NotReady => PeerError::NotReady(detail),
        pb::failure::Kind::UnknownMessage => PeerError::NotReady(format!("unknown: {detail}")),
    }
}
