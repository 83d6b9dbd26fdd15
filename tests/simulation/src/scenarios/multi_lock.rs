//! Several locks at once: each of them excludes, and nobody waits for ever.

use std::collections::BTreeMap;

use quorate_proto::mvccpb::Event;
use quorate_recipes::{Result, Session};

use crate::fenced::{Ledger, Line, Order};
use crate::history::History;
use crate::player::Player;
use crate::scenario::Scenario;

const NAMES: [&str; 3] = ["a", "b", "c"];

/// Clients that take two or three of three locks, or one alone.
#[derive(Debug)]
pub struct MultiLock {
    ledger: Ledger,
}

impl Scenario for MultiLock {
    const NAME: &'static str = "multi_lock";

    fn new() -> Self {
        Self {
            ledger: Ledger::default(),
        }
    }

    async fn step(&self, player: &Player, session: &Session) -> Result<()> {
        let first = usize::try_from(player.below(3)).expect("small");
        if player.one_in(3) {
            let guard = player.client().mutex(NAMES[first]).lock(session).await?;
            let held = self.ledger.granted(player, guard);
            let key = format!("data/{}/count", NAMES[first]);
            self.ledger.increment(player, &held, &key).await?;
            return held.into_inner().release().await;
        }
        let count = usize::try_from(2 + player.below(2)).expect("small");
        let mut names = NAMES.to_vec();
        names.rotate_left(first);
        names.truncate(count);
        let lock = player.client().multi_lock(names.clone());
        let guard = match player.one_in(4) {
            true => match lock.try_lock(session).await? {
                Some(guard) => guard,
                None => return Ok(()),
            },
            false => lock.lock(session).await?,
        };
        let held = self.ledger.granted(player, guard);
        for name in names {
            let key = format!("data/{name}/count");
            self.ledger.increment(player, &held, &key).await?;
        }
        if player.one_in(3) {
            drop(held);
            return Ok(());
        }
        held.into_inner().release().await
    }

    fn check(&self, history: &History) -> std::result::Result<(), String> {
        self.ledger.check_by(history, &mut Lines::of(NAMES))
    }
}

/// The line of each lock; keys of data are named after theirs.
pub(super) struct Lines(BTreeMap<&'static str, Line>);

impl Lines {
    /// Of mutexes.
    pub(super) fn of<const N: usize>(names: [&'static str; N]) -> Self {
        let lines = names.map(|name| (name, Line::under(format!("quorate/lock/{name}/"))));
        Self(BTreeMap::from(lines))
    }
}

impl Order for Lines {
    fn take(&mut self, change: &Event) {
        self.0.values_mut().for_each(|line| line.take(change));
    }

    fn has(&self, key: &str) -> bool {
        self.0.values().any(|line| line.has(key))
    }

    fn allows(&mut self, key: &str, token: i64) -> std::result::Result<(), String> {
        let name = key.split('/').nth(1).unwrap_or_default();
        let line = self.0.get_mut(name);
        line.ok_or_else(|| format!("of no lock: {key}"))?
            .allows(key, token)
    }
}
