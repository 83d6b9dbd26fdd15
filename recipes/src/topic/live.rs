//! Topics that keep nothing: each message is written over the one before, and those who watch see every one.

use std::cmp::Ordering;
use std::collections::VecDeque;
use std::fmt;
use std::marker::PhantomData;
use std::pin::Pin;
use std::task::{Context, Poll};

use futures::stream::{self, BoxStream, Stream, StreamExt};
use quorate_proto::etcdserverpb::{WatchCreateRequest, WatchResponse};
use quorate_proto::mvccpb::KeyValue;
use quorate_proto::mvccpb::event::EventType;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::message::{Lagged, Message, ReadError, Unreadable};
use super::position::{Place, Position};
use super::record::LiveRecord;
use crate::client::Client;
use crate::error::{Error, Result};
use crate::keys::{Key, KeySpace, Revision};
use crate::session::{Effect, Effected, Session};
use crate::store::{Cause, StoreError, WatchStream, ops};
use crate::value::{Json, Value};
use crate::wait::{self, Backoff, refusal};

/// A topic whose messages go to whoever is there: nothing grows, nothing is kept but the last one. A handle:
/// cheap to clone, holds nothing.
///
/// Costs: publishing is one transaction, whoever listens; listening one watch, and a read of the key each time
/// that the watch is opened.
///
/// ```no_run
/// # async fn example(client: quorate_recipes::Client) -> Result<(), Box<dyn std::error::Error>> {
/// let session = client.session().await?;
/// let topic = client.live_topic::<String>("announcements");
/// let mut messages = topic.subscribe().await?;
/// topic.publish(&session, &"we open at nine".to_owned()).await?;
/// println!("{}", messages.next().await?.value);
/// # Ok(()) }
/// ```
pub struct LiveTopic<T> {
    client: Client,
    key: Key,
    of: PhantomData<fn() -> T>,
}

impl<T> Clone for LiveTopic<T> {
    fn clone(&self) -> Self {
        Self {
            client: self.client.clone(),
            key: self.key.clone(),
            of: PhantomData,
        }
    }
}

impl Client {
    /// The topic of this name that keeps nothing. It has nothing to do with a [topic](Client::topic) of that
    /// name.
    #[must_use]
    pub fn live_topic<T>(&self, name: impl AsRef<str>) -> LiveTopic<T> {
        LiveTopic {
            client: self.clone(),
            key: KeySpace::of("live-topic", name.as_ref()).key("last"),
            of: PhantomData,
        }
    }
}

impl<T: Serialize> LiveTopic<T> {
    /// Publishes a message, exactly once although answers get lost, to those who listen. Returns the revision.
    ///
    /// # Errors
    /// [`Error::Codec`]; [`Error::Invalid`] for a session of another store; [`Error::SessionLost`];
    /// [`Error::OutcomeUnknown`] when the session ended with an answer still to come; the store's final
    /// refusals, for a message that is too large for it among them.
    ///
    /// # Cancel safety
    /// Dropping the future is an unknown outcome: once or not at all.
    pub async fn publish(&self, session: &Session, value: &T) -> Result<Revision> {
        session.belongs_to(&self.client)?;
        let record = LiveRecord::new(&self.client, value);
        let bytes = Value::from(Json(record)).into_bytes(&self.key)?;
        let effect = Effect {
            then: vec![ops::put(&self.key, bytes, None)],
            ..Effect::default()
        };
        match session.actor().apply(effect).await? {
            Effected::Applied { revision, .. } => Ok(revision),
            // No condition was given.
            Effected::Refused { .. } => Err(Error::Conflict),
        }
    }
}

impl<T> LiveTopic<T> {
    /// Listens from now on; ready once nothing that is published afterwards is missed.
    ///
    /// # Errors
    /// The store's final refusals. Trouble with the store is waited out.
    ///
    /// # Cancel safety
    /// Nothing is left behind when the future is dropped.
    pub async fn subscribe(&self) -> Result<LiveSubscription<T>> {
        let listener = self.listener().await?;
        let messages = stream::unfold(Some(listener), |listener| async move {
            let mut listener = listener?;
            match listener.next().await {
                Ok(heard) => Some((Ok(heard), Some(listener))),
                Err(error) => Some((Err(error), None)),
            }
        });
        Ok(LiveSubscription {
            heard: messages.boxed(),
            of: PhantomData,
        })
    }

    async fn listener(&self) -> Result<Listener> {
        let found = wait::read(&self.client, ops::get(&self.key)).await?;
        let header = found.header.unwrap_or_default();
        Ok(Listener {
            client: self.client.clone(),
            key: self.key.clone(),
            last: found.kvs.first().map_or(Last::default(), Last::of),
            next: Revision(header.revision + 1),
            cluster_id: header.cluster_id,
            stream: None,
            look: false,
            ready: VecDeque::new(),
            pause: Backoff::between_attempts(&self.client),
        })
    }
}

