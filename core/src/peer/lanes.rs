//! The bounded outgoing buffer of one stream, in lanes of different urgency; used by both ends.
//!
//! Heartbeats, votes and pings overtake everything; requests and appends take turns. The call
//! polls for the next frame only when it can write, so what waits, waits here, where order can
//! still be changed. A full lane refuses.

use std::collections::VecDeque;
use std::fmt;
use std::pin::Pin;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use futures::Stream;
use prost::Message;
use quorate_proto::peer as pb;
use quorate_proto::peer::stream_frame::Kind;
use tokio::sync::Notify;

use super::PeerError;

/// Frames the urgent lane holds.
const URGENT_FRAMES_MAX: usize = 1024;
/// Frames each of the other lanes holds.
const LANE_FRAMES_MAX: usize = 4096;
/// Encoded bytes in a lane beyond which it refuses; one frame may overshoot.
const LANE_BYTES_MAX: usize = 8 * 1024 * 1024;

/// How urgent a frame is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Lane {
    /// Heartbeats, votes, pings, ends of sessions: before all else.
    Urgent,
    /// Requests between nodes and their responses.
    Request,
    /// Appends of sessions and their answers.
    Append,
}

/// What became of a queued message. A ticket may be shared by all messages of one owner.
#[derive(Debug, Default)]
pub(super) struct Ticket(AtomicU8);

impl Ticket {
    const SENT: u8 = 1;
    const ABANDONED: u8 = 2;

    /// Gives up what is still queued. Returns whether something had been sent before.
    pub(super) fn abandon(&self) -> bool {
        self.0.fetch_or(Self::ABANDONED, Ordering::AcqRel) & Self::SENT != 0
    }

    /// Whether something has left the buffer.
    pub(super) fn sent(&self) -> bool {
        self.0.load(Ordering::Acquire) & Self::SENT != 0
    }

    /// Marks the message as sent, unless it was abandoned.
    fn take(&self) -> bool {
        self.0.fetch_or(Self::SENT, Ordering::AcqRel) & Self::ABANDONED == 0
    }
}

/// One queued frame.
#[derive(Debug)]
struct Queued {
    frame: pb::StreamFrame,
    bytes: usize,
    ticket: Option<Arc<Ticket>>,
}

/// Frames of one urgency.
#[derive(Debug, Default)]
struct Queue {
    frames: VecDeque<Queued>,
    bytes: usize,
}

impl Queue {
    fn has_room(&self, frames_max: usize) -> bool {
        self.frames.len() < frames_max && self.bytes < LANE_BYTES_MAX
    }

    fn push(&mut self, queued: Queued) {
        self.bytes += queued.bytes;
        self.frames.push_back(queued);
    }

    /// The next frame nobody has abandoned.
    fn pop(&mut self) -> Option<pb::StreamFrame> {
        while let Some(queued) = self.frames.pop_front() {
            self.bytes -= queued.bytes;
            if queued.ticket.is_none_or(|ticket| ticket.take()) {
                return Some(queued.frame);
            }
        }
        None
    }
}

#[derive(Debug, Default)]
struct State {
    urgent: Queue,
    request: Queue,
    append: Queue,
    /// Whose turn it is among the two lanes that share.
    append_next: bool,
    closed: bool,
    waker: Option<Waker>,
}

impl State {
    fn pop(&mut self) -> Option<pb::StreamFrame> {
        if let Some(frame) = self.urgent.pop() {
            return Some(frame);
        }
        self.append_next = !self.append_next;
        if self.append_next {
            self.append.pop().or_else(|| self.request.pop())
        } else {
            self.request.pop().or_else(|| self.append.pop())
        }
    }
}

/// The outgoing buffer of one stream.
#[derive(Default)]
pub(super) struct Lanes {
    state: Mutex<State>,
    /// Told when the append lane may have room again, and when the buffer is closed.
    room: Notify,
}

impl fmt::Debug for Lanes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.lock();
        f.debug_struct("Lanes")
            .field("urgent", &state.urgent.frames.len())
            .field("request", &state.request.frames.len())
            .field("append", &state.append.frames.len())
            .field("closed", &state.closed)
            .finish()
    }
}

impl Lanes {
    /// An empty, open buffer.
    pub(super) fn new() -> Arc<Self> {
        Arc::default()
    }

    /// Queues a frame.
    ///
    /// # Errors
    /// [`PeerError::Full`], or [`PeerError::Lost`] once the stream is closed; never sent in both.
    pub(super) fn push(
        &self,
        lane: Lane,
        kind: Kind,
        ticket: Option<&Arc<Ticket>>,
    ) -> Result<(), PeerError> {
        let frame = pb::StreamFrame { kind: Some(kind) };
        let queued = Queued {
            bytes: frame.encoded_len(),
            frame,
            ticket: ticket.map(Arc::clone),
        };
        let waker = {
            let mut state = self.lock();
            if state.closed {
                return Err(PeerError::Lost {
                    sent: false,
                    detail: "the stream is closed".to_owned(),
                });
            }
            let (queue, frames_max, name) = match lane {
                Lane::Urgent => (&mut state.urgent, URGENT_FRAMES_MAX, "urgent lane"),
                Lane::Request => (&mut state.request, LANE_FRAMES_MAX, "request lane"),
                Lane::Append => (&mut state.append, LANE_FRAMES_MAX, "append lane"),
            };
            if !queue.has_room(frames_max) {
                return Err(PeerError::Full(name));
            }
            queue.push(queued);
            state.waker.take()
        };
        if let Some(waker) = waker {
            waker.wake();
        }
        Ok(())
    }

