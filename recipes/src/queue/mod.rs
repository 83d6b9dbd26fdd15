//! Queues: items are pushed in the order of their commits, taken by one consumer each, and done when they are
//! acknowledged. What a consumer that ends has taken, others take again.
//!
//! `record` is how a queue lies in the store, `window` what a consumer knows of its front and takes next,
//! `follow` keeps that up to date, `consumer` takes, `delivery` is what was taken, `delay` moves items whose
//! time has come, `dead` is about those that were put aside.

mod consumer;
mod dead;
mod delay;
mod delivery;
mod follow;
mod record;
#[cfg(test)]
mod tests;
mod window;

use std::fmt;
use std::marker::PhantomData;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use quorate_proto::etcdserverpb::{RequestOp, TxnRequest};
use quorate_proto::mvccpb::KeyValue;
use serde::Serialize;
use serde::de::DeserializeOwned;

pub use consumer::Consumer;
pub use dead::DeadLetter;
pub use delivery::{AckError, Delivery, Nack};

use crate::client::Client;
use crate::error::{Error, Result};
use crate::keys::{Key, KeyRange, KeySpace, Revision};
use crate::kit::{Append, Appended, ItemId, SegmentedLog};
use crate::session::{Effect, Session};
use crate::store::ops::{self, Compare};
pub(crate) use record::Gated;
use record::{About, ITEM_BYTES_SPARE, ItemRecord, Layout, Order};

/// How often an item is taken before it becomes a dead letter, unless told otherwise.
const ATTEMPTS_MAX: u32 = 5;

/// A queue. A handle: cheap to clone, holds nothing.
///
/// Costs: a push is one transaction, which holds up no other push; a take is one, an acknowledgement one.
///
/// ```no_run
/// # async fn example(client: quorate_recipes::Client) -> Result<(), quorate_recipes::Error> {
/// let session = client.session().await?;
/// let queue = client.queue::<String>("mails");
/// queue.push(&session, &"hello".to_owned()).await?;
/// let consumer = queue.consumer(&session).await?;
/// let delivery = consumer.pop().await?;
/// println!("{}", delivery.value());
/// delivery.ack().await?; // else it goes back
/// # Ok(()) }
/// ```
pub struct Queue<T> {
    layout: Layout,
    order: Order,
    max_attempts: Option<u32>,
    key_of: Option<KeyOf<T>>,
    of: PhantomData<fn() -> T>,
}

type KeyOf<T> = Arc<dyn Fn(&T) -> String + Send + Sync>;

impl<T> Clone for Queue<T> {
    fn clone(&self) -> Self {
        Self {
            layout: self.layout.clone(),
            order: self.order,
            max_attempts: self.max_attempts,
            key_of: self.key_of.clone(),
            of: PhantomData,
        }
    }
}

/// What there is in a queue, at one revision.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct QueueStatus {
    /// The revision.
    pub revision: Revision,
    /// Items in the queue, those that are claimed included.
    pub items: u64,
    /// Items that consumers have.
    pub claimed: u64,
    /// Items that wait for their time to enter.
    pub delayed: u64,
    /// Items that were put aside.
    pub dead: u64,
    /// Consumers.
    pub consumers: u64,
}

impl Client {
    /// The queue of this name, whose items are given out about in the order of their pushes; several at a
    /// time. See [`Queue::strict`] and [`Queue::ordered_by`].
    #[must_use]
    pub fn queue<T>(&self, name: impl AsRef<str>) -> Queue<T> {
        Queue {
            layout: Layout::new(self.clone(), name.as_ref()),
            order: Order::Parallel,
            max_attempts: Some(ATTEMPTS_MAX),
            key_of: None,
            of: PhantomData,
        }
    }
}

impl<T> Queue<T> {
    /// The queue whose keys lie below `space`, for a recipe that pushes to its log.
    pub(crate) fn below(client: Client, space: KeySpace) -> Self {
        Self {
            layout: Layout::below(client, space),
            order: Order::Parallel,
            max_attempts: None,
            key_of: None,
            of: PhantomData,
        }
    }

