//! The compare-and-swap lock: one key, and whoever creates it counts.

use quorate_recipes::{Result, Session};

use crate::fenced::{Ledger, Line};
use crate::history::History;
use crate::player::Player;
use crate::scenario::Scenario;

/// Clients that try or wait for one key, read, write, and give it up.
#[derive(Debug)]
pub struct Exclusive {
    ledger: Ledger,
}

impl Scenario for Exclusive {
    const NAME: &'static str = "exclusive";

    fn new() -> Self {
        Self {
            ledger: Ledger::default(),
        }
    }

    async fn step(&self, player: &Player, session: &Session) -> Result<()> {
        let lock = player.client().exclusive("x");
        let guard = match player.one_in(3) {
            true => match lock.try_lock(session).await? {
                Some(guard) => guard,
                None => return Ok(()),
            },
            false => lock.lock(session).await?,
        };
        let held = self.ledger.granted(player, guard);
        self.ledger.put(player, &held, "data/mark", "").await?;
        self.ledger.increment(player, &held, "data/count").await?;
        player.pause(200).await;
        self.ledger.put(player, &held, "data/mark", "").await?;
        if player.one_in(3) {
            drop(held);
            return Ok(());
        }
        held.into_inner().release().await
    }

    fn check(&self, history: &History) -> std::result::Result<(), String> {
        let line = Line::under("quorate/exclusive/x/");
        self.ledger.check(history, &line)
    }
}
