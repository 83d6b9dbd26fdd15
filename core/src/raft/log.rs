//! openraft's log store over the [`Wal`]. Used by `consensus`, which hands it to openraft, and by the
//! state machine, which must not apply what this log has not synced.

use std::collections::VecDeque;
use std::fmt::Debug;
use std::future::Future;
use std::io;
use std::ops::{Bound, Range, RangeBounds};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures::{Stream, StreamExt, TryStreamExt, stream};
use openraft::OptionalSend;
use openraft::storage::{IOFlushed, LogState, RaftLogReader, RaftLogStorage};

use crate::failpoint;
use crate::raft::codec;
use crate::raft::types::{Entry, LogId, TypeConfig, Vote};
use crate::storage::wal::{self, Position, Wal, WalError};

/// Bytes of entries read from the log at once, at least one entry: what one append message to a
/// follower carries at most, and what waits in memory between the log and the state machine.
const READ_BYTES_MAX: usize = 1 << 20;

/// Bytes appended and not synced at most. Beyond, appending waits for the disk, and with it
/// everything openraft does. Half of the WAL's own bound, where it would refuse.
const UNSYNCED_BYTES_MAX: usize = 128 << 20;

/// What an entry costs in memory beside its payload, in bytes.
const ENTRY_OVERHEAD_BYTES: usize = 64;

/// The log as openraft sees it. Cheap to clone; all clones are the same log.
#[derive(Debug, Clone)]
pub(crate) struct Log {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    wal: Wal,
    unsynced: Mutex<Unsynced<Position>>,
}

/// Appends that may not be on disk yet, oldest first, their last indexes ascending. `P` is the
/// place of an append in the order of writes.
#[derive(Debug)]
struct Unsynced<P> {
    appends: VecDeque<Append<P>>,
    bytes: usize,
}

#[derive(Debug, Clone, Copy)]
struct Append<P> {
    last_index: u64,
    position: P,
    bytes: usize,
}

impl<P: Copy + Ord> Unsynced<P> {
    const fn new() -> Self {
        Self {
            appends: VecDeque::new(),
            bytes: 0,
        }
    }

    fn push(&mut self, append: Append<P>) {
        self.bytes += append.bytes;
        self.appends.push_back(append);
    }

    /// Forgets what is on disk.
    fn drop_synced(&mut self, flushed: P) {
        while let Some(first) = self.appends.front()
            && first.position <= flushed
        {
            self.bytes -= first.bytes;
            self.appends.pop_front();
        }
    }

    /// Forgets entries that the log no longer has. An append that is cut in the middle stays, with
    /// its position, under the last index it has left.
    fn truncate(&mut self, last_index: Option<u64>) {
        while let Some(append) = self.appends.back().copied() {
            let before = self.appends.iter().rev().nth(1).map(|a| a.last_index);
            match last_index {
                Some(last) if append.last_index <= last => return,
                Some(last) if before.is_none_or(|before| before < last) => {
                    if let Some(append) = self.appends.back_mut() {
                        append.last_index = last;
                    }
                    return;
                }
                _ => {
                    self.bytes -= append.bytes;
                    self.appends.pop_back();
                }
            }
        }
    }

    /// The position to wait for before the entry at `index` is on disk; none if it is already.
    fn position_of(&self, index: u64) -> Option<P> {
        let at = self.appends.partition_point(|a| a.last_index < index);
        self.appends.get(at).map(|append| append.position)
    }
}

impl Log {
    /// The log in `wal`.
    #[must_use]
    pub(crate) fn new(wal: Wal) -> Self {
        let unsynced = Mutex::new(Unsynced::new());
        Self {
            shared: Arc::new(Shared { wal, unsynced }),
        }
    }

    /// Waits until the entry that the log has at `index`, and all before it, are on disk.
    ///
    /// It waits for a position in the order of writes, never for an index: an index can be written
    /// again by another leader.
    ///
    /// # Errors
    ///
    /// The WAL failed: the entry may never be on disk.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe.
    pub(crate) async fn wait_synced(&self, index: u64) -> io::Result<()> {
        let position = self.unsynced().position_of(index);
        match position {
            Some(position) => Ok(self.wal().wait_flushed(position).await?),
            None => Ok(()),
        }
    }

