//! The core of a session: its clock and state, and the tasks that do its writes. A recipe's write
//! runs here to its end, whatever happens to the future that asked for it; what comes out cleans up
//! when it is dropped. So a dropped future can leave nothing behind.

use std::fmt;
use std::future::Future;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use quorate_proto::etcdserverpb::{
    RangeRequest, ResponseHeader, ResponseOp, TxnRequest, TxnResponse,
};
use quorate_proto::mvccpb::KeyValue;
use tokio::sync::{Semaphore, oneshot, watch};
use tokio_util::sync::CancellationToken;

use super::lane::Lanes;
use super::watchdog::Watchdog;
use super::{Lost, SessionState};
use crate::client::{Client, Identity};
use crate::clock::{Clock, Instant, Moment};
use crate::error::{Error, LostReason, Result};
use crate::keys::{EPOCH_KEY, Key, LeaseId, Revision};
use crate::lock::Epoch;
use crate::settled::Settled;
use crate::store::{Lease, StoreError, ops};
use crate::tasks::Tasks;
use crate::wait::{self, Backoff};

/// Most operations of one session in progress at a time; more wait for a place.
pub(super) const OPERATIONS_MAX: usize = 256;

/// How long closing a session waits for its operations in progress.
const CLOSE_GRACE: Duration = Duration::from_secs(5);

/// What the opening of a session has come to.
pub(super) struct Opened {
    pub(super) lease: Lease,
    pub(super) who: Identity,
    pub(super) key: Key,
    /// Of the key.
    pub(super) value: Bytes,
    /// When the key was created.
    pub(super) created: Revision,
    pub(super) epoch: Epoch,
    /// How long the program may go without a sign of life.
    pub(super) watchdog: Option<Duration>,
}

/// What does a session's writes. Cheap to clone; it does not keep the session alive.
#[derive(Clone)]
pub struct Actor {
    pub(super) core: Arc<Core>,
}

tokio::task_local! {
    /// Inside [`Actor::run`]: cancelled once nobody waits for the outcome any more.
    static CALLER: CancellationToken;
}

pub(super) struct Core {
    client: Client,
    tasks: Tasks,
    lease: LeaseId,
    cluster_id: u64,
    who: Identity,
    key: Key,
    pub(super) value: Bytes,
    epoch: Epoch,
    /// When the session's key was created. One of another revision is not the session's: late copies of
    /// its opening can make the lease and the key anew after both have gone.
    created: Revision,
    marks: Mutex<Marks>,
    watchdog: Option<Watchdog>,
    state: watch::Sender<SessionState>,
    /// Why it is lost, for those who wait for that.
    lost: Settled<LostReason>,
    /// The mod revision of the session's key, which every claim compares with. Held while sealing.
    pub(super) sealed_at: tokio::sync::Mutex<Revision>,
    /// The highest revision that an answer has shown.
    floor: AtomicI64,
    pub(super) lanes: Lanes,
    operations: Arc<Semaphore>,
    closing: AtomicBool,
    /// How the closing went, for all who asked for it.
    closed: Settled<Result<()>>,
    /// Settled once nothing sent for the session can take effect in the store any more.
    gone: Settled<()>,
    /// Cancelled once no write of this session can matter any more.
    pub(super) over: CancellationToken,
}

impl Drop for Core {
    fn drop(&mut self) {
        self.lost.settle(LostReason::Closed);
        self.gone.settle(());
    }
}

/// When the lease was last known to be alive, and for how long that holds.
#[derive(Debug, Clone, Copy)]
struct Marks {
    /// When the request that was acknowledged was sent: the lease's time began after that.
    sent: Moment,
    ttl: Duration,
}

impl Marks {
    /// Leaves a tenth (at most 1 s) for clocks that run at different rates.
    fn remaining(&self, clock: &dyn Clock) -> Duration {
        let margin = (self.ttl / 10).clamp(Duration::from_millis(100), Duration::from_secs(1));
        let lasts = self.ttl.saturating_sub(margin);
        lasts.saturating_sub(self.sent.elapsed(clock))
    }
}

/// The task that closes a session. The runtime may end before the task does.
struct Closing(Settled<Result<()>>);

