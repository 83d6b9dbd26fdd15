//! What holding something means: a key of one's own, first in its queue, and a [`Fence`] around it. Locks
//! and leaderships are all a [`Hold`] with a name.

use std::future::Future;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Once};
use std::time::Duration;

use quorate_proto::etcdserverpb::{RequestOp, TxnRequest};
use tokio::sync::watch;

use super::fence::Unsettled;
use super::request::{Asked, ReleaseRequested};
use super::{Fence, Fenced, FencingToken};
use crate::client::Client;
use crate::error::{Error, LostReason, Result, TxnError};
use crate::keys::{Key, KeyRange, LeaseId, Revision};
use crate::session::{Actor, Lost, Owned, Session};
use crate::settled::Settled;
use crate::store::ops::Compare;
use crate::txn::Txn;
use crate::value::Value;
use crate::wait::{Backoff, Woken, deleted};

/// Longest time between two looks at the clock.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// Something held: a key that is first in its queue, under a session. Dropping it gives it up in
/// the background; [`Hold::release`] says when that is done. [`MutexGuard`](super::MutexGuard) and
/// the other guards are this with a name of their own.
#[derive(Debug)]
pub struct Hold {
    // Dropped before the session, so that giving up comes before a session's end.
    owned: Owned,
    fence: Fence,
    ending: Ending,
    /// Whether the keys are about to go because the hold is given up.
    leaving: watch::Sender<bool>,
    watched: Once,
    asked: Asked,
    session: Session,
}

/// What is left of a hold whose keys are exchanged. Dropping it ends the hold.
#[derive(Debug)]
pub(crate) struct Continued {
    session: Session,
    contenders: Vec<KeyRange>,
    ending: Ending,
    /// Whether anybody has asked when it is lost.
    watched: bool,
}

/// How a hold ended, for those who wait for it. Dropping the hold ends it.
#[derive(Debug)]
struct Ending(Settled<LostReason>);

impl Drop for Ending {
    fn drop(&mut self) {
        self.0.settle(LostReason::Released);
    }
}

impl Fenced for Hold {
    fn fence(&self) -> &Fence {
        &self.fence
    }
}

impl Hold {
    /// Holds `owned`, whose turn it is among the keys of `contenders`, and stays it while it exists.
    pub(crate) fn new(session: Session, owned: Owned, contenders: Vec<KeyRange>) -> Self {
        let fence = Fence {
            keys: owned.keys(),
            contenders,
            actor: session.actor().clone(),
            unsettled: Unsettled::default(),
        };
        Self {
            owned,
            fence,
            ending: Ending(Settled::new()),
            leaving: watch::Sender::new(false),
            watched: Once::new(),
            asked: Asked::default(),
            session,
        }
    }

    /// The session it is held under.
    #[must_use]
    pub fn session(&self) -> &Session {
        &self.session
    }

    /// The client it is held through, whose writes are *not* refused when the hold is lost.
    #[must_use]
    pub fn unfenced(&self) -> &Client {
        self.session.client()
    }

    /// Ends the hold without giving its keys up, as if it were released.
    pub(crate) fn into_owned(self) -> Owned {
        self.owned
    }

    /// Takes the hold's keys out, to go on with others in their place: see [`Hold::goes_on`].
    pub(crate) fn into_parts(self) -> (Owned, Continued) {
        let continued = Continued {
            session: self.session,
            contenders: self.fence.contenders,
            ending: self.ending,
            watched: self.watched.is_completed(),
        };
        (self.owned, continued)
    }

    /// The same hold with other keys: who waits for its loss waits on.
    pub(crate) fn goes_on(owned: Owned, continued: Continued) -> Self {
        let Continued {
            session,
            contenders,
            ending,
            watched,
        } = continued;
        let hold = Self {
            ending,
            ..Self::new(session, owned, contenders)
        };
        if watched {
            hold.watched.call_once(|| hold.watch_key());
        }
        hold
    }

    /// Ends the use of the fence so far, for one who goes on with the same keys. False when something
    /// that was sent under it may still take effect.
    pub(crate) fn renew_fence(&mut self) -> bool {
        let closed = self.fence.unsettled.close();
        if closed {
            self.fence.unsettled = Unsettled::default();
            // A request that stands is told to the next one too.
            self.asked = Asked::default();
            // For those who waited for its loss it is over.
            self.leaving = watch::Sender::new(false);
            self.watched = Once::new();
            self.ending = Ending(Settled::new());
        }
        closed
    }

    /// Says that the keys go, or after all do not go, because the hold is given up.
    pub(crate) fn leaves(&self, leaving: bool) {
        self.leaving.send_replace(leaving);
    }

