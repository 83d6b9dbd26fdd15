//! What locks cost, counted call by call.

use std::time::Duration;

use quorate_recipes::kit::Contender;
use quorate_recipes::store::{Counting, MemStore};
use quorate_recipes::{Client, KeySpace};

/// What a round trip costs, and who is woken, counted call by call.
#[tokio::test(start_paused = true)]
async fn budgets() {
    let store = MemStore::new();
    let counting = Counting::new(store.clone());
    let client = Client::new(counting.clone());
    let session = client
        .session()
        .ttl(Duration::from_secs(600))
        .await
        .unwrap();
    let count = async |work: &mut dyn FnMut() -> futures::future::BoxFuture<'static, ()>| {
        let before = counting.counts();
        work().await;
        counting.counts() - before
    };
    let mutex = client.mutex("budget");
    let calls = count(&mut || {
        let (mutex, session) = (mutex.clone(), session.clone());
        Box::pin(async move { std::mem::forget(mutex.lock(&session).await.unwrap()) })
    })
    .await;
    assert_eq!((calls.calls(), calls.txn), (1, 1), "an uncontended lock");
    let calls = count(&mut || {
        let (mutex, session) = (mutex.clone(), session.clone());
        Box::pin(async move { assert!(mutex.try_lock(&session).await.unwrap().is_none()) })
    })
    .await;
    assert_eq!(calls.calls(), 1, "a try that loses");
    let revision = store.revision();
    assert!(mutex.try_lock(&session).await.unwrap().is_none());
    assert_eq!(
        store.revision(),
        revision,
        "a try that loses writes nothing"
    );
    let guard = client.mutex("other").lock(&session).await.unwrap();
    let before = counting.counts();
    guard.release().await.unwrap();
    let calls = counting.counts() - before;
    assert_eq!((calls.calls(), calls.txn), (1, 1), "a release");
    let before = counting.counts();
    let writer = client.rw_lock("budget").write(&session).await.unwrap();
    writer.release().await.unwrap();
    let several = client
        .multi_lock(["m1", "m2", "m3"])
        .lock(&session)
        .await
        .unwrap();
    several.release().await.unwrap();
    let permit = client
        .semaphore("budget", 3)
        .acquire(&session)
        .await
        .unwrap();
    permit.release().await.unwrap();
    let calls = counting.counts() - before;
    assert_eq!((calls.calls(), calls.txn), (7, 7), "2 + 2 + 3");
}

/// A release among a thousand waiters wakes one of them, and costs it one transaction.
#[tokio::test(start_paused = true)]
async fn a_release_wakes_one_of_a_thousand() {
    let counting = Counting::new(MemStore::new());
    let client = Client::new(counting.clone());
    let session = client
        .session()
        .ttl(Duration::from_secs(600))
        .await
        .unwrap();
    let space = KeySpace::of("lock", "crowd");
    let first = client.mutex("crowd").lock(&session).await.unwrap();
    let mut waiting = tokio::task::JoinSet::new();
    for _ in 0..1_000 {
        let contender = Contender::enter(&session, &space, "").await.unwrap();
        waiting.spawn(contender.wait_turn());
    }
    // All of them have opened their watches by then.
    tokio::time::sleep(Duration::from_secs(1)).await;
    let before = counting.counts();
    first.release().await.unwrap();
    let next = waiting.join_next().await.unwrap().unwrap().unwrap();
    tokio::time::sleep(Duration::from_secs(1)).await;
    let calls = counting.counts() - before;
    assert_eq!((calls.watches_woken, calls.txn), (1, 2), "{calls:?}");
    assert_eq!(waiting.len(), 999);
    drop(next);
}