    pub(crate) fn log(&self) -> &SegmentedLog {
        &self.layout.log
    }

    /// What takes an item out, whoever has it.
    pub(crate) fn taken_out(&self, id: &ItemId) -> [RequestOp; 2] {
        let item = KeyRange::one(self.layout.log.key(id));
        [item, self.layout.tries_of(id)].map(ops::delete)
    }

    /// The queue of what lies in the closed segments of a log, several at a time, for a recipe that closes
    /// them.
    pub(crate) fn gated(client: Client, space: KeySpace, log: SegmentedLog, gated: Gated) -> Self {
        Self {
            layout: Layout::gated(client, space, log, gated),
            // Without keys it holds nothing up, and what is put off keeps its place.
            order: Order::Keyed,
            max_attempts: None,
            key_of: None,
            of: PhantomData,
        }
    }

    /// Items are given out one after the other, exactly in the order of their commits: the next one when the
    /// one before is acknowledged or put aside. All consumers of the queue must say so.
    #[must_use]
    pub fn strict(mut self) -> Self {
        self.order = Order::Strict;
        self
    }

    /// Items of the same key are given out one after the other, exactly in the order of their commits; those
    /// of different keys at the same time. All who push must say so with the same keys, and all consumers.
    #[must_use]
    pub fn ordered_by(mut self, key_of: impl Fn(&T) -> String + Send + Sync + 'static) -> Self {
        self.order = Order::Keyed;
        self.key_of = Some(Arc::new(key_of));
        self
    }

    /// An item that was taken so often (at least once) becomes a dead letter instead of being taken again; 5 if
    /// not told. Consumers may differ in it.
    #[must_use]
    pub fn max_attempts(mut self, most: u32) -> Self {
        self.max_attempts = Some(most.max(1));
        self
    }

    /// Items are taken again and again, however often they come back.
    #[must_use]
    pub fn without_max_attempts(mut self) -> Self {
        self.max_attempts = None;
        self
    }

    /// Items in one segment of the log, 256 if not told: the smaller, the less a consumer knows at a time, and
    /// the more often pushes have a write more.
    #[must_use]
    pub fn with_segment_items(mut self, items: usize) -> Self {
        self.layout.log = self.layout.log.with_segment_items(items);
        self
    }

    /// Begins to take items.
    ///
    /// # Errors
    /// [`Error::Mismatch`] when consumers of another order were there before; [`Error::SessionLost`];
    /// [`Error::Codec`]; the store's final refusals. Trouble with the store is waited out.
    ///
    /// # Cancel safety
    /// Nothing is left behind when the future is dropped.
    pub async fn consumer(&self, session: &Session) -> Result<Consumer<T>> {
        Consumer::start(self.layout.clone(), self.order, self.max_attempts, session).await
    }

    /// How much there is.
    ///
    /// # Errors
    /// The store's.
    pub async fn status(&self) -> Result<QueueStatus> {
        let layout = &self.layout;
        let count = |range: KeyRange| {
            let mut read = ops::range(range);
            read.count_only = true;
            ops::read(read)
        };
        let mut tries = ops::range(layout.tries().range());
        tries.keys_only = true;
        let request = TxnRequest {
            success: vec![
                count(layout.log.range(0, None)),
                count(layout.delayed().range()),
                count(layout.dead_letters().range()),
                count(layout.consumers().range()),
                ops::read(tries),
            ],
            ..TxnRequest::default()
        };
        let answer = layout.client.store().txn(request).await?;
        let found = |index: usize| ops::count(&answer.responses, index);
        let tries = ops::kvs(&answer.responses, 4).iter();
        let claims = tries.filter(|kv| {
            let tried = layout.tried(&kv.key);
            matches!(tried, Some((_, record::Tried::Claim)))
        });
        Ok(QueueStatus {
            revision: Revision(answer.header.map_or(0, |header| header.revision)),
            items: found(0),
            delayed: found(1),
            dead: found(2),
            consumers: found(3),
            claimed: u64::try_from(claims.count()).unwrap_or(u64::MAX),
        })
    }

