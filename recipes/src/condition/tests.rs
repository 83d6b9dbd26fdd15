use std::collections::BTreeSet;
use std::time::Duration;

use futures::future::join_all;

use super::*;
use crate::error::TxnError;
use crate::queue::Nack;
use crate::store::faulty::{Calls, Fault, Stage};
use crate::testing::{Place, no_news, soon};

/// What there is to do with a condition queue at a place.
trait OfConditions {
    fn queue(&self, condition: Condition) -> ConditionQueue<u32>;

    /// Everything that is kept, but for what always is.
    fn left(&self) -> Vec<String>;

    async fn join(&self, queue: &ConditionQueue<u32>, id: &str) -> Option<u64>;
}

impl OfConditions for Place {
    fn queue(&self, condition: Condition) -> ConditionQueue<u32> {
        self.client.condition_queue("q", condition)
    }

    fn left(&self) -> Vec<String> {
        self.keys_but("quorate/condition/q/", &["/head", "/rule", "/withdrawn"])
    }

    async fn join(&self, queue: &ConditionQueue<u32>, id: &str) -> Option<u64> {
        let joined = queue.join(&self.session, id, &7).await.unwrap();
        joined.epoch()
    }
}

fn ids<T>(tasks: &[Task<T>]) -> Vec<&str> {
    tasks.iter().map(|task| task.id.as_str()).collect()
}

#[tokio::test(start_paused = true)]
async fn a_batch_is_all_that_joined_before_its_gate() {
    let place = Place::new().await;
    let queue = place.queue(Condition::len(3));
    for (id, epoch) in [("c", 0), ("a/b", 0), ("", 0), ("d", 1), ("a/b", 1)] {
        assert_eq!(place.join(&queue, id).await, Some(epoch), "{id}");
    }
    let mut batch = soon(queue.take(&place.session)).await.unwrap();
    assert_eq!(ids(batch.tasks()), ["c", "a/b", ""]);
    assert_eq!(
        (batch.gate().epoch, batch.tasks()[0].value.clone()),
        (0, Ok(7))
    );
    assert_eq!(batch.gate().reason, "len(3)");
    let status = queue.status().await.unwrap();
    assert_eq!((status.epoch, status.gathering), (1, 2));
    assert_eq!(
        (status.passed, status.claimed, status.gates.len()),
        (3, 1, 1)
    );
    let unmet = place.client.txn().when(Compare::present("x")).put("y", "");
    let refused = batch.ack_with(unmet).await;
    assert!(
        matches!(refused, Err(TxnError::Conflict { .. })),
        "{refused:?}"
    );
    let done = batch
        .ack_with(place.client.txn().put("y", ""))
        .await
        .unwrap();
    assert_eq!(
        place.client.get("y").await.unwrap().unwrap().mod_revision,
        done.0
    );
    assert!(matches!(
        batch.ack_with(place.client.txn().put("y", "twice")).await,
        Err(TxnError::Fenced { .. })
    ));
    drop(batch);
    no_news(queue.take(&place.session)).await;
    assert_eq!(place.left().len(), 2, "{:?}", place.left());
    place.join(&queue, "e").await;
    let batch = soon(queue.take(&place.session)).await.unwrap();
    assert_eq!(ids(batch.tasks()), ["d", "a/b", "e"]);
    batch.ack().await.unwrap();
    assert_eq!(place.left(), [""; 0]);
}

#[tokio::test(start_paused = true)]
async fn an_id_gathers_once_and_may_be_withdrawn() {
    let place = Place::new().await;
    let queue = place.queue(Condition::len(2));
    let first = queue.join(&place.session, "a", &1).await.unwrap();
    let Joined::In { epoch: 0, revision } = first else {
        panic!("{first:?}");
    };
    let again = queue.join(&place.session, "a", &2).await.unwrap();
    assert_eq!(again, Joined::Twice { epoch: 0, revision });
    assert!(queue.withdraw(&place.session, "a").await.unwrap());
    assert!(!queue.withdraw(&place.session, "a").await.unwrap());
    place.join(&queue, "b").await;
    assert_eq!(queue.status().await.unwrap().epoch, 0, "only one is there");
    place.join(&queue, "c").await;
    assert!(
        !queue.withdraw(&place.session, "b").await.unwrap(),
        "it has passed"
    );
    let batch = soon(queue.take(&place.session)).await.unwrap();
    assert_eq!(ids(batch.tasks()), ["b", "c"]);
}

