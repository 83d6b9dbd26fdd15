//! What the log contains, by ids alone: the points that every segment header copies, and which term
//! each index has. Pure. The callers' view, the writer and recovery each keep one and feed it the
//! same changes, so a change that contradicts the log is caught wherever it comes up.

use std::collections::VecDeque;

use super::{
    format::Record,
    types::{EntryId, Vote},
};

/// The state of the log apart from its entries.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Points {
    pub(super) vote: Option<Vote>,
    pub(super) committed: Option<EntryId>,
    pub(super) purged: Option<EntryId>,
    pub(super) last: Option<EntryId>,
}

impl Points {
    /// Whether some log can have them: what is purged was in it, and every index has a next one.
    pub(super) fn are_possible(&self) -> bool {
        let purged_is_there = match (self.purged, self.last) {
            (None, _) => true,
            (Some(_), None) => false,
            (Some(purged), Some(last)) => {
                purged == last || (purged.index < last.index && purged.term <= last.term)
            }
        };
        let ids = [self.committed, self.purged, self.last];
        purged_is_there && ids.into_iter().flatten().all(has_next)
    }
}

/// Whether another entry can follow this one. No log ever gets that long: such an index is damage,
/// or a peer's lie.
fn has_next(id: EntryId) -> bool {
    id.index < u64::MAX
}

/// Consecutive entries of one term, up to the next run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Run {
    first: u64,
    term: u64,
}

/// The ids of all entries, as runs of terms; memory grows with the terms, not with the entries.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Ledger {
    points: Points,
    /// Entries below this index, behind the purge point, are in segments that are gone, and their
    /// ids unknown. Only while recovery reads on to the purge record that allowed it.
    known_from: u64,
    runs: VecDeque<Run>,
}

impl Ledger {
    /// The log as a segment header describes it: its entries are not known, only its ends.
    pub(super) fn resume(points: Points) -> Self {
        Self {
            points,
            known_from: points.last.map_or(0, |last| last.index + 1),
            runs: VecDeque::new(),
        }
    }

    pub(super) fn points(&self) -> Points {
        self.points
    }

    /// The index of the first entry, when there is one.
    pub(super) fn first(&self) -> Option<u64> {
        self.runs.front().map(|run| run.first)
    }

    /// Whether the ids of all entries behind the purge point are known.
    pub(super) fn is_whole(&self) -> bool {
        let Points { purged, last, .. } = self.points;
        last == purged
            || self.runs.front().is_some_and(|run| {
                self.known_from == 0 || purged.is_some_and(|purged| purged.index + 1 == run.first)
            })
    }

    /// The id of the entry at `index`, or of the purge point.
    pub(super) fn entry_id(&self, index: u64) -> Option<EntryId> {
        let Points { purged, last, .. } = self.points;
        if let Some(purged) = purged.filter(|purged| purged.index == index) {
            return Some(purged);
        }
        if index > last?.index {
            return None;
        }
        let after = self.runs.partition_point(|run| run.first <= index);
        let run = self.runs.get(after.checked_sub(1)?)?;
        Some(EntryId::new(run.term, index))
    }

    /// Whether an entry with this id may follow `last`.
    pub(super) fn check_follows(last: Option<EntryId>, id: EntryId) -> Result<(), String> {
        match last {
            _ if !has_next(id) => Err(format!("no entry could follow {id}")),
            Some(last) if id.index != last.index + 1 => {
                Err(format!("entry {id} leaves a gap after {last}"))
            }
            Some(last) if id.term < last.term => Err(format!(
                "entry {id} is of an older term than {last} before it"
            )),
            _ => Ok(()),
        }
    }

    pub(super) fn append(&mut self, id: EntryId) -> Result<(), String> {
        Self::check_follows(self.points.last, id)?;
        if self.runs.back().is_none_or(|run| run.term != id.term) {
            let (first, term) = (id.index, id.term);
            self.runs.push_back(Run { first, term });
        }
        self.points.last = Some(id);
        Ok(())
    }

    /// Drops every entry after `last`. Nothing is wrong with a `last` beyond the end.
    pub(super) fn truncate(&mut self, last: Option<EntryId>) -> Result<(), String> {
        let Some(keep) = last else {
            if let Some(purged) = self.points.purged {
                return Err(format!("truncating everything, but {purged} is purged"));
            }
            self.points.last = None;
            self.known_from = 0;
            self.runs.clear();
            return Ok(());
        };
        if let Some(purged) = self
            .points
            .purged
            .filter(|purged| keep.index < purged.index)
        {
            return Err(format!("truncating after {keep}, but {purged} is purged"));
        }
        if self.points.last.is_none_or(|end| end.index < keep.index) {
            return Ok(());
        }
        self.check_known(keep)?;
        self.points.last = Some(keep);
        self.known_from = self.known_from.min(keep.index + 1);
        while self.runs.back().is_some_and(|run| run.first > keep.index) {
            self.runs.pop_back();
        }
        Ok(())
    }

