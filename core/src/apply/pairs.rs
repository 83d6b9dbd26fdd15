//! The current pairs of the keys written last, in memory. Most writes replace a pair that was written
//! not long ago, and a compare mostly asks for one; to find it in the store takes longer than all else
//! that a put does to the overlay. Owned by `state`, which is alone in changing the store.

use std::fmt;
use std::ops::Bound;
use std::sync::Arc;

use bytes::Bytes;
use quick_cache::Weighter;
use quick_cache::sync::Cache;

use crate::storage::codec::Table;
use crate::storage::kv::{Direction, KvError, Pairs, View, WriteBatch};

/// Bytes of keys and records kept.
const KEPT_BYTES_MAX: u64 = 32 << 20;
/// A record larger than this is not kept: it would put out many others.
const RECORD_BYTES_MAX: usize = 64 << 10;
/// What a pair takes in memory beside its bytes, about.
const OVERHEAD_BYTES: usize = 128;
/// How many pairs to expect.
const PAIRS_EXPECTED: usize = 64 << 10;

#[derive(Debug, Clone)]
struct Weight;

impl Weighter<Bytes, Bytes> for Weight {
    fn weight(&self, key: &Bytes, record: &Bytes) -> u64 {
        (key.len() + record.len() + OVERHEAD_BYTES) as u64
    }
}

/// Records of the table `keys`, by their stored keys. Cheap to clone; all clones are the same.
#[derive(Clone)]
pub(super) struct RecentPairs(Arc<Cache<Bytes, Bytes, Weight>>);

impl fmt::Debug for RecentPairs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RecentPairs")
            .field("pairs", &self.0.len())
            .finish()
    }
}

impl RecentPairs {
    pub(super) fn new() -> Self {
        let cache = Cache::with_weighter(PAIRS_EXPECTED, KEPT_BYTES_MAX, Weight);
        Self(Arc::new(cache))
    }

    /// `view`, which has to be of the store as it is now, with these pairs found first.
    pub(super) fn before(&self, view: Arc<dyn View>) -> Arc<dyn View> {
        Arc::new(Found {
            view,
            recent: self.clone(),
        })
    }

    /// Takes in what is about to be committed. If the commit fails, nothing is asked for any more.
    pub(super) fn learn(&self, batch: &WriteBatch) {
        for (key, record) in batch.ops() {
            if !Table::Keys.holds(key) {
                continue;
            }
            match record {
                Some(record) if record.len() <= RECORD_BYTES_MAX => {
                    self.0.insert(key.clone(), record.clone());
                }
                _ => drop(self.0.remove(key)),
            }
        }
    }

    /// Forgets all: the store is another one.
    pub(super) fn clear(&self) {
        self.0.clear();
    }
}

#[derive(Debug)]
struct Found {
    view: Arc<dyn View>,
    recent: RecentPairs,
}

impl View for Found {
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, KvError> {
        if Table::Keys.holds(key)
            && let Some(record) = self.recent.0.get(key)
        {
            return Ok(Some(record));
        }
        self.view.get(key)
    }

    fn range(&self, start: Bound<Bytes>, end: Bound<Bytes>, direction: Direction) -> Pairs<'_> {
        self.view.range(start, end, direction)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::codec::{key_key, lease_key};
    use crate::storage::kv::{Kv, MemKv};

    #[test]
    fn what_is_found_first_is_what_the_store_has() {
        let (kv, recent) = (MemKv::new(), RecentPairs::new());
        let found = |key: &Bytes| recent.before(kv.view()).get(key).unwrap();
        let write = |ops: Vec<(Bytes, Option<Bytes>)>| {
            let batch: WriteBatch = ops.into_iter().collect();
            recent.learn(&batch);
            kv.commit(batch).unwrap();
        };
        let (key, other, lease) = (key_key(b"k"), key_key(b"other"), lease_key(7));
        let (one, two) = (Bytes::from("one"), Bytes::from("two"));
        let large = Bytes::from(vec![0; RECORD_BYTES_MAX + 1]);
        write(vec![
            (key.clone(), Some(one.clone())),
            (lease.clone(), Some(one.clone())),
        ]);
        assert_eq!(recent.0.len(), 1, "no other table's");
        assert_eq!((found(&key), found(&lease)), (Some(one.clone()), Some(one)));
        for record in [
            Some(two.clone()),
            None,
            Some(two.clone()),
            Some(large.clone()),
        ] {
            write(vec![(key.clone(), record.clone())]);
            assert_eq!(found(&key), record);
            assert_eq!(found(&other), None);
        }
        assert_eq!(
            recent.0.len(),
            0,
            "what is too large is not kept, nor what was before"
        );
        write(vec![(key.clone(), Some(two))]);
        recent.clear();
        kv.commit([(key.clone(), None)].into_iter().collect())
            .unwrap();
        assert_eq!(found(&key), None);
    }

    #[test]
    fn it_stays_small() {
        let recent = RecentPairs::new();
        let record = Bytes::from(vec![0; 1024]);
        let keys = (0..2 * KEPT_BYTES_MAX / 1024).map(u64::to_be_bytes);
        recent.learn(
            &keys
                .map(|key| (key_key(&key), Some(record.clone())))
                .collect(),
        );
        assert!(recent.0.weight() <= KEPT_BYTES_MAX);
        assert!(
            recent.0.weight() > KEPT_BYTES_MAX / 2,
            "{}",
            recent.0.weight()
        );
    }
}