    /// Ends what [`Hold::when_released`], or the claim, has asked for.
    pub(crate) fn nothing_when_released(&mut self) {
        self.owned.nothing_when_released();
    }

    /// Whether the store has refused something because the hold is over.
    pub(crate) fn is_void(&self) -> bool {
        self.fence.unsettled().is_void()
    }

    /// Has `op` done in the transaction that gives the hold up.
    pub(crate) fn when_released(&mut self, op: RequestOp) {
        self.owned.when_released(op);
    }

    /// Has `op` done in that transaction when it is sent because of a panic.
    pub(super) fn when_panicked(&mut self, op: RequestOp) {
        self.owned.when_panicked(op);
    }

    /// What notes a panic of one of several that have the hold together.
    pub(super) fn panicked(&self) -> Option<Arc<AtomicBool>> {
        self.owned.panicked()
    }

    /// The fencing token, for services outside the store.
    #[must_use]
    pub fn token(&self) -> FencingToken {
        self.fence.token()
    }

    /// The hold's key.
    #[must_use]
    pub fn key(&self) -> &Key {
        self.owned.key()
    }

    /// Time until the session is lost unless it is renewed. Stop effects outside the store while
    /// some of it is left: the store refuses late writes, other services cannot.
    #[must_use]
    pub fn remaining(&self) -> Duration {
        match self.ending.0.get() {
            None if !self.fence.unsettled.is_void() => self.session.remaining(),
            _ => Duration::ZERO,
        }
    }

    /// Completes when the hold is lost: with its session, when its key is deleted by somebody
    /// else, or when it is released. The future does not keep the hold.
    ///
    /// The first call starts one watch of the key, for as long as the hold lives.
    pub fn lost(&self) -> Lost {
        self.watched.call_once(|| self.watch_key());
        self.ends()
    }

    /// As [`Hold::lost`] for what is mostly over soon: the key is not watched before this time has passed, so
    /// that a loss which is not the session's is told so much later, and what ends before costs no watch.
    pub(crate) fn lost_unless_soon_over(&self, soon: Duration) -> Lost {
        let (mut ends, watching) = (self.ends(), self.key_watch());
        let client = self.session.client().clone();
        let watching = async move {
            client.sleep(soon).await;
            watching.await;
        };
        Lost::new(async move {
            tokio::select! {
                biased;
                reason = &mut ends => reason,
                () = watching => ends.await,
            }
        })
    }

    fn ends(&self) -> Lost {
        let ended = self.ending.0.clone();
        let session = self.session.lost();
        Lost::new(async move {
            tokio::select! {
                biased;
                reason = ended.wait() => reason,
                reason = session => reason,
            }
        })
    }

    fn watch_key(&self) {
        self.session.actor().spawn("key watch", self.key_watch());
    }

    /// Settles how it ends when the keys are replaced or removed; completes when there is nothing to watch any more.
    fn key_watch(&self) -> impl Future<Output = ()> + Send + use<> {
        let actor = self.session.actor().clone();
        let keys = self.owned.keys();
        let (ending, mut leaving) = (self.ending.0.clone(), self.leaving.subscribe());
        let mut exchanged = self.leaving.subscribe();
        let unsettled = self.fence.unsettled.clone();
        async move {
            tokio::select! {
                biased;
                // The keys are held under another watch by now, or by nobody.
                () = async { while exchanged.changed().await.is_ok() {} } => {}
                () = until_replaced(&actor, &keys) => {
                    // Given up, it ends as that, unless it turns out that it was not. With the lease gone, it
                    // is the session that is lost, and says so itself.
                    if leaving.wait_for(|leaving| !leaving).await.is_ok() {
                        unsettled.refused();
                        if !matches!(actor.verify().await, Err(Error::SessionLost(_))) {
                            ending.settle(LostReason::Removed);
                        }
                    }
                }
                _ = actor.lost() => {}
                _ = ending.wait() => {}
            }
        }
    }