    /// Takes an item out of the queue, whether or not somebody has it: that one finds its claim lost. Returns
    /// whether it was there.
    ///
    /// # Errors
    /// [`Error::Codec`] for an item that cannot be read; the store's. An ambiguous one may have been done.
    pub async fn remove(&self, id: &ItemId) -> Result<bool> {
        let layout = &self.layout;
        let key = layout.log.key(id);
        let Some(kv) = layout.client.get(&key).await? else {
            return Ok(false);
        };
        let about = About::read(&key, &kv.value)?;
        let unique = about.unique.map(|name| layout.unique(&name));
        let request = TxnRequest {
            compare: vec![Compare::create_revision(&key, Revision(kv.create_revision)).into()],
            success: [key]
                .into_iter()
                .chain(unique)
                .map(KeyRange::one)
                .chain([layout.tries_of(id)])
                .map(ops::delete)
                .collect(),
            failure: Vec::new(),
        };
        Ok(layout.client.store().txn(request).await?.succeeded)
    }
}

impl<T: Serialize> Queue<T> {
    /// Pushes an item, exactly once although answers get lost.
    ///
    /// # Errors
    /// [`Error::Codec`]; [`Error::Invalid`] for an item that is too large; [`Error::SessionLost`];
    /// [`Error::OutcomeUnknown`] when the session ended with an answer still to come; the store's final
    /// refusals.
    ///
    /// # Cancel safety
    /// Dropping the future is an unknown outcome: once or not at all.
    pub async fn push(&self, session: &Session, value: &T) -> Result<ItemId> {
        let ids = self.append(
            session,
            vec![self.item(value, About::now())?],
            Effect::default(),
        );
        match ids.await? {
            Appended::Done { ids, .. } => Ok(first(ids)),
            Appended::Refused { .. } => Err(Error::Conflict),
        }
    }

