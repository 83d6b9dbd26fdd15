//! Thousands of random operations against a model that keeps the whole state of every revision.

use std::collections::BTreeMap;

use quorate_proto::Reason;
use quorate_proto::mvccpb::KeyValue;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{RngExt, SeedableRng};

use super::*;
use crate::storage::codec::{PastPair, Table};
use crate::storage::kv::{Direction, DiskOptions, FjallKv, MemKv};

type State = BTreeMap<Bytes, KeyValue>;

/// Everything that ever was.
struct Model {
    /// The state after each main revision; a revision is an index, 0 is unused.
    states: Vec<State>,
    events: Vec<Event>,
    compacted: i64,
}

impl Model {
    fn new() -> Model {
        Model {
            states: vec![State::new(), State::new()],
            events: Vec::new(),
            compacted: -1,
        }
    }

    fn current(&self) -> i64 {
        i64::try_from(self.states.len()).unwrap() - 1
    }

    fn at(&self, revision: i64) -> &State {
        &self.states[usize::try_from(revision.max(0)).unwrap()]
    }

    fn readable(&self, revision: i64) -> Result<i64, Reason> {
        match revision {
            _ if revision <= 0 => Ok(self.current()),
            _ if revision > self.current() => Err(Reason::FutureRevision),
            _ if revision < self.compacted => Err(Reason::Compacted),
            _ => Ok(revision),
        }
    }

    /// The plainest possible reading of a range request.
    fn range(&self, query: &RangeQuery) -> Result<RangeResult, Reason> {
        let revision = self.readable(query.revision)?;
        let state = self.at(revision).values();
        let all: Vec<_> = state
            .filter(|kv| query.range.contains(&kv.key))
            .cloned()
            .collect();
        let count = i64::try_from(all.len()).unwrap();
        let revision = self.current();
        if query.count_only {
            return Ok(RangeResult {
                kvs: Vec::new(),
                more: false,
                count,
                revision,
            });
        }
        let mut kvs: Vec<_> = all.into_iter().filter(|kv| passes(query, kv)).collect();
        let key = |kv: &KeyValue| match query.sort_by {
            SortBy::Key => (0, kv.key.clone()),
            SortBy::Version => (kv.version, Bytes::new()),
            SortBy::CreateRevision => (kv.create_revision, Bytes::new()),
            SortBy::ModRevision => (kv.mod_revision, Bytes::new()),
            SortBy::Value => (0, kv.value.clone()),
        };
        match query.order {
            Order::Unsorted => {}
            Order::Ascending => kvs.sort_by_key(key),
            Order::AscendingWithinLimit => {
                let limit = usize::try_from(query.limit).unwrap_or(0);
                let candidates = if limit > 0 {
                    limit.saturating_add(1)
                } else {
                    usize::MAX
                };
                let candidates = candidates.min(kvs.len());
                kvs[..candidates].sort_by_key(key);
            }
            Order::Descending => kvs.sort_by_key(|kv| std::cmp::Reverse(key(kv))),
        }
        let mut more = false;
        if let Ok(limit @ 1..) = usize::try_from(query.limit) {
            more = kvs.len() > limit;
            kvs.truncate(limit);
        }
        if query.keys_only {
            kvs.iter_mut().for_each(|kv| kv.value.clear());
        }
        Ok(RangeResult {
            kvs,
            more,
            count,
            revision,
        })
    }
}

fn passes(query: &RangeQuery, kv: &KeyValue) -> bool {
    let at_least = |revision, min| min == 0 || revision >= min;
    let at_most = |revision, max| max == 0 || revision <= max;
    at_least(kv.mod_revision, query.min_mod_revision)
        && at_most(kv.mod_revision, query.max_mod_revision)
        && at_least(kv.create_revision, query.min_create_revision)
        && at_most(kv.create_revision, query.max_create_revision)
}

/// One run: a store that is compacted physically, another that never is, and the model.
struct Run<'a> {
    random: StdRng,
    kv: &'a dyn Kv,
    unremoved: MemKv,
    model: Model,
}

const LEASES: [i64; 4] = [0, 7, -7, i64::MAX];

