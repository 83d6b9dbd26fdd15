//! A whole store in memory, for tests: etcd's semantics, and time that the test decides. Used by this
//! crate's own tests and simulations, and by users for tests of what they built of the recipes.

mod check;
mod lease;
mod state;
#[cfg(test)]
mod tests;
mod txn;
mod watch;

use std::fmt;
use std::future::Future;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use quorate_proto::Reason;
use quorate_proto::etcdserverpb::{
    RangeRequest, RangeResponse, TxnRequest, TxnResponse, WatchCreateRequest,
};
use quorate_proto::limits::LEASE_TTL_SECONDS_MAX;
use quorate_proto::mvccpb::KeyValue;
use tokio::sync::Notify;
use tokio::time::Instant;
use tonic::Status;

pub use state::Commit;
use state::State;

use super::status::classify;
use super::{Capabilities, Lease, LeaseTtl, Store, StoreError, WatchStream};
use crate::clock;
use crate::keys::{KeyRange, LeaseId, Revision};

/// A store in the memory of this process, with revisions, transactions, leases and watches as etcd has
/// them. Cheap to clone; all clones are the same store.
///
/// It is there for tests. Its time is tokio's, so a test that pauses tokio's clock decides when leases
/// run out, and hours pass in no time. It does nothing by itself and draws no random number: on one
/// thread, a test with paused time is the same each time it runs. It keeps everything that was ever
/// written, for [`MemStore::history`]; it is not a database.
///
/// Every call lets other tasks run before and after it takes effect, as calls over a network do, so a
/// caller can be dropped at either moment. What fails on purpose is [`Faulty`](super::Faulty).
///
/// ```
/// use std::time::Duration;
/// use quorate_recipes::{Client, Error, LostReason, TxnError, store::MemStore};
///
/// # tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap().block_on(async {
/// // In a test: #[tokio::test(start_paused = true)]
/// let store = MemStore::new();
/// let client = Client::new(store.clone());
/// let session = client.session().ttl(Duration::from_secs(10)).await?;
/// let guard = client.mutex("orders").lock(&session).await?;
/// let waiting = client.session().await?;
///
/// store.expire(session.lease()); // as after a long pause of the process
/// let refused = guard.put("orders/state", "paid").await;
/// assert!(refused.is_err());
///
/// // A minute passes at once, and the lease of a session that renews it lives on.
/// tokio::time::sleep(Duration::from_secs(60)).await;
/// let guard = client.mutex("orders").lock(&waiting).await?;
/// guard.put("orders/state", "paid").await?;
/// assert_eq!(session.lost().await, LostReason::LeaseGone);
/// # Ok::<(), Error>(()) }).unwrap();
/// ```
#[derive(Clone)]
pub struct MemStore {
    shared: Arc<Shared>,
}

struct Shared {
    state: Mutex<State>,
    /// Every commit, and everything else that a watch must look at.
    news: Arc<Notify>,
    capabilities: Capabilities,
}

impl Default for MemStore {
    fn default() -> Self {
        Self::new()
    }
}

impl MemStore {
    /// The id of the cluster that a store says it is of.
    pub(crate) const CLUSTER_ID: u64 = 0x006d_656d;

    /// An empty store, with the limits of an etcd server with default flags.
    #[must_use]
    pub fn new() -> Self {
        Self::with_capabilities(Capabilities::default())
    }

    /// An empty store with these limits. Leases get at least `min_ttl`; larger transactions than
    /// `max_txn_ops` are refused.
    #[must_use]
    pub fn with_capabilities(capabilities: Capabilities) -> Self {
        Self {
            shared: Arc::new(Shared {
                state: Mutex::new(State::new()),
                news: Arc::new(Notify::new()),
                capabilities,
            }),
        }
    }

    /// The revision now: 1 for a store that nothing was written to.
    #[must_use]
    pub fn revision(&self) -> Revision {
        self.with(|state, _| Revision(state.revision()))
    }

    /// The keys that begin with `prefix`, in order.
    #[must_use]
    pub fn keys(&self, prefix: &str) -> Vec<String> {
        let kvs = self.dump(&KeyRange::prefix(prefix));
        let text = |kv: KeyValue| String::from_utf8_lossy(&kv.key).into_owned();
        kvs.into_iter().map(text).collect()
    }

    /// The pairs of a range, in key order.
    #[must_use]
    pub fn dump(&self, range: &KeyRange) -> Vec<KeyValue> {
        self.with(|state, _| state.scan(range).cloned().collect())
    }

    /// Everything that was committed from a revision on, one after the other: what a checker looks
    /// at. Compactions take nothing away.
    #[must_use]
    pub fn history(&self, from: Revision) -> Vec<Arc<Commit>> {
        self.with(|state, _| state.since(from.0).to_vec())
    }

    /// Forgets what was before a revision: reads and new watches of earlier ones are refused.
    ///
    /// # Errors
    /// [`StoreError::Compacted`] when that is forgotten already; [`StoreError::Invalid`] for a revision
    /// that has not come yet.
    pub fn compact(&self, revision: Revision) -> Result<(), StoreError> {
        let refused = self.with(|state, _| {
            if revision.0 > state.revision() {
                Some(Reason::FutureRevision)
            } else if revision.0 <= state.compacted {
                Some(Reason::Compacted)
            } else {
                state.compacted = revision.0;
                None
            }
        });
        refused.map_or(Ok(()), |reason| Err(judge(reason)))
    }

