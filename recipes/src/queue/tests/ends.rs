use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::*;
use crate::kit::Append;
use crate::store::faulty::Outage;

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

/// Too wide for the client, or refused by the store itself.
#[tokio::test(start_paused = true)]
async fn a_transaction_that_is_not_taken_leaves_the_item_in_hand() {
    let place = Place::new().await;
    let (queue, client) = (place.queue(), &place.client);
    let consumer = queue.consumer(&place.session).await.unwrap();
    queue.push(&place.session, &1).await.unwrap();
    let mut delivery = soon(consumer.pop()).await.unwrap();
    let most = client.store().capabilities().max_txn_ops;
    let wide = (0..most).fold(client.txn(), |txn, n| txn.put(format!("k{n}"), ""));
    let twice = client.txn().put("k", "").put("k", "");
    for txn in [wide, twice] {
        let refused = delivery.ack_with(txn).await;
        let Err(AckError::Refused {
            delivery: again, ..
        }) = refused
        else {
            panic!("{refused:?}");
        };
        delivery = *again;
    }
    no_news(delivery.lost()).await;
    no_news(consumer.pop()).await;
    delivery.ack().await.unwrap();
    assert_eq!(queue.status().await.unwrap().items, 0);
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
async fn only_the_last_dead_letters_are_kept() {
    let place = Place::new().await;
    let queue = place.queue().keep_dead(2).max_attempts(1);
    let consumer = queue.consumer(&place.session).await.unwrap();
    let kept = async || -> Vec<u32> {
        let dead = queue.dead_letters(9).await.unwrap();
        dead.into_iter()
            .map(|letter| letter.value.unwrap())
            .collect()
    };
    for n in 0..4 {
        queue.push(&place.session, &n).await.unwrap();
        let delivery = soon(consumer.pop()).await.unwrap();
        delivery
            .nack(Nack::Dead("no use".to_owned()))
            .await
            .unwrap();
    }
    assert_eq!(kept().await, [2, 3]);
    // One that was taken too often.
    queue.push(&place.session, &4).await.unwrap();
    drop(soon(consumer.pop()).await.unwrap());
    no_news(consumer.pop()).await;
    assert_eq!(kept().await, [3, 4]);
    // More than are removed at a time.
    let all = place.queue();
    let dying = all.consumer(&place.session).await.unwrap();
    all.push_all(&place.session, &(5..205).collect::<Vec<_>>())
        .await
        .unwrap();
    for _ in 5..205 {
        let delivery = soon(dying.pop()).await.unwrap();
        delivery
            .nack(Nack::Dead("no use".to_owned()))
            .await
            .unwrap();
    }
    assert_eq!(queue.status().await.unwrap().dead, 202);
    queue.push(&place.session, &205).await.unwrap();
    drop(dying);
    let delivery = soon(consumer.pop()).await.unwrap();
    delivery
        .nack(Nack::Dead("no use".to_owned()))
        .await
        .unwrap();
    let kept = kept().await;
    assert_eq!((kept.len(), kept[1]), (2, 205), "{kept:?}");
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

/// Set when it is dropped.
struct Dropped(Arc<AtomicBool>);

impl Drop for Dropped {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[tokio::test(start_paused = true)]
async fn work_ends_with_its_delivery() {
    let place = Place::new().await;
    let queue = place.queue();
    let session = place.client.session().await.unwrap();
    let consumer = queue.consumer(&session).await.unwrap();
    let dropped: Vec<Arc<AtomicBool>> = (0..3).map(|_| Arc::default()).collect();
    let is_dropped = |n: usize| dropped[n].load(Ordering::Relaxed);
    let mut ids = Vec::new();
    for n in 0..3 {
        ids.push(queue.push(&place.session, &n).await.unwrap());
    }
    let work = consumer.for_each_concurrent(3, async |delivery: Delivery<u32>| {
        let n = *delivery.value();
        let _dropped = Dropped(Arc::clone(&dropped[n as usize]));
        if n == 2 {
            delivery.ack().await.unwrap();
        }
        std::future::pending().await
    });
    let meanwhile = async {
        tokio::time::sleep(Duration::from_secs(10)).await;
        assert!(queue.remove(&ids[0]).await.unwrap());
        tokio::time::sleep(Duration::from_secs(3)).await;
        assert_eq!([0, 1, 2].map(is_dropped), [true, false, false]);
        assert!(place.store.expire(session.lease()));
        tokio::time::sleep(Duration::from_secs(60)).await;
        // What it had ended is its own.
        assert_eq!([0, 1, 2].map(is_dropped), [true, true, false]);
    };
    tokio::select! {
        biased;
        ended = work => panic!("{ended:?}"),
        () = meanwhile => {}
    }
}

#[tokio::test(start_paused = true)]
async fn taking_ends_although_work_hangs_whose_items_are_lost() {
    let place = Place::new().await;
    let queue = place.queue();
    let session = place.client.session().await.unwrap();
    let consumer = queue.consumer(&session).await.unwrap();
    queue.push(&place.session, &1).await.unwrap();
    let work = consumer.for_each_concurrent(2, async |delivery: Delivery<u32>| {
        delivery.lost().await;
        std::future::pending().await
    });
    let expiry = async {
        tokio::time::sleep(Duration::from_secs(10)).await;
        assert!(place.store.expire(session.lease()));
    };
    let (ended, ()) = tokio::join!(soon(work), expiry);
    assert!(matches!(ended, Err(Error::SessionLost(_))), "{ended:?}");
}

#[tokio::test(start_paused = true)]
async fn a_scope_ends_with_the_claim() {
    let place = Place::new().await;
    let queue = place.queue();
    let consumer = queue.consumer(&place.session).await.unwrap();
    let id = queue.push(&place.session, &1).await.unwrap();
    let delivery = soon(consumer.pop()).await.unwrap();
    assert_eq!(delivery.scope(async { 7 }).await.unwrap(), 7);
    let removal = async {
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert!(queue.remove(&id).await.unwrap());
    };
    let work = delivery.scope(std::future::pending::<()>());
    let (ended, ()) = tokio::join!(soon(work), removal);
    assert!(matches!(ended, Err(Error::Removed(_))), "{ended:?}");
}

#[tokio::test(start_paused = true)]
async fn who_has_an_item_too_long_gives_it_up() {
    let place = Place::new().await;
    let limit = Duration::from_secs(5);
    let queue = place.queue().strict().max_work(limit);
    let consumer = queue.consumer(&place.session).await.unwrap();
    let other = queue.consumer(&place.session).await.unwrap();
    queue.push_all(&place.session, &[1, 2]).await.unwrap();
    let stuck = soon(consumer.pop()).await.unwrap();
    let began = place.client.now();
    let (lost, again) = tokio::join!(soon(stuck.lost()), soon(other.pop()));
    assert_eq!(lost, LostReason::Overdue);
    let again = again.unwrap();
    assert_eq!((*again.value(), again.attempt()), (1, 2));
    let passed = place.client.now() - began;
    assert!(limit <= passed && passed < 2 * limit, "{passed:?}");
    let ended = stuck.scope(std::future::pending::<()>()).await;
    assert!(matches!(ended, Err(Error::Removed(_))), "{ended:?}");
    let ended = stuck.ack().await;
    assert!(matches!(ended, Err(AckError::Fenced { .. })), "{ended:?}");
    again.ack().await.unwrap();
    // What ends in time is not given up, nor what is about to end.
    let last = soon(other.pop()).await.unwrap();
    let held = place.faulty.hold(1, Calls::Txn, Stage::Answered);
    let mut ending = Box::pin(last.ack());
    tokio::select! {
        biased;
        ended = &mut ending => panic!("{ended:?}"),
        () = held.reached() => {}
    }
    tokio::time::sleep(limit).await;
    held.release();
    soon(ending).await.unwrap();
    assert_eq!(queue.status().await.unwrap().items, 0);
}

/// It is told although the store cannot be.
#[tokio::test(start_paused = true)]
async fn who_has_an_item_too_long_is_told_by_its_own_clock() {
    let place = Place::new().await;
    let queue = place.queue().max_work(Duration::from_secs(2));
    let consumer = queue.consumer(&place.session).await.unwrap();
    queue.push(&place.session, &1).await.unwrap();
    let stuck = soon(consumer.pop()).await.unwrap();
    place.faulty.disconnect(Outage::Refused);
    assert_eq!(soon(stuck.lost()).await, LostReason::Overdue);
    place.faulty.reconnect();
    drop(stuck);
    let again = soon(consumer.pop()).await.unwrap();
    assert_eq!(again.attempt(), 2);
}

/// An item that hangs all who take it ends among the dead letters, and the queue goes on.
#[tokio::test(start_paused = true)]
async fn work_that_hangs_does_not_stop_a_strict_queue() {
    let place = Place::new().await;
    let queue = place.queue().strict().max_attempts(2);
    let queue = queue.max_work(Duration::from_secs(5));
    let consumer = queue.consumer(&place.session).await.unwrap();
    queue.push_all(&place.session, &[1, 2, 3]).await.unwrap();
    let done = Mutex::new(Vec::new());
    let work = consumer.for_each_concurrent(1, async |delivery: Delivery<u32>| {
        if *delivery.value() == 1 {
            std::future::pending().await
        }
        done.lock().unwrap().push(*delivery.value());
        delivery.ack().await.unwrap();
    });
    no_news(work).await;
    assert_eq!(done.into_inner().unwrap(), [2, 3]);
    let dead = queue.dead_letters(9).await.unwrap();
    assert_eq!(
        (dead.len(), dead[0].value.clone(), dead[0].attempts),
        (1, Ok(1), 2)
    );
}
