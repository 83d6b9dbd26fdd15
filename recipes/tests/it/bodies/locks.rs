//! Locks: exclusion, order, fences, giving up.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use quorate_recipes::{Client, Error, KeyRange, LostReason, Name, TxnError};

use super::{keys_below, session};
use crate::support::{soon, until};

/// Many contenders, each adding one under the lock: none is lost, and no two are inside at once.
pub async fn excludes(client: &Client) {
    let inside = Arc::new(AtomicBool::new(false));
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..6 {
        let (client, inside) = (client.clone(), Arc::clone(&inside));
        tasks.spawn(async move {
            let session = session(&client).await;
            for _ in 0..4 {
                let guard = client.mutex("sum").lock(&session).await.unwrap();
                assert!(!inside.swap(true, Ordering::SeqCst), "two holders");
                let sum = client.get("sum").await.unwrap();
                let sum: u32 = sum.map_or(0, |kv| {
                    std::str::from_utf8(&kv.value).unwrap().parse().unwrap()
                });
                tokio::task::yield_now().await;
                guard.put("sum", (sum + 1).to_string()).await.unwrap();
                inside.store(false, Ordering::SeqCst);
                guard.release().await.unwrap();
            }
            session.close().await.unwrap();
        });
    }
    soon("all contenders", async {
        while let Some(done) = tasks.join_next().await {
            done.unwrap();
        }
    })
    .await;
    assert_eq!(client.get("sum").await.unwrap().unwrap().value, "24");
    assert_eq!(keys_below(client, client.mutex("sum").prefix()).await, 0);
}

/// The compare-and-swap lock excludes too, and says who holds it.
pub async fn exclusive_lock_excludes(client: &Client) {
    let (a, b) = (session(client).await, session(client).await);
    let lock = client.exclusive("one").with_info("first");
    let guard = lock.lock(&a).await.unwrap();
    assert_eq!(lock.holder().await.unwrap().unwrap().info, "first");
    assert!(lock.try_lock(&b).await.unwrap().is_none());
    assert!(lock.try_lock(&a).await.unwrap().is_none(), "not re-entrant");
    let waiting = tokio::spawn({
        let lock = lock.clone();
        async move { lock.lock(&b).await.unwrap() }
    });
    guard.put("one/state", "x").await.unwrap();
    let first = guard.token();
    guard.release().await.unwrap();
    let guard = soon("the second holder", waiting).await.unwrap();
    assert!(guard.token() > first);
    drop(guard);
    until("the drop to release", async || {
        lock.holder().await.unwrap().is_none()
    })
    .await;
}

/// Grants come in the order of asking, and cancelled waiters in the middle do not matter.
pub async fn grants_in_order(client: &Client) {
    let session = session(client).await;
    let lock = client.mutex("line").with_info("in line");
    let holder = lock.lock(&session).await.unwrap();
    let (granted, mut order) = tokio::sync::mpsc::unbounded_channel();
    let mut waiting = Vec::new();
    for place in 1..=5 {
        let (lock, session, granted) = (lock.clone(), session.clone(), granted.clone());
        waiting.push(tokio::spawn(async move {
            let guard = lock.lock(&session).await.unwrap();
            granted.send(place).unwrap();
            guard.release().await.unwrap();
        }));
        let lock = client.mutex("line");
        until("the next in line", async || {
            lock.waiters(9).await.unwrap().len() == place
        })
        .await;
    }
    let waiters = lock.waiters(9).await.unwrap();
    assert_eq!(waiters[1].position, 2);
    assert_eq!(waiters[1].contender.info, "in line");
    assert_eq!(waiters[1].contender.who.as_ref().unwrap().label, "test");
    waiting[1].abort();
    until("the cancelled one to leave", async || {
        lock.waiters(9).await.unwrap().len() == 4
    })
    .await;
    holder.release().await.unwrap();
    for expected in [1, 3, 4, 5] {
        assert_eq!(soon("a grant", order.recv()).await, Some(expected));
    }
    until("an empty line", async || {
        keys_below(client, lock.prefix()).await == 0
    })
    .await;
}

