use super::*;

#[tokio::test(start_paused = true)]
async fn readers_begin_where_they_want_to() {
    let place = Place::new().await;
    let topic = place.topic();
    let mut latest = topic.subscribe(Start::Latest).await.unwrap();
    let positions = place.publish(0..10).await;
    let after = |index: usize| Start::After(positions[index].clone());
    let revision = positions[6].revision();
    for (start, first) in [
        (Start::Earliest, 0),
        (after(0), 1),
        (after(3), 4),
        (after(9), 10),
        (Start::AfterRevision(Revision(0)), 0),
        (Start::AfterRevision(revision), 7),
        (Start::AfterRevision(Revision(revision.0 - 1)), 6),
        (Start::AfterRevision(Revision(i64::MAX)), 10),
        (Start::Since(UNIX_EPOCH), 0),
        (Start::Latest, 10),
    ] {
        let mut messages = topic.subscribe(start.clone()).await.unwrap();
        let read = values(&mut messages, 10 - first).await;
        let expected: Vec<u32> = (0..10).skip(first).collect();
        assert_eq!(read, expected, "{start:?}");
        let late = topic.publish(&place.session, &99).await.unwrap();
        let message = soon(messages.next()).await.unwrap();
        assert_eq!((message.value, &message.position), (99, &late), "{start:?}");
        // All count from the first message there ever was.
        let before = topic.status().await.unwrap().partitions[0].published() - 1;
        assert_eq!(message.offset, Some(before), "{start:?}");
        // For the next one there are ten again.
        place.client.delete(place_of(&place, &late)).await.unwrap();
    }
    assert_eq!(values(&mut latest, 10).await, (0..10).collect::<Vec<_>>());
    let other: Position = "0/00000000000000ff/x@1".parse().unwrap();
    let invalid = topic.subscribe(Start::After(other)).await;
    assert!(matches!(invalid, Err(Error::Invalid(_))), "{invalid:?}");
}

#[tokio::test(start_paused = true)]
async fn a_late_reader_is_told_what_it_missed() {
    let place = Place::new().await;
    let topic = place.topic();
    let mut slow = topic.subscribe(Start::Earliest).await.unwrap();
    let positions = place.publish(0..21).await;
    // It holds a page.
    assert_eq!(values(&mut slow, 2).await, [0, 1]);
    place.remove(Retention::default().max_messages(6)).await;
    let status = topic.status().await.unwrap();
    let partition = &status.partitions[0];
    assert_eq!((partition.removed, partition.messages), (12, 9));
    assert_eq!((partition.first_segment, partition.head_segment), (3, 5));
    assert_eq!(values(&mut slow, 2).await, [2, 3], "it had them");
    let Err(ReadError::Lagged(lagged)) = soon(slow.next()).await else {
        panic!("it missed nothing");
    };
    assert_eq!(lagged.skipped, Some(8));
    assert!(lagged.from >= positions[3] && lagged.from < positions[4]);
    assert!(lagged.to > positions[11] && lagged.to < positions[12]);
    assert_eq!(values(&mut slow, 9).await, (12..21).collect::<Vec<_>>());
    // Who begins behind what is gone cannot know how much it was, nor whether there was any.
    let revision = positions[5].revision();
    for start in [
        Start::After(positions[5].clone()),
        Start::AfterRevision(revision),
        Start::After(positions[11].clone()),
    ] {
        let mut messages = topic.subscribe(start).await.unwrap();
        let Err(ReadError::Lagged(lagged)) = soon(messages.next()).await else {
            panic!("it missed nothing");
        };
        assert_eq!(lagged.skipped, None);
        assert_eq!(values(&mut messages, 9).await, (12..21).collect::<Vec<_>>());
    }
    // Who begins with what there is missed nothing.
    let mut messages = topic.subscribe(Start::Earliest).await.unwrap();
    let first = soon(messages.next()).await.expect("it missed nothing");
    assert_eq!((first.value, first.offset), (12, Some(12)));
}

