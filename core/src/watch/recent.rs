//! What is published, and the recent part of it kept in memory, so that a watcher that is nearly
//! current never touches the disk. Used by the hub.

use std::collections::VecDeque;
use std::sync::Arc;

use crate::mvcc::Event;

/// What one applied batch has to tell the watchers. Made by `apply`, handed on as it is.
#[derive(Debug, Clone, Default)]
pub struct Publication {
    pub(super) revisions: Vec<Arc<Changes>>,
    pub(super) revision: i64,
    pub(super) compact_revision: i64,
}

impl Publication {
    /// The changes of a batch, one list for each new main revision, in order; and the main and the
    /// compact revision after it.
    #[must_use]
    pub fn new(revisions: Vec<Vec<Event>>, revision: i64, compact_revision: i64) -> Self {
        let revisions = revisions
            .into_iter()
            .filter_map(|events| Changes::new(events).map(Arc::new))
            .collect();
        Self {
            revisions,
            revision,
            compact_revision,
        }
    }

    /// All events of the batch, in order.
    pub fn events(&self) -> impl Iterator<Item = &Event> {
        self.revisions.iter().flat_map(|changes| &changes.events)
    }

    /// The main revision after the batch.
    #[must_use]
    pub fn revision(&self) -> i64 {
        self.revision
    }
}

/// All events of one main revision, shared by everyone who waits for some of them.
#[derive(Debug)]
pub(super) struct Changes {
    pub(super) revision: i64,
    pub(super) events: Vec<Event>,
    /// What it takes in memory, about.
    pub(super) bytes: usize,
}

impl Changes {
    fn new(events: Vec<Event>) -> Option<Self> {
        let revision = events.first()?.revision.main;
        let bytes = events
            .iter()
            .map(|event| {
                let before = event.prev_kv.as_ref();
                event.size_bytes() + before.map_or(0, |kv| kv.key.len() + kv.value.len())
            })
            .sum();
        Some(Self {
            revision,
            events,
            bytes,
        })
    }
}

/// The last revisions published, without a gap, bounded in bytes.
#[derive(Debug)]
pub(super) struct Recent {
    revisions: VecDeque<Arc<Changes>>,
    bytes: usize,
    bytes_max: usize,
}

impl Recent {
    pub(super) fn new(bytes_max: usize) -> Self {
        Self {
            revisions: VecDeque::new(),
            bytes: 0,
            bytes_max,
        }
    }

    pub(super) fn clear(&mut self) {
        self.revisions.clear();
        self.bytes = 0;
    }

    /// Adds the revision after the last one; the oldest leave to make room.
    pub(super) fn push(&mut self, changes: Arc<Changes>) {
        self.bytes += changes.bytes;
        self.revisions.push_back(changes);
        while self.bytes > self.bytes_max {
            match self.revisions.pop_front() {
                Some(oldest) => self.bytes -= oldest.bytes,
                None => break,
            }
        }
    }

    /// Some revisions from `first` on: at least one, and not many more than `bytes_max`. `None` if
    /// `first` is not kept.
    pub(super) fn from(&self, first: i64, bytes_max: usize) -> Option<Vec<Arc<Changes>>> {
        /// Bounds the time that one look takes from the publisher.
        const REVISIONS_MAX: usize = 512;
        let oldest = self.revisions.front()?.revision;
        let offset = usize::try_from(first.checked_sub(oldest)?).ok()?;
        if offset >= self.revisions.len() {
            return None;
        }
        let mut bytes = 0;
        let some = self
            .revisions
            .range(offset..)
            .take(REVISIONS_MAX)
            .take_while(|changes| {
                let fits = bytes < bytes_max;
                bytes += changes.bytes;
                fits
            });
        Some(some.cloned().collect())
    }
}
