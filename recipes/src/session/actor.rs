//! The core of a session, which all its parts share: who it is, until when it is alive, and its tasks.
//! Under handles of the session, and under what its guards and contenders do.

use std::any::Any;
use std::fmt;
use std::future::Future;
use std::sync::atomic::AtomicI64;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use quorate_proto::etcdserverpb::ResponseHeader;
use quorate_proto::mvccpb::KeyValue;
use tokio::sync::{Semaphore, watch};
use tokio_util::sync::CancellationToken;

use super::common::Commons;
use super::lane::Lanes;
use super::watchdog::Watchdog;
use super::{Lost, SessionState};
use crate::client::{Client, Identity};
use crate::clock::{Clock, Moment};
use crate::error::{Error, LostReason, Result};
use crate::keys::{Key, LeaseId, Revision};
use crate::lock::Epoch;
use crate::settled::Settled;
use crate::store::Lease;
use crate::tasks::Tasks;

/// Most operations of one session in progress at a time; more wait for a place.
pub(super) const OPERATIONS_MAX: usize = 256;

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

pub(super) struct Core {
    pub(super) client: Client,
    pub(super) tasks: Tasks,
    pub(super) lease: LeaseId,
    cluster_id: u64,
    who: Identity,
    pub(super) key: Key,
    pub(super) value: Bytes,
    epoch: Epoch,
    /// When the session's key was created. One of another revision is not the session's: late copies of
    /// its opening can make the lease and the key anew after both have gone.
    created: Revision,
    marks: Mutex<Marks>,
    watchdog: Option<Watchdog>,
    pub(super) state: watch::Sender<SessionState>,
    /// Why it is lost, for those who wait for that.
    pub(super) lost: Settled<LostReason>,
    /// The mod revision of the session's key, which every claim compares with. Held while sealing.
    pub(super) sealed_at: tokio::sync::Mutex<Revision>,
    /// The highest revision that an answer has shown.
    pub(super) floor: AtomicI64,
    pub(super) lanes: Lanes,
    commons: Commons,
    pub(super) operations: Arc<Semaphore>,
    /// Whether the lease was revoked at the session's end, for all who close it.
    pub(super) closed: Settled<Result<()>>,
    /// Settled once nothing sent for the session can take effect in the store any more.
    pub(super) gone: Settled<()>,
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
                commons: Commons::default(),
                operations: Arc::new(Semaphore::new(OPERATIONS_MAX)),
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

    /// What several users of the session have in common under this name: what is there, if it is still used and of
    /// use, else what `make` makes of an empty group of tasks on the session's runtime.
    pub(crate) fn common<T: Any + Send + Sync>(
        &self,
        name: String,
        of_use: impl FnOnce(&T) -> bool,
        make: impl FnOnce(Tasks) -> T,
    ) -> Arc<T> {
        let make = || make(self.core.tasks.beside());
        self.core.commons.get(name, of_use, make)
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
        let until = self.core.client.deadline(remaining);
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
        let until = self.core.client.deadline(self.left());
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
        let until = self.core.client.deadline(self.left());
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
}

impl fmt::Debug for Actor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Actor")
            .field("lease", &self.core.lease)
            .finish_non_exhaustive()
    }
}
