//! What waits for one watcher, bounded, and whether the watcher is live. Filled by the hub, emptied
//! by the watcher.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use quorate_proto::{KeyRange, mvccpb};
use tokio::sync::Notify;

use super::recent::Changes;
use crate::mvcc::{Event, EventKind};

/// Events one answer holds before it is told, in number and bytes; whole revisions go beyond it.
pub(super) const ANSWER_EVENTS_MAX: usize = 1000;
/// See [`ANSWER_EVENTS_MAX`].
pub(super) const ANSWER_BYTES_MAX: usize = 1024 * 1024;

/// What all watchers of a hub share: a memory budget, and the number of those that are behind.
#[derive(Debug)]
pub(super) struct Budget {
    used: AtomicUsize,
    max: usize,
    behind: AtomicUsize,
}

impl Budget {
    pub(super) fn new(max: usize) -> Self {
        Self {
            used: AtomicUsize::new(0),
            max,
            behind: AtomicUsize::new(0),
        }
    }

    /// How many watchers have to be caught up.
    pub(super) fn behind(&self) -> usize {
        self.behind.load(Ordering::Relaxed)
    }

    /// Counts a watcher that comes to `new` from `old`; `None` is before its begin and after its end.
    fn moved(&self, old: Option<Position>, new: Option<Position>) {
        let behind = |position| matches!(position, Some(Position::Behind(_)));
        match (behind(old), behind(new)) {
            (false, true) => self.behind.fetch_add(1, Ordering::Relaxed),
            (true, false) => self.behind.fetch_sub(1, Ordering::Relaxed),
            (true, true) | (false, false) => return,
        };
    }

    fn take(&self, bytes: usize) -> bool {
        let before = self.used.fetch_add(bytes, Ordering::Relaxed);
        let fits = before.saturating_add(bytes) <= self.max;
        if !fits {
            self.give(bytes);
        }
        fits
    }

    fn give(&self, bytes: usize) {
        self.used.fetch_sub(bytes, Ordering::Relaxed);
    }

    #[cfg(test)]
    pub(super) fn used(&self) -> usize {
        self.used.load(Ordering::Relaxed)
    }
}

/// Which events a watcher wants.
#[derive(Debug, Clone)]
pub(super) struct Filter {
    pub(super) range: KeyRange,
    pub(super) puts: bool,
    pub(super) deletes: bool,
}

impl Filter {
    /// Whether it wants this kind of event, on whatever key.
    pub(super) fn wants_kind(&self, event: &Event) -> bool {
        match event.kind {
            EventKind::Put => self.puts,
            EventKind::Delete => self.deletes,
        }
    }

    /// What it wants of a revision, if anything.
    pub(super) fn select(&self, changes: &Arc<Changes>) -> Option<Selected> {
        let wanted = |event: &Event| self.wants_kind(event) && self.range.contains(&event.kv.key);
        let which: Vec<usize> = (0..changes.events.len())
            .filter(|index| wanted(&changes.events[*index]))
            .collect();
        Selected::of(changes, which)
    }
}

/// Some events of one revision.
#[derive(Debug)]
pub(super) struct Selected {
    changes: Arc<Changes>,
    which: Which,
}

#[derive(Debug)]
enum Which {
    All,
    Some(Vec<usize>),
}

impl Selected {
    /// The events at these places, ascending; `None` if there are none.
    pub(super) fn of(changes: &Arc<Changes>, which: Vec<usize>) -> Option<Self> {
        if which.is_empty() {
            return None;
        }
        let which = if which.len() == changes.events.len() {
            Which::All
        } else {
            Which::Some(which)
        };
        Some(Self {
            changes: Arc::clone(changes),
            which,
        })
    }

    pub(super) fn all(changes: &Arc<Changes>) -> Self {
        Self {
            changes: Arc::clone(changes),
            which: Which::All,
        }
    }

    pub(super) fn revision(&self) -> i64 {
        self.changes.revision
    }

    pub(super) fn len(&self) -> usize {
        match &self.which {
            Which::All => self.changes.events.len(),
            Which::Some(which) => which.len(),
        }
    }

    /// What waiting for it keeps in memory: the whole revision, whoever else shares it.
    fn bytes(&self) -> usize {
        self.changes.bytes
    }

