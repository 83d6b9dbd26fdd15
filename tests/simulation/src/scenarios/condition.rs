//! Condition queues: every task that joined is in exactly one batch or still waits, the condition held at each
//! gate's revision, and what passed is done once.

mod passages;
mod rules;

use std::cell::{OnceCell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

use quorate_recipes::condition::{
    Batch, Condition as When, ConditionQueue, Consumer, Joined, Release,
};
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
    /// Three together, or all after a while, and nobody after them.
    Once,
    /// By a rule that is drawn, each world's own.
    Ruled,
}

impl Kind {
    /// All of them.
    pub const ALL: [Self; 5] = [
        Self::Batch,
        Self::Fan,
        Self::Broadcast,
        Self::Once,
        Self::Ruled,
    ];

    /// The name of its queue.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Batch => "b",
            Self::Fan => "f",
            Self::Broadcast => "c",
            Self::Once => "o",
            Self::Ruled => "r",
        }
    }

    /// When its gate opens, and how; a condition that is drawn is that of the world.
    fn rule(self, drawn: impl FnOnce() -> When) -> (When, Release) {
        match self {
            Self::Batch | Self::Once => (When::len(3).or_after(DELAY), Release::Batch),
            Self::Fan => (When::len(2).or(When::started()), Release::Fan),
            Self::Broadcast => (When::len(3), Release::Broadcast),
            Self::Ruled => (drawn(), Release::Batch),
        }
    }
}

/// The key that is written when a task is done.
#[must_use]
pub fn task_done(kind: Kind, number: i64) -> String {
    format!("effect/{}/{number}", kind.name())
}

/// Clients whose tasks join, and that take what has passed.
#[derive(Debug, Default)]
pub struct Condition {
    joins: BTreeMap<Kind, Effects<u64>>,
    /// What handles remember lasts, as in a program.
    handles: RefCell<BTreeMap<(usize, Kind), ConditionQueue<i64>>>,
    consumers: RefCell<BTreeMap<usize, Taker>>,
    /// The condition that is drawn.
    drawn: OnceCell<When>,
    told: RefCell<Told>,
}

type Taker = (LeaseId, Rc<Consumer<i64>>);

/// What clients were told.
#[derive(Debug, Default)]
pub struct Told {
    /// Of each task that was to be withdrawn, whether it was.
    pub withdrawn: Vec<(Kind, i64, bool)>,
    /// Tasks that were withdrawn by a name that others have as well.
    pub withdrawn_named: Vec<String>,
    /// Tasks that were said to be done, or perhaps not.
    pub marked: Vec<String>,
    /// Whether a task was told that it is too late.
    pub late: bool,
    /// What was in the batches: the epoch, when its gate opened, and the tasks.
    pub taken: Vec<(Kind, u64, Revision, Vec<String>)>,
    /// When a task was done.
    pub done: Vec<(Kind, i64, Revision)>,
    /// Who passed a gate, by those who waited for it.
    pub passed: Vec<(u64, Revision, Vec<String>)>,
}

impl Condition {
    /// The condition that is drawn, by whoever comes first.
    fn drawn(&self, player: &Player) -> &When {
        self.drawn.get_or_init(|| {
            let when = rules::draw(player);
            player.note(format!("draws {when}"));
            when
        })
    }

    /// A client's handle of a queue.
    pub fn handle(&self, player: &Player, kind: Kind) -> ConditionQueue<i64> {
        let mut handles = self.handles.borrow_mut();
        let handle = handles.entry((player.index(), kind));
        let new = || {
            let (when, release) = kind.rule(|| self.drawn(player).clone());
            let queue = player.client().condition_queue(kind.name(), when);
            let queue = queue.release(release);
            match kind {
                Kind::Once => queue.once(),
                _ => queue,
            }
        };
        handle.or_insert_with(new).clone()
    }

    /// One of the tasks that the drawn condition is about; `None` when it is about none.
    pub fn named(&self, player: &Player) -> Option<String> {
        let names = rules::names(self.drawn(player));
        let index = player.below(names.len().max(1) as u64);
        names.into_iter().nth(usize::try_from(index).ok()?)
    }

    /// Has a task join under a number that no other has. Returns the number, and the epoch.
    ///
    /// # Errors
    /// What the client was told.
    pub async fn join(&self, player: &Player, session: &Session, kind: Kind) -> Result<(i64, u64)> {
        self.join_as(player, session, kind, None).await
    }

