//! The other forms of the queue-ordered lock: several at once, re-entrant, for many tasks, with a
//! delay, asked for back.

use std::time::Duration;

use quorate_recipes::{Client, Error, Fenced, TxnError};

use super::{keys_below, session};
use crate::support::{soon, until};

/// Many who want overlapping sets of locks, named in any order: nobody waits for ever.
pub async fn several_at_once_never_block_each_other(client: &Client) {
    let sets = [
        ["a", "b", "c"],
        ["c", "a", "b"],
        ["b", "c", "d"],
        ["d", "b", "a"],
    ];
    let mut tasks = tokio::task::JoinSet::new();
    for set in sets {
        let client = client.clone();
        tasks.spawn(async move {
            let session = session(&client).await;
            let lock = client.multi_lock(set.map(|name| format!("multi-{name}")));
            for _ in 0..5 {
                let guard = lock.lock(&session).await.unwrap();
                let count = client.get("multi/count").await.unwrap();
                let count: u32 =
                    count.map_or(0, |kv| String::from_utf8_lossy(&kv.value).parse().unwrap());
                let next = (count + 1).to_string();
                guard.put("multi/count", next).await.unwrap();
                guard.release().await.unwrap();
            }
        });
    }
    while let Some(done) = soon("a set of locks", tasks.join_next()).await {
        done.unwrap();
    }
    let count = client.get("multi/count").await.unwrap().unwrap();
    // All sets have "b" in common.
    assert_eq!(count.value, "20");
    assert_eq!(keys_below(client, "quorate/lock").await, 0);
}

/// Several locks exclude each of them alone, and are lost with any of them.
pub async fn several_at_once_are_all_of_them(client: &Client) {
    let session = session(client).await;
    let both = client.multi_lock(["all-a", "all-b"]);
    let alone = client.mutex("all-b").lock(&session).await.unwrap();
    assert!(both.try_lock(&session).await.unwrap().is_none());
    let within = both.lock_within(&session, Duration::from_millis(100)).await;
    assert!(within.unwrap().is_none());
    alone.release().await.unwrap();
    until("the lines to be empty", async || {
        keys_below(client, "quorate/lock").await == 0
    })
    .await;
    let guard = both.lock(&session).await.unwrap();
    for name in ["all-a", "all-b"] {
        assert!(
            client
                .mutex(name)
                .try_lock(&session)
                .await
                .unwrap()
                .is_none()
        );
    }
    guard.put("all/x", "held").await.unwrap();
    let second = client.mutex("all-b").holder().await.unwrap().unwrap();
    client.delete(&second.key).await.unwrap();
    let refused = guard.put("all/x", "late").await;
    assert!(
        matches!(refused, Err(TxnError::Fenced { .. })),
        "{refused:?}"
    );
    drop(guard);
    until("the other one's release", async || {
        keys_below(client, "quorate/lock").await == 0
    })
    .await;
    for (names, why) in [(vec![], "no locks"), (vec!["x", "x"], "twice")] {
        let refused = client.multi_lock(names).lock(&session).await;
        let Err(Error::Invalid(text)) = refused else {
            panic!("{refused:?}")
        };
        assert!(text.contains(why), "{text}");
    }
}

/// A shared lock is held until its last guard goes.
pub async fn shared_guards_are_counted(client: &Client) {
    let (a, b) = (session(client).await, session(client).await);
    let mutex = client.mutex("shared");
    let shared = mutex.shared(&a);
    let outer = shared.lock().await.unwrap();
    let inner = soon("the same owner", shared.clone().lock()).await.unwrap();
    assert_eq!((inner.count(), inner.token()), (2, outer.token()));
    outer.release().await.unwrap();
    assert!(mutex.try_lock(&b).await.unwrap().is_none());
    inner.put("shared/x", "held").await.unwrap();
    inner.release().await.unwrap();
    let other = soon("the other owner", mutex.lock(&b)).await.unwrap();
    other.release().await.unwrap();
    let again = shared.lock().await.unwrap();
    client.store().lease_revoke(a.lease()).await.unwrap();
    soon("the loss", again.lost()).await;
    let refused = shared.lock().await;
    assert!(matches!(refused, Err(Error::SessionLost(_))), "{refused:?}");
}

