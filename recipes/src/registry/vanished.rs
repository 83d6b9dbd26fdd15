//! The instances that vanished without a word lately, in the order in which they did, and found by their keys.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;

use super::view::Endpoint;
use crate::clock::Instant;

/// So many instances are remembered after they vanished in any case; of a larger service as many as it had at most, so
/// that all of it may vanish at once.
const MOST: usize = 10_000;

/// One of them: since when, and as it was.
pub(super) type Gone<M> = (Instant, Bytes, Arc<Endpoint<M>>);

/// Those that vanished. What is done to one of them costs time that grows with the logarithm of their number.
pub(super) struct Vanished<M> {
    /// By number, the oldest first.
    all: BTreeMap<u64, Gone<M>>,
    numbers: BTreeMap<Bytes, u64>,
    next: u64,
    /// How many are remembered.
    most: usize,
    /// The first that has not been taken as news.
    news: u64,
}

impl<M> Vanished<M> {
    pub(super) fn new() -> Self {
        Self {
            all: BTreeMap::new(),
            numbers: BTreeMap::new(),
            next: 0,
            most: MOST,
            news: 0,
        }
    }

    pub(super) fn len(&self) -> usize {
        self.all.len()
    }

    /// There are so many now that may vanish.
    pub(super) fn may_be(&mut self, present: usize) {
        self.most = self.most.max(present);
    }

    /// Adds one; returns the oldest if there would be too many.
    pub(super) fn add(
        &mut self,
        since: Instant,
        key: Bytes,
        was: Arc<Endpoint<M>>,
    ) -> Option<Gone<M>> {
        self.remove(&key);
        let oldest = match self.all.len() >= self.most {
            true => self.pop_oldest(),
            false => None,
        };
        self.numbers.insert(key.clone(), self.next);
        self.all.insert(self.next, (since, key, was));
        self.next += 1;
        oldest
    }

    /// The instance of this key has not vanished.
    pub(super) fn remove(&mut self, key: &Bytes) {
        if let Some(number) = self.numbers.remove(key) {
            self.all.remove(&number);
        }
    }

    /// Since when the oldest has been gone.
    pub(super) fn oldest(&self) -> Option<Instant> {
        let (_, (since, ..)) = self.all.first_key_value()?;
        Some(*since)
    }

    pub(super) fn pop_oldest(&mut self) -> Option<Gone<M>> {
        let (_, oldest) = self.all.pop_first()?;
        self.numbers.remove(&oldest.1);
        Some(oldest)
    }

    /// Those that were not asked for by this before.
    pub(super) fn news(&mut self) -> impl Iterator<Item = &Gone<M>> {
        let from = std::mem::replace(&mut self.news, self.next);
        self.all.range(from..).map(|(_, gone)| gone)
    }
}
