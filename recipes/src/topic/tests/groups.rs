use super::*;

#[tokio::test(start_paused = true)]
async fn a_group_goes_on_where_it_was() {
    let place = Place::new().await;
    let topic = place.topic();
    place.publish(0..10).await;
    let mut first = topic.group(&place.session, "g").await.unwrap();
    for value in 0..6 {
        let message = taken(&mut first).await;
        assert_eq!(message.value, value);
        if value < 4 {
            first.commit(&message).await.unwrap();
        }
    }
    drop(first);
    let session = place.client.session().await.unwrap();
    let mut second = topic.group(&session, "g").await.unwrap();
    for value in 4..10 {
        let message = taken(&mut second).await;
        assert_eq!(
            (message.value, message.offset),
            (value, Some(u64::from(value)))
        );
        second.commit(&message).await.unwrap();
    }
    let status = topic.status().await.unwrap();
    let group = &status.groups["g"];
    assert_eq!((group.members, group.partitions[0].lag), (1, Some(0)));
    // Others have their own way.
    let other = topic.group(&session, "h").start(Start::Latest);
    let other = other.await.unwrap();
    place.publish(10..12).await;
    let status = topic.status().await.unwrap();
    let lags = ["g", "h"].map(|name| status.groups[name].partitions[0].lag);
    assert_eq!(lags, [Some(2), Some(2)]);
    second.leave().await.unwrap();
    other.leave().await.unwrap();
    let left = place.store.keys("quorate/topic/t/share/");
    assert_eq!(left, [""; 0]);
    assert!(topic.forget_group("g").await.unwrap());
    assert!(!topic.forget_group("g").await.unwrap());
    assert!(!topic.status().await.unwrap().groups.contains_key("g"));
}