/// `try_lock` leaves no trace when it does not win, and wins a free lock.
pub async fn trying_writes_nothing(client: &Client) {
    let session = session(client).await;
    let lock = client.mutex("try");
    let guard = lock.try_lock(&session).await.unwrap().unwrap();
    let (before, _) = client.list(KeyRange::one("x")).await.unwrap();
    assert!(lock.try_lock(&session).await.unwrap().is_none());
    let (after, _) = client.list(KeyRange::one("x")).await.unwrap();
    assert_eq!(before, after, "a lost try has written");
    guard.release().await.unwrap();
    assert!(lock.try_lock(&session).await.unwrap().is_some());
}

/// A revoked lease ends the guard, wakes who waits for that, and lets the next one in.
pub async fn lost_when_the_lease_is_revoked(client: &Client) {
    let (a, b) = (session(client).await, session(client).await);
    let lock = client.mutex("lost");
    let guard = lock.lock(&a).await.unwrap();
    let lost = guard.lost();
    let scope = guard.scope(std::future::pending::<()>());
    client.store().lease_revoke(a.lease()).await.unwrap();
    let ended = soon("the scope's end", scope).await;
    assert!(
        matches!(ended, Err(Error::SessionLost(LostReason::LeaseGone))),
        "{ended:?}"
    );
    assert_eq!(soon("the loss", lost).await, LostReason::LeaseGone);
    assert!(guard.remaining().is_zero());
    let again = lock.lock(&a).await;
    assert!(matches!(again, Err(Error::SessionLost(_))), "{again:?}");
    let next = soon("the next holder", lock.lock(&b)).await.unwrap();
    assert!(next.token() > guard.token());
    assert!(matches!(guard.release().await, Err(Error::SessionLost(_))));
    next.put("lost/state", "b").await.unwrap();
}

/// The store itself refuses a write under a lock that was lost, and names the new holder.
pub async fn fence_refuses_after_loss(client: &Client) {
    let (a, b) = (session(client).await, session(client).await);
    let lock = client.mutex("fence");
    let guard = lock.lock(&a).await.unwrap();
    guard.put("fence/state", "a").await.unwrap();
    // The key goes behind the holder's back; its session lives and its lease is renewed.
    client.delete(guard.key()).await.unwrap();
    let new = lock.with_info("new").lock(&b).await.unwrap();
    let refused = guard.txn().put("fence/state", "late").commit().await;
    let Err(TxnError::Fenced { owner: Some(owner) }) = refused else {
        panic!("{refused:?}");
    };
    assert_eq!((owner.info.as_str(), owner.lease), ("new", b.lease()));
    assert_eq!(client.get("fence/state").await.unwrap().unwrap().value, "a");
    assert_eq!(soon("the loss", guard.lost()).await, LostReason::Removed);
    assert!(matches!(guard.release().await, Err(Error::Fenced { .. })));
    let both = client
        .txn()
        .guard(&new)
        .when(quorate_recipes::Compare::absent("fence/state"));
    assert!(matches!(
        both.put("x", "y").commit().await,
        Err(TxnError::Conflict { .. })
    ));
    new.put("fence/state", "b").await.unwrap();
    let inside = new
        .put(format!("{}/x", client.mutex("fence").prefix()), "")
        .await;
    assert!(
        matches!(inside, Err(TxnError::Failed(Error::Invalid(_)))),
        "{inside:?}"
    );
}