impl Drop for Closing {
    fn drop(&mut self) {
        self.0.settle(Err(Error::Closed));
    }
}

impl Actor {
    pub(super) fn new(client: Client, tasks: Tasks, opened: Opened) -> Self {
        let Opened {
            lease,
            who,
            key,
            value,
            created,
            epoch,
            watchdog,
        } = opened;
        let watchdog = watchdog.map(|limit| Watchdog::new(limit, client.moment()));
        let marks = Marks {
            sent: client.moment(),
            ttl: Duration::ZERO,
        };
        let (state, _) = watch::channel(SessionState::Live {
            until: client.now(),
        });
        Self {
            core: Arc::new(Core {
                client,
                tasks,
                lease: lease.id,
                cluster_id: lease.header.cluster_id,
                who,
                key,
                value,
                epoch,
                marks: Mutex::new(marks),
                watchdog,
                state,
                lost: Settled::new(),
                created,
                sealed_at: tokio::sync::Mutex::new(created),
                floor: AtomicI64::new(0),
                lanes: Lanes::new(),
                operations: Arc::new(Semaphore::new(OPERATIONS_MAX)),
                closing: AtomicBool::new(false),
                closed: Settled::new(),
                gone: Settled::new(),
                over: CancellationToken::new(),
            }),
        }
    }

    /// The client that opened the session.
    #[must_use]
    pub fn client(&self) -> &Client {
        &self.core.client
    }

    /// The lease's id.
    #[must_use]
    pub fn lease(&self) -> LeaseId {
        self.core.lease
    }

    /// The revision at which the session's key was created.
    pub(super) fn session_created(&self) -> Revision {
        self.core.created
    }

    /// As [`Session::belongs_to`](super::Session::belongs_to).
    pub(crate) fn belongs_to(&self, client: &Client) -> Result<()> {
        if Arc::ptr_eq(self.client().store(), client.store()) {
            return Ok(());
        }
        Err(Error::Invalid(format!(
            "session {} is of another store than the client",
            self.lease()
        )))
    }

    /// Whether a key that was read is the session's key.
    pub(super) fn is_session(&self, kv: &KeyValue) -> bool {
        kv.lease == self.core.lease.0 && kv.create_revision == self.core.created.0
    }

    pub(super) fn session_key(&self) -> &Key {
        &self.core.key
    }

    /// Who the session says it is.
    pub(super) fn who(&self) -> &Identity {
        &self.core.who
    }

    /// The epoch read when the session was opened.
    #[must_use]
    pub fn epoch(&self) -> &Epoch {
        &self.core.epoch
    }

    /// As [`Session::state`](super::Session::state).
    #[must_use]
    pub fn state(&self) -> SessionState {
        let current = *self.core.state.borrow();
        if matches!(current, SessionState::Lost(_)) {
            return current;
        }
        let remaining = self.left();
        if remaining.is_zero() {
            self.lose(match self.is_stalled() {
                true => LostReason::Stalled,
                false => LostReason::Expired,
            });
            return *self.core.state.borrow();
        }
        let until = self.core.client.now() + remaining;
        match current {
            SessionState::Live { .. } => SessionState::Live { until },
            _ => SessionState::Suspended { until },
        }
    }

    /// As [`Session::remaining`](super::Session::remaining).
    #[must_use]
    pub fn remaining(&self) -> Duration {
        match self.state() {
            SessionState::Lost(_) => Duration::ZERO,
            _ => self.left(),
        }
    }

    /// As [`Session::check`](super::Session::check).
    ///
    /// # Errors
    /// [`Error::SessionLost`].
    pub fn check(&self) -> Result<()> {
        match self.state() {
            SessionState::Lost(reason) => Err(Error::SessionLost(reason)),
            _ => Ok(()),
        }
    }

    /// As [`Session::lost`](super::Session::lost).
    pub fn lost(&self) -> Lost {
        let lost = self.core.lost.clone();
        Lost::new(async move { lost.wait().await })
    }

    pub(super) fn subscribe(&self) -> watch::Receiver<SessionState> {
        self.core.state.subscribe()
    }

