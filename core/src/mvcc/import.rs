//! Filling an empty store with the history of another one, item by item in the order of revisions. Used
//! by `backup` to restore.
//!
//! A history that was compacted has gaps below its compact revision: the pairs visible there are left,
//! and what follows is whole. So below it an item is taken as it stands, and above it each item has to
//! continue what was there before.

use std::collections::BTreeSet;
use std::sync::Arc;

use bytes::Bytes;
use quorate_proto::mvccpb::KeyValue;

use crate::storage::codec::{self, EventRecord, MetaKey, Pair, PastPair};
use crate::storage::kv::{Direction, Kv, KvError, View};

use super::{Overlay, Revision, meta};

/// Bytes of changes written in one batch, one item more at most.
const BATCH_BYTES: usize = 1 << 20;
/// Changes written in one batch, those of one item more at most.
const BATCH_CHANGES_MAX: usize = 4_096;

/// Why an item is not taken.
#[derive(Debug, Clone, thiserror::Error)]
pub enum ImportError {
    /// It does not continue what is there; the history it is of does not hold together.
    #[error("revision {revision}: {what}")]
    Inconsistent {
        /// The item's revision.
        revision: Revision,
        /// What does not fit.
        what: String,
    },
    /// The store failed.
    #[error(transparent)]
    Storage(#[from] KvError),
}

/// A history on its way into a store.
#[derive(Debug)]
pub struct Import {
    kv: Arc<dyn Kv>,
    overlay: Overlay,
    bytes: usize,
    changes: usize,
    whole_after: i64,
    keep_from: i64,
    granted: BTreeSet<i64>,
    last: Option<Revision>,
    /// The last main revision with a deletion.
    deleted_in: i64,
    pairs: u64,
}

impl Import {
    /// Into `kv`, which is empty. The history is whole after main revision `whole_after`; of what a
    /// read or a watch at `keep_from` or later does not show, nothing is kept. Keys hang on their
    /// leases where these are in `granted`.
    #[must_use]
    pub fn new(kv: Arc<dyn Kv>, whole_after: i64, keep_from: i64, granted: BTreeSet<i64>) -> Self {
        let overlay = Overlay::new(kv.view());
        Self {
            kv,
            overlay,
            bytes: 0,
            changes: 0,
            whole_after,
            keep_from,
            granted,
            last: None,
            deleted_in: 0,
            pairs: 0,
        }
    }

    /// Takes the pair that a put at `revision` made.
    ///
    /// # Errors
    ///
    /// Its revisions or its version are not those that follow; storage failures.
    pub fn put(&mut self, revision: Revision, kv: KeyValue) -> Result<(), ImportError> {
        self.follow(revision)?;
        let KeyValue {
            key,
            create_revision,
            mod_revision,
            version,
            value,
            lease,
        } = kv;
        let pair = Pair {
            create_revision,
            mod_revision: revision,
            version,
            lease,
            value,
        };
        let inconsistent = |what: &str| {
            let what = format!(
                "{what}: created at {create_revision}, changed at {mod_revision}, version {version}"
            );
            Err(ImportError::Inconsistent { revision, what })
        };
        let is_possible = mod_revision == revision.main
            && (1..=mod_revision).contains(&create_revision)
            && version >= 1;
        if !is_possible {
            return inconsistent("a pair that cannot be");
        }
        let old = self.current(&key)?;
        if revision.main > self.whole_after {
            let expected = match &old {
                Some(old) => (old.create_revision, old.version.saturating_add(1)),
                None => (revision.main, 1),
            };
            if (create_revision, version) != expected {
                return inconsistent("a pair that does not continue the one before it");
            }
        }
        if old.is_none() {
            self.pairs += 1;
        }
        self.attach(&key, old.as_ref().map_or(0, |old| old.lease), lease);
        self.set(codec::key_key(&key), Some(pair.encode()));
        self.end(revision, &key, old, false)
    }

    /// Takes a deletion.
    ///
    /// # Errors
    ///
    /// There is nothing to delete; storage failures.
    pub fn delete(&mut self, revision: Revision, key: &Bytes) -> Result<(), ImportError> {
        self.follow(revision)?;
        let old = self.current(key)?;
        match &old {
            Some(old) => {
                self.pairs -= 1;
                self.attach(key, old.lease, 0);
                self.set(codec::key_key(key), None);
            }
            None if revision.main > self.whole_after => {
                let what = "a deletion of a key that is not there".to_owned();
                return Err(ImportError::Inconsistent { revision, what });
            }
            None => {}
        }
        self.end(revision, key, old, true)?;
        self.deleted_in = revision.main;
        Ok(())
    }

