//! The raft log on disk: votes, entries, truncations, the committed pointer and the purge point, in
//! one ordered stream of checksummed batches. Used by `raft` only; knows nothing of the raft library.
//!
//! # How it works
//!
//! Calls change the callers' view at once and enqueue; nothing else happens in the caller's thread.
//! One writer thread takes everything that waits as one *batch*, writes it with one write and makes
//! it durable with one `fdatasync` (group commit), then runs the callbacks in the order of the
//! calls. A batch is only begun when the one before it is durable.
//!
//! A failed write or sync **poisons** the log for good: nothing is acknowledged or accepted any
//! more, and no sync is tried again, since after a failed one the system may call pages clean that
//! never reached the disk.
//!
//! # What opening promises
//!
//! What was acknowledged is there, in order, followed at most by whole batches that were enqueued
//! next. Anything else is refused with an error that names file, offset and the way out. One kind of
//! damage cannot be told from a power cut here: damage **confined to the very last synced batch**
//! looks like a batch that was never finished, and is cut (as is the end of the log when its last
//! file is replaced by an older copy of itself). It shows when the applied state is ahead of the log.
//!
//! The byte layout is in docs/formats.md.

mod cache;
mod error;
mod format;
mod ledger;
mod marks;
mod read;
mod recovery;
mod segment;
mod shared;
mod types;
mod writer;

#[cfg(test)]
mod tests;

use std::{
    io,
    ops::Range,
    path::Path,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread,
};

use tokio::sync::watch;
use tracing::warn;

pub use error::WalError;
pub use types::{
    Entry, EntryId, EntryKind, Identity, LogState, Position, Vote, WalOptions, WriterMode,
};

use self::{
    format::{BLOCK, Record},
    ledger::Ledger,
    read::{Piece, read_entries},
    recovery::recover,
    shared::{Change, Shared, State},
    writer::Writer,
};
use super::fs::Fs;

/// Called once, on the writer thread and in the order of the calls, when what it belongs to is
/// durable, or with the error after which it never will be. It must be quick, must not block and
/// must not close the log. It is dropped uncalled only if the writer thread panics.
pub type FlushCallback = Box<dyn FnOnce(io::Result<()>) + Send>;

/// The largest `queue_bytes_max`: sizes within a batch are 32 bits wide.
const QUEUE_BYTES_MAX: usize = 1 << 30;

/// A handle of an open log. Clones are the same log; [`close`](Wal::close), or dropping the last
/// clone, writes what waits, stops the writer and releases the directory.
///
/// Methods are quick and do not touch the disk, except [`open`](Wal::open), [`close`](Wal::close),
/// and [`read`](Wal::read) of entries that are not cached. With [`WriterMode::Caller`] the methods
/// that change the log write and sync before they return.
#[derive(Clone, Debug)]
pub struct Wal {
    handle: Arc<Handle>,
}

#[derive(Debug)]
struct Handle {
    shared: Arc<Shared>,
    writer: WriterPlace,
}

/// The writer; `None` once the log is closed.
#[derive(Debug)]
enum WriterPlace {
    Thread(Mutex<Option<thread::JoinHandle<()>>>),
    Caller(Mutex<Option<Box<Writer>>>),
}

impl Wal {
    /// Whether there is a log in `dir`, whole or not. Blocking.
    ///
    /// # Errors
    ///
    /// The folder cannot be read.
    pub fn exists(fs: &dyn Fs, dir: &Path) -> Result<bool, WalError> {
        recovery::exists(fs, dir)
    }

    /// Opens the log in `dir`, or creates it where there is none. Blocking: reads all segments.
    ///
    /// # Errors
    ///
    /// See [`WalError`]: `Hole`, `Corrupt`, `MissingSegment` (the member must be replaced),
    /// `WrongIdentity`, `NewerFormat`, `Locked`, `Io`, and `Invalid` for options out of range.
    pub fn open(fs: Arc<dyn Fs>, dir: &Path, options: WalOptions) -> Result<Self, WalError> {
        if options.segment_bytes < 4 * BLOCK || options.queue_bytes_max > QUEUE_BYTES_MAX {
            return Err(WalError::Invalid(format!(
                "segment_bytes must be at least {}, queue_bytes_max at most {QUEUE_BYTES_MAX}",
                4 * BLOCK
            )));
        }
        let mut recovered = recover(&*fs, dir, &options)?;
        let dead = std::mem::take(&mut recovered.dead);
        let queue_bytes_max = options.queue_bytes_max;
        let mode = options.writer;
        let (shared, tail, lock) = Shared::new(recovered, queue_bytes_max);
        let shared = Arc::new(shared);
        let writer = Writer::new(fs, dir, options, Arc::clone(&shared), tail, lock)?;
        writer.remove(dead);
        let writer = match mode {
            WriterMode::Caller => WriterPlace::Caller(Mutex::new(Some(Box::new(writer)))),
            WriterMode::Thread => {
                let thread = thread::Builder::new()
                    .name("quorate-wal".into())
                    .spawn(move || writer.run())
                    .map_err(|error| WalError::io("start a thread for", dir, error))?;
                WriterPlace::Thread(Mutex::new(Some(thread)))
            }
        };
        Ok(Self {
            handle: Arc::new(Handle { shared, writer }),
        })
    }

