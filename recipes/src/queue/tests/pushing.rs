use super::*;

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
