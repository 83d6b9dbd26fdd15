//! Condition queues: every task that joined is in exactly one batch or still waits, the condition held at each
//! gate's revision, and what passed is done once.

mod passages;

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

use quorate_recipes::condition::{Batch, Condition as When, ConditionQueue, Consumer, Release};
use quorate_recipes::keys::{LeaseId, Revision};
use quorate_recipes::queue::{AckError, Delivery};
use quorate_recipes::{Error, Fenced as _, Result, Session, Txn, TxnError};

pub use passages::Passages;

use crate::effects::Effects;
use crate::history::History;
use crate::player::Player;
use crate::scenario::Scenario;

/// How long a client waits for a gate.
const WAIT: Duration = Duration::from_secs(2);

/// So long after the first task has joined a batch goes, however few there are.
pub(crate) const DELAY: Duration = Duration::from_secs(4);

/// The queues of the worlds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// Three together, or all after a while.
    Batch,
    /// Two, or when it is started, one by one.
    Fan,
    /// Three learn of each other.
    Broadcast,
}

impl Kind {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Batch, Self::Fan, Self::Broadcast];

    /// The name of its queue.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Batch => "b",
            Self::Fan => "f",
            Self::Broadcast => "c",
        }
    }

    /// Its queue.
    #[must_use]
    pub fn handle(self, player: &Player) -> ConditionQueue<i64> {
        let (when, release) = match self {
            Self::Batch => (When::len(3).or_after(DELAY), Release::Batch),
            Self::Fan => (When::len(2).or(When::started()), Release::Fan),
            Self::Broadcast => (When::len(3), Release::Broadcast),
        };
        let queue = player.client().condition_queue(self.name(), when);
        queue.release(release)
    }
}

/// The key that is written when a task is done.
#[must_use]
pub fn task_done(kind: Kind, number: i64) -> String {
    format!("effect/{}/{number}", kind.name())
}

/// Clients whose tasks join, and that take what has passed.
#[derive(Debug, Default)]
pub struct Crowd {
    joins: BTreeMap<Kind, Effects<u64>>,
    /// What handles remember lasts, as in a program.
    handles: RefCell<BTreeMap<(usize, Kind), ConditionQueue<i64>>>,
    consumers: RefCell<BTreeMap<usize, Taker>>,
    told: RefCell<Told>,
}

type Taker = (LeaseId, Rc<Consumer<i64>>);

/// What clients were told.
#[derive(Debug, Default)]
pub struct Told {
    /// Of each task that was to be withdrawn, whether it was.
    pub withdrawn: Vec<(Kind, i64, bool)>,
    /// When a task was done.
    pub done: Vec<(Kind, i64, Revision)>,
    /// Who passed a gate, by those who waited for it.
    pub passed: Vec<(u64, Revision, Vec<String>)>,
}

impl Crowd {
    /// Nothing has been done yet.
    #[must_use]
    pub fn new() -> Self {
        let joins = Kind::ALL.into_iter();
        Self {
            joins: joins.map(|kind| (kind, Effects::default())).collect(),
            ..Self::default()
        }
    }

    fn handle(&self, player: &Player, kind: Kind) -> ConditionQueue<i64> {
        let mut handles = self.handles.borrow_mut();
        let handle = handles.entry((player.index(), kind));
        handle.or_insert_with(|| kind.handle(player)).clone()
    }

    /// Has a task join under a number that no other has. Returns the number, and the epoch.
    ///
    /// # Errors
    /// What the client was told.
    pub async fn join(&self, player: &Player, session: &Session, kind: Kind) -> Result<(i64, u64)> {
        let queue = self.handle(player, kind);
        let mut joined = 0;
        let join = |number: i64| {
            joined = number;
            let queue = queue.clone();
            async move {
                let id = number.to_string();
                let joined = queue.join(session, &id, &number).await?;
                joined.epoch().ok_or(Error::Conflict)
            }
        };
        let epoch = self.joins[&kind].attempt(player, join).await?;
        Ok((joined, epoch))
    }

