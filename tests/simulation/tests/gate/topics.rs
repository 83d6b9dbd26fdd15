//! Broken topics.

use std::time::Duration;

use quorate_proto::etcdserverpb::TxnRequest;
use quorate_recipes::keys::{KeyRange, Revision};
use quorate_recipes::store::ops::{self, Compare};
use quorate_recipes::topic::{GroupConsumer, Message};
use quorate_recipes::{Json, Result, Session};
use quorate_simulation::scenarios::{Published, Seen, effect_of, topic_may_remain, topic_of};
use quorate_simulation::{History, Player, Scenario};
use serde_json::{Value, json};

use super::mutants::{fresh, is_found};

/// One of the ways to break a topic.
trait Broken: Default + 'static {
    const NAME: &'static str;

    fn published(&self) -> &Published;

    async fn publish(&self, player: &Player, session: &Session) -> Result<()> {
        self.published().publish_some(player, session).await
    }

    async fn finish(
        &self,
        player: &Player,
        consumer: &mut GroupConsumer<i64>,
        message: &Message<i64>,
    ) -> Result<()> {
        let published = self.published();
        published.finish_message(player, consumer, message).await
    }

    async fn attend(&self, _player: &Player) {}
}

struct World<B>(B);

impl<B: Broken> Scenario for World<B> {
    const NAME: &'static str = B::NAME;

    fn new() -> Self {
        Self(B::default())
    }

    async fn step(&self, player: &Player, session: &Session) -> Result<()> {
        self.0.publish(player, session).await?;
        let finish = async |consumer: &mut GroupConsumer<i64>, message: &Message<i64>| {
            self.0.finish(player, consumer, message).await
        };
        self.0.published().work(player, session, finish).await
    }

    async fn attend(&self, player: &Player) {
        self.0.attend(player).await;
    }

    fn end(&self) {
        self.0.published().end();
    }

    fn may_remain(&self, key: &str) -> bool {
        topic_may_remain(key)
    }

    fn check(&self, history: &History) -> std::result::Result<(), String> {
        self.0.published().check(history)
    }
}

/// After a lost answer a message is published again.
#[derive(Default)]
struct NoLane(Published);

impl Broken for NoLane {
    const NAME: &'static str = "a topic whose messages have no lane";

    fn published(&self) -> &Published {
        &self.0
    }

    async fn publish(&self, player: &Player, session: &Session) -> Result<()> {
        // The topic is there.
        self.0.publish_some(player, session).await?;
        let again = |number| async move { publish_until_told(player, number).await };
        self.0.publish(player, again).await
    }
}

async fn publish_until_told(player: &Player, number: i64) -> Result<(u32, i64)> {
    let store = player.client().store();
    loop {
        let head = "quorate/topic/t/partition/0/head";
        let Ok(found) = store.range(ops::get(head)).await else {
            tokio::time::sleep(Duration::from_millis(50)).await;
            continue;
        };
        let since = found.kvs.first().map_or(0, |kv| kv.mod_revision);
        let value = found.kvs.first().map(|kv| kv.value.clone());
        let value: Value = serde_json::from_slice(&value.unwrap_or_default()).unwrap_or_default();
        let segment = value["segment"].as_u64().unwrap_or(0);
        let name = fresh(player);
        let key = format!("quorate/topic/t/partition/0/segment/{segment:016x}/{name}.0000");
        let message = json!({"v": 1, "since_ms": 0, "value": number});
        let request = TxnRequest {
            compare: vec![Compare::mod_revision(head, Revision(since)).into()],
            success: vec![ops::put(key, message.to_string().into(), None)],
            failure: Vec::new(),
        };
        match store.txn(request).await {
            Ok(answer) if answer.succeeded => {
                return Ok((0, answer.header.unwrap().revision));
            }
            Ok(_) => {}
            Err(error) if error.is_transient() => {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            Err(error) => return Err(error.into()),
        }
    }
}

/// A cursor is moved by whoever had the partition once.
#[derive(Default)]
struct NoFence(Published);

impl Broken for NoFence {
    const NAME: &'static str = "a group whose cursors have no fence";

    fn published(&self) -> &Published {
        &self.0
    }

    async fn finish(
        &self,
        player: &Player,
        consumer: &mut GroupConsumer<i64>,
        message: &Message<i64>,
    ) -> Result<()> {
        player.pause(2_000).await;
        let position = &message.position;
        let text = position.to_string();
        let name = text
            .split('/')
            .nth(2)
            .and_then(|rest| rest.split('@').next());
        let record = json!({
            "v": 1,
            "segment": position.segment(),
            "revision": position.revision().0,
            "name": name,
            "passed": message.offset.map(|offset| offset + 1),
        });
        let cursor = format!("quorate/topic/t/group/g/{}", position.partition());
        let lease = consumer.session().lease().to_string();
        let txn = player.client().txn().put(cursor, Json(&record));
        let _told = txn.put(effect_of(message.value), lease).commit().await;
        Ok(())
    }
}

/// A reader that goes by the order of keys: what has a smaller key and was committed later it never sees.
#[derive(Default)]
struct KeyOrder(Published);

impl Broken for KeyOrder {
    const NAME: &'static str = "a reader whose cursor is a key";

    fn published(&self) -> &Published {
        &self.0
    }

    async fn attend(&self, player: &Player) {
        let mut range = KeyRange::prefix("quorate/topic/t/partition/0/segment/");
        let mut offset = 0;
        loop {
            player.pause(100).await;
            let Ok((_, found)) = player.client().list(range.clone()).await else {
                continue;
            };
            for kv in found {
                let record: Value = serde_json::from_slice(&kv.value).unwrap();
                let number = record["value"].as_i64().unwrap();
                self.0.note(player, 0, Seen::Message(number, offset));
                offset += 1;
                let mut next = kv.key.to_vec();
                next.push(0);
                range.start = next.into();
            }
        }
    }
}

/// What a handle of the worlds says is removed as soon as it is full, whoever has read it.
#[derive(Default)]
struct RemovedUncounted(Published);

impl Broken for RemovedUncounted {
    const NAME: &'static str = "a topic whose segments are removed uncounted";

    fn published(&self) -> &Published {
        &self.0
    }

    async fn publish(&self, player: &Player, session: &Session) -> Result<()> {
        self.0.publish_some(player, session).await?;
        let status = topic_of(player).status().await?;
        for (index, partition) in status.partitions.iter().enumerate() {
            if partition.first_segment < partition.head_segment {
                let first = partition.first_segment;
                let oldest = format!("quorate/topic/t/partition/{index}/segment/{first:016x}/");
                let txn = player.client().txn();
                txn.delete_range(KeyRange::prefix(oldest)).commit().await?;
            }
        }
        Ok(())
    }
}

#[test]
fn a_message_without_a_lane_is_found() {
    is_found::<World<NoLane>>("twice");
}

#[test]
fn a_commit_without_a_fence_is_found() {
    is_found::<World<NoFence>>("the cursor");
}

#[test]
fn a_cursor_in_the_order_of_keys_is_found() {
    is_found::<World<KeyOrder>>("came as message");
}

#[test]
fn a_removal_that_is_not_counted_is_found() {
    is_found::<World<RemovedUncounted>>("counted");
}
