//! Condition queues: tasks gather and wait until a condition holds, and then go together.
//!
//! `rule` is when, how and how often; `record` how a queue lies in the store; `look` opens gates, `follow` tells
//! those who wait when to look; `batch` takes all that has passed one, `fan` one by one; `survey` is for whoever looks
//! on.

mod batch;
mod fan;
mod follow;
mod look;
mod record;
mod rule;
mod survey;
#[cfg(test)]
mod tests;

use std::fmt;
use std::marker::PhantomData;
use std::sync::Arc;

use bytes::Bytes;
use quorate_proto::etcdserverpb::TxnRequest;
use serde::Serialize;
use serde::de::DeserializeOwned;

pub use batch::Batch;
pub use fan::Consumer;
pub(crate) use record::KIND;
pub use record::{Gate, Task};
pub use rule::{Condition, Release};
pub(crate) use survey::survey;

use crate::client::Client;
use crate::error::{Error, Result};
use crate::keys::{Key, Revision, decode};
use crate::kit::{ItemId, Placed};
use crate::queue::{DeadLetter, Gated, Queue, Revived};
use crate::session::{Effect, Effected, Session};
use crate::store::ops::{self, Compare};
use crate::value::{Json, Value, from_json};
use crate::wait::{self, Backoff};
use look::Looker;
use record::Layout;
use rule::Rule;

/// Most gates that [`ConditionQueue::status`] lists.
const LISTED_MAX: i64 = 64;

/// Tasks that gather until a condition holds. A handle: cheap to clone, holds nothing; clones share what they
/// have seen.
///
/// All handles of a name must have the same condition, release and repetition: the first one that is used
/// settles them, and others are told [`Error::Mismatch`].
///
/// ```no_run
/// # async fn example(client: quorate_recipes::Client) -> Result<(), quorate_recipes::Error> {
/// use std::time::Duration;
/// use quorate_recipes::condition::Condition;
///
/// let session = client.session().await?;
/// let when = Condition::len(10).or_after(Duration::from_secs(5));
/// let queue = client.condition_queue::<String>("mails", when);
/// queue.join(&session, "7", &"hello".to_owned()).await?;
/// let batch = queue.take(&session).await?; // ten of them, or what there is after five seconds
/// println!("{} go together", batch.tasks().len());
/// batch.ack().await?; // else they go back
/// # Ok(()) }
/// ```
pub struct ConditionQueue<T> {
    looker: Looker,
    /// Once it is known that all agree.
    agreed: Arc<tokio::sync::OnceCell<()>>,
    /// Of a fan.
    max_attempts: Option<u32>,
    of: PhantomData<fn() -> T>,
}

impl<T> Clone for ConditionQueue<T> {
    fn clone(&self) -> Self {
        Self {
            looker: self.looker.clone(),
            agreed: Arc::clone(&self.agreed),
            max_attempts: self.max_attempts,
            of: PhantomData,
        }
    }
}

/// What became of a task that joins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Joined {
    /// It gathers with the others of this epoch.
    In {
        /// The epoch, counted from 0.
        epoch: u64,
        /// The revision at which it joined.
        revision: Revision,
    },
    /// One of its id gathers already; nothing was written.
    Twice {
        /// The epoch in which that one does.
        epoch: u64,
        /// The revision at which that one joined.
        revision: Revision,
    },
    /// The gate opens once only, and has; nothing was written.
    Late,
}

impl Joined {
    /// The epoch whose gate the task waits for; `None` when it is too late.
    #[must_use]
    pub fn epoch(&self) -> Option<u64> {
        match self {
            Self::In { epoch, .. } | Self::Twice { epoch, .. } => Some(*epoch),
            Self::Late => None,
        }
    }
}

/// What there is in a condition queue, at one revision.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct ConditionStatus {
    /// The revision.
    pub revision: Revision,
    /// The epoch whose tasks gather; one more than gates have opened.
    pub epoch: u64,
    /// Tasks that gather.
    pub gathering: u64,
    /// Whether `start()` was called in this epoch.
    pub started: bool,
    /// Tasks that have passed a gate and are not done; those that a broadcast keeps.
    pub passed: u64,
    /// Batches, or tasks of a fan, that takers have.
    pub claimed: u64,
    /// Tasks of a fan that were put aside.
    pub dead: u64,
    /// Gates that are kept, at most 64, the oldest first.
    pub gates: Vec<Gate>,
}

