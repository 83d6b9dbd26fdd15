use super::*;
use crate::keys::Key;
use crate::kit::{Contender, Line};
use crate::lock::Limit;

/// Items and those that wait to enter, as the queue counts them.
async fn count(queue: &Queue<u32>) -> u64 {
    let status = queue.status().await.unwrap();
    status.items + status.delayed
}

#[tokio::test(start_paused = true)]
async fn a_full_queue_takes_an_item_when_one_has_gone() {
    let place = Place::new().await;
    let queue = place.queue().bounded(3);
    let consumer = queue.consumer(&place.session).await.unwrap();
    queue.push(&place.session, &0).await.unwrap();
    queue
        .push_after(&place.session, Duration::from_secs(3_600), &9)
        .await
        .unwrap();
    assert!(queue.try_push(&place.session, &1).await.unwrap().is_some());
    assert_eq!(queue.try_push(&place.session, &2).await.unwrap(), None);
    let mut waiting = Box::pin(queue.push(&place.session, &2));
    no_news(&mut waiting).await;
    let status = queue.status().await.unwrap();
    assert_eq!((status.limit, status.waiting), (Some(3), 1));
    // Having it is not yet room.
    let delivery = soon(consumer.pop()).await.unwrap();
    no_news(&mut waiting).await;
    delivery.ack().await.unwrap();
    soon(waiting).await.unwrap();
    assert_eq!(count(&queue).await, 3);
    assert_eq!(queue.try_push(&place.session, &3).await.unwrap(), None);
}

#[tokio::test(start_paused = true)]
async fn who_waits_for_room_gets_it_in_order() {
    let place = Place::new().await;
    let queue = place.queue().bounded(1);
    let other = place.client.session().await.unwrap();
    queue.push(&place.session, &0).await.unwrap();
    // Clones share what they know; a handle of its own knows nothing.
    let (one, two) = (queue.clone(), place.queue().bounded(1));
    let mut first = Box::pin(one.push(&place.session, &1));
    no_news(&mut first).await;
    let mut second = Box::pin(two.push(&other, &2));
    no_news(&mut second).await;
    let consumer = queue.consumer(&place.session).await.unwrap();
    for expected in 0..3 {
        let delivery = soon(consumer.pop()).await.unwrap();
        assert_eq!(*delivery.value(), expected);
        delivery.ack().await.unwrap();
        match expected {
            0 => drop(soon(&mut first).await.unwrap()),
            1 => drop(soon(&mut second).await.unwrap()),
            _ => {}
        }
    }
    // The place of one who gives up is free.
    queue.push(&place.session, &3).await.unwrap();
    let mut given_up = Box::pin(queue.push(&place.session, &4));
    no_news(&mut given_up).await;
    drop(given_up);
    let mut next = Box::pin(queue.push(&other, &5));
    no_news(&mut next).await;
    soon(consumer.pop()).await.unwrap().ack().await.unwrap();
    soon(next).await.unwrap();
    assert_eq!(*soon(consumer.pop()).await.unwrap().value(), 5);
}

