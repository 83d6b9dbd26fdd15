//! A store that counts what it is asked: for tests that assert what a recipe costs.

use std::collections::BTreeSet;
use std::ops::Sub;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use futures::StreamExt;
use quorate_proto::etcdserverpb::{
    RangeRequest, RangeResponse, ResponseOp, TxnRequest, TxnResponse, WatchCreateRequest,
    response_op::Response,
};
use tokio::runtime::Handle;

use super::{Capabilities, Lease, LeaseTtl, Store, StoreError, WatchStream};
use crate::keys::LeaseId;

/// A store around another one that counts calls and wake-ups. Cheap to clone; all clones count
/// together. For tests:
///
/// ```
/// use quorate_recipes::{Client, Error, store::{Counting, MemStore}};
///
/// # tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap().block_on(async {
/// let store = Counting::new(MemStore::new());
/// let client = Client::new(store.clone());
/// let session = client.session().await?;
/// let before = store.counts();
/// let guard = client.mutex("orders").lock(&session).await?;
/// let spent = store.counts() - before;
/// assert_eq!((spent.txn, spent.calls()), (1, 1), "a free lock costs one transaction");
/// # drop(guard);
/// # Ok::<(), Error>(()) }).unwrap();
/// ```
#[derive(Debug)]
pub struct Counting<S> {
    store: Arc<S>,
    counts: Arc<Mutex<Counts>>,
}

impl<S> Clone for Counting<S> {
    fn clone(&self) -> Self {
        Self {
            store: Arc::clone(&self.store),
            counts: Arc::clone(&self.counts),
        }
    }
}

/// What was counted. The difference of two is what happened between.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counts {
    /// Reads by themselves.
    pub range: u64,
    /// Transactions.
    pub txn: u64,
    /// Keys in the ranges that were read, also beyond the limits of the reads, since stores go through them to
    /// count them.
    pub keys: u64,
    /// Watch streams opened.
    pub watch: u64,
    /// Leases granted.
    pub lease_grant: u64,
    /// Leases renewed.
    pub lease_keep_alive: u64,
    /// Questions for what is left of a lease.
    pub lease_ttl: u64,
    /// Leases revoked.
    pub lease_revoke: u64,
    /// Answers of watches that carried events: how often somebody was woken.
    pub wake_ups: u64,
    /// Watches that got their first events: how many different ones were woken.
    pub watches_woken: u64,
}

impl Counts {
    /// All calls of all methods; a stream of watches is one.
    #[must_use]
    pub fn calls(&self) -> u64 {
        let leases = self.lease_grant + self.lease_keep_alive + self.lease_ttl + self.lease_revoke;
        self.range + self.txn + self.watch + leases
    }
}

impl Sub for Counts {
    type Output = Self;

    fn sub(self, before: Self) -> Self {
        Self {
            range: self.range - before.range,
            txn: self.txn - before.txn,
            keys: self.keys - before.keys,
            watch: self.watch - before.watch,
            lease_grant: self.lease_grant - before.lease_grant,
            lease_keep_alive: self.lease_keep_alive - before.lease_keep_alive,
            lease_ttl: self.lease_ttl - before.lease_ttl,
            lease_revoke: self.lease_revoke - before.lease_revoke,
            wake_ups: self.wake_ups - before.wake_ups,
            watches_woken: self.watches_woken - before.watches_woken,
        }
    }
}

impl<S: Store> Counting<S> {
    /// Counts the calls to `store` that come through here.
    #[must_use]
    pub fn new(store: S) -> Self {
        Self {
            store: Arc::new(store),
            counts: Arc::default(),
        }
    }

    /// The store below.
    #[must_use]
    pub fn inner(&self) -> &S {
        &self.store
    }

    /// What was counted until now.
    #[must_use]
    pub fn counts(&self) -> Counts {
        *lock(&self.counts)
    }

    fn count(&self, one: impl FnOnce(&mut Counts)) {
        one(&mut lock(&self.counts));
    }
}

fn lock(counts: &Mutex<Counts>) -> MutexGuard<'_, Counts> {
    counts.lock().unwrap_or_else(PoisonError::into_inner)
}

fn keys(answer: &RangeResponse) -> u64 {
    u64::try_from(answer.count).unwrap_or(0)
}