    /// As [`Condition::join`], under a name that others may have as well: in its place if one of them gathers.
    async fn join_as(
        &self,
        player: &Player,
        session: &Session,
        kind: Kind,
        name: Option<&str>,
    ) -> Result<(i64, u64)> {
        let queue = self.handle(player, kind);
        let mut joined = 0;
        let join = |number: i64| {
            joined = number;
            let queue = queue.clone();
            async move {
                let id = name.map_or_else(|| number.to_string(), str::to_owned);
                match queue.join(session, &id, &number).await? {
                    Joined::In { epoch, .. } => Ok(epoch),
                    Joined::Twice { .. } => Err(Error::Conflict),
                    Joined::Late => {
                        self.told.borrow_mut().late |= kind == Kind::Once;
                        Err(Error::Conflict)
                    }
                }
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
    pub async fn take(
        &self,
        player: &Player,
        session: &Session,
        kind: Kind,
    ) -> Result<Option<Batch<i64>>> {
        let queue = self.handle(player, kind);
        let taken = tokio::time::timeout(WAIT, queue.take(session)).await;
        let taken = taken.ok().transpose()?;
        if let Some(batch) = &taken {
            let ids = batch.tasks().iter().map(|task| task.id.clone());
            self.has(
                kind,
                batch.gate().epoch,
                batch.gate().revision,
                ids.collect(),
            );
        }
        Ok(taken)
    }

    /// Notes which tasks somebody has, and which gate they have passed.
    pub fn has(&self, kind: Kind, epoch: u64, opened: Revision, ids: Vec<String>) {
        let mut told = self.told.borrow_mut();
        told.taken.push((kind, epoch, opened, ids));
    }

    async fn finish_batch(&self, player: &Player, kind: Kind, mut batch: Batch<i64>) -> Result<()> {
        let numbers = numbers(&batch);
        let lease = batch.fence().lease();
        let txn = Self::effects(player, kind, lease, &numbers);
        match batch.ack_with(txn).await {
            Ok(at) => self.done(kind, &numbers, at),
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

    /// Does something that the drawn condition asks for, as the dice say.
    ///
    /// # Errors
    /// What the client was told.
    pub async fn say(&self, player: &Player, session: &Session) -> Result<()> {
        let queue = self.handle(player, Kind::Ruled);
        for _ in 0..player.below(5) {
            let name = self.named(player);
            player.pause(100).await;
            match (player.below(6), name) {
                (0, _) if rules::asks_for_start(self.drawn(player)) => {
                    queue.start(session).await?;
                }
                (0..3, Some(name)) => self.join_named(player, session, &name).await?,
                (3..5, Some(name)) => self.withdraw_named(player, session, &name).await?,
                (_, Some(name)) if rules::asks_for_end(self.drawn(player), &name) => {
                    self.told.borrow_mut().marked.push(name.clone());
                    queue.mark_done(session, &name).await?;
                }
                _ => {}
            }
        }
        Ok(())
    }

    async fn join_named(&self, player: &Player, session: &Session, name: &str) -> Result<()> {
        let joined = self.join_as(player, session, Kind::Ruled, Some(name)).await;
        match joined {
            Ok(_) | Err(Error::Conflict) => Ok(()),
            Err(error) => Err(error),
        }
    }

    async fn withdraw_named(&self, player: &Player, session: &Session, name: &str) -> Result<()> {
        let queue = self.handle(player, Kind::Ruled);
        if queue.withdraw(session, name).await? {
            player.note(format!("{name} withdrawn"));
            let mut told = self.told.borrow_mut();
            told.withdrawn_named.push(name.to_owned());
        }
        Ok(())
    }

    /// Brings about what a condition asks for, as long as the gate of this epoch is not open.
    async fn fulfil(
        &self,
        player: &Player,
        session: &Session,
        when: &When,
        epoch: u64,
    ) -> Result<()> {
        let queue = self.handle(player, Kind::Ruled);
        let status = queue.status().await?;
        if status.epoch != epoch {
            return Ok(());
        }
        match when {
            When::Len(tasks) => {
                // Some of those that gather may be asked to leave.
                let enough = tasks + rules::names(self.drawn(player)).len();
                for _ in usize::try_from(status.gathering).unwrap_or(0)..enough {
                    if queue.status().await?.epoch != epoch {
                        break;
                    }
                    self.join(player, session, Kind::Ruled).await?;
                }
            }
            When::Present(name) => self.join_named(player, session, name).await?,
            When::Absent(name) => self.withdraw_named(player, session, name).await?,
            When::Left(name) => {
                self.join_named(player, session, name).await?;
                self.withdraw_named(player, session, name).await?;
            }
            When::Done(name) => {
                self.told.borrow_mut().marked.push(name.clone());
                queue.mark_done(session, name).await?;
            }
            When::Started => drop(queue.start(session).await?),
            When::All(parts) => {
                for part in parts {
                    Box::pin(self.fulfil(player, session, part, epoch)).await?;
                }
            }
            When::Any(parts) => {
                if let Some(part) = parts.first() {
                    Box::pin(self.fulfil(player, session, part, epoch)).await?;
                }
            }
            // It comes by itself.
            _ => {}
        }
        Ok(())
    }

    /// Brings about the drawn condition until nothing waits for it any more: each time the gate must open.
    async fn drain_ruled(&self, player: &Player, session: &Session) -> Result<()> {
        let queue = self.handle(player, Kind::Ruled);
        let when = self.drawn(player);
        loop {
            let status = queue.status().await?;
            if status.gathering > 0 {
                self.fulfil(player, session, when, status.epoch).await?;
            }
            // The last task may be the one that was to leave.
            let status = queue.status().await?;
            if (status.gathering, status.passed) == (0, 0) {
                return Ok(());
            }
            let mut taken = None;
            for _ in 0..5 {
                taken = self.take(player, session, Kind::Ruled).await?;
                if taken.is_some() {
                    break;
                }
            }
            let Some(batch) = taken else {
                let status = queue.status().await?;
                return Err(Error::Invalid(format!(
                    "{when} is brought about: {status:?}"
                )));
            };
            self.finish_batch(player, Kind::Ruled, batch).await?;
        }
    }

    /// Does all that has joined to be done.
    ///
    /// # Errors
    /// What the store or the recipe had to say.
    pub async fn drain(&self, player: &Player) -> Result<()> {
        self.end();
        let session = player.client().session().await?;
        for kind in [Kind::Batch, Kind::Once, Kind::Fan] {
            let queue = self.handle(player, kind);
            loop {
                let status = queue.status().await?;
                if (status.gathering, status.passed) == (0, 0) {
                    break;
                }
                match kind {
                    Kind::Batch | Kind::Once => {
                        if let Some(batch) = self.take(player, &session, kind).await? {
                            self.finish_batch(player, kind, batch).await?;
                        }
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
        self.drain_ruled(player, &session).await?;
        // The last gate of a fan goes when somebody looks.
        let none = self.consumer(player, &session).await?.try_pop().await?;
        if none.is_some() {
            return Err(Error::Conflict);
        }
        self.end();
        session.close().await
    }
}

/// The numbers of a batch.
#[must_use]
pub fn numbers(batch: &Batch<i64>) -> Vec<i64> {
    let tasks = batch.tasks().iter();
    tasks.filter_map(|task| task.value.clone().ok()).collect()
}

impl Scenario for Condition {
    const NAME: &'static str = "condition";

    fn new() -> Self {
        let joins = Kind::ALL.into_iter();
        Self {
            joins: joins.map(|kind| (kind, Effects::default())).collect(),
            ..Self::default()
        }
    }

    async fn step(&self, player: &Player, session: &Session) -> Result<()> {
        let kind = Kind::ALL[usize::try_from(player.below(7)).unwrap_or(0).min(4)];
        let (number, epoch) = match self.join(player, session, kind).await {
            // Whether it is too late is judged.
            Err(Error::Conflict) if kind == Kind::Once => return Ok(()),
            joined => joined?,
        };
        if player.one_in(4) {
            player.pause(200).await;
            self.withdraw(player, session, kind, number).await?;
        }
        match kind {
            Kind::Batch | Kind::Once | Kind::Ruled => {
                if kind == Kind::Ruled {
                    self.say(player, session).await?;
                }
                if let Some(batch) = self.take(player, session, kind).await? {
                    player.pause(400).await;
                    if !player.one_in(4) {
                        self.finish_batch(player, kind, batch).await?;
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

    async fn finish(&self, players: &[Player]) -> std::result::Result<(), String> {
        let drained = self.drain(&players[0]).await;
        drained.map_err(|error| error.to_string())
    }

    fn end(&self) {
        self.consumers.borrow_mut().clear();
    }

    fn may_remain(&self, key: &str) -> bool {
        let Some(rest) = key.strip_prefix("quorate/condition/") else {
            return false;
        };
        let Some((name, rest)) = rest.split_once('/') else {
            return false;
        };
        let kept = ["gate/", "segment/"];
        ["head", "rule", "withdrawn"].contains(&rest)
            // Started, and nobody came.
            || (["f", "r"].contains(&name) && rest.starts_with("signal/"))
            || (name == "r" && rest.starts_with("done/"))
            || (name == "c" && kept.iter().any(|kept| rest.starts_with(kept)))
    }

    fn check(&self, history: &History) -> std::result::Result<(), String> {
        for kind in Kind::ALL {
            // Without a rule that was drawn nobody was there.
            let drawn = || self.drawn.get().cloned().unwrap_or(When::Len(1));
            let (when, _) = kind.rule(drawn);
            let passages = Passages::of(history, kind, &when, &self.told.borrow())?;
            let joins = passages.joined.iter();
            let joins = joins.map(|(number, epoch)| (*number, *epoch));
            self.joins[&kind].check(joins)?;
            passages.check(kind, &self.told.borrow())?;
        }
        Ok(())
    }
}
