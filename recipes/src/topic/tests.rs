use std::time::{Duration, UNIX_EPOCH};

use futures::StreamExt;

use super::*;
use crate::error::TxnError;
use crate::keys::{KeyRange, Revision};
use crate::store::MemStore;
use crate::store::faulty::{Calls, Fault, Stage};
use crate::testing::{Place, soon};

/// What there is to do with a topic at a place.
trait OfTopics {
    fn topic(&self) -> Topic<u32>;

    async fn publish(&self, values: std::ops::Range<u32>) -> Vec<Position>;

    /// Has everything removed that `retention` lets go.
    async fn remove(&self, retention: Retention);
}

impl OfTopics for Place {
    fn topic(&self) -> Topic<u32> {
        self.client.topic("t").with_segment_items(4)
    }

    async fn publish(&self, values: std::ops::Range<u32>) -> Vec<Position> {
        let mut positions = Vec::new();
        for value in values {
            let published = self.topic().publish(&self.session, &value).await;
            positions.push(published.unwrap());
        }
        positions
    }

    async fn remove(&self, retention: Retention) {
        let topic = self.topic().retain(retention.look_every(TICK));
        let retainer = topic.retainer(&self.session).unwrap();
        tokio::time::sleep(20 * TICK).await;
        drop(retainer);
        tokio::time::sleep(TICK).await;
    }
}

const TICK: Duration = Duration::from_millis(100);

async fn values(messages: &mut Subscription<u32>, count: usize) -> Vec<u32> {
    let mut values = Vec::new();
    for _ in 0..count {
        values.push(soon(messages.next()).await.unwrap().value);
    }
    values
}

async fn is_quiet(messages: &mut Subscription<u32>) {
    let next = tokio::time::timeout(Duration::from_secs(60), messages.next()).await;
    assert!(next.is_err(), "{next:?}");
}

async fn taken(consumer: &mut GroupConsumer<u32>) -> Message<u32> {
    soon(consumer.next()).await.unwrap()
}

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

fn place_of(place: &Place, position: &Position) -> String {
    let segment = format!(
        "quorate/topic/t/partition/0/segment/{:016x}/",
        position.segment()
    );
    let mut keys = place.store.keys(&segment);
    keys.retain(|key| position.to_string().contains(&key[segment.len()..]));
    keys.remove(0)
}

/// What was committed together stays in its order, and is never cut by a page.
#[tokio::test(start_paused = true)]
async fn batches_are_read_whole() {
    let place = Place::new().await;
    let topic = place.client.topic::<u32>("t").with_segment_items(200);
    let all: Vec<u32> = (0..300).collect();
    topic
        .publish_all(&place.session, &all[..100])
        .await
        .unwrap();
    for value in &all[100..110] {
        topic.publish(&place.session, value).await.unwrap();
    }
    topic
        .publish_all(&place.session, &all[110..])
        .await
        .unwrap();
    for first in [0, 1, 50, 99, 100, 105, 110, 250] {
        let mut from_start = topic.subscribe(Start::Earliest).await.unwrap();
        let mut position = None;
        for _ in 0..first {
            position = Some(soon(from_start.next()).await.unwrap().position);
        }
        let start = position.map_or(Start::Earliest, Start::After);
        let mut messages = topic.subscribe(start).await.unwrap();
        assert_eq!(values(&mut messages, 300 - first).await, all[first..]);
        assert_eq!(values(&mut from_start, 300 - first).await, all[first..]);
    }
}

#[tokio::test(start_paused = true)]
async fn publishing_is_one_round_trip_and_reading_on_none() {
    let place = Place::new().await;
    let topic = place.client.topic::<u32>("t");
    let mut messages = topic.subscribe(Start::Latest).await.unwrap();
    topic.publish(&place.session, &0).await.unwrap();
    values(&mut messages, 1).await;
    let before = place.counting.counts();
    for value in 0..50 {
        topic.publish(&place.session, &value).await.unwrap();
        values(&mut messages, 1).await;
    }
    let used = place.counting.counts() - before;
    assert_eq!((used.txn, used.range, used.watch), (50, 0, 0));
}

#[tokio::test(start_paused = true)]
async fn lost_answers_publish_once() {
    let place = Place::new().await;
    let topic = place.topic();
    topic.publish(&place.session, &0).await.unwrap();
    for (value, fault) in [(1, Fault::Late), (2, Fault::Unanswered)] {
        place.faulty.plan("quorate/lane/", vec![fault]);
        topic.publish(&place.session, &value).await.unwrap();
        place.faulty.deliver().await;
    }
    let mut messages = topic.subscribe(Start::Earliest).await.unwrap();
    assert_eq!(values(&mut messages, 3).await, [0, 1, 2]);
    is_quiet(&mut messages).await;
    topic.publish_at_least_once(&3).await.unwrap();
    assert_eq!(values(&mut messages, 1).await, [3]);
}

#[tokio::test(start_paused = true)]
async fn reading_goes_on_after_lost_watches_and_compactions() {
    let place = Place::new().await;
    let mut messages = place.topic().subscribe(Start::Latest).await.unwrap();
    let mut next = 0;
    for round in 0..5 {
        place.publish(next..next + 3).await;
        assert_eq!(values(&mut messages, 1).await, [next]);
        place.faulty.cut_watches();
        if round % 2 == 0 {
            place.store.compact(place.store.revision()).unwrap();
            place.store.end_watches();
        }
        place.publish(next + 3..next + 8).await;
        let rest: Vec<u32> = (next + 1..next + 8).collect();
        assert_eq!(values(&mut messages, 7).await, rest);
        next += 8;
    }
}

