//! A view with changes on top: how the requests of one applied batch see each other's writes
//! before any of them is in the store.

use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::fmt;
use std::iter::Peekable;
use std::ops::Bound;
use std::sync::Arc;

use bytes::Bytes;

use crate::storage::codec::{self, EventRecord, StoredEvent};
use crate::storage::kv::{Direction, KvError, Pairs, View, WriteBatch, bounds_cross};

use super::{Revision, WriteTxn, history};

/// Pending changes over a base view; itself a view of the outcome, but for the events that are still
/// gathered.
pub struct Overlay {
    base: Arc<dyn View>,
    /// `None` deletes the key.
    changes: BTreeMap<Bytes, Option<Bytes>>,
    /// Those that are to be stored together, in order.
    events: Vec<StoredEvent>,
}

impl Overlay {
    /// No changes over `base`.
    #[must_use]
    pub fn new(base: Arc<dyn View>) -> Overlay {
        Overlay {
            base,
            changes: BTreeMap::new(),
            events: Vec::new(),
        }
    }

    /// Sets a stored key of any table.
    pub fn put(&mut self, key: Bytes, value: Bytes) {
        self.changes.insert(key, Some(value));
    }

    /// Removes a stored key of any table.
    pub fn delete(&mut self, key: Bytes) {
        self.changes.insert(key, None);
    }

    /// Whether nothing was changed.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.changes.is_empty() && self.events.is_empty()
    }

    /// Puts the events recorded so far into as few pairs as hold them: those that follow come into
    /// others. What a member stores must not depend on how much it applied at once, so this is for the
    /// end of each log entry.
    pub fn seal_events(&mut self) {
        for (key, record) in codec::encode_events(&self.events) {
            self.changes.insert(key, Some(record));
        }
        self.events.clear();
    }

    /// Records an event, which is later than all others.
    pub(super) fn record(&mut self, revision: Revision, event: EventRecord) {
        self.events.push((revision, event));
    }

    /// How many events are gathered.
    #[must_use]
    pub fn recorded(&self) -> usize {
        self.events.len()
    }

    /// Forgets all but the first of the events that are gathered.
    pub(super) fn forget_after(&mut self, recorded: usize) {
        self.events.truncate(recorded);
    }

    /// The event at `revision`, if there is one.
    ///
    /// # Errors
    ///
    /// Storage failures.
    pub(super) fn event(&self, revision: Revision) -> Result<Option<EventRecord>, KvError> {
        if let Ok(at) = self.events.binary_search_by_key(&revision, |event| event.0) {
            return Ok(Some(self.events[at].1.clone()));
        }
        let mut found = history::stored(self, revision, revision);
        Ok(found.next().transpose()?.map(|(_, event)| event))
    }

    /// Begins one etcd transaction; unless it is committed, it leaves nothing behind.
    ///
    /// # Errors
    ///
    /// Storage failures.
    pub fn begin(&mut self) -> Result<WriteTxn<'_>, KvError> {
        WriteTxn::begin(self)
    }

    /// All changes, as the one batch that makes them real.
    #[must_use]
    pub fn into_batch(mut self) -> WriteBatch {
        self.seal_events();
        self.changes.into_iter().collect()
    }

    /// Sets or removes a key and returns what undoes that.
    pub(super) fn replace(&mut self, key: Bytes, value: Option<Bytes>) -> Undo {
        let old = self.changes.insert(key.clone(), value);
        Undo { key, old }
    }

    /// Takes one change back. Several have to be taken back in reverse order.
    pub(super) fn undo(&mut self, undo: Undo) {
        match undo.old {
            Some(old) => self.changes.insert(undo.key, old),
            None => self.changes.remove(&undo.key),
        };
    }
}

/// A key's pending change as it was before another one.
#[derive(Debug)]
pub(super) struct Undo {
    key: Bytes,
    old: Option<Option<Bytes>>,
}

impl fmt::Debug for Overlay {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Overlay")
            .field("base", &self.base)
            .field("changes", &self.changes.len())
            .field("events", &self.events.len())
            .finish()
    }
}

impl View for Overlay {
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, KvError> {
        match self.changes.get(key) {
            Some(change) => Ok(change.clone()),
            None => self.base.get(key),
        }
    }