impl Client {
    /// The condition queue of this name, whose gate opens again and again, each time for a whole batch. See
    /// [`ConditionQueue::release`] and [`ConditionQueue::once`].
    #[must_use]
    pub fn condition_queue<T>(
        &self,
        name: impl AsRef<str>,
        condition: Condition,
    ) -> ConditionQueue<T> {
        ConditionQueue::new(
            Layout::new(self.clone(), name.as_ref()),
            Rule::new(condition),
        )
    }
}

impl<T> ConditionQueue<T> {
    fn new(layout: Layout, rule: Rule) -> Self {
        Self {
            looker: Looker::new(layout, rule),
            agreed: Arc::default(),
            max_attempts: None,
            of: PhantomData,
        }
    }

    fn with_rule(self, change: impl FnOnce(&mut Rule)) -> Self {
        let mut rule = (*self.looker.rule).clone();
        change(&mut rule);
        Self {
            max_attempts: self.max_attempts,
            ..Self::new(self.looker.layout, rule)
        }
    }

    /// What becomes of tasks when their gate opens; a batch if not told.
    #[must_use]
    pub fn release(self, release: Release) -> Self {
        self.with_rule(|rule| rule.release = release)
    }

    /// The gate opens once, and who comes later is told [`Joined::Late`].
    #[must_use]
    pub fn once(self) -> Self {
        self.with_rule(|rule| rule.once = true)
    }

    /// A task of a fan that was taken so often (at least once) becomes a dead letter instead of being taken again;
    /// if not told, it is taken however often it comes back. Consumers may differ in it.
    #[must_use]
    pub fn max_attempts(mut self, most: u32) -> Self {
        self.max_attempts = Some(most);
        self
    }

    /// The prefix of the queue's keys.
    #[must_use]
    pub fn prefix(&self) -> &str {
        self.layout().space.prefix()
    }

    fn layout(&self) -> &Layout {
        &self.looker.layout
    }

    fn rule(&self) -> &Rule {
        &self.looker.rule
    }

    /// Makes sure that all who use the queue mean the same.
    async fn agree(&self) -> Result<()> {
        self.agreed.get_or_try_init(|| self.settle()).await?;
        Ok(())
    }

    async fn settle(&self) -> Result<()> {
        self.rule().condition.check()?;
        let (key, rule) = (self.layout().rule(), self.rule());
        let request = TxnRequest {
            compare: vec![Compare::absent(&key).into()],
            success: vec![ops::put(
                &key,
                Value::from(Json(rule)).into_bytes(&key)?,
                None,
            )],
            failure: vec![ops::read(ops::get(&key))],
        };
        // Only made once, so a late copy finds it there.
        let (answer, _) = wait::repeat(&self.layout().client, request).await?;
        let Some(kv) = ops::kvs(&answer.responses, 0).first() else {
            return Ok(());
        };
        let stored: Rule = from_json(&kv.key, &kv.value)?;
        if stored == *rule {
            return Ok(());
        }
        Err(Error::Mismatch {
            key,
            wanted: rule.to_string(),
            stored: stored.to_string(),
        })
    }

    fn must_be(&self, release: Release) -> Result<()> {
        if self.rule().release == release {
            return Ok(());
        }
        Err(Error::Invalid(format!(
            "a condition queue that releases as a {}, not as a {release}",
            self.rule().release
        )))
    }

    fn gated(&self) -> Gated {
        let noted = self.rule().condition.ids(|term| match term {
            Condition::Done(id) => Some(id),
            _ => None,
        });
        Gated {
            done: self.layout().all_done(),
            noted: Arc::new(noted),
        }
    }

    /// The queue that tasks are in once their gate is open.
    fn tasks(&self) -> Queue<T> {
        let layout = self.layout();
        let tasks = Queue::gated(
            layout.client.clone(),
            layout.space.clone(),
            layout.log.clone(),
            self.gated(),
        );
        match self.max_attempts {
            Some(most) => tasks.max_attempts(most),
            None => tasks,
        }
    }

    /// Looks once, for the sake of those who wait. What it was called after is done in any case.
    async fn look(&self) {
        if let Err(error) = self.looker.look().await {
            tracing::warn!(queue = self.prefix(), %error, "left to others to open the gate");
        }
    }

