//! One long call to a member with messages both ways, opened again on another member when it breaks.
//! What was asked and not answered is its user's to ask again; here is only the call. Used for watches
//! and keep-alives.

use std::collections::VecDeque;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use quorate::core::clock::{self, Instant};
use quorate::proto::Reason;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;
use tonic::{Code, Request, Response, Status, Streaming};

use super::caller::Caller;
use super::endpoints::{Lane, Pool, Server, Visit};
use super::fate::Fate;

/// Messages that wait in the call; more wait with the user.
const MESSAGES_MAX: usize = 64;
/// How long a member may take to answer the first message of a call.
const OPEN_LIMIT: Duration = Duration::from_secs(5);
/// Longest pause before the call is opened again.
const PAUSE_FIRST: Duration = Duration::from_millis(20);
const PAUSE_MAX: Duration = Duration::from_secs(2);
/// How long a caller that wants a leader is kept waiting for one while calls are opened anew: as long as
/// a member lets such a call stand without a leader.
const LEADER_GRACE: Duration = Duration::from_secs(5);

/// Opens a call with these messages.
pub(super) type Begin<Q, A> =
    fn(Channel, Request<Messages<Q>>) -> BoxFuture<'static, Result<Response<Streaming<A>>, Status>>;

/// Messages on their way into a call.
pub(super) type Messages<Q> = ReceiverStream<Q>;

/// A call that is kept up.
pub(super) struct Upstream<Q, A> {
    pool: Pool,
    caller: Caller,
    lane: Lane,
    begin: Begin<Q, A>,
    state: State<Q, A>,
    waiting: VecDeque<Q>,
    /// Calls in a row that ended without an answer.
    failures: u32,
    /// Since when there has been no answer.
    failing_since: Option<Instant>,
    failed: Option<Arc<Server>>,
}

enum State<Q, A> {
    Closed {
        until: Option<Instant>,
    },
    Opening {
        call: Call<Q>,
        answers: BoxFuture<'static, Result<Streaming<A>, Status>>,
    },
    Open {
        call: Call<Q>,
        answers: Box<Streaming<A>>,
    },
}

struct Call<Q> {
    server: Arc<Server>,
    /// `None` once the other end takes no more.
    messages: Option<mpsc::Sender<Q>>,
    _visit: Visit,
}

/// What has happened to the call.
#[derive(Debug)]
pub(super) enum Happened<A> {
    /// It is being opened. Nothing of an earlier one will be answered; what is wanted now is to be sent.
    Opening,
    /// All messages given to it were taken: there is room for more.
    HasRoom,
    /// An answer came.
    Answer(A),
    /// It broke. It is opened again when something happens to it next.
    Broken,
    /// It ended for a reason that would be the same on every member.
    Ended(Status),
}

impl<Q: Send + 'static, A: 'static> Upstream<Q, A> {
    /// A call that is not opened yet.
    pub(super) fn new(pool: Pool, caller: Caller, lane: Lane, begin: Begin<Q, A>) -> Self {
        Self {
            pool,
            caller,
            lane,
            begin,
            state: State::Closed { until: None },
            waiting: VecDeque::new(),
            failures: 0,
            failing_since: None,
            failed: None,
        }
    }

    /// Whether there is a call, or one is being opened.
    pub(super) fn is_begun(&self) -> bool {
        !matches!(self.state, State::Closed { .. })
    }

    /// Whether the member has not taken the call yet. It does with its first answer, so a call is not to
    /// be left at this with nothing to answer.
    pub(super) fn is_opening(&self) -> bool {
        matches!(self.state, State::Opening { .. })
    }

    /// Whether it takes another message: only while there is a call.
    pub(super) fn has_room(&self) -> bool {
        self.is_begun() && self.waiting.len() < MESSAGES_MAX
    }

    /// Adds a message.
    pub(super) fn send(&mut self, message: Q) {
        self.waiting.push_back(message);
    }

    /// Whether the member answers requests for progress after the events before them.
    pub(super) fn orders_progress(&self) -> bool {
        match &self.state {
            State::Opening { call, .. } | State::Open { call, .. } => {
                call.server.facts().orders_progress
            }
            State::Closed { .. } => false,
        }
    }

    /// Gives the call up.
    pub(super) fn close(&mut self) {
        self.state = State::Closed { until: None };
        self.waiting.clear();
        self.failing_since = None;
    }

    /// Gives the call up since what it answers makes no sense; another one is opened next.
    pub(super) fn give_up(&mut self, why: &str) {
        let status = Status::internal(why.to_owned());
        if let State::Opening { call, .. } | State::Open { call, .. } = &self.state {
            self.failed = Some(Arc::clone(&call.server));
        }
        self.rest(&status);
    }

