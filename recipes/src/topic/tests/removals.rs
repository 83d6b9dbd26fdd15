use super::*;

#[tokio::test(start_paused = true)]
async fn the_segment_that_is_appended_to_stays() {
    let place = Place::new().await;
    place.publish(0..10).await;
    place.remove(Retention::default().max_messages(0)).await;
    let status = place.topic().status().await.unwrap();
    assert_eq!(
        (status.partitions[0].removed, status.partitions[0].messages),
        (8, 2)
    );
    place.remove(Retention::default().max_segments(0)).await;
    assert_eq!(
        place.topic().status().await.unwrap(),
        status_at(&place, &status).await
    );
    place.publish(10..11).await;
    let mut messages = place.topic().subscribe(Start::Earliest).await.unwrap();
    assert_eq!(values(&mut messages, 3).await, [8, 9, 10]);
}

async fn status_at(place: &Place, status: &TopicStatus) -> TopicStatus {
    let revision = place.topic().status().await.unwrap().revision;
    TopicStatus {
        revision,
        ..status.clone()
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_old_is_removed_though_no_segment_is_full() {
    let clock = Arc::new(crate::clock::LateClock::default());
    let client = Client::builder(MemStore::new())
        .seed(1)
        .clock(clock)
        .build();
    let session = client.session().await.unwrap();
    let age = Duration::from_secs(60);
    let retention = Retention::default().max_age(age).look_every(TICK);
    let topic = client.topic::<u32>("t").retain(retention);
    let retainer = topic.retainer(&session).unwrap();
    topic.publish(&session, &0).await.unwrap();
    tokio::time::sleep(age / 2).await;
    topic.publish(&session, &1).await.unwrap();
    tokio::time::sleep(age / 2 + 5 * TICK).await;
    let messages = async || topic.status().await.unwrap().partitions[0].messages;
    assert_eq!(messages().await, 2, "the second one is young");
    tokio::time::sleep(age / 2).await;
    assert_eq!(messages().await, 0);
    let mut late = topic.subscribe(Start::Earliest).await.unwrap();
    topic.publish(&session, &2).await.unwrap();
    let message = soon(late.next()).await.unwrap();
    assert_eq!((message.value, message.offset), (2, Some(2)));
    drop(retainer);
}

#[tokio::test(start_paused = true)]
async fn what_no_group_has_done_is_kept() {
    let place = Place::new().await;
    let topic = place.topic();
    let consumed = || Retention::default().until_consumed();
    place.publish(0..12).await;
    place.remove(consumed()).await;
    let removed = async || topic.status().await.unwrap().partitions[0].removed;
    assert_eq!(removed().await, 0, "there is no group yet");
    let mut fast = topic.group(&place.session, "fast").await.unwrap();
    let mut slow = topic.group(&place.session, "slow").await.unwrap();
    let mut last = None;
    for _ in 0..9 {
        last = Some(taken(&mut fast).await);
    }
    fast.commit(&last.unwrap()).await.unwrap();
    place.remove(consumed().max_messages(1)).await;
    assert_eq!(removed().await, 0, "the slow one has done nothing");
    let mut last = None;
    for _ in 0..5 {
        last = Some(taken(&mut slow).await);
    }
    slow.commit(&last.unwrap()).await.unwrap();
    place.remove(consumed()).await;
    assert_eq!(removed().await, 4, "a whole segment");
    assert_eq!(taken(&mut slow).await.value, 5, "nothing was missed");
    topic.forget_group("slow").await.unwrap();
    place.remove(consumed()).await;
    assert_eq!(removed().await, 8);
}

#[tokio::test(start_paused = true)]
async fn one_removes_at_a_time_and_each_segment_once() {
    let place = Place::new().await;
    let retention = Retention::default().max_segments(1).look_every(TICK);
    let topic = place.topic().retain(retention);
    let sessions = [
        place.client.session().await.unwrap(),
        place.client.session().await.unwrap(),
    ];
    let [one, two] = [0, 1].map(|index| topic.retainer(&sessions[index]).unwrap());
    place.publish(0..30).await;
    tokio::time::sleep(10 * TICK).await;
    assert_eq!(place.store.keys("quorate/topic/t/retainer/").len(), 2);
    let status = topic.status().await.unwrap();
    assert_eq!(status.partitions[0].removed, 24);
    drop(one);
    place.publish(30..40).await;
    tokio::time::sleep(10 * TICK).await;
    let status = topic.status().await.unwrap();
    assert_eq!(
        (status.partitions[0].removed, status.partitions[0].messages),
        (36, 4)
    );
    drop(two);
    tokio::time::sleep(TICK).await;
    assert_eq!(place.store.keys("quorate/topic/t/retainer/"), [""; 0]);
    assert!(matches!(
        place.topic().retainer(&place.session),
        Err(Error::Invalid(_))
    ));
}

/// A removal whose answer got lost counts once.
#[tokio::test(start_paused = true)]
async fn a_late_removal_changes_nothing() {
    let place = Place::new().await;
    place.publish(0..14).await;
    let removals = "quorate/topic/t/removed";
    let faults = [Fault::Late, Fault::Unanswered];
    place.faulty.plan(removals, faults);
    place.remove(Retention::default().max_segments(1)).await;
    let kept = async || {
        let status = place.topic().status().await.unwrap();
        let partition = &status.partitions[0];
        (partition.removed, partition.messages)
    };
    assert_eq!(kept().await, (8, 6));
    // That of the first segment.
    assert_eq!(place.faulty.deliver().await, (1, 0));
    assert_eq!(kept().await, (8, 6));
}