    /// Sets (`Some`) or removes a stored key of another table.
    pub fn set(&mut self, stored_key: Bytes, value: Option<Bytes>) {
        self.bytes += stored_key.len() + value.as_ref().map_or(0, Bytes::len);
        self.changes += 1;
        match value {
            Some(value) => self.overlay.put(stored_key, value),
            None => self.overlay.delete(stored_key),
        }
    }

    /// Writes what is left, and the current and the compact revision; there is none of the latter
    /// below 1. Tells how many keys there are. Nothing is synced.
    ///
    /// # Errors
    ///
    /// The current revision is below the last one taken; storage failures.
    pub fn finish(mut self, current: i64, compacted: i64) -> Result<u64, ImportError> {
        if let Some(revision) = self.last.filter(|last| last.main > current) {
            let what = format!("it is above the current revision, {current}");
            return Err(ImportError::Inconsistent { revision, what });
        }
        if current > meta::FIRST_REVISION {
            meta::set_number(&mut self.overlay, MetaKey::CurrentRevision, current);
        }
        if compacted > 0 {
            meta::set_number(&mut self.overlay, MetaKey::CompactRevision, compacted);
        }
        self.write()?;
        Ok(self.pairs)
    }

    /// Checks the order.
    fn follow(&mut self, revision: Revision) -> Result<(), ImportError> {
        let is_next = self.last.is_none_or(|last| last < revision);
        if !is_next || revision.main < 1 || revision.sub < 0 {
            let last = self
                .last
                .map_or("nothing".to_owned(), |last| last.to_string());
            let what = format!("it comes after {last}");
            return Err(ImportError::Inconsistent { revision, what });
        }
        self.last = Some(revision);
        Ok(())
    }

    fn current(&self, key: &[u8]) -> Result<Option<Pair>, KvError> {
        let record = self.overlay.get(&codec::key_key(key))?;
        record.map(Pair::decode).transpose()
    }

    fn attach(&mut self, key: &[u8], from: i64, to: i64) {
        if from == to {
            return;
        }
        if self.granted.contains(&from) {
            self.set(codec::lease_key_key(from, key), None);
        }
        if self.granted.contains(&to) {
            self.set(codec::lease_key_key(to, key), Some(Bytes::new()));
        }
    }

    /// Records the event at `revision`, and keeps the pair that it ended, as far as either can be seen.
    fn end(
        &mut self,
        revision: Revision,
        key: &Bytes,
        old: Option<Pair>,
        deleted: bool,
    ) -> Result<(), ImportError> {
        if revision.main >= self.keep_from {
            let record = EventRecord {
                deleted,
                replaced: old.as_ref().map(|old| old.mod_revision),
                previous: self.previous(revision, key, old.as_ref())?,
                key: key.clone(),
            };
            self.bytes += record.key.len();
            self.changes += 1;
            self.overlay.record(revision, record);
        }
        if let Some(pair) = old {
            let began = pair.mod_revision;
            // As compaction leaves it: an event shows the pair it made, also one that ended at once.
            if revision.main > self.keep_from || began.main == self.keep_from {
                let past = PastPair {
                    pair,
                    end: revision,
                };
                self.set(codec::version_key(key, began), Some(past.encode()));
            }
        }
        if self.bytes >= BATCH_BYTES || self.changes >= BATCH_CHANGES_MAX {
            self.write()?;
        }
        Ok(())
    }

    /// The revision of the pair visible before the whole transaction of `revision`.
    fn previous(
        &self,
        revision: Revision,
        key: &Bytes,
        old: Option<&Pair>,
    ) -> Result<Option<Revision>, KvError> {
        let earlier = match old {
            Some(old) if old.mod_revision.main == revision.main => Some(old.mod_revision),
            Some(old) => return Ok(Some(old.mod_revision)),
            None if self.deleted_in == revision.main => {
                let (start, end) = codec::versions_until(key, i64::MAX);
                let newest = self.overlay.range(start, end, Direction::Forward).next();
                let ended = newest.map(|stored| {
                    let (stored, record) = stored?;
                    let (_, began) = codec::version_of(&stored)?;
                    Ok::<_, KvError>(PastPair::decode(record, began)?.end)
                });
                ended.transpose()?.filter(|end| end.main == revision.main)
            }
            None => None,
        };
        let Some(earlier) = earlier else {
            return Ok(None);
        };
        let event = self.overlay.event(earlier)?;
        let lost = || KvError::corrupt(format!("the event of {earlier}, written before, is gone"));
        Ok(event.ok_or_else(lost)?.previous)
    }

    fn write(&mut self) -> Result<(), KvError> {
        (self.bytes, self.changes) = (0, 0);
        let emptied = Overlay::new(self.kv.view());
        let batch = std::mem::replace(&mut self.overlay, emptied).into_batch();
        self.kv.commit(batch)?;
        self.overlay = Overlay::new(self.kv.view());
        Ok(())
    }
}