    /// Drives the call until something happens to it; one is opened if there is none.
    ///
    /// # Cancel safety
    /// Cancel safe: nothing is lost.
    pub(super) async fn next(&mut self) -> Happened<A> {
        loop {
            match &mut self.state {
                State::Closed { until } => {
                    if let Some(until) = *until {
                        tokio::time::sleep_until(until).await;
                    }
                    self.open();
                    return Happened::Opening;
                }
                State::Opening { call, answers } => tokio::select! {
                    () = call.take(&mut self.waiting) => {
                        if self.waiting.is_empty() {
                            return Happened::HasRoom;
                        }
                    }
                    opened = answers => match opened {
                        Ok(answers) => self.opened(answers),
                        Err(status) => return self.fails(status, false),
                    },
                },
                State::Open { call, answers } => tokio::select! {
                    () = call.take(&mut self.waiting) => {
                        if self.waiting.is_empty() {
                            return Happened::HasRoom;
                        }
                    }
                    answer = answers.message() => return match answer {
                        Ok(Some(answer)) => {
                            self.answered();
                            Happened::Answer(answer)
                        }
                        Ok(None) => self.fails(Status::unavailable("the call was ended"), true),
                        Err(status) => self.fails(status, true),
                    },
                },
            }
        }
    }

    fn open(&mut self) {
        let tried: Vec<_> = self.failed.take().into_iter().collect();
        let server = self.pool.choose(&tried);
        let (sender, receiver) = mpsc::channel(MESSAGES_MAX);
        // The sending half stays open: a server may take its end for the end of the call.
        let messages = ReceiverStream::new(receiver);
        let begun = (self.begin)(server.channel(self.lane), self.caller.request(messages));
        let answers = Box::pin(async move {
            match tokio::time::timeout(OPEN_LIMIT, begun).await {
                Ok(answers) => Ok(answers?.into_inner()),
                Err(_) => Err(Status::unavailable("no answer in time")),
            }
        });
        let call = Call {
            _visit: server.visit(),
            messages: Some(sender),
            server,
        };
        self.waiting.clear();
        self.state = State::Opening { call, answers };
    }

    fn opened(&mut self, answers: Streaming<A>) {
        let state = std::mem::replace(&mut self.state, State::Closed { until: None });
        if let State::Opening { call, .. } = state {
            let answers = Box::new(answers);
            self.state = State::Open { call, answers };
        }
    }

    fn answered(&mut self) {
        (self.failures, self.failing_since) = (0, None);
        if let State::Open { call, .. } = &self.state {
            self.pool.succeeded(&call.server);
        }
    }

    /// The call has ended with this; `was_open` if the member had taken it.
    fn fails(&mut self, status: Status, was_open: bool) -> Happened<A> {
        let fate = Fate::of(&status);
        if let State::Opening { call, .. } | State::Open { call, .. } = &self.state {
            self.failed = Some(Arc::clone(&call.server));
            if fate.is_of_the_member(&status) {
                self.pool.failed(&call.server, &status);
            }
        }
        let is_leaderless = Reason::from_status(&status) == Some(Reason::NoLeader);
        // A member that had a leader and lost it has waited already.
        if self.caller.wants_leader() && is_leaderless && was_open {
            self.close();
            return Happened::Ended(status);
        }
        if fate == Fate::Decided && is_final(&status) {
            self.close();
            return Happened::Ended(status);
        }
        let since = *self.failing_since.get_or_insert_with(clock::now);
        let is_late = clock::now().saturating_duration_since(since) > LEADER_GRACE;
        if self.caller.wants_leader() && is_late {
            self.close();
            return Happened::Ended(Reason::NoLeader.into());
        }
        self.rest(&status);
        Happened::Broken
    }

    fn rest(&mut self, status: &Status) {
        let doublings = self.failures.min(16);
        let pause = PAUSE_MAX.min(PAUSE_FIRST * 2_u32.pow(doublings));
        self.failures += 1;
        let until = clock::now() + self.pool.jittered(pause);
        tracing::debug!(%status, failures = self.failures, "a long call is opened again");
        self.state = State::Closed { until: Some(until) };
        self.waiting.clear();
    }
}

impl<Q> Call<Q> {
    /// Moves one message in. Never completes while there is none. Cancel safe.
    async fn take(&mut self, waiting: &mut VecDeque<Q>) {
        let Some(messages) = self.messages.as_ref().filter(|_| !waiting.is_empty()) else {
            return std::future::pending().await;
        };
        let is_taken = match messages.reserve().await {
            Ok(permit) => {
                if let Some(message) = waiting.pop_front() {
                    permit.send(message);
                }
                true
            }
            Err(_) => false,
        };
        if !is_taken {
            // The call is over; its answers will say why.
            self.messages = None;
        }
    }
}

/// Whether every member would end the call with this.
fn is_final(status: &Status) -> bool {
    matches!(
        status.code(),
        Code::Unauthenticated
            | Code::PermissionDenied
            | Code::Unimplemented
            | Code::InvalidArgument
            | Code::FailedPrecondition
            | Code::NotFound
    )
}

impl<Q, A> fmt::Debug for Upstream<Q, A> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Upstream")
            .field("caller", &self.caller)
            .field("failures", &self.failures)
            .finish_non_exhaustive()
    }
}