impl<T> fmt::Debug for LiveTopic<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LiveTopic").field("key", &self.key).finish()
    }
}

/// The messages of a live topic from when it was made: each once, in the order of their commits. Those that
/// were published while it was cut off are given too, as far as the store still has its history; else it
/// [tells](ReadError::Lagged) how many were missed, and goes on with the last one. So it does, without a number,
/// when the store was replaced or put back to an earlier state. Dropping it closes its watch.
#[must_use = "a dropped subscription hears nothing"]
pub struct LiveSubscription<T> {
    heard: BoxStream<'static, Result<Heard>>,
    of: PhantomData<fn() -> T>,
}

impl<T: DeserializeOwned> LiveSubscription<T> {
    /// Waits for the next message.
    ///
    /// # Errors
    /// [`ReadError::Lagged`] and [`ReadError::Unreadable`]: go on; [`ReadError::Failed`] with the store's final
    /// refusal, [`Error::Closed`] afterwards. Trouble with the store is waited out.
    ///
    /// # Cancel safety
    /// No message is lost when the future is dropped.
    pub async fn next(&mut self) -> Result<Message<T>, ReadError> {
        let next = StreamExt::next(self).await;
        next.unwrap_or(Err(ReadError::Failed(Error::Closed)))
    }
}

/// The messages as a stream, which ends after [`ReadError::Failed`].
impl<T: DeserializeOwned> Stream for LiveSubscription<T> {
    type Item = Result<Message<T>, ReadError>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let next = self.heard.poll_next_unpin(context);
        next.map(|next| next.map(|heard| decode(heard?)))
    }
}

impl<T> fmt::Debug for LiveSubscription<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LiveSubscription").finish_non_exhaustive()
    }
}

enum Heard {
    Message(KeyValue),
    Lagged(Lagged),
}

fn position(revision: Revision) -> Position {
    let place = Place {
        segment: 0,
        created: revision,
        name: String::new(),
    };
    Position::new(0, place)
}

fn decode<T: DeserializeOwned>(heard: Heard) -> Result<Message<T>, ReadError> {
    let kv = match heard {
        Heard::Message(kv) => kv,
        Heard::Lagged(lagged) => return Err(ReadError::Lagged(Box::new(lagged))),
    };
    let position = position(Revision(kv.mod_revision));
    let offset = u64::try_from(kv.version - 1).ok();
    match LiveRecord::read(&Key::from(kv.key), &kv.value) {
        Ok(record) => Ok(Message {
            value: record.value,
            position,
            offset,
            key: None,
            since_ms: record.since_ms,
        }),
        Err(error) => Err(ReadError::Unreadable(Box::new(Unreadable {
            position,
            offset,
            error,
        }))),
    }
}

/// The message that was heard last.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Last {
    /// Since when the key is there; 0: it is not.
    created: i64,
    /// How often it has been written since.
    version: i64,
    revision: i64,
}

impl Last {
    fn of(kv: &KeyValue) -> Self {
        Self {
            created: kv.create_revision,
            version: kv.version,
            revision: kv.mod_revision,
        }
    }

    /// Whether this message can be there in the history in which `last` was heard, as the last one before
    /// the revision `next`.
    fn may_follow(self, last: Self, next: Revision) -> bool {
        // Before the first message there is no key; nobody deletes it afterwards.
        match (last.created, self.version.cmp(&last.version)) {
            (0, _) => self.created == 0 || self.created >= next.0,
            (_, Ordering::Equal) => self == last,
            (_, Ordering::Greater) => self.created == last.created && self.revision >= next.0,
            (_, Ordering::Less) => false,
        }
    }

    /// Whether this message is the very next one.
    fn is_next_of(self, last: Self) -> bool {
        self.version == last.version + 1 && (last.created == 0 || self.created == last.created)
    }
}

/// Watches the key of a live topic.
struct Listener {
    client: Client,
    key: Key,
    last: Last,
    /// The first revision that has not been seen.
    next: Revision,
    cluster_id: u64,
    stream: Option<WatchStream>,
    /// The key is to be read, because the watch cannot tell what was missed.
    look: bool,
    ready: VecDeque<Heard>,
    pause: Backoff,
}

impl Listener {
    async fn next(&mut self) -> Result<Heard> {
        loop {
            if let Some(heard) = self.ready.pop_front() {
                return Ok(heard);
            }
            match self.step().await {
                Ok(()) => {}
                Err(Error::Store(StoreError::Compacted { .. })) => {
                    self.stream = None;
                    self.look = true;
                }
                Err(Error::Store(error)) if error.is_transient() => {
                    tracing::debug!(key = %self.key, %error, "listening interrupted");
                    if self.stream.take().is_some() {
                        // The next watch tells everything, and is looked at when it is open.
                        self.look = false;
                    }
                    self.pause.pause().await;
                }
                Err(error) => return Err(error),
            }
        }
    }

