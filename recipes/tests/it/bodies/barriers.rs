//! Barriers: who waits goes on when it may and not before, whatever becomes of watches, answers and
//! members.

use std::collections::BTreeSet;
use std::sync::Arc;

use quorate_recipes::barrier::Passed;
use quorate_recipes::store::Store;
use quorate_recipes::store::faulty::{Fault, Faulty};
use quorate_recipes::{Client, Error, LostReason, Session, TxnError};
use tokio::task::JoinHandle;

use super::{cut_time_and_again, keys_below, session, watched};
use crate::support::{soon, until};

fn client_of(faulty: &Faulty<Arc<dyn Store>>) -> Client {
    Client::new(faulty.clone())
}

fn waiting(client: &Client, name: &str) -> JoinHandle<Result<(), Error>> {
    let barrier = client.barrier(name);
    tokio::spawn(async move { barrier.wait().await })
}

/// Several holds keep it closed together; the last to go opens it, be it a drop or the end of a lease.
pub async fn holds_keep_it_closed_together(client: &Client) {
    let (a, b) = (session(client).await, session(client).await);
    let barrier = client.barrier("together").with_info("loading");
    soon("an open barrier", barrier.wait()).await.unwrap();
    let first = barrier.hold(&a).await.unwrap();
    let second = barrier.hold(&b).await.unwrap();
    let third = barrier.hold(&b).await.unwrap();
    let holders = barrier.holders(9).await.unwrap();
    assert_eq!(holders.len(), 3);
    assert_eq!(holders[0].info, "loading");
    let waiter = waiting(client, "together");
    first.release().await.unwrap();
    drop(third);
    until("one hold", async || {
        keys_below(client, barrier.prefix()).await == 1
    })
    .await;
    assert!(!waiter.is_finished() && barrier.is_closed().await.unwrap());
    second.put("together/state", "loading").await.unwrap();
    client.store().lease_revoke(b.lease()).await.unwrap();
    soon("the opening", waiter).await.unwrap().unwrap();
    let late = second.put("together/state", "late").await;
    assert!(late.is_err(), "a hold that ended with its session writes");
    assert!(!barrier.is_closed().await.unwrap());
}

/// What is set stays, whoever set it, until it is lifted.
pub async fn what_is_set_stays_until_lifted(client: &Client) {
    let a = session(client).await;
    let barrier = client.barrier("set");
    assert!(!barrier.lift().await.unwrap());
    assert!(barrier.set(&a).await.unwrap());
    assert!(!barrier.set(&a).await.unwrap(), "it is set already");
    assert_eq!(keys_below(client, barrier.prefix()).await, 1);
    a.close().await.unwrap();
    let waiter = waiting(client, "set");
    until("the waiter's look", async || {
        barrier.is_closed().await.unwrap()
    })
    .await;
    assert!(!waiter.is_finished());
    assert!(barrier.lift().await.unwrap());
    soon("the opening", waiter).await.unwrap().unwrap();
    assert_eq!(keys_below(client, barrier.prefix()).await, 0);
}

