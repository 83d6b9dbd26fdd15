//! Rate limits: never more permits than the rule says, in any window, over all processes.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use quorate_recipes::store::faulty::{Fault, Faulty};
use quorate_recipes::{Client, Error};
use tokio::time::Instant;

use super::{keys_below, session};
use crate::support::{soon, until};

const SECOND: Duration = Duration::from_secs(1);

/// Several processes ask as fast as they can: no window has more than the limit, and permits go on.
pub async fn no_window_has_too_many(client: &Client) {
    const LIMIT: u32 = 4;
    let got = Arc::new(Mutex::new(Vec::new()));
    let mut tasks = tokio::task::JoinSet::new();
    for block in 1..=3 {
        let (client, got) = (client.clone(), Arc::clone(&got));
        tasks.spawn(async move {
            let session = session(&client).await;
            let limiter = client.rate_limiter("window", LIMIT, SECOND).block(block);
            for _ in 0..4 {
                limiter.acquire(&session, 1).await.unwrap();
                got.lock().unwrap().push(Instant::now());
            }
        });
    }
    soon("all permits", async {
        while let Some(done) = tasks.join_next().await {
            done.unwrap();
        }
    })
    .await;
    let mut times = std::mem::take(&mut *got.lock().unwrap());
    times.sort_unstable();
    let mut window = VecDeque::new();
    for time in times {
        // What the store calls a second may be a tenth shorter here.
        while window
            .front()
            .is_some_and(|first| time - *first >= SECOND * 9 / 10)
        {
            window.pop_front();
        }
        window.push_back(time);
        assert!(window.len() <= LIMIT as usize, "{window:?}");
    }
}

/// What is not there is not given; what is at hand costs no call.
pub async fn what_is_not_there_is_not_given(client: &Client) {
    let (a, b) = (session(client).await, session(client).await);
    let per = 60 * SECOND;
    let mine = client.rate_limiter("full", 5, per).block(3);
    let theirs = client.rate_limiter("full", 5, per);
    assert!(mine.try_acquire(&a, 1).await.unwrap());
    let (before, _) = client
        .list(quorate_recipes::KeyRange::one("x"))
        .await
        .unwrap();
    assert!(mine.try_acquire(&a, 2).await.unwrap());
    let (after, _) = client
        .list(quorate_recipes::KeyRange::one("x"))
        .await
        .unwrap();
    assert_eq!(before, after, "permits at hand were asked for");
    assert!(!mine.try_acquire(&a, 3).await.unwrap());
    assert!(theirs.try_acquire(&b, 2).await.unwrap());
    assert!(!mine.try_acquire(&a, 1).await.unwrap());
    let waiting = tokio::spawn({
        let (mine, a) = (mine.clone(), a.clone());
        async move { mine.acquire(&a, 1).await }
    });
    until("the waiter's turn", async || {
        !waiting.is_finished() && !mine.try_acquire(&a, 1).await.unwrap()
    })
    .await;
    // An operator may end a grant.
    let grants = format!("{}/grant", mine.prefix());
    let range = quorate_recipes::KeyRange::prefix(format!("{grants}/"));
    let (_, kvs) = client.list(range).await.unwrap();
    let lease = quorate_recipes::LeaseId(kvs[0].lease);
    client.store().lease_revoke(lease).await.unwrap();
    soon("the permit", waiting).await.unwrap().unwrap();
    for wrong in [0, 6] {
        let never = mine.acquire(&a, wrong).await;
        assert!(matches!(never, Err(Error::Invalid(_))), "{never:?}");
    }
    client.store().lease_revoke(b.lease()).await.unwrap();
    let lost = soon("the loss", theirs.acquire(&b, 5)).await;
    assert!(matches!(lost, Err(Error::SessionLost(_))), "{lost:?}");
}

/// All use the same rule; who changes it gets a handle with the new one.
pub async fn the_rule_is_agreed(client: &Client) {
    let session = session(client).await;
    let old = client.rate_limiter("rule", 2, 60 * SECOND);
    old.acquire(&session, 2).await.unwrap();
    let other = client.rate_limiter("rule", 3, 60 * SECOND);
    let differs = other.acquire(&session, 1).await;
    assert!(
        matches!(differs, Err(Error::Mismatch { .. })),
        "{differs:?}"
    );
    let new = old.set_rule(&session, 3, 60 * SECOND).await.unwrap();
    assert!(new.try_acquire(&session, 1).await.unwrap());
    assert!(!new.try_acquire(&session, 1).await.unwrap());
    let differs = old.acquire(&session, 1).await;
    assert!(
        matches!(differs, Err(Error::Mismatch { .. })),
        "{differs:?}"
    );
    let none = client.rate_limiter("none", 0, SECOND);
    assert!(none.acquire(&session, 1).await.is_err());
    assert!(none.set_rule(&session, 0, SECOND).await.is_err());
}

/// Lost answers and late copies give nothing out twice, and leave no grant that nobody has.
pub async fn grants_survive_lost_answers(client: &Client) {
    let faulty = Faulty::new(Arc::clone(client.store()));
    let client = Client::new(faulty.clone());
    let session = session(&client).await;
    for (index, plan) in [
        vec![Fault::NotSent],
        vec![Fault::Unanswered],
        vec![Fault::Late],
        vec![Fault::Late, Fault::Late, Fault::Unanswered],
    ]
    .into_iter()
    .enumerate()
    {
        let limiter = client.rate_limiter(format!("lost-{index}"), 2, 60 * SECOND);
        limiter.acquire(&session, 1).await.unwrap();
        faulty.plan(limiter.prefix(), plan.clone());
        soon("a permit", limiter.acquire(&session, 1))
            .await
            .unwrap();
        assert_eq!(faulty.left(), 0);
        assert!(!limiter.try_acquire(&session, 1).await.unwrap(), "{plan:?}");
        assert_eq!(faulty.deliver().await.1, 0, "{plan:?}");
        let grants = format!("{}/grant", limiter.prefix());
        assert_eq!(keys_below(&client, &grants).await, 2, "{plan:?}");
    }
}

/// A dropped call uses nothing: what it was granted is there for the next.
pub async fn dropped_calls_use_nothing(client: &Client) {
    let faulty = Faulty::new(Arc::clone(client.store()));
    let client = Client::new(faulty.clone());
    let session = session(&client).await;
    let limiter = client.rate_limiter("dropped", 1, 60 * SECOND);
    limiter.set_rule(&session, 1, 60 * SECOND).await.unwrap();
    let gate = Arc::new(tokio::sync::Notify::new());
    faulty.plan(limiter.prefix(), [Fault::HeldAfter(Arc::clone(&gate))]);
    {
        let asking = limiter.acquire(&session, 1);
        tokio::select! {
            _ = asking => panic!("the call is held"),
            () = until("the call to be on its way", async || faulty.held() == 1) => {}
        }
    }
    gate.notify_one();
    soon("the permit", limiter.acquire(&session, 1))
        .await
        .unwrap();
}
