//! The other forms of the queue-ordered lock: several at once, re-entrant, for many tasks, with a
//! delay, asked for back.

use std::time::Duration;

use quorate_recipes::lock::Upgraded;
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
    let third = shared.try_lock().await.unwrap().expect("its own hold");
    assert_eq!((third.count(), third.token()), (3, outer.token()));
    third.release().await.unwrap();
    outer.release().await.unwrap();
    assert!(mutex.try_lock(&b).await.unwrap().is_none());
    assert!(mutex.shared(&b).try_lock().await.unwrap().is_none());
    inner.put("shared/x", "held").await.unwrap();
    inner.release().await.unwrap();
    let other = soon("the other owner", mutex.lock(&b)).await.unwrap();
    assert!(shared.try_lock().await.unwrap().is_none());
    other.release().await.unwrap();
    let again = shared.try_lock().await.unwrap().expect("it is free");
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
    let first = combined.try_lock().await.unwrap().expect("it is free");
    assert!(combined.try_lock().await.unwrap().is_none());
    assert!(mutex.combined(&b).try_lock().await.unwrap().is_none());
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
    assert_eq!(mutex.delay_left().await.unwrap(), None);
    held.release().await.unwrap();
    assert_eq!(mutex.delay_left().await.unwrap(), None);
    let start = tokio::time::Instant::now();
    let quick = mutex.lock(&b).await.unwrap();
    assert!(start.elapsed() < delay, "nobody was lost");
    quick.release().await.unwrap();

    let _held = mutex.lock(&a).await.unwrap();
    client.store().lease_revoke(a.lease()).await.unwrap();
    let start = tokio::time::Instant::now();
    assert!(mutex.try_lock(&b).await.unwrap().is_none(), "a delay runs");
    let left = mutex.delay_left().await.unwrap().expect("a delay runs");
    assert!(left <= delay, "{left:?}");
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
    assert_eq!(mutex.delay_left().await.unwrap(), None);
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
        keys_below(client, "quorate/request").await == 0
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
        keys_below(client, "quorate/request").await == 0
    })
    .await;
}

/// Whatever is held, its holder hears that it is asked for, and only that one.
pub async fn holders_of_all_kinds_are_asked(client: &Client) {
    let (a, b) = (session(client).await, session(client).await);
    let rw = client.rw_lock("asked");
    let (one, two) = (rw.read(&a).await.unwrap(), rw.read(&a).await.unwrap());
    let holders = rw.contenders().await.unwrap();
    let first = b.request_release(&holders[0].contender, "one").await;
    let first = first.unwrap().expect("it reads");
    let heard = soon("the first reader", one.release_requested()).await;
    assert_eq!(heard.unwrap().reason, "one");
    let second = b.request_release(&holders[1].contender, "two").await;
    let heard = soon("the second reader", two.release_requested()).await;
    assert_eq!(heard.unwrap().reason, "two", "its own only");
    one.release().await.unwrap();
    soon("the first reader", first.granted()).await.unwrap();
    let gone = b.request_release(&holders[0].contender, "late").await;
    assert!(gone.unwrap().is_none(), "it reads no more");
    drop((first, second));
    // What it was as a reader is what it is shown as.
    let Upgraded::Write(writer) = two.try_upgrade().await.unwrap() else {
        panic!("nobody else reads")
    };
    let third = b.request_release(&holders[1].contender, "three").await;
    let heard = soon("the writer", writer.release_requested()).await;
    assert_eq!(heard.unwrap().reason, "three");
    drop((third, writer));

    let semaphore = client.semaphore("asked", 2);
    let permit = semaphore.acquire(&a).await.unwrap();
    let holder = &semaphore.holders().await.unwrap()[0].holder;
    let request = b.request_release(holder, "a permit").await.unwrap();
    let heard = soon("the permit's holder", permit.release_requested()).await;
    assert_eq!(heard.unwrap().reason, "a permit");
    drop((request, permit));

    let exclusive = client.exclusive("asked");
    assert!(exclusive.request_release(&b, "x").await.unwrap().is_none());
    let guard = exclusive.lock(&a).await.unwrap();
    let request = exclusive.request_release(&b, "the only one").await.unwrap();
    let heard = soon("the holder", guard.release_requested()).await;
    assert_eq!(heard.unwrap().reason, "the only one");
    drop((request, guard));

    let several = client.multi_lock(["asked-1", "asked-2"]);
    let guard = several.lock(&a).await.unwrap();
    for lock in several.each() {
        let prefix = lock.prefix().to_owned();
        assert_eq!(lock.holder().await.unwrap().unwrap().lease, a.lease());
        let request = lock.request_release(&b, prefix.as_str()).await.unwrap();
        let heard = soon("the holder of both", guard.release_requested()).await;
        assert_eq!(heard.unwrap().reason, prefix);
        drop(request);
    }
    drop(guard);
    until("nothing left", async || {
        keys_below(client, "quorate/request").await + keys_below(client, "quorate/lock").await == 0
    })
    .await;
}

/// A panic with the lock in hand leaves a mark, which stays until a holder clears it.
pub async fn panics_leave_a_mark(client: &Client) {
    let session = session(client).await.for_task("careless");
    let mutex = client.mutex("poison").poison_on_panic();
    mutex.lock(&session).await.unwrap().release().await.unwrap();
    drop(mutex.lock(&session).await.unwrap());
    let panics = async |with: &str| {
        let (mutex, session, with) = (mutex.clone(), session.clone(), with.to_owned());
        let task = tokio::spawn(async move {
            let (shared, combined) = (mutex.shared(&session), mutex.combined(&session));
            match with.as_str() {
                "alone" => {
                    let guard = mutex.lock(&session).await.unwrap();
                    guard.scope(async { panic!("on purpose") }).await.unwrap();
                }
                "shared" => {
                    let kept = shared.lock().await.unwrap();
                    let panics = tokio::spawn(async move {
                        let _guard = shared.lock().await.unwrap();
                        panic!("on purpose");
                    });
                    panics.await.unwrap_err();
                    kept.release().await.unwrap();
                }
                _ => {
                    let guard = combined.lock().await.unwrap();
                    let waits = tokio::spawn({
                        let combined = combined.clone();
                        async move { drop(combined.lock().await.unwrap()) }
                    });
                    tokio::task::yield_now().await;
                    let panics = tokio::spawn(async move {
                        let _guard = guard;
                        panic!("on purpose");
                    });
                    panics.await.unwrap_err();
                    waits.await.unwrap();
                }
            }
        });
        drop(task.await);
    };
    for with in ["alone", "shared", "combined"] {
        assert_eq!(mutex.poison().await.unwrap(), None, "{with}");
        panics(with).await;
        let guard = soon("the next holder", mutex.lock(&session)).await.unwrap();
        let mark = client.mutex("poison").poison().await.unwrap();
        let mark = mark.unwrap_or_else(|| panic!("no mark: {with}"));
        assert!(mark.token < guard.token(), "{mark:?}");
        assert_eq!(mark.task.as_deref(), Some("careless"));
        assert_eq!(mark.who, *session.who());
        let other = client.mutex("another").lock(&session).await.unwrap();
        let refused = mutex.clear_poison(&other).await;
        assert!(
            matches!(refused, Err(TxnError::Failed(Error::Invalid(_)))),
            "{refused:?}"
        );
        assert!(mutex.clear_poison(&guard).await.unwrap());
        assert!(!mutex.clear_poison(&guard).await.unwrap());
        guard.release().await.unwrap();
    }
}
