//! Queues: nothing that was pushed is lost or done twice, whatever becomes of those who take it, and exact
//! orders are exact.

mod bounded;
mod items;

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

use quorate_recipes::keys::{LeaseId, Revision};
use quorate_recipes::queue::{AckError, Consumer, Delivery, Nack, Queue as Handle};
use quorate_recipes::{Error, Result, Session};

pub use bounded::{BoundedQueue, check_limit};
pub use items::Items;

use crate::effects::Effects;
use crate::history::History;
use crate::player::Player;
use crate::scenario::Scenario;

/// How often an item is taken before it is put aside.
const ATTEMPTS_MAX: u32 = 4;

/// How long some clients have an item at most.
const WORK_MAX: Duration = Duration::from_millis(300);

/// How many names the items have that are pushed under one.
const NAMES: i64 = 4;

/// How long a client waits for an item.
const WAIT: Duration = Duration::from_secs(2);

/// Clients that push numbered items, take them, and do all with them that can be done.
#[derive(Debug, Default)]
pub struct Work {
    pushes: Effects<()>,
    consumers: RefCell<BTreeMap<usize, Taker>>,
    /// Items whose acknowledgement was confirmed, and the revision that was told.
    done: RefCell<Vec<(i64, Revision)>>,
}

/// The consumers of a client, and the lease of the session that they are under.
type Taker = (LeaseId, [Rc<Consumer<i64>>; 2]);

/// The key that is written when an item is done.
#[must_use]
pub fn effect(number: i64) -> String {
    format!("effect/{number}")
}

impl Work {
    /// Pushes an item with a number that no other has.
    ///
    /// # Errors
    /// What the client was told.
    pub async fn push<F>(&self, player: &Player, push: impl FnOnce(i64) -> F) -> Result<()>
    where
        F: Future<Output = Result<()>>,
    {
        self.pushes.attempt(player, push).await
    }

    /// One of the client's consumers, and the other one.
    async fn consumers(
        &self,
        player: &Player,
        session: &Session,
        queue: &Handle<i64>,
    ) -> Result<[Rc<Consumer<i64>>; 2]> {
        let known = self.consumers.borrow().get(&player.index()).cloned();
        let known = known.filter(|(lease, _)| *lease == session.lease());
        let mut consumers = match known {
            Some((_, consumers)) => consumers,
            None => {
                let consumers = [
                    queue.consumer(session).await?,
                    queue.consumer(session).await?,
                ];
                let consumers = consumers.map(Rc::new);
                let known = (session.lease(), consumers.clone());
                self.consumers.borrow_mut().insert(player.index(), known);
                consumers
            }
        };
        if player.one_in(2) {
            consumers.reverse();
        }
        Ok(consumers)
    }

    /// Takes an item, if one comes in time.
    ///
    /// # Errors
    /// What the client was told.
    pub async fn take(
        &self,
        player: &Player,
        session: &Session,
        queue: &Handle<i64>,
    ) -> Result<Option<Delivery<i64>>> {
        let [consumer, other] = self.consumers(player, session, queue).await?;
        if player.one_in(4) {
            return consumer.try_pop().await;
        }
        let taken = async {
            if player.one_in(4) {
                // Whatever the other was about to take goes back.
                tokio::select! {
                    biased;
                    taken = consumer.pop() => taken,
                    taken = other.pop() => taken,
                }
            } else {
                consumer.pop().await
            }
        };
        tokio::time::timeout(WAIT, taken).await.ok().transpose()
    }

    /// Does an item, and notes what was told.
    async fn finish_item(&self, player: &Player, delivery: Delivery<i64>) -> Result<()> {
        let number = *delivery.value();
        let lease = delivery_lease(&delivery).to_string();
        let txn = player.client().txn().put(effect(number), lease);
        match delivery.ack_with(txn).await {
            Ok(at) => self.done.borrow_mut().push((number, at)),
            Err(AckError::Fenced { .. }) => {}
            Err(error) => return Err(error.into()),
        }
        Ok(())
    }

    /// Does with an item what the dice say.
    ///
    /// # Errors
    /// What the client was told.
    pub async fn work(&self, player: &Player, delivery: Delivery<i64>) -> Result<()> {
        player.note(format!("has item {}", delivery.value()));
        player.pause(400).await;
        let pause = Duration::from_millis(player.below(3_000));
        let given_back = match player.below(9) {
            0 => {
                drop(delivery);
                Ok(())
            }
            1 => delivery.nack(Nack::Now).await,
            2 => delivery.nack(Nack::After(pause)).await,
            3 => delivery.nack(Nack::Dead("dice".to_owned())).await,
            _ => self.finish_item(player, delivery).await,
        };
        match given_back {
            Err(Error::Fenced { .. }) => Ok(()),
            outcome => outcome,
        }
    }

