use std::collections::{BTreeMap, BTreeSet};
use std::sync::Mutex;

use futures::FutureExt;
use futures::future::join_all;

use super::*;
use crate::error::LostReason;
use crate::store::faulty::{Calls, Fault, Held, Stage};
use crate::store::{Counting, Faulty, MemStore, Store};

struct Place {
    store: MemStore,
    faulty: Faulty<MemStore>,
    counting: Counting<Faulty<MemStore>>,
    client: Client,
    session: Session,
}

impl Place {
    async fn new() -> Self {
        let store = MemStore::new();
        let faulty = Faulty::new(store.clone());
        let counting = Counting::new(faulty.clone());
        let client = Client::builder(counting.clone()).seed(1).build();
        let session = client.session().await.unwrap();
        Self {
            store,
            faulty,
            counting,
            client,
            session,
        }
    }

    fn queue(&self) -> Queue<u32> {
        self.client.queue("q")
    }

    /// Cuts all watches of one consumer, and lets none come back before it is released: those of the front, of
    /// delayed items, and of who sees to them.
    async fn without_watches(&self) -> Vec<Held> {
        let watches: Vec<Held> = (1..=6)
            .map(|nth| self.faulty.hold(nth, Calls::Read, Stage::NotSent))
            .collect();
        self.faulty.cut_watches();
        for watch in &watches {
            soon(watch.reached()).await;
        }
        watches
    }

    /// Everything of the queue that is kept, save its head and what consumers have agreed on.
    fn left(&self) -> Vec<String> {
        let mut left = self.store.keys("quorate/queue/");
        left.retain(|key| !key.ends_with("/head") && !key.ends_with("/settings"));
        left
    }
}

async fn soon<T>(work: impl Future<Output = T>) -> T {
    let done = tokio::time::timeout(Duration::from_secs(60), work).await;
    done.expect("it ends by itself")
}

async fn no_news<T: fmt::Debug>(work: impl Future<Output = T>) {
    let done = tokio::time::timeout(Duration::from_secs(60), work).await;
    assert!(done.is_err(), "{done:?}");
}

#[tokio::test(start_paused = true)]
async fn one_consumer_takes_in_the_order_of_pushes() {
    let place = Place::new().await;
    let queue = place.queue().with_segment_items(3);
    let consumer = queue.consumer(&place.session).await.unwrap();
    queue.push(&place.session, &0).await.unwrap();
    queue.push_all(&place.session, &[1, 2, 3, 4]).await.unwrap();
    queue.push_at_least_once(&5).await.unwrap();
    let ids = queue.push_all(&place.session, &[6, 7, 8]).await.unwrap();
    assert_eq!(ids.len(), 3);
    for expected in 0..9 {
        let delivery = soon(consumer.pop()).await.unwrap();
        assert_eq!((*delivery.value(), delivery.attempt()), (expected, 1));
        let status = queue.status().await.unwrap();
        assert_eq!(
            (status.items, status.claimed, status.consumers),
            (9 - u64::from(expected), 1, 1)
        );
        delivery.ack().await.unwrap();
    }
    no_news(consumer.pop()).await;
    assert!(consumer.try_pop().await.unwrap().is_none());
    // The consumer, and whoever sees to delayed items.
    assert_eq!(place.left().len(), 2, "{:?}", place.left());
    drop(consumer);
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert_eq!(place.left(), [""; 0]);
}

#[tokio::test(start_paused = true)]
async fn what_was_pushed_before_is_there_at_once() {
    let place = Place::new().await;
    let queue = place.queue().with_segment_items(2);
    queue
        .push_all(&place.session, &(0..7).collect::<Vec<_>>())
        .await
        .unwrap();
    queue.push(&place.session, &7).await.unwrap();
    let consumer = queue.consumer(&place.session).await.unwrap();
    for expected in 0..8 {
        let delivery = consumer.try_pop().await.unwrap().expect("it is there");
        assert_eq!(*delivery.value(), expected);
        delivery.ack().await.unwrap();
    }
    for n in 0..5 {
        queue.push(&place.session, &n).await.unwrap();
        let delivery = consumer
            .try_pop()
            .await
            .unwrap()
            .expect("it has been pushed");
        delivery.ack().await.unwrap();
        assert!(consumer.try_pop().await.unwrap().is_none());
    }
}

