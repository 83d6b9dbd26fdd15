//! The queue-ordered lock for many tasks of one process, which hand their hold on: nothing that one task
//! sent may take effect in the time of the next one.

use std::cell::RefCell;
use std::collections::BTreeMap;

use quorate_recipes::lock::CombinedMutex;
use quorate_recipes::{Result, Session};

use crate::fenced::{Ledger, Line};
use crate::history::History;
use crate::player::Player;
use crate::scenario::Scenario;

/// Clients of several tasks each.
#[derive(Debug)]
pub struct Combined {
    ledger: Ledger,
    /// The lock of each client, under its session of the moment.
    locks: RefCell<BTreeMap<usize, (i64, CombinedMutex)>>,
}

impl Combined {
    fn lock(&self, player: &Player, session: &Session) -> CombinedMutex {
        let mut locks = self.locks.borrow_mut();
        let lease = session.lease().0;
        let known = locks.get(&player.index());
        if let Some((_, lock)) = known.filter(|(known, _)| *known == lease) {
            return lock.clone();
        }
        let fresh = player.client().mutex("m").combined(session).passes_max(4);
        locks.insert(player.index(), (lease, fresh.clone()));
        fresh
    }

    async fn task(&self, player: &Player, lock: &CombinedMutex) -> Result<()> {
        player.pause(200).await;
        let held = self.ledger.granted(player, lock.lock().await?);
        self.ledger.increment(player, &held, "data/count").await?;
        match player.one_in(2) {
            true => held.into_inner().release().await,
            false => Ok(()),
        }
    }
}

impl Scenario for Combined {
    const NAME: &'static str = "combined";

    fn new() -> Self {
        Self {
            ledger: Ledger::default(),
            locks: RefCell::default(),
        }
    }

    async fn step(&self, player: &Player, session: &Session) -> Result<()> {
        let lock = self.lock(player, session);
        let tasks = (0..3).map(|_| self.task(player, &lock));
        let done = futures::future::join_all(tasks).await;
        // The lock keeps its session alive.
        drop(lock);
        if player.one_in(3) || done.iter().any(Result::is_err) {
            self.locks.borrow_mut().remove(&player.index());
        }
        done.into_iter().collect()
    }

    fn end(&self) {
        self.locks.borrow_mut().clear();
    }

    fn check(&self, history: &History) -> std::result::Result<(), String> {
        self.ledger.check(history, &Line::under("quorate/lock/m/"))
    }
}