    /// Pushes an item in one of the ways that there are.
    async fn push_somehow(
        &self,
        player: &Player,
        session: &Session,
        queue: &Handle<i64>,
    ) -> Result<()> {
        let way = player.below(6);
        let delay = Duration::from_millis(player.below(3_000));
        let push = |number: i64| async move {
            match way {
                0 => queue.push_after(session, delay, &number).await.map(drop),
                1 => {
                    let name = format!("name {}", number % NAMES);
                    let pushed = queue.push_unique(session, &name, &number).await?;
                    pushed.map(drop).ok_or(Error::Conflict)
                }
                2 => queue.push_all(session, [&number]).await.map(drop),
                _ => queue.push(session, &number).await.map(drop),
            }
        };
        match self.push(player, push).await {
            // Another item has the name.
            Err(Error::Conflict) if way == 1 => Ok(()),
            pushed => pushed,
        }
    }

    async fn step(&self, player: &Player, session: &Session, queue: &Handle<i64>) -> Result<()> {
        for _ in 0..=player.below(2) {
            self.push_somehow(player, session, queue).await?;
        }
        if player.one_in(6)
            && let Some(letter) = queue.dead_letters(1).await?.first()
        {
            queue.redrive(session, &letter.id).await?;
        }
        let Some(delivery) = self.take(player, session, queue).await? else {
            return Ok(());
        };
        if player.one_in(3) {
            let [any, _] = self.consumers(player, session, queue).await?;
            if let Some(more) = any.try_pop().await? {
                let works = (self.work(player, delivery), self.work(player, more));
                let (one, other) = tokio::join!(works.0, works.1);
                return one.and(other);
            }
        }
        self.work(player, delivery).await
    }

    /// Lets go of all consumers.
    pub fn end(&self) {
        self.consumers.borrow_mut().clear();
    }

    /// Empties the queue.
    ///
    /// # Errors
    /// What the store or the recipe had to say.
    pub async fn drain(&self, player: &Player, queue: &Handle<i64>) -> Result<()> {
        let session = player.client().session().await?;
        let consumer = queue.consumer(&session).await?;
        loop {
            let status = queue.status().await?;
            if (status.items, status.delayed) == (0, 0) {
                break;
            }
            match tokio::time::timeout(WAIT, consumer.pop()).await {
                Ok(delivery) => self.finish_item(player, delivery?).await?,
                // Others have what is left, or it is not due.
                Err(_) => self.end(),
            }
        }
        drop(consumer);
        session.close().await
    }

    /// Judges what happened; of an exact order, by how many keys.
    ///
    /// # Errors
    /// What is broken.
    pub fn check(&self, history: &History, keys: Option<i64>) -> std::result::Result<(), String> {
        let items = Items::of(history, keys)?;
        self.pushes
            .check(items.pushed.iter().map(|number| (*number, ())))?;
        for (number, at) in &*self.done.borrow() {
            let done = items.done.get(number);
            if done != Some(at) {
                return Err(format!(
                    "item {number} was acknowledged at {at}, and done at {done:?}"
                ));
            }
        }
        Ok(())
    }
}

fn delivery_lease(delivery: &Delivery<i64>) -> LeaseId {
    use quorate_recipes::Fenced as _;
    delivery.fence().lease()
}

/// Whether a key of a queue may be there when all is over.
#[must_use]
pub fn may_remain(key: &str) -> bool {
    let of_queue = key.strip_prefix("quorate/queue/q/");
    of_queue.is_some_and(|rest| rest == "head" || rest == "settings" || rest.starts_with("dead/"))
}

/// A queue whose items are given out several at a time, with no keys; or in an exact order by so many keys.
#[derive(Debug, Default)]
pub struct Queue<const KEYS: i64>(Work);

/// The queue of the worlds.
#[must_use]
pub fn handle(player: &Player) -> Handle<i64> {
    let queue = player.client().queue("q").with_segment_items(4);
    let queue = queue.max_attempts(ATTEMPTS_MAX);
    match player.index() % 2 {
        0 => queue,
        _ => queue.max_work(WORK_MAX),
    }
}

impl<const KEYS: i64> Queue<KEYS> {
    fn handle(player: &Player) -> Handle<i64> {
        match KEYS {
            0 => handle(player),
            1 => handle(player).strict(),
            _ => handle(player).ordered_by(|number| (number % KEYS).to_string()),
        }
    }
}

impl<const KEYS: i64> Scenario for Queue<KEYS> {
    const NAME: &'static str = match KEYS {
        0 => "queue",
        1 => "strict_queue",
        _ => "ordered_queue",
    };

    fn new() -> Self {
        Self::default()
    }

    async fn step(&self, player: &Player, session: &Session) -> Result<()> {
        self.0.step(player, session, &Self::handle(player)).await
    }

    async fn finish(&self, players: &[Player]) -> std::result::Result<(), String> {
        let drained = self.0.drain(&players[0], &Self::handle(&players[0])).await;
        drained.map_err(|error| error.to_string())
    }

    fn end(&self) {
        self.0.end();
    }

    fn may_remain(&self, key: &str) -> bool {
        may_remain(key)
    }

    fn check(&self, history: &History) -> std::result::Result<(), String> {
        self.0.check(history, (KEYS > 0).then_some(KEYS))
    }
}