    /// Gives the keys up after this time, by the client's clock, if it is held until then. Who waits for its loss is
    /// told so, although the store may be out of reach.
    pub(crate) fn ends_after(&self, limit: Duration) {
        let actor = self.session.actor().clone();
        let (ending, mut leaving) = (self.ending.0.clone(), self.leaving.subscribe());
        let unsettled = self.fence.unsettled.clone();
        let (key, deleting) = (self.key().clone(), self.owned.deleting());
        self.session.actor().spawn("time limit", async move {
            let overdue = async {
                actor.client().sleep(limit).await;
                // What is on its way to end it goes first.
                leaving.wait_for(|leaving| !leaving).await.is_ok()
            };
            let is_overdue = tokio::select! {
                biased;
                _ = ending.wait() => false,
                _ = actor.lost() => false,
                is_overdue = overdue => is_overdue,
            };
            if !is_overdue {
                return;
            }
            tracing::warn!(%key, ?limit, "given up: held for as long as it may be");
            unsettled.refused();
            ending.settle(LostReason::Overdue);
            if let Err(error) = deleting.await {
                tracing::debug!(%key, %error, "a key was left to its lease");
            }
        });
    }

    /// Waits until somebody asks for its release, and tells why; each request is told once, to one of
    /// those who wait. See [`Session::request_release`].
    ///
    /// # Errors
    /// [`Error::SessionLost`] or [`Error::Removed`] when the hold is lost meanwhile; the store's final
    /// refusals. Trouble with the store is waited out.
    ///
    /// # Cancel safety
    /// No request is lost when the future is dropped, as long as it stands.
    pub async fn release_requested(&self) -> Result<ReleaseRequested> {
        self.scope(self.asked.next(self)).await?
    }

    /// Runs `work` while the hold lasts; drops it, wherever it stands, when the hold is lost.
    ///
    /// # Errors
    /// [`Error::SessionLost`] or [`Error::Removed`] when `work` was dropped.
    ///
    /// # Cancel safety
    /// Dropping the future drops `work`.
    pub async fn scope<F: Future>(&self, work: F) -> Result<F::Output> {
        tokio::select! {
            biased;
            reason = self.lost() => Err(match reason {
                LostReason::Removed | LostReason::Overdue => Error::Removed(self.key().clone()),
                reason => Error::SessionLost(reason),
            }),
            output = work => Ok(output),
        }
    }

    /// As [`Hold::scope`], and drops `work` as well once less than `margin` remains until the session is
    /// lost: for effects outside the store, where no fence reaches, and which need that long to stop.
    ///
    /// # Errors
    /// [`Error::NearlyLost`] when too little remained; the hold itself may go on. As [`Hold::scope`];
    /// [`Error::Fenced`] when the store has said that the hold is over, and not yet why.
    ///
    /// # Cancel safety
    /// Dropping the future drops `work`.
    pub async fn scope_with_margin<F: Future>(
        &self,
        margin: Duration,
        work: F,
    ) -> Result<F::Output> {
        let work = async {
            tokio::select! {
                biased;
                error = self.nearly_lost(margin) => Err(error),
                output = work => Ok(output),
            }
        };
        self.scope(work).await?
    }

    /// Waits until less than `margin` remains.
    async fn nearly_lost(&self, margin: Duration) -> Error {
        loop {
            let spare = self.remaining().saturating_sub(margin);
            if spare.is_zero() {
                break;
            }
            // Timers stand still while the machine sleeps, and the lease does not.
            let client = self.session.client();
            client.sleep(spare.min(LOOK_EVERY)).await;
        }
        // It may be more than nearly.
        match self.session.check() {
            Err(error) => error,
            Ok(()) if self.fence.unsettled.is_void() => Error::Fenced { owner: None },
            Ok(()) => Error::NearlyLost,
        }
    }

    /// A transaction that the store refuses unless this is still held.
    pub fn txn(&self) -> Txn {
        self.unfenced().txn().guard(self)
    }

    /// Writes one key, refused by the store unless this is still held.
    ///
    /// # Errors
    /// As [`Txn::commit`].
    pub async fn put(
        &self,
        key: impl Into<Key>,
        value: impl Into<Value>,
    ) -> Result<Revision, TxnError> {
        Ok(self.txn().put(key, value).commit().await?.revision())
    }

    /// Deletes one key, refused by the store unless this is still held. Returns whether it existed.
    ///
    /// # Errors
    /// As [`Txn::commit`].
    pub async fn delete(&self, key: impl Into<Key>) -> Result<bool, TxnError> {
        Ok(self.txn().delete(key).commit().await?.deleted(0) > 0)
    }

    /// Writes a new value to the hold's own key, as a leader's proclamation does.
    ///
    /// # Errors
    /// As [`Owned::write`].
    pub(crate) async fn set_value(&self, value: impl Into<Value>) -> Result<Revision> {
        self.owned.write(value.into().into_bytes(self.key())?).await
    }

