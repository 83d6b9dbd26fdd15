//! Latches: each counts once, and nobody passes before zero.

use std::sync::Arc;

use quorate_recipes::store::faulty::{Fault, Faulty};
use quorate_recipes::{Client, CountdownLatch, Error};
use tokio::task::JoinHandle;

use super::{cut_time_and_again, session, watched, watches};
use crate::support::{soon, until};

fn waiting(latch: &CountdownLatch) -> JoinHandle<()> {
    let latch = latch.clone();
    tokio::spawn(async move { latch.wait().await.unwrap() })
}

/// Set up by all with one count, counted down by each once, opened for everybody.
pub async fn opens_at_zero(client: &Client) {
    let latch = client.latch("ready");
    assert_eq!(latch.count().await.unwrap(), None);
    // Before it is set up.
    let (connection, theirs) = watched(client);
    let early = waiting(&theirs.latch("ready"));
    let early_count = tokio::spawn({
        let (client, latch) = (client.clone(), latch.clone());
        async move {
            let session = session(&client).await;
            latch.count_down(&session).await.unwrap()
        }
    });
    let first = session(client).await;
    let second = session(client).await;
    let (one, other) = tokio::join!(latch.init(&first, 3), latch.init(&second, 3));
    one.unwrap();
    other.unwrap();
    let outcome = latch.init(&first, 4).await;
    let Err(Error::Mismatch { wanted, stored, .. }) = outcome else {
        panic!("{outcome:?}");
    };
    assert_eq!((wanted, stored), ("4".to_owned(), "3".to_owned()));
    assert_eq!(soon("the early one", early_count).await.unwrap(), 2);
    let late = waiting(&theirs.latch("ready"));
    watches(&connection, 2).await;
    let before = connection.inner().counts().wake_ups;
    assert_eq!(latch.count_down(&first).await.unwrap(), 1);
    assert_eq!(latch.count().await.unwrap(), Some(1));
    until("both to be told", async || {
        connection.inner().counts().wake_ups >= before + 2
    })
    .await;
    assert!(!early.is_finished() && !late.is_finished());
    assert_eq!(client.latch("ready").count_down(&second).await.unwrap(), 0);
    soon("the early waiter", early).await.unwrap();
    soon("the late waiter", late).await.unwrap();
    soon("an open latch", latch.wait()).await.unwrap();
    // Never below zero.
    assert_eq!(latch.count_down(&first).await.unwrap(), 0);
    assert_eq!(latch.count().await.unwrap(), Some(0));
    // Whoever counted stays counted, and the latch closes again when told so.
    latch.reset(&second).await.unwrap();
    assert_eq!(latch.count().await.unwrap(), Some(3));
    let again = waiting(&latch);
    latch.init(&second, 3).await.unwrap();
    latch.count_down(&second).await.unwrap();
    second.close().await.unwrap();
    assert_eq!(latch.count_down(&first).await.unwrap(), 1);
    latch.reset(&first).await.unwrap();
    assert!(!again.is_finished());
    for left in [2, 1, 0] {
        assert_eq!(latch.count_down(&first).await.unwrap(), left);
    }
    soon("the waiter of the next round", again).await.unwrap();
    let none = client.latch("none");
    none.init(&first, 0).await.unwrap();
    soon("a latch of nothing", none.wait()).await.unwrap();
}

/// Lost answers count once; ended watches open nothing; and who was cut off when it opened, and
/// closed again, is let go.
pub async fn survives_lost_answers(client: &Client) {
    let faulty = Faulty::new(Arc::clone(client.store()));
    let client = Client::builder(faulty.clone()).build();
    let session = session(&client).await;
    let latch = client.latch("lost");
    let plans = [
        vec![Fault::Unanswered],
        vec![Fault::Late],
        vec![Fault::NotSent, Fault::Late, Fault::Unanswered],
    ];
    faulty.plan("quorate/latch/", plans[2].clone());
    latch.init(&session, 4).await.unwrap();
    faulty.deliver().await;
    let (connection, theirs) = watched(&client);
    let waiter = waiting(&theirs.latch("lost"));
    watches(&connection, 1).await;
    for (plan, left) in plans.into_iter().zip([3, 2, 1]) {
        faulty.plan("quorate/latch/", plan.clone());
        let counted = latch.count_down(&session).await.unwrap();
        assert_eq!((counted, faulty.left()), (left, 0), "{plan:?}");
        assert_eq!(faulty.deliver().await.1, 0, "{plan:?}");
        assert_eq!(latch.count().await.unwrap(), Some(left));
        cut_time_and_again(&connection, 1).await;
    }
    assert!(!waiter.is_finished(), "the end of a watch opened the latch");
    faulty.plan("quorate/latch/", [Fault::Unanswered]);
    connection.cut_watches();
    assert_eq!(latch.count_down(&session).await.unwrap(), 0);
    faulty.plan("quorate/latch/", [Fault::Late]);
    latch.reset(&session).await.unwrap();
    faulty.deliver().await;
    soon("the waiter that was cut off", waiter).await.unwrap();
    until("the count after the reset", async || {
        latch.count().await.unwrap() == Some(4)
    })
    .await;
}