    /// Withdraws a task.
    ///
    /// # Errors
    /// What the client was told.
    pub async fn withdraw(
        &self,
        player: &Player,
        session: &Session,
        kind: Kind,
        number: i64,
    ) -> Result<()> {
        let queue = self.handle(player, kind);
        let gone = queue.withdraw(session, &number.to_string()).await?;
        player.note(format!("{number} withdrawn from {}: {gone}", kind.name()));
        self.told.borrow_mut().withdrawn.push((kind, number, gone));
        Ok(())
    }

    /// The transaction that says who did a task.
    fn effects(player: &Player, kind: Kind, lease: LeaseId, numbers: &[i64]) -> Txn {
        let txn = player.client().txn();
        numbers.iter().fold(txn, |txn, number| {
            txn.put(task_done(kind, *number), lease.to_string())
        })
    }

    fn done(&self, kind: Kind, numbers: &[i64], at: Revision) {
        let mut told = self.told.borrow_mut();
        let done = numbers.iter().map(|number| (kind, *number, at));
        told.done.extend(done);
    }

    /// Takes a batch, if one is there in time.
    ///
    /// # Errors
    /// What the client was told.
    pub async fn take(&self, player: &Player, session: &Session) -> Result<Option<Batch<i64>>> {
        let queue = self.handle(player, Kind::Batch);
        let taken = tokio::time::timeout(WAIT, queue.take(session)).await;
        taken.ok().transpose()
    }

    async fn finish_batch(&self, player: &Player, mut batch: Batch<i64>) -> Result<()> {
        let numbers = numbers(&batch);
        let lease = batch.fence().lease();
        let txn = Self::effects(player, Kind::Batch, lease, &numbers);
        match batch.ack_with(txn).await {
            Ok(at) => self.done(Kind::Batch, &numbers, at),
            Err(TxnError::Fenced { .. }) => {}
            Err(error) => return Err(error.into()),
        }
        Ok(())
    }

    async fn consumer(&self, player: &Player, session: &Session) -> Result<Rc<Consumer<i64>>> {
        let known = self.consumers.borrow().get(&player.index()).cloned();
        if let Some((_, consumer)) = known.filter(|(lease, _)| *lease == session.lease()) {
            return Ok(consumer);
        }
        let consumer = Rc::new(self.handle(player, Kind::Fan).consumer(session).await?);
        let known = (session.lease(), Rc::clone(&consumer));
        self.consumers.borrow_mut().insert(player.index(), known);
        Ok(consumer)
    }

    async fn pop(&self, player: &Player, session: &Session) -> Result<Option<Delivery<i64>>> {
        let consumer = self.consumer(player, session).await?;
        if player.one_in(4) {
            return consumer.try_pop().await;
        }
        let taken = tokio::time::timeout(WAIT, consumer.pop()).await;
        taken.ok().transpose()
    }

    async fn finish_task(&self, player: &Player, delivery: Delivery<i64>) -> Result<()> {
        let number = *delivery.value();
        let lease = delivery.fence().lease();
        let txn = Self::effects(player, Kind::Fan, lease, &[number]);
        match delivery.ack_with(txn).await {
            Ok(at) => self.done(Kind::Fan, &[number], at),
            Err(AckError::Fenced { .. }) => {}
            Err(error) => return Err(error.into()),
        }
        Ok(())
    }

    /// Waits for the gate of an epoch, and notes who passed.
    async fn pass(&self, player: &Player, epoch: u64) -> Result<()> {
        let queue = self.handle(player, Kind::Broadcast);
        let Ok(opened) = tokio::time::timeout(WAIT, queue.opened(epoch)).await else {
            return Ok(());
        };
        let gate = opened?;
        let passed = queue.passed(&gate).await?;
        let ids = passed.into_iter().map(|task| task.id).collect();
        let mut told = self.told.borrow_mut();
        told.passed.push((gate.epoch, gate.revision, ids));
        Ok(())
    }

