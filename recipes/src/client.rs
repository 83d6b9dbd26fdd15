//! The handle that everything starts from: a store, who we are, and a source of randomness.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use quorate_proto::etcdserverpb::ResponseHeader;
use quorate_proto::mvccpb::KeyValue;
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};
use serde::{Deserialize, Serialize};

use crate::clock::{self, Clock, Instant, Moment, SystemClock};
use crate::counter::{Adder, AtomicCounter, IdBlocks};
use crate::election::Election;
use crate::error::Result;
use crate::inspect::Inspect;
use crate::keys::{Key, KeyRange, LeaseId, Name, Revision};
use crate::latch::CountdownLatch;
use crate::lock::{ExclusiveLock, Limit, MultiLock, Mutex as QueuedMutex, RwLock, Semaphore};
use crate::session::SessionBuilder;
use crate::stm::Stm;
use crate::store::{Namespaced, Store, ops};
use crate::txn::Txn;
use crate::value::Value;
use crate::watch::{Mirror, Watcher};

/// Most keys that one listing read asks for at a time.
const LIST_PAGE_KEYS: i64 = 1_000;

/// A store and the recipes over it. Cheap to clone. It starts nothing by itself; leases, renewals
/// and clean-up belong to a [`Session`](crate::Session).
#[derive(Clone)]
pub struct Client {
    inner: Arc<Inner>,
}

struct Inner {
    store: Arc<dyn Store>,
    clock: Arc<dyn Clock>,
    identity: Identity,
    random: Arc<Mutex<SmallRng>>,
}

/// Who a session says it is, for people who look at locks and queues. Never used in a decision.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// The machine's name.
    pub host: String,
    /// The process id.
    pub pid: u32,
    /// What the user calls this session or process; may be empty.
    #[serde(default)]
    pub label: String,
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.label.is_empty() {
            write!(f, "{} on ", self.label)?;
        }
        write!(f, "{} pid {}", self.host, self.pid)
    }
}

impl Identity {
    /// This process.
    fn current() -> Self {
        let host = rustix::system::uname()
            .nodename()
            .to_string_lossy()
            .into_owned();
        Self {
            host,
            pid: std::process::id(),
            label: String::new(),
        }
    }
}

/// Builds a [`Client`] that differs from the default.
#[derive(Debug)]
pub struct ClientBuilder {
    store: Arc<dyn Store>,
    clock: Arc<dyn Clock>,
    identity: Identity,
    seed: Option<u64>,
}

impl ClientBuilder {
    /// What this process is called in lists of holders and waiters. Default: empty.
    #[must_use]
    pub fn label(mut self, label: impl Into<String>) -> Self {
        self.identity.label = label.into();
        self
    }

    /// Draws lease ids, nonces and jitter from this seed, so that a simulation repeats itself.
    /// No two clients of one store may share a seed. Default: from the operating system.
    #[must_use]
    pub fn seed(mut self, seed: u64) -> Self {
        self.seed = Some(seed);
        self
    }

    /// What sessions read the time from. Default: the system's clock.
    #[must_use]
    pub fn clock(mut self, clock: Arc<dyn Clock>) -> Self {
        self.clock = clock;
        self
    }

    /// The client.
    #[must_use]
    pub fn build(self) -> Client {
        let random = match self.seed {
            Some(seed) => SmallRng::seed_from_u64(seed),
            None => {
                let mut seed = <SmallRng as SeedableRng>::Seed::default();
                for chunk in seed.chunks_mut(16) {
                    let fresh = uuid::Uuid::new_v4();
                    chunk.copy_from_slice(&fresh.as_bytes()[..chunk.len()]);
                }
                SmallRng::from_seed(seed)
            }
        };
        Client {
            inner: Arc::new(Inner {
                store: self.store,
                clock: self.clock,
                identity: self.identity,
                random: Arc::new(Mutex::new(random)),
            }),
        }
    }
}

impl Client {
    /// A client of `store`, with default settings.
    #[must_use]
    pub fn new(store: impl Store) -> Self {
        Self::builder(store).build()
    }

    /// A client of `store`, to be configured.
    #[must_use]
    pub fn builder(store: impl Store) -> ClientBuilder {
        Self::builder_shared(Arc::new(store))
    }

    /// As [`Client::builder`], for a store that is shared already.
    #[must_use]
    pub fn builder_shared(store: Arc<dyn Store>) -> ClientBuilder {
        ClientBuilder {
            store,
            clock: Arc::new(SystemClock),
            identity: Identity::current(),
            seed: None,
        }
    }