    /// Pushes items in this order, as many in one transaction as fit, each transaction wholly or not at all.
    /// What others push may come between two transactions.
    ///
    /// # Errors
    /// As [`Queue::push`]; items before the one that failed are in the queue.
    ///
    /// # Cancel safety
    /// Dropping the future is an unknown outcome for the transaction on its way, and none of the later ones
    /// is sent.
    pub async fn push_all<'a>(
        &self,
        session: &Session,
        values: impl IntoIterator<Item = &'a T>,
    ) -> Result<Vec<ItemId>>
    where
        T: 'a,
    {
        let items = values
            .into_iter()
            .map(|value| self.item(value, About::now()));
        let mut left: Vec<Bytes> = items.collect::<Result<_>>()?;
        let mut pushed = Vec::with_capacity(left.len());
        while !left.is_empty() {
            let rest = left.split_off(self.layout.log.fitting(&left, &Effect::default()));
            match self.append(session, left, Effect::default()).await? {
                Appended::Done { ids, .. } => pushed.extend(ids),
                Appended::Refused { .. } => return Err(Error::Conflict),
            }
            left = rest;
        }
        Ok(pushed)
    }

    /// Pushes an item without a session, at least once: when an answer gets lost it may come twice.
    ///
    /// # Errors
    /// [`Error::Codec`]; the store's final refusals. Trouble with the store is waited out.
    ///
    /// # Cancel safety
    /// Dropping the future is an unknown outcome.
    pub async fn push_at_least_once(&self, value: &T) -> Result<ItemId> {
        let append = Append {
            items: vec![self.item(value, About::now())?],
            ..Append::default()
        };
        match self.layout.log.append_at_least_once(&append).await? {
            Appended::Done { ids, .. } => Ok(first(ids)),
            Appended::Refused { .. } => Err(Error::Conflict),
        }
    }

    /// Pushes an item unless one of this name is in the queue, waits to enter it, or is being worked at.
    /// Returns its id; `None` when there is one.
    ///
    /// # Errors
    /// As [`Queue::push`].
    ///
    /// # Cancel safety
    /// As [`Queue::push`].
    pub async fn push_unique(
        &self,
        session: &Session,
        name: &str,
        value: &T,
    ) -> Result<Option<ItemId>> {
        let about = About {
            unique: Some(name.to_owned()),
            ..About::now()
        };
        let key = self.layout.unique(name);
        let besides = Effect {
            when: vec![Compare::absent(&key)],
            then: vec![ops::put(&key, Bytes::new(), None)],
            otherwise: Vec::new(),
        };
        let pushed = self.append(session, vec![self.item(value, about)?], besides);
        Ok(match pushed.await? {
            Appended::Done { ids, .. } => Some(first(ids)),
            Appended::Refused { .. } => None,
        })
    }

    /// Pushes an item that enters the queue, at its end, after this time: by the wall clock of whichever
    /// consumer sees to it, and only while there is a consumer. Returns the key that it waits under, which
    /// may be deleted until then.
    ///
    /// # Errors
    /// As [`Queue::push`].
    ///
    /// # Cancel safety
    /// As [`Queue::push`].
    pub async fn push_after(&self, session: &Session, delay: Duration, value: &T) -> Result<Key> {
        session.belongs_to(&self.layout.client)?;
        let delay_ms = u64::try_from(delay.as_millis()).unwrap_or(u64::MAX);
        let due_ms = self.layout.client.wall_millis().saturating_add(delay_ms);
        let nonce = self.layout.client.nonce();
        let key = self.layout.delayed_item(due_ms, &nonce);
        let effect = Effect {
            then: vec![ops::put(&key, self.item(value, About::now())?, None)],
            ..Effect::default()
        };
        session.actor().apply(effect).await?;
        Ok(key)
    }

    /// An item as it is written.
    pub(crate) fn written(&self, value: &T) -> Result<Bytes> {
        self.item(value, About::now())
    }

    fn item(&self, value: &T, about: About) -> Result<Bytes> {
        let key = self.key_of.as_ref().map(|key_of| key_of(value));
        let about = About { key, ..about };
        let item = ItemRecord::new(about, value).write(&self.layout.log.head_key())?;
        let limit = self.layout.client.store().capabilities().max_request_bytes;
        let most = limit.saturating_sub(ITEM_BYTES_SPARE);
        if item.len() > most {
            // It could be taken, and not be moved.
            let bytes = item.len();
            return Err(Error::Invalid(format!(
                "an item of {bytes} bytes; at most {most}"
            )));
        }
        Ok(item)
    }

    async fn append(
        &self,
        session: &Session,
        items: Vec<Bytes>,
        besides: Effect,
    ) -> Result<Appended> {
        let append = Append { items, besides };
        self.layout.log.append(session, &append).await
    }
}

/// An item's value, or why it cannot be read; and when it was pushed.
pub(crate) fn read_item<T: DeserializeOwned>(
    kv: &KeyValue,
) -> (std::result::Result<T, String>, u64) {
    let key = Key::from(kv.key.clone());
    match ItemRecord::<T>::read(&key, &kv.value) {
        Ok(record) => (Ok(record.value), record.about.since_ms),
        Err(error) => {
            let about = About::read(&key, &kv.value).unwrap_or_else(|_| About::unknown());
            (Err(error.to_string()), about.since_ms)
        }
    }
}

fn first(ids: Vec<ItemId>) -> ItemId {
    ids.into_iter().next().expect("an id for each item")
}

impl<T> fmt::Debug for Queue<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Queue")
            .field("layout", &self.layout)
            .field("order", &self.order)
            .field("max_attempts", &self.max_attempts)
            .finish_non_exhaustive()
    }
}