fn keys_of_all(answers: &[ResponseOp]) -> u64 {
    let each = answers.iter().map(|answer| match &answer.response {
        Some(Response::ResponseRange(range)) => keys(range),
        Some(Response::ResponseTxn(txn)) => keys_of_all(&txn.responses),
        _ => 0,
    });
    each.sum()
}

#[async_trait]
impl<S: Store> Store for Counting<S> {
    async fn range(&self, request: RangeRequest) -> Result<RangeResponse, StoreError> {
        self.count(|counts| counts.range += 1);
        let answer = self.store.range(request).await?;
        self.count(|counts| counts.keys += keys(&answer));
        Ok(answer)
    }

    async fn txn(&self, request: TxnRequest) -> Result<TxnResponse, StoreError> {
        self.count(|counts| counts.txn += 1);
        let answer = self.store.txn(request).await?;
        self.count(|counts| counts.keys += keys_of_all(&answer.responses));
        Ok(answer)
    }

    async fn watch(&self, requests: Vec<WatchCreateRequest>) -> Result<WatchStream, StoreError> {
        self.count(|counts| counts.watch += 1);
        let answers = self.store.watch(requests).await?;
        let counts = Arc::clone(&self.counts);
        let mut woken = BTreeSet::new();
        let counted = answers.inspect(move |answer| {
            if let Ok(answer) = answer
                && !answer.events.is_empty()
            {
                let mut counts = lock(&counts);
                counts.wake_ups += 1;
                counts.watches_woken += u64::from(woken.insert(answer.watch_id));
            }
        });
        Ok(counted.boxed())
    }

    async fn lease_grant(&self, id: LeaseId, ttl: Duration) -> Result<Lease, StoreError> {
        self.count(|counts| counts.lease_grant += 1);
        self.store.lease_grant(id, ttl).await
    }

    async fn lease_keep_alive(&self, id: LeaseId) -> Result<Option<Lease>, StoreError> {
        self.count(|counts| counts.lease_keep_alive += 1);
        self.store.lease_keep_alive(id).await
    }

    async fn lease_ttl(&self, id: LeaseId) -> Result<Option<LeaseTtl>, StoreError> {
        self.count(|counts| counts.lease_ttl += 1);
        self.store.lease_ttl(id).await
    }

    async fn lease_revoke(&self, id: LeaseId) -> Result<(), StoreError> {
        self.count(|counts| counts.lease_revoke += 1);
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
    use crate::store::{MemStore, ops};
    use crate::{Client, KeyRange};

    #[tokio::test(start_paused = true)]
    async fn keys_are_those_that_the_store_goes_through() {
        let store = Counting::new(MemStore::new());
        let client = Client::new(store.clone());
        for n in 0..5 {
            client.put(format!("k/{n}"), "").await.unwrap();
        }
        let before = store.counts();
        let mut first = ops::range(KeyRange::prefix("k/"));
        first.limit = 1;
        client.store().range(first.clone()).await.unwrap();
        assert_eq!((store.counts() - before).keys, 5);
        let nested = ops::nested(TxnRequest {
            success: vec![ops::read(first.clone())],
            ..Default::default()
        });
        let request = TxnRequest {
            success: vec![nested, ops::read(first)],
            ..Default::default()
        };
        client.store().txn(request).await.unwrap();
        assert_eq!((store.counts() - before).keys, 15);
    }

    #[tokio::test(start_paused = true)]
    async fn a_release_wakes_one_waiter_of_many() {
        let store = Counting::new(MemStore::new());
        let client = Client::new(store.clone());
        let session = client.session().await.unwrap();
        let lock = client.mutex("m");
        let guard = lock.lock(&session).await.unwrap();
        let waiting = futures::future::join_all((0..5).map(|_| {
            let (lock, session) = (lock.clone(), session.clone());
            async move { lock.lock(&session).await.unwrap().release().await.unwrap() }
        }));
        tokio::pin!(waiting);
        let second = Duration::from_secs(1);
        assert!(tokio::time::timeout(second, &mut waiting).await.is_err());
        let before = store.counts();
        assert_eq!((before.watch, before.wake_ups), (5, 0));
        guard.release().await.unwrap();
        waiting.await;
        let spent = store.counts() - before;
        assert_eq!((spent.wake_ups, spent.watches_woken), (5, 5));
        assert_eq!(spent.txn, 6 + 5, "a release each, and a turn each waiter");
    }
}