#[tokio::test(start_paused = true)]
async fn who_comes_when_there_is_room_stands_behind_those_who_wait() {
    let place = Place::new().await;
    let queue = place.queue().bounded(1);
    let id = queue.push(&place.session, &0).await.unwrap();
    let line = Line::of(&queue.layout.pushers());
    let first = Contender::enter(&place.session, line, "").await.unwrap();
    assert!(queue.remove(&id).await.unwrap());
    assert_eq!(queue.try_push(&place.session, &1).await.unwrap(), None);
    let mut waiting = Box::pin(queue.push(&place.session, &1));
    no_news(&mut waiting).await;
    first.leave().await.unwrap();
    soon(waiting).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn many_who_push_at_once_never_go_over_the_limit() {
    let place = Place::new().await;
    let queue = place.queue().bounded(5).with_segment_items(4);
    let consumer = queue.consumer(&place.session).await.unwrap();
    let handles: Vec<_> = (0..4).map(|_| place.queue().bounded(5)).collect();
    let (session, order) = (&place.session, &queue);
    let pushes = handles.iter().enumerate().map(|(n, handle)| async move {
        let n = u32::try_from(n).unwrap();
        let values: Vec<u32> = (0..20).map(|k| 100 * n + k).collect();
        handle.push_all(session, &values[..15]).await.unwrap();
        for value in &values[15..] {
            handle.push(session, value).await.unwrap();
        }
    });
    let takes = async {
        let mut taken = Vec::new();
        while taken.len() < 80 {
            let delivery = consumer.pop().await.unwrap();
            assert!(count(order).await <= 5);
            taken.push(*delivery.value());
            delivery.ack().await.unwrap();
        }
        taken
    };
    let (_, taken) = soon(async { tokio::join!(join_all(pushes), takes) }).await;
    for n in 0..4 {
        let of_one: Vec<u32> = taken.iter().copied().filter(|v| v / 100 == n).collect();
        assert!(of_one.is_sorted() && of_one.len() == 20, "{of_one:?}");
    }
    // At every revision, not only when somebody looked.
    let mut most = 0;
    for revision in 1..=place.store.revision().0 {
        let mut at = ops::range(queue.layout.log.range(0, None));
        at.revision = revision;
        most = most.max(place.client.store().range(at).await.unwrap().count);
    }
    assert_eq!(most, 5);
}

#[tokio::test(start_paused = true)]
async fn an_item_put_back_or_put_off_needs_room_once() {
    let place = Place::new().await;
    let queue = place.queue().bounded(1);
    let consumer = queue.consumer(&place.session).await.unwrap();
    queue.push(&place.session, &0).await.unwrap();
    let delivery = soon(consumer.pop()).await.unwrap();
    let after = Nack::After(Duration::from_secs(3_600));
    delivery.nack(after).await.unwrap();
    assert_eq!(count(&queue).await, 1);
    assert_eq!(queue.try_push(&place.session, &1).await.unwrap(), None);
    tokio::time::sleep(Duration::from_secs(3_601)).await;
    let delivery = soon(consumer.pop()).await.unwrap();
    delivery.nack(Nack::Dead("no".to_owned())).await.unwrap();
    // A dead letter takes no room; to come back it needs some.
    let id = queue.push(&place.session, &1).await.unwrap();
    let letter = queue.dead_letters(10).await.unwrap().remove(0);
    let mut back = Box::pin(queue.redrive(&place.session, &letter.id));
    no_news(&mut back).await;
    assert!(queue.remove(&id).await.unwrap());
    assert!(soon(back).await.unwrap().is_some());
    assert_eq!(*soon(consumer.pop()).await.unwrap().value(), 0);
    // A name that is taken is told also in a full queue's turn.
    let unique = place.client.queue::<u32>("unique").bounded(2);
    let first = unique.push_unique(&place.session, "a", &0).await.unwrap();
    assert!(first.is_some());
    let again = unique.push_unique(&place.session, "a", &0).await.unwrap();
    assert_eq!(again, None);
}

#[tokio::test(start_paused = true)]
async fn all_who_push_agree_on_the_limit() {
    let place = Place::new().await;
    let mut queue = place.queue().bounded(2);
    queue.push(&place.session, &0).await.unwrap();
    let (unlimited, other) = (place.queue(), place.queue().bounded(3));
    let refused = [
        unlimited.push(&place.session, &1).await.map(drop),
        unlimited.push_at_least_once(&1).await.map(drop),
        unlimited
            .push_after(&place.session, Duration::ZERO, &1)
            .await
            .map(drop),
        other.push(&place.session, &1).await.map(drop),
    ];
    for refused in refused {
        assert!(
            matches!(refused, Err(Error::Mismatch { .. })),
            "{refused:?}"
        );
    }
    let refused = queue.push_at_least_once(&1).await;
    assert!(matches!(refused, Err(Error::Invalid(_))), "{refused:?}");
    let any = place.queue().bounded(Limit::Initially(9));
    assert!(any.try_push(&place.session, &1).await.unwrap().is_some());
    assert_eq!(any.try_push(&place.session, &2).await.unwrap(), None);
    // Who waits learns of a larger limit.
    let mut waiting = Box::pin(any.push(&place.session, &2));
    no_news(&mut waiting).await;
    queue.resize(3).await.unwrap();
    soon(waiting).await.unwrap();
    assert_eq!(queue.try_push(&place.session, &3).await.unwrap(), None);
    queue.resize(1).await.unwrap();
    assert_eq!(count(&queue).await, 3, "nothing is taken away");
    assert_eq!(queue.try_push(&place.session, &3).await.unwrap(), None);
}

#[tokio::test(start_paused = true)]
async fn lost_answers_push_once_and_leave_no_wrong_count() {
    let place = Place::new().await;
    let queue = place.queue().bounded(2);
    for plan in [vec![Fault::Late], vec![Fault::Unanswered]] {
        place.faulty.plan("quorate/lane/", plan);
        let id = soon(queue.push(&place.session, &0)).await.unwrap();
        assert!(queue.try_push(&place.session, &1).await.unwrap().is_some());
        assert_eq!(queue.try_push(&place.session, &2).await.unwrap(), None);
        assert!(queue.remove(&id).await.unwrap());
        place.faulty.deliver().await;
        assert_eq!(count(&queue).await, 1);
        let (_, kvs) = place
            .client
            .list(queue.layout.log.range(0, None))
            .await
            .unwrap();
        place
            .client
            .delete(Key::from(kvs[0].key.clone()))
            .await
            .unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn alone_a_push_is_one_transaction() {
    let place = Place::new().await;
    let queue = place.queue().bounded(1_000);
    queue.push(&place.session, &0).await.unwrap();
    let before = place.counting.counts();
    for n in 0..100 {
        queue.push(&place.session, &n).await.unwrap();
    }
    let used = place.counting.counts() - before;
    assert_eq!((used.txn, used.range), (100, 0));
}

#[tokio::test(start_paused = true)]
async fn who_waits_learns_that_the_session_is_lost() {
    let place = Place::new().await;
    let queue = place.queue().bounded(1);
    queue.push(&place.session, &0).await.unwrap();
    let mut waiting = Box::pin(queue.push(&place.session, &1));
    no_news(&mut waiting).await;
    assert!(place.store.expire(place.session.lease()));
    let lost = soon(waiting).await;
    assert!(
        matches!(lost, Err(Error::SessionLost(LostReason::LeaseGone))),
        "{lost:?}"
    );
    assert_eq!(count(&queue).await, 1);
}
