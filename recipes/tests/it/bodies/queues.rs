//! Queues: every item is done once, in an order that was agreed on, whatever becomes of those who take it.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use quorate_recipes::queue::{AckError, Consumer, Delivery, Nack};
use quorate_recipes::store::ops::Compare;
use quorate_recipes::{Client, Error, KeyRange};

use super::{keys_below, session, short_session};
use crate::support::{soon, until};

async fn next(consumer: &Consumer<u32>) -> Delivery<u32> {
    soon("an item", consumer.pop()).await.unwrap()
}

/// Several take from one queue while others push: each item is done once, with what is written for it.
pub async fn items_are_done_once(client: &Client) {
    const ITEMS: u32 = 60;
    let queue = client.queue::<u32>("work").with_segment_items(8);
    let mut working = Vec::new();
    for _ in 0..3 {
        let session = session(client).await;
        let consumer = queue.consumer(&session).await.unwrap();
        let client = client.clone();
        working.push(tokio::spawn(async move {
            let work = consumer.for_each_concurrent(2, async |delivery| {
                if delivery.value().is_multiple_of(7) && delivery.attempt() == 1 {
                    // Dropped: it goes back.
                    return;
                }
                let key = format!("done/{}", delivery.value());
                let txn = client.txn().when(Compare::absent(&key)).put(&key, "");
                delivery.ack_with(txn).await.unwrap();
            });
            work.await.unwrap();
        }));
    }
    let pusher = session(client).await;
    for n in (0..ITEMS).step_by(3) {
        queue.push_all(&pusher, &[n, n + 1, n + 2]).await.unwrap();
    }
    until("all to be done", async || {
        let status = queue.status().await.unwrap();
        status.items == 0
    })
    .await;
    let (_, done) = client.list(KeyRange::prefix("done/")).await.unwrap();
    assert_eq!(done.len(), ITEMS as usize);
    assert!(done.iter().all(|kv| kv.version == 1));
    for worker in working {
        worker.abort();
    }
    until("nothing to be left", async || {
        let status = queue.status().await.unwrap();
        let tries = keys_below(client, "quorate/queue/work/try/").await;
        (status.consumers, status.claimed, tries) == (0, 0, 0)
    })
    .await;
}

/// One whose lease has gone cannot end what it has; the next one has it then.
pub async fn who_is_gone_ends_nothing(client: &Client) {
    let queue = client.queue::<u32>("jobs");
    let (dying, living) = (short_session(client).await, session(client).await);
    let (first, second) = (
        queue.consumer(&dying).await.unwrap(),
        queue.consumer(&living).await.unwrap(),
    );
    queue.push(&living, &1).await.unwrap();
    let taken = next(&first).await;
    client.store().lease_revoke(dying.lease()).await.unwrap();
    let again = next(&second).await;
    assert_eq!((*again.value(), again.attempt()), (1, 2));
    let zombie = taken
        .ack_with(client.txn().put("by", "the one who is gone"))
        .await;
    assert!(
        matches!(
            zombie,
            Err(AckError::Fenced { .. } | AckError::Failed(Error::SessionLost(_)))
        ),
        "{zombie:?}"
    );
    again
        .ack_with(client.txn().put("by", "the next one"))
        .await
        .unwrap();
    assert_eq!(
        client.get("by").await.unwrap().unwrap().value,
        "the next one"
    );
    assert!(matches!(first.pop().await, Err(Error::SessionLost(_))));
    assert!(second.try_pop().await.unwrap().is_none());
}

