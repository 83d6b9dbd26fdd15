//! Where entries are on disk: a sparse index of marks, one for at least every [`STRIDE_BYTES`] of
//! log. Kept for reads of entries that left the cache, and to know which segments are dead.

use std::{collections::VecDeque, ops::Range};

use super::format::Record;

/// A mark is set when the last one is this many bytes of log behind.
const STRIDE_BYTES: u64 = 64 << 10;

/// From `first_index` up to the next mark's, the entries follow one another from `offset` on, in
/// records and batches, with nothing superseded among them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Mark {
    pub(super) first_index: u64,
    /// The segment's number.
    pub(super) segment: u64,
    /// Where the record of the first entry begins.
    pub(super) offset: u64,
    /// Where the records of its batch end; the next batch begins at the block boundary after it.
    pub(super) batch_end: u64,
}

/// The marks of the log, in the order of indexes, segments and offsets at once.
#[derive(Debug, Default)]
pub(super) struct Marks {
    marks: VecDeque<Mark>,
    /// The next entry needs a mark wherever it is: what came before it was cut off.
    broken: bool,
    /// One past the last entry.
    end: u64,
}

impl Marks {
    /// Entry `mark.first_index` was written at `mark.offset`.
    pub(super) fn note(&mut self, mark: Mark) {
        let near = self.marks.back().is_some_and(|last| {
            last.segment == mark.segment && mark.offset - last.offset < STRIDE_BYTES
        });
        if self.broken || !near {
            self.marks.push_back(mark);
            self.broken = false;
        }
        self.end = mark.first_index + 1;
    }

    /// `record`, not an entry, was written.
    pub(super) fn change(&mut self, record: &Record) {
        match record {
            Record::Truncate(last) => self.truncate(last.map(|last| last.index)),
            Record::Purge(upto) => self.purge(upto.index),
            Record::Reset(_) => self.truncate(None),
            Record::Entry(_) | Record::Vote(_) | Record::Committed(_) => {}
        }
    }

    /// Entries after index `last` are dropped (`None`: all).
    fn truncate(&mut self, last: Option<u64>) {
        self.broken = true;
        self.end = self.end.min(last.map_or(0, |last| last + 1));
        while self
            .marks
            .back()
            .is_some_and(|mark| last.is_none_or(|last| mark.first_index > last))
        {
            self.marks.pop_back();
        }
    }

    /// Entries up to and with `upto` are gone.
    fn purge(&mut self, upto: u64) {
        if upto + 1 >= self.end {
            self.truncate(None);
        }
        while self
            .marks
            .get(1)
            .is_some_and(|mark| mark.first_index <= upto + 1)
        {
            self.marks.pop_front();
        }
    }

    /// The oldest segment that has a live entry.
    pub(super) fn oldest_segment(&self) -> Option<u64> {
        self.marks.front().map(|mark| mark.segment)
    }

    /// Where to read the entries of `range`: for each piece the mark to begin at and the part of
    /// the range that it covers. The whole range must have been noted.
    pub(super) fn pieces(&self, range: Range<u64>) -> Vec<(Mark, Range<u64>)> {
        let after = self
            .marks
            .partition_point(|mark| mark.first_index <= range.start);
        let mut pieces = Vec::new();
        for at in after.saturating_sub(1)..self.marks.len() {
            let mark = self.marks[at];
            let end = self.marks.get(at + 1).map(|next| next.first_index);
            let part = range.start.max(mark.first_index)..end.unwrap_or(range.end).min(range.end);
            if mark.first_index >= range.end {
                break;
            }
            pieces.push((mark, part));
        }
        pieces
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mark(first_index: u64, segment: u64, offset: u64) -> Mark {
        Mark {
            first_index,
            segment,
            offset,
            batch_end: offset + 100,
        }
    }

    #[test]
    fn marks_are_sparse_but_never_span_a_cut_or_a_segment() {
        let mut marks = Marks::default();
        marks.note(mark(1, 1, 4096));
        marks.note(mark(2, 1, 8192));
        marks.note(mark(3, 1, 4096 + STRIDE_BYTES));
        marks.truncate(Some(2));
        marks.note(mark(3, 1, 5 * STRIDE_BYTES));
        marks.note(mark(4, 2, 4096));
        let pieces = marks.pieces(2..9);
        let firsts: Vec<_> = pieces
            .iter()
            .map(|(mark, part)| (mark.segment, mark.offset, part.clone()))
            .collect();
        let cut = 5 * STRIDE_BYTES;
        assert_eq!(firsts, [(1, 4096, 2..3), (1, cut, 3..4), (2, 4096, 4..9)]);
        marks.purge(2);
        assert_eq!(marks.oldest_segment(), Some(1));
        marks.purge(3);
        assert_eq!(marks.oldest_segment(), Some(2));
        marks.purge(4);
        assert_eq!(marks.oldest_segment(), None);
    }
}
