use std::time::{Duration, UNIX_EPOCH};

use futures::StreamExt;

use super::*;
use crate::error::TxnError;
use crate::keys::{KeyRange, Revision};
use crate::store::MemStore;
use crate::store::faulty::{Calls, Fault, Stage};
use crate::testing::{Place, soon};

mod groups;
mod live;
mod removals;
mod starts;

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

/// What the documentation says of the cost of a topic, whose segments have 256 messages.
#[tokio::test(start_paused = true)]
async fn publishing_reading_and_committing_cost_what_is_told() {
    let place = Place::new().await;
    let topic = place.client.topic::<u32>("t");
    topic.publish(&place.session, &0).await.unwrap();
    let counts = || place.counting.counts();
    let before = counts();
    for value in 1..=600 {
        topic.publish(&place.session, &value).await.unwrap();
    }
    let used = counts() - before;
    // Each of the first 16 opens a lane, and two segments are full.
    assert_eq!((used.txn, used.calls()), (602, 602), "publishing: {used:?}");
    let before = counts();
    let more: Vec<u32> = (601..=1_200).collect();
    topic.publish_all(&place.session, &more).await.unwrap();
    let used = counts() - before;
    assert_eq!((used.txn, used.calls()), (5 + 2, 7), "together: {used:?}");

    let before = counts();
    let mut messages = topic.subscribe(Start::Earliest).await.unwrap();
    assert_eq!(
        values(&mut messages, 1_201).await,
        (0..=1_200).collect::<Vec<_>>()
    );
    let used = counts() - before;
    // Pages of up to 128, for each of which the store goes through what is left of a segment.
    assert!(used.calls() <= 16, "reading: {used:?}");
    assert!(
        used.keys <= (256 + 123 + 2) * used.calls(),
        "reading: {used:?}"
    );

    let mut group = topic.group(&place.session, "g").await.unwrap();
    let message = taken(&mut group).await;
    group.commit(&message).await.unwrap();
    let before = counts();
    let mut last = None;
    for _ in 0..500 {
        last = Some(taken(&mut group).await);
    }
    let read = counts() - before;
    assert!(read.calls() <= 10, "reading in a group: {read:?}");
    let before = counts();
    group.commit(&last.unwrap()).await.unwrap();
    for _ in 0..10 {
        let message = taken(&mut group).await;
        let txn = place.client.txn().put("effect", message.value.to_string());
        assert!(group.commit_with(&message, txn).await.unwrap());
    }
    let used = counts() - before;
    assert!((11..=12).contains(&used.calls()), "committing: {used:?}");
    assert_eq!(used.watch, 0);
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