/// Somebody withdraws between the count and the gate.
#[tokio::test(start_paused = true)]
async fn a_gate_does_not_open_for_one_who_has_gone() {
    for by_id in [false, true] {
        let place = Place::new().await;
        let condition = match by_id {
            true => Condition::present("b"),
            false => Condition::len(2),
        };
        let queue = place.queue(condition.clone());
        place.join(&queue, "a").await;
        let other = Client::builder(place.store.clone()).seed(2).build();
        let others: ConditionQueue<u32> = other.condition_queue("q", condition);
        let session = other.session().await.unwrap();
        // The join's own transaction, the look's, then the gate's.
        let gate = place.faulty.hold(3, Calls::Txn, Stage::NotSent);
        let joining = async {
            place.join(&queue, "b").await;
        };
        let meanwhile = async {
            soon(gate.reached()).await;
            assert!(others.withdraw(&session, "b").await.unwrap());
            gate.release();
        };
        tokio::join!(joining, meanwhile);
        let status = queue.status().await.unwrap();
        assert_eq!((status.epoch, status.gathering), (0, 1), "{by_id}");
        place.join(&queue, "b").await;
        assert_eq!(queue.status().await.unwrap().epoch, 1);
    }
}

/// A copy of the gate's transaction arrives when the next epoch gathers.
#[tokio::test(start_paused = true)]
async fn a_late_copy_opens_no_second_gate() {
    let place = Place::new().await;
    let queue = place.queue(Condition::len(1));
    place
        .faulty
        .plan("quorate/condition/q/gate/", [Fault::Late]);
    assert_eq!(place.join(&queue, "a").await, Some(0));
    place.faulty.deliver().await;
    let status = queue.status().await.unwrap();
    assert_eq!((status.epoch, status.gates.len()), (1, 1));
}

#[tokio::test(start_paused = true)]
async fn terms_hold_at_the_gate() {
    let place = Place::new().await;
    let session = &place.session;
    // Each: the condition; what is done, after which it does not hold; what makes it hold.
    let left = place.queue(Condition::left("x"));
    place.join(&left, "a").await;
    assert_eq!(left.status().await.unwrap().epoch, 0, "x was never there");
    place.join(&left, "x").await;
    assert_eq!(left.status().await.unwrap().epoch, 0);
    assert!(left.withdraw(session, "x").await.unwrap());
    assert_eq!(left.status().await.unwrap().epoch, 1);
    place.join(&left, "b").await;
    assert_eq!(left.status().await.unwrap().epoch, 1, "of the epoch before");

    let place = Place::new().await;
    let session = &place.session;
    let start = place.queue(Condition::started().and(Condition::absent("no")));
    assert_eq!(start.start(session).await.unwrap(), Some(0));
    assert_eq!(start.status().await.unwrap().epoch, 0, "nobody is there");
    place.join(&start, "no").await;
    assert!(start.status().await.unwrap().started);
    place.join(&start, "a").await;
    assert!(start.withdraw(session, "no").await.unwrap());
    let status = start.status().await.unwrap();
    assert_eq!(
        (status.epoch, status.started),
        (1, false),
        "the start is used up"
    );
    assert_eq!(status.gates[0].reason, "started and absent(\"no\")");
    assert!(matches!(
        start.mark_done(session, "x").await,
        Err(Error::Invalid(_))
    ));

    let place = Place::new().await;
    let session = &place.session;
    let done = place.queue(Condition::done("a").or(Condition::len(2)));
    assert!(matches!(done.start(session).await, Err(Error::Invalid(_))));
    place.join(&done, "a").await;
    place.join(&done, "b").await;
    let batch = soon(done.take(session)).await.unwrap();
    place.join(&done, "c").await;
    assert_eq!(done.status().await.unwrap().epoch, 1);
    batch.ack().await.unwrap();
    let batch = soon(done.take(session)).await.unwrap();
    assert_eq!(
        (ids(batch.tasks()), &*batch.gate().reason),
        (vec!["c"], "done(\"a\")")
    );
    batch.ack().await.unwrap();
    place.join(&done, "d").await;
    assert_eq!(done.status().await.unwrap().epoch, 2, "used up");
    done.mark_done(session, "a").await.unwrap();
    assert_eq!(done.status().await.unwrap().epoch, 3);
}

