//! Topics: every message is read in its order from wherever one begins, done once by a group, and kept as long
//! as it was told.

use std::collections::BTreeMap;
use std::time::Duration;

use quorate_recipes::topic::{GroupConsumer, Message, ReadError, Retention, Start, Subscription};
use quorate_recipes::{Client, Error, KeyRange, TxnError};

use super::{cut_time_and_again, keys_below, session, short_session, watched};
use crate::support::{soon, until};

async fn next(messages: &mut Subscription<u32>) -> Message<u32> {
    soon("a message", messages.next()).await.unwrap()
}

async fn taken(consumer: &mut GroupConsumer<u32>) -> Message<u32> {
    soon("a message", consumer.next()).await.unwrap()
}

/// Several publish at a time: readers from the first message, from now and from between get the same.
pub async fn readers_get_everything_in_order(client: &Client) {
    const MESSAGES: u32 = 60;
    let topic = client
        .topic::<u32>("news")
        .partitions(3)
        .with_segment_items(7);
    let mut live = topic.subscribe(Start::Latest).await.unwrap();
    let mut publishing = Vec::new();
    for publisher in 0..3_u32 {
        let (client, topic) = (client.clone(), topic.clone());
        publishing.push(tokio::spawn(async move {
            let session = session(&client).await;
            let key = publisher.to_string();
            for n in (0..MESSAGES).filter(|n| n % 3 == publisher) {
                topic.publish_keyed(&session, &key, &n).await.unwrap();
            }
            let rest = [publisher + 100, publisher + 200];
            topic
                .publish_all_keyed(&session, &key, &rest)
                .await
                .unwrap();
        }));
    }
    let mut seen: BTreeMap<u32, Vec<Message<u32>>> = BTreeMap::new();
    for _ in 0..MESSAGES + 6 {
        let message = next(&mut live).await;
        let partition = message.position.partition();
        seen.entry(partition).or_default().push(message);
    }
    for publisher in publishing {
        publisher.await.unwrap();
    }
    let mut again = topic.subscribe(Start::Earliest).await.unwrap();
    let mut once_more: BTreeMap<u32, Vec<Message<u32>>> = BTreeMap::new();
    for _ in 0..MESSAGES + 6 {
        let message = next(&mut again).await;
        let partition = message.position.partition();
        once_more.entry(partition).or_default().push(message);
    }
    assert_eq!(once_more, seen);
    let mut by_key: BTreeMap<String, Vec<u32>> = BTreeMap::new();
    for message in seen.values().flatten() {
        let key = message.key.clone().unwrap();
        by_key.entry(key).or_default().push(message.value);
    }
    assert!(by_key.values().all(|values| values.is_sorted()));
    let middle = &seen.values().next().unwrap()[3];
    let start = Start::After(middle.position.clone());
    let mut after = topic.subscribe(start).await.unwrap();
    loop {
        let message = next(&mut after).await;
        assert!(message.position.revision() > middle.position.revision());
        if message.position.partition() == middle.position.partition() {
            assert_eq!(message.offset, Some(4));
            break;
        }
    }
}

/// Watches that end say nothing about messages.
pub async fn reading_survives_ended_watches(client: &Client) {
    let (store, cut_off) = watched(client);
    let topic = client.topic::<u32>("news").with_segment_items(5);
    let session = session(client).await;
    let theirs = cut_off.topic::<u32>("news").with_segment_items(5);
    let mut messages = theirs.subscribe(Start::Latest).await.unwrap();
    let reading = tokio::spawn(async move {
        let mut values = Vec::new();
        for _ in 0..30 {
            values.push(next(&mut messages).await.value);
        }
        values
    });
    for n in 0..15 {
        topic.publish(&session, &n).await.unwrap();
    }
    cut_time_and_again(&store, 1).await;
    for n in 15..30 {
        topic.publish(&session, &n).await.unwrap();
    }
    let values = reading.await.unwrap();
    assert_eq!(values, (0..30).collect::<Vec<_>>());
}

/// Members of a group come and go: each message is done once, with what is written for it.
pub async fn groups_do_each_message_once(client: &Client) {
    const MESSAGES: u32 = 60;
    let topic = client
        .topic::<u32>("work")
        .partitions(4)
        .with_segment_items(5);
    let publisher = session(client).await;
    let mut working = Vec::new();
    for member in 0..3 {
        let (client, topic) = (client.clone(), topic.clone());
        working.push(tokio::spawn(async move {
            let session = session(&client).await;
            let mut consumer = topic.group(&session, "g").await.unwrap();
            let mut done = 0;
            loop {
                let message = consumer.next().await.unwrap();
                let txn = client.txn().put(format!("done/{}", message.value), "");
                match consumer.commit_with(&message, txn).await {
                    Ok(_) | Err(TxnError::Fenced { .. }) => done += 1,
                    Err(error) => panic!("{error}"),
                }
                if member == 0 && done == 5 {
                    // It leaves with work undone.
                    return;
                }
            }
        }));
    }
    for n in 0..MESSAGES {
        topic.publish(&publisher, &n).await.unwrap();
    }
    until("all to be done", async || {
        let status = topic.status().await.unwrap();
        let group = status.groups.get("g");
        group.is_some_and(|group| group.partitions.iter().all(|lag| lag.lag == Some(0)))
    })
    .await;
    let (_, done) = client.list(KeyRange::prefix("done/")).await.unwrap();
    assert_eq!(done.len(), MESSAGES as usize);
    assert!(done.iter().all(|kv| kv.version == 1));
    for worker in working {
        worker.abort();
    }
    until("nobody to be left", async || {
        keys_below(client, "quorate/topic/work/share").await == 0
    })
    .await;
}

