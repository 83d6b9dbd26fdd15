use super::*;
use crate::kit::Append;

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
