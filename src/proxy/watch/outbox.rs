//! What waits for one client: a bounded buffer between the watches that clients share and the one
//! stream that a client reads. Filling it never waits; what does not fit makes its watcher fall behind.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use prost::Message;
use quorate::proto::etcdserverpb::{ResponseHeader, WatchResponse};
use quorate::proto::mvccpb::Event;
use tokio::sync::Notify;
use tonic::Status;

use super::line::revision;

/// How much may wait for one client.
#[derive(Debug, Clone, Copy)]
pub(in crate::proxy) struct Room {
    /// Answers with events or progress.
    pub(in crate::proxy) answers: usize,
    /// Encoded bytes of events. One answer always fits into an empty buffer.
    pub(in crate::proxy) bytes: usize,
}

/// Whole revisions, as they came from upstream; shared by all who wait for them.
#[derive(Debug)]
pub(super) struct Batch {
    pub(super) header: ResponseHeader,
    /// At least one.
    pub(super) events: Vec<Event>,
    bytes: usize,
}

/// What waits, by the number its watcher has in its session.
#[derive(Debug)]
pub(super) enum Item {
    /// The shared watch that the watcher wants to join knows where it stands.
    Opened { number: u64 },
    /// Events; those before `from` are not for this watcher.
    Events {
        number: u64,
        from: i64,
        batch: Arc<Batch>,
    },
    /// Everything up to the header's revision was told.
    Progress { number: u64, header: ResponseHeader },
    /// The buffer was full: the watcher is shared no more and lacks everything from `next` on.
    Behind { number: u64, next: i64 },
    /// The shared watch is over.
    Ended { number: u64, end: End },
    /// The answer to the session's request of this number for progress of all its shared watchers.
    InSync { call: u64, header: ResponseHeader },
}

/// How a shared watch ended.
#[derive(Debug)]
pub(super) enum End {
    /// It never began, for this reason.
    Refused(WatchResponse),
    /// It was ended upstream, as this says.
    Over(WatchResponse),
    /// It ended before the watcher had joined; nothing is lost.
    Gone,
}

/// The buffer of one client's stream.
#[derive(Debug)]
pub(super) struct Outbox {
    room: Room,
    waiting: Mutex<Waiting>,
    filled: Notify,
}

#[derive(Debug, Default)]
struct Waiting {
    items: VecDeque<Item>,
    /// Items that are bounded; the others are few for each watcher.
    answers: usize,
    bytes: usize,
    end: Option<Status>,
}

impl Batch {
    /// Events under the header that they came with.
    pub(super) fn new(header: ResponseHeader, events: Vec<Event>) -> Self {
        Self {
            header,
            bytes: events.iter().map(Message::encoded_len).sum(),
            events,
        }
    }

    /// The last revision.
    pub(super) fn last(&self) -> i64 {
        self.events.last().map_or(0, revision)
    }

    /// The events of revision `from` and later.
    pub(super) fn since(&self, from: i64) -> &[Event] {
        let cut = self.events.partition_point(|event| revision(event) < from);
        &self.events[cut..]
    }
}

impl Outbox {
    /// An empty buffer.
    pub(super) fn new(room: Room) -> Self {
        Self {
            room,
            waiting: Mutex::default(),
            filled: Notify::new(),
        }
    }

    /// Adds events from revision `from` on, unless there is no room. Returns whether there was.
    pub(super) fn offer(&self, number: u64, from: i64, batch: &Arc<Batch>) -> bool {
        let mut waiting = self.lock();
        let fits = waiting.answers < self.room.answers
            && waiting.bytes.saturating_add(batch.bytes) <= self.room.bytes;
        if !fits && waiting.answers > 0 {
            return false;
        }
        waiting.answers += 1;
        waiting.bytes += batch.bytes;
        waiting.items.push_back(Item::Events {
            number,
            from,
            batch: Arc::clone(batch),
        });
        drop(waiting);
        self.filled.notify_one();
        true
    }

    /// Adds progress, if there is room; otherwise it is left out.
    pub(super) fn offer_progress(&self, number: u64, header: ResponseHeader) {
        let mut waiting = self.lock();
        if waiting.answers < self.room.answers {
            waiting.answers += 1;
            waiting.items.push_back(Item::Progress { number, header });
            drop(waiting);
            self.filled.notify_one();
        }
    }

    /// Adds what must be told whether there is room or not: no more than a few for each watcher.
    pub(super) fn tell(&self, item: Item) {
        self.lock().items.push_back(item);
        self.filled.notify_one();
    }

    /// Ends the stream with this status, after what waits.
    pub(super) fn end(&self, status: Status) {
        self.lock().end.get_or_insert(status);
        self.filled.notify_one();
    }

    /// Takes what came first.
    ///
    /// # Errors
    /// Nothing waits, and the stream is over.
    pub(super) fn take(&self) -> Result<Option<Item>, Status> {
        let mut waiting = self.lock();
        let item = waiting.items.pop_front();
        match &item {
            Some(Item::Events { batch, .. }) => {
                waiting.answers -= 1;
                waiting.bytes -= batch.bytes;
            }
            Some(Item::Progress { .. }) => waiting.answers -= 1,
            Some(_) => {}
            None => {
                if let Some(status) = &waiting.end {
                    return Err(status.clone());
                }
            }
        }
        Ok(item)
    }

    /// Whether something waits, the end included.
    pub(super) fn is_filled(&self) -> bool {
        let waiting = self.lock();
        !waiting.items.is_empty() || waiting.end.is_some()
    }

    /// Whether less than half of the room is taken: the client keeps up.
    pub(super) fn is_roomy(&self) -> bool {
        let waiting = self.lock();
        waiting.answers <= self.room.answers / 2 && waiting.bytes <= self.room.bytes / 2
    }

    /// Completes when something may have been added since the last time. For one reader.
    pub(super) async fn filled(&self) {
        self.filled.notified().await;
    }

    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use quorate::proto::mvccpb::KeyValue;

    use super::*;

    fn batch(revision: i64, bytes: usize) -> Arc<Batch> {
        let event = Event {
            kv: Some(KeyValue {
                mod_revision: revision,
                value: vec![0; bytes].into(),
                ..Default::default()
            }),
            ..Default::default()
        };
        Arc::new(Batch::new(ResponseHeader::default(), vec![event]))
    }

    #[test]
    fn answers_and_bytes_are_bounded_but_one_answer_always_fits() {
        let outbox = Outbox::new(Room {
            answers: 2,
            bytes: 100,
        });
        assert!(outbox.offer(1, 0, &batch(1, 1_000)));
        assert!(!outbox.offer(1, 0, &batch(2, 1)));
        assert!(matches!(outbox.take(), Ok(Some(Item::Events { .. }))));
        assert!(outbox.offer(1, 0, &batch(2, 10)) && outbox.offer(1, 0, &batch(3, 10)));
        assert!(!outbox.offer(1, 0, &batch(4, 10)) && !outbox.is_roomy());
        outbox.offer_progress(1, ResponseHeader::default());
        outbox.tell(Item::Behind { number: 1, next: 4 });
        outbox.end(Status::unavailable("over"));
        for _ in 0..2 {
            assert!(matches!(outbox.take(), Ok(Some(Item::Events { .. }))));
        }
        assert!(matches!(outbox.take(), Ok(Some(Item::Behind { .. }))));
        assert!(outbox.is_filled() && outbox.is_roomy());
        assert_eq!(outbox.take().unwrap_err().message(), "over");
    }
}
