//! Keeps a session's lease alive: renews at a third of its time to live, goes on trying through
//! failures until the local deadline, and never queues behind anything else.

use std::pin::pin;
use std::time::Duration;

use super::{Actor, SessionState};
use crate::error::LostReason;
use crate::wait::Backoff;

/// Longest time between two looks at the clock.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// Runs until the session is lost or closed.
pub(super) async fn run(actor: Actor) {
    tokio::select! {
        biased;
        reason = actor.lost() => {
            tracing::debug!(lease = %actor.lease(), %reason, "renewals end");
        }
        () = renewals(&actor) => {}
    }
}

async fn renewals(actor: &Actor) {
    loop {
        let due = actor.ttl() / 3;
        loop {
            let rest = due.saturating_sub(actor.since_acknowledged());
            if rest.is_zero() {
                break;
            }
            if matches!(actor.state(), SessionState::Lost(_)) {
                return;
            }
            // Timers stand still while the machine sleeps, and the lease does not.
            let look = LOOK_EVERY.min(actor.remaining());
            actor.client().sleep(rest.min(look)).await;
        }
        if !renew_once(actor).await {
            return;
        }
    }
}

/// One renewal, with as many attempts as the deadline leaves room for. False once lost.
async fn renew_once(actor: &Actor) -> bool {
    let ttl = actor.ttl();
    let mut pause = Backoff::new(
        actor.client(),
        Duration::from_millis(50),
        (ttl / 10).max(Duration::from_millis(100)),
    );
    loop {
        if matches!(actor.state(), SessionState::Lost(_)) {
            return false;
        }
        let sent = actor.client().moment();
        let limit = actor.client().deadline((ttl / 3).min(actor.lease_left()));
        let call = actor.client().store().lease_keep_alive(actor.lease());
        let mut call = pin!(actor.client().before(limit, call));
        let answer = loop {
            tokio::select! {
                biased;
                answer = &mut call => break answer,
                // Not to be told late that it is lost, for want of an answer.
                () = actor.client().sleep(LOOK_EVERY.min(actor.remaining())) => {
                    if matches!(actor.state(), SessionState::Lost(_)) {
                        return false;
                    }
                }
            }
        };
        match answer {
            Some(Ok(Some(lease))) => {
                if actor.is_another_cluster(&lease.header) {
                    actor.lose(LostReason::StoreReplaced);
                    return false;
                }
                actor.acknowledge(sent, &lease);
                return true;
            }
            Some(Ok(None)) => {
                actor.lose(LostReason::LeaseGone);
                return false;
            }
            Some(Err(error)) => actor.suspend(&error.to_string()),
            None => actor.suspend("no answer in time"),
        }
        tokio::select! {
            biased;
            () = pause.pause() => {}
            () = actor.client().sleep(actor.remaining()) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use futures::future::BoxFuture;

    use super::*;
    use crate::Client;
    use crate::clock::{Clock, Instant, SystemClock};
    use crate::error::Error;
    use crate::keys::session_key;
    use crate::store::faulty::{Calls, Stage};
    use crate::store::{Counting, Faulty, MemStore};

    /// A clock of a machine that can be put to sleep.
    #[derive(Debug, Default)]
    struct Sleeper(Mutex<Duration>);

    impl Sleeper {
        fn sleep(&self, length: Duration) {
            *self.0.lock().unwrap() += length;
        }
    }

    impl Clock for Sleeper {
        fn now(&self) -> Instant {
            SystemClock.now()
        }

        fn suspended(&self) -> Duration {
            *self.0.lock().unwrap()
        }

        fn sleep_until(&self, at: Instant) -> BoxFuture<'static, ()> {
            SystemClock.sleep_until(at)
        }
    }

    const HOUR: Duration = Duration::from_secs(3600);

    #[tokio::test(start_paused = true)]
    async fn a_session_is_lost_soon_after_a_long_sleep() {
        let clock = Arc::new(Sleeper::default());
        let client = Client::builder(MemStore::new()).clock(Arc::clone(&clock) as _);
        let session = client.build().session().ttl(Duration::from_secs(60)).await;
        let session = session.unwrap();
        tokio::time::sleep(Duration::from_secs(5)).await;
        clock.sleep(HOUR);
        let soon = tokio::time::timeout(2 * LOOK_EVERY, session.lost()).await;
        assert_eq!(soon.expect("within two looks"), LostReason::Expired);
    }

    #[tokio::test(start_paused = true)]
    async fn a_session_ends_with_the_signs_of_life() {
        let store = MemStore::new();
        let client = Client::new(store.clone());
        let limit = Duration::from_secs(4);
        let session = client.session().watchdog(limit).await.unwrap();
        let guard = client.mutex("m").lock(&session).await.unwrap();
        for _ in 0..30 {
            tokio::time::sleep(limit - Duration::from_millis(1)).await;
            session.feed_watchdog();
            assert!(session.remaining() > Duration::ZERO);
        }
        assert!(guard.remaining() <= limit);
        let lost = tokio::time::timeout(limit + LOOK_EVERY, guard.lost()).await;
        assert_eq!(lost.expect("in time"), LostReason::Stalled);
        session.feed_watchdog();
        assert_eq!(session.state(), SessionState::Lost(LostReason::Stalled));
        tokio::time::sleep(Duration::from_millis(10)).await;
        assert_eq!(store.leases(), [], "revoked, for others to go on");
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_from_before_a_sleep_says_nothing() {
        let clock = Arc::new(Sleeper::default());
        let faulty = Faulty::new(MemStore::new());
        let client = Client::builder(faulty.clone()).clock(Arc::clone(&clock) as _);
        let session = client.build().session().ttl(Duration::from_secs(60)).await;
        let session = session.unwrap();
        let renewal = faulty.hold(1, Calls::Lease, Stage::Answered);
        renewal.reached().await;
        clock.sleep(HOUR);
        renewal.release();
        tokio::time::sleep(Duration::from_millis(1)).await;
        assert_eq!(session.state(), SessionState::Lost(LostReason::Expired));
    }

    /// The watchdog is no limit on calls: a renewal may take longer than a sign of life is good for.
    #[tokio::test(start_paused = true)]
    async fn a_slow_renewal_is_not_cut_short_by_the_watchdog() {
        let faulty = Faulty::new(MemStore::new());
        let counting = Counting::new(faulty.clone());
        let client = Client::new(counting.clone());
        let open = client.session().ttl(Duration::from_secs(9));
        let session = open.watchdog(Duration::from_secs(1)).await.unwrap();
        let renewal = faulty.hold(1, Calls::Lease, Stage::Answered);
        let before = counting.counts();
        let feed = async |times: u32| {
            for _ in 0..times {
                tokio::time::sleep(Duration::from_millis(500)).await;
                session.feed_watchdog();
                let state = session.state();
                assert!(matches!(state, SessionState::Live { .. }), "{state:?}");
            }
        };
        feed(11).await;
        assert!(
            renewal.is_reached(),
            "it has been on its way for two seconds"
        );
        let sent = (counting.counts() - before).lease_keep_alive;
        assert_eq!(sent, 1, "it is not cut short and sent again");
        renewal.release();
        feed(20).await;
    }

    /// Somebody deleted the session's key: what else hangs on the lease goes at once.
    #[tokio::test(start_paused = true)]
    async fn a_lease_without_its_session_is_revoked() {
        let store = MemStore::new();
        let client = Client::new(store.clone());
        let session = client.session().await.unwrap();
        let guard = client.mutex("m").lock(&session).await.unwrap();
        client.delete(session_key(session.lease())).await.unwrap();
        let late = client.mutex("n").lock(&session).await;
        assert!(matches!(
            late,
            Err(Error::SessionLost(LostReason::LeaseGone))
        ));
        tokio::time::sleep(Duration::from_millis(1)).await;
        assert_eq!(store.leases(), []);
        assert_eq!(store.keys("quorate/"), [""; 0]);
        drop(guard);
    }
}
