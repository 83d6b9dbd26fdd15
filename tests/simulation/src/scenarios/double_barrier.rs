//! The double barrier: its parties enter together, and a leave ends when all of them have left.

use std::cell::RefCell;
use std::time::Duration;

use quorate_proto::mvccpb::event::EventType;
use quorate_recipes::keys::Revision;
use quorate_recipes::{Error, Result, Session};

use crate::gatherings::{LAST_GENERATIONS, PARTIES, Told};
use crate::history::{History, key_of};
use crate::player::Player;
use crate::scenario::Scenario;

/// Clients that come, enter, stay for a while, and leave.
#[derive(Debug)]
pub struct DoubleBarrier {
    told: Told,
    /// The generations that were left, and the store's revision when a leave was over.
    left: RefCell<Vec<(u64, Revision)>>,
}

const PREFIX: &str = "quorate/double-barrier/d/";

impl Scenario for DoubleBarrier {
    const NAME: &'static str = "double_barrier";

    fn new() -> Self {
        Self {
            told: Told::default(),
            left: RefCell::default(),
        }
    }

    async fn step(&self, player: &Player, session: &Session) -> Result<()> {
        let barrier = player.client().double_barrier("d", PARTIES);
        let patience = Duration::from_millis(player.below(6_000));
        let inside = match tokio::time::timeout(patience, barrier.enter(session)).await {
            Ok(Ok(inside)) => inside,
            Ok(Err(error)) => {
                self.told.failed(&error);
                return Err(error);
            }
            Err(_) => return Ok(()),
        };
        let generation = inside.generation();
        self.told.passed(player, generation, inside.index());
        player.pause(1_000).await;
        if player.one_in(4) {
            return Ok(());
        }
        inside.leave().await?;
        let over = (generation, player.revision());
        self.left.borrow_mut().push(over);
        Ok(())
    }

    fn may_meet(&self, error: &Error) -> bool {
        matches!(error, Error::Broken { .. })
    }

    async fn finish(&self, players: &[Player]) -> std::result::Result<(), String> {
        Told::together(players, |player, session| async move {
            let barrier = player.client().double_barrier("d", PARTIES);
            for _ in 0..LAST_GENERATIONS {
                let inside = barrier.enter(&session).await?;
                let generation = inside.generation();
                self.told.passed(&player, generation, inside.index());
                player.pause(1_000).await;
                inside.leave().await?;
                let over = (generation, player.revision());
                self.left.borrow_mut().push(over);
            }
            Ok(())
        })
        .await
    }

    fn may_remain(&self, key: &str) -> bool {
        key == "quorate/double-barrier/d/meta"
    }

    fn check(&self, history: &History) -> std::result::Result<(), String> {
        self.told.check(history, PREFIX)?;
        for (generation, over) in &*self.left.borrow() {
            let members = format!("{PREFIX}member/{generation}/");
            let last = history.changes().filter(|(_, change)| {
                change.r#type() == EventType::Delete && key_of(change).starts_with(&members)
            });
            let last = last.map(|(commit, _)| commit.revision).max();
            if last.is_none_or(|last| last > *over) {
                return Err(format!(
                    "a leave of {generation} was over at {over}, and the last left at {last:?}"
                ));
            }
        }
        Ok(())
    }
}
