//! The leases of a [`MemStore`](super::MemStore): until when each lives, and which keys go with it.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use bytes::Bytes;
use tokio::time::Instant;

/// One lease.
#[derive(Debug)]
pub(super) struct Granted {
    pub(super) ttl: Duration,
    pub(super) until: Instant,
    keys: BTreeSet<Bytes>,
}

#[derive(Debug, Default)]
pub(super) struct Leases {
    by_id: BTreeMap<i64, Granted>,
    by_end: BTreeSet<(Instant, i64)>,
}

impl Leases {
    pub(super) fn get(&self, id: i64) -> Option<&Granted> {
        self.by_id.get(&id)
    }

    /// All ids, in order.
    pub(super) fn ids(&self) -> impl Iterator<Item = i64> {
        self.by_id.keys().copied()
    }

    /// The lease that runs out first, and when.
    pub(super) fn first_due(&self) -> Option<(Instant, i64)> {
        self.by_end.first().copied()
    }

    /// A positive id that no lease has.
    pub(super) fn free_id(&self) -> i64 {
        let last = self.by_id.last_key_value().map_or(0, |(id, _)| *id);
        last.max(0) + 1
    }

    /// Adds a lease, unless there is one with this id.
    pub(super) fn grant(&mut self, id: i64, ttl: Duration, now: Instant) -> bool {
        if self.by_id.contains_key(&id) {
            return false;
        }
        let until = now + ttl;
        self.by_end.insert((until, id));
        let keys = BTreeSet::new();
        self.by_id.insert(id, Granted { ttl, until, keys });
        true
    }

    /// Gives a lease its full time again, and says how long that is.
    pub(super) fn renew(&mut self, id: i64, now: Instant) -> Option<Duration> {
        let lease = self.by_id.get_mut(&id)?;
        self.by_end.remove(&(lease.until, id));
        lease.until = now + lease.ttl;
        self.by_end.insert((lease.until, id));
        Some(lease.ttl)
    }

    /// Gives every lease its full time again.
    pub(super) fn renew_all(&mut self, now: Instant) {
        let ids: Vec<i64> = self.by_id.keys().copied().collect();
        for id in ids {
            self.renew(id, now);
        }
    }

    /// Takes a lease out and returns its keys in key order.
    pub(super) fn remove(&mut self, id: i64) -> Option<BTreeSet<Bytes>> {
        let lease = self.by_id.remove(&id)?;
        self.by_end.remove(&(lease.until, id));
        Some(lease.keys)
    }

    /// Moves a key from one lease to another; 0 is none.
    pub(super) fn reattach(&mut self, key: Bytes, from: i64, to: i64) {
        if from == to {
            return;
        }
        if let Some(lease) = self.by_id.get_mut(&from) {
            lease.keys.remove(&key);
        }
        if let Some(lease) = self.by_id.get_mut(&to) {
            lease.keys.insert(key);
        }
    }
}