    /// A client of the part of the store under a literal key prefix, such as `team-a/`: it sees and
    /// writes nothing else, and its recipes meet no others of the same name. It draws from the same
    /// seed, with the same clock. Its recipes take sessions
    /// that it, or a clone of it, has opened. See [`Namespaced`].
    #[must_use]
    pub fn namespace(&self, prefix: impl Into<Key>) -> Self {
        let store = Namespaced::new(Arc::clone(self.store()), prefix);
        Self {
            inner: Arc::new(Inner {
                store: Arc::new(store),
                clock: Arc::clone(&self.inner.clock),
                identity: self.inner.identity.clone(),
                random: Arc::clone(&self.inner.random),
            }),
        }
    }

    /// The store below.
    #[must_use]
    pub fn store(&self) -> &Arc<dyn Store> {
        &self.inner.store
    }

    /// Opens a session: `client.session().ttl(Duration::from_secs(10)).await`.
    pub fn session(&self) -> SessionBuilder {
        SessionBuilder::new(self.clone())
    }

    /// A transaction, to be filled and committed.
    pub fn txn(&self) -> Txn {
        Txn::new(self.clone())
    }

    /// The queue-ordered lock of this name.
    #[must_use]
    pub fn mutex(&self, name: impl Into<Name>) -> QueuedMutex {
        QueuedMutex::new(self.clone(), &name.into())
    }

    /// The compare-and-swap lock of this name, for few contenders.
    #[must_use]
    pub fn exclusive(&self, name: impl Into<Name>) -> ExclusiveLock {
        ExclusiveLock::new(self.clone(), &name.into())
    }

    /// All queue-ordered locks of these names together.
    #[must_use]
    pub fn multi_lock<N: Into<Name>>(&self, names: impl IntoIterator<Item = N>) -> MultiLock {
        MultiLock::new(self.clone(), names.into_iter().map(Into::into))
    }

    /// The read-write lock of this name.
    #[must_use]
    pub fn rw_lock(&self, name: impl Into<Name>) -> RwLock {
        RwLock::new(self.clone(), &name.into())
    }

    /// The semaphore of this name, with so many permits: `client.semaphore("downloads", 5)`.
    #[must_use]
    pub fn semaphore(&self, name: impl Into<Name>, limit: impl Into<Limit>) -> Semaphore {
        Semaphore::new(self.clone(), &name.into(), limit.into())
    }

    /// The election of this name.
    #[must_use]
    pub fn election<T>(&self, name: impl Into<Name>) -> Election<T> {
        Election::new(self.clone(), &name.into())
    }

    /// The counter of this name.
    #[must_use]
    pub fn counter(&self, name: &str) -> AtomicCounter {
        AtomicCounter::new(self.clone(), name)
    }

    /// The adder of this name.
    #[must_use]
    pub fn adder(&self, name: &str) -> Adder {
        Adder::new(self.clone(), name)
    }

    /// The source of ids of this name.
    #[must_use]
    pub fn ids(&self, name: &str) -> IdBlocks {
        IdBlocks::new(self.clone(), name)
    }

    /// The latch of this name.
    #[must_use]
    pub fn latch(&self, name: &str) -> CountdownLatch {
        CountdownLatch::new(self.clone(), name)
    }

    /// A transaction over what it reads: `client.stm().run(async |tx| ...)`.
    pub fn stm(&self) -> Stm {
        Stm::new(self.clone())
    }

    /// Reads one key.
    ///
    /// # Errors
    /// The store's.
    pub async fn get(&self, key: impl Into<Key>) -> Result<Option<KeyValue>> {
        let answer = self.inner.store.range(ops::get(key)).await?;
        Ok(answer.kvs.into_iter().next())
    }

    /// Reads all keys of a range as they were at one revision, in key order, page by page, and
    /// says which revision.
    ///
    /// # Errors
    /// The store's; [`StoreError::Compacted`](crate::StoreError::Compacted) when the revision of
    /// the first page is compacted before the last page is read.
    pub async fn list(&self, range: KeyRange) -> Result<(Revision, Vec<KeyValue>)> {
        self.list_at(range, Revision(0)).await
    }

    /// As [`Client::list`], as they were at this revision; 0: now.
    ///
    /// # Errors
    /// As [`Client::list`].
    pub async fn list_at(
        &self,
        range: KeyRange,
        revision: Revision,
    ) -> Result<(Revision, Vec<KeyValue>)> {
        let (header, all) = self.listing(range, revision).await?;
        let at = match revision {
            Revision(0) => Revision(header.revision),
            revision => revision,
        };
        Ok((at, all))
    }