    /// Ends a lease now, with its keys. False when there is no such lease.
    #[must_use]
    pub fn expire(&self, lease: LeaseId) -> bool {
        self.change(|state, now| state.end_lease(lease.0, now))
    }

    /// The leases that live, in the order of their ids.
    #[must_use]
    pub fn leases(&self) -> Vec<LeaseId> {
        self.with(|state, _| state.leases.ids().map(LeaseId).collect())
    }

    /// Gives every lease its full time again, as a new leader does.
    pub fn rearm_leases(&self) {
        self.change(|state, now| state.leases.renew_all(now));
    }

    /// Ends every watch that is open, as a server does that stops or has no leader.
    pub fn end_watches(&self) {
        self.change(|state, _| state.endings += 1);
    }

    /// Puts another store in the place of this one, of a cluster of this id and with nothing in it.
    #[cfg(test)]
    pub(crate) fn replace(&self, cluster_id: u64) {
        self.change(|state, _| {
            let endings = state.endings + 1;
            *state = State::new();
            state.cluster_id = cluster_id;
            state.endings = endings;
        });
    }

    /// Looks at the state, after what is due has happened.
    fn with<T>(&self, look: impl FnOnce(&mut State, Instant) -> T) -> T {
        let now = clock::now();
        let state = self.shared.state.lock();
        let mut state = state.unwrap_or_else(PoisonError::into_inner);
        let expired = state.expire(now);
        let seen = look(&mut state, now);
        drop(state);
        if expired {
            self.shared.news.notify_waiters();
        }
        seen
    }

    /// Changes the state and tells the watches.
    fn change<T>(&self, change: impl FnOnce(&mut State, Instant) -> T) -> T {
        let output = self.with(change);
        self.shared.news.notify_waiters();
        output
    }

    /// Completes at the next news; they count from this call on.
    fn changed(&self) -> impl Future<Output = ()> + Send + use<> {
        Arc::clone(&self.shared.news).notified_owned()
    }

    /// One call: on its way, done at one moment, and on its way back.
    async fn call<T>(
        &self,
        call: impl FnOnce(&mut State, Instant) -> Result<T, Reason> + Send,
    ) -> Result<T, StoreError> {
        tokio::task::yield_now().await;
        let before = self.revision();
        let answer = self.with(call);
        if self.revision() != before {
            self.shared.news.notify_waiters();
        }
        tokio::task::yield_now().await;
        answer.map_err(judge)
    }
}

/// What a reason is for a client, as if a server had told it.
fn judge(reason: Reason) -> StoreError {
    classify(&Status::from(reason))
}

#[async_trait]
impl Store for MemStore {
    async fn range(&self, request: RangeRequest) -> Result<RangeResponse, StoreError> {
        self.call(|state, _| {
            check::range(&request)?;
            txn::range(state, &request)
        })
        .await
    }

    async fn txn(&self, request: TxnRequest) -> Result<TxnResponse, StoreError> {
        let most = self.shared.capabilities.max_txn_ops;
        self.call(|state, now| {
            check::txn(&request, most)?;
            txn::run(state, &request, now)
        })
        .await
    }

    async fn watch(&self, requests: Vec<WatchCreateRequest>) -> Result<WatchStream, StoreError> {
        tokio::task::yield_now().await;
        Ok(watch::open(self, requests))
    }

    async fn lease_grant(&self, id: LeaseId, ttl: Duration) -> Result<Lease, StoreError> {
        let least = self.shared.capabilities.min_ttl.as_secs().max(1);
        let seconds = ttl.as_secs().max(least);
        let ttl = Duration::from_secs(seconds);
        self.call(|state, now| {
            let id = match id.0 {
                0 => state.leases.free_id(),
                id => id,
            };
            if seconds > LEASE_TTL_SECONDS_MAX.unsigned_abs() {
                return Err(Reason::LeaseTtlTooLarge);
            }
            if !state.leases.grant(id, ttl, now) {
                return Err(Reason::LeaseExists);
            }
            Ok(Lease::new(LeaseId(id), ttl, state.header()))
        })
        .await
    }

    async fn lease_keep_alive(&self, id: LeaseId) -> Result<Option<Lease>, StoreError> {
        self.call(|state, now| {
            let renewed = state.leases.renew(id.0, now);
            Ok(renewed.map(|ttl| Lease::new(id, ttl, state.header())))
        })
        .await
    }

    async fn lease_ttl(&self, id: LeaseId) -> Result<Option<LeaseTtl>, StoreError> {
        self.call(|state, now| {
            let header = state.header();
            let lease = state.leases.get(id.0);
            Ok(lease.map(|lease| {
                let left = lease.until.saturating_duration_since(now);
                // Told in whole seconds, as by a server.
                LeaseTtl::new(Duration::from_secs(left.as_secs()), lease.ttl, header)
            }))
        })
        .await
    }

    async fn lease_revoke(&self, id: LeaseId) -> Result<(), StoreError> {
        self.call(|state, now| match state.end_lease(id.0, now) {
            true => Ok(()),
            false => Err(Reason::LeaseNotFound),
        })
        .await
    }

    fn capabilities(&self) -> Capabilities {
        self.shared.capabilities
    }
}

impl fmt::Debug for MemStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemStore")
            .field("revision", &self.revision().0)
            .finish_non_exhaustive()
    }
}