#[tokio::test(start_paused = true)]
async fn after_a_time_it_opens_for_those_who_are_there() {
    let place = Place::new().await;
    let delay = Duration::from_secs(5);
    let queue = place.queue(Condition::len(9).or_after(delay));
    let take = async {
        let begun = crate::clock::now();
        let batch = queue.take(&place.session).await.unwrap();
        (begun.elapsed(), batch)
    };
    let joins = async {
        tokio::time::sleep(Duration::from_secs(7)).await;
        place.join(&queue, "a").await;
        tokio::time::sleep(Duration::from_secs(4)).await;
        place.join(&queue, "b").await;
    };
    let ((took, batch), ()) = tokio::join!(take, joins);
    let expected = Duration::from_secs(12)..Duration::from_millis(12_200);
    assert!(expected.contains(&took), "{took:?}");
    assert_eq!(ids(batch.tasks()), ["a", "b"]);
    assert_eq!(batch.gate().reason, "after(5s)");
}

#[tokio::test(start_paused = true)]
async fn one_taker_has_a_batch_and_the_next_one_if_it_dies() {
    let place = Place::new().await;
    let queue = place.queue(Condition::len(1));
    let dying = place.client.session().await.unwrap();
    place.join(&queue, "a").await;
    let mut first = soon(queue.take(&dying)).await.unwrap();
    no_news(queue.take(&place.session)).await;
    place
        .client
        .store()
        .lease_revoke(dying.lease())
        .await
        .unwrap();
    let mut second = soon(queue.take(&place.session)).await.unwrap();
    assert_eq!(ids(second.tasks()), ["a"]);
    let txn = || place.client.txn().put("effect", "");
    assert!(first.ack_with(txn()).await.is_err());
    second.ack_with(txn()).await.unwrap();
    assert_eq!(
        place.client.get("effect").await.unwrap().unwrap().version,
        1
    );
    assert_eq!(place.left(), [""; 0]);
    // Given back.
    place.join(&queue, "b").await;
    drop(soon(queue.take(&place.session)).await.unwrap());
    soon(queue.take(&place.session))
        .await
        .unwrap()
        .ack()
        .await
        .unwrap();
    assert_eq!(place.left(), [""; 0]);
}

/// A taker loses the batch between taking and reading it, and another one ends it.
#[tokio::test(start_paused = true)]
async fn nobody_is_given_what_is_left_of_a_batch() {
    let mut cut = 0;
    for nth in 1..=6 {
        let place = Place::new().await;
        let queue = place.queue(Condition::len(1));
        place.join(&queue, "a").await;
        let faulty = place.faulty.clone();
        let dying = place.client.session().await.unwrap();
        let held = faulty.hold(nth, Calls::Read, Stage::NotSent);
        let taking = queue.take(&dying);
        let meanwhile = async {
            held.reached().await;
            let revoked = place.client.store().lease_revoke(dying.lease()).await;
            revoked.unwrap();
            let other = Client::new(place.store.clone());
            let session = other.session().await.unwrap();
            let queue = other.condition_queue::<u32>("q", Condition::len(1));
            soon(queue.take(&session))
                .await
                .unwrap()
                .ack()
                .await
                .unwrap();
            cut += 1;
            held.release();
            std::future::pending::<()>().await;
        };
        tokio::select! {
            biased;
            () = meanwhile => {}
            taken = tokio::time::timeout(Duration::from_secs(60), taking) => {
                if let Ok(Ok(batch)) = taken {
                    assert_eq!(ids(batch.tasks()), ["a"], "read {nth}");
                }
            }
        }
    }
    assert!(cut > 1, "{cut}");
}