    /// Takes a task out again, before its gate has opened. Returns whether it was there: false when none of
    /// this id gathers, perhaps because it has passed.
    ///
    /// # Errors
    /// [`Error::Mismatch`]; [`Error::SessionLost`]; [`Error::OutcomeUnknown`] when the session ended with an
    /// answer still to come; the store's final refusals.
    ///
    /// # Cancel safety
    /// Dropping the future is an unknown outcome: once or not at all.
    pub async fn withdraw(&self, session: &Session, id: &str) -> Result<bool> {
        session.belongs_to(&self.layout().client)?;
        self.agree().await?;
        let layout = self.layout();
        let asked = self.rule().condition.ids(|term| match term {
            Condition::Left(id) => Some(id),
            _ => None,
        });
        let mark = asked.contains(id);
        let besides = |epoch| {
            let withdrawn = ops::put(layout.withdrawn(), id.to_owned().into(), None);
            let left = mark.then(|| ops::put(layout.left(epoch, id), Bytes::new(), None));
            Effect {
                then: [withdrawn].into_iter().chain(left).collect(),
                ..Effect::default()
            }
        };
        let out = layout.log.take_out_named(session, id, besides).await?;
        if out.is_some() {
            self.look().await;
        }
        Ok(out.is_some())
    }

    /// Says that it may start: what [`Condition::Started`] asks for, in the epoch that gathers now. Returns
    /// that epoch; `None` when the gate opens once only, and has. Calling it again in an epoch changes nothing.
    ///
    /// # Errors
    /// [`Error::Invalid`] when the condition does not ask for it; else as [`ConditionQueue::withdraw`].
    ///
    /// # Cancel safety
    /// As [`ConditionQueue::withdraw`].
    pub async fn start(&self, session: &Session) -> Result<Option<u64>> {
        let mut asked = false;
        let condition = &self.rule().condition;
        condition.walk(&mut |term| asked |= *term == Condition::Started);
        if !asked {
            return Err(Error::Invalid(format!(
                "nobody waits for a start: {condition}"
            )));
        }
        session.belongs_to(&self.layout().client)?;
        self.agree().await?;
        let layout = self.layout();
        let mut pause = Backoff::contended(&layout.client);
        let epoch = loop {
            let head = layout.log.head(Some(session)).await?;
            let effect = Effect {
                when: vec![layout.log.is_head(head)],
                then: vec![ops::put(layout.started(head.segment), Bytes::new(), None)],
                otherwise: Vec::new(),
            };
            if self.rule().once && head.segment > 0 {
                return Ok(None);
            }
            if let Effected::Applied { .. } = session.actor().apply(effect).await? {
                break head.segment;
            }
            layout.log.forget();
            pause.pause().await;
        };
        self.look().await;
        Ok(Some(epoch))
    }

    /// Says that the task of this id is done, whoever did it: what [`Condition::Done`] asks for. Acknowledging
    /// a delivery or a batch says so by itself.
    ///
    /// # Errors
    /// [`Error::Invalid`] when the condition does not ask for it; else as [`ConditionQueue::withdraw`].
    ///
    /// # Cancel safety
    /// As [`ConditionQueue::withdraw`].
    pub async fn mark_done(&self, session: &Session, id: &str) -> Result<()> {
        let gated = self.gated();
        let Some(note) = gated.when_done(&ItemId::named(0, id)) else {
            return Err(Error::Invalid(format!(
                "nobody waits for {id:?} to be done"
            )));
        };
        session.belongs_to(&self.layout().client)?;
        self.agree().await?;
        let effect = Effect {
            then: vec![note],
            ..Effect::default()
        };
        session.actor().apply(effect).await?;
        self.look().await;
        Ok(())
    }

    /// Waits until the gate of an epoch is open, and opens it when its condition holds. Needs no session.
    ///
    /// A gate is kept until its batch, or all tasks of its fan, are done; in a broadcast the last eight are,
    /// with those who passed them; and the one of a broadcast that opens once stays.
    ///
    /// # Errors
    /// [`Error::Removed`] when it has opened, and is not kept any more; [`Error::Mismatch`]; the store's final
    /// refusals. Trouble with the store is waited out.
    ///
    /// # Cancel safety
    /// Nothing is held.
    pub async fn opened(&self, epoch: u64) -> Result<Gate> {
        self.agree().await?;
        self.looker.opened(epoch).await
    }

