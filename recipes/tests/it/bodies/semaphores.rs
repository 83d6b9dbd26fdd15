//! Semaphores: never more permits than agreed, in the order of asking.

use std::num::NonZeroU32;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use quorate_recipes::lock::Limit;
use quorate_recipes::{Client, Error};

use super::{keys_below, session};
use crate::support::{soon, until};

fn n(permits: u32) -> NonZeroU32 {
    NonZeroU32::new(permits).unwrap()
}

/// Many who want permits: all get them, and never are more than the limit out.
pub async fn never_more_than_the_limit(client: &Client) {
    let out = Arc::new(AtomicU32::new(0));
    let mut tasks = tokio::task::JoinSet::new();
    for wanted in [1, 2, 3, 1, 2, 3] {
        let (client, out) = (client.clone(), Arc::clone(&out));
        tasks.spawn(async move {
            let session = session(&client).await;
            let semaphore = client.semaphore("many", 3);
            for _ in 0..4 {
                let permit = semaphore.acquire_many(&session, n(wanted)).await.unwrap();
                let now = out.fetch_add(wanted, Ordering::SeqCst) + wanted;
                assert!(now <= 3, "{now} permits out");
                tokio::task::yield_now().await;
                permit.put("many/x", "").await.unwrap();
                out.fetch_sub(wanted, Ordering::SeqCst);
                permit.release().await.unwrap();
            }
        });
    }
    while let Some(done) = soon("a taker", tasks.join_next()).await {
        done.unwrap();
    }
    assert_eq!(client.semaphore("many", 3).available().await.unwrap(), 3);
}

/// Who asks for many is not passed by those who ask for few.
pub async fn large_requests_do_not_starve(client: &Client) {
    let session = session(client).await;
    let semaphore = client.semaphore("large", 2);
    let first = semaphore.acquire(&session).await.unwrap();
    let large = tokio::spawn({
        let (semaphore, session) = (semaphore.clone(), session.clone());
        async move { semaphore.acquire_many(&session, n(2)).await.unwrap() }
    });
    until("the large request", async || {
        semaphore.waiters(9).await.unwrap().len() == 1
    })
    .await;
    assert_eq!(semaphore.available().await.unwrap(), 1);
    assert!(
        semaphore
            .try_acquire(&session, n(1))
            .await
            .unwrap()
            .is_none()
    );
    let small = semaphore.acquire_within(&session, n(1), Duration::from_millis(200));
    assert!(small.await.unwrap().is_none());
    first.release().await.unwrap();
    let large = soon("the large request", large).await.unwrap();
    let holders = semaphore.holders().await.unwrap();
    assert_eq!(
        (holders.len(), holders[0].permits, large.count()),
        (1, 2, 2)
    );
    drop(large);
    until("free permits", async || {
        semaphore.available().await.unwrap() == 2
    })
    .await;
    let left = keys_below(client, "quorate/semaphore/large").await;
    assert_eq!(left, 1, "the limit alone");
}

/// The limit is agreed in the store, and changed there for everybody.
pub async fn limits_are_agreed(client: &Client) {
    let session = session(client).await;
    let mut exact = client.semaphore("agreed", 2);
    drop(exact.acquire(&session).await.unwrap());
    let other = client.semaphore("agreed", 3);
    let refused = other.acquire(&session).await;
    assert!(
        matches!(refused, Err(Error::Mismatch { .. })),
        "{refused:?}"
    );
    let easy = client.semaphore("agreed", Limit::Initially(7));
    assert_eq!(easy.limit().await.unwrap(), 2);
    let too_many = easy.acquire_many(&session, n(3)).await;
    assert!(matches!(too_many, Err(Error::Invalid(_))), "{too_many:?}");
    exact.resize(3).await.unwrap();
    let all = easy.acquire_many(&session, n(3)).await.unwrap();
    // Lowered below what is out: nothing is taken away, and nothing given.
    exact.resize(1).await.unwrap();
    all.put("agreed/x", "still held").await.unwrap();
    assert_eq!(exact.available().await.unwrap(), 0);
    assert!(exact.try_acquire(&session, n(1)).await.unwrap().is_none());
    let waiting = tokio::spawn({
        let (exact, session) = (exact.clone(), session.clone());
        async move { exact.acquire(&session).await.unwrap() }
    });
    until("the waiter", async || {
        exact.waiters(9).await.unwrap().len() == 1
    })
    .await;
    all.release().await.unwrap();
    drop(soon("a permit", waiting).await.unwrap());
}

/// The permits of a session that ends are free again.
pub async fn permits_end_with_the_session(client: &Client) {
    let (a, b) = (session(client).await, session(client).await);
    let semaphore = client.semaphore("ends", 1);
    let held = semaphore.acquire(&a).await.unwrap();
    client.store().lease_revoke(a.lease()).await.unwrap();
    let next = soon("the next one", semaphore.acquire(&b)).await.unwrap();
    assert!(next.token() > held.token());
    assert!(held.put("ends/x", "late").await.is_err());
    next.put("ends/x", "in time").await.unwrap();
}
