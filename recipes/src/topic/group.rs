//! Groups: members that share the partitions of a topic, and remember in the store how far they are.

use std::fmt;
use std::future::IntoFuture;
use std::marker::PhantomData;
use std::task::{Context, Poll};
use std::time::Duration;

use futures::FutureExt;
use futures::future::{BoxFuture, poll_fn};
use serde::de::DeserializeOwned;

use super::Topic;
use super::cursor::{Cursor, is_behind};
use super::locate::Spot;
use super::message::{Message, ReadError, Received};
use super::position::Start;
use super::reader::Read;
use super::record::Layout;
use super::retain::Retainer;
use super::subscription::{Readers, decode};
use crate::assign::{Partition, PartitionSet, Partitions};
use crate::client::Client;
use crate::clock::{self, Instant};
use crate::error::{Error, Result, TxnError};
use crate::lock::FencingToken;
use crate::session::Session;
use crate::txn::Txn;

/// Joins a group when awaited.
#[must_use = "awaiting the builder joins the group"]
pub struct GroupBuilder<T> {
    topic: Topic<T>,
    session: Session,
    group: String,
    start: Start,
    auto: Option<Auto>,
}

/// When what was given to the user counts as done without a word.
#[derive(Debug, Clone, Copy)]
struct Auto {
    messages: usize,
    time: Duration,
}

impl<T> GroupBuilder<T> {
    pub(super) fn new(topic: Topic<T>, session: &Session, group: String) -> Self {
        Self {
            topic,
            session: session.clone(),
            group,
            start: Start::Earliest,
            auto: None,
        }
    }

    /// Where the group begins, if it is a new one; with the oldest message there is, if not told.
    pub fn start(mut self, start: Start) -> Self {
        self.start = start;
        self
    }

    /// Takes a message to be done when the next one is asked for, and says so in the store after so many (at
    /// least one), or this time after the first of them, whichever comes first, while the next one is waited
    /// for. Without this the user [commits](GroupConsumer::commit).
    pub fn auto_commit(mut self, messages: usize, time: Duration) -> Self {
        let messages = messages.max(1);
        self.auto = Some(Auto { messages, time });
        self
    }

    async fn join(self) -> Result<GroupConsumer<T>> {
        let Self {
            topic,
            session,
            group,
            start,
            auto,
        } = self;
        topic.agree(Some(&session)).await?;
        let layout = topic.layout.clone();
        // All of them: the group begins everywhere now, and nothing that it has not seen is removed.
        for partition in 0..layout.partitions() {
            Cursor::open(&layout, &group, partition, &start, &session).await?;
        }
        let share = layout.share(&group);
        let set = PartitionSet::of(layout.client.clone(), share, layout.partitions());
        let partitions = set.join(&session).await?;
        let keeps_all = topic.retention.is_forever();
        let retainer = match keeps_all {
            true => None,
            false => Some(topic.retainer(&session)?),
        };
        Ok(GroupConsumer {
            owned: Vec::new(),
            readers: Readers::default(),
            starting: None,
            partitions,
            layout,
            group,
            start,
            auto,
            given: 0,
            since: None,
            _retainer: retainer,
            of: PhantomData,
        })
    }
}

impl<T: Send + 'static> IntoFuture for GroupBuilder<T> {
    type Output = Result<GroupConsumer<T>>;
    type IntoFuture = BoxFuture<'static, Result<GroupConsumer<T>>>;

    /// # Errors
    /// [`Error::Mismatch`] for another number of partitions; [`Error::Invalid`]; [`Error::SessionLost`];
    /// [`Error::Codec`]; the store's final refusals. Trouble with the store is waited out.
    ///
    /// # Cancel safety
    /// When the future is dropped, the member leaves as soon as it turns out to be there. The cursors of a new
    /// group may stay.
    fn into_future(self) -> Self::IntoFuture {
        self.join().boxed()
    }
}

impl<T> fmt::Debug for GroupBuilder<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GroupBuilder")
            .field("topic", &self.topic)
            .field("group", &self.group)
            .finish_non_exhaustive()
    }
}

/// A partition that this member owns.
struct Owned {
    partition: Partition,
    revoked: BoxFuture<'static, ()>,
    cursor: Cursor,
    /// What the user was given last under this ownership.
    delivered: Option<Spot>,
    /// What counts as done.
    done: Option<Spot>,
}

/// A member of a group: gets the messages of its share of the partitions, those of a partition in the order of
/// their commits, from where the group is. Each message goes to one member, and to another one again if it was
/// not [committed](GroupConsumer::commit) when the partition changed hands.
///
/// Partitions are taken and given up while the next message is waited for: a member that does not ask keeps
/// what it has as long as its session lives. Dropping it leaves the group.
#[must_use = "a dropped consumer leaves the group"]
pub struct GroupConsumer<T> {
    // Dropped before the membership, so that partitions are given up before the member leaves.
    owned: Vec<Owned>,
    readers: Readers,
    /// Owned, and its cursor is not known yet.
    starting: Option<Partition>,
    partitions: Partitions,
    layout: Layout,
    group: String,
    start: Start,
    auto: Option<Auto>,
    /// How many messages were given to the user since it was last said what is done, and since when.
    given: usize,
    since: Option<Instant>,
    _retainer: Option<Retainer>,
    of: PhantomData<fn() -> T>,
}

