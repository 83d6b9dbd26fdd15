//! What a transaction has read and is going to write: all reads of one revision, with its own writes
//! laid over them.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use quorate_proto::etcdserverpb::{RangeRequest, RangeResponse};
use quorate_proto::mvccpb::KeyValue;
use serde::de::DeserializeOwned;

use crate::client::Client;
use crate::error::{Error, Result, TxnError};
use crate::keys::{Key, KeyRange, Revision};
use crate::lock::{Fence, Fenced};
use crate::session::Session;
use crate::store::{StoreError, ops, ops::Compare};
use crate::txn::Txn;
use crate::value::{Value, from_json};
use crate::wait::Backoff;

/// Most keys that one read of a listing asks for.
const PAGE_KEYS: i64 = 1_000;

/// Reads and writes that belong together; see [`Stm::run`](super::Stm::run). Of no use after the
/// closure that it was given to: writes are ignored then.
#[derive(Debug)]
pub struct Transaction {
    state: Arc<State>,
}

#[derive(Debug)]
struct State {
    client: Client,
    /// Held by the first read, which decides of which revision all are.
    first: tokio::sync::Mutex<()>,
    draft: Mutex<Draft>,
}

#[derive(Debug, Default)]
struct Draft {
    /// What all reads are of; `None` before the first.
    snapshot: Option<Revision>,
    /// The keys read, those in ranges included; `None`: absent.
    read: BTreeMap<Bytes, Option<Read>>,
    ranges: Vec<KeyRange>,
    /// The keys to write; `None`: to delete.
    written: BTreeMap<Bytes, Option<Bytes>>,
    fences: Vec<Fence>,
    outdated: bool,
    error: Option<Error>,
}

#[derive(Debug, Clone)]
struct Read {
    value: Bytes,
    at: Revision,
}

impl Draft {
    /// What a read of the key gives, if that is known: it is written, was read, or lies in a range that
    /// was.
    fn known(&self, key: &Bytes) -> Option<Option<Bytes>> {
        if let Some(written) = self.written.get(key) {
            return Some(written.clone());
        }
        if let Some(read) = self.read.get(key) {
            return Some(read.as_ref().map(|read| read.value.clone()));
        }
        let listed = self.ranges.iter().any(|range| range.contains(key));
        listed.then_some(None)
    }

    /// The keys there are in a range that was read, with the writes laid over them.
    fn listing(&self, range: &KeyRange) -> Vec<(Key, Bytes)> {
        let mut all: BTreeMap<&Bytes, Option<&Bytes>> = BTreeMap::new();
        let read = self.read.iter();
        let read = read.map(|(key, read)| (key, read.as_ref().map(|read| &read.value)));
        let written = self.written.iter();
        let written = written.map(|(key, value)| (key, value.as_ref()));
        all.extend(read.chain(written).filter(|(key, _)| range.contains(key)));
        let there = all.into_iter();
        let there = there.filter_map(|(key, value)| Some((key.clone().into(), value?.clone())));
        there.collect()
    }

    fn note(&mut self, kv: KeyValue) {
        let read = Read {
            value: kv.value,
            at: Revision(kv.mod_revision),
        };
        self.read.insert(kv.key, Some(read));
    }

    /// The transaction that commits it.
    fn txn(self, client: &Client) -> Txn {
        let mut txn = client.txn();
        for fence in self.fences {
            txn = txn.fence(fence);
        }
        for (key, read) in self.read {
            let at = read.map_or(Revision(0), |read| read.at);
            txn = txn.when(Compare::mod_revision(key, at));
        }
        // New keys in a range; deleted and changed ones show in the compares of each key.
        let snapshot = self.snapshot.unwrap_or_default();
        for range in self.ranges {
            txn = txn.when(Compare::unwritten_since(range, snapshot));
        }
        for (key, value) in self.written {
            txn = match value {
                Some(value) => txn.put(key, value),
                None => txn.delete(key),
            };
        }
        txn
    }
}

impl Transaction {
    pub(super) fn new(client: Client) -> Self {
        Self {
            state: Arc::new(State {
                client,
                first: tokio::sync::Mutex::new(()),
                draft: Mutex::default(),
            }),
        }
    }

    /// The same transaction, for the closure.
    pub(super) fn share(&self) -> Self {
        Self {
            state: Arc::clone(&self.state),
        }
    }

