//! The queue-ordered lock with a count of holds: all guards of an owner are one hold, and it is given up
//! with the last of them and not before.

use std::cell::RefCell;
use std::collections::BTreeMap;

use quorate_recipes::lock::SharedMutex;
use quorate_recipes::{Result, Session, TxnError};

use crate::fenced::{Ledger, Line};
use crate::history::History;
use crate::player::Player;
use crate::scenario::Scenario;

/// Clients whose code calls itself with the lock in hand.
#[derive(Debug)]
pub struct Shared {
    ledger: Ledger,
    /// The lock of each client, under its session of the moment.
    locks: RefCell<BTreeMap<usize, (i64, SharedMutex)>>,
    broken: RefCell<Option<String>>,
}

impl Shared {
    fn lock(&self, player: &Player, session: &Session) -> SharedMutex {
        let mut locks = self.locks.borrow_mut();
        let lease = session.lease().0;
        let known = locks.get(&player.index());
        if let Some((_, lock)) = known.filter(|(known, _)| *known == lease) {
            return lock.clone();
        }
        let fresh = player.client().mutex("m").shared(session);
        locks.insert(player.index(), (lease, fresh.clone()));
        fresh
    }

    /// Holds, and calls itself: the inner guard is of the same hold, and its end is not the hold's.
    async fn outer(&self, player: &Player, lock: &SharedMutex) -> Result<()> {
        let guard = match player.one_in(4) {
            true => match lock.try_lock().await? {
                Some(guard) => guard,
                None => return Ok(()),
            },
            false => lock.lock().await?,
        };
        let held = self.ledger.granted(player, guard);
        self.ledger.increment(player, &held, "data/count").await?;
        let inner = lock.lock().await?;
        if inner.token() != held.token() && held.remaining().is_zero() {
            // The outer one was lost, so this is a hold of its own.
            return inner.release().await;
        }
        if inner.token() != held.token() {
            let broken = format!("{} inside of {}", inner.token(), held.token());
            self.broken.borrow_mut().get_or_insert(broken);
        }
        match player.one_in(2) {
            true => drop(inner),
            false => inner.release().await?,
        }
        player.pause(200).await;
        let late = held.delete("quorate-free/none").await;
        if let Err(TxnError::Fenced { .. }) = &late
            && !held.remaining().is_zero()
        {
            let broken = format!("{} ended with a part of it", held.token());
            self.broken.borrow_mut().get_or_insert(broken);
        }
        late?;
        match player.one_in(3) {
            true => Ok(()),
            false => held.into_inner().release().await,
        }
    }
}

impl Scenario for Shared {
    const NAME: &'static str = "shared";

    fn new() -> Self {
        Self {
            ledger: Ledger::default(),
            locks: RefCell::default(),
            broken: RefCell::default(),
        }
    }

    async fn step(&self, player: &Player, session: &Session) -> Result<()> {
        let lock = self.lock(player, session);
        let done = self.outer(player, &lock).await;
        // The lock keeps its session alive.
        drop(lock);
        if player.one_in(3) || done.is_err() {
            self.locks.borrow_mut().remove(&player.index());
        }
        done
    }

    fn end(&self) {
        self.locks.borrow_mut().clear();
    }

    fn check(&self, history: &History) -> std::result::Result<(), String> {
        if let Some(broken) = &*self.broken.borrow() {
            return Err(broken.clone());
        }
        self.ledger.check(history, &Line::under("quorate/lock/m/"))
    }
}
