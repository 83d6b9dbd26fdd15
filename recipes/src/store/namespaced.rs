//! A store that shows one part of another one as if it were all: every key gets a prefix on its way
//! in, and loses it on its way out. Used through [`Client::namespace`](crate::Client::namespace).

use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures::StreamExt;
use quorate_proto::etcdserverpb::request_op::Request;
use quorate_proto::etcdserverpb::response_op::Response;
use quorate_proto::etcdserverpb::{
    RangeRequest, RangeResponse, RequestOp, ResponseOp, TxnRequest, TxnResponse,
    WatchCreateRequest, WatchResponse,
};
use quorate_proto::mvccpb::KeyValue;
use tokio::runtime::Handle;

use super::{Capabilities, Cause, Lease, LeaseTtl, Store, StoreError, WatchStream};
use crate::keys::{EPOCH_KEY, Key, KeyRange, LeaseId};

/// The keys of a store that begin with a prefix, under the names without it. Ranges that reach to the
/// end of all keys reach to the end of these.
///
/// Leases are those of the store below: two namespaces share their ids, and revoking a lease deletes
/// its keys wherever they are. The store's epoch ([`EPOCH_KEY`]) is not prefixed, so that every
/// namespace sees the store put back to an older state; it can be read and compared with, and a
/// transaction that would write or delete it is refused with [`StoreError::Invalid`].
#[derive(Debug, Clone)]
pub struct Namespaced<S> {
    store: S,
    prefix: Bytes,
}

/// Whether a request names the epoch key, which is outside all namespaces.
fn is_epoch(key: &[u8], end: &[u8]) -> bool {
    key == EPOCH_KEY.as_bytes() && end.is_empty()
}

/// Whether any operation would write the epoch, which is not the namespace's to change.
fn writes_epoch(request: &TxnRequest) -> bool {
    let mut ops = request.success.iter().chain(&request.failure);
    ops.any(|op| match &op.request {
        Some(Request::RequestPut(put)) => is_epoch(&put.key, &[]),
        Some(Request::RequestDeleteRange(delete)) => is_epoch(&delete.key, &delete.range_end),
        Some(Request::RequestTxn(txn)) => writes_epoch(txn),
        Some(Request::RequestRange(_)) | None => false,
    })
}

impl<S: Store> Namespaced<S> {
    /// The keys of `store` that begin with `prefix`, which is taken literally: `team-a/` keeps apart
    /// from `team-ab/`, and `team-a` does not.
    #[must_use]
    pub fn new(store: S, prefix: impl Into<Key>) -> Self {
        let prefix = prefix.into().into_bytes();
        Self { store, prefix }
    }

    /// The store below.
    #[must_use]
    pub fn inner(&self) -> &S {
        &self.store
    }

    fn key(&self, key: &[u8]) -> Bytes {
        [&self.prefix[..], key].concat().into()
    }

    /// Moves a range inside; returns whether it was moved.
    fn enter(&self, key: &mut Bytes, end: &mut Bytes) -> bool {
        // No key is empty: the store refuses that, and must not be given another one.
        if key.is_empty() || is_epoch(key, end) {
            return false;
        }
        *end = match &end[..] {
            [] => Bytes::new(),
            [0] => KeyRange::prefix(self.prefix.clone()).end,
            _ => self.key(end),
        };
        *key = self.key(key);
        true
    }

    fn enter_op(&self, op: &mut RequestOp) {
        match &mut op.request {
            Some(Request::RequestRange(range)) => {
                self.enter(&mut range.key, &mut range.range_end);
            }
            Some(Request::RequestPut(put)) => {
                self.enter(&mut put.key, &mut Bytes::new());
            }
            Some(Request::RequestDeleteRange(delete)) => {
                self.enter(&mut delete.key, &mut delete.range_end);
            }
            Some(Request::RequestTxn(txn)) => self.enter_txn(txn),
            None => {}
        }
    }

    fn enter_txn(&self, txn: &mut TxnRequest) {
        for compare in &mut txn.compare {
            self.enter(&mut compare.key, &mut compare.range_end);
        }
        for op in txn.success.iter_mut().chain(&mut txn.failure) {
            self.enter_op(op);
        }
    }