/// A late copy of a set does not close a barrier that was lifted, nor does one of a lift open one that
/// was set anew.
pub async fn late_copies_neither_close_nor_open(client: &Client) {
    let faulty = Faulty::new(Arc::clone(client.store()));
    let client = client_of(&faulty);
    let session = session(&client).await;
    for (index, plan) in [
        vec![Fault::Late],
        vec![Fault::Unanswered],
        vec![Fault::Late, Fault::Late, Fault::Unanswered],
    ]
    .into_iter()
    .enumerate()
    {
        let barrier = client.barrier(format!("late-{index}"));
        faulty.plan(barrier.prefix(), plan.clone());
        assert!(soon("setting", barrier.set(&session)).await.unwrap());
        assert_eq!(faulty.left(), 0, "{plan:?}");
        assert!(barrier.lift().await.unwrap());
        assert_eq!(faulty.deliver().await.1, 0, "{plan:?}");
        assert!(!barrier.is_closed().await.unwrap(), "{plan:?}");
        barrier.set(&session).await.unwrap();
        faulty.plan(barrier.prefix(), plan.clone());
        soon("lifting", barrier.lift()).await.unwrap();
        barrier.set(&session).await.unwrap();
        assert_eq!(faulty.deliver().await.1, 0, "{plan:?}");
        assert!(barrier.is_closed().await.unwrap(), "{plan:?}");
        faulty.plan(barrier.prefix(), plan.clone());
        let hold = soon("a hold", barrier.hold(&session)).await.unwrap();
        barrier.lift().await.unwrap();
        hold.release().await.unwrap();
        assert_eq!(faulty.deliver().await.1, 0, "{plan:?}");
        soon("an open barrier", barrier.wait()).await.unwrap();
    }
}

/// The end of a watch opens nothing, neither for a barrier's waiters nor for members that gather.
pub async fn dead_watches_open_nothing(client: &Client) {
    let (connection, client) = watched(client);
    let session = session(&client).await;
    let hold = client.barrier("cut").hold(&session).await.unwrap();
    let waiter = waiting(&client, "cut");
    let member = passing(&client, &session, "cut", 2);
    cut_time_and_again(&connection, 2).await;
    assert!(!waiter.is_finished(), "a dead watch has opened a barrier");
    assert!(
        !member.is_finished(),
        "a dead watch has opened a generation"
    );
    hold.release().await.unwrap();
    soon("the opening", waiter).await.unwrap().unwrap();
    let barrier = client.cyclic_barrier("cut", 2);
    soon("the second", barrier.wait(&session)).await.unwrap();
    soon("the first", member).await.unwrap().unwrap();
}

fn passing(
    client: &Client,
    session: &Session,
    name: &str,
    parties: u32,
) -> JoinHandle<Result<Passed, Error>> {
    let (barrier, session) = (client.cyclic_barrier(name, parties), session.clone());
    tokio::spawn(async move { barrier.wait(&session).await })
}

async fn arrived(client: &Client, name: &str, parties: u32, expected: u32) {
    let barrier = client.cyclic_barrier(name, parties);
    until("members", async || {
        barrier.gathering().await.unwrap().arrived == expected
    })
    .await;
}

/// Each generation is passed by as many as its parties, each with an index of its own.
pub async fn generations_follow_one_another(client: &Client) {
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..4 {
        let client = client.clone();
        tasks.spawn(async move {
            let session = session(&client).await;
            let barrier = client.cyclic_barrier("rounds", 4);
            let mut passed = Vec::new();
            for _ in 0..5 {
                passed.push(barrier.wait(&session).await.unwrap());
            }
            session.close().await.unwrap();
            passed
        });
    }
    let mut all = BTreeSet::new();
    soon("all rounds", async {
        while let Some(passed) = tasks.join_next().await {
            for one in passed.unwrap() {
                assert!(all.insert((one.generation, one.index)), "twice: {one:?}");
            }
        }
    })
    .await;
    let expected = (1..=5).flat_map(|generation| (0..4).map(move |index| (generation, index)));
    assert_eq!(all, expected.collect());
    let barrier = client.cyclic_barrier("rounds", 4);
    until("the register alone", async || {
        keys_below(client, barrier.prefix()).await == 1
    })
    .await;
    assert_eq!(barrier.gathering().await.unwrap().generation, 6);
}

