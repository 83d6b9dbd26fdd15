//! Mutexes taken in opposing orders: circles of waits are told as they stood, none that stands goes unheard,
//! and when one of each gives way, everybody comes through.

mod circles;

use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::future::Future;
use std::marker::PhantomData;
use std::time::Duration;

use quorate_recipes::keys::{LeaseId, Revision};
use quorate_recipes::lock::Holder;
use quorate_recipes::{Error, Result, Session, StoreError};
use tokio::sync::Notify;

use self::circles::Replay;
use super::multi_lock::Lines;
use crate::fenced::Ledger;
use crate::history::History;
use crate::player::Player;
use crate::scenario::Scenario;

const NAMES: [&str; 3] = ["a", "b", "c"];

/// Most between two looks of one client.
const BETWEEN_LOOKS_MILLIS: u64 = 1500;

/// How long a circle may stand in the calm until it has been told and somebody has given way: a few looks
/// each of all clients, since one circle of several that are entangled is told at a time; and what is on
/// its way when the calm begins.
const STANDS_MAX: Duration = Duration::from_secs(15);

/// A contender of a lock, as it was told.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Contender {
    revision: Revision,
    lease: LeaseId,
    task: String,
}

/// One contender of a lock waits for another one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wait {
    lock: String,
    waiter: Contender,
    holder: Contender,
}

/// A circle of waits, as it was told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Circle {
    /// In a circle.
    pub waits: Vec<Wait>,
    /// Whether it cannot end by itself.
    pub certain: bool,
    /// When it stood.
    pub revision: Revision,
}

impl Contender {
    fn of(holder: &Holder) -> Self {
        Self {
            revision: holder.revision,
            lease: holder.lease,
            task: holder.task.clone().unwrap_or_default(),
        }
    }
}

impl Wait {
    /// `waiter` waits for `lock` of `holder`.
    #[must_use]
    pub fn of(lock: &str, waiter: &Holder, holder: &Holder) -> Self {
        Self {
            lock: lock.to_owned(),
            waiter: Contender::of(waiter),
            holder: Contender::of(holder),
        }
    }
}

/// Who looks for circles, and how.
pub trait Finds: 'static {
    /// What the scenario is called.
    const NAME: &'static str;

    /// One look of one client.
    fn look(player: &Player) -> impl Future<Output = Result<Vec<Circle>>>;
}

/// As users find them.
#[derive(Debug)]
pub struct Found;

impl Finds for Found {
    const NAME: &'static str = "deadlock";

    async fn look(player: &Player) -> Result<Vec<Circle>> {
        let found = player.client().inspect().deadlocks().await?;
        let circle = |deadlock: &quorate_recipes::inspect::Deadlock| Circle {
            waits: (deadlock.waits.iter())
                .map(|wait| Wait::of(&wait.lock.name, &wait.waiter, &wait.holder))
                .collect(),
            certain: deadlock.certain,
            revision: deadlock.revision,
        };
        Ok(found.iter().map(circle).collect())
    }
}

/// Clients that take two or three of three locks in any order, and look for circles.
#[derive(Debug)]
pub struct Deadlock<F = Found> {
    ledger: Ledger,
    /// How many uses of the locks there were: each is a task of its own.
    tasks: Cell<u64>,
    told: RefCell<Vec<Circle>>,
    /// The tasks that are to give way.
    victims: RefCell<BTreeSet<String>>,
    chosen: Notify,
    wrong: RefCell<Option<String>>,
    over: Cell<bool>,
    finds: PhantomData<F>,
}

impl<F: Finds> Deadlock<F> {
    /// Completes when a task is to give way.
    async fn is_chosen(&self, task: &str) {
        loop {
            let chosen = self.chosen.notified();
            if self.victims.borrow().contains(task) {
                return;
            }
            chosen.await;
        }
    }

    /// Whoever came last in the circle gives way.
    fn tell(&self, player: &Player, circle: Circle) {
        player.note(format!("told of {circle:?}"));
        let waiters = circle.waits.iter().map(|wait| &wait.waiter);
        if let Some(last) = waiters.max_by_key(|waiter| waiter.revision) {
            self.victims.borrow_mut().insert(last.task.clone());
        }
        self.chosen.notify_waiters();
        self.told.borrow_mut().push(circle);
    }
}

impl<F: Finds> Scenario for Deadlock<F> {
    const NAME: &'static str = F::NAME;

    fn new() -> Self {
        Self {
            ledger: Ledger::default(),
            tasks: Cell::new(0),
            told: RefCell::default(),
            victims: RefCell::default(),
            chosen: Notify::new(),
            wrong: RefCell::default(),
            over: Cell::new(false),
            finds: PhantomData,
        }
    }

    async fn step(&self, player: &Player, session: &Session) -> Result<()> {
        self.tasks.set(self.tasks.get() + 1);
        let task = format!("{}-{}", player.index(), self.tasks.get());
        let session = session.for_task(&task);
        let mut names = NAMES.to_vec();
        names.rotate_left(usize::try_from(player.below(3)).expect("small"));
        if player.one_in(2) {
            names.reverse();
        }
        names.truncate(usize::try_from(2 + player.below(2)).expect("small"));
        let mut all = Vec::new();
        for name in names {
            let lock = player.client().mutex(name);
            let guard = tokio::select! {
                biased;
                () = self.is_chosen(&task) => {
                    player.note("gives way");
                    return Ok(());
                }
                guard = lock.lock(&session) => guard?,
            };
            all.push((name, self.ledger.granted(player, guard)));
            player.pause(300).await;
        }
        for (name, held) in &all {
            let key = format!("data/{name}/count");
            self.ledger.increment(player, held, &key).await?;
        }
        for (_, held) in all {
            held.into_inner().release().await?;
        }
        Ok(())
    }

    async fn attend(&self, player: &Player) {
        while !self.over.get() {
            player.pause(BETWEEN_LOOKS_MILLIS).await;
            match F::look(player).await {
                Ok(found) => found
                    .into_iter()
                    .for_each(|circle| self.tell(player, circle)),
                Err(Error::Store(StoreError::Compacted { .. })) => {}
                Err(Error::Store(error)) if error.is_transient() => {}
                Err(error) => {
                    let wrong = format!("a look failed: {error:?}");
                    self.wrong.borrow_mut().get_or_insert(wrong);
                }
            }
        }
    }

    fn end(&self) {
        self.over.set(true);
    }

    fn check(&self, history: &History) -> std::result::Result<(), String> {
        if let Some(wrong) = &*self.wrong.borrow() {
            return Err(wrong.clone());
        }
        Replay::of(&self.told.borrow()).judge(history)?;
        self.ledger.check_by(history, &mut Lines::of(NAMES))
    }
}