#[tokio::test(start_paused = true)]
async fn what_cannot_be_read_is_told_and_passed() {
    let place = Place::new().await;
    let text = place.client.topic::<String>("t");
    place.publish(0..1).await;
    let position = text
        .publish(&place.session, &"one".to_owned())
        .await
        .unwrap();
    place.publish(2..3).await;
    let mut messages = place.topic().subscribe(Start::Earliest).await.unwrap();
    assert_eq!(values(&mut messages, 1).await, [0]);
    let Err(ReadError::Unreadable(unreadable)) = soon(messages.next()).await else {
        panic!("it was read");
    };
    assert_eq!(
        (unreadable.position, unreadable.offset),
        (position, Some(1))
    );
    assert_eq!(values(&mut messages, 1).await, [2]);
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
    // Who begins behind what is gone cannot know how much it was; who begins with what there is missed nothing.
    let after = Start::After(positions[5].clone());
    for start in [after, Start::AfterRevision(positions[5].revision())] {
        let mut messages = topic.subscribe(start).await.unwrap();
        let Err(ReadError::Lagged(lagged)) = soon(messages.next()).await else {
            panic!("it missed nothing");
        };
        assert_eq!(lagged.skipped, None);
        assert_eq!(values(&mut messages, 9).await, (12..21).collect::<Vec<_>>());
    }
    for start in [Start::Earliest, Start::After(positions[11].clone())] {
        let mut messages = topic.subscribe(start).await.unwrap();
        let first = loop {
            match soon(messages.next()).await {
                Ok(message) => break message,
                Err(ReadError::Lagged(lagged)) => assert_eq!(lagged.skipped, None),
                Err(error) => panic!("{error}"),
            }
        };
        assert_eq!((first.value, first.offset), (12, Some(12)));
    }
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

#[tokio::test(start_paused = true)]
async fn all_agree_on_the_number_of_partitions() {
    let place = Place::new().await;
    let (four, one) = (place.topic().partitions(4), place.topic());
    four.publish(&place.session, &1).await.unwrap();
    for refused in [
        one.publish(&place.session, &1).await.map(drop),
        one.publish_at_least_once(&1).await.map(drop),
        one.subscribe(Start::Latest).await.map(drop),
        one.group(&place.session, "g").await.map(drop),
    ] {
        assert!(
            matches!(refused, Err(Error::Mismatch { .. })),
            "{refused:?}"
        );
    }
    for count in [0, 5_000] {
        let refused = place
            .topic()
            .partitions(count)
            .subscribe(Start::Latest)
            .await;
        assert!(matches!(refused, Err(Error::Invalid(_))), "{refused:?}");
    }
    assert_eq!(four.status().await.unwrap().partitions.len(), 4);
    assert_eq!(one.status().await.unwrap().partitions.len(), 4);
    let huge = vec![0_u8; 2 << 20];
    let refused = place
        .client
        .topic::<Vec<u8>>("u")
        .publish(&place.session, &huge)
        .await;
    assert!(matches!(refused, Err(Error::Invalid(_))), "{refused:?}");
}

#[tokio::test(start_paused = true)]
async fn messages_of_a_key_keep_together() {
    let place = Place::new().await;
    let topic = place.topic().partitions(4);
    for value in 0..20_u32 {
        let key = (value % 5).to_string();
        let position = topic
            .publish_keyed(&place.session, &key, &value)
            .await
            .unwrap();
        assert_eq!(position.partition(), topic.partition_of(&key));
    }
    let mut messages = topic.subscribe(Start::Earliest).await.unwrap();
    let mut of_key: std::collections::BTreeMap<String, Vec<u32>> = Default::default();
    for _ in 0..20 {
        let message = soon(messages.next()).await.unwrap();
        let key = message.key.unwrap();
        of_key.entry(key).or_default().push(message.value);
    }
    assert!(of_key.len() == 5 && of_key.values().all(|values| values.is_sorted()));
    let spread: std::collections::BTreeSet<u32> = {
        let mut partitions = std::collections::BTreeSet::new();
        for value in 0..8 {
            partitions.insert(
                topic
                    .publish(&place.session, &value)
                    .await
                    .unwrap()
                    .partition(),
            );
        }
        partitions
    };
    assert_eq!(spread.len(), 4, "those without a key go round");
    // The hash is the same in every version.
    let many = place.topic().partitions(1_024);
    assert_eq!(many.partition_of("anna"), 260);
}

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

#[tokio::test(start_paused = true)]
async fn a_store_that_was_put_back_is_told() {
    let place = Place::new().await;
    place.publish(0..6).await;
    let mut messages = place.topic().subscribe(Start::Earliest).await.unwrap();
    assert_eq!(values(&mut messages, 6).await, (0..6).collect::<Vec<_>>());
    // As if the log had been put back to an earlier state: the head is gone with all that it said.
    let txn = place
        .client
        .txn()
        .delete_range(KeyRange::prefix("quorate/topic/t/partition/"));
    txn.commit().await.unwrap();
    place.faulty.cut_watches();
    let Some(Err(ReadError::Lagged(lagged))) = soon(StreamExt::next(&mut messages)).await else {
        panic!("nothing was told");
    };
    assert_eq!(lagged.skipped, None);
    let fresh = place.client.topic::<u32>("t");
    fresh.publish(&place.session, &7).await.unwrap();
    assert_eq!(values(&mut messages, 1).await, [7]);
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