#[tokio::test(start_paused = true)]
async fn a_fan_gives_them_out_one_by_one() {
    let place = Place::new().await;
    let queue = place.queue(Condition::len(3)).release(Release::Fan);
    let consumer = queue.consumer(&place.session).await.unwrap();
    place.join(&queue, "a").await;
    place.join(&queue, "b").await;
    assert!(consumer.try_pop().await.unwrap().is_none());
    no_news(consumer.pop()).await;
    for id in ["c", "d"] {
        place.join(&queue, id).await;
    }
    let mut taken = Vec::new();
    for name in ["a", "b", "c"] {
        let delivery = soon(consumer.pop()).await.unwrap();
        assert_eq!((delivery.id().name(), delivery.id().segment()), (name, 0));
        taken.push(delivery);
    }
    no_news(consumer.pop()).await;
    let status = queue.status().await.unwrap();
    assert_eq!((status.gathering, status.passed, status.claimed), (1, 3, 3));
    let last = taken.pop().unwrap();
    for delivery in taken {
        delivery.ack().await.unwrap();
    }
    // It keeps its place, and the rest goes on.
    last.nack(Nack::After(Duration::from_secs(9)))
        .await
        .unwrap();
    for id in ["e", "f"] {
        place.join(&queue, id).await;
    }
    for name in ["d", "e", "f", "c"] {
        let delivery = soon(consumer.pop()).await.unwrap();
        assert_eq!(delivery.id().name(), name);
        delivery.ack().await.unwrap();
    }
    no_news(consumer.pop()).await;
    assert_eq!(queue.status().await.unwrap().gates, []);
    drop(consumer);
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert_eq!(place.left(), [""; 0]);
    assert!(matches!(
        queue.take(&place.session).await,
        Err(Error::Invalid(_))
    ));
}

/// Whoever comes to a fan later finds what is left of it.
#[tokio::test(start_paused = true)]
async fn a_fan_has_many_epochs_and_takers() {
    let place = Place::new().await;
    let queue = place.queue(Condition::len(2)).release(Release::Fan);
    for n in 0..41 {
        place.join(&queue, &n.to_string()).await;
    }
    let mut found = BTreeSet::new();
    for _ in 0..4 {
        let session = place.client.session().await.unwrap();
        let consumer = queue.consumer(&session).await.unwrap();
        for _ in 0..10 {
            let delivery = soon(consumer.try_pop())
                .await
                .unwrap()
                .expect("one is there");
            assert!(found.insert(delivery.id().name().to_owned()));
            delivery.ack().await.unwrap();
        }
    }
    assert_eq!(found.len(), 40);
    let consumer = queue.consumer(&place.session).await.unwrap();
    assert!(consumer.try_pop().await.unwrap().is_none());
    let status = queue.status().await.unwrap();
    assert_eq!(
        (status.passed, status.gathering, status.gates.len()),
        (0, 1, 0)
    );
}

#[tokio::test(start_paused = true)]
async fn all_who_wait_learn_of_a_broadcast() {
    let place = Place::new().await;
    let queue = place.queue(Condition::len(4)).release(Release::Broadcast);
    let member = |n: u32| {
        let (queue, client) = (queue.clone(), place.client.clone());
        async move {
            let session = client.session().await.unwrap();
            let joined = queue.join(&session, &n.to_string(), &n).await.unwrap();
            session.close().await.unwrap();
            let gate = queue.opened(joined.epoch().unwrap()).await.unwrap();
            let passed = queue.passed(&gate).await.unwrap();
            (gate, passed)
        }
    };
    let all = soon(join_all((0..4).map(member))).await;
    assert_eq!(all[0].1.len(), 4);
    assert!(all.iter().all(|told| *told == all[0]), "{all:?}");
    // The last eight are kept.
    for n in 4..40 {
        place.join(&queue, &n.to_string()).await;
    }
    let status = queue.status().await.unwrap();
    let kept: Vec<u64> = status.gates.iter().map(|gate| gate.epoch).collect();
    assert_eq!((kept, status.passed), ((2..10).collect(), 32));
    let gone = queue.opened(1).await;
    assert!(matches!(gone, Err(Error::Removed(_))), "{gone:?}");
    let gone = queue.passed(&all[0].0).await;
    assert!(matches!(gone, Err(Error::Removed(_))), "{gone:?}");
}

