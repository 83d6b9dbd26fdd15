//! The hub: takes what each applied batch published and hands it to the watchers it concerns.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use quorate_proto::Reason;
use tokio::sync::Semaphore;

use super::buffer::{ANSWER_BYTES_MAX, Budget, Buffer, Filter, Position, Selected};
use super::range_set::RangeSet;
use super::recent::{Changes, Publication, Recent};
use super::watcher::{Request, Start, Watcher};
use crate::storage::kv::View;

/// Gives the current read view of the store; after a snapshot install, of the new one.
pub type ViewSource = Arc<dyn Fn() -> Arc<dyn View> + Send + Sync>;

/// Pages of past events read from the store at the same time; further readers wait.
const READS_MAX: usize = 8;

/// Bounds of a hub.
#[derive(Debug, Clone)]
pub struct Options {
    /// Watchers there may be; one more is refused.
    pub watchers_max: usize,
    /// Recent events kept in memory, in bytes; older ones are read from the store.
    pub recent_bytes_max: usize,
    /// Events waiting for one watcher, in bytes; beyond it the watcher falls behind.
    pub watcher_bytes_max: usize,
    /// Events waiting for all watchers together, in bytes, those shared by several counted for
    /// each; beyond it every watcher that would need more falls behind.
    pub waiting_bytes_max: usize,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            watchers_max: 1_000_000,
            recent_bytes_max: 32 * 1024 * 1024,
            watcher_bytes_max: 1024 * 1024,
            waiting_bytes_max: 256 * 1024 * 1024,
        }
    }
}

/// Where events go to and watchers come from. Cheap to clone; all clones are one hub.
#[derive(Clone)]
pub struct Hub {
    shared: Arc<Shared>,
}

struct Shared {
    source: ViewSource,
    watchers_max: usize,
    watcher_bytes_max: usize,
    budget: Arc<Budget>,
    reads: Arc<Semaphore>,
    state: Mutex<State>,
}

struct State {
    /// The last revision published.
    revision: i64,
    compact_revision: i64,
    recent: Recent,
    by_range: RangeSet<Arc<Buffer>>,
    by_number: BTreeMap<u64, Arc<Buffer>>,
    last_number: u64,
}

/// How a watcher that is behind gets on.
#[derive(Debug)]
pub(super) enum Ahead {
    /// It has reached the end and is live now.
    Live,
    /// These come next, and nothing between them is missing.
    Recent {
        revisions: Vec<Arc<Changes>>,
        compact_revision: i64,
        /// The hub's revision.
        revision: i64,
    },
    /// It has to read the store up to this revision.
    Stored { last: i64 },
}

