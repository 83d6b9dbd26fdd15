//! A model of the log, and random traces of changes to feed to both.

use super::*;

/// What a log holds.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Model {
    pub(super) vote: Option<Vote>,
    pub(super) committed: Option<EntryId>,
    pub(super) purged: Option<EntryId>,
    pub(super) last: Option<EntryId>,
    pub(super) entries: Vec<Entry>,
}

/// One change.
#[derive(Clone, Debug)]
pub(super) enum Step {
    Append(Vec<Entry>),
    Vote(Vote),
    Truncate(Option<EntryId>),
    Committed(Option<EntryId>),
    Purge(EntryId),
    Reset(EntryId),
}

impl Model {
    /// What `wal` holds.
    pub(super) fn of(wal: &Wal) -> Self {
        let state = wal.log_state();
        Self {
            vote: wal.vote(),
            committed: wal.committed(),
            purged: state.purged,
            last: state.last,
            entries: all(wal),
        }
    }

    pub(super) fn apply(&mut self, step: &Step) {
        match step {
            Step::Append(entries) => {
                self.last = entries.last().map(|entry| entry.id).or(self.last);
                self.entries.extend(entries.iter().cloned());
            }
            Step::Vote(vote) => self.vote = Some(*vote),
            Step::Truncate(last) => {
                self.last = *last;
                self.entries
                    .retain(|entry| last.is_some_and(|last| entry.id.index <= last.index));
            }
            Step::Committed(committed) => self.committed = *committed,
            Step::Purge(upto) => {
                self.purged = Some(*upto);
                self.entries.retain(|entry| entry.id.index > upto.index);
                self.last = self.last.max(Some(*upto));
            }
            Step::Reset(upto) => {
                self.entries.clear();
                (self.purged, self.last) = (Some(*upto), Some(*upto));
                self.committed = Some(*upto);
            }
        }
    }
}

/// Numbers from a seed.
pub(super) struct Random(pub(super) u64);

impl Random {
    pub(super) fn below(&mut self, limit: u64) -> u64 {
        self.0 = self
            .0
            .wrapping_mul(0x5851_f42d_4c95_7f2d)
            .wrapping_add(0x1405_7b7e_f767_814f);
        (self.0 >> 33) % limit
    }

    pub(super) fn index(&mut self, limit: usize) -> usize {
        usize::try_from(self.below(limit as u64)).unwrap()
    }
}

/// A trace of `count` changes, and the models before and after each of them.
pub(super) fn trace(seed: u64, count: usize) -> (Vec<Step>, Vec<Model>) {
    let mut random = Random(seed);
    let mut steps = Vec::new();
    let mut models = vec![Model::default()];
    let mut term = 1;
    while steps.len() < count {
        let model = models.last().unwrap();
        let next = model.last.map_or(1, |last| last.index + 1);
        let kept = model.entries.len();
        let step = match random.below(20) {
            0..=10 => {
                let bytes = [0, 30, 300, 2000, 9000][random.index(5)];
                let upto = next + random.below(4);
                Step::Append(entries(term, next..=upto, bytes))
            }
            11 | 12 => {
                term += 1;
                let committed = random.below(2) == 0;
                Step::Vote(Vote {
                    term,
                    node: random.below(3),
                    committed,
                })
            }
            13 | 14 => Step::Committed(model.last),
            15 | 16 if kept > 2 => {
                term += 1;
                Step::Truncate(Some(model.entries[kept - 1 - random.index(kept / 2)].id))
            }
            17 | 18 if kept > 4 => Step::Purge(model.entries[random.index(kept)].id),
            19 if random.below(4) == 0 => Step::Reset(id(term, next + random.below(3))),
            _ => continue,
        };
        let mut model = model.clone();
        model.apply(&step);
        steps.push(step);
        models.push(model);
    }
    (steps, models)
}

/// Feeds `step`; the callback is not called for changes that take none.
pub(super) fn feed(wal: &Wal, step: &Step, on_flushed: FlushCallback) {
    let done = match step.clone() {
        Step::Append(entries) => wal.append(entries, on_flushed),
        Step::Vote(vote) => wal.save_vote(vote, on_flushed),
        Step::Truncate(last) => wal.truncate_after(last, on_flushed),
        Step::Committed(committed) => wal.save_committed(committed),
        Step::Purge(upto) => wal.purge(upto),
        Step::Reset(upto) => wal.reset_to(upto, on_flushed),
    };
    done.unwrap();
}

#[test]
fn the_log_behaves_like_the_model() {
    for seed in 0..40 {
        let (steps, models) = trace(seed, 120);
        let fs = MemFs::new();
        let mut wal = open_inline(&fs).unwrap();
        for (step, model) in steps.iter().zip(&models[1..]) {
            feed(&wal, step, ignore());
            assert_eq!(&Model::of(&wal), model, "seed {seed}, after {step:?}");
            if model.last.is_some_and(|last| last.index % 7 == 0) {
                drop(wal);
                wal = open_inline(&fs).unwrap();
                assert_eq!(
                    &Model::of(&wal),
                    model,
                    "seed {seed}, reopened after {step:?}"
                );
            }
        }
    }
}
