//! The queue-ordered lock: who holds it counts, and nobody else's writes come between.

use quorate_recipes::{Result, Session};

use crate::fenced::{Ledger, Line};
use crate::history::History;
use crate::player::Player;
use crate::scenario::Scenario;

/// Clients that lock, read, write and unlock.
#[derive(Debug)]
pub struct Mutex {
    ledger: Ledger,
}

impl Scenario for Mutex {
    const NAME: &'static str = "mutex";

    fn new() -> Self {
        Self {
            ledger: Ledger::default(),
        }
    }

    async fn step(&self, player: &Player, session: &Session) -> Result<()> {
        let lock = player.client().mutex("m");
        let guard = match player.one_in(4) {
            true => match lock.try_lock(session).await? {
                Some(guard) => guard,
                None => return Ok(()),
            },
            false => lock.lock(session).await?,
        };
        let held = self.ledger.granted(player, guard);
        for _ in 0..player.below(3) {
            self.ledger.put(player, &held, "data/mark", "").await?;
            player.pause(300).await;
        }
        self.ledger.increment(player, &held, "data/count").await?;
        if player.one_in(3) {
            drop(held);
            return Ok(());
        }
        held.into_inner().release().await
    }

    fn check(&self, history: &History) -> std::result::Result<(), String> {
        self.ledger.check(history, &Line::under("quorate/lock/m/"))
    }
}
