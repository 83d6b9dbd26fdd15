//! Topics: nothing that was published is lost or comes twice, readers see each partition as it was committed
//! or are told what they missed, a group does each message once, and cursors only go forward.

mod logs;

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::time::Duration;

use quorate_recipes::keys::LeaseId;
use quorate_recipes::topic::{
    GroupConsumer, Message, ReadError, Retention, Start, Subscription, Topic as Handle,
};
use quorate_recipes::{Error, Result, Session, TxnError};

pub use logs::Logs;
use logs::PARTITIONS;

use crate::effects::Effects;
use crate::history::History;
use crate::player::Player;
use crate::scenario::Scenario;

/// How long a client waits for a message.
const WAIT: Duration = Duration::from_secs(2);

/// How often it is looked at what can be removed.
const LOOK: Duration = Duration::from_millis(400);

/// What a subscriber was given of one partition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Seen {
    /// A message: its number, and how many came before it.
    Message(i64, u64),
    /// So many were missed, if it was told how many.
    Lagged(Option<u64>),
}

/// Clients that publish numbers, follow them, and do them together as a group.
#[derive(Debug, Default)]
pub struct Published {
    /// Numbers, and the partition and revision that each was told to have.
    published: Effects<(u32, i64)>,
    consumers: RefCell<BTreeMap<usize, (LeaseId, GroupConsumer<i64>)>>,
    /// What each client was shown of each partition.
    seen: RefCell<BTreeMap<(usize, u32), Vec<Seen>>>,
    /// Messages whose commit was confirmed.
    done: RefCell<Vec<i64>>,
    broken: RefCell<Option<String>>,
}

/// The topic of the worlds.
#[must_use]
pub fn topic_of(player: &Player) -> Handle<i64> {
    let topic = player.client().topic("t").partitions(PARTITIONS);
    let retention = Retention::default().max_segments(1).until_consumed();
    topic
        .with_segment_items(4)
        .retain(retention.look_every(LOOK))
}

/// The key that is written when a message is done.
#[must_use]
pub fn effect_of(number: i64) -> String {
    format!("effect/{number}")
}

/// Whether a key of a topic may be there when all is over.
#[must_use]
pub fn topic_may_remain(key: &str) -> bool {
    let rest = key.strip_prefix("quorate/topic/t/");
    rest.is_some_and(|rest| !rest.starts_with("share/") && !rest.starts_with("retainer/"))
}

impl Published {
    /// Publishes a number that no other has. `publish` gives the partition and the revision.
    ///
    /// # Errors
    /// What the client was told.
    pub async fn publish<F>(&self, player: &Player, publish: impl FnOnce(i64) -> F) -> Result<()>
    where
        F: Future<Output = Result<(u32, i64)>>,
    {
        self.published.attempt(player, publish).await.map(drop)
    }

    /// Publishes as the dice say.
    ///
    /// # Errors
    /// What the client was told.
    pub async fn publish_some(&self, player: &Player, session: &Session) -> Result<()> {
        for _ in 0..=player.below(3) {
            let topic = topic_of(player);
            let keyed = player.one_in(2);
            let publish = |number: i64| async move {
                let published = match keyed {
                    true => {
                        let key = (number % 5).to_string();
                        topic.publish_keyed(session, &key, &number).await?
                    }
                    false => topic.publish(session, &number).await?,
                };
                Ok((published.partition(), published.revision().0))
            };
            self.publish(player, publish).await?;
        }
        Ok(())
    }

    /// Has the messages of the client's share done by `finish`, for a while.
    ///
    /// # Errors
    /// What the client was told.
    pub async fn work(
        &self,
        player: &Player,
        session: &Session,
        mut finish: impl AsyncFnMut(&mut GroupConsumer<i64>, &Message<i64>) -> Result<()>,
    ) -> Result<()> {
        let known = self.consumers.borrow_mut().remove(&player.index());
        let known = known.filter(|(lease, _)| *lease == session.lease());
        let mut consumer = match known {
            Some((_, consumer)) => consumer,
            None => topic_of(player).group(session, "g").await?,
        };
        for _ in 0..=player.below(4) {
            let next = tokio::time::timeout(WAIT, consumer.next()).await;
            match next {
                Err(_) => break,
                Ok(Ok(message)) => {
                    player.note(format!("has message {}", message.value));
                    player.pause(300).await;
                    finish(&mut consumer, &message).await?;
                }
                Ok(Err(ReadError::Failed(error))) => return Err(error),
                Ok(Err(missed)) => {
                    let what = format!("the group was told: {missed}");
                    self.broken.borrow_mut().get_or_insert(what);
                }
            }
        }
        match player.below(6) {
            0 => drop(consumer),
            1 => consumer.leave().await?,
            _ => {
                let known = (session.lease(), consumer);
                self.consumers.borrow_mut().insert(player.index(), known);
            }
        }
        Ok(())
    }