    /// The last purged entry and the last entry.
    #[must_use]
    pub(crate) fn ends(&self) -> wal::LogState {
        self.wal().log_state()
    }

    fn wal(&self) -> &Wal {
        &self.shared.wal
    }

    fn unsynced(&self) -> MutexGuard<'_, Unsynced<Position>> {
        let unsynced = self.shared.unsynced.lock();
        unsynced.unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits while too much waits for the disk. What is larger than the bound goes alone.
    async fn wait_for_room(&self, bytes: usize) -> io::Result<()> {
        loop {
            let oldest = {
                let mut unsynced = self.unsynced();
                let flushed = *self.wal().flushed().borrow();
                unsynced.drop_synced(flushed);
                match unsynced.appends.front() {
                    Some(oldest) if unsynced.bytes + bytes > UNSYNCED_BYTES_MAX => oldest.position,
                    _ => return Ok(()),
                }
            };
            self.wal().wait_flushed(oldest).await?;
        }
    }

    /// The part of `range` that the log has.
    fn clamp(&self, range: &impl RangeBounds<u64>) -> Range<u64> {
        let ends = self.ends();
        let first = ends.purged.map_or(0, |id| id.index + 1);
        let end = ends.last.map_or(0, |id| id.index + 1);
        let wanted_start = match range.start_bound() {
            Bound::Included(start) => *start,
            Bound::Excluded(start) => start.saturating_add(1),
            Bound::Unbounded => 0,
        };
        let wanted_end = match range.end_bound() {
            Bound::Included(last) => last.saturating_add(1),
            Bound::Excluded(end) => *end,
            Bound::Unbounded => u64::MAX,
        };
        let start = wanted_start.max(first);
        start..wanted_end.min(end).max(start)
    }

    /// Whether the log has an entry at `index`.
    fn has(&self, index: u64) -> bool {
        let purged = self.ends().purged;
        purged.is_none_or(|purged| purged.index < index) && self.wal().entry_id(index).is_some()
    }

    /// At least the first entry of `range`, which the log has, and more up to `bytes_max`. What is
    /// not in memory is read on a thread for blocking work.
    async fn read(&self, range: Range<u64>, bytes_max: usize) -> io::Result<Vec<Entry>> {
        if range.is_empty() {
            return Ok(Vec::new());
        }
        let first = range.start;
        let read = if self.wal().is_cached(range.clone()) {
            self.wal().read(range, bytes_max)?
        } else {
            let wal = self.wal().clone();
            tokio::task::spawn_blocking(move || wal.read(range, bytes_max))
                .await
                .map_err(io::Error::other)??
        };
        let found = read.first().map(|entry| entry.id.index);
        if found != Some(first) && self.has(first) {
            return Err(hole(first, found));
        }
        let entries = read.into_iter().map(codec::entry);
        Ok(entries.collect::<Result<_, _>>()?)
    }

    /// All entries of `range`, in pieces of bounded size.
    fn pieces(self, range: Range<u64>) -> impl Stream<Item = io::Result<Vec<Entry>>> + Send {
        stream::try_unfold((self, range), |(log, range)| async move {
            if range.is_empty() {
                return Ok(None);
            }
            let entries = log.read(range.clone(), READ_BYTES_MAX).await?;
            let next = entries
                .last()
                .map_or(range.end, |last| last.log_id.index + 1);
            Ok(Some((entries, (log, next..range.end))))
        })
    }
}

fn hole(wanted: u64, found: Option<u64>) -> io::Error {
    io::Error::new(
        io::ErrorKind::InvalidData,
        format!("the log gave {found:?} where it has the entry {wanted}"),
    )
}

