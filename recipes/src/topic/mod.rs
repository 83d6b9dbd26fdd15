//! Topics: messages are published in the order of their commits and kept; every reader and every group of
//! readers gets all of them, from wherever it wants to begin.
//!
//! `record` is how a topic lies in the store, `position` where a message stands in it, `locate` finds where a
//! reader begins, `reader` reads one partition, `subscription` all of them, `group` shares them out among
//! members that remember how far they are, `retain` removes what is not kept any more, `status` counts. `live`
//! is the form that keeps nothing.

mod cursor;
mod group;
mod live;
mod locate;
mod message;
mod position;
mod publish;
mod reader;
mod record;
mod retain;
mod status;
mod subscription;
#[cfg(test)]
mod tests;

use std::fmt;
use std::marker::PhantomData;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use quorate_proto::etcdserverpb::TxnRequest;

pub use group::{GroupBuilder, GroupConsumer};
pub use live::{LiveSubscription, LiveTopic};
pub use message::{Lagged, Message, ReadError, Received, Unreadable};
pub use position::{Position, Start};
pub(crate) use record::{KIND, passed, shares};
pub use retain::{Retainer, Retention};
pub(crate) use status::survey;
pub use status::{GroupLag, GroupStatus, PartitionStatus, TopicStatus};
pub use subscription::Subscription;

use crate::assign::PARTITIONS_MAX;
use crate::client::Client;
use crate::error::{Error, Result};
use crate::hash::{fnv1a, mix};
use crate::session::Session;
use crate::store::ops::{self, Compare};
use crate::value::{Json, Value, from_json};
use crate::wait;
use record::{Layout, MetaRecord};

/// A topic. A handle: cheap to clone, holds nothing.
///
/// Costs: publishing is one transaction, which holds up no other; a reader that is up to date gets a message by
/// its watch, one that is behind reads pages.
///
/// ```no_run
/// use quorate_recipes::topic::{ReadError, Start};
///
/// # async fn example(client: quorate_recipes::Client) -> Result<(), Box<dyn std::error::Error>> {
/// let session = client.session().await?;
/// let topic = client.topic::<String>("audit").partitions(4);
/// topic.publish_keyed(&session, "anna", &"logged in".to_owned()).await?;
/// let mut messages = topic.subscribe(Start::Earliest).await?;
/// loop {
///     match messages.next().await {
///         Ok(message) => println!("{}: {}", message.position, message.value),
///         Err(ReadError::Failed(error)) => return Err(error.into()),
///         Err(missed) => println!("{missed}"),
///     }
/// }
/// # }
/// ```
pub struct Topic<T> {
    layout: Layout,
    name: String,
    count: u32,
    segment_items: Option<usize>,
    retention: Retention,
    shared: Arc<Shared>,
    of: PhantomData<fn() -> T>,
}

/// What clones of a handle share.
struct Shared {
    /// Whether the topic is known to have so many partitions.
    agreed: AtomicBool,
    /// The partition of the next message without a key.
    turn: AtomicU32,
}

impl<T> Clone for Topic<T> {
    fn clone(&self) -> Self {
        Self {
            layout: self.layout.clone(),
            name: self.name.clone(),
            count: self.count,
            segment_items: self.segment_items,
            retention: self.retention.clone(),
            shared: Arc::clone(&self.shared),
            of: PhantomData,
        }
    }
}

impl Client {
    /// The topic of this name, of one partition unless told otherwise, which keeps everything.
    #[must_use]
    pub fn topic<T>(&self, name: impl Into<String>) -> Topic<T> {
        Topic::new(self.clone(), name.into(), 1)
    }
}

impl<T> Topic<T> {
    fn new(client: Client, name: String, count: u32) -> Self {
        let first = u32::try_from(client.random() >> 33).unwrap_or(0);
        Self {
            layout: Layout::new(client, &name, count.min(PARTITIONS_MAX)),
            name,
            count,
            segment_items: None,
            retention: Retention::default(),
            shared: Arc::new(Shared {
                agreed: AtomicBool::new(false),
                turn: AtomicU32::new(first),
            }),
            of: PhantomData,
        }
    }

    /// So many partitions, 1 to [`PARTITIONS_MAX`]: orders are kept within each, and the members of a group share
    /// them. Whoever uses the topic first fixes the number; handles that say another one get
    /// [`Error::Mismatch`].
    #[must_use]
    pub fn partitions(self, count: u32) -> Self {
        let topic = Self::new(self.layout.client.clone(), self.name, count);
        let topic = Self {
            retention: self.retention,
            ..topic
        };
        match self.segment_items {
            Some(items) => topic.with_segment_items(items),
            None => topic,
        }
    }

    /// What is to be kept, and what may be removed. It is done by one of the [retainers](Topic::retainer) and
    /// consumers of groups that there are, as its own handle says; so all should say the same.
    #[must_use]
    pub fn retain(mut self, retention: Retention) -> Self {
        self.retention = retention;
        self
    }