impl Run<'_> {
    fn key(&mut self) -> Bytes {
        let length = self.random.random_range(1..4);
        let alphabet = [0, b'a', 0xff];
        (0..length)
            .map(|_| *alphabet.choose(&mut self.random).unwrap())
            .collect()
    }

    fn range(&mut self) -> KeyRange {
        let (key, end) = (self.key(), self.key());
        match self.random.random_range(0..6) {
            0 => KeyRange::single(key),
            1 => KeyRange::prefix(key),
            2 => KeyRange::from_key(key),
            3 => KeyRange::all(),
            _ => KeyRange::half_open(key, end),
        }
    }

    fn revision(&mut self) -> i64 {
        let last = self.model.current() + 2;
        let first = if self.random.random_bool(0.2) {
            -2
        } else {
            (last - 60).max(-2)
        };
        self.random.random_range(first..=last)
    }

    /// One transaction on both stores' overlays and, if it commits, in the model.
    fn txn(&mut self, overlay: &mut Overlay, unremoved: &mut Overlay) {
        let main = self.model.current() + 1;
        let before = self.model.at(main - 1).clone();
        let mut state = before.clone();
        let mut events: Vec<Event> = Vec::new();
        let mut txn = overlay.begin().unwrap();
        let mut second = unremoved.begin().unwrap();
        for _ in 0..self.random.random_range(0..5) {
            let next = Revision::new(main, i64::try_from(events.len()).unwrap());
            if self.random.random_bool(0.7) {
                let key = self.key();
                let value = Bytes::from(vec![b'v'; self.random.random_range(0..20)]);
                let lease = *LEASES.choose(&mut self.random).unwrap();
                let old = state.get(&key).cloned();
                let kv = KeyValue {
                    key: key.clone(),
                    value: value.clone(),
                    lease,
                    create_revision: old.as_ref().map_or(main, |old| old.create_revision),
                    mod_revision: main,
                    version: old.as_ref().map_or(1, |old| old.version + 1),
                };
                assert_eq!(txn.put(key.clone(), value.clone(), lease).unwrap(), old);
                second.put(key.clone(), value, lease).unwrap();
                events.push(event(next, EventKind::Put, kv.clone(), &before));
                state.insert(key, kv);
            } else {
                let range = self.range();
                let gone: Vec<_> = state
                    .values()
                    .filter(|kv| range.contains(&kv.key))
                    .cloned()
                    .collect();
                for (kv, sub) in gone.iter().zip(next.sub..) {
                    state.remove(&kv.key);
                    let kv = KeyValue {
                        key: kv.key.clone(),
                        mod_revision: main,
                        ..KeyValue::default()
                    };
                    let revision = Revision::new(main, sub);
                    events.push(event(revision, EventKind::Delete, kv, &before));
                }
                assert_eq!(txn.delete_range(&range).unwrap(), gone);
                second.delete_range(&range).unwrap();
            }
            assert_eq!(
                txn.revision(),
                if events.is_empty() { main - 1 } else { main }
            );
            let seen = range(txn.view(), &RangeQuery::new(KeyRange::all())).unwrap();
            assert!(
                seen.kvs.iter().eq(state.values()),
                "a transaction sees its writes"
            );
        }
        if self.random.random_bool(0.15) {
            return;
        }
        let (done, again) = (txn.commit(), second.commit());
        assert_eq!(done.revision, again.revision);
        assert_eq!(done.revision, (!events.is_empty()).then_some(main));
        assert_eq!(strip(&done.events), strip(&events));
        for (done, expected) in done.events.iter().zip(&events) {
            assert_eq!(done.prev_kv, expected.prev_kv);
        }
        if done.revision.is_some() {
            self.model.states.push(state);
            self.model.events.extend(events);
        }
    }

    fn write(&mut self) {
        let mut overlay = Overlay::new(self.kv.view());
        let mut unremoved = Overlay::new(self.unremoved.view());
        for _ in 0..self.random.random_range(1..4) {
            self.txn(&mut overlay, &mut unremoved);
        }
        if self.random.random_bool(0.05) {
            let (current, compacted) = (self.model.current(), self.model.compacted);
            let revision = self.random.random_range(-1..=current + 1);
            let expected = match revision {
                _ if revision <= compacted => Err(Reason::Compacted),
                _ if revision > current => Err(Reason::FutureRevision),
                _ => Ok(()),
            };
            assert_eq!(compaction::check(current, compacted, revision), expected);
            if expected.is_ok() {
                compaction::schedule(&mut overlay, revision);
                compaction::schedule(&mut unremoved, revision);
                self.model.compacted = revision;
            }
        }
        self.kv.commit(overlay.into_batch()).unwrap();
        self.unremoved.commit(unremoved.into_batch()).unwrap();
    }

    fn check_ranges(&mut self) {
        let view = self.kv.view();
        for _ in 0..6 {
            let mut query = RangeQuery::new(self.range());
            query.revision = if self.random.random_bool(0.3) {
                0
            } else {
                self.revision()
            };
            query.limit = self.random.random_range(-1..8);
            query.order = *[
                Order::Unsorted,
                Order::Ascending,
                Order::AscendingWithinLimit,
                Order::Descending,
            ]
            .choose(&mut self.random)
            .unwrap();
            let targets = [
                SortBy::Key,
                SortBy::Version,
                SortBy::CreateRevision,
                SortBy::ModRevision,
                SortBy::Value,
            ];
            query.sort_by = *targets.choose(&mut self.random).unwrap();
            query.keys_only = self.random.random_bool(0.3);
            query.count_only = self.random.random_bool(0.1);
            if self.random.random_bool(0.3) {
                query.min_mod_revision = self.revision();
                query.max_create_revision = self.revision();
            }
            if self.random.random_bool(0.3) {
                query.max_mod_revision = self.revision();
                query.min_create_revision = self.revision();
            }
            match (range(view.as_ref(), &query), self.model.range(&query)) {
                (Ok(result), Ok(expected)) => assert_eq!(result, expected, "{query:?}"),
                (Err(Error::Refused(reason)), Err(expected)) => assert_eq!(reason, expected),
                (result, expected) => panic!("{query:?}: {result:?} but {expected:?}"),
            }
        }
        let (key, revision) = (self.key(), self.revision());
        let found = key_value_at(view.as_ref(), &key, revision);
        match self.model.readable(revision) {
            Ok(at) => assert_eq!(found.unwrap().as_ref(), self.model.at(at).get(&key)),
            Err(reason) => assert!(matches!(found, Err(Error::Refused(r)) if r == reason)),
        }
        for lease in LEASES {
            let attached = |kv: &&KeyValue| lease != 0 && kv.lease == lease;
            let expected = self
                .model
                .at(self.model.current())
                .values()
                .filter(attached);
            let keys = keys_of_lease(view.as_ref(), lease).unwrap();
            assert!(keys.iter().eq(expected.map(|kv| &kv.key)), "lease {lease}");
        }
    }

    fn check_pages(&mut self) {
        let view = self.kv.view();
        let whole = self.range();
        let revision = self.revision();
        let Ok(at) = self.model.readable(revision) else {
            return;
        };
        let bytes_max = self.random.random_range(0..60);
        let (mut rest, mut kvs) = (whole.clone(), Vec::new());
        loop {
            let page = scan_page(view.as_ref(), &rest, at, bytes_max).unwrap();
            kvs.extend(page.kvs);
            let Some(next) = page.next else { break };
            let (_, end) = whole.to_wire();
            rest = match whole.end_exclusive() {
                Some(_) => KeyRange::half_open(next, end),
                None => KeyRange::from_key(next),
            };
        }
        let expected = self
            .model
            .at(at)
            .values()
            .filter(|kv| whole.contains(&kv.key));
        assert!(kvs.iter().eq(expected), "{whole:?} at {at}");
    }

    fn check_events(&mut self) {
        let view = self.kv.view();
        let range = self.range();
        let (first, last) = (self.revision(), self.revision());
        let limits = history::PageLimits {
            events_max: self.random.random_range(0..8),
            bytes_max: self.random.random_range(0..800),
            looked_at_max: self.random.random_range(0..30),
        };
        if first < self.model.compacted {
            let refused = history::events(view.as_ref(), &range, first, last, limits);
            assert!(matches!(refused, Err(Error::Refused(Reason::Compacted))));
            return;
        }
        let (mut next, mut found) = (Some(first), Vec::new());
        while let Some(from) = next {
            let page = history::events(view.as_ref(), &range, from, last, limits).unwrap();
            assert!(
                page.next.is_none_or(|next| next > from),
                "pages make progress"
            );
            found.extend(page.events);
            next = page.next;
        }
        let expected: Vec<_> = self
            .model
            .events
            .iter()
            .filter(|event| (first..=last).contains(&event.revision.main))
            .filter(|event| range.contains(&event.kv.key))
            .cloned()
            .collect();
        assert_eq!(
            strip(&found),
            strip(&expected),
            "{range:?} {first}..={last}"
        );
        for (found, expected) in found.iter().zip(&expected) {
            let compacted = expected.revision.main <= self.model.compacted;
            let prev = expected.prev_kv.clone().filter(|_| !compacted);
            assert_eq!(history::prev_kv(view.as_ref(), found).unwrap(), prev);
        }
    }

    /// The hash does not depend on what is removed physically, but on what can be read.
    fn check_hash(&mut self) {
        let (view, unremoved) = (self.kv.view(), self.unremoved.view());
        let revision = self.revision();
        let pair = (
            hash::hash_kv(view.as_ref(), revision),
            hash::hash_kv(unremoved.as_ref(), revision),
        );
        match (pair, self.model.readable(revision)) {
            ((Ok(one), Ok(other)), Ok(at)) => {
                assert_eq!(one, other);
                assert_eq!(
                    (one.revision, one.compact_revision),
                    (at, self.model.compacted)
                );
                let before = hash::hash_kv(view.as_ref(), at - 1);
                if let (true, Ok(before)) = (at > 1, before) {
                    assert_ne!(one.hash, before.hash, "one revision more is another hash");
                }
            }
            ((Err(Error::Refused(one)), Err(Error::Refused(other))), Err(expected)) => {
                assert_eq!((one, other), (expected, expected));
            }
            other => panic!("{other:?}"),
        }
    }

    fn round(&mut self) {
        self.write();
        if self.random.random_bool(0.5) {
            let items_max = self.random.random_range(0..6);
            remove_some(self.kv, items_max);
        }
        self.check_ranges();
        self.check_pages();
        self.check_events();
        self.check_hash();
    }

    /// After removal has caught up, nothing is left that no read can see.
    fn check_removed(&self) {
        while remove_some(self.kv, 7) {}
        let (view, compacted) = (self.kv.view(), self.model.compacted);
        let (start, end) = codec::table_bounds(Table::Events);
        for stored in view.range(start, end, Direction::Forward) {
            let (key, record) = stored.unwrap();
            let events = codec::decode_events(codec::event_revision(&key).unwrap(), record);
            assert!(events.unwrap().last().unwrap().0.main >= compacted);
        }
        let (start, end) = codec::table_bounds(Table::Versions);
        for stored in view.range(start, end, Direction::Forward) {
            let (key, record) = stored.unwrap();
            let (_, began) = codec::version_of(&key).unwrap();
            let past = PastPair::decode(record, began).unwrap();
            assert!(
                past.end.main > compacted || began.main == compacted,
                "{past:?}"
            );
        }
    }
}