impl RaftLogReader<TypeConfig> for Log {
    async fn try_get_log_entries<RB>(&mut self, range: RB) -> io::Result<Vec<Entry>>
    where
        RB: RangeBounds<u64> + Clone + Debug + OptionalSend,
    {
        let range = self.clamp(&range);
        self.clone().pieces(range).try_concat().await
    }

    async fn read_vote(&mut self) -> io::Result<Option<Vote>> {
        Ok(self.wal().vote().map(codec::vote))
    }

    async fn limited_get_log_entries(&mut self, start: u64, end: u64) -> io::Result<Vec<Entry>> {
        let range = self.clamp(&(start..end));
        self.read(range, READ_BYTES_MAX).await
    }

    async fn entries_stream<RB>(
        &mut self,
        range: RB,
    ) -> impl Stream<Item = io::Result<Entry>> + OptionalSend
    where
        RB: RangeBounds<u64> + Clone + Debug + OptionalSend,
    {
        let range = self.clamp(&range);
        let pieces = self.clone().pieces(range);
        pieces
            .map_ok(|entries| stream::iter(entries.into_iter().map(Ok)))
            .try_flatten()
            .boxed()
    }
}

impl RaftLogStorage<TypeConfig> for Log {
    type LogReader = Self;

    async fn get_log_state(&mut self) -> io::Result<LogState<TypeConfig>> {
        let ends = self.ends();
        Ok(LogState {
            last_purged_log_id: ends.purged.map(codec::log_id),
            last_log_id: ends.last.map(codec::log_id),
        })
    }

    async fn get_log_reader(&mut self) -> Self {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &Vote) -> io::Result<()> {
        let vote = codec::wal_vote(vote);
        let position = self.wal().save_vote(vote, Box::new(drop))?;
        Ok(self.wal().wait_flushed(position).await?)
    }

    async fn save_committed(&mut self, committed: Option<LogId>) -> io::Result<()> {
        let committed = committed.as_ref().map(codec::entry_id);
        self.wal().save_committed(committed)?;
        Ok(())
    }

    async fn read_committed(&mut self) -> io::Result<Option<LogId>> {
        Ok(self.wal().committed().map(codec::log_id))
    }

    fn append<I>(
        &mut self,
        entries: I,
        callback: IOFlushed<TypeConfig>,
    ) -> impl Future<Output = io::Result<()>> + Send
    where
        I: IntoIterator<Item = Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let entries: Vec<wal::Entry> = entries.into_iter().map(codec::wal_entry).collect();
        let log = self.clone();
        async move { log.append_all(entries, callback).await }
    }

    /// Never drops what is committed, whoever asks: a leader that wants it was elected by a member
    /// that forgot what it had acknowledged. The error ends this member.
    async fn truncate_after(&mut self, last: Option<LogId>) -> io::Result<()> {
        let mut unsynced = self.unsynced();
        let last = last.as_ref().map(codec::entry_id);
        let committed = self.wal().committed();
        if let Some(committed) = committed
            && last.is_none_or(|last| last.index < committed.index)
        {
            let kept = last.map_or("nothing".to_owned(), |last| format!("only up to {last}"));
            return Err(io::Error::other(format!(
                "the leader wants {kept} of the log, but {committed} is committed: a member has lost \
                 acknowledged entries and voted. Compare the members before any of them is changed"
            )));
        }
        self.wal().truncate_after(last, Box::new(drop))?;
        unsynced.truncate(last.map(|id| id.index));
        Ok(())
    }

    async fn purge(&mut self, upto: LogId) -> io::Result<()> {
        let upto = codec::entry_id(&upto);
        failpoint::reach("purge: begun");
        self.wal().purge(upto)?;
        failpoint::reach("purge: queued");
        Ok(())
    }
}