    fn leave<'a>(&self, kvs: impl IntoIterator<Item = &'a mut KeyValue>) {
        leave(&self.prefix, kvs);
    }

    /// `ops` are those that were asked, before they were moved.
    fn leave_ops(&self, ops: &[RequestOp], responses: &mut [ResponseOp]) {
        for (op, response) in ops.iter().zip(responses) {
            match (&op.request, &mut response.response) {
                (Some(Request::RequestRange(asked)), Some(Response::ResponseRange(range)))
                    if !is_epoch(&asked.key, &asked.range_end) =>
                {
                    self.leave(&mut range.kvs);
                }
                (Some(Request::RequestPut(_)), Some(Response::ResponsePut(put))) => {
                    self.leave(&mut put.prev_kv);
                }
                (
                    Some(Request::RequestDeleteRange(_)),
                    Some(Response::ResponseDeleteRange(delete)),
                ) => {
                    self.leave(&mut delete.prev_kvs);
                }
                (Some(Request::RequestTxn(asked)), Some(Response::ResponseTxn(txn))) => {
                    self.leave_txn(asked, txn);
                }
                _ => {}
            }
        }
    }

    fn leave_txn(&self, asked: &TxnRequest, answer: &mut TxnResponse) {
        let ops = match answer.succeeded {
            true => &asked.success,
            false => &asked.failure,
        };
        self.leave_ops(ops, &mut answer.responses);
    }
}

/// Takes the prefix off. Nothing else than keys with it comes back from what was asked with it.
fn leave<'a>(prefix: &Bytes, kvs: impl IntoIterator<Item = &'a mut KeyValue>) {
    for kv in kvs {
        if kv.key.starts_with(prefix) {
            kv.key = kv.key.slice(prefix.len()..);
        }
    }
}

/// Takes the prefix off the keys of events.
fn leave_events(prefix: &Bytes, answer: &mut WatchResponse) {
    for event in &mut answer.events {
        leave(prefix, event.kv.iter_mut().chain(&mut event.prev_kv));
    }
}

#[async_trait]
impl<S: Store> Store for Namespaced<S> {
    async fn range(&self, mut request: RangeRequest) -> Result<RangeResponse, StoreError> {
        let inside = self.enter(&mut request.key, &mut request.range_end);
        let mut answer = self.store.range(request).await?;
        if inside {
            self.leave(&mut answer.kvs);
        }
        Ok(answer)
    }

    async fn txn(&self, request: TxnRequest) -> Result<TxnResponse, StoreError> {
        if writes_epoch(&request) {
            let why = format!("{EPOCH_KEY} cannot be written from a namespace");
            return Err(StoreError::Invalid(Cause::new(why)));
        }
        let mut inside = request.clone();
        self.enter_txn(&mut inside);
        let mut answer = self.store.txn(inside).await?;
        self.leave_txn(&request, &mut answer);
        Ok(answer)
    }

    async fn watch(
        &self,
        mut requests: Vec<WatchCreateRequest>,
    ) -> Result<WatchStream, StoreError> {
        // The ids of the watches outside the namespace; they count from 1.
        let mut outside = Vec::new();
        for (id, request) in (1..).zip(&mut requests) {
            if request.key.is_empty() {
                // Only watches may begin there: at the first key there can be.
                request.key = Bytes::from_static(&[0]);
            }
            if !self.enter(&mut request.key, &mut request.range_end) {
                outside.push(id);
            }
        }
        let prefix = self.prefix.clone();
        let answers = self.store.watch(requests).await?;
        let inside = answers.map(move |answer| {
            let mut answer = answer?;
            if !outside.contains(&answer.watch_id) {
                leave_events(&prefix, &mut answer);
            }
            Ok(answer)
        });
        Ok(inside.boxed())
    }

    async fn lease_grant(&self, id: LeaseId, ttl: Duration) -> Result<Lease, StoreError> {
        self.store.lease_grant(id, ttl).await
    }

    async fn lease_keep_alive(&self, id: LeaseId) -> Result<Option<Lease>, StoreError> {
        self.store.lease_keep_alive(id).await
    }

    async fn lease_ttl(&self, id: LeaseId) -> Result<Option<LeaseTtl>, StoreError> {
        self.store.lease_ttl(id).await
    }

    async fn lease_revoke(&self, id: LeaseId) -> Result<(), StoreError> {
        self.store.lease_revoke(id).await
    }

    fn capabilities(&self) -> Capabilities {
        self.store.capabilities()
    }

