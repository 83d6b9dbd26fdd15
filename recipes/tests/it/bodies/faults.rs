//! Lost answers and late copies: whatever happens to a call, nothing is left behind, nothing is
//! done twice, and nobody loses what is theirs.

use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use quorate_proto::etcdserverpb::WatchCreateRequest;
use quorate_recipes::{Client, Error, KeyRange, Store};
use tokio::sync::Notify;
use tokio::time::Instant;

use super::{cut_time_and_again, keys_below, session, short_session, watched};
use crate::support::{soon, until};
use quorate_recipes::store::faulty::{Fault, Faulty};

fn client_of(faulty: &Faulty<Arc<dyn Store>>) -> Client {
    Client::builder(faulty.clone()).build()
}

/// The lock is taken once, with one key, whatever becomes of the first copies of the call.
pub async fn acquiring_survives_lost_answers(client: &Client) {
    let faulty = Faulty::new(Arc::clone(client.store()));
    let client = client_of(&faulty);
    let session = session(&client).await;
    let plans = [
        vec![Fault::NotSent],
        vec![Fault::Unanswered],
        vec![Fault::Late],
        vec![Fault::Late, Fault::Unanswered],
        vec![Fault::NotSent, Fault::Late, Fault::Late, Fault::Unanswered],
    ];
    for (index, plan) in plans.into_iter().enumerate() {
        let lock = client.mutex(format!("lost-answer-{index}"));
        faulty.plan(lock.prefix(), plan.clone());
        let guard = soon("the lock", lock.lock(&session)).await.unwrap();
        assert_eq!(faulty.left(), 0, "{plan:?}");
        assert_eq!(keys_below(&client, lock.prefix()).await, 1, "{plan:?}");
        guard.put("lost-answer", "x").await.unwrap();
        guard.release().await.unwrap();
        let (_, effective) = faulty.deliver().await;
        assert_eq!(effective, 0, "a late copy took effect: {plan:?}");
        assert_eq!(keys_below(&client, lock.prefix()).await, 0, "{plan:?}");
    }
}

/// As above for the compare-and-swap lock and for `try_lock`.
pub async fn trying_survives_lost_answers(client: &Client) {
    let faulty = Faulty::new(Arc::clone(client.store()));
    let client = client_of(&faulty);
    let session = session(&client).await;
    for (index, fault) in [Fault::Unanswered, Fault::Late].into_iter().enumerate() {
        let lock = client.mutex(format!("lost-try-{index}"));
        faulty.plan(lock.prefix(), [fault.clone()]);
        let guard = soon("a try", lock.try_lock(&session))
            .await
            .unwrap()
            .unwrap();
        guard.release().await.unwrap();
        let lock = client.exclusive(format!("lost-try-{index}"));
        faulty.plan("quorate/exclusive/", [fault]);
        let guard = soon("a try", lock.try_lock(&session))
            .await
            .unwrap()
            .unwrap();
        assert_eq!(faulty.left(), 0);
        guard.release().await.unwrap();
        assert_eq!(faulty.deliver().await.1, 0);
        assert_eq!(lock.holder().await.unwrap(), None);
    }
}

/// A release whose answer is lost is repeated; its late copy does not release the next holder.
pub async fn releasing_is_idempotent(client: &Client) {
    let faulty = Faulty::new(Arc::clone(client.store()));
    let client = client_of(&faulty);
    let session = session(&client).await;
    for lock_it_with in ["mutex", "exclusive"] {
        for fault in [Fault::NotSent, Fault::Unanswered, Fault::Late] {
            let (mutex, exclusive) = (client.mutex("idem"), client.exclusive("idem"));
            if lock_it_with == "mutex" {
                let guard = mutex.lock(&session).await.unwrap();
                faulty.plan(mutex.prefix(), [fault]);
                soon("the release", guard.release()).await.unwrap();
                let next = mutex.lock(&session).await.unwrap();
                faulty.deliver().await;
                next.put("idem", "x").await.unwrap();
                next.release().await.unwrap();
            } else {
                let guard = exclusive.lock(&session).await.unwrap();
                faulty.plan("quorate/exclusive/", [fault]);
                soon("the release", guard.release()).await.unwrap();
                let next = exclusive.lock(&session).await.unwrap();
                faulty.deliver().await;
                next.put("idem", "x").await.unwrap();
                next.release().await.unwrap();
            }
            assert_eq!(faulty.left(), 0);
        }
    }
}

