//! The WAL's vocabulary: entries, votes, positions, options. Independent of the raft library.

use std::fmt;

use bytes::Bytes;

/// Which log entry: its term and its index. Ordered by term, then index.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EntryId {
    /// The term of the leader that created the entry.
    pub term: u64,
    /// The place of the entry in the log.
    pub index: u64,
}

impl EntryId {
    /// The entry of `term` at `index`.
    #[must_use]
    pub const fn new(term: u64, index: u64) -> Self {
        Self { term, index }
    }
}

impl fmt::Display for EntryId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.term, self.index)
    }
}

/// Whom this member voted for, and whether that node became leader.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Vote {
    /// The term of the vote.
    pub term: u64,
    /// The member voted for.
    pub node: u64,
    /// Whether a quorum granted it: `node` is, or was, the leader of `term`.
    pub committed: bool,
}

/// What the payload of an entry is. The WAL does not look into payloads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum EntryKind {
    /// No payload: the first entry of a leader's term.
    Blank,
    /// A command.
    Normal,
    /// A change of the membership.
    Membership,
}

/// One entry of the raft log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Its term and index.
    pub id: EntryId,
    /// What the payload is.
    pub kind: EntryKind,
    /// Opaque bytes.
    pub payload: Bytes,
}

/// Whose log it is. Written to every segment and checked at every open.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Identity {
    /// The cluster.
    pub cluster_id: u64,
    /// The member of the cluster.
    pub member_id: u64,
}

/// Where the WAL does its writing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum WriterMode {
    /// On a thread of its own, with group commit. For everything that runs for real.
    #[default]
    Thread,
    /// In the thread of the caller, before the call returns; callbacks run there too and must not
    /// call the WAL. Deterministic, for simulations on a [`MemFs`](crate::storage::fs::MemFs).
    Caller,
}

/// How to open a [`Wal`](super::Wal).
#[derive(Clone, Debug)]
pub struct WalOptions {
    /// Whose log it is.
    pub identity: Identity,
    /// A random number, fresh for each open, that clients cannot know: the checksums are seeded
    /// from it, so that no client can store a value that poses as log records.
    pub salt_seed: u64,
    /// Size of a segment file in bytes. A segment is zero-filled when it is created, so this much
    /// (twice, while the next one is prepared) is taken on disk from the start. Smaller: more files
    /// and more pauses to change them. A batch that is larger gets a larger segment.
    pub segment_bytes: u64,
    /// Recent entries kept in memory, in bytes; entries not yet synced are kept beyond it.
    pub cache_bytes: usize,
    /// What may wait for the writer, in bytes; beyond it calls are refused with
    /// [`WalError::Full`](super::WalError::Full).
    pub queue_bytes_max: usize,
    /// The writer closes a batch at this size; a single call may be larger and gets its own batch.
    pub batch_bytes_max: usize,
    /// Where writing happens.
    pub writer: WriterMode,
}

impl WalOptions {
    /// The defaults: 64 MiB segments and cache, a queue of 256 MiB, batches of 16 MiB.
    #[must_use]
    pub fn new(identity: Identity, salt_seed: u64) -> Self {
        Self {
            identity,
            salt_seed,
            segment_bytes: 64 << 20,
            cache_bytes: 64 << 20,
            queue_bytes_max: 256 << 20,
            batch_bytes_max: 16 << 20,
            writer: WriterMode::Thread,
        }
    }
}

/// A point in the WAL's ordered stream of changes. It only grows, also when the log is truncated:
/// it is not an index. What is at or before a flushed position is durable.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Position(pub(super) u64);

/// The two ends of the log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LogState {
    /// The last entry that was purged: the log begins right after it.
    pub purged: Option<EntryId>,
    /// The last entry; the same as `purged` when nothing follows it.
    pub last: Option<EntryId>,
}
