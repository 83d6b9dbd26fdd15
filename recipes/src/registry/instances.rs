//! The instances of a view, which shares what did not change with the view before: a large service that changes
//! all the time costs each of its followers little.

use std::fmt;
use std::sync::Arc;

use bytes::Bytes;
use imbl::shared_ptr::DefaultSharedPtr;
use imbl::{OrdMap, ordmap};

use super::view::Endpoint;
use crate::keys::{KeySpace, encode};

/// The instances of a service, in the order of their keys, which is that of their ids but for control characters,
/// `%` and `/`. Cheap to clone.
pub struct Instances<M> {
    space: Arc<KeySpace>,
    by_key: OrdMap<Bytes, Arc<Endpoint<M>>>,
}

impl<M> Instances<M> {
    pub(super) fn new(space: KeySpace) -> Self {
        Self {
            space: Arc::new(space),
            by_key: OrdMap::new(),
        }
    }

    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.by_key.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.by_key.is_empty()
    }

    /// Each of them.
    #[must_use]
    pub fn iter(&self) -> Iter<'_, M> {
        Iter(self.by_key.iter())
    }

    /// The one of this id, in time that grows with the logarithm of their number.
    #[must_use]
    pub fn get(&self, id: &str) -> Option<&Arc<Endpoint<M>>> {
        let at = |suffix: &str| self.by_key.get(self.space.key(suffix).as_bytes());
        // Other programs do not escape their ids.
        at(&encode(id)).or_else(|| at(id))
    }

    pub(super) fn has(&self, key: &Bytes) -> bool {
        self.by_key.contains_key(key)
    }

    pub(super) fn insert(&mut self, key: Bytes, endpoint: Arc<Endpoint<M>>) {
        self.by_key.insert(key, endpoint);
    }

    pub(super) fn remove(&mut self, key: &Bytes) {
        self.by_key.remove(key);
    }

    pub(super) fn clear(&mut self) {
        self.by_key = OrdMap::new();
    }
}

/// See [`Instances::iter`].
pub struct Iter<'a, M>(ordmap::Iter<'a, Bytes, Arc<Endpoint<M>>, DefaultSharedPtr>);

impl<'a, M> Iterator for Iter<'a, M> {
    type Item = &'a Arc<Endpoint<M>>;

    fn next(&mut self) -> Option<Self::Item> {
        self.0.next().map(|(_, endpoint)| endpoint)
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        self.0.size_hint()
    }
}

impl<M> fmt::Debug for Iter<'_, M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Iter").finish_non_exhaustive()
    }
}

impl<'a, M> IntoIterator for &'a Instances<M> {
    type Item = &'a Arc<Endpoint<M>>;
    type IntoIter = Iter<'a, M>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

impl<M> Clone for Instances<M> {
    fn clone(&self) -> Self {
        Self {
            space: Arc::clone(&self.space),
            by_key: self.by_key.clone(),
        }
    }
}

impl<M: PartialEq> PartialEq for Instances<M> {
    fn eq(&self, other: &Self) -> bool {
        self.iter().eq(other)
    }
}

impl<M: fmt::Debug> fmt::Debug for Instances<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self).finish()
    }
}