fn event(revision: Revision, kind: EventKind, kv: KeyValue, before: &State) -> Event {
    let prev_kv = before.get(&kv.key).cloned();
    Event {
        revision,
        kind,
        kv,
        prev_revision: None,
        prev_kv,
    }
}

/// Events without what history leaves out and the model does not know.
fn strip(events: &[Event]) -> Vec<Event> {
    let bare = |event: &Event| Event {
        prev_revision: None,
        prev_kv: None,
        ..event.clone()
    };
    events.iter().map(bare).collect()
}

fn run(kv: &dyn Kv, seed: u64, rounds: usize) {
    let random = StdRng::seed_from_u64(seed);
    let (unremoved, model) = (MemKv::new(), Model::new());
    let mut run = Run {
        random,
        kv,
        unremoved,
        model,
    };
    for _ in 0..rounds {
        run.round();
    }
    run.check_removed();
    assert!(
        run.model.current() > 100 && run.model.compacted > 50,
        "the run did something"
    );
    for _ in 0..50 {
        run.check_ranges();
        run.check_events();
        run.check_hash();
    }
}

#[test]
fn the_memory_engine_follows_the_model() {
    for seed in 0..3 {
        run(&MemKv::new(), seed, 300);
    }
}

#[test]
fn the_disk_engine_follows_the_model() {
    let folder = tempfile::tempdir().unwrap();
    let options = DiskOptions {
        memtable_bytes: 64 * 1024,
        ..DiskOptions::default()
    };
    run(&FjallKv::create(folder.path(), &options).unwrap(), 100, 300);
}
