//! The history of the key space in the order of its revisions. Used by `buckets` for etcd's bucket
//! `key`.
//!
//! Events are stored in that order, pairs are not: they are stored by key, and the events of those
//! that have been there since before the compact revision are gone. So the pairs are brought into
//! order by scans, each of which picks the smallest revisions that are still to come, as many as fit
//! in a bounded memory. Deletions come from the events; so does the proof that no put is missing or
//! too many.

use std::cmp::Ordering;
use std::collections::BinaryHeap;
use std::iter::Peekable;
use std::vec::IntoIter;

use prost::Message;
use quorate_proto::mvccpb::KeyValue;

use super::{Backup, BackupError, Detail};
use crate::mvcc::{Revision, history, meta};
use crate::storage::bbolt::Value;
use crate::storage::kv::KvError;

/// What one pair takes beside its bytes, in bytes.
const PAIR_BYTES: usize = 64;
/// Pairs looked at between two questions whether anybody still wants them.
const PAIRS_PER_QUESTION: usize = 1_024;

/// A pair or a key, as etcd stores it.
#[derive(Debug)]
pub(super) enum Encoded {
    Bytes(Box<[u8]>),
    Length(usize),
}

impl Encoded {
    fn of(kv: &KeyValue, detail: Detail) -> Self {
        match detail {
            Detail::Bytes => Self::Bytes(kv.encode_to_vec().into_boxed_slice()),
            Detail::Lengths => Self::Length(kv.encoded_len()),
        }
    }

    pub(super) fn as_value(&self) -> Value<'_> {
        match self {
            Self::Bytes(bytes) => Value::Bytes(bytes),
            Self::Length(length) => Value::Length(*length),
        }
    }

    fn held_bytes(&self) -> usize {
        match self {
            Self::Bytes(bytes) => PAIR_BYTES + bytes.len(),
            Self::Length(_) => PAIR_BYTES,
        }
    }
}

/// One item of the history.
#[derive(Debug)]
pub(super) struct Item {
    pub(super) revision: Revision,
    pub(super) is_tombstone: bool,
    pub(super) pair: Encoded,
}

/// All items of the history that the compact revision leaves, in order.
pub(super) struct Revisions<'a> {
    pairs: Pairs<'a>,
    records: Peekable<history::Stored<'a>>,
    first: i64,
    detail: Detail,
    tombstones: usize,
}

impl<'a> Revisions<'a> {
    pub(super) fn new(backup: &'a Backup, detail: Detail) -> Result<Self, KvError> {
        let first = meta::compact_revision(&*backup.view)?;
        let (from, to) = (
            Revision::new(first.max(0), 0),
            Revision::new(i64::MAX, i64::MAX),
        );
        let records = history::stored(&*backup.view, from, to);
        Ok(Self {
            pairs: Pairs {
                backup,
                first,
                detail,
                sorted: Vec::new().into_iter(),
                last: None,
                is_complete: false,
            },
            records: records.peekable(),
            first,
            detail,
            tombstones: 0,
        })
    }

    /// The next item. An event without its pair, or a pair without its event, is damage; only pairs
    /// from before the compact revision have none.
    pub(super) fn next(&mut self) -> Result<Option<Item>, BackupError> {
        let damaged = |revision: Revision| {
            let what = format!("revision {revision} has no event, or no pair");
            Err(KvError::corrupt(what).into())
        };
        if let Some(Err(error)) = self.records.next_if(Result::is_err) {
            return Err(error.into());
        }
        let record = self.records.peek().and_then(|read| read.as_ref().ok());
        let record = record.map(|(revision, record)| (*revision, record.deleted));
        let pair = self.pairs.peek()?;
        match (pair, record) {
            (None, None) => Ok(None),
            (Some(pair), None) if pair.main < self.first => Ok(self.pairs.take()),
            (Some(pair), Some((event, _))) if pair < event && pair.main < self.first => {
                Ok(self.pairs.take())
            }
            (Some(pair), Some((event, false))) if pair == event => {
                self.records.next();
                Ok(self.pairs.take())
            }
            (pair, Some((event, true))) if pair.is_none_or(|pair| event < pair) => self.tombstone(),
            (Some(revision), _) | (None, Some((revision, _))) => damaged(revision),
        }
    }

