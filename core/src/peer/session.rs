//! The sending side of one append session, used by `raft::network`.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use futures::{Stream, StreamExt};
use prost::Message;
use quorate_proto::peer as pb;
use tokio::sync::mpsc;

use super::PeerError;
use super::lanes::Ticket;
use super::link::Link;
use crate::clock;

/// Appends of a session sent and not answered. The peer queues twice as many.
pub(super) const SESSION_APPENDS_MAX: usize = 32;
/// Encoded bytes of a session sent and not answered; one append may overshoot.
pub(super) const SESSION_BYTES_MAX: usize = 16 * 1024 * 1024;

/// A logical stream of appends to one peer: answers come in the order of the appends.
///
/// Dropping it ends the session at the peer. It never moves to another connection: when the stream
/// breaks, the session ends with [`PeerError::Lost`].
#[derive(Debug)]
pub struct AppendSession {
    link: Arc<Link>,
    id: u64,
    ticket: Arc<Ticket>,
    next: u64,
    /// Sizes of the appends not answered yet.
    unanswered: VecDeque<usize>,
    unanswered_bytes: usize,
    replies: mpsc::Receiver<Result<pb::AppendReply, PeerError>>,
}

impl AppendSession {
    pub(super) fn new(
        link: Arc<Link>,
        id: u64,
        replies: mpsc::Receiver<Result<pb::AppendReply, PeerError>>,
    ) -> Self {
        Self {
            link,
            id,
            ticket: Arc::default(),
            next: 0,
            unanswered: VecDeque::new(),
            unanswered_bytes: 0,
            replies,
        }
    }

    /// Appends sent and not answered.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.unanswered.len()
    }

    /// Whether the session's own window allows another append.
    #[must_use]
    pub fn window_open(&self) -> bool {
        self.unanswered.len() < SESSION_APPENDS_MAX && self.unanswered_bytes < SESSION_BYTES_MAX
    }

    /// Queues one append.
    ///
    /// # Errors
    /// [`PeerError::Full`] when the session's window or the append lane is full: the append was
    /// not sent and the session lives on. [`PeerError::Lost`] when the stream broke.
    pub fn try_send(&mut self, request: pb::AppendRequest) -> Result<(), PeerError> {
        if !self.window_open() {
            return Err(PeerError::Full("session window"));
        }
        let bytes = request.encoded_len();
        let append = pb::SessionAppend {
            session: self.id,
            sequence: self.next,
            single: false,
            request: Some(request),
        };
        self.link.push_append(append, &self.ticket)?;
        self.next += 1;
        self.unanswered.push_back(bytes);
        self.unanswered_bytes += bytes;
        Ok(())
    }

    /// The next answer; `None` when the peer ended the session in good order.
    ///
    /// # Errors
    /// Whatever ended the session.
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub async fn reply(&mut self) -> Option<Result<pb::AppendReply, PeerError>> {
        let reply = self.replies.recv().await?;
        if reply.is_ok()
            && let Some(bytes) = self.unanswered.pop_front()
        {
            self.unanswered_bytes -= bytes;
        }
        Some(reply)
    }

    /// Sends all of `appends`, as the window and the buffers allow, and yields the answers in
    /// order. Ends after the last answer, or with the error that ended the session, which is
    /// [`PeerError::Timeout`] when an append has waited for `stall` without any answer coming.
    ///
    /// An append is taken from `appends` only when there is room for it.
    pub fn pipe<S>(
        self,
        appends: S,
        stall: Duration,
    ) -> impl Stream<Item = Result<pb::AppendReply, PeerError>> + Send + 'static
    where
        S: Stream<Item = pb::AppendRequest> + Send + Unpin + 'static,
    {
        let pipe = Pipe {
            session: self,
            appends: appends.fuse(),
            ended: false,
            stall,
            deadline: clock::now() + stall,
        };
        futures::stream::unfold(Some(pipe), |pipe| async move {
            let mut pipe = pipe?;
            match pipe.next().await? {
                Ok(reply) => Some((Ok(reply), Some(pipe))),
                Err(error) => Some((Err(error), None)),
            }
        })
    }
}

impl Drop for AppendSession {
    fn drop(&mut self) {
        self.link.end_session(self.id, &self.ticket);
    }
}

/// A session and what it is to send.
struct Pipe<S> {
    session: AppendSession,
    appends: futures::stream::Fuse<S>,
    /// Nothing further to send.
    ended: bool,
    stall: Duration,
    /// When the wait for an answer counts as a stall; moves while nothing is in flight.
    deadline: clock::Instant,
}

impl<S> Pipe<S>
where
    S: Stream<Item = pb::AppendRequest> + Send + Unpin + 'static,
{
    /// Sends until an answer comes.
    async fn next(&mut self) -> Option<Result<pb::AppendReply, PeerError>> {
        loop {
            let in_flight = self.session.in_flight();
            if self.ended && in_flight == 0 {
                return None;
            }
            let may_send = !self.ended && self.session.window_open();
            let link = Arc::clone(&self.session.link);
            let appends = &mut self.appends;
            // Both branches are cancel safe: waiting for room takes nothing, and what `appends`
            // does while it makes the next item is kept in `appends`.
            let append = async move {
                link.append_room().await;
                appends.next().await
            };
            tokio::select! {
                biased;
                reply = self.session.reply() => {
                    self.deadline = clock::now() + self.stall;
                    return Some(reply.unwrap_or_else(|| Err(PeerError::Failed(
                        "the peer ended the session".to_owned(),
                    ))));
                }
                append = append, if may_send => match append {
                    None => self.ended = true,
                    Some(append) => {
                        if let Err(error) = self.session.try_send(append) {
                            return Some(Err(error));
                        }
                        if in_flight == 0 {
                            self.deadline = clock::now() + self.stall;
                        }
                    }
                },
                () = tokio::time::sleep_until(self.deadline), if in_flight > 0 => {
                    return Some(Err(PeerError::Timeout { sent: true, after: self.stall }));
                }
            }
        }
    }
}