    /// As [`Client::list_at`], with what the first page says of the store.
    pub(crate) async fn listing(
        &self,
        range: KeyRange,
        revision: Revision,
    ) -> Result<(ResponseHeader, Vec<KeyValue>)> {
        let mut request = ops::range(range);
        request.revision = revision.0;
        request.limit = LIST_PAGE_KEYS;
        let mut first = None;
        let mut all = Vec::new();
        loop {
            let mut answer = self.inner.store.range(request.clone()).await?;
            let header = *first.get_or_insert(answer.header.unwrap_or_default());
            if request.revision == 0 {
                request.revision = header.revision;
            }
            all.append(&mut answer.kvs);
            match all.last() {
                Some(last) if answer.more => {
                    let mut next = last.key.to_vec();
                    next.push(0);
                    request.key = next.into();
                }
                _ => return Ok((header, all)),
            }
        }
    }

    /// Writes one key, unfenced and without a lease. Returns the new revision.
    ///
    /// # Errors
    /// The store's; ambiguous ones may have written.
    pub async fn put(&self, key: impl Into<Key>, value: impl Into<Value>) -> Result<Revision> {
        Ok(self.txn().put(key, value).commit().await?.revision())
    }

    /// Deletes one key, unfenced. Returns whether it existed.
    ///
    /// # Errors
    /// The store's; ambiguous ones may have deleted.
    pub async fn delete(&self, key: impl Into<Key>) -> Result<bool> {
        Ok(self.txn().delete(key).commit().await?.deleted(0) > 0)
    }

    /// Follows a range of keys: first all there are, then every change, through lost connections
    /// and compactions.
    #[must_use]
    pub fn watch(&self, range: KeyRange) -> Watcher {
        Watcher::new(self.clone(), range)
    }

    /// Keeps a copy of a range of keys up to date in the background; ready once the first listing
    /// is in.
    ///
    /// # Errors
    /// The store's, when the first listing is refused for good.
    pub async fn mirror(&self, range: KeyRange) -> Result<Mirror> {
        Mirror::start(self.clone(), range).await
    }

    /// Looks at what recipes do, from their keys.
    #[must_use]
    pub fn inspect(&self) -> Inspect {
        Inspect::new(self.clone())
    }

    /// Who this process is.
    #[must_use]
    pub fn identity(&self) -> &Identity {
        &self.inner.identity
    }

    /// What sessions read the time from.
    #[must_use]
    pub fn clock(&self) -> &Arc<dyn Clock> {
        &self.inner.clock
    }

    pub(crate) fn now(&self) -> Instant {
        self.inner.clock.now()
    }

    pub(crate) fn wall_millis(&self) -> u64 {
        self.inner.clock.wall_millis()
    }

    /// When `limit` is over; never, where that is too long to tell.
    pub(crate) fn deadline(&self, limit: Duration) -> Instant {
        clock::after(self.now(), limit)
    }

    pub(crate) fn moment(&self) -> Moment {
        Moment::now(&*self.inner.clock)
    }

    pub(crate) async fn sleep(&self, length: Duration) {
        let clock = &self.inner.clock;
        clock.sleep_until(clock::after(clock.now(), length)).await;
    }

    /// Completes at `deadline` by the client's clock; never without one.
    pub(crate) async fn until(&self, deadline: Option<Instant>) {
        match deadline {
            Some(deadline) => self.inner.clock.sleep_until(deadline).await,
            None => std::future::pending().await,
        }
    }

    /// What `work` gives, or nothing when the client's clock has come to `deadline` before.
    pub(crate) async fn before<T>(
        &self,
        deadline: Instant,
        work: impl Future<Output = T>,
    ) -> Option<T> {
        tokio::select! {
            biased;
            output = work => Some(output),
            () = self.inner.clock.sleep_until(deadline) => None,
        }
    }

    /// A fresh number, different on every call and in every client.
    pub(crate) fn random(&self) -> u64 {
        let mut random = self
            .inner
            .random
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        random.random()
    }

    /// A fresh name part: 16 hexadecimal digits.
    pub(crate) fn nonce(&self) -> String {
        format!("{:016x}", self.random())
    }

    /// A fresh lease id: positive, as etcd's own.
    pub(crate) fn lease_id(&self) -> LeaseId {
        let id = i64::try_from(self.random() >> 1).expect("63 bits fit");
        LeaseId(id.max(1))
    }

    /// A random part of `most`: between half of it and all of it.
    pub(crate) fn jitter(&self, most: Duration) -> Duration {
        let half = most / 2;
        let span = u64::try_from(half.as_micros()).unwrap_or(u64::MAX).max(1);
        half + Duration::from_micros(self.random() % span)
    }
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client")
            .field("store", &self.inner.store)
            .field("identity", &self.inner.identity)
            .finish_non_exhaustive()
    }
}
