//! A session is one lease and what keeps it alive: everything a process holds, it holds under a
//! session, and loses with it. `actor` is its core, `calls` does the writes that must not be
//! left half done, `claim` creates keys exactly once, `lane` changes exactly once what others may
//! change as well, `renew` keeps the lease, `watchdog` as long as the program shows that it goes on,
//! `ending` has it revoked, and `common` is what its users share.

mod actor;
mod calls;
mod claim;
mod common;
mod ending;
mod lane;
mod open;
mod renew;
mod watchdog;

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures::future::BoxFuture;
use tokio::sync::watch;

pub use actor::Actor;
pub use claim::{Attach, Claim, Claimed, NewKey, Owned};
pub(crate) use lane::LANE_OPS;
pub use lane::{Effect, Effected, Lane};
pub use open::{SessionBuilder, SessionRecord};

use crate::client::{Client, Identity};
use crate::clock::Instant;
use crate::error::{LostReason, Result};
use crate::keys::LeaseId;

/// Where a session stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SessionState {
    /// The last renewal was acknowledged.
    Live {
        /// The local deadline: lost then unless a renewal is acknowledged before.
        until: Instant,
    },
    /// A renewal failed or is overdue, but the lease is alive: fences are valid and work may go on.
    Suspended {
        /// The local deadline.
        until: Instant,
    },
    /// Over, for good.
    Lost(LostReason),
}

/// One lease, kept alive until the last handle of the session goes. Cheap to clone; guards,
/// contenders and registrations hold a clone, so a session lives at least as long as they do.
///
/// It is lost when the store says that the lease is gone, or when the local clock says that the
/// lease may have run out: no renewal acknowledged within its time to live, counted from the moment
/// the renewal was *sent*. Loss is final, also when the network comes back a moment later.
///
/// It is for recipes of the client that opened it, of its clones, and of clients that share its store
/// ([`Client::builder_shared`]). Others refuse it with [`Error::Invalid`](crate::Error::Invalid), those of a
/// [namespace](Client::namespace) too: they would look for its keys elsewhere than it writes them.
///
/// Dropping the last handle ends the session: the lease is revoked in the background.
#[derive(Clone)]
pub struct Session {
    handle: Arc<Handle>,
    task: Option<Arc<str>>,
}

/// The counted part: its drop is the drop of the last handle.
struct Handle {
    actor: Actor,
}

impl Drop for Handle {
    fn drop(&mut self) {
        drop(self.actor.close_in_background());
    }
}

impl Session {
    fn new(actor: Actor) -> Self {
        Self {
            handle: Arc::new(Handle { actor }),
            task: None,
        }
    }

    /// A handle of the same session for one of its tasks. What is taken through it is shown under that
    /// name, and told apart from what other tasks hold when deadlocks are looked for.
    #[must_use]
    pub fn for_task(&self, name: &str) -> Self {
        Self {
            handle: Arc::clone(&self.handle),
            task: Some(name.into()),
        }
    }

    /// A handle of the same session for none of its tasks.
    pub(crate) fn for_any_task(&self) -> Self {
        Self {
            handle: Arc::clone(&self.handle),
            task: None,
        }
    }

    /// The task that this handle is for.
    #[must_use]
    pub fn task(&self) -> Option<&str> {
        self.task.as_deref()
    }

    /// Who the session says it is, in lists of holders and waiters.
    #[must_use]
    pub fn who(&self) -> &Identity {
        self.handle.actor.who()
    }

    /// Where the session stands now. Judged by the clock, so it is right even when the session's
    /// own task has not been run in time.
    #[must_use]
    pub fn state(&self) -> SessionState {
        self.handle.actor.state()
    }

    /// Follows the state. For a decision use [`Session::state`], which also looks at the clock.
    #[must_use]
    pub fn watch_state(&self) -> watch::Receiver<SessionState> {
        self.handle.actor.subscribe()
    }

    /// Completes when the session is lost or closed.
    pub fn lost(&self) -> Lost {
        self.handle.actor.lost()
    }

    /// Time until the session is lost unless a renewal is acknowledged; zero once it is lost.
    #[must_use]
    pub fn remaining(&self) -> Duration {
        self.handle.actor.remaining()
    }

    /// Fails once the session is lost.
    ///
    /// # Errors
    /// [`Error::SessionLost`](crate::Error::SessionLost).
    pub fn check(&self) -> Result<()> {
        self.handle.actor.check()
    }

    /// The lease's id.
    #[must_use]
    pub fn lease(&self) -> LeaseId {
        self.handle.actor.lease()
    }

    /// The lease's full time to live, as granted by the store.
    #[must_use]
    pub fn ttl(&self) -> Duration {
        self.handle.actor.ttl()
    }

    /// The client that opened the session.
    #[must_use]
    pub fn client(&self) -> &Client {
        self.handle.actor.client()
    }