    async fn step(&mut self) -> Result<()> {
        if self.look {
            return self.look().await;
        }
        let Some(stream) = &mut self.stream else {
            let request = WatchCreateRequest {
                key: self.key.as_bytes().clone(),
                start_revision: self.next.0,
                // A topic where nothing happens is not found compacted later.
                progress_notify: true,
                ..WatchCreateRequest::default()
            };
            self.stream = Some(self.client.store().watch(vec![request]).await?);
            return Ok(());
        };
        match stream.next().await {
            Some(answer) => self.take(answer?),
            None => Err(interrupted("the watch stream ended")),
        }
    }

    /// Reads the key, to see whether the history is the one that was heard. If it is, an open watch tells what
    /// comes next; without one, what was written between the last one that was heard and the one that is
    /// there is missed.
    async fn look(&mut self) -> Result<()> {
        let found = self.client.store().range(ops::get(&self.key)).await?;
        let header = found.header.unwrap_or_default();
        let known = self.cluster_id != 0 && header.cluster_id != 0;
        let other = known && self.cluster_id != header.cluster_id;
        let kv = found.kvs.into_iter().next();
        let now = kv.as_ref().map_or(Last::default(), Last::of);
        let behind = header.revision + 1 < self.next.0;
        let same = !other && !behind && now.may_follow(self.last, self.next);
        self.look = false;
        if same && self.stream.is_some() {
            return Ok(());
        }
        // It begins at a revision of the history that is no more.
        self.stream = None;
        let missed = match same {
            true => u64::try_from(now.version - self.last.version - 1).ok(),
            false => None,
        };
        if !same || missed.is_some_and(|missed| missed > 0) {
            self.ready.push_back(Heard::Lagged(Lagged {
                skipped: missed,
                from: position(Revision(self.last.revision)),
                to: position(Revision(now.revision - 1)),
            }));
        }
        let is_new = kv.filter(|_| !same || now.revision > self.last.revision);
        self.ready.extend(is_new.map(Heard::Message));
        self.last = now;
        self.next = Revision(header.revision + 1);
        self.cluster_id = header.cluster_id;
        Ok(())
    }

    fn take(&mut self, answer: WatchResponse) -> Result<()> {
        if answer.canceled {
            if answer.compact_revision > 0 || answer.cancel_reason.contains("compacted") {
                let at = Revision(answer.compact_revision);
                return Err(StoreError::Compacted { at }.into());
            }
            let error = refusal(&answer.cancel_reason).map(Error::from);
            return Err(error.unwrap_or_else(|| interrupted(&answer.cancel_reason)));
        }
        if answer.created {
            // Of a store that was put back nothing comes until its revision is there again, and then without
            // a word of what was there before.
            self.look = true;
            return Ok(());
        }
        self.pause.reset();
        if answer.events.is_empty() {
            let header = answer.header.unwrap_or_default();
            self.next = self.next.max(Revision(header.revision + 1));
        }
        for event in answer.events {
            let kind = event.r#type();
            let Some(kv) = event.kv else { continue };
            if kv.mod_revision < self.next.0 {
                continue;
            }
            let now = Last::of(&kv);
            if kind == EventType::Put && !now.is_next_of(self.last) {
                // What is missing, the key tells.
                self.stream = None;
                self.look = true;
                return Ok(());
            }
            self.next = Revision(kv.mod_revision + 1);
            if kind == EventType::Put {
                self.last = now;
                self.ready.push_back(Heard::Message(kv));
            } else {
                self.last = Last::default();
            }
        }
        Ok(())
    }
}

fn interrupted(why: &str) -> Error {
    StoreError::NotApplied(Cause::new(why)).into()
}

#[cfg(test)]
mod tests {
    use quorate_proto::mvccpb::Event;

    use super::*;
    use crate::keys::KeyRange;
    use crate::testing::{Place, soon};

    /// A watch is believed only as far as the key's version counts on.
    #[tokio::test(start_paused = true)]
    async fn a_message_that_a_watch_leaves_out_is_told() {
        let place = Place::new().await;
        let topic = place.client.live_topic::<u32>("t");
        topic.publish(&place.session, &0).await.unwrap();
        let mut listener = topic.listener().await.unwrap();
        for value in 1..=3 {
            topic.publish(&place.session, &value).await.unwrap();
        }
        let last = place
            .store
            .dump(&KeyRange::one(topic.key.clone()))
            .remove(0);
        let answer = WatchResponse {
            events: vec![Event {
                kv: Some(last),
                ..Event::default()
            }],
            ..WatchResponse::default()
        };
        listener.take(answer).unwrap();
        let Heard::Lagged(lagged) = soon(listener.next()).await.unwrap() else {
            panic!("it missed nothing");
        };
        assert_eq!(lagged.skipped, Some(2));
        let Heard::Message(kv) = soon(listener.next()).await.unwrap() else {
            panic!("nothing is there");
        };
        assert_eq!(kv.version, 4);
    }
}