/// A member that ends before all have come breaks the generation for those who came, and nobody else.
pub async fn a_lost_member_breaks_its_generation(client: &Client) {
    let (a, b, c) = (
        session(client).await,
        session(client).await,
        session(client).await,
    );
    let first = passing(client, &a, "lost", 3);
    let second = passing(client, &b, "lost", 3);
    arrived(client, "lost", 3, 2).await;
    client.store().lease_revoke(b.lease()).await.unwrap();
    let broken = soon("the broken wait", first).await.unwrap();
    assert!(
        matches!(broken, Err(Error::Broken { generation: 1, .. })),
        "{broken:?}"
    );
    let lost = soon("the lost wait", second).await.unwrap();
    assert!(
        matches!(lost, Err(Error::SessionLost(LostReason::LeaseGone))),
        "{lost:?}"
    );
    // Nobody is left to see this one's end: who comes next does.
    let alone = passing(client, &a, "lost", 3);
    arrived(client, "lost", 3, 1).await;
    client.store().lease_revoke(a.lease()).await.unwrap();
    assert!(soon("its end", alone).await.unwrap().is_err());
    let waits = [(); 3].map(|()| passing(client, &c, "lost", 3));
    for wait in waits {
        let passed = soon("a pass", wait).await.unwrap().unwrap();
        assert_eq!(passed.generation, 3);
    }
}

/// A dropped wait is taken out of the count, also while its call is on the way.
pub async fn dropped_waits_withdraw(client: &Client) {
    let faulty = Faulty::new(Arc::clone(client.store()));
    let client = client_of(&faulty);
    let session = session(&client).await;
    for (index, then) in [None, Some(Fault::Unanswered), Some(Fault::Late)]
        .into_iter()
        .enumerate()
    {
        let name = format!("withdraw-{index}");
        let barrier = client.cyclic_barrier(&name, 2);
        let member = passing(&client, &session, &name, 2);
        arrived(&client, &name, 2, 1).await;
        faulty.plan(barrier.prefix(), then.clone());
        member.abort();
        arrived(&client, &name, 2, 0).await;
        until("no key but the register", async || {
            faulty.left() == 0 && keys_below(&client, barrier.prefix()).await == 1
        })
        .await;
        let gate = Arc::new(tokio::sync::Notify::new());
        faulty.plan(
            barrier.prefix(),
            [Fault::HeldAfter(Arc::clone(&gate))]
                .into_iter()
                .chain(then),
        );
        {
            let wait = barrier.wait(&session);
            tokio::select! {
                _ = wait => panic!("the call is held"),
                () = until("the call to be on its way", async || faulty.held() == 1) => {}
            }
        }
        gate.notify_one();
        until("the withdrawal", async || {
            faulty.held() + faulty.left() == 0
                && barrier.gathering().await.unwrap().arrived == 0
                && keys_below(&client, barrier.prefix()).await == 1
        })
        .await;
        faulty.deliver().await;
        // It never was anybody's generation: the two who come now pass it.
        let other = passing(&client, &session, &name, 2);
        let passed = soon("a pass", barrier.wait(&session)).await.unwrap();
        let other = soon("a pass", other).await.unwrap().unwrap();
        assert_eq!((passed.generation, other.generation), (1, 1));
        assert_eq!(passed.index + other.index, 1);
    }
}

/// Arriving, opening, breaking and withdrawing survive lost answers and late copies.
pub async fn arriving_survives_lost_answers(client: &Client) {
    let faulty = Faulty::new(Arc::clone(client.store()));
    let client = client_of(&faulty);
    let session = session(&client).await;
    for (index, plan) in [
        vec![Fault::NotSent],
        vec![Fault::Unanswered, Fault::Unanswered],
        vec![Fault::Late, Fault::Late],
        vec![
            Fault::Late,
            Fault::Unanswered,
            Fault::Late,
            Fault::Unanswered,
        ],
    ]
    .into_iter()
    .enumerate()
    {
        let name = format!("unanswered-{index}");
        let prefix = client.cyclic_barrier(&name, 2).prefix().to_owned();
        faulty.plan(&prefix, plan.clone());
        for generation in 1..=3 {
            let one = passing(&client, &session, &name, 2);
            let other = passing(&client, &session, &name, 2);
            let one = soon("a pass", one).await.unwrap().unwrap();
            let other = soon("a pass", other).await.unwrap().unwrap();
            assert_eq!((one.generation, other.generation), (generation, generation));
            assert_eq!(one.index + other.index, 1);
        }
        until("the plan's end", async || faulty.left() == 0).await;
        assert_eq!(faulty.deliver().await.1, 0, "{plan:?}");
        let barrier = client.cyclic_barrier(&name, 2);
        assert_eq!(barrier.gathering().await.unwrap().arrived, 0);
        until("no member left", async || {
            barrier.members(9).await.unwrap().is_empty()
        })
        .await;
    }
}

