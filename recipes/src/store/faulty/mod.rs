//! A store that fails on purpose: calls that are not sent, not answered, late or doubled, watches that
//! end, connections that break. For tests of what a program does then; this crate's own tests and
//! simulations use it.

mod hold;
mod plan;
mod rates;
#[cfg(test)]
mod tests;

use std::fmt;
use std::future::Future;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use futures::StreamExt;
use quorate_proto::etcdserverpb::{
    RangeRequest, RangeResponse, TxnRequest, TxnResponse, WatchCreateRequest,
};
use rand::SeedableRng;
use rand::rngs::SmallRng;
use scopeguard::ScopeGuard;
use tokio::runtime::Handle;
use tokio::sync::Notify;

pub use hold::{Calls, Held, Stage};
pub use plan::Fault;
pub use rates::{FaultCounts, Rates};

use self::hold::{Hold, Holds};
use self::plan::Plan;
use self::rates::Drawn;
use super::{Capabilities, Cause, Lease, LeaseTtl, Store, StoreError, WatchStream, is_read_only};
use crate::clock;
use crate::keys::LeaseId;
use crate::tasks::Tasks;

/// How long a call waits for an answer that does not come.
const SILENCE: Duration = Duration::from_secs(5);

/// How calls fail while a store is out of reach; see [`Faulty::disconnect`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outage {
    /// At once, and certainly not applied: nobody listens.
    Refused,
    /// After 5 s without an answer, not applied, and the caller does not know: packets are lost.
    Silent,
}

/// A store around another one that passes calls on and fails some. Cheap to clone: give one clone to a
/// [`Client`](crate::Client), keep another to say what fails. Without a word nothing does.
///
/// It is for tests of *your* code: does it hold what it promises when an answer is lost, when a call
/// that timed out is applied a minute later, when it is dropped in the middle? With a
/// [`MemStore`](super::MemStore) below and tokio's paused clock such a test takes no time, and with a
/// fixed seed it is the same each time.
///
/// ```
/// use std::time::Duration;
/// use quorate_recipes::{Client, Error, store::{Faulty, MemStore, Rates, faulty::{Calls, Stage}}};
///
/// # tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap().block_on(async {
/// // In a test: #[tokio::test(start_paused = true)]
/// let store = MemStore::new();
/// let faulty = Faulty::new(store.clone());
/// let client = Client::builder(faulty.clone()).seed(1).build();
/// let session = client.session().await?;
///
/// // One call in five fails in one way or another, and the lock is taken once all the same.
/// faulty.fail_at_random(7, Rates::evenly(0.2));
/// let lock = client.mutex("orders");
/// let guard = lock.lock(&session).await?;
/// assert_eq!(store.keys(lock.prefix()).len(), 1);
/// faulty.fail_at_random(7, Rates::NONE);
/// guard.release().await?;
///
/// // A future dropped just when its call has been applied leaves nothing behind.
/// let held = faulty.hold(1, Calls::Txn, Stage::AppliedUnanswered);
/// tokio::select! {
///     _ = lock.lock(&session) => unreachable!("its call is held"),
///     () = held.reached() => {}
/// }
/// held.release();
/// tokio::time::sleep(Duration::from_secs(10)).await;
/// assert!(store.keys(lock.prefix()).is_empty());
/// # Ok::<(), Error>(()) }).unwrap();
/// ```
pub struct Faulty<S> {
    inner: Arc<Inner<S>>,
}

struct Inner<S> {
    store: Arc<S>,
    plan: Plan,
    holds: Holds,
    chance: Mutex<Chance>,
    outage: tokio::sync::watch::Sender<Option<Outage>>,
    cut: Arc<Notify>,
}

/// The random faults.
struct Chance {
    random: SmallRng,
    rates: Rates,
    counts: FaultCounts,
}

