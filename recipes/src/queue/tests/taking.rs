use futures::FutureExt as _;
use futures::future::BoxFuture;

use super::*;

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
        costs.push((used.txn, used.range, used.watch, used.keys));
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
    let taken = Mutex::new(Vec::new());
    let taking = join_all(consumers.iter().map(async |consumer| {
        let work = consumer.for_each_concurrent(1, async |delivery: Delivery<u32>| {
            taken.lock().unwrap().push(*delivery.value());
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
    assert_eq!(taken.into_inner().unwrap(), (0..50).collect::<Vec<_>>());
    assert!(consumers[0].try_pop().await.unwrap().is_none());
    // Who does not stand first does not wait for those who do when it asks by itself.
    queue.push(&place.session, &50).await.unwrap();
    for consumer in consumers.iter().take(4) {
        let taken = consumer.try_pop().await.unwrap().expect("it is there");
        taken.nack(Nack::Now).await.unwrap();
    }
}

/// However many segments have something that somebody has: there is more behind.
#[tokio::test(start_paused = true)]
async fn what_takes_long_holds_up_nothing() {
    let place = Place::new().await;
    let queue = place.queue().with_segment_items(1);
    for n in 0..150 {
        queue.push(&place.session, &n).await.unwrap();
    }
    let consumer = queue.consumer(&place.session).await.unwrap();
    let mut held = Vec::new();
    let session = place.client.session().await.unwrap();
    let other = queue.consumer(&session).await.unwrap();
    for expected in 0..150 {
        let delivery = soon(consumer.pop()).await.unwrap();
        assert_eq!(*delivery.value(), expected);
        held.push(delivery);
    }
    queue.push(&place.session, &150).await.unwrap();
    soon(consumer.pop()).await.unwrap().ack().await.unwrap();
    // What is given back among them is found, what is done is not.
    for (n, delivery) in held.into_iter().enumerate() {
        if n % 50 == 7 {
            drop(delivery);
        } else {
            delivery.ack().await.unwrap();
        }
    }
    let mut again = BTreeSet::new();
    for _ in 0..3 {
        let delivery = soon(consumer.pop()).await.unwrap();
        again.insert((*delivery.value(), delivery.attempt()));
        delivery.ack().await.unwrap();
    }
    assert_eq!(again, BTreeSet::from([(7, 2), (57, 2), (107, 2)]));
    no_news(consumer.pop()).await;
    // One who has looked on knows that as well.
    let before = place.counting.counts();
    assert!(other.try_pop().await.unwrap().is_none());
    let made = place.counting.counts() - before;
    assert_eq!(made.txn, 0, "{made:?}");
    drop((consumer, other, session));
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert_eq!(place.left(), [""; 0]);
}

/// Those who have something to do leave the store to those who wait when a segment is full.
#[tokio::test(start_paused = true)]
async fn a_full_segment_is_nothing_to_one_who_is_busy() {
    let place = Place::new().await;
    let queue = place.queue().with_segment_items(2);
    let consumer = queue.consumer(&place.session).await.unwrap();
    queue.push_all(&place.session, &[0, 1]).await.unwrap();
    let first = soon(consumer.pop()).await.unwrap();
    let reads = || place.counting.counts().range;
    let before = reads();
    queue.push_all(&place.session, &[2, 3]).await.unwrap();
    queue.push_all(&place.session, &[4, 5]).await.unwrap();
    tokio::time::sleep(Duration::from_millis(100)).await;
    let soon_after = reads() - before;
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert!(reads() - before > soon_after, "{soon_after} reads");
    // Who is done goes on at once.
    first.ack().await.unwrap();
    for expected in 1..6 {
        let began = place.client.now();
        let delivery = soon(consumer.pop()).await.unwrap();
        assert_eq!(*delivery.value(), expected);
        assert!(place.client.now() - began < Duration::from_millis(100));
        queue.push(&place.session, &(expected + 5)).await.unwrap();
        delivery.ack().await.unwrap();
    }
}

/// Forty consumers of a session cost the store what one does, but for their own keys, and share the work.
#[tokio::test(start_paused = true)]
async fn consumers_of_a_session_follow_the_queue_together() {
    let place = Place::new().await;
    let queue = place.queue();
    let start = async |some: usize| {
        let before = place.counting.counts();
        let started = join_all((0..some).map(|_| queue.consumer(&place.session))).await;
        tokio::time::sleep(Duration::from_secs(5)).await;
        let started: Result<Vec<_>, Error> = started.into_iter().collect();
        (started.unwrap(), place.counting.counts() - before)
    };
    let (mut consumers, one) = start(1).await;
    assert!(one.watch > 0, "{one:?}");
    let (more, used) = start(39).await;
    assert_eq!(used.watch, 0, "{used:?}");
    consumers.extend(more);
    // Whoever leaves other items alone follows by itself.
    let before = place.counting.counts();
    let other = place.queue().max_attempts(2);
    drop(other.consumer(&place.session).await.unwrap());
    assert!((place.counting.counts() - before).watch > 0);

    let values: Vec<u32> = (0..40).collect();
    queue.push_all(&place.session, &values).await.unwrap();
    let before = place.counting.counts();
    let taken = soon(join_all(consumers.iter().map(Consumer::pop))).await;
    let taken: Result<Vec<_>, Error> = taken.into_iter().collect();
    let taken = taken.unwrap();
    let told: BTreeSet<u32> = taken.iter().map(|one| *one.value()).collect();
    assert_eq!(told.len(), 40);
    // None was tried for twice.
    let used = place.counting.counts() - before;
    assert_eq!(used.txn, 40, "{used:?}");
    for delivery in taken {
        delivery.ack().await.unwrap();
    }
    drop(consumers);
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert_eq!(place.left(), [""; 0]);
    // Nobody hears of anything any more.
    let before = place.counting.counts();
    queue.push(&place.session, &1).await.unwrap();
    tokio::time::sleep(Duration::from_secs(5)).await;
    let used = place.counting.counts() - before;
    assert_eq!(used.watches_woken, 0, "{used:?}");
}

/// What consumers of a session follow together does not depend on which of them is left.
#[tokio::test(start_paused = true)]
async fn a_consumer_takes_on_when_the_others_of_its_session_have_gone() {
    let place = Place::new().await;
    let queue = place.queue();
    let first = queue.consumer(&place.session).await.unwrap();
    let second = queue.consumer(&place.session).await.unwrap();
    tokio::time::sleep(Duration::from_secs(1)).await;
    drop(first);
    queue.push(&place.session, &1).await.unwrap();
    let delivery = soon(second.pop()).await.unwrap();
    // It goes back, is delayed, and comes back: somebody sees to that, too.
    delivery
        .nack(Nack::After(Duration::from_secs(3)))
        .await
        .unwrap();
    let delivery = soon(second.pop()).await.unwrap();
    assert_eq!((*delivery.value(), delivery.attempt()), (1, 2));
    delivery.ack().await.unwrap();
    drop(second);
    tokio::time::sleep(Duration::from_secs(5)).await;
    let third = queue.consumer(&place.session).await.unwrap();
    queue.push(&place.session, &2).await.unwrap();
    assert_eq!(*soon(third.pop()).await.unwrap().value(), 2);
}

/// A queue that could not be followed any more is followed again by who comes later.
#[tokio::test(start_paused = true)]
async fn a_new_consumer_of_a_session_does_not_inherit_a_failure() {
    let place = Place::new().await;
    let queue = place.queue();
    let old = queue.consumer(&place.session).await.unwrap();
    queue.push(&place.session, &1).await.unwrap();
    let head = queue.layout.log.head_key();
    place.client.put(&head, "no head").await.unwrap();
    let failed = soon(async {
        loop {
            match old.pop().await {
                // It may be known before the head is.
                Ok(delivery) => drop(delivery),
                Err(error) => return error,
            }
        }
    });
    assert!(matches!(failed.await, Error::Codec { .. }));
    // A queue with one segment has none.
    place.client.delete(&head).await.unwrap();
    let new = queue.consumer(&place.session).await.unwrap();
    assert_eq!(*soon(new.pop()).await.unwrap().value(), 1);
    // Who has failed stays failed.
    assert!(old.try_pop().await.is_err());
}

/// A pop whose claim is on its way, and what holds it.
async fn claiming<'a>(
    place: &Place,
    consumer: &'a Consumer<u32>,
) -> (BoxFuture<'a, Result<Delivery<u32>>>, Held) {
    let held = place.faulty.hold(1, Calls::Txn, Stage::NotSent);
    let mut popping = consumer.pop().boxed();
    tokio::select! {
        biased;
        popped = &mut popping => panic!("{popped:?}"),
        () = held.reached() => {}
    }
    (popping, held)
}

/// What others of its session are about to take is waited for: nobody says that there is nothing while there is.
#[tokio::test(start_paused = true)]
async fn nothing_is_free_only_once_that_is_known() {
    let place = Place::new().await;
    let queue = place.queue();
    let one = queue.consumer(&place.session).await.unwrap();
    let other = queue.consumer(&place.session).await.unwrap();
    queue.push(&place.session, &1).await.unwrap();
    let (popping, held) = claiming(&place, &one).await;
    let began = place.client.now();
    let going_on = async {
        tokio::time::sleep(Duration::from_secs(1)).await;
        held.release();
        soon(popping).await
    };
    let none = async {
        let none = soon(other.try_pop()).await;
        (none, place.client.now() - began)
    };
    let ((none, after), popped) = tokio::join!(none, going_on);
    assert!(none.unwrap().is_none());
    assert!(after >= Duration::from_secs(1), "{after:?}");
    popped.unwrap().ack().await.unwrap();
}

/// A pop that nobody asks on keeps no item from the others of its session, once the store has refused it.
#[tokio::test(start_paused = true)]
async fn a_pop_that_stands_still_hides_nothing() {
    let place = Place::new().await;
    let queue = place.queue();
    let one = queue.consumer(&place.session).await.unwrap();
    let other = queue.consumer(&place.session).await.unwrap();
    let session = place.client.session().await.unwrap();
    let elsewhere = queue.consumer(&session).await.unwrap();
    queue.push(&place.session, &1).await.unwrap();
    let (popping, held) = claiming(&place, &one).await;
    let taken = soon(elsewhere.pop()).await.unwrap();
    held.release();
    tokio::time::sleep(Duration::from_secs(1)).await;
    taken.nack(Nack::Now).await.unwrap();
    let delivery = soon(other.pop()).await.unwrap();
    assert_eq!((*delivery.value(), delivery.attempt()), (1, 2));
    drop(popping);
}

/// Who waits for items is told when nobody follows the queue any more.
#[test]
fn a_consumer_ends_with_the_runtime_of_its_session() {
    let runtime = || {
        let mut builder = tokio::runtime::Builder::new_multi_thread();
        builder.worker_threads(1).enable_all().build().unwrap()
    };
    let (theirs, ours) = (runtime(), runtime());
    let consumer = theirs.block_on(async {
        let client = Client::new(MemStore::new());
        let session = client.session().await.unwrap();
        let queue = client.queue::<u32>("q");
        queue.consumer(&session).await.unwrap()
    });
    let ended = ours.block_on(async {
        let mut popping = Box::pin(consumer.pop());
        let waits = tokio::time::timeout(Duration::from_millis(50), &mut popping).await;
        assert!(waits.is_err(), "{waits:?}");
        theirs.shutdown_background();
        soon(popping).await
    });
    assert!(matches!(ended, Err(Error::Closed)), "{ended:?}");
}