/// Items of a key come one after the other, and what is put off holds up those behind it.
pub async fn orders_by_key_are_exact(client: &Client) {
    const ITEMS: u32 = 40;
    let queue = client
        .queue::<u32>("orders")
        .ordered_by(|n| (n % 4).to_string());
    let queue = queue.with_segment_items(5);
    let pusher = session(client).await;
    let done: Arc<Mutex<BTreeMap<u32, Vec<u32>>>> = Arc::default();
    let mut working = Vec::new();
    for _ in 0..3 {
        let session = session(client).await;
        let consumer = queue.consumer(&session).await.unwrap();
        let done = Arc::clone(&done);
        working.push(tokio::spawn(async move {
            let work = consumer.for_each_concurrent(4, async |delivery: Delivery<u32>| {
                let value = *delivery.value();
                if value.is_multiple_of(9) && delivery.attempt() == 1 {
                    let pause = Nack::After(Duration::from_millis(50));
                    delivery.nack(pause).await.unwrap();
                    return;
                }
                done.lock()
                    .unwrap()
                    .entry(value % 4)
                    .or_default()
                    .push(value);
                delivery.ack().await.unwrap();
            });
            work.await.unwrap();
        }));
    }
    for n in 0..ITEMS {
        queue.push(&pusher, &n).await.unwrap();
    }
    until("all to be done", async || {
        queue.status().await.unwrap().items == 0
    })
    .await;
    for worker in working {
        worker.abort();
    }
    for (key, done) in &*done.lock().unwrap() {
        assert!(done.is_sorted() && done.len() == 10, "{key}: {done:?}");
    }
    let other = client.queue::<u32>("orders").consumer(&pusher).await;
    assert!(matches!(other, Err(Error::Mismatch { .. })), "{other:?}");
}

