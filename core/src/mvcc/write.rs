//! One etcd transaction: puts and deletes under one new main revision, all or nothing.

use std::collections::HashMap;

use bytes::Bytes;
use quorate_proto::limits::KEY_BYTES_MAX;
use quorate_proto::mvccpb::KeyValue;
use quorate_proto::{KeyRange, Reason};

use crate::storage::codec::{self, EventRecord, MetaKey, Pair, PastPair};
use crate::storage::kv::{KvError, View};

use super::overlay::Undo;
use super::read::{self, key_value};
use super::{Error, Event, EventKind, Overlay, Revision, meta};

/// Events that are looked through for a key; more are indexed.
const EVENTS_LOOKED_THROUGH: usize = 16;

/// A transaction on an [`Overlay`]. Reads through [`view`](WriteTxn::view) see its writes so far.
/// Dropping it without [`commit`](WriteTxn::commit) takes all of them back.
#[derive(Debug)]
pub struct WriteTxn<'a> {
    overlay: &'a mut Overlay,
    /// Current revision before the transaction.
    base: i64,
    undo: Vec<Undo>,
    events: Vec<Event>,
    /// How many events of the overlay stay, whatever becomes of this transaction.
    recorded: usize,
    /// Where the first event of each key is, once there are more than are looked through.
    firsts: HashMap<Bytes, usize>,
    /// How many events are in `firsts`.
    indexed: usize,
}

/// What a transaction did.
#[derive(Debug)]
pub struct Committed {
    /// The new main revision; `None` if nothing was written, so that the current one stays.
    pub revision: Option<i64>,
    /// Its events, in the order of the operations.
    pub events: Vec<Event>,
}