    /// Appends `entries`; they are readable when this returns. They must follow the last entry
    /// without a gap and with terms that do not fall; the first entry of an empty log may have any
    /// index. `on_flushed` runs when they are durable.
    ///
    /// # Errors
    ///
    /// `Invalid`, `Full`, `Poisoned`, `Closed`: nothing was changed and `on_flushed` is not called.
    pub fn append(
        &self,
        entries: Vec<Entry>,
        on_flushed: FlushCallback,
    ) -> Result<Position, WalError> {
        self.change(Change::Append(entries), Some(on_flushed))
    }

    /// Replaces the vote.
    ///
    /// # Errors
    ///
    /// As [`append`](Wal::append).
    pub fn save_vote(&self, vote: Vote, on_flushed: FlushCallback) -> Result<Position, WalError> {
        self.change(Change::Record(Record::Vote(vote)), Some(on_flushed))
    }

    /// Drops every entry with an index greater than `last`'s; `None` drops all. A `last` beyond the
    /// end changes nothing.
    ///
    /// # Errors
    ///
    /// As [`append`](Wal::append); `Invalid` when the log has another entry at that index, or
    /// purged beyond it.
    pub fn truncate_after(
        &self,
        last: Option<EntryId>,
        on_flushed: FlushCallback,
    ) -> Result<Position, WalError> {
        self.change(Change::Record(Record::Truncate(last)), Some(on_flushed))
    }

    /// Notes how far the log is committed. Lazy: it is written with the next batch, or at close,
    /// and has no position of its own; a power cut may bring back an older one. Answers the
    /// position of the change before it.
    ///
    /// # Errors
    ///
    /// As [`append`](Wal::append).
    pub fn save_committed(&self, committed: Option<EntryId>) -> Result<Position, WalError> {
        self.change(Change::Record(Record::Committed(committed)), None)
    }

    /// Forgets the entries up to and with `upto`. Once that is durable, segments without live
    /// entries are removed, oldest first, in the background. An `upto` beyond the end empties the
    /// log and moves its end there; one before the purge point changes nothing.
    ///
    /// # Errors
    ///
    /// As [`append`](Wal::append); `Invalid` when the log has another entry at that index.
    pub fn purge(&self, upto: EntryId) -> Result<Position, WalError> {
        self.change(Change::Record(Record::Purge(upto)), None)
    }

    /// Discards the whole log, whatever it contains: the purge point, the last entry and the
    /// committed pointer become `upto`, the vote stays. For after a snapshot was installed.
    ///
    /// # Errors
    ///
    /// As [`append`](Wal::append).
    pub fn reset_to(&self, upto: EntryId, on_flushed: FlushCallback) -> Result<Position, WalError> {
        self.change(Change::Record(Record::Reset(upto)), Some(on_flushed))
    }

    /// The position of the last change that was accepted: when it is flushed, all of them are
    /// (but for a trailing [`save_committed`](Wal::save_committed)).
    #[must_use]
    pub fn position(&self) -> Position {
        self.state().position
    }

    /// How far the log is durable. Positions are those of this open log; they begin anew at each
    /// open, where what was recovered is durable.
    #[must_use]
    pub fn flushed(&self) -> watch::Receiver<Position> {
        self.handle.shared.flushed.subscribe()
    }

    /// Waits until everything up to `position` is durable.
    ///
    /// # Errors
    ///
    /// `Poisoned`; `Invalid` for a position that was never given out.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe: it only waits.
    pub async fn wait_flushed(&self, position: Position) -> Result<(), WalError> {
        if position > self.position() {
            return Err(WalError::Invalid(format!("{position:?} is in the future")));
        }
        let (mut flushed, mut failure) = (self.flushed(), self.failure());
        tokio::select! {
            biased;
            // The senders live as long as `self`, so neither wait ends for want of one.
            _ = flushed.wait_for(|flushed| *flushed >= position) => Ok(()),
            cause = failure.wait_for(Option::is_some) => {
                let cause = cause.ok().and_then(|cause| cause.clone());
                Err(cause.map_or(WalError::Closed, WalError::Poisoned))
            }
        }
    }

    /// Why the log stopped for good: `None` while it works, then the cause, for ever.
    #[must_use]
    pub fn failure(&self) -> watch::Receiver<Option<Arc<WalError>>> {
        self.handle.shared.failure.subscribe()
    }

    /// The two ends of the log.
    #[must_use]
    pub fn log_state(&self) -> LogState {
        let points = self.state().ledger.points();
        LogState {
            purged: points.purged,
            last: points.last,
        }
    }

    /// The last vote that was saved.
    #[must_use]
    pub fn vote(&self) -> Option<Vote> {
        self.state().ledger.points().vote
    }

    /// The last committed pointer that was saved.
    #[must_use]
    pub fn committed(&self) -> Option<EntryId> {
        self.state().ledger.points().committed
    }