    /// How much there is.
    ///
    /// # Errors
    /// [`Error::Codec`] for a head or a gate that cannot be read; the store's.
    pub async fn status(&self) -> Result<ConditionStatus> {
        let layout = self.layout();
        let count = |range| ops::read(ops::counting(range));
        loop {
            let found = layout.client.get(layout.log.head_key()).await?;
            let head = layout.log.head_of(found.as_ref())?;
            let mut gates = ops::range(layout.gates().range());
            gates.limit = LISTED_MAX;
            let mut tries = ops::range(layout.tries().range());
            tries.keys_only = true;
            let request = TxnRequest {
                compare: vec![layout.log.is_head(head).into()],
                success: vec![
                    count(layout.log.segment(head.segment)),
                    count(layout.log.range(0, Some(head.segment))),
                    count(layout.claims().range()),
                    count(layout.space.child("dead").range()),
                    ops::read(ops::get(layout.started(head.segment))),
                    ops::read(gates),
                    ops::read(tries),
                ],
                failure: Vec::new(),
            };
            let answer = layout.client.store().txn(request).await?;
            if !answer.succeeded {
                // A gate has opened between the two.
                continue;
            }
            let found = |index| ops::kvs(&answer.responses, index);
            let space = layout.gates();
            let gates = found(5).iter().filter_map(|kv| {
                let epoch = Layout::epoch_of(&space, &kv.key)?;
                Some(Gate::of(epoch, kv))
            });
            let tried = found(6).iter();
            let claims = tried.filter(|kv| kv.key.ends_with(b"/claim")).count();
            let claims = u64::try_from(claims).unwrap_or(u64::MAX);
            return Ok(ConditionStatus {
                revision: Revision(answer.header.map_or(0, |header| header.revision)),
                epoch: head.segment,
                gathering: ops::count(&answer.responses, 0),
                started: !found(4).is_empty(),
                passed: ops::count(&answer.responses, 1),
                claimed: claims + ops::count(&answer.responses, 2),
                dead: ops::count(&answer.responses, 3),
                gates: gates.collect::<Result<_>>()?,
            });
        }
    }

    /// Begins to take tasks one by one, of a queue that releases as a [`Release::Fan`].
    ///
    /// # Errors
    /// [`Error::Invalid`] for another release; [`Error::Mismatch`]; [`Error::SessionLost`]; the store's final
    /// refusals. Trouble with the store is waited out.
    ///
    /// # Cancel safety
    /// Nothing is left behind when the future is dropped.
    pub async fn consumer(&self, session: &Session) -> Result<Consumer<T>> {
        self.must_be(Release::Fan)?;
        session.belongs_to(&self.layout().client)?;
        self.agree().await?;
        Ok(Consumer {
            tasks: self.tasks().consumer(session).await?,
            looker: self.looker.clone(),
        })
    }

    /// The conditions that tasks may still join.
    fn in_time(&self) -> Vec<Compare> {
        match self.rule().once {
            true => vec![Compare::absent(self.layout().log.head_key())],
            false => Vec::new(),
        }
    }

    /// What became of a task that joins; looks for those who wait if it is in.
    async fn joined(&self, placed: Placed) -> Result<Joined> {
        match placed {
            Placed::Done {
                id,
                revision,
                items,
            } => {
                let least = u64::try_from(self.rule().condition.least()).unwrap_or(u64::MAX);
                if items.is_none_or(|items| items >= least) {
                    self.look().await;
                }
                let epoch = id.segment();
                Ok(Joined::In { epoch, revision })
            }
            Placed::There(kv) => {
                let there = self.layout().log.item(&kv.key);
                let epoch = there.ok_or_else(|| not_a_task(&kv.key))?.segment();
                let revision = Revision(kv.create_revision);
                Ok(Joined::Twice { epoch, revision })
            }
            Placed::Refused { .. } => Ok(Joined::Late),
        }
    }

    /// Has a task of a fan that was put aside join again under its id, as if it had never been taken: exactly
    /// once. As it joins it waits for the gate of the epoch that gathers; where the gate opens once only, it is too
    /// late. `None` when nothing was put aside under this id; else it is put aside still, unless it is told to be in.
    ///
    /// # Errors
    /// [`Error::Invalid`] for another release; [`Error::Codec`] when it was never a task; [`Error::Mismatch`];
    /// [`Error::SessionLost`]; [`Error::OutcomeUnknown`] when the session ended with an answer still to come; the
    /// store's final refusals.
    ///
    /// # Cancel safety
    /// As [`ConditionQueue::join`].
    pub async fn redrive(&self, session: &Session, id: &ItemId) -> Result<Option<Joined>> {
        self.must_be(Release::Fan)?;
        let layout = self.layout();
        session.belongs_to(&layout.client)?;
        self.agree().await?;
        let Some(Revived { item, mut besides }) = self.tasks().revived(id).await? else {
            return Ok(None);
        };
        let key = layout.log.key(id);
        let name = decode(id.name()).ok_or_else(|| not_a_task(key.as_bytes()))?;
        besides.when.extend(self.in_time());
        let placed = layout
            .log
            .append_named(session, &name, &item, |_| besides.clone())
            .await?;
        match self.joined(placed).await? {
            // Somebody else has put it back, or thrown it away.
            Joined::Late if !self.rule().once => Ok(None),
            joined => Ok(Some(joined)),
        }
    }