    /// Forgets every entry up to and with `upto`, which may lie beyond the end of the log.
    pub(super) fn purge(&mut self, upto: EntryId) -> Result<(), String> {
        let Points { purged, last, .. } = self.points;
        if purged.is_some_and(|purged| upto.index <= purged.index) {
            return Ok(());
        }
        if last.is_none_or(|last| last.index < upto.index) {
            self.points.last = Some(upto);
        } else {
            self.check_known(upto)?;
        }
        self.points.purged = Some(upto);
        let next = upto.index + 1;
        while self.runs.get(1).is_some_and(|run| run.first <= next) {
            self.runs.pop_front();
        }
        if self.points.last == Some(upto) {
            self.runs.clear();
        } else if let Some(run) = self.runs.front_mut() {
            run.first = run.first.max(next);
        }
        Ok(())
    }

    /// Discards the whole log: it begins, and ends, at `upto`, which counts as committed.
    pub(super) fn reset(&mut self, upto: EntryId) {
        self.points.committed = Some(upto);
        self.points.purged = Some(upto);
        self.points.last = Some(upto);
        self.known_from = 0;
        self.runs.clear();
    }

    pub(super) fn save_vote(&mut self, vote: Vote) {
        self.points.vote = Some(vote);
    }

    pub(super) fn save_committed(&mut self, committed: Option<EntryId>) {
        self.points.committed = committed;
    }

    /// Feeds one record.
    ///
    /// # Errors
    ///
    /// How it contradicts the log.
    pub(super) fn apply(&mut self, record: &Record) -> Result<(), String> {
        let named = match record {
            Record::Entry(_) | Record::Vote(_) => None,
            Record::Truncate(id) | Record::Committed(id) => *id,
            Record::Purge(id) | Record::Reset(id) => Some(*id),
        };
        if let Some(id) = named.filter(|id| !has_next(*id)) {
            return Err(format!("no entry could follow {id}"));
        }
        match record {
            Record::Entry(entry) => self.append(entry.id),
            Record::Vote(vote) => {
                self.save_vote(*vote);
                Ok(())
            }
            Record::Truncate(last) => self.truncate(*last),
            Record::Committed(committed) => {
                self.save_committed(*committed);
                Ok(())
            }
            Record::Purge(upto) => self.purge(*upto),
            Record::Reset(upto) => {
                self.reset(*upto);
                Ok(())
            }
        }
    }

    /// Whether an entry that is not known any more can have had this id: terms never fall.
    fn may_have_been(&self, id: EntryId) -> bool {
        let Points { purged, last, .. } = self.points;
        let after_purged = purged.is_none_or(|purged| purged.term <= id.term);
        let before_run = self.runs.front().is_none_or(|run| id.term <= run.term);
        let before_last = last.is_none_or(|last| {
            id.term <= last.term && (id.index != last.index || id.term == last.term)
        });
        after_purged && before_run && before_last
    }