impl Hub {
    /// A hub over a store that is at `revision` and compacted at `compact_revision`.
    #[must_use]
    pub fn new(
        source: ViewSource,
        revision: i64,
        compact_revision: i64,
        options: &Options,
    ) -> Self {
        let state = State {
            revision,
            compact_revision,
            recent: Recent::new(options.recent_bytes_max),
            by_range: RangeSet::new(),
            by_number: BTreeMap::new(),
            last_number: 0,
        };
        Self {
            shared: Arc::new(Shared {
                source,
                watchers_max: options.watchers_max,
                watcher_bytes_max: options.watcher_bytes_max,
                budget: Arc::new(Budget::new(options.waiting_bytes_max)),
                reads: Arc::new(Semaphore::new(READS_MAX)),
                state: Mutex::new(state),
            }),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.shared
            .state
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Hands on what an applied batch published. To be called once for each, in order, after the
    /// batch is committed to the store and before any of its outcomes is told to a client. Never
    /// waits for a watcher or for the disk.
    pub fn publish(&self, publication: Publication) {
        let Publication {
            revisions,
            revision,
            compact_revision,
        } = publication;
        let mut state = self.state();
        for changes in revisions {
            if changes.revision != state.revision + 1 {
                state.lose_track(changes.revision - 1);
            }
            state.revision = changes.revision;
            state.dispatch(&changes);
            state.recent.push(changes);
        }
        if revision != state.revision {
            state.lose_track(revision);
        }
        state.compact_revision = compact_revision;
    }

    /// Starts over on a store installed from a snapshot: every watcher catches up from where it
    /// is, in the new store. To be called once the [`ViewSource`] gives views of that store.
    pub fn reset(&self, revision: i64, compact_revision: i64) {
        let mut state = self.state();
        state.lose_track(revision);
        state.compact_revision = compact_revision;
    }

    /// The last revision published: every event up to it is with, or available to, each watcher.
    #[must_use]
    pub fn revision(&self) -> i64 {
        self.state().revision
    }

    /// How many watchers there are.
    #[must_use]
    pub fn watchers(&self) -> usize {
        self.state().by_number.len()
    }

    /// How many of them have to be caught up with the present.
    #[must_use]
    pub fn watchers_behind(&self) -> usize {
        self.shared.budget.behind()
    }

    /// Begins to watch. The watcher ends when it is dropped. One that starts below the compact
    /// revision says so with its first item.
    ///
    /// # Errors
    ///
    /// [`Reason::WatchRangeEmpty`], [`Reason::TooManyWatchers`], and [`Reason::Compacted`] for a
    /// negative start revision.
    pub fn watch(&self, request: Request) -> Result<Watcher, Reason> {
        let Request {
            range,
            start_revision,
            prev_kv,
            puts,
            deletes,
            progress_every,
        } = request;
        if range.is_empty() {
            return Err(Reason::WatchRangeEmpty);
        }
        if start_revision < 0 {
            return Err(Reason::Compacted);
        }
        let mut state = self.state();
        if state.by_number.len() >= self.shared.watchers_max {
            return Err(Reason::TooManyWatchers);
        }
        let revision = state.revision;
        let start = match start_revision {
            0 => revision + 1,
            start => start,
        };
        let position = if start > revision {
            Position::Live(start)
        } else {
            Position::Behind(start)
        };
        let compacted = (start < state.compact_revision).then_some(state.compact_revision);
        state.last_number += 1;
        let number = state.last_number;
        let filter = Filter {
            range,
            puts,
            deletes,
        };
        let buffer = Arc::new(Buffer::new(
            filter,
            position,
            Arc::clone(&self.shared.budget),
            self.shared.watcher_bytes_max,
        ));
        if compacted.is_none() {
            state
                .by_range
                .insert(&buffer.filter.range, number, Arc::clone(&buffer));
        }
        state.by_number.insert(number, Arc::clone(&buffer));
        drop(state);
        Ok(Watcher::new(
            self.clone(),
            number,
            buffer,
            Start {
                prev_kv,
                progress_every,
                start_revision,
                created_at: revision,
                compacted,
            },
        ))
    }

    /// Forgets a watcher.
    pub(super) fn remove(&self, number: u64, buffer: &Buffer) {
        let mut state = self.state();
        state.by_range.remove(&buffer.filter.range, number);
        state.by_number.remove(&number);
    }

    /// How a watcher that next wants revision `next` gets on.
    pub(super) fn ahead(&self, next: i64, buffer: &Buffer) -> Ahead {
        let state = self.state();
        if next > state.revision {
            buffer.set(Position::Live(next));
            return Ahead::Live;
        }
        match state.recent.from(next, ANSWER_BYTES_MAX) {
            Some(revisions) => Ahead::Recent {
                revisions,
                compact_revision: state.compact_revision,
                revision: state.revision,
            },
            None => Ahead::Stored {
                last: state.revision,
            },
        }
    }

    /// The hub's revision, if the watcher is live, wants it and has taken everything.
    pub(super) fn synced(&self, buffer: &Buffer) -> Option<i64> {
        let state = self.state();
        match buffer.idle_at()? {
            Position::Live(from) if from <= state.revision + 1 => Some(state.revision),
            Position::Live(_) | Position::Behind(_) => None,
        }
    }

    pub(super) fn compact_revision(&self) -> i64 {
        self.state().compact_revision
    }

    pub(super) fn view(&self) -> Arc<dyn View> {
        (self.shared.source)()
    }

    pub(super) fn reads(&self) -> Arc<Semaphore> {
        Arc::clone(&self.shared.reads)
    }

    #[cfg(test)]
    pub(super) fn waiting_bytes(&self) -> usize {
        self.shared.budget.used()
    }
}

impl State {
    /// Goes to `revision` without knowing what happened in between: every live watcher has to
    /// catch up.
    fn lose_track(&mut self, revision: i64) {
        let next = self.revision + 1;
        for buffer in self.by_number.values() {
            buffer.fall_behind(next);
        }
        self.recent.clear();
        self.revision = revision;
    }

    /// Puts the events of one revision into the buffers of the watchers that want some.
    fn dispatch(&self, changes: &Arc<Changes>) {
        if let [event] = changes.events.as_slice() {
            self.by_range.each(&event.kv.key, &mut |_, buffer| {
                if buffer.filter.wants_kind(event) {
                    buffer.offer(Selected::all(changes));
                }
            });
            return;
        }
        let mut wanted: BTreeMap<u64, (Arc<Buffer>, Vec<usize>)> = BTreeMap::new();
        for (index, event) in changes.events.iter().enumerate() {
            self.by_range.each(&event.kv.key, &mut |number, buffer| {
                if buffer.filter.wants_kind(event) {
                    let (_, which) = wanted
                        .entry(number)
                        .or_insert_with(|| (Arc::clone(buffer), Vec::new()));
                    which.push(index);
                }
            });
        }
        for (buffer, which) in wanted.into_values() {
            if let Some(selected) = Selected::of(changes, which) {
                buffer.offer(selected);
            }
        }
    }
}

impl fmt::Debug for Hub {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.state();
        f.debug_struct("Hub")
            .field("revision", &state.revision)
            .field("watchers", &state.by_number.len())
            .finish_non_exhaustive()
    }
}