    fn tombstone(&mut self) -> Result<Option<Item>, BackupError> {
        self.tombstones += 1;
        if self.tombstones.is_multiple_of(PAIRS_PER_QUESTION) {
            self.pairs.backup.check_wanted()?;
        }
        let Some((revision, record)) = self.records.next().transpose()? else {
            return Ok(None);
        };
        let kv = KeyValue {
            key: record.key,
            ..KeyValue::default()
        };
        Ok(Some(Item {
            revision,
            is_tombstone: true,
            pair: Encoded::of(&kv, self.detail),
        }))
    }
}

/// The pairs in the order of their revisions.
struct Pairs<'a> {
    backup: &'a Backup,
    first: i64,
    detail: Detail,
    /// What the last scan picked.
    sorted: IntoIter<Picked>,
    /// The greatest revision picked so far.
    last: Option<Revision>,
    /// Whether nothing is left for another scan.
    is_complete: bool,
}

impl Pairs<'_> {
    fn peek(&mut self) -> Result<Option<Revision>, BackupError> {
        if self.sorted.as_slice().is_empty() && !self.is_complete {
            self.scan()?;
        }
        Ok(self.sorted.as_slice().first().map(|picked| picked.revision))
    }

    fn take(&mut self) -> Option<Item> {
        self.sorted.next().map(|picked| Item {
            revision: picked.revision,
            is_tombstone: false,
            pair: picked.pair,
        })
    }

    fn scan(&mut self) -> Result<(), BackupError> {
        let mut smallest = Smallest::new(self.backup.sort_bytes);
        let pairs = history::pairs_from(&*self.backup.view, self.first);
        for (looked_at, found) in pairs.enumerate() {
            if looked_at % PAIRS_PER_QUESTION == 0 {
                self.backup.check_wanted()?;
            }
            let (kv, revision) = found?;
            if self.last < Some(revision) && smallest.wants(revision) {
                smallest.add(Picked {
                    revision,
                    pair: Encoded::of(&kv, self.detail),
                });
            }
        }
        self.is_complete = !smallest.has_dropped;
        self.sorted = smallest.heap.into_sorted_vec().into_iter();
        self.last = self.sorted.as_slice().last().map(|last| last.revision);
        Ok(())
    }
}

struct Picked {
    revision: Revision,
    pair: Encoded,
}

impl PartialEq for Picked {
    fn eq(&self, other: &Self) -> bool {
        self.revision == other.revision
    }
}

impl Eq for Picked {}

impl PartialOrd for Picked {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Picked {
    fn cmp(&self, other: &Self) -> Ordering {
        self.revision.cmp(&other.revision)
    }
}

/// The smallest of many pairs, as many as fit: everything seen that is not greater than the greatest
/// one held is held.
struct Smallest {
    heap: BinaryHeap<Picked>,
    held_bytes: usize,
    bytes_max: usize,
    has_dropped: bool,
}

impl Smallest {
    fn new(bytes_max: usize) -> Self {
        Self {
            heap: BinaryHeap::new(),
            held_bytes: 0,
            bytes_max,
            has_dropped: false,
        }
    }

    fn wants(&self, revision: Revision) -> bool {
        let greatest = self.heap.peek().map(|picked| picked.revision);
        !self.has_dropped || greatest.is_some_and(|greatest| revision < greatest)
    }

    /// Adds a pair and drops the greatest ones that fit no longer; one stays, whatever its size.
    fn add(&mut self, picked: Picked) {
        self.held_bytes += picked.pair.held_bytes();
        self.heap.push(picked);
        while self.held_bytes > self.bytes_max && self.heap.len() > 1 {
            if let Some(dropped) = self.heap.pop() {
                self.held_bytes -= dropped.pair.held_bytes();
                self.has_dropped = true;
            }
        }
    }
}