    fn check_known(&self, id: EntryId) -> Result<(), String> {
        match self.entry_id(id.index) {
            None if id.index < self.known_from && self.may_have_been(id) => Ok(()),
            None if id.index < self.known_from => {
                Err(format!("{id} is meant, but its term fits none around it"))
            }
            Some(known) if known == id => Ok(()),
            Some(known) => Err(format!("{id} is meant, but the log has {known} there")),
            None => Err(format!("{id} is meant, but the log does not have it")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(term: u64, index: u64) -> EntryId {
        EntryId::new(term, index)
    }

    fn ledger(ids: &[(u64, u64)]) -> Ledger {
        let mut ledger = Ledger::default();
        for (term, index) in ids {
            ledger.append(id(*term, *index)).unwrap();
        }
        ledger
    }

    #[test]
    fn ids_follow_the_terms() {
        let mut ledger = ledger(&[(1, 0), (1, 1), (3, 2), (3, 3), (4, 4)]);
        assert_eq!(ledger.entry_id(1), Some(id(1, 1)));
        assert_eq!(ledger.entry_id(3), Some(id(3, 3)));
        assert_eq!(ledger.entry_id(5), None);
        ledger.purge(id(3, 2)).unwrap();
        assert_eq!(ledger.entry_id(1), None);
        assert_eq!(ledger.entry_id(2), Some(id(3, 2)), "the purge point itself");
        assert_eq!(ledger.first(), Some(3));
        ledger.truncate(Some(id(3, 2))).unwrap();
        assert_eq!(ledger.entry_id(3), None);
        ledger.append(id(5, 3)).unwrap();
        assert_eq!(ledger.entry_id(3), Some(id(5, 3)));
    }

    #[test]
    fn contradictions_are_refused() {
        let mut ledger = ledger(&[(1, 1), (2, 2), (2, 3)]);
        assert!(ledger.append(id(2, 5)).is_err(), "gap");
        assert!(ledger.append(id(1, 4)).is_err(), "older term");
        assert!(ledger.truncate(Some(id(1, 2))).is_err(), "another entry");
        assert!(ledger.purge(id(9, 2)).is_err(), "another entry");
        ledger.purge(id(2, 2)).unwrap();
        assert!(ledger.truncate(Some(id(1, 1))).is_err(), "purged");
        assert!(ledger.truncate(None).is_err(), "purged");
        assert_eq!(ledger.points().last, Some(id(2, 3)));
    }

    #[test]
    fn the_last_index_there_is_has_no_place() {
        let beyond = id(2, u64::MAX);
        let mut ledger = ledger(&[(1, 1), (2, 2)]);
        for record in [
            Record::Truncate(Some(beyond)),
            Record::Committed(Some(beyond)),
            Record::Purge(beyond),
            Record::Reset(beyond),
        ] {
            assert!(ledger.apply(&record).is_err(), "{record:?}");
        }
        assert!(Ledger::check_follows(Some(id(2, u64::MAX - 1)), beyond).is_err());
        assert!(Ledger::default().append(beyond).is_err());
        assert_eq!(ledger.points().last, Some(id(2, 2)));
    }

    #[test]
    fn points_that_contradict_each_other_are_no_log() {
        let points = |purged, last| Points {
            purged,
            last,
            ..Points::default()
        };
        let (low, high) = (Some(id(1, 3)), Some(id(2, 9)));
        for possible in [points(None, low), points(low, high), points(low, low)] {
            assert!(possible.are_possible(), "{possible:?}");
        }
        for impossible in [
            points(low, None),
            points(high, low),
            points(Some(id(2, 3)), Some(id(1, 9))),
            points(Some(id(1, 3)), Some(id(2, 3))),
            points(None, Some(id(1, u64::MAX))),
        ] {
            assert!(!impossible.are_possible(), "{impossible:?}");
        }
    }

    #[test]
    fn purging_beyond_the_end_moves_the_end() {
        let mut ledger = ledger(&[(1, 1), (1, 2)]);
        ledger.purge(id(4, 9)).unwrap();
        assert_eq!(ledger.points().last, Some(id(4, 9)));
        assert!(ledger.append(id(4, 3)).is_err());
        ledger.append(id(4, 10)).unwrap();
        assert_eq!(ledger.first(), Some(10));
    }

    #[test]
    fn resuming_from_a_header_is_whole_once_the_unknown_is_purged() {
        let points = Points {
            last: Some(id(1, 9)),
            purged: Some(id(1, 3)),
            ..Points::default()
        };
        let mut ledger = Ledger::resume(points);
        ledger.append(id(1, 10)).unwrap();
        assert!(!ledger.is_whole());
        ledger.purge(id(1, 8)).unwrap();
        assert!(!ledger.is_whole());
        ledger.truncate(Some(id(1, 8))).unwrap();
        assert!(ledger.is_whole(), "empty");
        ledger.append(id(2, 9)).unwrap();
        assert!(ledger.is_whole());
    }

    #[test]
    fn an_entry_that_is_not_known_any_more_had_a_term_that_fits() {
        let points = Points {
            last: Some(id(3, 9)),
            purged: Some(id(2, 3)),
            ..Points::default()
        };
        for possible in [id(2, 4), id(3, 4), id(2, 8), id(3, 9)] {
            Ledger::resume(points).purge(possible).unwrap();
            Ledger::resume(points).truncate(Some(possible)).unwrap();
        }
        for impossible in [id(1, 4), id(4, 4), id(2, 9), id(4, 9)] {
            let purged = Ledger::resume(points).purge(impossible);
            assert!(purged.is_err(), "{impossible}");
            let cut = Ledger::resume(points).truncate(Some(impossible));
            assert!(cut.is_err(), "{impossible}");
        }
        let mut resumed = Ledger::resume(points);
        resumed.append(id(5, 10)).unwrap();
        resumed.append(id(6, 11)).unwrap();
        assert!(
            resumed.purge(id(6, 8)).is_err(),
            "younger than one after it"
        );
    }
}