#[tokio::test(start_paused = true)]
async fn once_is_once() {
    for release in [Release::Batch, Release::Broadcast] {
        let place = Place::new().await;
        let when = Condition::len(1).or(Condition::started());
        let queue = place.queue(when).release(release).once();
        assert_eq!(place.join(&queue, "a").await, Some(0));
        let late = queue.join(&place.session, "b", &1).await.unwrap();
        assert_eq!(late, Joined::Late);
        assert_eq!(queue.start(&place.session).await.unwrap(), None);
        if release == Release::Batch {
            soon(queue.take(&place.session))
                .await
                .unwrap()
                .ack()
                .await
                .unwrap();
        }
        // Also by one who knows nothing, and when the gate is not there any more.
        let other = Client::new(place.store.clone());
        let session = other.session().await.unwrap();
        let when = Condition::len(1).or(Condition::started());
        let queue: ConditionQueue<u32> = other.condition_queue("q", when);
        let queue = queue.release(release).once();
        assert_eq!(queue.join(&session, "c", &1).await.unwrap(), Joined::Late);
        assert_eq!(queue.status().await.unwrap().gathering, 0);
    }
}

#[tokio::test(start_paused = true)]
async fn all_mean_the_same() {
    let place = Place::new().await;
    place.join(&place.queue(Condition::len(2)), "a").await;
    for other in [
        place.queue(Condition::len(3)),
        place.queue(Condition::len(2)).once(),
        place.queue(Condition::len(2)).release(Release::Fan),
    ] {
        let told = other.join(&place.session, "b", &1).await;
        assert!(matches!(told, Err(Error::Mismatch { .. })), "{told:?}");
        let told = other.opened(0).await;
        assert!(matches!(told, Err(Error::Mismatch { .. })), "{told:?}");
    }
    let before = place.store.revision();
    let many = (0..30).map(|n| Condition::absent(n.to_string())).collect();
    for wrong in [
        Condition::len(0),
        Condition::All(Vec::new()),
        Condition::started().or(Condition::Any(Vec::new())),
        Condition::All(many),
    ] {
        let queue: ConditionQueue<u32> = place.client.condition_queue("r", wrong);
        let told = queue.join(&place.session, "a", &1).await;
        assert!(matches!(told, Err(Error::Invalid(_))), "{told:?}");
    }
    assert_eq!(place.store.revision(), before);
}

#[tokio::test(start_paused = true)]
async fn a_join_is_one_round_trip_until_the_gate_may_open() {
    let place = Place::new().await;
    let queue = place.queue(Condition::len(100));
    place.join(&queue, "first").await;
    let before = place.counting.counts();
    for n in 0..98 {
        place.join(&queue, &n.to_string()).await;
    }
    let used = place.counting.counts() - before;
    assert_eq!((used.txn, used.range), (98, 0));
    place.join(&queue, "last").await;
    let used = place.counting.counts() - before;
    // Its own, a look, the gate, and a look at the next epoch.
    assert_eq!(used.txn, 98 + 4);
}