    /// Fails unless the session is of the store that `client` has: what a recipe writes under a session
    /// goes where the session is, and what it reads comes from its client. Every verb of a recipe that
    /// takes a session asks this first.
    ///
    /// # Errors
    /// [`Error::Invalid`](crate::Error::Invalid).
    pub(crate) fn belongs_to(&self, client: &Client) -> Result<()> {
        self.handle.actor.belongs_to(client)
    }

    /// What does the session's writes. It does not keep the session alive.
    #[must_use]
    pub fn actor(&self) -> &Actor {
        &self.handle.actor
    }

    /// Tells the session's [watchdog](SessionBuilder::watchdog) that the program goes on; without one, nothing.
    /// A sign that comes too late changes nothing: the session is lost then.
    pub fn feed_watchdog(&self) {
        self.handle.actor.feed_watchdog();
    }

    /// Ends the session: every guard under it is lost at once, writes in progress are let finish,
    /// and the lease is revoked, which deletes every key attached to it. Whoever closes a clone as well
    /// waits for the same.
    ///
    /// A session that was lost has its lease revoked from then on, by itself; closing it waits for that too,
    /// so that `Ok` says in any case that the store has none of its keys any more. It takes no longer than
    /// the lease's time to live, counted from the last renewal or from the loss.
    ///
    /// # Errors
    /// [`Error::OutcomeUnknown`](crate::Error::OutcomeUnknown) when the store did not acknowledge the revocation in time; the
    /// lease then runs out by itself. The store's final refusals, likewise. [`Error::Closed`](crate::Error::Closed)
    /// when the runtime has ended.
    ///
    /// # Cancel safety
    /// Dropping the future does not stop the closing.
    pub async fn close(self) -> Result<()> {
        self.handle.actor.close_in_background().wait().await
    }
}

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Session")
            .field("lease", &self.lease())
            .field("state", &self.state())
            .finish_non_exhaustive()
    }
}

/// A future of the loss of a session or a guard. It holds neither of them.
#[must_use = "futures do nothing unless awaited"]
pub struct Lost(BoxFuture<'static, LostReason>);

impl Lost {
    pub(crate) fn new(future: impl Future<Output = LostReason> + Send + 'static) -> Self {
        Self(Box::pin(future))
    }
}

impl Future for Lost {
    type Output = LostReason;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<LostReason> {
        self.0.as_mut().poll(cx)
    }
}

impl fmt::Debug for Lost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Lost")
    }
}

#[cfg(test)]
mod trouble_tests;

#[cfg(test)]
mod tests {
    use std::num::NonZeroU32;

    use super::*;
    use crate::condition::{Condition, Release};
    use crate::config::{Expect, Rule};
    use crate::dispatch::{Sending, Target};
    use crate::error::Error;
    use crate::keys::Revision;
    use crate::stm::Transaction;
    use crate::store::faulty::{Calls, Stage};
    use crate::store::{Faulty, MemStore, Store};