impl<S> Clone for Faulty<S> {
    fn clone(&self) -> Self {
        Self {
            inner: Arc::clone(&self.inner),
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn unknown(why: &str) -> StoreError {
    StoreError::Unknown(Cause::new(why))
}

fn not_applied(why: &str) -> StoreError {
    StoreError::NotApplied(Cause::new(why))
}

impl<S: Store> Faulty<S> {
    /// Passes everything on to `store`, until it is told otherwise.
    #[must_use]
    pub fn new(store: S) -> Self {
        Self {
            inner: Arc::new(Inner {
                store: Arc::new(store),
                plan: Plan::default(),
                holds: Holds::default(),
                chance: Mutex::new(Chance {
                    random: SmallRng::seed_from_u64(0),
                    rates: Rates::NONE,
                    counts: FaultCounts::default(),
                }),
                outage: tokio::sync::watch::Sender::new(None),
                cut: Arc::new(Notify::new()),
            }),
        }
    }

    /// The store below, which does not fail.
    #[must_use]
    pub fn inner(&self) -> &S {
        &self.inner.store
    }

    /// From now on, calls of every kind fail at random, at these rates, drawn from `seed`.
    pub fn fail_at_random(&self, seed: u64, rates: Rates) {
        let mut chance = lock(&self.inner.chance);
        chance.random = SmallRng::seed_from_u64(seed);
        chance.rates = rates;
    }

    /// What failed at random until now.
    #[must_use]
    pub fn counts(&self) -> FaultCounts {
        lock(&self.inner.chance).counts
    }

    /// The `nth` call from now (1 is the next) of these kinds is held at a stage until it is released,
    /// so that a test can drop a future, or let time pass, just there.
    pub fn hold(&self, nth: usize, calls: Calls, stage: Stage) -> Held {
        self.inner.holds.add(nth, calls, stage)
    }

    /// Takes the store out of reach: calls fail, answers on their way are lost, watches end.
    pub fn disconnect(&self, outage: Outage) {
        self.inner.outage.send_replace(Some(outage));
        self.cut_watches();
    }

    /// Ends the outage.
    pub fn reconnect(&self) {
        self.inner.outage.send_replace(None);
    }

    /// Ends every watch that is open.
    pub fn cut_watches(&self) {
        self.inner.cut.notify_waiters();
    }

    /// One call that is no transaction, with whatever befalls it on the way.
    async fn call<T, F, Fut>(&self, kind: Calls, send: F) -> Result<T, StoreError>
    where
        T: Send,
        F: Fn(Arc<S>) -> Fut + Send + 'static,
        Fut: Future<Output = Result<T, StoreError>> + Send,
    {
        self.pass(kind, false, send).await
    }

    /// One call, which may be a transaction that writes, with whatever befalls it on the way.
    async fn pass<T, F, Fut>(&self, kind: Calls, writes: bool, send: F) -> Result<T, StoreError>
    where
        T: Send,
        F: Fn(Arc<S>) -> Fut + Send + 'static,
        Fut: Future<Output = Result<T, StoreError>> + Send,
    {
        let held = self.inner.holds.meets(kind);
        if let Some((stage, hold)) = held {
            if stage == Stage::OnItsWay {
                return self.stand_on_the_way(&hold, send).await;
            }
            if stage == Stage::NotSent {
                hold.stand().await;
            }
            let answer = send(Arc::clone(&self.inner.store)).await;
            if stage != Stage::NotSent {
                hold.stand().await;
            }
            if stage == Stage::AppliedUnanswered {
                answer?;
                return Err(unknown("held, and the answer lost"));
            }
            return answer;
        }
        let drawn = lock(&self.inner.chance).draw(kind, writes);
        clock::pause(drawn.before).await;
        let outage = *self.inner.outage.borrow();
        match outage {
            Some(Outage::Refused) => return Err(not_applied("disconnected")),
            Some(Outage::Silent) => {
                clock::pause(SILENCE).await;
                return Err(unknown("disconnected"));
            }
            None => {}
        }
        match drawn.fault {
            Drawn::NotSent => return Err(not_applied("at random")),
            Drawn::Late(after) => {
                self.send_later(after, send);
                return Err(unknown("at random"));
            }
            Drawn::None | Drawn::Unanswered | Drawn::Repeated(_) | Drawn::Duplicate(_) => {}
        }
        let answer = send(Arc::clone(&self.inner.store)).await;
        clock::pause(drawn.after).await;
        match drawn.fault {
            Drawn::Unanswered => {
                answer?;
                return Err(unknown("at random"));
            }
            Drawn::Repeated(after) => {
                self.send_later(after, send);
                answer?;
                return Err(unknown("at random"));
            }
            Drawn::Duplicate(after) => self.send_later(after, send),
            Drawn::None | Drawn::NotSent | Drawn::Late(_) => {}
        }
        if self.inner.outage.borrow().is_some() {
            return Err(unknown("disconnected before the answer"));
        }
        answer
    }

    /// A call that stands on its way, and is applied when it is released although its caller has gone.
    async fn stand_on_the_way<T, F, Fut>(&self, hold: &Hold, send: F) -> Result<T, StoreError>
    where
        T: Send,
        F: Fn(Arc<S>) -> Fut + Send + 'static,
        Fut: Future<Output = Result<T, StoreError>> + Send,
    {
        let (tasks, later) = (Tasks::current(), hold.clone());
        let on_the_way = scopeguard::guard((send, Arc::clone(&self.inner.store)), {
            move |(send, store)| {
                tasks.spawn_apart("call without a caller", async move {
                    later.stand().await;
                    drop(send(store).await);
                });
            }
        });
        hold.stand().await;
        let (send, store) = ScopeGuard::into_inner(on_the_way);
        send(store).await
    }

    /// A copy of a call that takes effect when nobody expects it any more.
    fn send_later<T, F, Fut>(&self, after: Duration, send: F)
    where
        F: Fn(Arc<S>) -> Fut + Send + 'static,
        Fut: Future<Output = Result<T, StoreError>> + Send,
    {
        let store = Arc::clone(&self.inner.store);
        Tasks::current().spawn_apart("late copy", async move {
            clock::pause(after).await;
            if let Err(error) = send(store).await {
                tracing::debug!(%error, "a late copy of a call");
            }
        });
    }
}

#[async_trait]
impl<S: Store> Store for Faulty<S> {
    async fn range(&self, request: RangeRequest) -> Result<RangeResponse, StoreError> {
        self.call(Calls::Read, move |store| {
            let request = request.clone();
            async move { store.range(request).await }
        })
        .await
    }

    async fn txn(&self, request: TxnRequest) -> Result<TxnResponse, StoreError> {
        if let Some(fault) = self.planned(&request) {
            return self.planned_txn(fault, request).await;
        }
        let writes = !is_read_only(&request);
        self.pass(Calls::Txn, writes, move |store| {
            let request = request.clone();
            async move { store.txn(request).await }
        })
        .await
    }

    async fn watch(&self, requests: Vec<WatchCreateRequest>) -> Result<WatchStream, StoreError> {
        let cut = Arc::clone(&self.inner.cut).notified_owned();
        let answers = self
            .call(Calls::Read, move |store| {
                let requests = requests.clone();
                async move { store.watch(requests).await }
            })
            .await?;
        let lifetime = lock(&self.inner.chance).draw_lifetime();
        let end = async move {
            tokio::select! {
                biased;
                () = cut => {}
                () = clock::until(lifetime) => {}
            }
        };
        Ok(answers.take_until(Box::pin(end)).boxed())
    }

    async fn lease_grant(&self, id: LeaseId, ttl: Duration) -> Result<Lease, StoreError> {
        self.call(Calls::Lease, move |store| async move {
            store.lease_grant(id, ttl).await
        })
        .await
    }

    async fn lease_keep_alive(&self, id: LeaseId) -> Result<Option<Lease>, StoreError> {
        self.call(Calls::Lease, move |store| async move {
            store.lease_keep_alive(id).await
        })
        .await
    }

    async fn lease_ttl(&self, id: LeaseId) -> Result<Option<LeaseTtl>, StoreError> {
        self.call(Calls::Lease, move |store| async move {
            store.lease_ttl(id).await
        })
        .await
    }

    async fn lease_revoke(&self, id: LeaseId) -> Result<(), StoreError> {
        self.call(Calls::Lease, move |store| async move {
            store.lease_revoke(id).await
        })
        .await
    }

    fn capabilities(&self) -> Capabilities {
        self.inner.store.capabilities()
    }

    fn runtime(&self) -> Option<Handle> {
        self.inner.store.runtime()
    }
}

impl<S: fmt::Debug> fmt::Debug for Faulty<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Faulty")
            .field("store", &self.inner.store)
            .finish_non_exhaustive()
    }
}