    /// Throws a task of a fan away that was put aside. Returns whether there was one.
    ///
    /// # Errors
    /// The store's. An ambiguous one may have been done.
    pub async fn discard(&self, id: &ItemId) -> Result<bool> {
        self.tasks().discard(id).await
    }
}

impl<T: Serialize> ConditionQueue<T> {
    /// Has a task join, under an id that no other task has that gathers with it: exactly once, although
    /// answers get lost. Tells the epoch whose gate it waits for: while a gate opens, that may be the next one.
    ///
    /// A task is no member: it stays although the session ends, until it is withdrawn or done.
    ///
    /// # Errors
    /// [`Error::Codec`]; [`Error::Invalid`] for a condition that can never be judged, or a task that is too
    /// large; [`Error::Mismatch`] when the queue has another rule; [`Error::SessionLost`];
    /// [`Error::OutcomeUnknown`] when the session ended with an answer still to come; the store's final
    /// refusals.
    ///
    /// # Cancel safety
    /// Dropping the future is an unknown outcome: once or not at all. The gate is then left to others to open.
    pub async fn join(&self, session: &Session, id: &str, value: &T) -> Result<Joined> {
        let layout = self.layout();
        session.belongs_to(&layout.client)?;
        self.agree().await?;
        let item = self.tasks().written(value)?;
        let besides = |_: &ItemId| Effect {
            when: self.in_time(),
            ..Effect::default()
        };
        let placed = layout.log.append_named(session, id, &item, besides);
        self.joined(placed.await?).await
    }
}

impl<T: DeserializeOwned> ConditionQueue<T> {
    /// Waits for a gate to open, and takes all that have passed it; one taker at a time, the oldest gate first.
    /// Of a queue that releases as a [`Release::Batch`].
    ///
    /// # Errors
    /// [`Error::Invalid`] for another release; [`Error::Mismatch`]; [`Error::SessionLost`] at once when the
    /// session is lost; the store's final refusals. Trouble with the store is waited out.
    ///
    /// # Cancel safety
    /// No batch is lost when the future is dropped: one that was on its way goes back.
    pub async fn take(&self, session: &Session) -> Result<Batch<T>> {
        self.must_be(Release::Batch)?;
        session.belongs_to(&self.layout().client)?;
        self.agree().await?;
        let gated = self.gated();
        tokio::select! {
            biased;
            reason = session.lost() => Err(Error::SessionLost(reason)),
            taken = self.looker.take(session, &gated) => taken,
        }
    }

    /// All who have passed a gate of a broadcast, in the order in which they joined: the same for whoever asks.
    ///
    /// # Errors
    /// [`Error::Removed`] when the gate is not kept any more; [`Error::Invalid`] for another release, whose
    /// tasks go as they are taken. The store's final refusals; trouble with it is waited out.
    ///
    /// # Cancel safety
    /// Nothing is held.
    pub async fn passed(&self, gate: &Gate) -> Result<Vec<Task<T>>> {
        self.must_be(Release::Broadcast)?;
        let tasks = batch::listed(self.layout(), gate).await?;
        tasks.ok_or_else(|| Error::Removed(self.layout().gate(gate.epoch)))
    }

    /// Tasks of a fan that were put aside, at most `limit`; those put aside first before the others.
    ///
    /// # Errors
    /// The store's.
    pub async fn dead_letters(&self, limit: usize) -> Result<Vec<DeadLetter<T>>> {
        self.tasks().dead_letters(limit).await
    }
}

fn not_a_task(key: &Bytes) -> Error {
    Error::Codec {
        key: Key::from(key.clone()),
        reason: "not the key of a task".to_owned(),
    }
}

impl<T> fmt::Debug for ConditionQueue<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ConditionQueue")
            .field("layout", self.layout())
            .field("rule", self.rule())
            .finish_non_exhaustive()
    }
}
