//! What callers and the writer share: the queue, the callers' view of the log, the two signals
//! (how far the log is durable, why it stopped).

use std::{
    collections::{BTreeMap, VecDeque},
    path::PathBuf,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
};

use tokio::sync::watch;

use super::{
    FlushCallback,
    cache::Cache,
    error::WalError,
    format::{BATCH_HEADER_BYTES, RECORD_HEADER_BYTES, Record},
    ledger::Ledger,
    marks::{Mark, Marks},
    recovery::{Recovered, Tail, take_dead},
    segment::Segment,
    types::{Entry, Position},
};
use crate::storage::fs::DirLock;

/// One call: what it changes.
#[derive(Debug)]
pub(super) enum Change {
    Append(Vec<Entry>),
    Record(Record),
}

impl Change {
    /// Bytes of its records on disk.
    pub(super) fn encoded_bytes(&self) -> usize {
        match self {
            Self::Append(entries) => entries.iter().map(entry_bytes).sum(),
            Self::Record(_) => RECORD_HEADER_BYTES,
        }
    }

    /// The committed pointer alone is not worth a sync; it rides with the next batch.
    fn is_lazy(&self) -> bool {
        matches!(self, Self::Record(Record::Committed(_)))
    }
}

fn entry_bytes(entry: &Entry) -> usize {
    RECORD_HEADER_BYTES + entry.payload.len()
}

/// A call that waits for the disk.
pub(super) struct Queued {
    pub(super) change: Change,
    pub(super) position: Position,
    pub(super) callback: Option<FlushCallback>,
    bytes: usize,
}

impl std::fmt::Debug for Queued {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Queued")
            .field("change", &self.change)
            .field("position", &self.position)
            .finish_non_exhaustive()
    }
}

/// The log as the callers see it: every change that was accepted, durable or not.
#[derive(Debug)]
pub(super) struct State {
    pub(super) ledger: Ledger,
    pub(super) cache: Cache,
    /// What is on disk, in the order of the writer: it lags behind `ledger`.
    pub(super) marks: Marks,
    pub(super) segments: BTreeMap<u64, Arc<Segment>>,
    pub(super) position: Position,
    pub(super) poisoned: Option<Arc<WalError>>,
    pub(super) closing: bool,
    queue: VecDeque<Queued>,
    /// Bytes in the queue and in flight.
    queued_bytes: usize,
}

#[derive(Debug)]
pub(super) struct Shared {
    state: Mutex<State>,
    wake: Condvar,
    pub(super) flushed: watch::Sender<Position>,
    pub(super) failure: watch::Sender<Option<Arc<WalError>>>,
    queue_bytes_max: usize,
}

/// Where a batch was written.
#[derive(Clone, Copy, Debug)]
pub(super) struct Placed {
    pub(super) segment: u64,
    /// Of the batch header.
    pub(super) offset: u64,
    /// Where its records end.
    pub(super) end: u64,
}

