//! Queues: items are pushed in the order of their commits, taken by one consumer each, and done when they are
//! acknowledged. What a consumer that ends has taken, others take again.
//!
//! `record` is how a queue lies in the store, `push` puts items in, `bound` as many as there is room for,
//! `window` is what a session knows of the front and what its consumers take next, `seat` is how each of them gets
//! at that, `follow` keeps it up to date, `consumer` takes, `delivery` is what was taken, `delay` moves items whose
//! time has come, `dead` is about those that were put aside, `lanes` are several queues of which some come first,
//! `several` takes from more than one, `watches` are those of one front.

mod bound;
mod consumer;
mod dead;
mod delay;
mod delivery;
mod follow;
mod lanes;
mod push;
mod record;
mod seat;
mod several;
mod survey;
#[cfg(test)]
mod tests;
mod watches;
mod window;

use std::fmt;
use std::marker::PhantomData;
use std::sync::Arc;
use std::time::Duration;

use quorate_proto::etcdserverpb::{RequestOp, TxnRequest};
use serde::Serialize;

pub use consumer::Consumer;
use consumer::Limits;
pub use dead::DeadLetter;
pub(crate) use dead::Revived;
pub use delivery::{AckError, Delivery, Nack};
pub use lanes::{PriorityConsumer, PriorityQueue};
pub(crate) use lanes::{lane_space, lanes_key, lanes_of};

use crate::client::Client;
use crate::error::Result;
use crate::keys::{Key, KeyRange, KeySpace, Revision};
use crate::kit::{ItemId, SegmentedLog};
use crate::lock::Limit;
use crate::session::Session;
use crate::store::ops::{self, Compare};
use bound::Bound;
use record::{About, Layout, Order};
pub(crate) use record::{Gated, read_item};

/// The kind of key space that queues live in.
pub(crate) const KIND: &str = "queue";

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
    max_work: Option<Duration>,
    bound: Bound,
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
            max_work: self.max_work,
            bound: self.bound.clone(),
            key_of: self.key_of.clone(),
            of: PhantomData,
        }
    }
}

/// What there is in a queue, at one revision.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
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
    /// How many items it takes, those in it and those that wait for their time; `None`: as many as come.
    pub limit: Option<u32>,
    /// Pushes that wait for room.
    pub waiting: u64,
}

impl Client {
    /// The queue of this name, whose items are given out about in the order of their pushes; several at a
    /// time. See [`Queue::strict`] and [`Queue::ordered_by`].
    #[must_use]
    pub fn queue<T>(&self, name: impl AsRef<str>) -> Queue<T> {
        Queue::new(self, KeySpace::of(KIND, name.as_ref()))
    }
}

impl<T> Queue<T> {
    pub(crate) fn new(client: &Client, space: KeySpace) -> Self {
        Self::laid_out(Layout::new(client.clone(), space))
    }

    fn laid_out(layout: Layout) -> Self {
        Self {
            layout,
            order: Order::Parallel,
            max_attempts: Some(ATTEMPTS_MAX),
            max_work: None,
            bound: Bound::None,
            key_of: None,
            of: PhantomData,
        }
    }

    pub(crate) fn log(&self) -> &SegmentedLog {
        &self.layout.log
    }