/// Members of a double barrier enter together and leave together; one that ends has left.
pub async fn they_enter_and_leave_together(client: &Client) {
    let sessions = [
        session(client).await,
        session(client).await,
        session(client).await,
    ];
    let barrier = client.double_barrier("work", 3).with_info("worker");
    let mut entering = Vec::new();
    for session in &sessions[..2] {
        let (barrier, session) = (barrier.clone(), session.clone());
        entering.push(tokio::spawn(async move {
            barrier.enter(&session).await.unwrap()
        }));
    }
    until("two", async || {
        barrier.gathering().await.unwrap().arrived == 2
    })
    .await;
    assert!(!entering.iter().any(JoinHandle::is_finished));
    assert_eq!(barrier.members(9).await.unwrap()[0].info, "worker");
    let third = soon("the last", barrier.enter(&sessions[2])).await.unwrap();
    let mut inside = vec![third];
    for entering in entering {
        inside.push(soon("entering", entering).await.unwrap());
    }
    let places: BTreeSet<u32> = inside.iter().map(|one| one.index()).collect();
    assert_eq!(places, BTreeSet::from([0, 1, 2]));
    inside[0].put("work/state", "inside").await.unwrap();
    // The next generation gathers beside it.
    let next = tokio::spawn({
        let (barrier, session) = (barrier.clone(), sessions[2].clone());
        async move { barrier.enter(&session).await.map(drop) }
    });
    let (last, dead) = (inside.pop().unwrap(), inside.pop().unwrap());
    let leaving = tokio::spawn(inside.pop().unwrap().leave());
    until("one to have left", async || {
        barrier.members(9).await.unwrap().len() == 3
    })
    .await;
    assert!(!leaving.is_finished());
    let lease = dead.session().lease();
    client.store().lease_revoke(lease).await.unwrap();
    soon("the loss", dead.lost()).await;
    assert!(matches!(
        dead.put("work/state", "late").await,
        Err(TxnError::Fenced { .. } | TxnError::Failed(Error::SessionLost(_)))
    ));
    assert!(!leaving.is_finished());
    soon("the last to leave", last.leave()).await.unwrap();
    soon("leaving", leaving).await.unwrap().unwrap();
    let late = dead.leave().await;
    assert!(matches!(late, Err(Error::SessionLost(_))), "{late:?}");
    next.abort();
    until("nobody left", async || {
        barrier.members(9).await.unwrap().is_empty()
    })
    .await;
}

/// All must mean the same number, and one that can be.
pub async fn the_number_of_parties_is_agreed(client: &Client) {
    let session = session(client).await;
    let alone = client.cyclic_barrier("number", 1);
    for generation in 1..=2 {
        let passed = soon("a pass alone", alone.wait(&session)).await.unwrap();
        assert_eq!((passed.generation, passed.index), (generation, 0));
    }
    let other = client.cyclic_barrier("number", 2).wait(&session).await;
    let Err(Error::Mismatch { wanted, stored, .. }) = other else {
        panic!("{other:?}");
    };
    assert!(wanted.contains('2') && stored.contains('1'));
    for parties in [0, 10_000] {
        let none = client.double_barrier("none", parties).enter(&session).await;
        assert!(matches!(none, Err(Error::Invalid(_))), "{none:?}");
    }
}
