//! Keeps a session's lease alive: renews at a third of its time to live, goes on trying through
//! failures until the local deadline, and never queues behind anything else.

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
        let limit = actor.client().now() + (ttl / 3).min(actor.lease_left());
        let call = actor.client().store().lease_keep_alive(actor.lease());
        match actor.client().before(limit, call).await {
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
    use crate::store::faulty::{Calls, Stage};
    use crate::store::{Faulty, MemStore};

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
}
