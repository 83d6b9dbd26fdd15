//! Counters, adders and ids: nothing is counted twice or lost, whatever happens to an answer.

use std::collections::BTreeSet;
use std::sync::Arc;

use quorate_recipes::store::faulty::{Fault, Faulty};
use quorate_recipes::{Client, Error, Session, Store};
use tokio::sync::Notify;

use super::{keys_below, session};
use crate::support::{soon, until};

fn client_of(faulty: &Faulty<Arc<dyn Store>>) -> Client {
    Client::builder(faulty.clone()).build()
}

/// What may happen to the first copies of a call.
fn plans() -> Vec<Vec<Fault>> {
    vec![
        vec![Fault::NotSent],
        vec![Fault::Unanswered],
        vec![Fault::Late],
        vec![Fault::Late, Fault::Late, Fault::Unanswered],
        vec![Fault::Unanswered, Fault::Unanswered, Fault::NotSent],
        vec![Fault::Late, Fault::Unanswered, Fault::Late, Fault::NotSent],
    ]
}

/// Every value between is returned to exactly one of those who add.
pub async fn additions_are_exact(client: &Client) {
    let counter = client.counter("exact");
    assert_eq!(counter.get().await.unwrap(), 0);
    let mut adding = tokio::task::JoinSet::new();
    for index in 0..6 {
        // Three processes with two tasks each, whose handle is shared.
        let (client, counter) = (client.clone(), counter.clone());
        adding.spawn(async move {
            let counter = if index < 4 {
                client.counter("exact")
            } else {
                counter
            };
            let session = session(&client).await;
            let mut made = Vec::new();
            for _ in 0..10 {
                made.push(counter.add(&session, 1).await.unwrap());
            }
            assert!(made.is_sorted());
            made
        });
    }
    let made = soon("the additions", adding.join_all()).await;
    let made: BTreeSet<_> = made.into_iter().flatten().collect();
    assert_eq!(made, (1..=60).collect());
    assert_eq!(counter.get().await.unwrap(), 60);
}

/// Numbers are set and compared, and do not wrap around.
pub async fn numbers_are_set_and_compared(client: &Client) {
    let session = session(client).await;
    let (counter, other) = (client.counter("cas"), client.counter("cas"));
    assert!(!counter.compare_and_set(&session, 1, 2).await.unwrap());
    assert!(counter.compare_and_set(&session, 0, 5).await.unwrap());
    assert_eq!(other.add(&session, -7).await.unwrap(), -2);
    // The handle remembers 5, and must not believe it.
    assert!(!counter.compare_and_set(&session, 5, 6).await.unwrap());
    assert_eq!(other.set(&session, i64::MAX).await.unwrap(), -2);
    for handle in [&counter, &other] {
        let outcome = handle.add(&session, 1).await;
        assert!(matches!(outcome, Err(Error::Invalid(_))), "{outcome:?}");
    }
    assert_eq!(other.set(&session, 1).await.unwrap(), i64::MAX);
    assert_eq!(counter.add(&session, 1).await.unwrap(), 2);
    client.put(counter.key(), "many").await.unwrap();
    let outcome = counter.add(&session, 1).await;
    assert!(matches!(outcome, Err(Error::Codec { .. })), "{outcome:?}");
    assert!(matches!(counter.get().await, Err(Error::Codec { .. })));
}

/// One addition a call, whatever becomes of its first copies, of the seals, and of late copies.
pub async fn additions_survive_lost_answers(client: &Client) {
    let faulty = Faulty::new(Arc::clone(client.store()));
    let client = client_of(&faulty);
    let session = session(&client).await;
    let (counter, adder) = (client.counter("lost"), client.adder("lost"));
    let mut expected = 0;
    for prefix in ["quorate/lane/", "quorate/counter/", "quorate/adder/"] {
        for plan in plans() {
            expected += 1;
            faulty.plan(prefix, plan.clone());
            let value = soon("an addition", counter.add(&session, 1)).await.unwrap();
            assert_eq!(value, expected, "{prefix} {plan:?}");
            soon("an addition", adder.add(&session, 1)).await.unwrap();
            if prefix == "quorate/lane/" {
                assert_eq!(
                    faulty.left(),
                    0,
                    "the seals meet what the effect did not: {plan:?}"
                );
            }
            let (late, effective) = faulty.deliver().await;
            assert_eq!(effective, 0, "{late} late copies, {prefix} {plan:?}");
            assert_eq!(counter.get().await.unwrap(), expected);
            assert_eq!(adder.sum().await.unwrap(), expected);
        }
    }
}