/// However many wait, a join that does not open the gate costs what it costs by itself.
#[tokio::test(start_paused = true)]
async fn a_join_wakes_nobody_who_waits_unless_the_gate_may_open() {
    const WAITING: usize = 100;
    const JOINS: u64 = 20;
    for release in [Release::Batch, Release::Fan, Release::Broadcast] {
        let place = Place::new().await;
        let when = Condition::len(21).or_after(Duration::from_secs(3_600));
        let queue = place.queue(when).release(release);
        place.join(&queue, "first").await;
        let mut consumers = Vec::new();
        if release == Release::Fan {
            for _ in 0..WAITING {
                consumers.push(queue.consumer(&place.session).await.unwrap());
            }
        }
        let waiting = async |n: usize| match release {
            Release::Batch => drop(
                queue
                    .take(&place.session)
                    .await
                    .unwrap()
                    .ack()
                    .await
                    .unwrap(),
            ),
            Release::Fan => drop(consumers[n].pop().await.unwrap().ack().await.unwrap()),
            Release::Broadcast => drop(queue.opened(0).await.unwrap()),
        };
        let all = join_all((0..WAITING).map(waiting));
        let joins = async {
            // All wait by then.
            tokio::time::sleep(Duration::from_secs(60)).await;
            let before = place.counting.counts();
            for n in 1..JOINS {
                place.join(&queue, &n.to_string()).await;
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
            let used = place.counting.counts() - before;
            let each = 2 * (JOINS - 1);
            assert_eq!((used.txn, used.range), (each, 0), "{release}: with a look");
            let before = place.counting.counts();
            place.join(&queue, "last").await;
            tokio::time::sleep(Duration::from_secs(1)).await;
            assert_eq!(queue.status().await.unwrap().epoch, 1);
            place.counting.counts() - before
        };
        let all = async {
            all.await;
            std::future::pending::<()>().await;
        };
        let used = tokio::select! {
            biased;
            used = joins => used,
            () = all => unreachable!("it does not end"),
        };
        // A gate wakes all, and the end of its batch does.
        let most = u64::try_from(10 * WAITING).unwrap();
        assert!(used.txn + used.range < most, "{release}: {used:?}");
    }
}

/// One who made the condition true and opens no gate: it ends in between, or it acknowledges.
#[tokio::test(start_paused = true)]
async fn who_waits_opens_the_gate_that_others_leave_closed() {
    let place = Place::new().await;
    let queue = place.queue(Condition::len(2)).release(Release::Broadcast);
    place.join(&queue, "a").await;
    let (opened, ()) = tokio::join!(soon(queue.opened(0)), async {
        tokio::time::sleep(Duration::from_secs(1)).await;
        let held = place.faulty.hold(1, Calls::Txn, Stage::Answered);
        tokio::select! {
            biased;
            joined = place.join(&queue, "b") => panic!("{joined:?}"),
            () = held.reached() => {}
        }
    });
    assert_eq!(opened.unwrap().epoch, 0);
}

/// What is taken needs no look.
#[tokio::test(start_paused = true)]
async fn a_task_of_a_fan_is_taken_without_a_look() {
    let place = Place::new().await;
    let queue = place.queue(Condition::len(20)).release(Release::Fan);
    let consumer = queue.consumer(&place.session).await.unwrap();
    for n in 0..20 {
        place.join(&queue, &n.to_string()).await;
    }
    soon(consumer.pop()).await.unwrap().ack().await.unwrap();
    let before = place.counting.counts();
    for _ in 1..20 {
        soon(consumer.pop()).await.unwrap().ack().await.unwrap();
    }
    let used = place.counting.counts() - before;
    assert_eq!((used.txn, used.range), (2 * 19, 0), "{used:?}");
}

#[tokio::test(start_paused = true)]
async fn a_scope_ends_with_the_batch() {
    let place = Place::new().await;
    let queue = place.queue(Condition::len(1));
    let other = place.client.session().await.unwrap();
    place.join(&queue, "a").await;
    let mut batch = soon(queue.take(&other)).await.unwrap();
    assert_eq!(batch.scope(async { 7 }).await.unwrap(), 7);
    let expiry = async {
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert!(place.store.expire(other.lease()));
    };
    let work = batch.scope(std::future::pending::<()>());
    let (ended, ()) = tokio::join!(soon(work), expiry);
    assert!(matches!(ended, Err(Error::SessionLost(_))), "{ended:?}");
    drop(batch);
    batch = soon(queue.take(&place.session)).await.unwrap();
    batch.ack_with(place.client.txn()).await.unwrap();
    let ended = batch.scope(std::future::pending::<()>()).await;
    assert!(ended.is_err(), "there is nothing any more: {ended:?}");
}

/// What kills its takers is known by that.
#[tokio::test(start_paused = true)]
async fn a_batch_tells_how_often_it_was_taken() {
    let place = Place::new().await;
    let queue = place.queue(Condition::len(1));
    place.join(&queue, "a").await;
    for attempt in 1..=3 {
        let session = place.client.session().await.unwrap();
        let batch = soon(queue.take(&session)).await.unwrap();
        assert_eq!(batch.attempt(), attempt);
        assert!(place.store.expire(session.lease()));
    }
    let batch = soon(queue.take(&place.session)).await.unwrap();
    assert_eq!(batch.attempt(), 4);
    drop(batch);
    // One that nobody had in hand does not count.
    tokio::time::sleep(Duration::from_secs(1)).await;
    let mut given = 0;
    for nth in 1..=6 {
        let held = place.faulty.hold(nth, Calls::Any, Stage::Answered);
        tokio::select! {
            biased;
            taken = queue.take(&place.session) => {
                drop(taken.unwrap());
                given += 1;
            }
            () = held.reached() => {}
        }
        held.release();
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    let mut batch = soon(queue.take(&place.session)).await.unwrap();
    assert!(given < 3, "{given}");
    assert_eq!(batch.attempt(), 5 + given);
    batch.ack_with(place.client.txn()).await.unwrap();
    assert_eq!(place.left(), [""; 0]);
    // The next one begins anew.
    place.join(&queue, "a").await;
    assert_eq!(soon(queue.take(&place.session)).await.unwrap().attempt(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_task_that_was_put_aside_may_join_again() {
    let place = Place::new().await;
    let queue = place.queue(Condition::len(2)).release(Release::Fan);
    let queue = queue.max_attempts(2);
    let consumer = queue.consumer(&place.session).await.unwrap();
    place.join(&queue, "a/b").await;
    place.join(&queue, "c").await;
    let first = soon(consumer.pop()).await.unwrap();
    soon(consumer.pop()).await.unwrap().ack().await.unwrap();
    first.nack(Nack::Now).await.unwrap();
    let second = soon(consumer.pop()).await.unwrap();
    assert_eq!(second.attempt(), 2);
    second.nack(Nack::Now).await.unwrap();
    no_news(consumer.pop()).await;
    let dead = queue.dead_letters(9).await.unwrap();
    let [letter] = &dead[..] else {
        panic!("{dead:?}");
    };
    assert_eq!((letter.attempts, letter.value.clone()), (2, Ok(7)));
    // While one of its id gathers, it stays where it is.
    place.join(&queue, "a/b").await;
    let again = async || queue.redrive(&place.session, &letter.id).await.unwrap();
    let told = again().await;
    assert!(
        matches!(told, Some(Joined::Twice { epoch: 1, .. })),
        "{told:?}"
    );
    assert_eq!(queue.status().await.unwrap().dead, 1);
    assert!(queue.withdraw(&place.session, "a/b").await.unwrap());
    let told = again().await;
    assert!(
        matches!(told, Some(Joined::In { epoch: 1, .. })),
        "{told:?}"
    );
    assert_eq!(again().await, None);
    assert_eq!(queue.status().await.unwrap().dead, 0);
    place.join(&queue, "d").await;
    let mut taken = BTreeSet::new();
    for _ in 0..2 {
        let delivery = soon(consumer.pop()).await.unwrap();
        assert_eq!(delivery.attempt(), 1);
        taken.insert(delivery.id().to_string());
        delivery.ack().await.unwrap();
    }
    let expected = ["a%2Fb", "d"].map(|name| format!("{:016x}/{name}", 1));
    assert_eq!(taken, BTreeSet::from(expected));
}

#[tokio::test(start_paused = true)]
async fn what_was_put_aside_is_too_late_where_the_gate_opens_once() {
    let place = Place::new().await;
    let queue = place.queue(Condition::len(1)).release(Release::Fan).once();
    let consumer = queue.consumer(&place.session).await.unwrap();
    place.join(&queue, "a").await;
    let delivery = soon(consumer.pop()).await.unwrap();
    delivery
        .nack(Nack::Dead("no use".to_owned()))
        .await
        .unwrap();
    let dead = queue.dead_letters(1).await.unwrap();
    let told = queue.redrive(&place.session, &dead[0].id).await.unwrap();
    assert_eq!(told, Some(Joined::Late));
    assert_eq!(queue.status().await.unwrap().dead, 1);
}