impl<'a> WriteTxn<'a> {
    pub(super) fn begin(overlay: &'a mut Overlay) -> Result<WriteTxn<'a>, KvError> {
        let base = meta::current_revision(overlay)?;
        let recorded = overlay.recorded();
        Ok(WriteTxn {
            overlay,
            base,
            undo: Vec::new(),
            events: Vec::new(),
            recorded,
            firsts: HashMap::new(),
            indexed: 0,
        })
    }

    /// The store as this transaction leaves it so far. Its current revision is still the one
    /// before the transaction.
    #[must_use]
    pub fn view(&self) -> &dyn View {
        &*self.overlay
    }

    /// Main revision after what was done so far: the one before the transaction until it writes,
    /// then the new one. Headers of the inner answers show it.
    #[must_use]
    pub fn revision(&self) -> i64 {
        if self.events.is_empty() {
            self.base
        } else {
            self.base + 1
        }
    }

    /// Puts a key, attached to `lease` (0 for none), and returns the pair it replaces.
    ///
    /// # Errors
    ///
    /// Refused: an empty key, or one above 32,000 bytes. Whether the lease exists is for the
    /// caller to know.
    pub fn put(&mut self, key: Bytes, value: Bytes, lease: i64) -> Result<Option<KeyValue>, Error> {
        if key.is_empty() {
            return Err(Reason::EmptyKey.into());
        }
        if key.len() > KEY_BYTES_MAX {
            return Err(Reason::KeyTooLong.into());
        }
        let stored = codec::key_key(&key);
        let old = self.overlay.get(&stored)?.map(Pair::decode).transpose()?;
        let revision = self.next_revision();
        let pair = Pair {
            create_revision: old
                .as_ref()
                .map_or(revision.main, |old| old.create_revision),
            mod_revision: revision,
            version: old.as_ref().map_or(1, |old| old.version + 1),
            lease,
            value,
        };
        self.attach(&key, old.as_ref().map_or(0, |old| old.lease), lease);
        self.change(stored, Some(pair.encode()));
        let replaced = self.retire(&key, old, revision);
        self.record(key.clone(), EventKind::Put, key_value(key, pair), &replaced);
        Ok(replaced.map(|(_, kv)| kv))
    }

    /// Deletes a key and returns the pair it had; without one nothing happens.
    ///
    /// # Errors
    ///
    /// Storage failures.
    pub fn delete(&mut self, key: &Bytes) -> Result<Option<KeyValue>, Error> {
        let stored = codec::key_key(key);
        let Some(old) = self.overlay.get(&stored)? else {
            return Ok(None);
        };
        let old = Pair::decode(old)?;
        let revision = self.next_revision();
        self.attach(key, old.lease, 0);
        self.change(stored, None);
        let replaced = self.retire(key, Some(old), revision);
        let kv = KeyValue {
            key: key.clone(),
            mod_revision: revision.main,
            ..KeyValue::default()
        };
        self.record(key.clone(), EventKind::Delete, kv, &replaced);
        Ok(replaced.map(|(_, kv)| kv))
    }

    /// Deletes all keys of a range and returns the pairs they had, in key order.
    ///
    /// # Errors
    ///
    /// Storage failures.
    pub fn delete_range(&mut self, range: &KeyRange) -> Result<Vec<KeyValue>, Error> {
        let mut keys = Vec::new();
        for found in read::current(&*self.overlay, range) {
            keys.push(found?.0);
        }
        let mut deleted = Vec::with_capacity(keys.len());
        for key in &keys {
            deleted.extend(self.delete(key)?);
        }
        Ok(deleted)
    }

    /// Sets (`Some`) or removes (`None`) a stored key of another table, as a part of this
    /// transaction that is no change of the key space.
    pub fn set(&mut self, stored_key: Bytes, value: Option<Bytes>) {
        self.change(stored_key, value);
    }

    /// Keeps everything in the overlay, under a new current revision if a key was written.
    #[must_use = "the events have to reach the watchers"]
    pub fn commit(mut self) -> Committed {
        self.undo.clear();
        self.recorded = self.overlay.recorded();
        let events = std::mem::take(&mut self.events);
        let revision = (!events.is_empty()).then_some(self.base + 1);
        if let Some(revision) = revision {
            meta::set_number(self.overlay, MetaKey::CurrentRevision, revision);
        }
        Committed { revision, events }
    }

    /// Takes everything back, as dropping does.
    pub fn abort(self) {}

    fn next_revision(&self) -> Revision {
        let sub = i64::try_from(self.events.len()).expect("a vector's length fits an i64");
        Revision::new(self.base + 1, sub)
    }

    fn change(&mut self, stored_key: Bytes, value: Option<Bytes>) {
        let undo = self.overlay.replace(stored_key, value);
        self.undo.push(undo);
    }

    /// Moves a key from one lease to another, 0 being none.
    fn attach(&mut self, key: &[u8], from: i64, to: i64) {
        if from == to {
            return;
        }
        if from != 0 {
            self.change(codec::lease_key_key(from, key), None);
        }
        if to != 0 {
            self.change(codec::lease_key_key(to, key), Some(Bytes::new()));
        }
    }

    /// Keeps a pair that ends at `end` for reads of the past.
    fn retire(
        &mut self,
        key: &Bytes,
        old: Option<Pair>,
        end: Revision,
    ) -> Option<(Revision, KeyValue)> {
        let past = PastPair { pair: old?, end };
        let began = past.pair.mod_revision;
        self.change(codec::version_key(key, began), Some(past.encode()));
        Some((began, key_value(key.clone(), past.pair)))
    }

    /// The first event of a key so far.
    fn first_of(&mut self, key: &Bytes) -> Option<&Event> {
        if self.events.len() <= EVENTS_LOOKED_THROUGH {
            return self.events.iter().find(|event| event.kv.key == key);
        }
        let indexed = self.indexed;
        for (at, event) in self.events.iter().enumerate().skip(indexed) {
            self.firsts.entry(event.kv.key.clone()).or_insert(at);
        }
        self.indexed = self.events.len();
        self.firsts.get(key).map(|at| &self.events[*at])
    }

    fn record(
        &mut self,
        key: Bytes,
        kind: EventKind,
        kv: KeyValue,
        replaced: &Option<(Revision, KeyValue)>,
    ) {
        let revision = self.next_revision();
        let (prev_revision, prev_kv) = match self.first_of(&key) {
            Some(first) => (first.prev_revision, first.prev_kv.clone()),
            None => replaced.clone().unzip(),
        };
        let record = EventRecord {
            deleted: kind == EventKind::Delete,
            key,
            replaced: replaced.as_ref().map(|(began, _)| *began),
            previous: prev_revision,
        };
        self.overlay.record(revision, record);
        if self.events.is_empty() {
            // Most transactions have one event, and events are large.
            self.events.reserve_exact(1);
        }
        self.events.push(Event {
            revision,
            kind,
            kv,
            prev_revision,
            prev_kv,
        });
    }
}

impl Drop for WriteTxn<'_> {
    fn drop(&mut self) {
        while let Some(undo) = self.undo.pop() {
            self.overlay.undo(undo);
        }
        self.overlay.forget_after(self.recorded);
    }
}