    pub(super) fn ttl(&self) -> Duration {
        self.marks().ttl
    }

    pub(super) fn since_acknowledged(&self) -> Duration {
        self.marks().sent.elapsed(&**self.core.client.clock())
    }

    /// Time until the local deadline, whatever the state says.
    fn left(&self) -> Duration {
        let left = self.lease_left();
        let watchdog = self.core.watchdog.as_ref();
        let clock = &**self.core.client.clock();
        watchdog.map_or(left, |watchdog| left.min(watchdog.left(clock)))
    }

    /// Time until the lease may have run out, whatever the watchdog says: what calls have.
    pub(super) fn lease_left(&self) -> Duration {
        self.marks().remaining(&**self.core.client.clock())
    }

    fn is_stalled(&self) -> bool {
        let clock = &**self.core.client.clock();
        let watchdog = self.core.watchdog.as_ref();
        watchdog.is_some_and(|watchdog| watchdog.left(clock).is_zero())
    }

    /// As [`Session::feed_watchdog`](super::Session::feed_watchdog).
    pub(super) fn feed_watchdog(&self) {
        let now = self.core.client.moment();
        // Judged first: a late sign must not bring a session back that is lost but does not know.
        let live = self.check().is_ok();
        if let Some(watchdog) = self.core.watchdog.as_ref().filter(|_| live) {
            watchdog.feed(now);
        }
    }

    fn marks(&self) -> Marks {
        *self.lock_marks()
    }

    fn lock_marks(&self) -> MutexGuard<'_, Marks> {
        let marks = self.core.marks.lock();
        marks.unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes a renewal that was sent at `sent` and has been acknowledged. Loss is final.
    pub(super) fn acknowledge(&self, sent: Moment, lease: &Lease) {
        let marks = Marks {
            sent,
            ttl: lease.ttl,
        };
        *self.lock_marks() = marks;
        let until = self.core.client.now() + self.left();
        let mut resumed = false;
        self.core.state.send_if_modified(|state| {
            let lost = matches!(state, SessionState::Lost(_));
            if !lost {
                resumed = matches!(state, SessionState::Suspended { .. });
                *state = SessionState::Live { until };
            }
            !lost
        });
        if resumed {
            tracing::info!(lease = %self.core.lease, "session live again");
        }
    }

    pub(super) fn suspend(&self, why: &str) {
        let until = self.core.client.now() + self.left();
        let suspended = self.core.state.send_if_modified(|state| {
            let live = matches!(state, SessionState::Live { .. });
            if live {
                *state = SessionState::Suspended { until };
            }
            live
        });
        if suspended {
            tracing::warn!(lease = %self.core.lease, why, "session suspended");
        }
    }

    /// Makes the session lost, once and for all.
    pub(crate) fn lose(&self, reason: LostReason) {
        let first = self.core.state.send_if_modified(|state| {
            let lost = matches!(state, SessionState::Lost(_));
            if !lost {
                *state = SessionState::Lost(reason);
            }
            !lost
        });
        self.core.lost.settle(reason);
        if reason != LostReason::Closed {
            self.core.over.cancel();
        }
        if !first || reason == LostReason::Closed {
            return;
        }
        tracing::warn!(lease = %self.core.lease, %reason, "session lost");
        // The lease may be alive yet, also in a store that was put back, where nobody else has one of this
        // id; or a renewal is under way that keeps it, and so the keys, for longer.
        let actor = self.clone();
        let revocation = async move {
            let deadline = actor.core.client.now() + actor.ttl();
            let revoked = actor.revoke(deadline).await;
            actor.end_with(revoked.is_ok()).await;
        };
        match self.core.client.store().runtime() {
            Some(runtime) => Tasks::spawn_apart_on(&runtime, "revoke", revocation),
            None => self.core.tasks.spawn_apart("revoke", revocation),
        }
    }

    /// Notes the end of a lease that has been revoked; or else once it has had time to run out.
    async fn end_with(&self, revoked: bool) {
        if !revoked {
            self.core.client.sleep(self.ttl()).await;
        }
        self.core.gone.settle(());
    }

