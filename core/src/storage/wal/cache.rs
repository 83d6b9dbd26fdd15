//! The recent entries in memory: what replication and apply read, and what is not on disk yet.

use std::{collections::VecDeque, ops::Range};

use super::{
    format::Record,
    types::{Entry, Position},
};

/// What an entry costs beside its payload, in bytes, roughly.
const ENTRY_BYTES: usize = 96;

/// The last entries of the log, without gaps, up to its end. An entry leaves at the front, and only
/// once it is on disk.
#[derive(Debug)]
pub(super) struct Cache {
    entries: VecDeque<(Position, Entry)>,
    bytes: usize,
    bytes_max: usize,
}

fn cost(entry: &Entry) -> usize {
    ENTRY_BYTES + entry.payload.len()
}

impl Cache {
    pub(super) fn new(bytes_max: usize) -> Self {
        Self {
            entries: VecDeque::new(),
            bytes: 0,
            bytes_max,
        }
    }

    /// The lowest index that is cached.
    pub(super) fn first(&self) -> Option<u64> {
        self.entries.front().map(|(_, entry)| entry.id.index)
    }

    /// Adds the new last entry of the log, which becomes durable at `position`.
    pub(super) fn push(&mut self, position: Position, entry: Entry) {
        self.bytes += cost(&entry);
        self.entries.push_back((position, entry));
    }

    /// `record`, not an entry, changed the log.
    pub(super) fn change(&mut self, record: &Record) {
        match record {
            Record::Truncate(last) => self.truncate(last.map(|last| last.index)),
            Record::Purge(upto) => self.purge(upto.index),
            Record::Reset(_) => self.truncate(None),
            Record::Entry(_) | Record::Vote(_) | Record::Committed(_) => {}
        }
    }

    /// Drops entries after index `last` (`None`: all).
    fn truncate(&mut self, last: Option<u64>) {
        while let Some((_, entry)) = self.entries.back() {
            if last.is_some_and(|last| entry.id.index <= last) {
                break;
            }
            self.bytes -= cost(entry);
            self.entries.pop_back();
        }
    }

    /// Drops entries up to and with index `upto`.
    fn purge(&mut self, upto: u64) {
        while self.first().is_some_and(|first| first <= upto) {
            self.pop_front();
        }
    }

    /// Brings the cache down to its size, as far as entries are durable at `flushed`.
    pub(super) fn evict(&mut self, flushed: Position) {
        while self.bytes > self.bytes_max
            && self
                .entries
                .front()
                .is_some_and(|(position, _)| *position <= flushed)
        {
            self.pop_front();
        }
    }

    fn pop_front(&mut self) {
        if let Some((_, entry)) = self.entries.pop_front() {
            self.bytes -= cost(&entry);
        }
    }

    /// The cached entries of `range`, at most `bytes_max` of payload but at least one.
    pub(super) fn read(&self, range: Range<u64>, bytes_max: usize) -> Vec<Entry> {
        let mut found = Vec::new();
        let Some(first) = self.first() else {
            return found;
        };
        let from = usize::try_from(range.start.saturating_sub(first)).unwrap_or(usize::MAX);
        let mut bytes = 0_usize;
        for (_, entry) in self.entries.range(from.min(self.entries.len())..) {
            bytes = bytes.saturating_add(entry.payload.len());
            if entry.id.index >= range.end || (bytes > bytes_max && !found.is_empty()) {
                break;
            }
            found.push(entry.clone());
        }
        found
    }
}
