use std::num::NonZeroU32;

use super::*;

async fn pushed(place: &Place, queue: &PriorityQueue<u32>, lane: usize, values: &[u32]) {
    let lane = queue.lane(lane).unwrap();
    lane.push_all(&place.session, values).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn lanes_before_are_emptied_first() {
    let place = Place::new().await;
    let queue = place.client.priority_queue("q", 3).await.unwrap();
    pushed(&place, &queue, 2, &[20, 21]).await;
    pushed(&place, &queue, 1, &[10]).await;
    pushed(&place, &queue, 0, &[0]).await;
    let consumer = queue.consumer(&place.session).await.unwrap();
    for expected in [0, 10, 20] {
        let delivery = consumer.try_pop().await.unwrap().expect("it is there");
        assert_eq!(*delivery.value(), expected);
        delivery.ack().await.unwrap();
    }
    pushed(&place, &queue, 1, &[11]).await;
    for expected in [11, 21] {
        let delivery = consumer.try_pop().await.unwrap().expect("it is there");
        assert_eq!(*delivery.value(), expected);
        delivery.ack().await.unwrap();
    }
    assert!(consumer.try_pop().await.unwrap().is_none());
    // Whichever lane it comes to, it is waited for.
    for lane in [2, 0, 1] {
        let mut waiting = Box::pin(consumer.pop());
        no_news(&mut waiting).await;
        pushed(&place, &queue, lane, &[99]).await;
        let delivery = soon(waiting).await.unwrap();
        let status = queue.status().await.unwrap();
        assert_eq!(status[lane].claimed, 1, "{status:?}");
        delivery.ack().await.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn the_last_lane_has_its_turn_if_it_is_to_have_one() {
    let place = Place::new().await;
    let queue = place.client.priority_queue("q", 2).await.unwrap();
    let queue = queue.other_way_every(NonZeroU32::new(3).unwrap());
    pushed(&place, &queue, 1, &[10, 11]).await;
    pushed(&place, &queue, 0, &[0, 1, 2, 3, 4]).await;
    let consumer = queue.consumer(&place.session).await.unwrap();
    let mut order = Vec::new();
    while let Some(delivery) = consumer.try_pop().await.unwrap() {
        order.push(*delivery.value());
        delivery.ack().await.unwrap();
    }
    assert_eq!(order, [0, 1, 10, 2, 3, 11, 4]);
}

#[tokio::test(start_paused = true)]
async fn a_lane_can_do_what_a_queue_can() {
    let place = Place::new().await;
    let queue = place.client.priority_queue("q", 2).await.unwrap();
    let queue: PriorityQueue<u32> = queue.each(|lane| lane.max_attempts(1).bounded(1));
    pushed(&place, &queue, 0, &[0]).await;
    pushed(&place, &queue, 1, &[1]).await;
    let last = queue.lane(1).unwrap();
    assert_eq!(last.try_push(&place.session, &2).await.unwrap(), None);
    let consumer = queue.consumer(&place.session).await.unwrap();
    let delivery = soon(consumer.pop()).await.unwrap();
    assert_eq!(delivery.attempt(), 1);
    delivery.nack(Nack::Now).await.unwrap();
    assert_eq!(*soon(consumer.pop()).await.unwrap().value(), 1);
    let dead = queue.lane(0).unwrap().dead_letters(2).await.unwrap();
    assert_eq!(dead[0].value, Ok(0));
    // A queue of the same name without lanes is another one.
    assert_eq!(place.queue().status().await.unwrap().items, 0);
}

#[tokio::test(start_paused = true)]
async fn all_agree_on_the_number_of_lanes() {
    let place = Place::new().await;
    let queue = place.client.priority_queue::<u32>("q", 2).await.unwrap();
    assert!(queue.lane(1).is_ok());
    assert!(matches!(queue.lane(2), Err(Error::Invalid(_))));
    place.client.priority_queue::<u32>("q", 2).await.unwrap();
    let other = place.client.priority_queue::<u32>("q", 3).await;
    assert!(matches!(other, Err(Error::Mismatch { .. })), "{other:?}");
    for lanes in [0, 17] {
        let refused = place.client.priority_queue::<u32>("r", lanes).await;
        assert!(matches!(refused, Err(Error::Invalid(_))), "{refused:?}");
    }
    assert_eq!(place.store.keys("quorate/queue/r/"), [""; 0]);
}

#[tokio::test(start_paused = true)]
async fn a_dropped_pop_leaves_all_lanes_as_they_were() {
    let place = Place::new().await;
    let queue = place.client.priority_queue("q", 2).await.unwrap();
    let consumer = queue.consumer(&place.session).await.unwrap();
    pushed(&place, &queue, 0, &[0]).await;
    pushed(&place, &queue, 1, &[1]).await;
    let held = place.faulty.hold(1, Calls::Txn, Stage::Answered);
    let mut pop = Box::pin(consumer.pop());
    tokio::select! {
        biased;
        _ = &mut pop => panic!("its answer is held back"),
        () = held.reached() => {}
    }
    drop(pop);
    held.release();
    // The one that was on its way comes back, perhaps after the other lane's.
    let both = [soon(consumer.pop()).await, soon(consumer.pop()).await];
    let mut both = both.map(|delivery| delivery.map(|it| (*it.value(), it.attempt())).unwrap());
    both.sort_unstable();
    assert_eq!(both, [(0, 1), (1, 1)]);
}

/// An item of the first lane comes first though it would be another consumer's, who is busy.
#[tokio::test(start_paused = true)]
async fn nobody_takes_from_a_later_lane_while_there_is_something_before() {
    let place = Place::new().await;
    let queue = place.client.priority_queue("q", 2).await.unwrap();
    let mut busy = Vec::new();
    for _ in 0..3 {
        busy.push(queue.consumer(&place.session).await.unwrap());
    }
    let consumer = queue.consumer(&place.session).await.unwrap();
    tokio::time::sleep(Duration::from_secs(1)).await;
    for round in 0..16 {
        pushed(&place, &queue, 1, &[100 + round]).await;
        pushed(&place, &queue, 0, &[round]).await;
        // Both are known, and fresh.
        tokio::time::sleep(Duration::from_millis(1)).await;
        let delivery = soon(consumer.pop()).await.unwrap();
        assert_eq!(*delivery.value(), round);
        delivery.ack().await.unwrap();
    }
    drop(busy);
}