/// Whenever it is between two calls of a reader that looks for its start.
#[tokio::test(start_paused = true)]
async fn what_is_removed_while_a_start_is_looked_for_is_told() {
    for calls in [Calls::Txn, Calls::Read] {
        let mut nth = 1;
        while is_told_when_removed_at(nth, calls).await {
            nth += 1;
        }
        assert!(nth > 2, "{calls:?}");
    }
}

/// Returns whether so many calls are made.
async fn is_told_when_removed_at(nth: usize, calls: Calls) -> bool {
    let mut any = false;
    for way in 0..2 {
        let place = Place::new().await;
        let positions = place.publish(0..21).await;
        let after = Start::AfterRevision(positions[5].revision());
        let (start, first) = [(after, 6), (Start::Since(UNIX_EPOCH), 0)][way].clone();
        let topic = place.topic();
        let held = place.faulty.hold(nth, calls, Stage::NotSent);
        let subscribe = topic.subscribe(start.clone());
        let mut subscribe = std::pin::pin!(subscribe);
        let messages = tokio::select! {
            biased;
            () = held.reached() => None,
            done = &mut subscribe => Some(done),
        };
        any |= messages.is_none();
        place.remove(Retention::default().max_messages(6)).await;
        held.release();
        let messages = match messages {
            Some(messages) => messages,
            None => soon(subscribe).await,
        };
        let told = format!("{start:?}, {calls:?} {nth}");
        let mut messages = messages.unwrap();
        match soon(messages.next()).await {
            Ok(message) => assert_eq!(message.value, first, "{told}"),
            Err(ReadError::Lagged(_)) => {
                assert_eq!(values(&mut messages, 1).await, [12], "{told}");
            }
            Err(error) => panic!("{told}: {error}"),
        }
    }
    any
}

#[tokio::test(start_paused = true)]
async fn a_start_is_found_without_reading_the_log() {
    let place = Place::new().await;
    let topic = place.topic().partitions(2);
    let mut positions = Vec::new();
    for value in 0..400 {
        let published = topic.publish_keyed(&place.session, "k", &value).await;
        positions.push(published.unwrap());
    }
    let (other, revision) = (1 - positions[5].partition(), positions[5].revision());
    let other: Position = format!("{other}/{:016x}/x@{revision}", 0).parse().unwrap();
    for start in [
        Start::AfterRevision(positions[5].revision()),
        Start::After(positions[5].clone()),
        Start::After(other),
    ] {
        let before = place.counting.counts();
        let mut messages = topic.subscribe(start.clone()).await.unwrap();
        let used = place.counting.counts() - before;
        assert!(used.calls() <= 15 && used.keys <= 50, "{start:?}: {used:?}");
        assert_eq!(values(&mut messages, 1).await, [6]);
    }
}

#[tokio::test(start_paused = true)]
async fn times_are_looked_up() {
    let clock = Arc::new(crate::clock::LateClock::default());
    let shared: Arc<dyn crate::clock::Clock> = Arc::clone(&clock) as _;
    let client = Client::builder(MemStore::new())
        .seed(1)
        .clock(shared)
        .build();
    let session = client.session().await.unwrap();
    let topic = client.topic::<u32>("t").with_segment_items(4);
    let mut times = Vec::new();
    for value in 0..19 {
        times.push(UNIX_EPOCH + Duration::from_millis(client.wall_millis()));
        topic.publish(&session, &value).await.unwrap();
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    let since = async |time| {
        let mut messages = topic.subscribe(Start::Since(time)).await.unwrap();
        soon(messages.next()).await.unwrap().value
    };
    for (value, time) in (0..19).zip(&times) {
        assert_eq!(since(*time).await, value);
        assert_eq!(since(*time - Duration::from_millis(500)).await, value);
    }
    let later = times[18] + Duration::from_secs(1);
    let mut messages = topic.subscribe(Start::Since(later)).await.unwrap();
    is_quiet(&mut messages).await;
}
