//! Broken cyclic barriers.

use std::time::Duration;

use quorate_recipes::{Error, Result, Session};
use quorate_simulation::scenarios::{Gathered, PARTIES};
use quorate_simulation::{History, Player, Scenario};

use super::mutants::is_found;

/// Comes to the barrier, and goes again after a while.
async fn come(told: &Gathered, player: &Player, session: &Session, parties: u32) -> Result<bool> {
    let barrier = player.client().cyclic_barrier("c", parties);
    let patience = Duration::from_millis(player.below(6_000));
    let Ok(passed) = tokio::time::timeout(patience, barrier.wait(session)).await else {
        return Ok(false);
    };
    let passed = passed.inspect_err(|error| told.failed(error))?;
    told.passed(player, passed.generation, passed.index);
    Ok(true)
}

/// A barrier that counts from 0, and so opens when one is missing yet.
struct TooEarly(Gathered);

impl Scenario for TooEarly {
    const NAME: &'static str = "a barrier that opens too early";

    fn new() -> Self {
        Self(Gathered::default())
    }

    async fn step(&self, player: &Player, session: &Session) -> Result<()> {
        come(&self.0, player, session, PARTIES - 1).await.map(drop)
    }

    fn may_meet(&self, error: &Error) -> bool {
        matches!(error, Error::Broken { .. })
    }

    fn may_remain(&self, key: &str) -> bool {
        key == "quorate/cyclic-barrier/c/meta"
    }

    fn check(&self, history: &History) -> std::result::Result<(), String> {
        self.0.check(history, "quorate/cyclic-barrier/c/")
    }
}

#[test]
fn a_barrier_that_opens_too_early_is_found() {
    is_found::<TooEarly>("opened with 2 there");
}

/// A barrier at which a generation that is over lets in who comes just then.
struct Latecomer(Gathered);

impl Scenario for Latecomer {
    const NAME: &'static str = "a barrier that lets a latecomer in";

    fn new() -> Self {
        Self(Gathered::default())
    }

    async fn step(&self, player: &Player, session: &Session) -> Result<()> {
        let barrier = player.client().cyclic_barrier("c", PARTIES);
        let gathering = barrier.gathering().await?;
        if gathering.generation > 1 && gathering.arrived == 0 && player.one_in(2) {
            self.0.passed(player, gathering.generation - 1, PARTIES - 1);
            return Ok(());
        }
        come(&self.0, player, session, PARTIES).await.map(drop)
    }

    async fn finish(&self, players: &[Player]) -> std::result::Result<(), String> {
        Gathered::together(players, |player, session| async move {
            while !come(&self.0, &player, &session, PARTIES).await? {}
            while !come(&self.0, &player, &session, PARTIES).await? {}
            Ok(())
        })
        .await
    }

    fn may_meet(&self, error: &Error) -> bool {
        matches!(error, Error::Broken { .. })
    }

    fn may_remain(&self, key: &str) -> bool {
        key == "quorate/cyclic-barrier/c/meta"
    }

    fn check(&self, history: &History) -> std::result::Result<(), String> {
        self.0.check(history, "quorate/cyclic-barrier/c/")
    }
}

#[test]
fn a_barrier_that_lets_a_latecomer_in_is_found() {
    is_found::<Latecomer>("no place, or taken twice");
}