    /// The id of the entry at `index`, or of the purge point when `index` is its index. From
    /// memory, which grows with the number of terms in the log.
    #[must_use]
    pub fn entry_id(&self, index: u64) -> Option<EntryId> {
        self.state().ledger.entry_id(index)
    }

    /// Whether [`read`](Wal::read) of `range` does not touch the disk. A later purge or append may
    /// change that; the read is then only slower.
    #[must_use]
    pub fn is_cached(&self, range: Range<u64>) -> bool {
        let state = self.state();
        match existing(&state.ledger, range) {
            Some(range) => state
                .cache
                .first()
                .is_some_and(|first| first <= range.start),
            None => true,
        }
    }

    /// The entries of `range` that exist, without gaps: what is purged is left out at its
    /// beginning, what was not appended at its end. At most `bytes_max` of payload, but at least
    /// one entry if one exists; `usize::MAX` for no bound. Blocking when not
    /// [cached](Wal::is_cached).
    ///
    /// # Errors
    ///
    /// `Io`; `Corrupt` when the disk no longer has what was written.
    pub fn read(&self, range: Range<u64>, bytes_max: usize) -> Result<Vec<Entry>, WalError> {
        let state = self.state();
        let Some(range) = existing(&state.ledger, range) else {
            return Ok(Vec::new());
        };
        let cached_from = state.cache.first().unwrap_or(range.end).min(range.end);
        let cached_from = cached_from.max(range.start);
        let cached = state.cache.read(cached_from..range.end, bytes_max);
        if cached_from == range.start {
            return Ok(cached);
        }
        // What is not cached was flushed, so the marks know it, however far they lag behind.
        let pieces = pieces(&state, &(range.start..cached_from))?;
        let ledger = state.ledger.clone();
        drop(state);
        let (mut entries, complete) =
            read_entries(&pieces, bytes_max, |index| ledger.entry_id(index))?;
        if complete {
            let mut bytes: usize = entries.iter().map(|entry| entry.payload.len()).sum();
            entries.extend(cached.into_iter().take_while(|entry| {
                bytes = bytes.saturating_add(entry.payload.len());
                bytes <= bytes_max
            }));
        }
        Ok(entries)
    }

    /// Bytes that the segments take on disk, without the one that is being prepared.
    #[must_use]
    pub fn disk_bytes(&self) -> u64 {
        let state = self.state();
        state.segments.values().map(|segment| segment.bytes()).sum()
    }

    /// Writes what waits, stops the writer and releases the directory, for all clones: later
    /// changes are refused with `Closed`; reading goes on to work. Blocking. Closing again does
    /// nothing.
    ///
    /// # Errors
    ///
    /// `Poisoned` when the log had failed: what was not acknowledged may be lost.
    pub fn close(&self) -> Result<(), WalError> {
        self.handle.stop();
        match &self.state().poisoned {
            Some(cause) => Err(WalError::Poisoned(Arc::clone(cause))),
            None => Ok(()),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.handle.shared.lock()
    }

    fn change(
        &self,
        change: Change,
        callback: Option<FlushCallback>,
    ) -> Result<Position, WalError> {
        let position = self.handle.shared.enqueue(change, callback)?;
        if let WriterPlace::Caller(writer) = &self.handle.writer
            && let Some(writer) = &mut *lock(writer)
        {
            writer.drain();
        }
        Ok(position)
    }
}

/// The part of `range` that the log has, unless it is empty.
fn existing(ledger: &Ledger, range: Range<u64>) -> Option<Range<u64>> {
    let last = ledger.points().last?;
    let start = range.start.max(ledger.first()?);
    let end = range.end.min(last.index + 1);
    (start < end).then_some(start..end)
}

/// Where the entries of `range` are on disk.
fn pieces(state: &State, range: &Range<u64>) -> Result<Vec<Piece>, WalError> {
    let mut pieces = Vec::new();
    let mut next = range.start;
    for (mark, indexes) in state.marks.pieces(range.clone()) {
        if let Some(segment) = state.segments.get(&mark.segment)
            && indexes.start == next
        {
            next = indexes.end;
            pieces.push(Piece {
                segment: Arc::clone(segment),
                mark,
                indexes,
            });
        }
    }
    if next == range.end {
        Ok(pieces)
    } else {
        Err(WalError::Invalid(format!(
            "the entries from {next} to {} are neither in memory nor on disk",
            range.end
        )))
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Handle {
    fn stop(&self) {
        self.shared.close();
        match &self.writer {
            WriterPlace::Caller(writer) => {
                if let Some(mut writer) = lock(writer).take() {
                    writer.drain();
                }
            }
            WriterPlace::Thread(thread) => {
                let mut place = lock(thread);
                // In a callback that held the last clone, the thread ends by itself.
                let joined = place
                    .take()
                    .filter(|thread| thread.thread().id() != thread::current().id())
                    .map(thread::JoinHandle::join);
                if let Some(Err(_)) = joined {
                    warn!("the log's writer thread panicked");
                }
            }
        }
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.stop();
    }
}