/// Leaves an addition on the way whose answer is lost and whose session ends before it can look.
async fn orphaned<T, F>(
    faulty: &Faulty<Arc<dyn Store>>,
    session: &Session,
    adding: F,
) -> Result<T, Error>
where
    T: Send + 'static,
    F: Future<Output = Result<T, Error>> + Send + 'static,
{
    let gate = Arc::new(Notify::new());
    let seal = Fault::HeldBefore(Arc::clone(&gate));
    faulty.plan("quorate/lane/", [Fault::Late, seal]);
    let adding = tokio::spawn(adding);
    until("the seal to be held", async || faulty.held() == 1).await;
    let store = session.client().store();
    store.lease_revoke(session.lease()).await.unwrap();
    gate.notify_one();
    soon("the end of the addition", adding).await.unwrap()
}

/// A session that ends with an answer still to come says so, and the late copy changes nothing.
pub async fn additions_of_a_lost_session(client: &Client) {
    let faulty = Faulty::new(Arc::clone(client.store()));
    let client = client_of(&faulty);
    let counter = client.counter("orphan");
    let ending = session(&client).await;
    assert_eq!(counter.add(&ending, 1).await.unwrap(), 1);
    let outcome = orphaned(&faulty, &ending, {
        let (counter, session) = (counter.clone(), ending.clone());
        async move { counter.add(&session, 1).await }
    })
    .await;
    assert!(
        matches!(outcome, Err(Error::OutcomeUnknown(_))),
        "{outcome:?}"
    );
    assert!(outcome.unwrap_err().is_ambiguous());
    assert_eq!(faulty.deliver().await, (1, 0));
    assert_eq!(counter.get().await.unwrap(), 1);
    let outcome = counter.add(&ending, 1).await;
    assert!(matches!(outcome, Err(Error::SessionLost(_))), "{outcome:?}");
    // A session that was lost unnoticed: certainly not applied.
    let lost = session(&client).await;
    assert_eq!(counter.add(&lost, 1).await.unwrap(), 2);
    client.store().lease_revoke(lost.lease()).await.unwrap();
    let outcome = counter.add(&lost, 1).await;
    assert!(matches!(outcome, Err(Error::SessionLost(_))), "{outcome:?}");
    assert_eq!(counter.get().await.unwrap(), 2);
}

/// A dropped addition takes place once.
pub async fn dropped_additions_end_by_themselves(client: &Client) {
    let faulty = Faulty::new(Arc::clone(client.store()));
    let client = client_of(&faulty);
    let session = session(&client).await;
    let counter = client.counter("dropped");
    for (index, hold) in [Fault::HeldBefore as fn(_) -> _, Fault::HeldAfter]
        .into_iter()
        .enumerate()
    {
        let before = i64::try_from(index).unwrap() * 2;
        let gate = Arc::new(Notify::new());
        faulty.plan("quorate/counter/", [hold(Arc::clone(&gate))]);
        {
            let adding = counter.add(&session, 1);
            tokio::select! {
                _ = adding => panic!("the call is held"),
                () = until("the call to be on its way", async || faulty.held() == 1) => {}
            }
        }
        gate.notify_one();
        until("the addition", async || {
            faulty.held() == 0 && counter.get().await.unwrap() == before + 1
        })
        .await;
        assert_eq!(counter.add(&session, 1).await.unwrap(), before + 2);
    }
}