    /// Settled once a lost or closed session's lease is revoked: from then on none of its keys is there, and
    /// nothing that was sent for it can take effect. Where the store does not confirm that, once the lease has
    /// had its full time twice, which is as good as can be known.
    pub(crate) fn gone(&self) -> Settled<()> {
        self.core.gone.clone()
    }

    /// Waits until a lost session is gone by the store's own word: each new leader gives leases all of their
    /// time again, so no time tells. Trouble with the store is waited out, and a final refusal ends it.
    pub(crate) async fn until_gone(&self) {
        self.gone().wait().await;
        let client = &self.core.client;
        let mut pause = Backoff::between_attempts(client);
        while let Ok(answer) = wait::read(client, ops::get(&self.core.key)).await {
            if !answer.kvs.first().is_some_and(|kv| self.is_session(kv)) {
                return;
            }
            pause.pause().await;
        }
    }

    /// The error of a session that is over.
    #[must_use]
    pub fn loss(&self) -> Error {
        match self.state() {
            SessionState::Lost(reason) => Error::SessionLost(reason),
            _ => Error::Closed,
        }
    }

    pub(super) fn is_another_cluster(&self, header: &ResponseHeader) -> bool {
        header.cluster_id != self.core.cluster_id
    }

    /// Starts a task that ends with the session. Closing waits for it, so it must end by itself
    /// soon after the session is lost.
    pub fn spawn<F>(&self, name: &'static str, future: F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        self.core.tasks.spawn(name, future);
    }

    /// Starts the task that renews the lease, where the store wants it.
    pub(super) fn spawn_renewals<F>(&self, renewals: F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        match self.core.client.store().runtime() {
            Some(runtime) => self.core.tasks.spawn_on(&runtime, "renew", renewals),
            None => self.core.tasks.spawn("renew", renewals),
        }
    }

    /// Whether this is an operation whose asker has dropped its future. What has been sent is seen to its
    /// end then, and nothing else is begun: a store that comes back later must not hear of it first then.
    pub(super) fn is_abandoned() -> bool {
        CALLER
            .try_with(CancellationToken::is_cancelled)
            .unwrap_or(false)
    }

    /// Runs a write of the session, whether or not the returned future is kept: when it is dropped, what is
    /// on its way to the store is seen to its end, and what has not been sent is not. The output must clean
    /// up after itself when dropped, as [`Owned`](super::Owned) does.
    ///
    /// # Errors
    /// [`Error::SessionLost`], and those of `operation`.
    pub async fn run<T, F, Fut>(&self, operation: F) -> Result<T>
    where
        F: FnOnce(Self) -> Fut + Send + 'static,
        Fut: Future<Output = Result<T>> + Send + 'static,
        T: Send + 'static,
    {
        self.check()?;
        let places = Arc::clone(&self.core.operations);
        let place = places.acquire_owned().await.map_err(|_| Error::Closed)?;
        let (tell, answer) = oneshot::channel();
        let caller = CancellationToken::new();
        let _here = caller.clone().drop_guard();
        let actor = self.clone();
        let operation = CALLER.scope(caller, async move {
            let output = operation(actor).await;
            drop(tell.send(output));
            drop(place);
        });
        self.spawn("operation", operation);
        answer.await.map_err(|_| self.loss())?
    }

    /// One transaction, sent once. The session is lost if the store turns out to be another one.
    ///
    /// # Errors
    /// [`Error::SessionLost`], else the store's.
    pub async fn attempt(&self, request: TxnRequest) -> Result<TxnResponse> {
        let answer = self.send(request).await;
        answer.unwrap_or_else(|| Err(self.loss()))
    }

    /// As [`Actor::attempt`]; `None` when the session was over before the answer came.
    pub(super) async fn send(&self, request: TxnRequest) -> Option<Result<TxnResponse>> {
        let floor = self.core.floor.load(Ordering::Acquire);
        let answer = tokio::select! {
            biased;
            () = self.core.over.cancelled() => return None,
            answer = self.core.client.store().txn(request) => answer,
        };
        Some(match answer {
            Ok(answer) => {
                let header = answer.header.unwrap_or_default();
                if self.is_another_cluster(&header) || header.revision < floor {
                    self.lose(LostReason::StoreReplaced);
                    return None;
                }
                self.core.floor.fetch_max(header.revision, Ordering::AcqRel);
                Ok(answer)
            }
            Err(StoreError::LeaseNotFound) => {
                self.lose(LostReason::LeaseGone);
                Err(self.loss())
            }
            Err(error) => Err(error.into()),
        })
    }