/// Items come one after the other in the order of their commits, whoever takes them, and whatever becomes of the one
/// before; nobody has one while somebody has another.
pub async fn strict_order_is_exact(client: &Client) {
    const ITEMS: u32 = 40;
    let queue = client.queue::<u32>("line").strict().with_segment_items(5);
    let pusher = session(client).await;
    let (done, working) = (
        Arc::<Mutex<Vec<u32>>>::default(),
        Arc::<Mutex<u32>>::default(),
    );
    let mut workers = Vec::new();
    for _ in 0..3 {
        let session = session(client).await;
        let consumer = queue.consumer(&session).await.unwrap();
        let (done, working) = (Arc::clone(&done), Arc::clone(&working));
        workers.push(tokio::spawn(async move {
            let work = consumer.for_each_concurrent(4, async |delivery: Delivery<u32>| {
                let value = *delivery.value();
                {
                    let mut working = working.lock().unwrap();
                    *working += 1;
                    assert_eq!(*working, 1, "one at a time");
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
                *working.lock().unwrap() -= 1;
                match (value % 9, delivery.attempt()) {
                    (0, 1) => {
                        let pause = Nack::After(Duration::from_millis(50));
                        delivery.nack(pause).await.unwrap();
                    }
                    // Dropped: it goes back.
                    (4, 1) => {}
                    _ => {
                        done.lock().unwrap().push(value);
                        delivery.ack().await.unwrap();
                    }
                }
            });
            work.await.unwrap();
        }));
    }
    for n in (0..ITEMS).step_by(2) {
        queue.push_all(&pusher, &[n, n + 1]).await.unwrap();
    }
    until("all to be done", async || {
        queue.status().await.unwrap().items == 0
    })
    .await;
    for worker in workers {
        worker.abort();
    }
    assert_eq!(*done.lock().unwrap(), (0..ITEMS).collect::<Vec<_>>());
    let other = client.queue::<u32>("line").consumer(&pusher).await;
    assert!(matches!(other, Err(Error::Mismatch { .. })), "{other:?}");

    let (dying, living) = (short_session(client).await, session(client).await);
    let first = queue.consumer(&dying).await.unwrap();
    let second = queue.consumer(&living).await.unwrap();
    queue.push_all(&living, &[100, 101, 102]).await.unwrap();
    let taken = next(&first).await;
    assert!(
        second.try_pop().await.unwrap().is_none(),
        "somebody has the first"
    );
    client.store().lease_revoke(dying.lease()).await.unwrap();
    let again = next(&second).await;
    assert_eq!((*again.value(), again.attempt()), (100, 2));
    assert!(
        second.try_pop().await.unwrap().is_none(),
        "it has that itself"
    );
    let zombie = taken.ack().await;
    assert!(zombie.is_err(), "{zombie:?}");
    again.nack(Nack::Dead("no".to_owned())).await.unwrap();
    for expected in [101, 102] {
        let delivery = next(&second).await;
        assert_eq!(*delivery.value(), expected);
        delivery.ack().await.unwrap();
    }
    assert_eq!(queue.status().await.unwrap().dead, 1);
}

/// For later, put off, put aside and back.
pub async fn items_come_back(client: &Client) {
    let queue = client.queue::<u32>("later").max_attempts(2);
    let session = session(client).await;
    let consumer = queue.consumer(&session).await.unwrap();
    let soon_due = Duration::from_millis(300);
    queue.push_after(&session, soon_due, &1).await.unwrap();
    assert!(consumer.try_pop().await.unwrap().is_none());
    let first = next(&consumer).await;
    assert_eq!((*first.value(), first.attempt()), (1, 1));
    first.nack(Nack::After(soon_due)).await.unwrap();
    let second = next(&consumer).await;
    assert_eq!(second.attempt(), 2);
    second.nack(Nack::Now).await.unwrap();
    until("it to be put aside", async || {
        queue.status().await.unwrap().dead == 1
    })
    .await;
    let dead = queue.dead_letters(9).await.unwrap();
    assert_eq!((dead[0].value.clone(), dead[0].attempts), (Ok(1), 2));
    let back = queue.redrive(&session, &dead[0].id).await.unwrap().unwrap();
    let third = next(&consumer).await;
    assert_eq!((third.id(), third.attempt()), (&back, 1));
    third.ack().await.unwrap();
    assert!(
        queue
            .push_unique(&session, "one", &2)
            .await
            .unwrap()
            .is_some()
    );
    assert!(
        queue
            .push_unique(&session, "one", &3)
            .await
            .unwrap()
            .is_none()
    );
    next(&consumer).await.ack().await.unwrap();
    assert!(
        queue
            .push_unique(&session, "one", &3)
            .await
            .unwrap()
            .is_some()
    );
    let status = queue.status().await.unwrap();
    assert_eq!((status.items, status.delayed, status.dead), (1, 0, 0));
}

/// Several who push find room as it comes, and at no time are there more items than that.
pub async fn limits_hold(client: &Client) {
    const LIMIT: u32 = 3;
    const EACH: u32 = 20;
    let session = session(client).await;
    let queue = client.queue::<u32>("narrow").bounded(LIMIT);
    let consumer = queue.consumer(&session).await.unwrap();
    let pushing: Vec<_> = (0..3)
        .map(|n| {
            let (queue, session) = (
                client.queue::<u32>("narrow").bounded(LIMIT),
                session.clone(),
            );
            tokio::spawn(async move {
                let items: Vec<u32> = (0..EACH).map(|k| 100 * n + k).collect();
                queue.push_all(&session, &items).await.unwrap();
            })
        })
        .collect();
    until("it to be full", async || {
        queue.status().await.unwrap().items == u64::from(LIMIT)
    })
    .await;
    assert_eq!(queue.try_push(&session, &999).await.unwrap(), None);
    let mut taken = Vec::new();
    for _ in 0..3 * EACH {
        let delivery = next(&consumer).await;
        let status = queue.status().await.unwrap();
        assert!(status.items <= u64::from(LIMIT), "{status:?}");
        taken.push(*delivery.value());
        delivery.ack().await.unwrap();
    }
    for task in pushing {
        task.await.unwrap();
    }
    for n in 0..3 {
        let of_one: Vec<u32> = taken.iter().copied().filter(|v| v / 100 == n).collect();
        assert!(
            of_one.is_sorted() && of_one.len() == EACH as usize,
            "{of_one:?}"
        );
    }
    let other = client.queue::<u32>("narrow").push(&session, &0).await;
    assert!(matches!(other, Err(Error::Mismatch { .. })), "{other:?}");
}

/// What is more urgent comes first, and is waited for in all lanes.
pub async fn urgent_items_come_first(client: &Client) {
    let session = session(client).await;
    let queue = client.priority_queue::<u32>("urgent", 3).await.unwrap();
    for lane in [2, 1, 0] {
        let value = 10 * u32::try_from(lane).unwrap();
        let lane = queue.lane(lane).unwrap();
        lane.push(&session, &value).await.unwrap();
    }
    let consumer = queue.consumer(&session).await.unwrap();
    for expected in [0, 10, 20] {
        let delivery = consumer.try_pop().await.unwrap().expect("it is there");
        assert_eq!(*delivery.value(), expected);
        delivery.ack().await.unwrap();
    }
    let last = queue.lane(2).unwrap();
    let (delivery, pushed) = tokio::join!(soon("an item", consumer.pop()), async {
        tokio::task::yield_now().await;
        last.push(&session, &7).await
    });
    pushed.unwrap();
    let delivery = delivery.unwrap();
    assert_eq!(*delivery.value(), 7);
    delivery.ack().await.unwrap();
}
