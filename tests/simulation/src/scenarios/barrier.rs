//! The barrier: no wait ends while it is closed.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::time::Duration;

use futures::future::{try_join, try_join_all};
use quorate_proto::mvccpb::event::EventType;
use quorate_recipes::keys::Revision;
use quorate_recipes::{Result, Session};

use crate::gatherings::Wrong;
use crate::history::{History, key_of};
use crate::player::Player;
use crate::scenario::Scenario;

/// Clients that hold it, set it, lift it, or wait.
#[derive(Debug)]
pub struct Barrier {
    waits: Waits,
    wrong: Wrong,
}

const PREFIX: &str = "quorate/barrier/b/";

/// The store's revisions at the begin and the end of each wait.
#[derive(Debug, Default)]
pub struct Waits(RefCell<Vec<(Revision, Revision)>>);

impl Waits {
    /// Notes a wait for the barrier `b` that comes to its end.
    ///
    /// # Errors
    /// The wait's.
    pub async fn attempt(
        &self,
        player: &Player,
        wait: impl Future<Output = Result<()>>,
    ) -> Result<()> {
        let from = player.revision();
        wait.await?;
        let wait = (from, player.revision());
        player.note(format!("open between {} and {}", wait.0, wait.1));
        self.0.borrow_mut().push(wait);
        Ok(())
    }

    /// Judges all of them.
    ///
    /// # Errors
    /// What is broken.
    pub fn check(&self, history: &History) -> std::result::Result<(), String> {
        let mut closing = BTreeSet::new();
        let mut open_at = BTreeSet::from([Revision(1)]);
        for commit in &history.commits {
            for change in &commit.changes {
                let key = key_of(change);
                if !key.starts_with(PREFIX) {
                    continue;
                }
                match change.r#type() {
                    EventType::Put => closing.insert(key),
                    EventType::Delete => closing.remove(&key),
                };
            }
            if closing.is_empty() {
                open_at.insert(commit.revision);
            }
        }
        let waits = self.0.borrow();
        let closed = |(from, to): &&(Revision, Revision)| open_at.range(from..=to).next().is_none();
        match waits.iter().find(closed) {
            Some((from, to)) => Err(format!("a wait ended, closed from {from} to {to}")),
            None => Ok(()),
        }
    }
}

impl Barrier {
    async fn close_or_wait(&self, player: &Player, session: &Session) -> Result<()> {
        let barrier = player.client().barrier("b");
        match player.below(6) {
            0 => {
                barrier.set(session).await?;
                player.pause(400).await;
                barrier.lift().await?;
            }
            1 => {
                barrier.lift().await?;
            }
            2 => {
                let hold = barrier.hold(session).await?;
                player.pause(800).await;
                if player.one_in(2) {
                    hold.release().await?;
                }
            }
            _ => {
                let patience = Duration::from_secs(5);
                if let Ok(waited) = tokio::time::timeout(patience, self.wait(player)).await {
                    waited?;
                }
            }
        }
        Ok(())
    }
}

impl Barrier {
    async fn wait(&self, player: &Player) -> Result<()> {
        let barrier = player.client().barrier("b");
        self.waits.attempt(player, barrier.wait()).await
    }

    /// Everybody waits while somebody holds it, and then while it is set, and all go on.
    async fn open_for_all(&self, players: &[Player]) -> Result<()> {
        let barrier = players[0].client().barrier("b");
        let session = players[0].client().session().await?;
        barrier.lift().await?;
        for by_hold in [true, false] {
            let hold = match by_hold {
                true => Some(barrier.hold(&session).await?),
                false => {
                    barrier.set(&session).await?;
                    None
                }
            };
            let waiting = try_join_all(players.iter().map(|player| self.wait(player)));
            let opening = async {
                tokio::time::sleep(Duration::from_secs(3)).await;
                match hold {
                    Some(hold) => hold.release().await,
                    None => barrier.lift().await.map(drop),
                }
            };
            try_join(waiting, opening).await?;
        }
        session.close().await
    }
}

impl Scenario for Barrier {
    const NAME: &'static str = "barrier";

    fn new() -> Self {
        Self {
            waits: Waits::default(),
            wrong: Wrong::default(),
        }
    }

    async fn step(&self, player: &Player, session: &Session) -> Result<()> {
        let outcome = self.close_or_wait(player, session).await;
        outcome.inspect_err(|error| self.wrong.note(error))
    }

    async fn finish(&self, players: &[Player]) -> std::result::Result<(), String> {
        let opened = self.open_for_all(players).await;
        opened.map_err(|error| format!("in the calm: {error}"))
    }

    fn may_remain(&self, key: &str) -> bool {
        // Set in a step that was dropped before it lifted.
        key == "quorate/barrier/b/set"
    }

    fn check(&self, history: &History) -> std::result::Result<(), String> {
        self.wrong.check()?;
        self.waits.check(history)
    }
}