    /// Sends an idempotent transaction until it is answered or the session is over. Also returns
    /// whether an earlier copy may have been applied before the one that was answered.
    ///
    /// # Errors
    /// [`Error::SessionLost`]; the store's final refusals; [`Error::Closed`] when it cannot have been applied
    /// and whoever asked for the operation has gone.
    pub async fn repeat(&self, request: TxnRequest) -> Result<(TxnResponse, bool)> {
        self.repeat_unless(request, Self::is_abandoned).await
    }

    /// As [`Actor::repeat`], whoever has gone: for what ends something that was begun.
    pub(super) async fn persist(&self, request: TxnRequest) -> Result<(TxnResponse, bool)> {
        self.repeat_unless(request, || false).await
    }

    async fn repeat_unless(
        &self,
        request: TxnRequest,
        given_up: impl Fn() -> bool,
    ) -> Result<(TxnResponse, bool)> {
        let mut pause = Backoff::between_attempts(&self.core.client);
        let mut repeated = false;
        loop {
            match self.attempt(request.clone()).await {
                Ok(answer) => return Ok((answer, repeated)),
                Err(Error::Store(error)) if error.is_transient() => {
                    repeated |= error.is_ambiguous();
                    if !repeated && given_up() {
                        return Err(Error::Closed);
                    }
                    tokio::select! {
                        biased;
                        () = pause.pause() => {}
                        () = self.core.over.cancelled() => return Err(self.loss()),
                    }
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Asks the store whether the session's key is there as it was created, in the same epoch, and makes the
    /// session lost if it is not. The lease alone would not tell: a copy of its grant that comes late makes
    /// it anew.
    ///
    /// # Errors
    /// [`Error::SessionLost`]; the store's.
    pub async fn verify(&self) -> Result<()> {
        self.check()?;
        let request = TxnRequest {
            success: self.reads().map(ops::read).into(),
            ..Default::default()
        };
        let answer = self.core.client.store().txn(request).await?;
        self.judge_reads(&answer.responses).map(drop)
    }

    /// The reads by which [`Actor::judge_reads`] tells whether the session is alive.
    pub(super) fn reads(&self) -> [RangeRequest; 2] {
        [ops::get(&self.core.key), ops::get(EPOCH_KEY)]
    }

    /// Whether the session is alive by what [`Actor::reads`] found, which comes first in `found`; the
    /// session's key then. Makes it lost otherwise.
    ///
    /// # Errors
    /// [`Error::SessionLost`].
    pub(super) fn judge_reads<'a>(&self, found: &'a [ResponseOp]) -> Result<&'a KeyValue> {
        let session = ops::kvs(found, 0).first().filter(|kv| self.is_session(kv));
        let epoch = ops::kvs(found, 1).first();
        match session {
            None => self.lose(LostReason::LeaseGone),
            // Nothing under the session can be written any more, whatever it still has.
            Some(_) if !self.core.epoch.compare().holds_for(epoch) => {
                self.lose(LostReason::StoreReplaced);
            }
            Some(session) => {
                self.check()?;
                return Ok(session);
            }
        }
        Err(self.loss())
    }

    /// Grants a lease besides the session's, which nobody renews: for a key that the store is to take away by
    /// itself. Trouble with the store is waited out. One that was granted unheard runs out, without effect.
    ///
    /// # Errors
    /// [`Error::SessionLost`]; the store's final refusals.
    pub(crate) async fn grant_apart(&self, ttl: Duration) -> Result<Lease> {
        let client = &self.core.client;
        let mut pause = Backoff::between_attempts(client);
        loop {
            self.check()?;
            match client.store().lease_grant(client.lease_id(), ttl).await {
                Ok(lease) => return Ok(lease),
                Err(error) if error.is_transient() || error == StoreError::LeaseExists => {
                    pause.pause().await;
                }
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Why a key of the session is gone. Trouble with the store is waited out.
    pub(crate) async fn why_gone(&self, key: &Key) -> Error {
        let mut pause = Backoff::between_attempts(&self.core.client);
        loop {
            match self.verify().await {
                Ok(()) => return Error::Removed(key.clone()),
                Err(Error::Store(error)) if error.is_transient() => pause.pause().await,
                Err(error) => return error,
            }
        }
    }

    /// Ends the session in the background. What is returned tells how it went, to everybody who asks.
    pub(super) fn close_in_background(&self) -> Settled<Result<()>> {
        let known = self.lease_left();
        self.lose(LostReason::Closed);
        let closed = self.core.closed.clone();
        if self.core.closing.swap(true, Ordering::AcqRel) {
            return closed;
        }
        if *self.core.state.borrow() != SessionState::Lost(LostReason::Closed) {
            // Lost before: there is no more to end.
            closed.settle(Ok(()));
            return closed;
        }
        let actor = self.clone();
        let closing = Closing(closed.clone());
        self.core.tasks.spawn_apart("close", async move {
            let deadline = actor.core.client.now() + known.max(Duration::from_secs(1));
            if !actor.core.tasks.idle(CLOSE_GRACE.min(known)).await {
                tracing::warn!(lease = %actor.core.lease, "closing with operations in progress");
            }
            actor.core.over.cancel();
            actor.core.tasks.cancel();
            let revoked = actor.revoke(deadline).await;
            closing.0.settle(revoked.clone());
            actor.end_with(revoked.is_ok()).await;
        });
        closed
    }

    async fn revoke(&self, deadline: Instant) -> Result<()> {
        let mut pause = Backoff::between_attempts(&self.core.client);
        loop {
            let call = self.core.client.store().lease_revoke(self.core.lease);
            match self.core.client.before(deadline, call).await {
                Some(Ok(()) | Err(StoreError::LeaseNotFound)) => return Ok(()),
                Some(Err(error)) if error.is_transient() && self.core.client.now() < deadline => {
                    pause.pause().await;
                }
                Some(Err(error)) if !error.is_transient() => return Err(error.into()),
                _ => {
                    return Err(Error::OutcomeUnknown(format!(
                        "lease {} was not revoked in time and is left to run out",
                        self.core.lease
                    )));
                }
            }
        }
    }
}

impl fmt::Debug for Actor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Actor")
            .field("lease", &self.core.lease)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::faulty::{Calls, Stage};
    use crate::store::{Faulty, MemStore};

    #[tokio::test(start_paused = true)]
    async fn all_who_close_hear_of_the_one_revocation() {
        let store = MemStore::new();
        let faulty = Faulty::new(store.clone());
        let client = Client::new(faulty.clone());
        let session = client.session().await.unwrap();
        let mut second = Box::pin(session.clone().close());
        let mut first = Box::pin(session.close());
        let revocation = faulty.hold(1, Calls::Lease, Stage::NotSent);
        for mut closing in [&mut first, &mut second] {
            let early = tokio::time::timeout(Duration::from_secs(1), &mut closing).await;
            assert!(early.is_err(), "closed with its lease alive: {early:?}");
        }
        assert!(revocation.is_reached());
        revocation.release();
        for outcome in <[_; 2]>::from(tokio::join!(first, second)) {
            assert!(outcome.is_ok(), "{outcome:?}");
        }
        assert_eq!(store.leases(), []);
    }

    #[tokio::test(start_paused = true)]
    async fn all_who_close_hear_that_it_failed() {
        let faulty = Faulty::new(MemStore::new());
        let client = Client::new(faulty.clone());
        let session = client.session().await.unwrap();
        let other = session.clone();
        faulty.disconnect(crate::store::faulty::Outage::Refused);
        let (first, second) = tokio::join!(session.close(), other.close());
        for outcome in [first, second] {
            let unknown = matches!(outcome, Err(Error::OutcomeUnknown(_)));
            assert!(unknown, "{outcome:?}");
        }
    }
}