    /// Joins, and does what else the dice say.
    ///
    /// # Errors
    /// What the client was told.
    pub async fn step(&self, player: &Player, session: &Session) -> Result<()> {
        let kind = Kind::ALL[usize::try_from(player.below(3)).unwrap_or(0)];
        let (number, epoch) = self.join(player, session, kind).await?;
        if player.one_in(4) {
            player.pause(200).await;
            self.withdraw(player, session, kind, number).await?;
        }
        match kind {
            Kind::Batch => {
                if let Some(batch) = self.take(player, session).await? {
                    player.pause(400).await;
                    if !player.one_in(4) {
                        self.finish_batch(player, batch).await?;
                    }
                }
            }
            Kind::Fan => {
                if player.one_in(3) {
                    self.handle(player, kind).start(session).await?;
                }
                if let Some(delivery) = self.pop(player, session).await? {
                    player.pause(400).await;
                    if !player.one_in(4) {
                        self.finish_task(player, delivery).await?;
                    }
                }
            }
            Kind::Broadcast => self.pass(player, epoch).await?,
        }
        Ok(())
    }

    /// Lets go of all consumers.
    pub fn end(&self) {
        self.consumers.borrow_mut().clear();
    }

    /// Does all that has joined to be done.
    ///
    /// # Errors
    /// What the store or the recipe had to say.
    pub async fn drain(&self, player: &Player) -> Result<()> {
        self.end();
        let session = player.client().session().await?;
        for kind in [Kind::Batch, Kind::Fan] {
            let queue = self.handle(player, kind);
            loop {
                let status = queue.status().await?;
                if (status.gathering, status.passed) == (0, 0) {
                    break;
                }
                match kind {
                    Kind::Batch => {
                        let batch = queue.take(&session).await?;
                        self.finish_batch(player, batch).await?;
                    }
                    _ => {
                        queue.start(&session).await?;
                        if let Some(delivery) = self.pop(player, &session).await? {
                            self.finish_task(player, delivery).await?;
                        }
                    }
                }
            }
        }
        // The last gate of a fan goes when somebody looks.
        let none = self.consumer(player, &session).await?.try_pop().await?;
        if none.is_some() {
            return Err(Error::Conflict);
        }
        self.end();
        session.close().await
    }

    /// Judges what happened.
    ///
    /// # Errors
    /// What is broken.
    pub fn check(&self, history: &History) -> std::result::Result<(), String> {
        for kind in Kind::ALL {
            let passages = Passages::of(history, kind)?;
            let joins = passages.joined.iter();
            let joins = joins.map(|(number, epoch)| (*number, *epoch));
            self.joins[&kind].check(joins)?;
            passages.check(kind, &self.told.borrow())?;
        }
        Ok(())
    }
}

/// The numbers of a batch.
#[must_use]
pub fn numbers(batch: &Batch<i64>) -> Vec<i64> {
    let tasks = batch.tasks().iter();
    tasks.filter_map(|task| task.value.clone().ok()).collect()
}

/// Whether a key of a condition queue may be there when all is over.
#[must_use]
pub fn condition_may_remain(key: &str) -> bool {
    let Some(rest) = key.strip_prefix("quorate/condition/") else {
        return false;
    };
    let Some((name, rest)) = rest.split_once('/') else {
        return false;
    };
    let kept = ["gate/", "segment/"];
    ["head", "rule", "withdrawn"].contains(&rest)
        // Started, and nobody came.
        || (name == "f" && rest.starts_with("signal/"))
        || (name == "c" && kept.iter().any(|kept| rest.starts_with(kept)))
}

/// Tasks that wait for conditions.
#[derive(Debug)]
pub struct Condition(Crowd);

impl Scenario for Condition {
    const NAME: &'static str = "condition";

    fn new() -> Self {
        Self(Crowd::new())
    }

    async fn step(&self, player: &Player, session: &Session) -> Result<()> {
        self.0.step(player, session).await
    }

    async fn finish(&self, players: &[Player]) -> std::result::Result<(), String> {
        let drained = self.0.drain(&players[0]).await;
        drained.map_err(|error| error.to_string())
    }

    fn end(&self) {
        self.0.end();
    }

    fn may_remain(&self, key: &str) -> bool {
        condition_may_remain(key)
    }

    fn check(&self, history: &History) -> std::result::Result<(), String> {
        self.0.check(history)
    }
}