/// What comes next in a consumer.
enum Step {
    /// The owned one of this number falls to somebody else.
    Revoked(u32),
    Gained(Partition),
    Read(Read),
    /// It is time to say what is done.
    Due,
}

impl<T> GroupConsumer<T> {
    /// The session that everything is held under.
    #[must_use]
    pub fn session(&self) -> &Session {
        self.partitions.session()
    }

    /// The numbers of the partitions that this member owns now.
    #[must_use]
    pub fn owned(&self) -> Vec<u32> {
        let owned = self.owned.iter().map(|owned| owned.partition.index());
        let mut owned: Vec<u32> = owned.collect();
        owned.sort_unstable();
        owned
    }

    /// The token of this member's ownership of a partition, which is larger for whoever owns it later: for
    /// services outside the store. `None` when it does not own it.
    #[must_use]
    pub fn token(&self, partition: u32) -> Option<FencingToken> {
        let index = self.index_of(partition)?;
        Some(self.owned[index].partition.token())
    }

    /// The transaction under the ownership of a partition; `None` when this member does not own it.
    pub(crate) fn guarded(&self, partition: u32, txn: Txn) -> Option<Txn> {
        let index = self.index_of(partition)?;
        Some(txn.guard(&self.owned[index].partition))
    }

    /// Says that a message, and all that came before it in its partition, is done: whoever owns the partition
    /// next goes on behind it. Says nothing if that was said before.
    ///
    /// # Errors
    /// [`Error::Fenced`] when this member does not own the partition any more, or has not been given the message
    /// since it does; [`Error::Removed`] when the group was forgotten; [`Error::SessionLost`];
    /// [`Error::OutcomeUnknown`]; the store's final refusals. Trouble with the store is waited out.
    ///
    /// # Cancel safety
    /// Dropping the future is an unknown outcome: the cursor moves or does not, and never back.
    pub async fn commit(&mut self, read: &impl Received) -> Result<()> {
        let txn = self.layout.client.txn();
        self.commit_with(read, txn).await?;
        Ok(())
    }

    /// As [`GroupConsumer::commit`], together with a transaction: either the message is done and all of it is
    /// written, or nothing is. So what is written for a message is written exactly once, whoever has it how
    /// often. Returns whether it was: false when the group had come past the message before, and nothing was
    /// written now.
    ///
    /// # Errors
    /// As [`GroupConsumer::commit`]; [`TxnError::Conflict`] when a condition of the transaction does not hold;
    /// [`TxnError::Fenced`] also when a guard of its own is lost.
    ///
    /// # Cancel safety
    /// Dropping the future is an unknown outcome: once or not at all.
    pub async fn commit_with(&mut self, read: &impl Received, txn: Txn) -> Result<bool, TxnError> {
        let position = read.position();
        let to = Spot {
            place: position.place.clone(),
            passed: read.offset().map(|offset| offset + 1),
        };
        let index = self.index_of(position.partition);
        let index = index.filter(|index| {
            let delivered = self.owned[*index].delivered.as_ref();
            is_behind(&to.place, delivered)
        });
        let index = index.ok_or(TxnError::Fenced { owner: None })?;
        self.advance(index, &to, &txn).await
    }

    fn index_of(&self, partition: u32) -> Option<usize> {
        let mut owned = self.owned.iter();
        owned.position(|owned| owned.partition.index() == partition)
    }

    async fn advance(&mut self, index: usize, to: &Spot, txn: &Txn) -> Result<bool, TxnError> {
        let owned = &mut self.owned[index];
        let moved = owned.cursor.advance(to, txn, &owned.partition).await;
        if matches!(moved, Err(TxnError::Fenced { .. })) && owned.partition.is_void() {
            // Dropped, it is stood in line for again.
            self.give_up(index);
        }
        moved
    }

    fn give_up(&mut self, index: usize) {
        let owned = self.owned.remove(index);
        self.readers.remove(owned.partition.index());
    }