    /// Messages in one segment of a partition's log, 256 if not told: what is removed at a time.
    #[must_use]
    pub fn with_segment_items(mut self, items: usize) -> Self {
        self.segment_items = Some(items);
        self.layout = self.layout.with_segment_items(items);
        self
    }

    /// The partition of messages with this key.
    #[must_use]
    pub fn partition_of(&self, key: &str) -> u32 {
        let hash = mix(fnv1a(key.as_bytes()));
        let index = hash % u64::from(self.layout.partitions().max(1));
        u32::try_from(index).unwrap_or(0)
    }

    /// The partition of the next message that has no key: one after the other.
    fn next_partition(&self) -> u32 {
        let turn = self.shared.turn.fetch_add(1, Ordering::Relaxed);
        turn % self.layout.partitions().max(1)
    }

    /// Reads the topic from `start` on; ready once it is settled where that is, so that
    /// [`Start::Latest`] misses nothing that is published afterwards.
    ///
    /// # Errors
    /// [`Error::Mismatch`] for another number of partitions; [`Error::Invalid`] for a number out of range, or a
    /// position that is none of this topic; [`Error::Codec`]; the store's final refusals. Trouble with the
    /// store is waited out.
    ///
    /// # Cancel safety
    /// Nothing is left behind when the future is dropped.
    pub async fn subscribe(&self, start: Start) -> Result<Subscription<T>> {
        self.agree(None).await?;
        Subscription::start(&self.layout, &start).await
    }

    /// Joins the group of this name when awaited: its members share the partitions, and remember in the store
    /// how far they are. See [`GroupBuilder`].
    pub fn group(&self, session: &Session, name: impl Into<String>) -> GroupBuilder<T> {
        GroupBuilder::new(self.clone(), session, name.into())
    }

    /// Forgets how far a group is: it does not hold up the removal of messages any more. Members that there
    /// still are get [`Error::Removed`] when they say that something is done. Returns whether the group was
    /// known.
    ///
    /// # Errors
    /// The store's; an ambiguous one may have been done.
    pub async fn forget_group(&self, name: &str) -> Result<bool> {
        let cursors = self.layout.group(name).range();
        let txn = self.layout.client.txn().delete_range(cursors);
        Ok(txn.commit().await?.deleted(0) > 0)
    }

    /// Sees to it that what needs not be kept is removed, until it is dropped or the session is lost: one of
    /// all who do at a time.
    ///
    /// # Errors
    /// [`Error::Invalid`] when this handle keeps everything, or for a session of another store, or a number of
    /// partitions that is out of range.
    pub fn retainer(&self, session: &Session) -> Result<Retainer> {
        session.belongs_to(&self.layout.client)?;
        self.check()?;
        if self.retention.is_forever() {
            return Err(Error::Invalid(format!(
                "{} is to keep everything",
                self.layout.any_key()
            )));
        }
        Ok(Retainer::start(&self.layout, &self.retention, session))
    }

    pub(crate) fn client(&self) -> &Client {
        &self.layout.client
    }

    fn check(&self) -> Result<()> {
        if (1..=PARTITIONS_MAX).contains(&self.count) {
            return Ok(());
        }
        Err(Error::Invalid(format!(
            "{} partitions; there may be 1 to {PARTITIONS_MAX}",
            self.count
        )))
    }

    /// Makes sure that all handles take the topic to have as many partitions.
    async fn agree(&self, session: Option<&Session>) -> Result<()> {
        if let Some(session) = session {
            session.belongs_to(&self.layout.client)?;
        }
        self.check()?;
        if self.shared.agreed.load(Ordering::Acquire) {
            return Ok(());
        }
        let key = self.layout.meta();
        let wanted = MetaRecord::new(self.count);
        let request = TxnRequest {
            compare: vec![Compare::absent(&key).into()],
            success: vec![ops::put(
                &key,
                Value::from(Json(wanted)).into_bytes(&key)?,
                None,
            )],
            failure: vec![ops::read(ops::get(&key))],
        };
        // Only made once, so a late copy finds it there.
        let answer = match session {
            Some(session) => {
                let run = session
                    .actor()
                    .run(|actor| async move { Ok(actor.repeat(request).await?.0) });
                run.await?
            }
            None => wait::repeat(&self.layout.client, request).await?.0,
        };
        if let Some(kv) = ops::kvs(&answer.responses, 0).first() {
            let stored: MetaRecord = from_json(&kv.key, &kv.value)?;
            if stored.partitions != self.count {
                return Err(Error::Mismatch {
                    key,
                    wanted: partitions(self.count),
                    stored: partitions(stored.partitions),
                });
            }
        }
        self.shared.agreed.store(true, Ordering::Release);
        Ok(())
    }
}

fn partitions(count: u32) -> String {
    match count {
        1 => "a topic of 1 partition".to_owned(),
        count => format!("a topic of {count} partitions"),
    }
}

impl<T> fmt::Debug for Topic<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Topic")
            .field("name", &self.name)
            .field("partitions", &self.count)
            .field("retention", &self.retention)
            .finish_non_exhaustive()
    }
}