/// A `lock()` future dropped while its call is on the way leaves no key, wherever the call is.
pub async fn dropped_in_flight_leaves_nothing(client: &Client) {
    let faulty = Faulty::new(Arc::clone(client.store()));
    let client = client_of(&faulty);
    let session = session(&client).await;
    let holds: [fn(Arc<Notify>) -> Fault; 2] = [Fault::HeldBefore, Fault::HeldAfter];
    for (index, hold) in holds.into_iter().enumerate() {
        for then in [None, Some(Fault::Unanswered), Some(Fault::Late)] {
            // A release that was not answered is repeated in the background, and may still be when
            // the next plan is made: that plan must not meet it.
            let lock = client.mutex(format!("in-flight-{index}-{then:?}"));
            let gate = Arc::new(Notify::new());
            faulty.plan(
                lock.prefix(),
                [hold(Arc::clone(&gate))].into_iter().chain(then),
            );
            {
                let locking = lock.lock(&session);
                tokio::select! {
                    _ = locking => panic!("the call is held"),
                    () = until("the call to be on its way", async || faulty.held() == 1) => {}
                }
            }
            gate.notify_one();
            until("no key left", async || {
                faulty.held() + faulty.left() == 0 && keys_below(&client, lock.prefix()).await == 0
            })
            .await;
            faulty.deliver().await;
            assert_eq!(keys_below(&client, lock.prefix()).await, 0);
            let guard = soon("a new holder", lock.lock(&session)).await.unwrap();
            guard.release().await.unwrap();
        }
    }
}

/// Waiting goes on through ended watches.
pub async fn waiting_survives_ended_watches(client: &Client) {
    let (connection, client) = watched(client);
    let session = session(&client).await;
    let lock = client.mutex("cut");
    let guard = lock.lock(&session).await.unwrap();
    let waiting = tokio::spawn({
        let (lock, session) = (lock.clone(), session.clone());
        async move { lock.lock(&session).await.unwrap() }
    });
    until("the waiter", async || {
        lock.waiters(9).await.unwrap().len() == 1
    })
    .await;
    cut_time_and_again(&connection, 1).await;
    assert!(
        !waiting.is_finished(),
        "the end of a watch was taken for a release"
    );
    guard.release().await.unwrap();
    drop(soon("the waiter's turn", waiting).await.unwrap());
}

/// What a leader says is the last thing it said, also when answers are lost.
pub async fn own_values_survive_lost_answers(client: &Client) {
    let faulty = Faulty::new(Arc::clone(client.store()));
    let client = client_of(&faulty);
    let session = session(&client).await;
    let election = client.election::<String>("value");
    let leader = election.campaign(&session, "a".to_owned()).await.unwrap();
    for (index, fault) in [Fault::Unanswered, Fault::Late, Fault::NotSent]
        .into_iter()
        .enumerate()
    {
        faulty.plan(election.prefix(), [fault]);
        leader.proclaim(format!("v{index}")).await.unwrap();
        leader.proclaim(format!("w{index}")).await.unwrap();
        faulty.deliver().await;
        let kv = client.get(leader.key()).await.unwrap().unwrap();
        assert_eq!(kv.value, format!("\"w{index}\""));
        assert_eq!(kv.lease, session.lease().0, "the lease is kept");
    }
    client.delete(leader.key()).await.unwrap();
    let outcome = leader.proclaim("z".to_owned()).await;
    assert!(matches!(outcome, Err(Error::Removed(_))), "{outcome:?}");
}

/// Watches that nobody reads, with more on their way than a connection holds by default, hold up neither calls nor
/// the renewals of leases.
pub async fn unread_watches_hold_up_nothing(client: &Client) {
    const WATCHES: usize = 8;
    const VALUES: usize = 8;
    let session = short_session(client).await;
    let range = KeyRange::prefix("unread/");
    let mut watches = Vec::new();
    for _ in 0..WATCHES {
        let request = WatchCreateRequest {
            key: range.start.clone(),
            range_end: range.end.clone(),
            ..WatchCreateRequest::default()
        };
        let mut watch = client.store().watch(vec![request]).await.unwrap();
        let created = soon("a watch", watch.next()).await.unwrap().unwrap();
        assert!(created.created && !created.canceled, "{created:?}");
        watches.push(watch);
    }
    for n in 0..VALUES {
        let value = vec![b'x'; 1 << 20];
        client.put(format!("unread/{n}"), value).await.unwrap();
    }
    // Longer than the lease lives by itself.
    let until = Instant::now() + Duration::from_secs(6);
    while Instant::now() < until {
        let read = soon("an answer", client.get("unread/none")).await;
        assert!(read.unwrap().is_none());
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    session.check().unwrap();
    for mut watch in watches {
        let mut seen = 0;
        while seen < VALUES {
            let answer = soon("an event", watch.next()).await.unwrap().unwrap();
            seen += answer.events.len();
        }
    }
}