    /// Says what is done, of one partition.
    async fn commit_done(&mut self, index: usize) -> Result<()> {
        let owned = &self.owned[index];
        let Some(done) = owned.done.clone() else {
            return Ok(());
        };
        let txn = self.layout.client.txn();
        match self.advance(index, &done, &txn).await {
            // Given up, or found to be so.
            Ok(_) | Err(TxnError::Fenced { .. }) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Says what is done, of all.
    async fn commit_all_done(&mut self) -> Result<()> {
        let all = self.owned();
        for partition in all {
            if let Some(index) = self.index_of(partition) {
                self.commit_done(index).await?;
            }
        }
        self.given = 0;
        self.since = None;
        Ok(())
    }

    /// Gives all partitions up, after having said what counts as done, leaves, and waits until the store has
    /// confirmed that.
    ///
    /// # Errors
    /// [`Error::SessionLost`]; the store's final refusals.
    ///
    /// # Cancel safety
    /// When the future is dropped, leaving goes on.
    pub async fn leave(mut self) -> Result<()> {
        if self.auto.is_some() {
            self.count_as_done();
            self.commit_all_done().await?;
        }
        let Self {
            owned,
            starting,
            partitions,
            ..
        } = self;
        let held = owned.into_iter().map(|owned| owned.partition);
        for partition in held.chain(starting) {
            match partition.release().await {
                Ok(()) | Err(Error::Fenced { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        partitions.leave().await
    }

    fn count_as_done(&mut self) {
        for owned in &mut self.owned {
            owned.done.clone_from(&owned.delivered);
        }
    }
}

impl<T: DeserializeOwned> GroupConsumer<T> {
    /// Waits for the next message of the partitions that this member owns.
    ///
    /// # Errors
    /// [`ReadError::Lagged`] and [`ReadError::Unreadable`]: go on; [`ReadError::Failed`] with
    /// [`Error::SessionLost`] when the session is lost, [`Error::Removed`] when somebody deleted the member's
    /// key or the group was forgotten, and the store's final refusals. Trouble with the store is waited out.
    ///
    /// # Cancel safety
    /// No message is lost when the future is dropped.
    pub async fn next(&mut self) -> Result<Message<T>, ReadError> {
        if let Some(auto) = self.auto {
            self.count_as_done();
            if self.given >= auto.messages {
                self.commit_all_done().await?;
            }
        }
        loop {
            self.begin().await?;
            match self.step().await? {
                Step::Revoked(partition) => {
                    if let Some(index) = self.index_of(partition) {
                        self.commit_done(index).await?;
                    }
                    // Unless that found it lost.
                    if let Some(index) = self.index_of(partition) {
                        self.give_up(index);
                    }
                }
                Step::Gained(partition) => self.starting = Some(partition),
                Step::Due => self.commit_all_done().await?,
                Step::Read(read) => {
                    self.deliver(&read);
                    return decode(read);
                }
            }
        }
    }

    /// Begins to read the partition that has been gained, if one has.
    async fn begin(&mut self) -> Result<()> {
        let Some(partition) = &self.starting else {
            return Ok(());
        };
        let index = partition.index();
        // No former owner can move it any more.
        let cursor = Cursor::open(
            &self.layout,
            &self.group,
            index,
            &self.start,
            partition.session(),
        )
        .await?;
        self.readers.add(&self.layout, index, cursor.spot().clone());
        self.owned
            .extend(self.starting.take().map(|partition| Owned {
                revoked: partition.revoked().boxed(),
                partition,
                cursor,
                delivered: None,
                done: None,
            }));
        Ok(())
    }

    async fn step(&mut self) -> Result<Step> {
        let client = self.layout.client.clone();
        let due = self.auto.zip(self.since);
        let due = due.map(|(auto, since)| clock::after(since, auto.time));
        let (owned, readers) = (&mut self.owned, &mut self.readers);
        tokio::select! {
            biased;
            partition = poll_fn(|context| poll_revoked(owned, context)) => {
                Ok(Step::Revoked(partition))
            }
            gained = self.partitions.next() => gained.map(Step::Gained),
            () = until(&client, due) => Ok(Step::Due),
            read = poll_fn(|context| readers.poll_next(context)) => read.map(Step::Read),
        }
    }

    /// Notes what is given to the user.
    fn deliver(&mut self, read: &Read) {
        let Read::Message {
            position, offset, ..
        } = read
        else {
            return;
        };
        if let Some(index) = self.index_of(position.partition) {
            self.owned[index].delivered = Some(Spot {
                place: position.place.clone(),
                passed: offset.map(|offset| offset + 1),
            });
            self.given += 1;
            let now = self.layout.client.now();
            self.since.get_or_insert(now);
        }
    }
}

/// The number of an owned partition that falls to somebody else now.
fn poll_revoked(owned: &mut [Owned], context: &mut Context<'_>) -> Poll<u32> {
    for owned in owned {
        if owned.revoked.poll_unpin(context).is_ready() {
            return Poll::Ready(owned.partition.index());
        }
    }
    Poll::Pending
}

/// Completes when the client's clock has come to `due`; never without one.
async fn until(client: &Client, due: Option<Instant>) {
    match due {
        Some(due) => client.clock().sleep_until(due).await,
        None => std::future::pending().await,
    }
}

impl<T> fmt::Debug for GroupConsumer<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GroupConsumer")
            .field("group", &self.group)
            .field("owned", &self.owned())
            .finish_non_exhaustive()
    }
}
