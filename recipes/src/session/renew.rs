//! Keeps a session's lease alive: renews at a third of its time to live, goes on trying through
//! failures until the local deadline, and never queues behind anything else.

use std::time::Duration;

use super::{Actor, SessionState};
use crate::error::LostReason;
use crate::wait::Backoff;

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
        let rest = actor.since_acknowledged();
        actor.client().sleep(due.saturating_sub(rest)).await;
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
        let sent = actor.client().now();
        let limit = sent + (ttl / 3).min(actor.remaining());
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
