use super::*;

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

/// Keys that are held up do not hold up others.
#[tokio::test(start_paused = true)]
async fn items_that_wait_stand_in_nobody_elses_way() {
    let place = Place::new().await;
    let queue = place.queue().ordered_by(|n| (n % 10).to_string());
    let queue = queue.with_segment_items(4);
    let consumer = queue.consumer(&place.session).await.unwrap();
    // Many behind the first of key 0, over many segments, and others last.
    let values: Vec<u32> = (0..600).map(|n| n * 10).chain(1..10).collect();
    for values in values.chunks(4) {
        queue.push_all(&place.session, values).await.unwrap();
    }
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

/// A pause is one, whoever waits for its end.
#[tokio::test(start_paused = true)]
async fn a_pause_ends_for_one_who_comes_later_too() {
    let place = Place::new().await;
    let queue = place.queue().strict();
    queue.push(&place.session, &1).await.unwrap();
    let minute = Duration::from_secs(60);
    let consumer = queue.consumer(&place.session).await.unwrap();
    let first = soon(consumer.pop()).await.unwrap();
    first.nack(Nack::After(60 * minute)).await.unwrap();
    drop(consumer);
    tokio::time::sleep(40 * minute).await;
    let consumer = queue.consumer(&place.session).await.unwrap();
    assert!(consumer.try_pop().await.unwrap().is_none());
    tokio::time::sleep(19 * minute).await;
    assert!(consumer.try_pop().await.unwrap().is_none());
    tokio::time::sleep(minute).await;
    let again = consumer.try_pop().await.unwrap();
    assert_eq!(again.expect("it is over").attempt(), 2);
}

/// One who takes in an exact order does not have to know all that there is.
#[tokio::test(start_paused = true)]
async fn the_front_of_an_exact_order_is_small() {
    for strict in [true, false] {
        let place = Place::new().await;
        let queue = match strict {
            true => place.queue().strict(),
            false => place.queue().ordered_by(|n| (n % 3).to_string()),
        };
        let queue = queue.with_segment_items(4);
        for values in (0..400).collect::<Vec<_>>().chunks(4) {
            queue.push_all(&place.session, values).await.unwrap();
        }
        let before = place.counting.counts().range;
        let consumer = queue.consumer(&place.session).await.unwrap();
        for expected in 0..8 {
            let delivery = soon(consumer.pop()).await.unwrap();
            assert_eq!(*delivery.value(), expected);
            delivery.ack().await.unwrap();
        }
        let made = place.counting.counts().range - before;
        assert!(made < 20, "{made} reads");
    }
}
