//! How a session ends: lost or closed, it has its lease revoked, and says when that is done. Whoever ends
//! it first has it done; everybody else hears of it.

use std::time::Duration;

use super::{Actor, SessionState};
use crate::clock::Instant;
use crate::error::{Error, LostReason, Result};
use crate::settled::Settled;
use crate::store::{StoreError, ops};
use crate::tasks::Tasks;
use crate::wait::{self, Backoff};

/// How long closing a session waits for its operations in progress.
const CLOSE_GRACE: Duration = Duration::from_secs(5);

/// The task that has the lease revoked. The runtime may end before the task does.
struct Revocation(Settled<Result<()>>);

impl Drop for Revocation {
    fn drop(&mut self) {
        self.0.settle(Err(Error::Closed));
    }
}

impl Actor {
    /// Makes the session lost, once and for all, and has its lease revoked.
    pub(crate) fn lose(&self, reason: LostReason) {
        let first = self.end(reason);
        self.core.over.cancel();
        if !first {
            return;
        }
        tracing::warn!(lease = %self.core.lease, %reason, "session lost");
        // The lease may be alive yet, also in a store that was put back, where nobody else has one of this
        // id; or a renewal is under way that keeps it, and so the keys, for longer.
        let actor = self.clone();
        let revocation = Revocation(self.core.closed.clone());
        let task = async move {
            let deadline = actor.core.client.deadline(actor.ttl());
            actor.revoke(deadline, revocation).await;
        };
        match self.core.client.store().runtime() {
            Some(runtime) => Tasks::spawn_apart_on(&runtime, "revoke", task),
            None => self.core.tasks.spawn_apart("revoke", task),
        }
    }

    /// Closes the session in the background, unless it is over. What is returned tells whether its lease
    /// was revoked, to everybody who asks, however the session ended.
    pub(super) fn close_in_background(&self) -> Settled<Result<()>> {
        let known = self.lease_left();
        let closed = self.core.closed.clone();
        if !self.end(LostReason::Closed) {
            return closed;
        }
        let actor = self.clone();
        let revocation = Revocation(closed.clone());
        self.core.tasks.spawn_apart("close", async move {
            let deadline = actor
                .core
                .client
                .deadline(known.max(Duration::from_secs(1)));
            if !actor.core.tasks.idle(CLOSE_GRACE.min(known)).await {
                tracing::warn!(lease = %actor.core.lease, "closing with operations in progress");
            }
            actor.core.over.cancel();
            actor.core.tasks.cancel();
            actor.revoke(deadline, revocation).await;
        });
        closed
    }

    /// Notes that the session is over, and why. Whoever is told that it was not before has its lease
    /// revoked.
    fn end(&self, reason: LostReason) -> bool {
        let first = self.core.state.send_if_modified(|state| {
            let lost = matches!(state, SessionState::Lost(_));
            if !lost {
                *state = SessionState::Lost(reason);
            }
            !lost
        });
        self.core.lost.settle(reason);
        first
    }

    /// Has the lease revoked by then, and says how that went; notes its end once it is, or else has had
    /// time to run out.
    async fn revoke(&self, deadline: Instant, revocation: Revocation) {
        let revoked = self.revoked(deadline).await;
        revocation.0.settle(revoked.clone());
        if revoked.is_err() {
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

    async fn revoked(&self, deadline: Instant) -> Result<()> {
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Client;
    use crate::keys::session_key;
    use crate::store::faulty::{Calls, Outage, Stage};
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
        faulty.disconnect(Outage::Refused);
        let (first, second) = tokio::join!(session.close(), other.close());
        for outcome in [first, second] {
            let unknown = matches!(outcome, Err(Error::OutcomeUnknown(_)));
            assert!(unknown, "{outcome:?}");
        }
    }
    /// Its key was deleted by somebody, and what else it has is there as long as its lease is.
    #[tokio::test(start_paused = true)]
    async fn closing_a_lost_session_waits_for_its_lease_to_be_gone() {
        let store = MemStore::new();
        let faulty = Faulty::new(store.clone());
        let client = Client::new(faulty.clone());
        let session = client.session().await.unwrap();
        let (other, third) = (session.clone(), session.clone());
        let revocation = faulty.hold(1, Calls::Lease, Stage::NotSent);
        client.delete(session_key(session.lease())).await.unwrap();
        assert!(session.actor().verify().await.is_err());
        let early = tokio::time::timeout(Duration::from_secs(1), session.close()).await;
        assert!(early.is_err(), "closed with its lease alive: {early:?}");
        assert!(revocation.is_reached());
        assert_eq!(store.leases(), [other.lease()]);
        revocation.release();
        assert!(
            other.close().await.is_ok(),
            "also after a close was dropped"
        );
        assert_eq!(store.leases(), []);
        assert!(third.close().await.is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn closing_a_lost_session_waits_for_its_time_to_live_at_most() {
        let faulty = Faulty::new(MemStore::new());
        let client = Client::new(faulty.clone());
        let session = client.session().await.unwrap();
        let ttl = session.ttl();
        faulty.disconnect(Outage::Refused);
        assert_eq!(session.lost().await, LostReason::Expired);
        let closed = tokio::time::timeout(ttl + Duration::from_secs(2), session.close()).await;
        let unknown = matches!(closed, Ok(Err(Error::OutcomeUnknown(_))));
        assert!(unknown, "{closed:?}");
    }
}