    /// Adds the events as they are told. The pair before is left out once it is compacted.
    pub(super) fn tell(&self, prev_kv: bool, compact_revision: i64, told: &mut Vec<mvccpb::Event>) {
        let prev_kv = prev_kv && self.revision() > compact_revision;
        let mut tell = |event: &Event| {
            let before = prev_kv.then(|| event.prev_kv.clone()).flatten();
            told.push(event.to_wire(before));
        };
        match &self.which {
            Which::All => self.changes.events.iter().for_each(tell),
            Which::Some(which) => which
                .iter()
                .for_each(|index| tell(&self.changes.events[*index])),
        }
    }
}

/// Where a watcher is, between the hub and its reader.
#[derive(Debug)]
pub(super) struct Buffer {
    pub(super) filter: Filter,
    budget: Arc<Budget>,
    bytes_max: usize,
    inner: Mutex<Inner>,
    filled: Notify,
}

#[derive(Debug)]
struct Inner {
    waiting: VecDeque<Selected>,
    bytes: usize,
    position: Position,
}

/// How a watcher gets what comes after its buffer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Position {
    /// Everything published from this revision on comes to the buffer.
    Live(i64),
    /// Nothing comes; this revision and those after it have to be caught up with.
    Behind(i64),
}

/// What a reader finds.
#[derive(Debug)]
pub(super) enum Found {
    /// Whole revisions, in order.
    Waiting(Vec<Selected>),
    /// An empty buffer.
    Empty(Position),
}

impl Buffer {
    pub(super) fn new(
        filter: Filter,
        position: Position,
        budget: Arc<Budget>,
        bytes_max: usize,
    ) -> Self {
        budget.moved(None, Some(position));
        Self {
            filter,
            budget,
            bytes_max,
            inner: Mutex::new(Inner {
                waiting: VecDeque::new(),
                bytes: 0,
                position,
            }),
            filled: Notify::new(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn move_to(&self, inner: &mut Inner, position: Position) {
        self.budget.moved(Some(inner.position), Some(position));
        inner.position = position;
    }

    /// Takes in what was just published, if the watcher is live; one for whom there is no room
    /// falls behind, from this revision on.
    pub(super) fn offer(&self, selected: Selected) {
        let mut inner = self.lock();
        let Position::Live(from) = inner.position else {
            return;
        };
        if selected.revision() < from {
            return;
        }
        let bytes = selected.bytes();
        let room = inner.waiting.is_empty() || inner.bytes.saturating_add(bytes) <= self.bytes_max;
        if room && self.budget.take(bytes) {
            inner.bytes += bytes;
            inner.waiting.push_back(selected);
        } else {
            self.move_to(&mut inner, Position::Behind(selected.revision()));
        }
        drop(inner);
        self.filled.notify_one();
    }

    /// A live watcher falls behind, from `next` or where it begins. Called on a reset.
    pub(super) fn fall_behind(&self, next: i64) {
        let mut inner = self.lock();
        if let Position::Live(from) = inner.position {
            self.move_to(&mut inner, Position::Behind(from.max(next)));
        }
        drop(inner);
        self.filled.notify_one();
    }

    /// Moves a watcher that catches up, or makes it live.
    pub(super) fn set(&self, position: Position) {
        self.move_to(&mut self.lock(), position);
    }

    /// Where the watcher is, if nothing waits for it.
    pub(super) fn idle_at(&self) -> Option<Position> {
        let inner = self.lock();
        inner.waiting.is_empty().then_some(inner.position)
    }

    /// Takes out one answer's worth.
    pub(super) fn take(&self) -> Found {
        let mut inner = self.lock();
        if inner.waiting.is_empty() {
            return Found::Empty(inner.position);
        }
        let (mut events, mut bytes) = (0, 0);
        let mut taken = Vec::new();
        while events < ANSWER_EVENTS_MAX && bytes < ANSWER_BYTES_MAX {
            let Some(selected) = inner.waiting.pop_front() else {
                break;
            };
            events += selected.len();
            bytes += selected.bytes();
            taken.push(selected);
        }
        inner.bytes -= bytes;
        drop(inner);
        self.budget.give(bytes);
        Found::Waiting(taken)
    }

    /// Waits until something may have changed. At most one reader waits at a time.
    pub(super) async fn filled(&self) {
        self.filled.notified().await;
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let inner = self.lock();
        self.budget.give(inner.bytes);
        self.budget.moved(Some(inner.position), None);
    }
}
