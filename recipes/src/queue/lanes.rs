//! Priorities: several queues, the lanes, of which those before are emptied first.

use std::fmt;
use std::num::NonZeroU32;
use std::sync::atomic::{AtomicU64, Ordering};

use futures::future::join_all;
use futures::{Stream, stream};
use quorate_proto::etcdserverpb::TxnRequest;
use quorate_proto::mvccpb::KeyValue;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::consumer::Consumer;
use super::delivery::Delivery;
use super::{KIND, Queue, QueueStatus};
use crate::client::Client;
use crate::error::{Error, Result};
use crate::keys::{Key, KeySpace};
use crate::session::Session;
use crate::store::ops::{self, Compare};
use crate::value::{Json, V1, Value, from_json};
use crate::wait;

/// Most lanes of one queue: each costs a consumer what a queue of its own costs.
const LANES_MAX: u32 = 16;

/// Queues by priority: an item of a lane is taken when none of the lanes before has one that is free. A handle:
/// cheap to clone, holds nothing.
///
/// Each lane is a [`Queue`] and can do what that can; the order of one lane says nothing about another.
///
/// ```no_run
/// # async fn example(client: quorate_recipes::Client) -> Result<(), quorate_recipes::Error> {
/// let session = client.session().await?;
/// let mails = client.priority_queue::<String>("mails", 2).await?;
/// mails.lane(1)?.push(&session, &"newsletter".to_owned()).await?;
/// mails.lane(0)?.push(&session, &"password".to_owned()).await?;
/// let first = mails.consumer(&session).await?.pop().await?;
/// assert_eq!(first.value(), "password");
/// # first.ack().await?; Ok(()) }
/// ```
pub struct PriorityQueue<T> {
    lanes: Vec<Queue<T>>,
    other_way: Option<NonZeroU32>,
}

impl<T> Clone for PriorityQueue<T> {
    fn clone(&self) -> Self {
        Self {
            lanes: self.lanes.clone(),
            other_way: self.other_way,
        }
    }
}

/// What is agreed on about the lanes of a queue.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
struct LanesRecord {
    v: V1,
    lanes: u32,
}

impl Client {
    /// The queue of this name with so many lanes, at least 1 and at most 16: that number is settled by who asks
    /// first. Trouble with the store is waited out.
    ///
    /// # Errors
    /// [`Error::Mismatch`] when it has another number of lanes; [`Error::Invalid`] for a number that is not
    /// possible; [`Error::Codec`]; the store's final refusals.
    ///
    /// # Cancel safety
    /// The number may be settled when the future is dropped.
    pub async fn priority_queue<T>(
        &self,
        name: impl AsRef<str>,
        lanes: u32,
    ) -> Result<PriorityQueue<T>> {
        if lanes == 0 || lanes > LANES_MAX {
            let why = format!("{lanes} lanes; from 1 to {LANES_MAX}");
            return Err(Error::Invalid(why));
        }
        let space = KeySpace::of(KIND, name.as_ref());
        agree(self, &space, lanes).await?;
        let lane = |n: u32| Queue::new(self, lane_space(&space, n));
        Ok(PriorityQueue {
            lanes: (0..lanes).map(lane).collect(),
            other_way: None,
        })
    }
}

/// The key that says how many lanes a queue has.
pub(crate) fn lanes_key(space: &KeySpace) -> Key {
    space.key("lanes")
}

/// How many lanes a queue has, as its key says; none if that cannot be read.
pub(crate) fn lanes_of(kv: &KeyValue) -> u32 {
    let record: Result<LanesRecord> = from_json(&kv.key, &kv.value);
    record.map_or(0, |record| record.lanes.min(LANES_MAX))
}

/// The keys of one lane.
pub(crate) fn lane_space(space: &KeySpace, lane: u32) -> KeySpace {
    space.child("lane").child(&lane.to_string())
}

/// Makes sure that everybody has the same number of lanes.
async fn agree(client: &Client, space: &KeySpace, lanes: u32) -> Result<()> {
    let key = lanes_key(space);
    let record = Value::from(Json(LanesRecord { v: V1, lanes })).into_bytes(&key)?;
    let request = TxnRequest {
        compare: vec![Compare::absent(&key).into()],
        success: vec![ops::put(&key, record, None)],
        failure: vec![ops::read(ops::get(&key))],
    };
    // Only made once, so a late copy finds it there.
    let (answer, _) = wait::repeat(client, request).await?;
    let Some(kv) = ops::kvs(&answer.responses, 0).first() else {
        return Ok(());
    };
    let stored: LanesRecord = from_json(&kv.key, &kv.value)?;
    if stored.lanes == lanes {
        return Ok(());
    }
    Err(Error::Mismatch {
        key,
        wanted: format!("a queue with {lanes} lanes"),
        stored: format!("a queue with {} lanes", stored.lanes),
    })
}