    fn draft(&self) -> MutexGuard<'_, Draft> {
        let draft = self.state.draft.lock();
        draft.unwrap_or_else(PoisonError::into_inner)
    }

    /// The revision that everything is read of; `None` before the first read.
    #[must_use]
    pub fn revision(&self) -> Option<Revision> {
        self.draft().snapshot
    }

    /// The value of a key, as this transaction has written it or else as the snapshot has it. One
    /// round trip unless it is known. Trouble with the store is waited out.
    ///
    /// # Errors
    /// The store's final refusals. [`StoreError::Compacted`]: whatever the closure returns then, it
    /// is run again.
    ///
    /// # Cancel safety
    /// Nothing was read when the future is dropped.
    pub async fn get(&self, key: impl Into<Key>) -> Result<Option<Bytes>> {
        let key = key.into().into_bytes();
        if let Some(known) = self.draft().known(&key) {
            return Ok(known);
        }
        let answer = self.fetch(ops::get(key.clone())).await?;
        let mut draft = self.draft();
        draft.read.entry(key.clone()).or_default();
        for kv in answer.kvs {
            draft.note(kv);
        }
        Ok(draft.known(&key).flatten())
    }

    /// As [`Transaction::get`], read as JSON.
    ///
    /// # Errors
    /// [`Error::Codec`] when it is not JSON of this type; as [`Transaction::get`].
    ///
    /// # Cancel safety
    /// As [`Transaction::get`].
    pub async fn get_json<T: DeserializeOwned>(&self, key: impl Into<Key>) -> Result<Option<T>> {
        let key = key.into();
        let value = self.get(&key).await?;
        let value = value.map(|value| from_json(key.as_bytes(), &value));
        value.transpose()
    }

    /// The keys of a range and their values, in order: the snapshot's, with what this transaction has
    /// written. A key that others write into the range, or delete from it, before the commit is a
    /// conflict.
    ///
    /// Every key listed counts against the store's limit on the compares of a transaction, unless this
    /// one writes nothing.
    ///
    /// # Errors
    /// As [`Transaction::get`].
    ///
    /// # Cancel safety
    /// As [`Transaction::get`].
    pub async fn list(&self, range: KeyRange) -> Result<Vec<(Key, Bytes)>> {
        let known = self.draft().ranges.contains(&range);
        if !known {
            let found = self.fetch_range(range.clone()).await?;
            let mut draft = self.draft();
            found.into_iter().for_each(|kv| draft.note(kv));
            draft.ranges.push(range.clone());
        }
        Ok(self.draft().listing(&range))
    }

    /// Writes a key at the commit, without a lease: a lease that the key has is detached from it.
    pub fn put(&self, key: impl Into<Key>, value: impl Into<Value>) {
        let key = key.into();
        let value = value.into().into_bytes(&key);
        let mut draft = self.draft();
        match value {
            Ok(value) => {
                draft.written.insert(key.into_bytes(), Some(value));
            }
            Err(error) => {
                draft.error.get_or_insert(error);
            }
        }
    }

    /// Deletes a key at the commit.
    pub fn delete(&self, key: impl Into<Key>) {
        self.draft().written.insert(key.into().into_bytes(), None);
    }

    /// Commits only while this guard is held. Costs three compares.
    pub fn guard(&self, guard: &impl Fenced) {
        self.draft().fences.push(guard.fence().clone());
    }

    /// Whether a read found its revision compacted, so that this run is worth nothing.
    pub(super) fn is_outdated(&self) -> bool {
        self.draft().outdated
    }

    async fn fetch_range(&self, range: KeyRange) -> Result<Vec<KeyValue>> {
        let mut request = ops::range(range);
        request.limit = PAGE_KEYS;
        let mut found = Vec::new();
        loop {
            let mut answer = self.fetch(request.clone()).await?;
            found.append(&mut answer.kvs);
            match found.last() {
                Some(last) if answer.more => {
                    let mut next = last.key.to_vec();
                    next.push(0);
                    request.key = next.into();
                }
                _ => return Ok(found),
            }
        }
    }

    /// Reads at the snapshot's revision; the first read decides which that is, and others wait for it.
    async fn fetch(&self, mut request: RangeRequest) -> Result<RangeResponse> {
        let mut first = None;
        if self.revision().is_none() {
            first = Some(self.state.first.lock().await);
        }
        request.revision = self.revision().map_or(0, |at| at.0);
        let mut pause = Backoff::between_attempts(&self.state.client);
        let answer = loop {
            match self.state.client.store().range(request.clone()).await {
                Ok(answer) => break answer,
                Err(error) if error.is_transient() => pause.pause().await,
                Err(error) => {
                    self.draft().outdated |= matches!(error, StoreError::Compacted { .. });
                    return Err(error.into());
                }
            }
        };
        let now = answer.header.map_or(0, |header| header.revision);
        self.draft().snapshot.get_or_insert(Revision(now));
        drop(first);
        Ok(answer)
    }

    /// Writes what was written, if what was read is still so. Returns the revision.
    pub(super) async fn commit(&self, session: Option<&Session>) -> Result<Revision, TxnError> {
        let mut draft = std::mem::take(&mut *self.draft());
        if let Some(error) = draft.error.take() {
            return Err(error.into());
        }
        if draft.written.is_empty() && draft.fences.is_empty() {
            // A snapshot is serializable as it is.
            return Ok(draft.snapshot.unwrap_or_default());
        }
        let txn = draft.txn(&self.state.client);
        if let Some(session) = session {
            return txn.commit_once(session).await;
        }
        let mut pause = Backoff::between_attempts(&self.state.client);
        loop {
            match txn.clone().commit().await {
                Err(error) if error.is_retryable() => pause.pause().await,
                outcome => return Ok(outcome?.revision()),
            }
        }
    }
}