#[tokio::test(start_paused = true)]
async fn an_item_is_done_together_with_a_transaction_or_not_at_all() {
    let place = Place::new().await;
    let (queue, client) = (place.queue(), &place.client);
    let consumer = queue.consumer(&place.session).await.unwrap();
    queue.push(&place.session, &1).await.unwrap();
    client.put("done", "before").await.unwrap();
    let delivery = soon(consumer.pop()).await.unwrap();
    let unmet = client
        .txn()
        .when(Compare::absent("done"))
        .put("effect", "x");
    let refused = delivery.ack_with(unmet.otherwise(ops::get("done"))).await;
    let Err(AckError::Conflict {
        delivery,
        responses,
        ..
    }) = refused
    else {
        panic!("{refused:?}");
    };
    assert_eq!(ops::kvs(&responses, 0)[0].value, "before");
    assert!(client.get("effect").await.unwrap().is_none());
    let mut lost = delivery.lost();
    let txn = client.txn().put("effect", "once");
    let at = delivery.ack_with(txn).await.unwrap();
    assert_eq!(
        client.get("effect").await.unwrap().unwrap().mod_revision,
        at.0
    );
    assert_eq!(soon(&mut lost).await, LostReason::Released);
    assert_eq!(queue.status().await.unwrap().items, 0);

    // Removed under its feet.
    let id = queue.push(&place.session, &2).await.unwrap();
    let delivery = soon(consumer.pop()).await.unwrap();
    let lost = delivery.lost();
    assert!(queue.remove(&id).await.unwrap());
    assert!(!queue.remove(&id).await.unwrap());
    assert_eq!(soon(lost).await, LostReason::Removed);
    let refused = delivery.ack_with(client.txn().put("effect", "twice")).await;
    assert!(
        matches!(refused, Err(AckError::Fenced { .. })),
        "{refused:?}"
    );
    assert_eq!(client.get("effect").await.unwrap().unwrap().value, "once");

    // A guard of the user's own that is lost: the item is still claimed, and goes back.
    let guard = client.mutex("m").lock(&place.session).await.unwrap();
    queue.push(&place.session, &3).await.unwrap();
    let delivery = soon(consumer.pop()).await.unwrap();
    client.delete(guard.key()).await.unwrap();
    let refused = delivery
        .ack_with(client.txn().guard(&guard).put("effect", "no"))
        .await;
    assert!(
        matches!(refused, Err(AckError::Failed(Error::Fenced { .. }))),
        "{refused:?}"
    );
    let again = soon(consumer.pop()).await.unwrap();
    assert_eq!((*again.value(), again.attempt()), (3, 2));
    again.ack().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn what_is_taken_too_often_is_put_aside_and_may_come_back() {
    let place = Place::new().await;
    let queue = place.queue().max_attempts(2);
    let consumer = queue.consumer(&place.session).await.unwrap();
    queue.push(&place.session, &1).await.unwrap();
    let first = soon(consumer.pop()).await.unwrap();
    assert_eq!(first.attempt(), 1);
    first.nack(Nack::Now).await.unwrap();
    let second = soon(consumer.pop()).await.unwrap();
    assert_eq!(second.attempt(), 2);
    drop(second);
    queue.push(&place.session, &2).await.unwrap();
    let other = soon(consumer.pop()).await.unwrap();
    assert_eq!(*other.value(), 2);
    other.nack(Nack::Dead("no use".to_owned())).await.unwrap();
    no_news(consumer.pop()).await;
    let mut dead = queue.dead_letters(9).await.unwrap();
    assert!(dead.is_sorted_by_key(|letter| letter.revision));
    dead.sort_by_key(|letter| letter.value.clone());
    let told = |dead: &[DeadLetter<u32>]| -> Vec<(u32, u32, String)> {
        let each = dead.iter();
        each.map(|letter| {
            (
                letter.value.clone().unwrap(),
                letter.attempts,
                letter.reason.clone(),
            )
        })
        .collect()
    };
    assert_eq!(
        told(&dead),
        [
            (1, 2, "taken 2 times without success".to_owned()),
            (2, 1, "no use".to_owned())
        ]
    );
    assert_eq!(queue.status().await.unwrap().dead, 2);
    assert!(queue.dead_letters(0).await.unwrap().is_empty());
    let back = queue.redrive(&place.session, &dead[0].id).await.unwrap();
    assert!(back.is_some());
    assert!(
        queue
            .redrive(&place.session, &dead[0].id)
            .await
            .unwrap()
            .is_none()
    );
    let again = soon(consumer.pop()).await.unwrap();
    assert_eq!(
        (*again.value(), again.attempt(), Some(again.id())),
        (1, 1, back.as_ref())
    );
    again.ack().await.unwrap();
    assert!(queue.discard(&dead[1].id).await.unwrap());
    assert!(!queue.discard(&dead[1].id).await.unwrap());
    assert_eq!(queue.status().await.unwrap().dead, 0);
}

#[tokio::test(start_paused = true)]
async fn a_dropped_pop_takes_nothing_and_counts_for_nothing() {
    let place = Place::new().await;
    let queue = place.queue();
    let consumer = queue.consumer(&place.session).await.unwrap();
    tokio::time::sleep(Duration::from_secs(1)).await;
    for stage in [Stage::NotSent, Stage::AppliedUnanswered, Stage::Answered] {
        queue.push(&place.session, &1).await.unwrap();
        let held = place.faulty.hold(1, Calls::Txn, stage);
        tokio::select! {
            biased;
            popped = consumer.pop() => panic!("{popped:?}"),
            () = held.reached() => {}
        }
        held.release();
        let delivery = soon(consumer.pop()).await.unwrap();
        assert_eq!(delivery.attempt(), 1, "{stage:?}");
        delivery.ack().await.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn what_a_lost_session_had_others_take_again() {
    let place = Place::new().await;
    let queue = place.queue();
    let other = place.client.session().await.unwrap();
    let (dying, living) = (
        queue.consumer(&other).await.unwrap(),
        queue.consumer(&place.session).await.unwrap(),
    );
    queue.push(&place.session, &1).await.unwrap();
    let taken = soon(dying.pop()).await.unwrap();
    no_news(living.pop()).await;
    assert!(place.store.expire(other.lease()));
    let again = soon(living.pop()).await.unwrap();
    assert_eq!((*again.value(), again.attempt()), (1, 2));
    let zombie = taken
        .ack_with(place.client.txn().put("effect", "zombie"))
        .await;
    assert!(zombie.is_err(), "{zombie:?}");
    assert!(place.client.get("effect").await.unwrap().is_none());
    assert!(matches!(dying.pop().await, Err(Error::SessionLost(_))));
    again.ack().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn put_off_without_an_order_it_comes_last_with_its_attempts() {
    let place = Place::new().await;
    let queue = place.queue().max_attempts(3);
    let consumer = queue.consumer(&place.session).await.unwrap();
    queue.push_all(&place.session, &[1, 2]).await.unwrap();
    let first = soon(consumer.pop()).await.unwrap();
    let pause = Duration::from_secs(3_600);
    first.nack(Nack::After(pause)).await.unwrap();
    let status = queue.status().await.unwrap();
    assert_eq!((status.items, status.delayed, status.claimed), (1, 1, 0));
    soon(consumer.pop()).await.unwrap().ack().await.unwrap();
    let put_off = place.client.now();
    let again = consumer.pop().await.unwrap();
    let waited = place.client.now() - put_off;
    assert!(
        waited > pause - Duration::from_secs(60) && waited < pause + Duration::from_secs(1),
        "{waited:?}"
    );
    assert_eq!((*again.value(), again.attempt()), (1, 2));
    again.ack().await.unwrap();
    assert_eq!(queue.status().await.unwrap().delayed, 0);
}

#[tokio::test(start_paused = true)]
async fn put_off_in_an_exact_order_it_keeps_its_place() {
    for keyed in [false, true] {
        let place = Place::new().await;
        let queue = match keyed {
            true => place.queue().ordered_by(|n| (n % 2).to_string()),
            false => place.queue().strict(),
        };
        let consumer = queue.consumer(&place.session).await.unwrap();
        queue.push_all(&place.session, &[0, 2, 1]).await.unwrap();
        let first = soon(consumer.pop()).await.unwrap();
        first
            .nack(Nack::After(Duration::from_secs(600)))
            .await
            .unwrap();
        if keyed {
            let other = soon(consumer.pop()).await.unwrap();
            assert_eq!(*other.value(), 1, "another key");
            other.ack().await.unwrap();
        }
        no_news(consumer.pop()).await;
        let again = consumer.pop().await.unwrap();
        assert_eq!((*again.value(), again.attempt()), (0, 2));
        again.ack().await.unwrap();
        assert_eq!(*soon(consumer.pop()).await.unwrap().value(), 2);
    }
}

#[tokio::test(start_paused = true)]
async fn items_are_pushed_for_later() {
    let place = Place::new().await;
    let queue = place.queue();
    let hours = |hours: u64| Duration::from_secs(3_600 * hours);
    let (a, b) = (
        place.client.session().await.unwrap(),
        place.client.session().await.unwrap(),
    );
    let first = queue.consumer(&a).await.unwrap();
    let second = queue.consumer(&b).await.unwrap();
    for n in [3, 1, 2] {
        queue
            .push_after(&place.session, hours(n), &u32::try_from(n).unwrap())
            .await
            .unwrap();
    }
    let gone = queue
        .push_after(&place.session, hours(2), &9)
        .await
        .unwrap();
    assert!(place.client.delete(gone).await.unwrap());
    // Whoever sees to it ends.
    drop(first);
    assert!(place.store.expire(a.lease()));
    for expected in 1..=3 {
        let delivery = second.pop().await.unwrap();
        assert_eq!(*delivery.value(), expected);
        delivery.ack().await.unwrap();
    }
    no_news(second.pop()).await;
}

#[tokio::test(start_paused = true)]
async fn one_item_of_a_name_at_a_time() {
    let place = Place::new().await;
    let (queue, session) = (place.queue(), &place.session);
    let consumer = queue.consumer(session).await.unwrap();
    let id = queue.push_unique(session, "a/b", &1).await.unwrap();
    assert!(id.is_some());
    assert!(
        queue
            .push_unique(session, "a/b", &2)
            .await
            .unwrap()
            .is_none()
    );
    assert!(queue.push_unique(session, "a", &3).await.unwrap().is_some());
    let delivery = soon(consumer.pop()).await.unwrap();
    assert!(
        queue
            .push_unique(session, "a/b", &2)
            .await
            .unwrap()
            .is_none(),
        "worked at"
    );
    delivery
        .nack(Nack::After(Duration::from_secs(1)))
        .await
        .unwrap();
    assert!(
        queue
            .push_unique(session, "a/b", &2)
            .await
            .unwrap()
            .is_none(),
        "waits"
    );
    soon(consumer.pop()).await.unwrap().ack().await.unwrap();
    let delivery = soon(consumer.pop()).await.unwrap();
    delivery.nack(Nack::Dead(String::new())).await.unwrap();
    let new = queue.push_unique(session, "a/b", &4).await.unwrap();
    assert!(new.is_some());
    let dead = queue.dead_letters(1).await.unwrap();
    assert!(
        queue.redrive(session, &dead[0].id).await.unwrap().is_none(),
        "the name is taken"
    );
    assert!(queue.remove(&new.unwrap()).await.unwrap());
    assert!(queue.redrive(session, &dead[0].id).await.unwrap().is_some());
    assert!(
        queue
            .push_unique(session, "a/b", &5)
            .await
            .unwrap()
            .is_none()
    );
}

/// Everything pushed is done once by some of several consumers, through many segments, while items come.
#[tokio::test(start_paused = true)]
async fn many_share_the_work() {
    const ITEMS: u32 = 300;
    let place = Place::new().await;
    let queue = place.queue().with_segment_items(8);
    let done = Mutex::new(BTreeMap::new());
    let workers = join_all((0..5).map(async |worker| {
        let session = place.client.session().await.unwrap();
        let consumer = queue.consumer(&session).await.unwrap();
        let work = consumer.for_each_concurrent(3, async |delivery: Delivery<u32>| {
            tokio::time::sleep(Duration::from_millis(u64::from(delivery.value() % 7) * 10)).await;
            if delivery.value().is_multiple_of(11) && delivery.attempt() == 1 {
                return;
            }
            let value = *delivery.value();
            delivery.ack().await.unwrap();
            done.lock()
                .unwrap()
                .entry(value)
                .or_insert(Vec::new())
                .push(worker);
        });
        drop(tokio::time::timeout(Duration::from_secs(300), work).await);
    }));
    let pushes = async {
        for n in 0..ITEMS {
            queue.push(&place.session, &n).await.unwrap();
            tokio::time::sleep(Duration::from_millis(u64::from(n % 5))).await;
        }
    };
    tokio::join!(workers, pushes);
    let done = done.into_inner().unwrap();
    assert_eq!(done.len(), ITEMS as usize);
    assert!(done.values().all(|workers| workers.len() == 1));
    let workers: BTreeSet<_> = done.values().flatten().collect();
    assert_eq!(workers.len(), 5, "all of them worked");
    tokio::time::sleep(Duration::from_secs(30)).await;
    assert_eq!(place.left(), [""; 0]);
}

/// Exact orders hold with several consumers and items given back, over the ends of segments.
#[tokio::test(start_paused = true)]
async fn exact_orders_are_exact() {
    const ITEMS: u32 = 120;
    for keys in [1, 4] {
        let place = Place::new().await;
        let queue = match keys {
            1 => place.queue().strict(),
            keys => place.queue().ordered_by(move |n| (n % keys).to_string()),
        };
        let queue = queue.with_segment_items(3).without_max_attempts();
        let (working, done) = (Mutex::new(BTreeSet::new()), Mutex::new(Vec::new()));
        let workers = join_all((0..4).map(async |_| {
            let session = place.client.session().await.unwrap();
            let consumer = queue.consumer(&session).await.unwrap();
            let work = consumer.for_each_concurrent(2, async |delivery: Delivery<u32>| {
                let value = *delivery.value();
                assert!(
                    working.lock().unwrap().insert(value % keys),
                    "one at a time"
                );
                tokio::time::sleep(Duration::from_millis(u64::from(value % 3) * 10)).await;
                working.lock().unwrap().remove(&(value % keys));
                match value.is_multiple_of(10) && delivery.attempt() == 1 {
                    true => delivery.nack(Nack::Now).await.unwrap(),
                    false => {
                        done.lock().unwrap().push(value);
                        delivery.ack().await.map(drop).unwrap();
                    }
                }
            });
            drop(tokio::time::timeout(Duration::from_secs(100), work).await);
        }));
        let pushes = async {
            for n in 0..ITEMS {
                queue.push(&place.session, &n).await.unwrap();
            }
        };
        tokio::join!(workers, pushes);
        let done = done.into_inner().unwrap();
        assert_eq!(done.len(), ITEMS as usize);
        for key in 0..keys {
            let own: Vec<u32> = done.iter().copied().filter(|n| n % keys == key).collect();
            assert!(own.is_sorted(), "{own:?}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn consumers_agree_on_the_order() {
    let place = Place::new().await;
    let one = place.queue().consumer(&place.session).await.unwrap();
    let refused = place.queue().strict().consumer(&place.session).await;
    assert!(
        matches!(refused, Err(Error::Mismatch { .. })),
        "{refused:?}"
    );
    drop(one);
    let other = place.client.namespace("x/");
    let refused = other.queue::<u32>("q").consumer(&place.session).await;
    assert!(matches!(refused, Err(Error::Invalid(_))), "{refused:?}");
}

#[tokio::test(start_paused = true)]
async fn what_cannot_be_read_is_put_aside() {
    let place = Place::new().await;
    let words = place.client.queue::<String>("q");
    words
        .push(&place.session, &"text".to_owned())
        .await
        .unwrap();
    let log = &place.queue().layout.log;
    let raw = Append {
        items: vec![Bytes::from_static(b"not even JSON \xff")],
        ..Append::default()
    };
    log.append(&place.session, &raw).await.unwrap();
    place.queue().push(&place.session, &7).await.unwrap();
    let consumer = place.queue().consumer(&place.session).await.unwrap();
    let delivery = soon(consumer.pop()).await.unwrap();
    assert_eq!(*delivery.value(), 7);
    delivery.ack().await.unwrap();
    let dead = place.queue().dead_letters(9).await.unwrap();
    assert_eq!(dead.len(), 2);
    assert!(
        dead.iter()
            .all(|letter| letter.value.is_err() && letter.reason.starts_with("it cannot be read"))
    );
    // Readable by those who know the type.
    assert_eq!(
        words.dead_letters(1).await.unwrap()[0].value,
        Ok("text".to_owned())
    );
    assert!(
        place
            .queue()
            .redrive(&place.session, &dead[1].id)
            .await
            .is_err(),
        "it never was an item"
    );
    // A record of a later version stands in the way of nothing.
    let id: ItemId = "00000000000000ff/x.0000".parse().unwrap();
    let key = place.queue().layout.dead_letter(&id);
    place.client.put(&key, r#"{"v":2}"#).await.unwrap();
    let dead = place.queue().dead_letters(9).await.unwrap();
    assert_eq!((dead.len(), &dead[2].id), (3, &id));
    assert!(dead[2].value.is_err());
    assert!(place.queue().discard(&id).await.unwrap());
}

/// Answers that get lost, and copies that come late, of every write of a taking.
#[tokio::test(start_paused = true)]
async fn late_copies_change_nothing() {
    for fault in [Fault::Unanswered, Fault::Late] {
        let place = Place::new().await;
        let queue = place.queue();
        let consumer = queue.consumer(&place.session).await.unwrap();
        tokio::time::sleep(Duration::from_secs(1)).await;
        // The push and the acknowledgement go through a lane.
        place.faulty.plan("quorate/lane/", [fault.clone()]);
        queue.push(&place.session, &1).await.unwrap();
        place.faulty.plan("/claim", [fault.clone()]);
        let delivery = soon(consumer.pop()).await.unwrap();
        assert_eq!(delivery.attempt(), 1);
        place.faulty.plan("quorate/lane/", [fault.clone()]);
        let txn = place.client.txn().put("effect", "x");
        let at = delivery.ack_with(txn).await.unwrap();
        place.faulty.deliver().await;
        tokio::time::sleep(Duration::from_secs(60)).await;
        let effect = place.client.get("effect").await.unwrap().unwrap();
        assert_eq!((effect.version, effect.mod_revision), (1, at.0));
        let status = queue.status().await.unwrap();
        assert_eq!((status.items, status.claimed), (0, 0), "{fault:?}");
        assert!(consumer.try_pop().await.unwrap().is_none());
    }
}

#[tokio::test(start_paused = true)]
async fn an_acknowledgement_goes_on_without_its_caller() {
    let place = Place::new().await;
    let queue = place.queue();
    let consumer = queue.consumer(&place.session).await.unwrap();
    tokio::time::sleep(Duration::from_secs(1)).await;
    for stage in [Stage::NotSent, Stage::AppliedUnanswered, Stage::Answered] {
        queue.push(&place.session, &1).await.unwrap();
        let delivery = soon(consumer.pop()).await.unwrap();
        let held = place.faulty.hold(1, Calls::Txn, stage);
        tokio::select! {
            biased;
            acked = delivery.ack() => panic!("{acked:?}"),
            () = held.reached() => {}
        }
        held.release();
        no_news(consumer.pop()).await;
        assert_eq!(queue.status().await.unwrap().items, 0, "{stage:?}");
    }
}

/// A take costs the same whatever is behind it.
#[tokio::test(start_paused = true)]
async fn the_cost_of_a_take_does_not_grow() {
    let mut costs = Vec::new();
    for items in [1_000, 20_000] {
        let place = Place::new().await;
        let queue = place.queue();
        let values: Vec<u32> = (0..items).collect();
        queue.push_all(&place.session, &values).await.unwrap();
        let consumer = queue.consumer(&place.session).await.unwrap();
        soon(consumer.pop()).await.unwrap().ack().await.unwrap();
        let before = place.counting.counts();
        for _ in 0..500 {
            soon(consumer.pop()).await.unwrap().ack().await.unwrap();
        }
        let used = place.counting.counts() - before;
        costs.push((used.txn, used.range, used.watch));
        assert_eq!(used.txn, 1_000, "a claim and an acknowledgement each");
        assert!(used.range <= 8, "{used:?}");
    }
    assert_eq!(costs[0], costs[1]);
}

/// Of many who wait, one takes what comes; few try.
#[tokio::test(start_paused = true)]
async fn an_item_wakes_few_who_are_idle() {
    const CONSUMERS: u32 = 100;
    let place = Place::new().await;
    let queue = place.queue();
    let mut sessions = Vec::new();
    for _ in 0..CONSUMERS {
        sessions.push(place.client.session().await.unwrap());
    }
    let consumers = join_all(sessions.iter().map(|session| queue.consumer(session)));
    let consumers: Vec<_> = consumers.await.into_iter().collect::<Result<_>>().unwrap();
    let taking = join_all(consumers.iter().map(async |consumer| {
        let work = consumer.for_each_concurrent(1, async |delivery| {
            delivery.ack().await.unwrap();
        });
        drop(tokio::time::timeout(Duration::from_secs(30), work).await);
    }));
    let pushing = async {
        tokio::time::sleep(Duration::from_secs(10)).await;
        let before = place.counting.counts();
        for n in 0..50 {
            queue.push(&place.session, &n).await.unwrap();
            tokio::time::sleep(Duration::from_millis(300)).await;
        }
        assert_eq!(queue.status().await.unwrap().items, 0);
        // A push, an acknowledgement, and claims; the first of a lane opens it.
        (place.counting.counts() - before).txn
    };
    let (_, txns) = tokio::join!(taking, pushing);
    let opened = u64::from(CONSUMERS) + 1;
    assert!(txns <= 50 * (2 + 3) + opened, "{txns}");
    assert!(
        consumers[0]
            .try_pop()
            .now_or_never()
            .is_none_or(|taken| taken.unwrap().is_none())
    );
    assert!(place.store.capabilities().max_txn_ops > 0);
}

/// Looks again and again do not begin a pause anew.
#[tokio::test(start_paused = true)]
async fn a_pause_ends_however_often_somebody_looks() {
    let place = Place::new().await;
    let queue = place.queue().strict();
    let consumer = queue.consumer(&place.session).await.unwrap();
    queue.push(&place.session, &1).await.unwrap();
    let first = soon(consumer.pop()).await.unwrap();
    first
        .nack(Nack::After(Duration::from_secs(5)))
        .await
        .unwrap();
    let began = place.client.now();
    let again = soon(async {
        loop {
            if let Some(delivery) = consumer.try_pop().await.unwrap() {
                break delivery;
            }
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
    });
    assert_eq!(again.await.attempt(), 2);
    let waited = place.client.now() - began;
    assert!(
        waited >= Duration::from_secs(4) && waited < Duration::from_secs(7),
        "{waited:?}"
    );
}

/// A claim that an answer told of, and whose end nobody was told: the watch was cut, and its past compacted.
#[tokio::test(start_paused = true)]
async fn a_claim_whose_end_was_missed_does_not_stand() {
    let place = Place::new().await;
    let queue = place.queue();
    let consumer = queue.consumer(&place.session).await.unwrap();
    queue.push(&place.session, &1).await.unwrap();
    tokio::time::sleep(Duration::from_secs(1)).await;
    let watches = place.without_watches().await;
    drop(soon(consumer.pop()).await.unwrap());
    tokio::time::sleep(Duration::from_secs(1)).await;
    place.store.compact(place.store.revision()).unwrap();
    watches.into_iter().for_each(Held::release);
    let again = soon(consumer.pop()).await.unwrap();
    assert_eq!(again.attempt(), 2);
}

/// Keys that are held up do not hold up others.
#[tokio::test(start_paused = true)]
async fn items_that_wait_stand_in_nobody_elses_way() {
    let place = Place::new().await;
    let queue = place.queue().ordered_by(|n| (n % 10).to_string());
    let queue = queue.with_segment_items(4);
    let consumer = queue.consumer(&place.session).await.unwrap();
    // Many behind the first of key 0, over several segments, and others last.
    let values: Vec<u32> = (0..30).map(|n| n * 10).chain(1..10).collect();
    queue.push_all(&place.session, &values[..4]).await.unwrap();
    queue.push_all(&place.session, &values[4..]).await.unwrap();
    let hour = Duration::from_secs(3_600);
    let held = soon(consumer.pop()).await.unwrap();
    assert_eq!(*held.value(), 0);
    held.nack(Nack::After(hour)).await.unwrap();
    for expected in 1..9 {
        let delivery = soon(consumer.pop()).await.unwrap();
        assert_eq!(*delivery.value(), expected);
        delivery.nack(Nack::After(hour)).await.unwrap();
    }
    assert_eq!(*soon(consumer.pop()).await.unwrap().value(), 9);
}

/// Work that ends does not take back what is on its way to be taken.
#[tokio::test(start_paused = true)]
async fn work_that_ends_disturbs_no_taking() {
    let place = Place::new().await;
    let queue = place.queue();
    let values: Vec<u32> = (0..200).collect();
    queue.push_all(&place.session, &values).await.unwrap();
    let consumer = queue.consumer(&place.session).await.unwrap();
    let attempts = Mutex::new(Vec::new());
    let work = consumer.for_each_concurrent(20, async |delivery: Delivery<u32>| {
        tokio::time::sleep(Duration::from_millis(1)).await;
        attempts.lock().unwrap().push(delivery.attempt());
        delivery.ack().await.unwrap();
    });
    let before = place.counting.counts();
    drop(tokio::time::timeout(Duration::from_secs(60), work).await);
    assert_eq!(attempts.into_inner().unwrap(), [1; 200]);
    let used = place.counting.counts() - before;
    // Two each, and what opens up to 16 lanes.
    assert!(used.txn <= 2 * 200 + 20, "{used:?}");
}

/// A late copy puts a key back that this consumer knows from before.
#[tokio::test(start_paused = true)]
async fn an_item_that_is_there_anew_is_the_new_one() {
    let place = Place::new().await;
    let queue = place.queue();
    let consumer = queue.consumer(&place.session).await.unwrap();
    let id = queue.push_at_least_once(&1).await.unwrap();
    tokio::time::sleep(Duration::from_secs(1)).await;
    let key = queue.layout.log.key(&id);
    let item = place.client.get(&key).await.unwrap().unwrap().value;
    // Unseen: no watch is there, and then the past is compacted.
    let watches = place.without_watches().await;
    place.client.delete(&key).await.unwrap();
    place.client.put(&key, item).await.unwrap();
    place.store.compact(place.store.revision()).unwrap();
    watches.into_iter().for_each(Held::release);
    tokio::time::sleep(Duration::from_secs(5)).await;
    let delivery = soon(consumer.pop()).await.unwrap();
    delivery.ack().await.unwrap();
    no_news(consumer.pop()).await;
}

#[tokio::test(start_paused = true)]
async fn values_are_moved_as_they_are() {
    let place = Place::new().await;
    let queue = place.client.queue::<(u128, f64)>("q");
    let consumer = queue.consumer(&place.session).await.unwrap();
    let value = (u128::MAX - 1, 0.1 + 0.2);
    queue.push(&place.session, &value).await.unwrap();
    let put_off = soon(consumer.pop()).await.unwrap();
    put_off
        .nack(Nack::After(Duration::from_secs(1)))
        .await
        .unwrap();
    let put_aside = soon(consumer.pop()).await.unwrap();
    assert_eq!(*put_aside.value(), value);
    put_aside.nack(Nack::Dead("x".repeat(5_000))).await.unwrap();
    let dead = queue.dead_letters(1).await.unwrap();
    assert_eq!(
        (dead[0].value.clone(), dead[0].reason.len()),
        (Ok(value), 1_024)
    );
    queue
        .redrive(&place.session, &dead[0].id)
        .await
        .unwrap()
        .unwrap();
    assert_eq!(*soon(consumer.pop()).await.unwrap().value(), value);
    let text = place.client.queue::<String>("text");
    let most = place.client.store().capabilities().max_request_bytes;
    let refused = text.push(&place.session, &"x".repeat(most - 100)).await;
    assert!(matches!(refused, Err(Error::Invalid(_))), "{refused:?}");
}

/// An end that was refused leaves a claim that can be lost.
#[tokio::test(start_paused = true)]
async fn a_loss_is_told_after_a_conflict() {
    let place = Place::new().await;
    let queue = place.queue();
    let consumer = queue.consumer(&place.session).await.unwrap();
    let id = queue.push(&place.session, &1).await.unwrap();
    let delivery = soon(consumer.pop()).await.unwrap();
    let lost = delivery.lost();
    tokio::time::sleep(Duration::from_secs(1)).await;
    let held = place.faulty.hold(1, Calls::Txn, Stage::Answered);
    let unmet = place.client.txn().when(Compare::present("never"));
    let mut ending = Box::pin(delivery.ack_with(unmet));
    tokio::select! {
        biased;
        ended = &mut ending => panic!("{ended:?}"),
        () = held.reached() => {}
    }
    assert!(
        Queue::<u32>::remove(&Client::new(place.store.clone()).queue("q"), &id)
            .await
            .unwrap()
    );
    tokio::time::sleep(Duration::from_secs(1)).await;
    held.release();
    let ended = soon(ending).await;
    assert!(matches!(ended, Err(AckError::Conflict { .. })), "{ended:?}");
    assert_eq!(soon(lost).await, LostReason::Removed);
    drop(ended);
}