#[tokio::test(start_paused = true)]
async fn who_lost_a_partition_commits_nothing() {
    let place = Place::new().await;
    let topic = place.topic();
    place.publish(0..4).await;
    let dying = place.client.session().await.unwrap();
    let mut first = topic.group(&dying, "g").await.unwrap();
    let message = taken(&mut first).await;
    // Its lock is deleted: somebody else has the partition, and goes on.
    let lock = place.store.keys("quorate/topic/t/share/g/0/");
    place.client.delete(lock[0].as_str()).await.unwrap();
    let mut second = topic.group(&place.session, "g").await.unwrap();
    let again = taken(&mut second).await;
    assert_eq!(again.value, message.value);
    let put = |by: &str| place.client.txn().put("effect", by);
    let zombie = first.commit_with(&message, put("the zombie")).await;
    assert!(matches!(zombie, Err(TxnError::Fenced { .. })), "{zombie:?}");
    assert!(second.commit_with(&again, put("the owner")).await.unwrap());
    assert!(!second.commit_with(&again, put("twice")).await.unwrap());
    let effect = place.client.get("effect").await.unwrap().unwrap();
    assert_eq!((&effect.value[..], effect.version), (&b"the owner"[..], 1));
    // The first one comes to own it again when the second has gone; what it was given before says nothing then.
    let second_message = taken(&mut second).await;
    drop(second);
    let mine = taken(&mut first).await;
    assert_eq!(mine.value, second_message.value);
    assert!(!first.commit_with(&message, put("late")).await.unwrap());
    let next = Message {
        position: place.publish(4..5).await.remove(0),
        ..mine.clone()
    };
    let not_given = first.commit(&next).await;
    assert!(
        matches!(not_given, Err(Error::Fenced { .. })),
        "{not_given:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn a_conflict_leaves_the_cursor() {
    let place = Place::new().await;
    let topic = place.topic();
    place.publish(0..2).await;
    let mut consumer = topic.group(&place.session, "g").await.unwrap();
    let message = taken(&mut consumer).await;
    let txn = || place.client.txn().put("effect", "x");
    let refused = txn().when(Compare::present("gate"));
    let refused = refused.otherwise(ops::get("gate"));
    match consumer.commit_with(&message, refused).await {
        Err(TxnError::Conflict { responses, .. }) => assert_eq!(responses.len(), 1),
        other => panic!("{other:?}"),
    }
    assert_eq!(place.client.get("effect").await.unwrap(), None);
    assert!(consumer.commit_with(&message, txn()).await.unwrap());
    let message = taken(&mut consumer).await;
    topic.forget_group("g").await.unwrap();
    let removed = consumer.commit(&message).await;
    assert!(matches!(removed, Err(Error::Removed(_))), "{removed:?}");
}

/// A commit that was given up goes on; the cursor never goes back for it.
#[tokio::test(start_paused = true)]
async fn a_commit_that_was_given_up_is_found_out() {
    use futures::FutureExt;
    let place = Place::new().await;
    place.publish(0..3).await;
    let mut consumer = place.topic().group(&place.session, "g").await.unwrap();
    let first = taken(&mut consumer).await;
    let second = taken(&mut consumer).await;
    let txn = || place.client.txn().put("effect", "x");
    let held = place.faulty.hold(1, Calls::Txn, Stage::OnItsWay);
    {
        let commit = consumer.commit_with(&second, txn());
        let mut commit = std::pin::pin!(commit);
        tokio::select! {
            biased;
            () = held.reached() => {}
            done = &mut commit => panic!("{done:?}"),
        }
        assert!(commit.as_mut().now_or_never().is_none());
    }
    held.release();
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert!(!consumer.commit_with(&first, txn()).await.unwrap());
    assert!(!consumer.commit_with(&second, txn()).await.unwrap());
    let effect = place.client.get("effect").await.unwrap().unwrap();
    assert_eq!(effect.version, 1);
}

#[tokio::test(start_paused = true)]
async fn done_is_said_without_a_word() {
    let place = Place::new().await;
    let topic = place.topic();
    place.publish(0..10).await;
    let minute = Duration::from_secs(60);
    let committed = async || topic.status().await.unwrap().groups["g"].partitions[0].committed;
    let group = topic.group(&place.session, "g").auto_commit(4, minute);
    let mut consumer = group.await.unwrap();
    for value in 0..5 {
        assert_eq!(taken(&mut consumer).await.value, value);
    }
    assert_eq!(committed().await, Some(4), "the fifth is in hand");
    for value in 5..7 {
        assert_eq!(taken(&mut consumer).await.value, value);
    }
    assert_eq!(committed().await, Some(4));
    for value in 7..10 {
        assert_eq!(taken(&mut consumer).await.value, value);
    }
    assert_eq!(committed().await, Some(8));
    let waiting = tokio::time::timeout(minute / 2, consumer.next()).await;
    assert!(waiting.is_err());
    assert_eq!(committed().await, Some(8), "it is not time yet");
    let waiting = tokio::time::timeout(minute, consumer.next()).await;
    assert!(waiting.is_err());
    assert_eq!(committed().await, Some(10));
    place.publish(10..11).await;
    taken(&mut consumer).await;
    consumer.leave().await.unwrap();
    assert_eq!(committed().await, Some(11));
}

#[tokio::test(start_paused = true)]
async fn members_share_the_partitions() {
    let place = Place::new().await;
    let topic = place.topic().partitions(4);
    let auto = |session: &Session| topic.group(session, "g").auto_commit(1, TICK);
    let mut one = auto(&place.session).await.unwrap();
    for value in 0..40_u32 {
        topic.publish(&place.session, &value).await.unwrap();
    }
    let mut seen = Vec::new();
    for _ in 0..20 {
        seen.push(taken(&mut one).await.value);
    }
    assert_eq!(one.owned(), [0, 1, 2, 3]);
    let session = place.client.session().await.unwrap();
    let mut two = auto(&session).await.unwrap();
    let mut by_two = 0;
    while seen.len() < 40 {
        let message = tokio::select! {
            biased;
            message = one.next() => message,
            message = two.next() => { by_two += 1; message }
        };
        seen.push(message.unwrap().value);
    }
    // Nothing more comes: all was committed by whoever had it.
    let more = tokio::time::timeout(Duration::from_secs(60), async {
        tokio::select! { one = one.next() => one, two = two.next() => two }
    });
    assert!(more.await.is_err());
    seen.sort_unstable();
    assert_eq!(seen, (0..40).collect::<Vec<_>>());
    assert!(by_two > 0);
    assert_eq!((one.owned().len(), two.owned().len()), (2, 2));
}
