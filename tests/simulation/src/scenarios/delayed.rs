//! The queue-ordered lock with a delay: after a holder that was lost, nobody writes for a while.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::time::Duration;

use quorate_proto::mvccpb::event::EventType;
use quorate_recipes::clock::Instant;
use quorate_recipes::lock::Mutex;
use quorate_recipes::{Result, Session};

use crate::fenced::{Ledger, Line, Order};
use crate::history::{History, key_of};
use crate::player::Player;
use crate::scenario::Scenario;

const LINE: &str = "quorate/lock/d/";
const NOTE: &str = "quorate/lock-meta/d/held";
const DELAY: Duration = Duration::from_secs(2);

/// Clients that lock and write.
#[derive(Debug)]
pub struct Delayed {
    ledger: Ledger,
    /// The handle of each client, which remembers what it has seen.
    locks: RefCell<BTreeMap<usize, Mutex>>,
}

impl Delayed {
    fn lock(&self, player: &Player) -> Mutex {
        let mut locks = self.locks.borrow_mut();
        let fresh = || player.client().mutex("d").with_delay(DELAY);
        locks.entry(player.index()).or_insert_with(fresh).clone()
    }
}

impl Scenario for Delayed {
    const NAME: &'static str = "delayed";

    fn new() -> Self {
        Self {
            ledger: Ledger::default(),
            locks: RefCell::default(),
        }
    }

    async fn step(&self, player: &Player, session: &Session) -> Result<()> {
        let lock = self.lock(player);
        let guard = match player.one_in(4) {
            true => match lock.try_lock(session).await? {
                Some(guard) => guard,
                None => return Ok(()),
            },
            false => lock.lock(session).await?,
        };
        let held = self.ledger.granted(player, guard);
        self.ledger.increment(player, &held, "data/count").await?;
        if player.one_in(3) {
            drop(held);
            return Ok(());
        }
        held.into_inner().release().await
    }

    /// The note of a holder that was lost stays until the next one comes.
    fn may_remain(&self, key: &str) -> bool {
        key == NOTE
    }

    fn check(&self, history: &History) -> std::result::Result<(), String> {
        self.ledger.check(history, &Line::under(LINE))?;
        // Whose note stands, and since when its key is gone without it.
        let mut line = Line::under(LINE);
        let (mut noted, mut lost): (Option<i64>, Option<Instant>) = (None, None);
        for commit in &history.commits {
            commit.changes.iter().for_each(|change| line.take(change));
            let of = |key: &str| {
                let mut changes = commit.changes.iter();
                changes.find(|change| key_of(change) == key)
            };
            let written = of("data/count").is_some();
            if let Some(change) = of(NOTE) {
                let put = change.r#type() == EventType::Put;
                noted = line.first().filter(|_| put);
                if put && let Some(lost) = lost.filter(|lost| commit.at < *lost + DELAY) {
                    return Err(format!(
                        "revision {}: let in {:?} after a loss",
                        commit.revision,
                        commit.at - lost
                    ));
                }
                lost = None;
            } else if written && noted != line.first() {
                return Err(format!(
                    "revision {}: a write under {:?}, noted was {noted:?}",
                    commit.revision,
                    line.first()
                ));
            } else if noted.is_some() && noted != line.first() {
                noted = None;
                lost = Some(commit.at);
            }
        }
        Ok(())
    }
}