    /// Gives it up and waits until the store has confirmed.
    ///
    /// # Errors
    /// [`Error::Fenced`] when it had been lost before; [`Error::SessionLost`]; the store's final
    /// refusals. Nothing is held any more in any case, or is not once the session has ended.
    ///
    /// # Cancel safety
    /// The release goes on when the future is dropped.
    pub async fn release(self) -> Result<()> {
        self.leaves(true);
        let Self { owned, session, .. } = self;
        let outcome = owned.release().await;
        drop(session);
        match outcome? {
            Some(false) => Err(Error::Fenced { owner: None }),
            Some(true) | None => Ok(()),
        }
    }
}

/// Completes once one of the keys is no longer as it was created, or no longer attached to the session's
/// lease. Says so only after the store did: trouble with the store is waited out.
async fn until_replaced(actor: &Actor, created: &[(Key, Revision)]) {
    let (client, lease) = (actor.client(), actor.lease());
    let keys: Vec<(Key, LeaseId)> = created
        .iter()
        .map(|(key, _)| (key.clone(), lease))
        .collect();
    let as_created = created.iter().flat_map(|(key, revision)| {
        [
            Compare::create_revision(key, *revision).into(),
            Compare::lease(key, lease).into(),
        ]
    });
    let request = TxnRequest {
        compare: as_created.collect(),
        ..Default::default()
    };
    let mut pause = Backoff::between_attempts(client);
    loop {
        match client.store().txn(request.clone()).await {
            Ok(answer) if !answer.succeeded => return,
            Ok(answer) => {
                let seen = answer.header.map_or(0, |header| header.revision);
                match deleted(client, &keys, Revision(seen + 1)).await {
                    Ok(Woken::Deleted(_)) => return,
                    Ok(Woken::Interrupted) => {}
                    Err(error) => tracing::debug!(key = %keys[0].0, %error, "watching a held key"),
                }
            }
            Err(error) => tracing::debug!(key = %keys[0].0, %error, "reading a held key"),
        }
        pause.pause().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keys::EPOCH_KEY;
    use crate::store::faulty::Outage;
    use crate::store::{Faulty, MemStore};

    #[tokio::test(start_paused = true)]
    async fn work_with_a_margin_ends_before_the_hold() {
        let faulty = Faulty::new(MemStore::new());
        let client = Client::new(faulty.clone());
        let session = client.session().await.unwrap();
        let guard = client.mutex("m").lock(&session).await.unwrap();
        let margin = Duration::from_secs(4);
        let long = tokio::time::sleep(5 * session.ttl());
        let done = guard.scope_with_margin(margin, long).await;
        assert!(done.is_ok(), "renewed all the time: {done:?}");
        faulty.disconnect(Outage::Refused);
        let work = guard.scope_with_margin(margin, std::future::pending::<()>());
        assert!(matches!(work.await, Err(Error::NearlyLost)));
        let remaining = guard.remaining();
        assert!(
            margin - LOOK_EVERY < remaining && remaining <= margin,
            "{remaining:?}"
        );
        faulty.reconnect();
        tokio::time::sleep(Duration::from_secs(2)).await;
        assert!(guard.remaining() > margin, "the hold goes on");
        assert!(
            session
                .client()
                .store()
                .lease_revoke(session.lease())
                .await
                .is_ok()
        );
        let lost = guard.scope_with_margin(margin, std::future::pending::<()>());
        let lost = lost.await;
        let over = matches!(lost, Err(Error::SessionLost(_) | Error::Fenced { .. }));
        assert!(over, "{lost:?}");
    }

    /// A store put back under a session that lives on: what it holds is of no use, and says so.
    #[tokio::test(start_paused = true)]
    async fn a_raised_epoch_ends_the_session() {
        let client = Client::new(MemStore::new());
        let session = client.session().await.unwrap();
        let guard = client.mutex("m").lock(&session).await.unwrap();
        let lost = guard.lost();
        client.put(EPOCH_KEY, "5").await.unwrap();
        let refused = guard.put("x", "y").await;
        assert!(
            matches!(refused, Err(TxnError::Fenced { .. })),
            "{refused:?}"
        );
        assert_eq!(lost.await, LostReason::StoreReplaced);
    }

    #[tokio::test(start_paused = true)]
    async fn waiting_to_be_asked_ends_with_the_hold() {
        let store = MemStore::new();
        let client = Client::new(store.clone());
        let session = client.session().await.unwrap();
        let guard = client.mutex("m").lock(&session).await.unwrap();
        client.delete(guard.key()).await.unwrap();
        let asked = guard.release_requested().await;
        assert!(matches!(asked, Err(Error::Removed(_))), "{asked:?}");
        assert_eq!(guard.remaining(), Duration::ZERO);
    }
}