    /// Waits until the append lane has room, or the buffer is closed. Takes nothing.
    pub(super) async fn append_room(&self) {
        loop {
            let mut told = std::pin::pin!(self.room.notified());
            told.as_mut().enable();
            {
                let state = self.lock();
                if state.closed || state.append.has_room(LANE_FRAMES_MAX) {
                    return;
                }
            }
            told.await;
        }
    }

    /// Ends the stream and drops what is queued, which therefore counts as not sent.
    pub(super) fn close(&self) {
        let (waker, dropped) = {
            let mut state = self.lock();
            state.closed = true;
            let dropped = (
                std::mem::take(&mut state.urgent),
                std::mem::take(&mut state.request),
                std::mem::take(&mut state.append),
            );
            (state.waker.take(), dropped)
        };
        drop(dropped);
        if let Some(waker) = waker {
            waker.wake();
        }
        self.room.notify_waiters();
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Every section leaves the state whole, so a panic elsewhere does not spoil it.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The frames of a buffer in the order they are to be written. There must be only one for a buffer.
#[derive(Debug)]
pub(super) struct Frames(Arc<Lanes>);

impl Frames {
    /// The reading end of `lanes`.
    pub(super) fn of(lanes: &Arc<Lanes>) -> Self {
        Self(Arc::clone(lanes))
    }
}

impl Stream for Frames {
    type Item = pb::StreamFrame;

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let (frame, room) = {
            let mut state = self.0.lock();
            let full = !state.append.has_room(LANE_FRAMES_MAX);
            match state.pop() {
                Some(frame) => (frame, full && state.append.has_room(LANE_FRAMES_MAX)),
                None if state.closed => return Poll::Ready(None),
                None => {
                    state.waker = Some(context.waker().clone());
                    return Poll::Pending;
                }
            }
        };
        if room {
            self.0.room.notify_waiters();
        }
        Poll::Ready(Some(frame))
    }
}

impl Drop for Frames {
    fn drop(&mut self) {
        // Nobody will write any more: let senders know instead of queueing for nothing.
        self.0.close();
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use futures::{FutureExt, StreamExt};

    use super::*;

    fn ping(sequence: u64) -> Kind {
        Kind::Ping(pb::Ping { sequence })
    }

    fn append(session: u64, bytes: usize) -> Kind {
        Kind::Append(pb::SessionAppend {
            session,
            request: Some(pb::AppendRequest {
                entries: vec![pb::Entry {
                    payload: Bytes::from(vec![0; bytes]),
                    ..pb::Entry::default()
                }],
                ..pb::AppendRequest::default()
            }),
            ..pb::SessionAppend::default()
        })
    }

    fn request(id: u64) -> Kind {
        Kind::Request(pb::TaggedRequest { id, request: None })
    }

    #[tokio::test]
    async fn urgent_frames_overtake_and_the_others_take_turns() {
        let lanes = Lanes::new();
        for n in 0..2 {
            lanes.push(Lane::Append, append(n, 1), None).unwrap();
        }
        for n in 0..2 {
            lanes.push(Lane::Request, request(n), None).unwrap();
        }
        lanes.push(Lane::Urgent, ping(9), None).unwrap();
        let mut frames = Frames::of(&lanes);
        let mut order = String::new();
        for _ in 0..5 {
            order.push(match frames.next().await.unwrap().kind.unwrap() {
                Kind::Ping(_) => 'p',
                Kind::Append(_) => 'a',
                Kind::Request(_) => 'r',
                other => panic!("{other:?}"),
            });
        }
        assert_eq!(order, "parar");
    }

    #[tokio::test]
    async fn a_full_lane_refuses_and_says_when_there_is_room() {
        let lanes = Lanes::new();
        let mut frames = Frames::of(&lanes);
        lanes
            .push(Lane::Append, append(1, LANE_BYTES_MAX), None)
            .unwrap();
        assert_eq!(
            lanes.push(Lane::Append, append(1, 1), None),
            Err(PeerError::Full("append lane"))
        );
        lanes.push(Lane::Urgent, ping(1), None).unwrap();
        let mut room = Box::pin(lanes.append_room());
        assert!(room.as_mut().now_or_never().is_none());
        frames.next().await.unwrap();
        assert!(room.as_mut().now_or_never().is_none(), "only the ping left");
        frames.next().await.unwrap();
        room.await;
    }

    #[tokio::test]
    async fn an_abandoned_message_is_never_sent() {
        let lanes = Lanes::new();
        let mut frames = Frames::of(&lanes);
        let (kept, dropped) = (Arc::new(Ticket::default()), Arc::new(Ticket::default()));
        lanes
            .push(Lane::Request, request(1), Some(&dropped))
            .unwrap();
        lanes.push(Lane::Request, request(2), Some(&kept)).unwrap();
        assert!(!dropped.abandon());
        let Some(Kind::Request(sent)) = frames.next().await.unwrap().kind else {
            panic!("a request was queued");
        };
        assert_eq!(sent.id, 2);
        assert!(kept.abandon(), "it had been sent");
    }

    #[tokio::test]
    async fn closing_ends_the_stream_and_refuses() {
        let lanes = Lanes::new();
        let mut frames = Frames::of(&lanes);
        let ticket = Arc::new(Ticket::default());
        lanes.push(Lane::Urgent, ping(1), Some(&ticket)).unwrap();
        lanes.close();
        assert!(frames.next().await.is_none());
        assert!(!ticket.sent());
        assert!(
            lanes
                .push(Lane::Urgent, ping(2), None)
                .unwrap_err()
                .certainly_not_handled()
        );
    }
}