    /// Commits a message with what is written for it.
    ///
    /// # Errors
    /// What the client was told, but that it does not own the partition any more.
    pub async fn finish_message(
        &self,
        player: &Player,
        consumer: &mut GroupConsumer<i64>,
        message: &Message<i64>,
    ) -> Result<()> {
        let lease = consumer.session().lease().to_string();
        let txn = player.client().txn().put(effect_of(message.value), lease);
        match consumer.commit_with(message, txn).await {
            Ok(true) => self.done.borrow_mut().push(message.value),
            Ok(false) | Err(TxnError::Fenced { .. }) => {}
            Err(error) => return Err(error.into()),
        }
        Ok(())
    }

    /// Notes what a client was shown.
    pub fn note(&self, player: &Player, partition: u32, seen: Seen) {
        let mut all = self.seen.borrow_mut();
        all.entry((player.index(), partition))
            .or_default()
            .push(seen);
    }

    /// Follows the topic for as long as the world lasts, at times slowly, at times anew from where it was.
    ///
    /// # Panics
    /// When following ends.
    pub async fn follow(&self, player: &Player) {
        let topic = topic_of(player);
        let earliest = topic.subscribe(Start::Earliest).await;
        let mut messages = earliest.expect("nothing is refused for good");
        loop {
            match messages.next().await {
                Ok(message) => {
                    let offset = message.offset.unwrap_or(u64::MAX);
                    let partition = message.position.partition();
                    self.note(player, partition, Seen::Message(message.value, offset));
                }
                Err(ReadError::Lagged(lagged)) => {
                    player.note(format!("missed {:?}", lagged.skipped));
                    let partition = lagged.to.partition();
                    self.note(player, partition, Seen::Lagged(lagged.skipped));
                }
                Err(error) => panic!("{error}"),
            }
            if player.one_in(8) {
                player.pause(6_000).await;
            }
        }
    }

    /// Lets go of all consumers.
    pub fn end(&self) {
        self.consumers.borrow_mut().clear();
    }

    async fn drain(&self, player: &Player) -> Result<()> {
        let session = player.client().session().await?;
        let topic = topic_of(player);
        let mut consumer = topic.group(&session, "g").await?;
        loop {
            let status = topic.status().await?;
            let lags = status.groups["g"].partitions.iter();
            if lags.map(|lag| lag.lag).all(|lag| lag == Some(0)) {
                break;
            }
            let next = tokio::time::timeout(WAIT, consumer.next()).await;
            match next {
                Ok(Ok(message)) => self.finish_message(player, &mut consumer, &message).await?,
                Ok(Err(ReadError::Failed(error))) => return Err(error),
                Ok(Err(missed)) => return Err(Error::Invalid(missed.to_string())),
                // Others have the rest.
                Err(_) => self.end(),
            }
        }
        consumer.leave().await?;
        let published = topic.status().await?.partitions;
        let messages = topic.subscribe(Start::Earliest).await?;
        let left: u64 = published.iter().map(|partition| partition.messages).sum();
        self.read_again(messages, left).await?;
        session.close().await
    }

    /// Whoever comes when all is over finds all that there still is.
    async fn read_again(&self, mut messages: Subscription<i64>, left: u64) -> Result<()> {
        for _ in 0..left {
            let next = tokio::time::timeout(WAIT, messages.next()).await;
            match next {
                Ok(Ok(_)) => {}
                other => return Err(Error::Invalid(format!("of {left}: {other:?}"))),
            }
        }
        Ok(())
    }

    /// Judges what happened.
    ///
    /// # Errors
    /// What is broken.
    pub fn check(&self, history: &History) -> std::result::Result<(), String> {
        if let Some(broken) = &*self.broken.borrow() {
            return Err(broken.clone());
        }
        let logs = Logs::of(history)?;
        self.published.check(logs.published())?;
        for ((player, partition), seen) in &*self.seen.borrow() {
            let judged = logs.judge(*partition, seen);
            judged.map_err(|broken| format!("player {player}, partition {partition}: {broken}"))?;
        }
        let done = self.done.borrow();
        match done.iter().find(|number| !logs.is_done(**number)) {
            Some(number) => Err(format!("message {number} was said to be done, and is not")),
            None => Ok(()),
        }
    }
}

/// A topic with its group and its followers.
#[derive(Debug, Default)]
pub struct Topic(Published);

impl Scenario for Topic {
    const NAME: &'static str = "topic";

    fn new() -> Self {
        Self::default()
    }

    async fn step(&self, player: &Player, session: &Session) -> Result<()> {
        self.0.publish_some(player, session).await?;
        let finish = async |consumer: &mut GroupConsumer<i64>, message: &Message<i64>| {
            self.0.finish_message(player, consumer, message).await
        };
        self.0.work(player, session, finish).await
    }

    async fn attend(&self, player: &Player) {
        self.0.follow(player).await;
    }

    async fn finish(&self, players: &[Player]) -> std::result::Result<(), String> {
        let drained = self.0.drain(&players[0]).await;
        drained.map_err(|error| error.to_string())
    }

    fn end(&self) {
        self.0.end();
    }

    fn may_remain(&self, key: &str) -> bool {
        topic_may_remain(key)
    }

    fn check(&self, history: &History) -> std::result::Result<(), String> {
        self.0.check(history)
    }
}