impl Log {
    async fn append_all(
        &self,
        entries: Vec<wal::Entry>,
        callback: IOFlushed<TypeConfig>,
    ) -> io::Result<()> {
        let Some(last_index) = entries.last().map(|entry| entry.id.index) else {
            self.wal().wait_flushed(self.wal().position()).await?;
            callback.io_completed(Ok(()));
            return Ok(());
        };
        let bytes = entries.iter().map(|entry| entry.payload.len());
        let bytes = bytes.map(|bytes| bytes + ENTRY_OVERHEAD_BYTES).sum();
        self.wait_for_room(bytes).await?;
        let on_flushed = Box::new(move |flushed| callback.io_completed(flushed));
        let position = self.wal().append(entries, on_flushed)?;
        self.unsynced().push(Append {
            last_index,
            position,
            bytes,
        });
        Ok(())
    }
}

/// Discards the whole log for a state that was installed at `upto`, keeping the vote, and waits for
/// the disk.
///
/// # Errors
///
/// The WAL's.
pub(crate) async fn reset(wal: &Wal, upto: wal::EntryId) -> Result<(), WalError> {
    let position = wal.reset_to(upto, Box::new(drop))?;
    wal.wait_flushed(position).await
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::sync::Arc;

    use super::*;
    use crate::storage::fs::MemFs;
    use crate::storage::wal::{EntryId, Identity, WalOptions};

    #[tokio::test]
    async fn what_is_committed_is_never_truncated() {
        let identity = Identity {
            cluster_id: 1,
            member_id: 1,
        };
        let options = WalOptions::new(identity, 1);
        let wal = Wal::open(Arc::new(MemFs::new()), Path::new("/wal"), options).unwrap();
        let entries = (0..5).map(|index| wal::Entry {
            id: EntryId::new(1, index),
            kind: wal::EntryKind::Blank,
            payload: bytes::Bytes::new(),
        });
        wal.append(entries.collect(), Box::new(drop)).unwrap();
        let mut log = Log::new(wal.clone());
        let id = |index| Some(codec::log_id(EntryId::new(1, index)));
        log.truncate_after(id(3)).await.unwrap();
        log.save_committed(id(2)).await.unwrap();
        log.truncate_after(id(2)).await.unwrap();
        for last in [id(1), None] {
            let refused = log.truncate_after(last).await.unwrap_err();
            assert!(refused.to_string().contains("is committed"), "{refused}");
        }
        assert_eq!(wal.log_state().last, Some(EntryId::new(1, 2)));
    }

    fn append(last_index: u64, position: u64) -> Append<u64> {
        Append {
            last_index,
            position,
            bytes: 10,
        }
    }

    fn unsynced(appends: &[(u64, u64)]) -> Unsynced<u64> {
        let mut unsynced = Unsynced::new();
        for (last_index, position) in appends {
            unsynced.push(append(*last_index, *position));
        }
        unsynced
    }

    #[test]
    fn an_entry_waits_for_its_own_append_only() {
        let mut appends = unsynced(&[(4, 1), (9, 3), (10, 4)]);
        assert_eq!(appends.position_of(0), Some(1));
        assert_eq!(appends.position_of(4), Some(1));
        assert_eq!(appends.position_of(5), Some(3));
        assert_eq!(appends.position_of(10), Some(4));
        assert_eq!(appends.position_of(11), None);
        appends.drop_synced(3);
        assert_eq!(appends.position_of(9), Some(4));
        appends.drop_synced(4);
        assert_eq!(appends.position_of(9), None);
        assert_eq!(appends.bytes, 0);
    }

    #[test]
    fn an_index_written_again_waits_for_its_last_writing() {
        let mut appends = unsynced(&[(4, 1), (9, 3), (12, 4)]);
        appends.truncate(Some(6));
        assert_eq!(appends.position_of(6), Some(3));
        assert_eq!(appends.position_of(7), None);
        appends.push(append(8, 7));
        assert_eq!(appends.position_of(6), Some(3));
        assert_eq!(appends.position_of(7), Some(7));
        appends.truncate(Some(4));
        assert_eq!(appends.position_of(4), Some(1));
        assert_eq!(appends.appends.len(), 1);
        appends.truncate(None);
        assert!(appends.appends.is_empty() && appends.bytes == 0);
    }
}
