//! The cyclic barrier: exactly its parties pass each generation, all alive when it opened.

use std::time::Duration;

use quorate_recipes::{Error, Result, Session};

use crate::gatherings::{LAST_GENERATIONS, PARTIES, Told};
use crate::history::History;
use crate::player::Player;
use crate::scenario::Scenario;

/// Clients that come, wait for a while, and go again if nobody else comes.
#[derive(Debug)]
pub struct CyclicBarrier {
    told: Told,
}

impl Scenario for CyclicBarrier {
    const NAME: &'static str = "cyclic_barrier";

    fn new() -> Self {
        Self {
            told: Told::default(),
        }
    }

    async fn step(&self, player: &Player, session: &Session) -> Result<()> {
        let barrier = player.client().cyclic_barrier("c", PARTIES);
        let patience = Duration::from_millis(player.below(6_000));
        match tokio::time::timeout(patience, barrier.wait(session)).await {
            Ok(Ok(passed)) => {
                self.told.passed(player, passed.generation, passed.index);
                Ok(())
            }
            Ok(Err(error)) => {
                self.told.failed(&error);
                Err(error)
            }
            Err(_) => Ok(()),
        }
    }

    fn may_meet(&self, error: &Error) -> bool {
        matches!(error, Error::Broken { .. })
    }

    async fn finish(&self, players: &[Player]) -> std::result::Result<(), String> {
        Told::together(players, |player, session| async move {
            let barrier = player.client().cyclic_barrier("c", PARTIES);
            for _ in 0..LAST_GENERATIONS {
                let passed = barrier.wait(&session).await?;
                self.told.passed(&player, passed.generation, passed.index);
            }
            Ok(())
        })
        .await
    }

    fn may_remain(&self, key: &str) -> bool {
        key == "quorate/cyclic-barrier/c/meta"
    }

    fn check(&self, history: &History) -> std::result::Result<(), String> {
        self.told.check(history, "quorate/cyclic-barrier/c/")
    }
}