impl<T> PriorityQueue<T> {
    /// Settles something for each lane: `queue.each(|lane| lane.max_attempts(3))`.
    #[must_use]
    pub fn each(mut self, settle: impl Fn(Queue<T>) -> Queue<T>) -> Self {
        self.lanes = self.lanes.into_iter().map(settle).collect();
        self
    }

    /// Of so many items that a consumer takes, one is looked for in the lanes from the last on, so that those are
    /// not left alone for as long as the first ones have items. Never, if not told.
    #[must_use]
    pub fn other_way_every(mut self, items: NonZeroU32) -> Self {
        self.other_way = Some(items);
        self
    }

    /// One of the lanes; lane 0 comes first.
    ///
    /// # Errors
    /// [`Error::Invalid`] when there is no such lane.
    pub fn lane(&self, lane: usize) -> Result<&Queue<T>> {
        let lanes = self.lanes.len();
        let missing = || Error::Invalid(format!("lane {lane} of {lanes}"));
        self.lanes.get(lane).ok_or_else(missing)
    }

    /// Begins to take items of all lanes.
    ///
    /// # Errors
    /// As [`Queue::consumer`].
    ///
    /// # Cancel safety
    /// As [`Queue::consumer`].
    pub async fn consumer(&self, session: &Session) -> Result<PriorityConsumer<T>> {
        let lanes = self.lanes.iter().map(|lane| lane.consumer(session));
        let lanes = join_all(lanes).await.into_iter().collect::<Result<_>>()?;
        Ok(PriorityConsumer {
            lanes,
            other_way: self.other_way,
            taken: AtomicU64::new(0),
        })
    }

    /// How much there is in each lane, each at a revision of its own.
    ///
    /// # Errors
    /// As [`Queue::status`].
    pub async fn status(&self) -> Result<Vec<QueueStatus>> {
        let each = join_all(self.lanes.iter().map(Queue::status)).await;
        each.into_iter().collect()
    }
}

/// Takes items of a [`PriorityQueue`], for as long as it and its session live. May be asked by several tasks at a
/// time. Dropping it ends no delivery.
pub struct PriorityConsumer<T> {
    lanes: Vec<Consumer<T>>,
    other_way: Option<NonZeroU32>,
    taken: AtomicU64,
}

impl<T: DeserializeOwned + Send + 'static> PriorityConsumer<T> {
    /// Takes the next item, and waits for one while there is none.
    ///
    /// # Errors
    /// As [`Consumer::pop`].
    ///
    /// # Cancel safety
    /// As [`Consumer::pop`].
    pub async fn pop(&self) -> Result<Delivery<T>> {
        let lanes: Vec<_> = self.in_order().collect();
        let (_, delivery) = Consumer::pop_any(&lanes, true).await?;
        Ok(self.counted(delivery))
    }

    /// Takes an item that is there now; `None` when the store has none that is free. Reads the fronts of the
    /// lanes again before it says so, and waits as [`Consumer::try_pop`] does.
    ///
    /// # Errors
    /// As [`Consumer::pop`].
    ///
    /// # Cancel safety
    /// As [`Consumer::pop`].
    pub async fn try_pop(&self) -> Result<Option<Delivery<T>>> {
        for lane in self.in_order() {
            if let Some(delivery) = lane.try_pop().await? {
                return Ok(Some(self.counted(delivery)));
            }
        }
        Ok(None)
    }

    /// The items as they are taken, which ends after the first error.
    pub fn stream(&self) -> impl Stream<Item = Result<Delivery<T>>> + Send {
        stream::unfold(Some(self), |consumer| async move {
            let consumer = consumer?;
            match consumer.pop().await {
                Ok(delivery) => Some((Ok(delivery), Some(consumer))),
                Err(error) => Some((Err(error), None)),
            }
        })
    }

    /// The lanes as they are looked into for the next item.
    fn in_order(&self) -> impl Iterator<Item = &Consumer<T>> {
        let next = self.taken.load(Ordering::Relaxed) + 1;
        let other_way = self
            .other_way
            .is_some_and(|every| next.is_multiple_of(u64::from(every.get())));
        let lanes = self.lanes.len();
        (0..lanes).map(move |n| &self.lanes[if other_way { lanes - 1 - n } else { n }])
    }

    fn counted(&self, delivery: Delivery<T>) -> Delivery<T> {
        self.taken.fetch_add(1, Ordering::Relaxed);
        delivery
    }
}

impl<T> fmt::Debug for PriorityQueue<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PriorityQueue")
            .field("lanes", &self.lanes)
            .finish_non_exhaustive()
    }
}

impl<T> fmt::Debug for PriorityConsumer<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PriorityConsumer")
            .field("lanes", &self.lanes)
            .finish_non_exhaustive()
    }
}