    fn runtime(&self) -> Option<Handle> {
        self.store.runtime()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keys::Revision;
    use crate::store::ops::{self, Compare};
    use crate::store::{MemStore, ops::kvs};
    use crate::{Client, Error};

    async fn set(store: &impl Store, key: &str, value: &str) {
        let request = TxnRequest {
            success: vec![ops::put(key, value.to_owned().into(), None)],
            ..Default::default()
        };
        store.txn(request).await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn nothing_outside_is_seen_or_touched() {
        let below = MemStore::new();
        for key in ["a/k", "b", "b/k", "b/l", "b0", "z"] {
            set(&below, key, "v").await;
        }
        let store = Namespaced::new(below.clone(), "b/");
        let everything = KeyRange::prefix("");
        let all = store.range(ops::range(everything.clone())).await.unwrap();
        let keys: Vec<_> = all.kvs.iter().map(|kv| kv.key.clone()).collect();
        assert_eq!(keys, ["k", "l"]);
        assert_eq!(all.count, 2);
        let mut nested = TxnRequest {
            compare: vec![Compare::present("k").into(), Compare::absent("b/k").into()],
            success: vec![ops::read(ops::get("k")), ops::put("m", "v".into(), None)],
            failure: vec![],
        };
        nested = TxnRequest {
            success: vec![RequestOp {
                request: Some(Request::RequestTxn(nested)),
            }],
            ..Default::default()
        };
        let mut watch = WatchCreateRequest {
            key: everything.start.clone(),
            range_end: everything.end.clone(),
            prev_kv: true,
            ..Default::default()
        };
        watch.start_revision = below.revision().0 + 1;
        let events = store.watch(vec![watch]).await.unwrap();
        let answer = store.txn(nested).await.unwrap();
        let Some(Response::ResponseTxn(inner)) = &answer.responses[0].response else {
            panic!("{answer:?}");
        };
        assert!(inner.succeeded);
        assert_eq!(kvs(&inner.responses, 0)[0].key, "k");
        set(&below, "z", "w").await;
        let request = TxnRequest {
            success: vec![ops::delete(everything)],
            ..Default::default()
        };
        store.txn(request).await.unwrap();
        assert_eq!(below.keys(""), ["a/k", "b", "b0", "z"]);
        let answers: Vec<_> = events.take(3).map(Result::unwrap).collect().await;
        let told = |index: usize| {
            let events = answers[index].events.iter();
            let keys = events.map(|event| event.kv.clone().unwrap().key);
            keys.collect::<Vec<_>>()
        };
        assert_eq!(
            (told(1), told(2)),
            (vec!["m".into()], ["k", "l", "m"].map(Bytes::from).to_vec())
        );
        assert_eq!(answers[2].events[0].prev_kv.clone().unwrap().key, "k");
    }

    #[tokio::test(start_paused = true)]
    async fn the_epoch_is_that_of_the_store() {
        let below = MemStore::new();
        let client = Client::new(below.clone()).namespace("team/");
        let session = client.session().await.unwrap();
        let guard = client.mutex("m").lock(&session).await.unwrap();
        guard.put("k", "v").await.unwrap();
        assert_eq!(below.keys("team/").len(), 3, "lock, session and k");
        set(&below, EPOCH_KEY, "7").await;
        assert!(guard.put("k", "w").await.is_err(), "fenced by the epoch");
        let kv = client.get(EPOCH_KEY).await.unwrap().unwrap();
        assert_eq!(kv.key, EPOCH_KEY);
        let session = client.session().await.unwrap();
        drop(guard);
        let guard = client.mutex("m").lock(&session).await.unwrap();
        assert_eq!(guard.token().epoch, 7);
        let put = client.put(EPOCH_KEY, "8").await;
        let deleted = client.delete(EPOCH_KEY).await;
        let invalid = |error: &Error| matches!(error, Error::Store(StoreError::Invalid(_)));
        assert!(put.as_ref().is_err_and(invalid), "{put:?}");
        assert!(deleted.as_ref().is_err_and(invalid), "{deleted:?}");
        let nested = TxnRequest {
            failure: vec![ops::put(EPOCH_KEY, "8".into(), None)],
            ..Default::default()
        };
        let outer = TxnRequest {
            success: vec![RequestOp {
                request: Some(Request::RequestTxn(nested)),
            }],
            ..Default::default()
        };
        assert!(client.store().txn(outer).await.is_err());
        assert_eq!(client.get(EPOCH_KEY).await.unwrap(), Some(kv));
        assert!(guard.token().revision > Revision(1));
    }
}