/// Tasks of one process stand in the store's line as one, and let others in after a while.
pub async fn combined_tasks_are_one_contender(client: &Client) {
    let (a, b) = (session(client).await, session(client).await);
    let mutex = client.mutex("combined");
    let combined = mutex.combined(&a).passes_max(3);
    let first = combined.lock().await.unwrap();
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..8 {
        let combined = combined.clone();
        tasks.spawn(async move {
            let guard = combined.lock().await.unwrap();
            guard.put("combined/x", "held").await.unwrap();
            let token = guard.token();
            guard.release().await.unwrap();
            token
        });
    }
    let other = tokio::spawn({
        let (mutex, b) = (mutex.clone(), b.clone());
        async move { mutex.lock(&b).await.unwrap() }
    });
    until("one in line besides", async || {
        mutex.waiters(99).await.unwrap().len() == 1
    })
    .await;
    let (old, held) = (first.fence().clone(), first.token());
    drop(first);
    let other = soon("the other process", other).await.unwrap();
    let between = other.token();
    other.release().await.unwrap();
    let mut tokens = Vec::new();
    while let Some(token) = soon("a task", tasks.join_next()).await {
        tokens.push(token.unwrap());
    }
    // They went on with the first hold three times, and stood behind the other process then.
    let before = tokens.iter().filter(|token| **token < between);
    assert_eq!(before.clone().count(), 3, "{tokens:?}");
    assert!(before.into_iter().all(|token| *token == held), "{tokens:?}");
    assert_eq!(tokens.len(), 8);
    let late = client.txn().fence(old).put("combined/x", "late");
    assert!(late.commit().await.is_err(), "a guard that was given up");
    until("no key left", async || {
        keys_below(client, mutex.prefix()).await == 0
    })
    .await;
}

/// After a holder that was lost nobody comes in for a while; after one that released, at once.
pub async fn delay_follows_a_loss(client: &Client) {
    let (a, b) = (session(client).await, session(client).await);
    let delay = Duration::from_secs(4);
    let mutex = client.mutex("delayed").with_delay(delay);
    let held = mutex.lock(&a).await.unwrap();
    held.release().await.unwrap();
    let start = tokio::time::Instant::now();
    let quick = mutex.lock(&b).await.unwrap();
    assert!(start.elapsed() < delay, "nobody was lost");
    quick.release().await.unwrap();

    let _held = mutex.lock(&a).await.unwrap();
    client.store().lease_revoke(a.lease()).await.unwrap();
    let start = tokio::time::Instant::now();
    assert!(mutex.try_lock(&b).await.unwrap().is_none(), "a delay runs");
    // Tries count on from the first look, also those that give up.
    let within = mutex.lock_within(&b, delay / 4).await.unwrap();
    assert!(within.is_none(), "a delay runs");
    let next = soon("the end of the delay", async {
        loop {
            match mutex.try_lock(&b).await.unwrap() {
                Some(guard) => break guard,
                None => tokio::time::sleep(Duration::from_millis(50)).await,
            }
        }
    })
    .await;
    let waited = start.elapsed();
    assert!(delay <= waited && waited < 2 * delay, "{waited:?}");
    next.put("delayed/x", "held").await.unwrap();
    next.release().await.unwrap();
    drop(
        mutex
            .try_lock(&b)
            .await
            .unwrap()
            .expect("free, and no note"),
    );
    until("no note left", async || {
        keys_below(client, "quorate/lock-meta").await == 0
    })
    .await;
}

/// A holder hears that it is asked to let go, and why; a request that is dropped is taken back.
pub async fn holders_are_asked_to_let_go(client: &Client) {
    let (a, b) = (session(client).await, session(client).await);
    let mutex = client.mutex("asked");
    assert!(mutex.request_release(&b, "now").await.unwrap().is_none());
    let guard = mutex.lock(&a).await.unwrap();
    drop(mutex.request_release(&b, "changed my mind").await.unwrap());
    until("the request's end", async || {
        keys_below(client, "quorate/lock-meta").await == 0
    })
    .await;
    let holder = tokio::spawn(async move {
        let asked = guard.release_requested().await.unwrap();
        guard.release().await.unwrap();
        asked
    });
    let request = mutex.request_release(&b, "maintenance").await.unwrap();
    let request = request.expect("somebody holds");
    assert_eq!(request.holder().lease, a.lease());
    soon("the release", request.granted()).await.unwrap();
    let asked = soon("the holder", holder).await.unwrap();
    assert_eq!(
        (asked.reason.as_str(), asked.lease),
        ("maintenance", b.lease())
    );
    drop(request);
    until("no request left", async || {
        keys_below(client, "quorate/lock-meta").await == 0
    })
    .await;
}