    /// Every verb that takes a session, with one of another store.
    #[tokio::test(start_paused = true)]
    async fn a_session_of_another_store_is_refused_before_anything_is_written() {
        let store = MemStore::new();
        let root = Client::new(store.clone());
        let session = root.session().await.unwrap();
        let before = store.revision();
        let c = root.namespace("a/");
        let s = &session;
        let conditional = |release| {
            let when = Condition::started().or(Condition::done("a"));
            c.condition_queue::<u32>("m", when).release(release)
        };
        let ops = c.dispatcher::<u32, u32>("m");
        let (mutex, rw, many) = (c.mutex("m"), c.rw_lock("m"), NonZeroU32::MIN);
        let refused: Vec<Result<()>> = vec![
            mutex.lock(s).await.map(drop),
            mutex.try_lock(s).await.map(drop),
            mutex.request_release(s, "").await.map(drop),
            mutex.shared(s).lock().await.map(drop),
            mutex.combined(s).lock().await.map(drop),
            rw.read(s).await.map(drop),
            rw.write(s).await.map(drop),
            rw.try_read(s).await.map(drop),
            rw.try_write(s).await.map(drop),
            c.multi_lock(["a", "b"]).lock(s).await.map(drop),
            c.multi_lock(["a", "b"]).try_lock(s).await.map(drop),
            c.exclusive("m").lock(s).await.map(drop),
            c.exclusive("m").try_lock(s).await.map(drop),
            c.semaphore("m", 2).acquire(s).await.map(drop),
            c.semaphore("m", 2).try_acquire(s, many).await.map(drop),
            c.election("m").campaign(s, 1).await.map(drop),
            c.election("m").try_campaign(s, 1).await.map(drop),
            c.election::<u32>("m")
                .request_resignation(s, "")
                .await
                .map(drop),
            c.barrier("m").hold(s).await.map(drop),
            c.barrier("m").set(s).await.map(drop),
            c.double_barrier("m", 1).enter(s).await.map(drop),
            c.cyclic_barrier("m", 1).wait(s).await.map(drop),
            c.counter("m").add(s, 1).await.map(drop),
            c.counter("m").compare_and_set(s, 0, 1).await.map(drop),
            c.counter("m").set(s, 1).await.map(drop),
            c.adder("m").add(s, 1).await.map(drop),
            c.latch("m").init(s, 1).await.map(drop),
            c.latch("m").count_down(s).await.map(drop),
            c.latch("m").reset(s).await.map(drop),
            c.rate_limiter("m", 1, Duration::from_secs(1))
                .acquire(s, 1)
                .await,
            c.rate_limiter("m", 1, Duration::from_secs(1))
                .try_acquire(s, 1)
                .await
                .map(drop),
            c.rate_limiter("m", 1, Duration::from_secs(1))
                .set_rule(s, 2, Duration::from_secs(1))
                .await
                .map(drop),
            c.once::<u32>("m")
                .get_or_try_init(s, || async { Ok::<_, Error>(1) })
                .await
                .map(drop)
                .map_err(|error| match error {
                    crate::once::OnceError::Failed(error) => error,
                    crate::once::OnceError::Init(error) => error,
                    other => panic!("{other}"),
                }),
            c.config("m/k").publish(s, &1, Expect::Any).await.map(drop),
            c.config::<u32>("m/k")
                .rollback(s, 1, "", Expect::Any)
                .await
                .map(drop),
            c.config("m/k")
                .gray(s, &Rule::new("r"), &1, Expect::Any)
                .await
                .map(drop),
            c.config::<u32>("m/k")
                .promote(s, "r", Expect::Any)
                .await
                .map(drop),
            c.config::<u32>("m/k").withdraw(s, "r").await.map(drop),
            c.config::<u32>("m/k")
                .follow()
                .acknowledge(s)
                .await
                .map(drop),
            c.config_group::<u32>("m")
                .publish()
                .set("k", &1, Expect::Any)
                .commit(s)
                .await
                .map(drop),
            c.config_group::<u32>("m")
                .rollback(s, Revision(1), "")
                .await
                .map(drop),
            c.group::<u32>("m").join(s, 1).await.map(drop),
            conditional(Release::Batch).join(s, "a", &1).await.map(drop),
            conditional(Release::Batch).withdraw(s, "a").await.map(drop),
            conditional(Release::Batch).start(s).await.map(drop),
            conditional(Release::Batch).mark_done(s, "a").await,
            conditional(Release::Batch).take(s).await.map(drop),
            conditional(Release::Fan).consumer(s).await.map(drop),
            ops.send(s, Target::Any("a".to_owned()), &1).await.map(drop),
            ops.send_all(s, |_| true, &1, Sending::new())
                .await
                .map(drop),
            ops.inbox(s, [Target::Any("a".to_owned())]).await.map(drop),
            c.partitions("m", 1).join(s).await.map(drop),
            c.stm()
                .under(s)
                .run(async |tx: Transaction| -> Result<()> {
                    tx.put("k", "v");
                    Ok(())
                })
                .await
                .map(drop),
            c.txn()
                .put_leased("k", "v", s)
                .commit()
                .await
                .map(drop)
                .map_err(Error::from),
        ];
        for (index, outcome) in refused.into_iter().enumerate() {
            assert!(
                matches!(outcome, Err(Error::Invalid(_))),
                "{index}: {outcome:?}"
            );
        }
        assert_eq!(store.revision(), before);
    }

    #[tokio::test(start_paused = true)]
    async fn a_lease_that_ends_while_its_session_opens_is_replaced() {
        let store = MemStore::new();
        let faulty = Faulty::new(store.clone());
        let client = Client::new(faulty.clone());
        let announcing = faulty.hold(1, Calls::Txn, Stage::NotSent);
        let meanwhile = async {
            announcing.reached().await;
            assert!(store.expire(store.leases()[0]));
            announcing.release();
        };
        let (session, ()) = tokio::join!(client.session(), meanwhile);
        let session = session.unwrap();
        assert_eq!(store.leases(), [session.lease()]);
        assert!(session.check().is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn clients_of_one_store_share_sessions() {
        let store: Arc<dyn Store> = Arc::new(MemStore::new());
        let one = Client::builder_shared(Arc::clone(&store)).build();
        let other = Client::builder_shared(store).build();
        let session = one.session().await.unwrap();
        drop(other.mutex("m").lock(&session).await.unwrap());
        drop(one.clone().mutex("n").lock(&session).await.unwrap());
        let inside = one.namespace("a/");
        let session = inside.session().await.unwrap();
        drop(inside.clone().mutex("m").lock(&session).await.unwrap());
    }
}