    /// Whoever has the item; leased.
    pub(crate) fn claim(&self, id: &ItemId) -> Key {
        self.layout.claim(id)
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
            // Without keys it holds nothing up, and what is put off keeps its place.
            order: Order::Keyed,
            max_attempts: None,
            ..Self::laid_out(Layout::gated(client, space, log, gated))
        }
    }

    /// The queue of these keys as part of another recipe, whose consumers all take alike, however often an item
    /// comes back, and delay none: nothing is left in the store of who took from it.
    pub(crate) fn of_recipe(client: &Client, space: KeySpace) -> Self {
        let mut queue = Self::new(client, space);
        queue.layout.of_recipe = true;
        queue.without_max_attempts()
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

    /// A consumer has an item for no longer than this, by its own clock: then it gives it up, as if it were given
    /// back, so that one which hangs does not stop a queue in an exact order. Its work learns of that by
    /// [`Delivery::lost`], is dropped in [`Delivery::scope`] and [`Consumer::for_each_concurrent`], and can end the
    /// item no more. The consumer itself takes the item again only once the delivery is dropped. If not told, as
    /// long as its session lives. Consumers may differ in it.
    #[must_use]
    pub fn max_work(mut self, limit: Duration) -> Self {
        self.max_work = Some(limit);
        self
    }

    /// Keeps so many dead letters: whoever puts an item aside beyond that removes those that were put aside first,
    /// for good. 0: none is kept. If not told, all stay until they are put back or thrown away. Consumers may
    /// differ in it.
    ///
    /// There may be more for a moment, by one for each that is put aside at the same time.
    #[must_use]
    pub fn keep_dead(mut self, most: usize) -> Self {
        self.layout.dead_max = Some(most);
        self
    }

    /// Holds at most so many items, those that consumers have and those that wait to enter included, dead
    /// letters not: then pushes wait for room, in the order in which they came. Never more, at any revision. All
    /// who push must say so, and who puts dead letters back.
    ///
    /// It costs what counting costs: pushes are one after the other, each one transaction as long as nobody else
    /// pushes meanwhile, else tried again after a new count, which etcd takes time for by the number of items.
    #[must_use]
    pub fn bounded(mut self, limit: impl Into<Limit>) -> Self {
        self.bound = Bound::limited(limit.into());
        self
    }

    /// Changes the limit, or sets one, for everybody. Lowering it takes no item away. Other handles that were
    /// made with [`Limit::Exactly`] or without a limit, clones among them, fail from then on.
    ///
    /// # Errors
    /// The store's; an ambiguous one may have changed it. A copy of it that comes late changes nothing.
    pub async fn resize(&mut self, limit: u32) -> Result<()> {
        self.bound.resize(&self.layout, limit).await
    }

    /// Items in one segment of the log, 256 if not told: the smaller, the less a session knows at a time, and
    /// the more often pushes have a write more.
    #[must_use]
    pub fn with_segment_items(mut self, items: usize) -> Self {
        self.layout.log = self.layout.log.with_segment_items(items);
        self
    }

    /// Begins to take items.
    ///
    /// # Errors
    /// [`Mismatch`](crate::Error::Mismatch) when consumers of another order were there before;
    /// [`SessionLost`](crate::Error::SessionLost); [`Codec`](crate::Error::Codec); the store's final refusals. Trouble with the store is waited out.
    ///
    /// # Cancel safety
    /// Nothing is left behind when the future is dropped.
    pub async fn consumer(&self, session: &Session) -> Result<Consumer<T>> {
        let layout = self.layout.clone();
        let limits = Limits {
            attempts: self.max_attempts,
            work: self.max_work,
        };
        Consumer::start(layout, self.order, limits, session).await
    }

    /// How much there is.
    ///
    /// # Errors
    /// The store's; [`Codec`](crate::Error::Codec) for a limit that cannot be read.
    pub async fn status(&self) -> Result<QueueStatus> {
        let survey = self.survey(Revision(0), 0).await?;
        survey.unreadable.map_or(Ok(survey.status), Err)
    }

    /// Takes an item out of the queue, whether or not somebody has it: that one finds its claim lost. Returns
    /// whether it was there.
    ///
    /// # Errors
    /// [`Codec`](crate::Error::Codec) for an item that cannot be read; the store's. An ambiguous one may have been done.
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

impl<T> fmt::Debug for Queue<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Queue")
            .field("layout", &self.layout)
            .field("order", &self.order)
            .field("max_attempts", &self.max_attempts)
            .finish_non_exhaustive()
    }
}