impl Shared {
    /// The shared part of a log that was opened, and the writer's part.
    pub(super) fn new(
        recovered: Recovered,
        queue_bytes_max: usize,
    ) -> (Self, Tail, Box<dyn DirLock>) {
        let shared = Self {
            state: Mutex::new(State {
                ledger: recovered.tail.ledger.clone(),
                cache: recovered.cache,
                marks: recovered.marks,
                segments: recovered.segments,
                position: Position::default(),
                poisoned: None,
                closing: false,
                queue: VecDeque::new(),
                queued_bytes: 0,
            }),
            wake: Condvar::new(),
            flushed: watch::Sender::new(Position::default()),
            failure: watch::Sender::new(None),
            queue_bytes_max,
        };
        (shared, recovered.tail, recovered.lock)
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing in a critical section leaves the state half changed when it panics.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Accepts a change: from here on the callers see it.
    pub(super) fn enqueue(
        &self,
        change: Change,
        callback: Option<FlushCallback>,
    ) -> Result<Position, WalError> {
        let mut guard = self.lock();
        let state = &mut *guard;
        if let Some(cause) = &state.poisoned {
            return Err(WalError::Poisoned(Arc::clone(cause)));
        }
        if state.closing {
            return Err(WalError::Closed);
        }
        let bytes = change.encoded_bytes();
        let lazy = change.is_lazy();
        if state.queued_bytes.saturating_add(bytes) > self.queue_bytes_max && !lazy {
            return Err(WalError::Full {
                queued_bytes: state.queued_bytes,
                bytes_max: self.queue_bytes_max,
            });
        }
        let position = Position(state.position.0 + u64::from(!lazy));
        state.admit(&change, position)?;
        state.position = position;
        if lazy && state.queue.back().is_some_and(|last| last.change.is_lazy()) {
            state.queued_bytes -= bytes;
            state.queue.pop_back();
        }
        state.queued_bytes += bytes;
        state.queue.push_back(Queued {
            change,
            position,
            callback,
            bytes,
        });
        drop(guard);
        if !lazy {
            self.wake.notify_one();
        }
        Ok(position)
    }

    /// The next batch: waits, when `wait`, until there is something worth a sync. `None`: the log
    /// is closed or poisoned and the queue empty, or there is nothing and `wait` is off.
    pub(super) fn take(&self, batch_bytes_max: usize, wait: bool) -> Option<Vec<Queued>> {
        let mut state = self.lock();
        loop {
            let urgent = state.queue.iter().any(|queued| !queued.change.is_lazy());
            if urgent || (state.closing && !state.queue.is_empty()) {
                break;
            }
            if !wait || state.closing || state.poisoned.is_some() {
                return None;
            }
            state = self
                .wake
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
        }
        let mut bytes = BATCH_HEADER_BYTES;
        let mut batch = Vec::new();
        while let Some(next) = state.queue.front() {
            bytes = bytes.saturating_add(next.bytes);
            if bytes > batch_bytes_max && !batch.is_empty() {
                break;
            }
            batch.extend(state.queue.pop_front());
        }
        Some(batch)
    }

    /// The batch is durable. Returns the files that nothing needs any more; then the callbacks are
    /// due.
    pub(super) fn complete(&self, batch: &[Queued], placed: Option<Placed>) -> Vec<PathBuf> {
        let mut guard = self.lock();
        let state = &mut *guard;
        let mut shrunk = false;
        if let Some(placed) = placed {
            let mut offset = placed.offset + BATCH_HEADER_BYTES as u64;
            for queued in batch {
                shrunk |= state.note(&queued.change, placed, &mut offset);
            }
        }
        state.queued_bytes -= batch.iter().map(|queued| queued.bytes).sum::<usize>();
        if let Some(last) = batch.last() {
            state.cache.evict(last.position);
            self.flushed.send_replace(last.position);
        }
        match placed {
            Some(placed) if shrunk => take_dead(&mut state.segments, &state.marks, placed.segment),
            _ => Vec::new(),
        }
    }

    /// Nothing is accepted any more. Returns what waited.
    pub(super) fn poison(&self, cause: &Arc<WalError>) -> Vec<Queued> {
        let mut state = self.lock();
        state.poisoned = Some(Arc::clone(cause));
        let waiting = std::mem::take(&mut state.queue);
        drop(state);
        self.failure.send_replace(Some(Arc::clone(cause)));
        self.wake.notify_all();
        waiting.into()
    }

    /// Nothing is accepted any more; what waits is still written.
    pub(super) fn close(&self) {
        self.lock().closing = true;
        self.wake.notify_all();
    }

    /// A new segment is in use.
    pub(super) fn add_segment(&self, segment: &Arc<Segment>) {
        let mut state = self.lock();
        state.segments.insert(segment.number, Arc::clone(segment));
    }
}

impl State {
    /// Checks a change and makes it visible to the callers, or leaves all as it was.
    fn admit(&mut self, change: &Change, position: Position) -> Result<(), WalError> {
        match change {
            Change::Append(entries) => {
                let mut last = self.ledger.points().last;
                for entry in entries {
                    Ledger::check_follows(last, entry.id).map_err(WalError::Invalid)?;
                    last = Some(entry.id);
                }
                for entry in entries {
                    self.ledger.append(entry.id).map_err(WalError::Invalid)?;
                    self.cache.push(position, entry.clone());
                }
            }
            Change::Record(record) => {
                self.ledger.apply(record).map_err(WalError::Invalid)?;
                self.cache.change(record);
            }
        }
        Ok(())
    }

    /// Notes where a change was written; `true` when segments may have died of it.
    fn note(&mut self, change: &Change, placed: Placed, offset: &mut u64) -> bool {
        match change {
            Change::Append(entries) => {
                for entry in entries {
                    self.marks.note(Mark {
                        first_index: entry.id.index,
                        segment: placed.segment,
                        offset: *offset,
                        batch_end: placed.end,
                    });
                    *offset += entry_bytes(entry) as u64;
                }
                false
            }
            Change::Record(record) => {
                self.marks.change(record);
                *offset += RECORD_HEADER_BYTES as u64;
                matches!(
                    record,
                    Record::Purge(_) | Record::Reset(_) | Record::Truncate(_)
                )
            }
        }
    }
}
