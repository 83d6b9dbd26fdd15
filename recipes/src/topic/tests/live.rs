use super::*;

#[tokio::test(start_paused = true)]
async fn live_messages_go_to_those_who_are_there() {
    let place = Place::new().await;
    let topic = place.client.live_topic::<u32>("t");
    topic.publish(&place.session, &0).await.unwrap();
    let mut messages = topic.subscribe().await.unwrap();
    let before = place.counting.counts();
    for value in 1..=5 {
        topic.publish(&place.session, &value).await.unwrap();
    }
    assert_eq!((place.counting.counts() - before).txn, 5);
    for value in 1..=5_u32 {
        let message = soon(messages.next()).await.unwrap();
        assert_eq!(
            (message.value, message.offset),
            (value, Some(u64::from(value)))
        );
    }
    assert_eq!(place.store.keys("quorate/live-topic/").len(), 1);
    // Cut off, and back before the history is gone.
    place.faulty.cut_watches();
    topic.publish(&place.session, &6).await.unwrap();
    topic.publish(&place.session, &7).await.unwrap();
    assert_eq!(soon(messages.next()).await.unwrap().value, 6);
    assert_eq!(soon(messages.next()).await.unwrap().value, 7);
    // Cut off, and the history is gone.
    for value in 8..12 {
        topic.publish(&place.session, &value).await.unwrap();
    }
    place.store.compact(place.store.revision()).unwrap();
    place.store.end_watches();
    let Err(ReadError::Lagged(lagged)) = soon(messages.next()).await else {
        panic!("it missed nothing");
    };
    assert_eq!(lagged.skipped, Some(3));
    assert_eq!(soon(messages.next()).await.unwrap().value, 11);
    let text = place.client.live_topic::<String>("t");
    text.publish(&place.session, &"?".to_owned()).await.unwrap();
    assert!(matches!(
        soon(messages.next()).await,
        Err(ReadError::Unreadable(_))
    ));
}

/// Each time that its watch is opened it looks at the key; when that fails, the watch is opened again and tells
/// everything, for the history is still there.
#[tokio::test(start_paused = true)]
async fn a_live_listener_that_cannot_look_misses_nothing() {
    let place = Place::new().await;
    let topic = place.client.live_topic::<u32>("t");
    let mut messages = topic.subscribe().await.unwrap();
    topic.publish(&place.session, &0).await.unwrap();
    assert_eq!(soon(messages.next()).await.unwrap().value, 0);
    // The first one opens the watch.
    let look = place.faulty.hold(2, Calls::Read, Stage::AppliedUnanswered);
    place.faulty.cut_watches();
    let publish = async {
        look.reached().await;
        for value in 1..=3 {
            topic.publish(&place.session, &value).await.unwrap();
        }
        look.release();
    };
    let (next, ()) = tokio::join!(soon(messages.next()), publish);
    assert_eq!(next.unwrap().value, 1);
    assert_eq!(soon(messages.next()).await.unwrap().value, 2);
    assert_eq!(soon(messages.next()).await.unwrap().value, 3);
}

/// Whether it is found before or after its revision has come to where it was.
#[tokio::test(start_paused = true)]
async fn a_live_listener_is_told_of_a_store_that_was_put_back() {
    for published in [1, 100] {
        let place = Place::new().await;
        let topic = place.client.live_topic::<u32>("t");
        place.client.put("other", "x").await.unwrap();
        let mut messages = topic.subscribe().await.unwrap();
        for value in 0..20 {
            topic.publish(&place.session, &value).await.unwrap();
            assert_eq!(soon(messages.next()).await.unwrap().value, value);
        }
        place.store.replace(MemStore::CLUSTER_ID);
        let session = place.client.session().await.unwrap();
        for value in 0..published {
            topic.publish(&session, &value).await.unwrap();
        }
        let Err(ReadError::Lagged(lagged)) = soon(messages.next()).await else {
            panic!("nothing was told");
        };
        assert_eq!(lagged.skipped, None);
        assert_eq!(soon(messages.next()).await.unwrap().value, published - 1);
        for value in published..published + 40 {
            topic.publish(&session, &value).await.unwrap();
            assert_eq!(soon(messages.next()).await.unwrap().value, value);
        }
    }
}
