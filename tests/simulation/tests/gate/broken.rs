//! Scenarios in which one thing is broken.

use quorate_recipes::store::Capabilities;
use quorate_recipes::{Error, Result, Session};
use quorate_simulation::{History, Player, Scenario};

/// One way to break a scenario: what clients do instead. It is judged as the scenario itself is, and what it leaves
/// behind does not matter.
pub(super) trait Broken: 'static {
    /// What is broken by it.
    type Whole: Scenario;

    const NAME: &'static str;

    /// Whether what is promised to come must come.
    const FINISHES: bool = false;

    async fn step(whole: &Self::Whole, player: &Player, session: &Session) -> Result<()> {
        whole.step(player, session).await
    }

    async fn attend(_whole: &Self::Whole, _player: &Player) {}
}

/// The scenario, broken.
pub(super) struct World<B: Broken>(B::Whole);

impl<B: Broken> Scenario for World<B> {
    const NAME: &'static str = B::NAME;

    fn new() -> Self {
        Self(B::Whole::new())
    }

    fn capabilities() -> Capabilities {
        B::Whole::capabilities()
    }

    async fn step(&self, player: &Player, session: &Session) -> Result<()> {
        B::step(&self.0, player, session).await
    }

    fn may_meet(&self, _error: &Error) -> bool {
        true
    }

    async fn attend(&self, player: &Player) {
        B::attend(&self.0, player).await;
    }

    async fn finish(&self, players: &[Player]) -> std::result::Result<(), String> {
        match B::FINISHES {
            true => self.0.finish(players).await,
            false => Ok(()),
        }
    }

    fn end(&self) {
        self.0.end();
    }

    fn may_remain(&self, _key: &str) -> bool {
        true
    }

    fn check(&self, history: &History) -> std::result::Result<(), String> {
        self.0.check(history)
    }
}