/// Cells of ended sessions are folded, and the sum is the same at every moment.
pub async fn folding_keeps_the_sum(client: &Client) {
    let faulty = Faulty::new(Arc::clone(client.store()));
    let client = client_of(&faulty);
    let adder = client.adder("folded");
    let mut sessions = Vec::new();
    for _ in 0..5 {
        let session = session(&client).await;
        let clones = [adder.clone(), client.adder("folded")];
        let adding = clones.iter().map(|adder| async {
            for _ in 0..3 {
                adder.add(&session, 2).await.unwrap();
            }
        });
        futures::future::join_all(adding).await;
        sessions.push(session);
    }
    assert_eq!(adder.sum().await.unwrap(), 60);
    assert_eq!(adder.fold().await.unwrap(), 0, "all of them live");
    let cells = "quorate/adder/folded/cell";
    assert_eq!(keys_below(&client, cells).await, 5);
    // One ends with an addition on its way, which never arrives.
    let orphan = sessions.pop().unwrap();
    let outcome = orphaned(&faulty, &orphan, {
        let (adder, session) = (adder.clone(), orphan.clone());
        async move { adder.add(&session, 100).await }
    })
    .await;
    assert!(
        matches!(outcome, Err(Error::OutcomeUnknown(_))),
        "{outcome:?}"
    );
    sessions.pop().unwrap().close().await.unwrap();
    let folding = [adder.clone(), adder.clone(), client.adder("folded")];
    let folding = folding
        .iter()
        .map(|adder| async { adder.fold().await.unwrap() });
    let folded: usize = futures::future::join_all(folding).await.into_iter().sum();
    assert_eq!(folded, 2, "each once");
    assert_eq!(faulty.deliver().await, (1, 0));
    assert_eq!(keys_below(&client, cells).await, 3);
    assert_eq!(adder.sum().await.unwrap(), 60);
    // The others go on, and a new session folds by itself.
    adder.add(&sessions[0], 1).await.unwrap();
    for session in sessions {
        session.close().await.unwrap();
    }
    // A fold whose answer is lost, and a late copy of it.
    faulty.plan("quorate/adder/folded/base", [Fault::Late]);
    assert!(adder.fold().await.unwrap_err().is_ambiguous());
    let last = session(&client).await;
    adder.add(&last, -1).await.unwrap();
    until("the fold", async || keys_below(&client, cells).await == 1).await;
    assert_eq!(faulty.deliver().await, (1, 0));
    assert_eq!(adder.sum().await.unwrap(), 60);
    let overflow = adder.add(&last, i64::MIN).await;
    assert!(matches!(overflow, Err(Error::Invalid(_))), "{overflow:?}");
    adder.add(&last, i64::MAX).await.unwrap();
    assert!(matches!(adder.sum().await, Err(Error::Invalid(_))));
}

/// No id twice, growing in each process, also when answers are lost.
pub async fn ids_are_unique(client: &Client) {
    let faulty = Faulty::new(Arc::clone(client.store()));
    let mut taking = tokio::task::JoinSet::new();
    for block in [1, 3, 10] {
        let ids = client.ids("orders").block(block);
        for _ in 0..2 {
            let ids = ids.clone();
            taking.spawn(async move {
                let mut taken = Vec::new();
                for _ in 0..20 {
                    taken.push(ids.next().await.unwrap());
                }
                assert!(taken.is_sorted());
                taken
            });
        }
    }
    let taken = soon("the ids", taking.join_all()).await;
    let mut all: Vec<_> = taken.into_iter().flatten().collect();
    all.sort_unstable();
    let count = all.len();
    all.dedup();
    assert_eq!((count, all.len()), (120, 120), "an id was given out twice");
    assert!(all[0] >= 1);

    let ids = client_of(&faulty).ids("orders").block(2);
    for plan in plans() {
        faulty.plan("quorate/ids/", plan);
        for _ in 0..8 {
            let id = soon("an id", ids.next()).await.unwrap();
            assert!(all.iter().all(|known| *known < id), "{id} is not new");
            all.push(id);
        }
        assert_eq!(faulty.left(), 0);
        faulty.deliver().await;
    }
    client
        .put(ids.key(), (u64::MAX - 2).to_string())
        .await
        .unwrap();
    let ids = client.ids("orders").block(2);
    assert!(matches!(ids.next().await, Err(Error::Invalid(_))));
}