    fn range(&self, start: Bound<Bytes>, end: Bound<Bytes>, direction: Direction) -> Pairs<'_> {
        if bounds_cross(&start, &end) {
            return Box::new(std::iter::empty());
        }
        let changes = self.changes.range::<Bytes, _>((start.clone(), end.clone()));
        let mut changes: Changes<'_> = match direction {
            Direction::Forward => Box::new(changes),
            Direction::Reverse => Box::new(changes.rev()),
        };
        let base = self.base.range(start, end, direction);
        match changes.next() {
            None => base,
            Some(first) => {
                let changes: Changes<'_> = Box::new(std::iter::once(first).chain(changes));
                let (base, changes) = (base.peekable(), changes.peekable());
                Box::new(Merge {
                    base,
                    changes,
                    direction,
                })
            }
        }
    }
}

type Changes<'a> = Box<dyn Iterator<Item = (&'a Bytes, &'a Option<Bytes>)> + Send + 'a>;

/// Pairs of the base, with changed ones replaced, added and left out.
struct Merge<'a> {
    base: Peekable<Pairs<'a>>,
    changes: Peekable<Changes<'a>>,
    direction: Direction,
}

impl Merge<'_> {
    /// Whether the next change comes before, with or after the next pair of the base.
    fn next_change(&mut self) -> Option<Ordering> {
        let (changed, _) = self.changes.peek()?;
        let order = match self.base.peek() {
            None => Ordering::Less,
            // Let the error out first.
            Some(Err(_)) => Ordering::Greater,
            Some(Ok((key, _))) => match self.direction {
                Direction::Forward => (*changed).cmp(key),
                Direction::Reverse => key.cmp(*changed),
            },
        };
        Some(order)
    }
}

impl Iterator for Merge<'_> {
    type Item = Result<(Bytes, Bytes), KvError>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            match self.next_change() {
                None | Some(Ordering::Greater) => return self.base.next(),
                Some(Ordering::Equal) => drop(self.base.next()),
                Some(Ordering::Less) => {}
            }
            let (key, change) = self.changes.next()?;
            if let Some(value) = change {
                return Some(Ok((key.clone(), value.clone())));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use rand::rngs::StdRng;
    use rand::{RngExt, SeedableRng};

    use super::*;
    use crate::storage::kv::{Kv, MemKv};

    fn key(random: &mut StdRng) -> Bytes {
        Bytes::from(vec![random.random_range(1..6), random.random_range(0..6)])
    }

    fn bound(random: &mut StdRng) -> Bound<Bytes> {
        match random.random_range(0..3) {
            0 => Bound::Unbounded,
            1 => Bound::Included(key(random)),
            _ => Bound::Excluded(key(random)),
        }
    }

    /// Base, changes and changes taken back against one map, in both directions.
    #[test]
    fn shows_what_its_batch_will_make() {
        let mut random = StdRng::seed_from_u64(11);
        let (kv, mut model) = (MemKv::new(), BTreeMap::new());
        for _ in 0..300 {
            let mut overlay = Overlay::new(kv.view());
            for _ in 0..random.random_range(0..12) {
                let (key, value) = (key(&mut random), key(&mut random));
                let value = random.random_bool(0.6).then_some(value);
                if random.random_bool(0.2) {
                    let undo = overlay.replace(key, value);
                    overlay.undo(undo);
                } else if let Some(value) = value {
                    overlay.put(key.clone(), value.clone());
                    model.insert(key, value);
                } else {
                    overlay.delete(key.clone());
                    model.remove(&key);
                }
            }
            let probe = key(&mut random);
            assert_eq!(overlay.get(&probe).unwrap().as_ref(), model.get(&probe));
            let (start, end) = (bound(&mut random), bound(&mut random));
            let mut expected: Vec<(Bytes, Bytes)> = Vec::new();
            if !bounds_cross(&start, &end) {
                let found = model.range((start.clone(), end.clone()));
                expected.extend(found.map(|(key, value)| (key.clone(), value.clone())));
            }
            for direction in [Direction::Forward, Direction::Reverse] {
                let found = overlay.range(start.clone(), end.clone(), direction);
                let found: Result<Vec<_>, _> = found.collect();
                assert_eq!(found.unwrap(), expected, "{direction:?}");
                expected.reverse();
            }
            kv.commit(overlay.into_batch()).unwrap();
        }
    }
}