/// One whose lease has gone says nothing about what is done; the next one goes on where it was.
pub async fn who_has_gone_commits_nothing(client: &Client) {
    let topic = client.topic::<u32>("jobs");
    let (dying, living) = (short_session(client).await, session(client).await);
    topic.publish_all(&living, &[1, 2]).await.unwrap();
    let mut first = topic.group(&dying, "g").await.unwrap();
    let message = taken(&mut first).await;
    client.store().lease_revoke(dying.lease()).await.unwrap();
    let mut second = topic.group(&living, "g").await.unwrap();
    let again = taken(&mut second).await;
    assert_eq!(again.position, message.position);
    let put = |by: &str| client.txn().put("by", by);
    let zombie = first.commit_with(&message, put("who has gone")).await;
    assert!(
        matches!(
            zombie,
            Err(TxnError::Fenced { .. } | TxnError::Failed(Error::SessionLost(_)))
        ),
        "{zombie:?}"
    );
    assert!(
        second
            .commit_with(&again, put("who is there"))
            .await
            .unwrap()
    );
    let by = client.get("by").await.unwrap().unwrap();
    assert_eq!(by.value, "who is there");
    assert!(matches!(
        soon("the loss", first.next()).await,
        Err(ReadError::Failed(Error::SessionLost(_)))
    ));
    assert_eq!(taken(&mut second).await.value, 2);
    second.leave().await.unwrap();
}

/// What is beyond the limit goes, those who missed it are told, and what a group has not done stays.
pub async fn what_is_removed_is_told(client: &Client) {
    let tick = Duration::from_millis(20);
    let retention = Retention::default().max_segments(1).look_every(tick);
    let topic = client.topic::<u32>("log").with_segment_items(5);
    let session = session(client).await;
    topic.publish(&session, &0).await.unwrap();
    let mut slow = topic.subscribe(Start::Earliest).await.unwrap();
    assert_eq!(next(&mut slow).await.value, 0);
    drop(slow);
    let mut late = topic.subscribe(Start::Earliest).await.unwrap();
    for n in 1..24 {
        topic.publish(&session, &n).await.unwrap();
    }
    let retainer = topic.clone().retain(retention.clone());
    let retainer = retainer.retainer(&session).unwrap();
    until("old segments to go", async || {
        topic.status().await.unwrap().partitions[0].removed == 15
    })
    .await;
    drop(retainer);
    let told = soon("what was missed", late.next()).await;
    let Err(ReadError::Lagged(lagged)) = told else {
        panic!("{told:?}");
    };
    assert_eq!(lagged.skipped, Some(15));
    let message = next(&mut late).await;
    assert_eq!((message.value, message.offset), (15, Some(15)));

    let keeping = topic.clone().retain(retention.until_consumed());
    let mut consumer = keeping.group(&session, "g").await.unwrap();
    for n in 24..44 {
        topic.publish(&session, &n).await.unwrap();
    }
    let mut last = None;
    for n in 15..44 {
        let message = taken(&mut consumer).await;
        assert_eq!(message.value, n, "nothing was missed");
        last = Some(message);
    }
    assert_eq!(topic.status().await.unwrap().partitions[0].removed, 15);
    consumer.commit(&last.unwrap()).await.unwrap();
    until("what is done to go", async || {
        topic.status().await.unwrap().partitions[0].removed == 35
    })
    .await;
    consumer.leave().await.unwrap();
}

/// A topic that keeps nothing: who is there hears everything, once.
pub async fn live_messages_are_heard(client: &Client) {
    let topic = client.live_topic::<u32>("live");
    let (one, two) = (session(client).await, session(client).await);
    topic.publish(&one, &0).await.unwrap();
    let mut heard = Vec::new();
    for _ in 0..2 {
        heard.push(topic.subscribe().await.unwrap());
    }
    for n in 1..20 {
        let by = if n % 2 == 0 { &one } else { &two };
        topic.publish(by, &n).await.unwrap();
    }
    for messages in &mut heard {
        for n in 1..20 {
            let message = soon("a message", messages.next()).await.unwrap();
            assert_eq!((message.value, message.offset), (n, Some(u64::from(n))));
        }
    }
    assert_eq!(keys_below(client, "quorate/live-topic").await, 1);
}
