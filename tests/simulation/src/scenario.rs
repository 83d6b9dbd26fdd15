//! What a recipe brings to be simulated.

use std::future::Future;
use std::time::Duration;

use quorate_recipes::store::Capabilities;
use quorate_recipes::{Error, Result, Session};

use crate::history::History;
use crate::player::Player;

/// A recipe at work, and how to see that it keeps its promises. See the crate's documentation for how
/// to write one.
pub trait Scenario: 'static {
    /// What it is called on the command line.
    const NAME: &'static str;

    /// A fresh one, for one world.
    fn new() -> Self;

    /// The limits of the store.
    #[must_use]
    fn capabilities() -> Capabilities {
        Capabilities::default()
    }

    /// One use of the recipe by one client, under its session of the moment. Called again and again;
    /// dropped at any await.
    ///
    /// # Errors
    /// What the recipe told the client. In the calm, a step that fails is not counted as done.
    fn step(&self, player: &Player, session: &Session) -> impl Future<Output = Result<()>>;

    /// Whether a step may be told of this error, beside those that trouble with the store or the loss of
    /// a session explains. Any other one breaks the world.
    fn may_meet(&self, error: &Error) -> bool {
        let _ = error;
        false
    }

    /// What a client does besides, from the beginning until after the last session was closed; it is
    /// dropped then.
    fn attend(&self, player: &Player) -> impl Future<Output = ()> {
        let _ = player;
        std::future::ready(())
    }

    /// What all clients together must bring about when each has done its last step: with nothing in
    /// the way, whatever the recipe promises to come comes. It has as long as the calm.
    ///
    /// # Errors
    /// What did not come.
    fn finish(&self, players: &[Player]) -> impl Future<Output = std::result::Result<(), String>> {
        let _ = players;
        std::future::ready(Ok(()))
    }

    /// Lets go of everything that clients kept between their steps, when they have done the last one. Their
    /// sessions live on for a while, and of the recipe's keys only those may be left that
    /// [`Scenario::may_remain`].
    fn end(&self) {}

    /// Whether a key of the recipes may be there when all is over.
    fn may_remain(&self, key: &str) -> bool {
        let _ = key;
        false
    }

    /// How long what clients left may live on under leases that nobody renews, when their sessions are closed.
    #[must_use]
    fn outlives() -> Duration {
        Duration::ZERO
    }

    /// Judges what happened.
    ///
    /// # Errors
    /// What is broken, with revisions and tokens.
    fn check(&self, history: &History) -> std::result::Result<(), String>;
}