/// A restore of an older state raises the epoch: every hold from before is refused.
pub async fn epoch_ends_old_holds(client: &Client) {
    let old = session(client).await;
    let guard = client.mutex("epoch").lock(&old).await.unwrap();
    client
        .put(quorate_recipes::keys::EPOCH_KEY, "17")
        .await
        .unwrap();
    let refused = guard.put("epoch/state", "old").await;
    assert!(
        matches!(refused, Err(TxnError::Fenced { .. })),
        "{refused:?}"
    );
    let before = guard.token();
    let lost = soon("the session's end", old.lost()).await;
    assert_eq!(lost, LostReason::StoreReplaced);
    let new = session(client).await;
    let guard = client.mutex("epoch").lock(&new).await.unwrap();
    assert_eq!(guard.token().epoch, 17);
    assert!(guard.token() > before);
    guard.put("epoch/state", "new").await.unwrap();
    client
        .delete(quorate_recipes::keys::EPOCH_KEY)
        .await
        .unwrap();
}

/// A waiter learns at once that its session is gone, and does not wait for the holder.
pub async fn waiter_learns_of_its_own_loss(client: &Client) {
    let (a, b) = (session(client).await, session(client).await);
    let lock = client.mutex("own-loss");
    let _guard = lock.lock(&a).await.unwrap();
    let waiting = tokio::spawn({
        let (lock, b) = (lock.clone(), b.clone());
        async move { lock.lock(&b).await }
    });
    until("the waiter", async || {
        lock.waiters(9).await.unwrap().len() == 1
    })
    .await;
    client.store().lease_revoke(b.lease()).await.unwrap();
    let outcome = soon("the waiter's loss", waiting).await.unwrap();
    assert!(
        matches!(outcome, Err(Error::SessionLost(LostReason::LeaseGone))),
        "{outcome:?}"
    );
}

/// A waiter whose key somebody deleted is told, while the holder goes on holding.
pub async fn removed_waiter_is_told(client: &Client) {
    let session = session(client).await;
    let lock = client.mutex("removed");
    let guard = lock.lock(&session).await.unwrap();
    let waiting = tokio::spawn({
        let (lock, session) = (lock.clone(), session.clone());
        async move { lock.lock(&session).await }
    });
    until("the waiter", async || {
        lock.waiters(9).await.unwrap().len() == 1
    })
    .await;
    let waiter = lock.waiters(9).await.unwrap().remove(0).contender;
    client.delete(&waiter.key).await.unwrap();
    let outcome = soon("the waiter's answer", waiting).await.unwrap();
    assert!(matches!(outcome, Err(Error::Removed(key)) if key == waiter.key));
    guard.put("removed/x", "still held").await.unwrap();
}

/// A key that no contender can have written is named, not waited for.
pub async fn foreign_key_is_an_error(client: &Client) {
    let session = session(client).await;
    let lock = client.mutex(Name::raw("shared/lock"));
    client
        .put("shared/lock/config", "not a contender")
        .await
        .unwrap();
    let outcome = soon("an answer", lock.lock(&session)).await;
    assert!(matches!(outcome, Err(Error::ForeignKey(_))), "{outcome:?}");
    client.delete("shared/lock/config").await.unwrap();
    until("no key of ours", async || {
        keys_below(client, lock.prefix()).await == 0
    })
    .await;
    // Names that are prefixes of one another are different locks.
    let _inner = client.mutex("a/b").lock(&session).await.unwrap();
    let other = client.mutex("a");
    drop(soon("the other lock", other.lock(&session)).await.unwrap());
}

/// Dropped guards and dropped waits leave no key behind.
pub async fn drops_leave_nothing(client: &Client) {
    let session = session(client).await;
    let lock = client.mutex("drops");
    let guard = lock.lock(&session).await.unwrap();
    for micros in [0, 200, 1_000, 5_000, 50_000] {
        let wait = tokio::time::timeout(Duration::from_micros(micros), lock.lock(&session));
        assert!(wait.await.is_err());
    }
    until("the waits to be gone", async || {
        keys_below(client, lock.prefix()).await == 1
    })
    .await;
    drop(guard);
    until("the guard to be gone", async || {
        keys_below(client, lock.prefix()).await == 0
    })
    .await;
    drop(soon("a new holder", lock.lock(&session)).await.unwrap());
}
