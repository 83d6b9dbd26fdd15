//! The in-memory engine: an immutable ordered tree, so that a view costs a reference count.
//!
//! Used by in-memory nodes and by simulations. Nothing survives the process.

use std::fmt;
use std::ops::Bound;
use std::sync::{Arc, PoisonError, RwLock};

use bytes::Bytes;
use imbl::OrdMap;

use super::{Direction, Kv, KvError, Pairs, View, WriteBatch, bounds_cross};

/// A [`Kv`] in memory, with views that cost nothing and share what did not change.
#[derive(Default)]
pub struct MemKv {
    state: RwLock<State>,
}

#[derive(Clone, Default)]
struct State {
    pairs: OrdMap<Bytes, Bytes>,
    /// Sum of the lengths of all keys and values.
    bytes: u64,
}

impl MemKv {
    /// An empty store.
    #[must_use]
    pub fn new() -> MemKv {
        MemKv::default()
    }
}

impl fmt::Debug for MemKv {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemKv").finish_non_exhaustive()
    }
}

impl Kv for MemKv {
    fn view(&self) -> Arc<dyn View> {
        let state = self.state.read().unwrap_or_else(PoisonError::into_inner);
        Arc::new(MemView {
            pairs: state.pairs.clone(),
        })
    }

    fn commit(&self, batch: WriteBatch) -> Result<(), KvError> {
        batch.check()?;
        let mut state = self.state.write().unwrap_or_else(PoisonError::into_inner);
        // Readers take the lock too, so the steps in between are never seen.
        for (key, value) in batch.into_final_ops() {
            let key_bytes = key.len() as u64;
            let (added, old) = match value {
                Some(value) => (
                    key_bytes + value.len() as u64,
                    state.pairs.insert(key, value),
                ),
                None => (0, state.pairs.remove(&key)),
            };
            let removed = old.map_or(0, |old| key_bytes + old.len() as u64);
            state.bytes = state.bytes + added - removed;
        }
        Ok(())
    }

    /// Does nothing: memory is all there is.
    fn persist(&self) -> Result<(), KvError> {
        Ok(())
    }

    fn disk_bytes(&self) -> u64 {
        self.state
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .bytes
    }

    /// Nothing is kept longer than a view shows it.
    fn reclaim(&self) -> Result<(), KvError> {
        Ok(())
    }
}

/// One state of a [`MemKv`].
struct MemView {
    pairs: OrdMap<Bytes, Bytes>,
}

impl fmt::Debug for MemView {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemView")
            .field("pairs", &self.pairs.len())
            .finish()
    }
}

impl View for MemView {
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, KvError> {
        Ok(self.pairs.get(key).cloned())
    }

    fn range(&self, start: Bound<Bytes>, end: Bound<Bytes>, direction: Direction) -> Pairs<'_> {
        if bounds_cross(&start, &end) {
            return Box::new(std::iter::empty());
        }
        let found = self.pairs.range::<_, Bytes>((start, end));
        let owned = |(key, value): (&Bytes, &Bytes)| Ok((key.clone(), value.clone()));
        match direction {
            Direction::Forward => Box::new(found.map(owned)),
            Direction::Reverse => Box::new(found.rev().map(owned)),
        }
    }
}
