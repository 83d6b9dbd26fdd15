//! What a [`MemStore`](super::MemStore) holds: the live keys, every change that ever was, and the
//! leases. All of it is synchronous; the time is handed in.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::Arc;

use bytes::Bytes;
use quorate_proto::Reason;
use quorate_proto::etcdserverpb::ResponseHeader;
use quorate_proto::mvccpb::event::EventType;
use quorate_proto::mvccpb::{Event, KeyValue};
use tokio::time::Instant;

use super::lease::Leases;
use crate::keys::{KeyRange, Revision};

/// The revision of a store that nothing was written to.
const FIRST_REVISION: i64 = 1;

/// One revision of a [`MemStore`](super::MemStore): what one transaction, or the end of one lease,
/// changed.
#[derive(Debug, Clone, PartialEq)]
pub struct Commit {
    /// The revision.
    pub revision: Revision,
    /// When it was made, in virtual time.
    pub at: Instant,
    /// The changes in the order in which they were done, each with the pair before it. Of a deletion
    /// `kv` has only the key and the revision.
    pub changes: Vec<Event>,
}

#[derive(Debug)]
pub(super) struct State {
    live: BTreeMap<Bytes, KeyValue>,
    /// Revision `r` is at `r - 2`. Kept whole, also what was compacted: a watch that is behind is not
    /// disturbed by a compaction, and checkers read it.
    log: Vec<Arc<Commit>>,
    pub(super) compacted: i64,
    pub(super) cluster_id: u64,
    pub(super) leases: Leases,
    /// How often all watches were ended.
    pub(super) endings: u64,
}

impl State {
    pub(super) fn new() -> Self {
        Self {
            live: BTreeMap::new(),
            log: Vec::new(),
            compacted: 0,
            cluster_id: super::MemStore::CLUSTER_ID,
            leases: Leases::default(),
            endings: 0,
        }
    }

    pub(super) fn revision(&self) -> i64 {
        FIRST_REVISION + i64::try_from(self.log.len()).expect("memory ends before")
    }

    pub(super) fn header(&self) -> ResponseHeader {
        ResponseHeader {
            cluster_id: self.cluster_id,
            member_id: 1,
            raft_term: 2,
            revision: self.revision(),
        }
    }

    /// The commits from a revision on.
    pub(super) fn since(&self, revision: i64) -> &[Arc<Commit>] {
        let before = usize::try_from(revision - FIRST_REVISION - 1).unwrap_or(0);
        self.log.get(before..).unwrap_or(&[])
    }

    pub(super) fn get(&self, key: &[u8]) -> Option<&KeyValue> {
        self.live.get(key)
    }

    /// The live pairs of a range in key order.
    pub(super) fn scan(&self, range: &KeyRange) -> impl Iterator<Item = &KeyValue> {
        pairs(&self.live, range)
    }

    /// The pairs of a range as they were at a revision; 0 and less is now. `pending` are the changes
    /// made after the current revision and not committed yet.
    pub(super) fn read_at(
        &self,
        range: &KeyRange,
        revision: i64,
        pending: &[Event],
    ) -> Result<Vec<KeyValue>, Reason> {
        if revision > self.revision() {
            return Err(Reason::FutureRevision);
        }
        if revision <= 0 || (revision == self.revision() && pending.is_empty()) {
            return Ok(self.scan(range).cloned().collect());
        }
        if revision < self.compacted {
            return Err(Reason::Compacted);
        }
        let live = self.scan(range).map(|kv| (kv.key.clone(), kv.clone()));
        let mut then: BTreeMap<Bytes, KeyValue> = live.collect();
        let later = self.since(revision + 1).iter();
        let later = later.flat_map(|commit| &commit.changes).chain(pending);
        for change in later.rev() {
            let key = &key_of(change);
            if !range.contains(key) {
                continue;
            }
            match &change.prev_kv {
                Some(kv) => then.insert(key.clone(), kv.clone()),
                None => then.remove(key),
            };
        }
        Ok(then.into_values().collect())
    }

    /// Puts `kv` in the place of what is at its key, and attaches it to its lease.
    pub(super) fn put(&mut self, kv: KeyValue) -> Event {
        let key = kv.key.clone();
        let previous = self.replace(key, Some(kv.clone()));
        Event {
            r#type: EventType::Put.into(),
            kv: Some(kv),
            prev_kv: previous,
        }
    }

    /// Removes a key; nothing if it is not there.
    pub(super) fn remove(&mut self, key: &Bytes, revision: i64) -> Option<Event> {
        let previous = self.replace(key.clone(), None)?;
        Some(Event {
            r#type: EventType::Delete.into(),
            kv: Some(KeyValue {
                key: key.clone(),
                mod_revision: revision,
                ..Default::default()
            }),
            prev_kv: Some(previous),
        })
    }

    /// Takes changes back that were not committed.
    pub(super) fn undo(&mut self, changes: Vec<Event>) {
        for change in changes.into_iter().rev() {
            self.replace(key_of(&change), change.prev_kv);
        }
    }

    /// Makes changes a revision, if there are any.
    pub(super) fn commit(&mut self, changes: Vec<Event>, at: Instant) {
        if changes.is_empty() {
            return;
        }
        self.log.push(Arc::new(Commit {
            revision: Revision(self.revision() + 1),
            at,
            changes,
        }));
    }

    /// Ends a lease: its keys go in key order, as one revision. False when there is no such lease.
    pub(super) fn end_lease(&mut self, id: i64, at: Instant) -> bool {
        let Some(keys) = self.leases.remove(id) else {
            return false;
        };
        let revision = self.revision() + 1;
        let gone = keys.iter().filter_map(|key| self.remove(key, revision));
        let changes = gone.collect();
        self.commit(changes, at);
        true
    }

    /// Ends the leases that have run out, in the order in which they did. Returns whether any had.
    pub(super) fn expire(&mut self, now: Instant) -> bool {
        let mut any = false;
        while let Some((until, id)) = self.leases.first_due().filter(|(until, _)| *until <= now) {
            any |= self.end_lease(id, until);
        }
        any
    }

    fn replace(&mut self, key: Bytes, kv: Option<KeyValue>) -> Option<KeyValue> {
        let lease = kv.as_ref().map_or(0, |kv| kv.lease);
        let previous = match kv {
            Some(kv) => self.live.insert(key.clone(), kv),
            None => self.live.remove(&key),
        };
        let before = previous.as_ref().map_or(0, |kv| kv.lease);
        self.leases.reattach(key, before, lease);
        previous
    }
}

fn key_of(change: &Event) -> Bytes {
    change
        .kv
        .as_ref()
        .map(|kv| kv.key.clone())
        .unwrap_or_default()
}

fn pairs<'a>(
    map: &'a BTreeMap<Bytes, KeyValue>,
    range: &KeyRange,
) -> impl Iterator<Item = &'a KeyValue> {
    let start = Bound::Included(range.start.clone());
    let end = match &range.end[..] {
        [] => Bound::Included(range.start.clone()),
        [0] => Bound::Unbounded,
        // A range whose end is not after its start is empty; the map would not take it.
        _ => Bound::Excluded(range.end.clone().max(range.start.clone())),
    };
    let found = map.range((start, end));
    found.map(|(_, kv)| kv)
}
