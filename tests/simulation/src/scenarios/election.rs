//! The election: one leader at a time, and observers who see who leads, in order, and when nobody
//! does.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};

use futures::StreamExt;
use quorate_recipes::election::Leader;
use quorate_recipes::{Result, Session};

use crate::fenced::{Ledger, Line};
use crate::history::History;
use crate::player::Player;
use crate::scenario::Scenario;

/// Who was seen to lead, if anybody: its token, and the revision of what it said.
type Seen = Option<(i64, i64)>;

/// Clients that campaign, proclaim, write and resign, and each observes.
#[derive(Debug)]
pub struct Election {
    ledger: Ledger,
    /// What each observer was told, in order.
    observed: RefCell<BTreeMap<usize, Vec<Seen>>>,
    failed: RefCell<Option<String>>,
}

impl Scenario for Election {
    const NAME: &'static str = "election";

    fn new() -> Self {
        Self {
            ledger: Ledger::default(),
            observed: RefCell::default(),
            failed: RefCell::default(),
        }
    }

    async fn step(&self, player: &Player, session: &Session) -> Result<()> {
        let election = player.client().election("e");
        let name = format!("player {}", player.index());
        let leadership = election.campaign(session, name).await?;
        let held = self.ledger.granted(player, leadership);
        self.ledger.put(player, &held, "data/mark", "").await?;
        if player.one_in(2) {
            let at = held.proclaim(format!("again {}", player.index())).await?;
            player.note(format!("proclaimed at {at}"));
        }
        self.ledger.increment(player, &held, "data/count").await?;
        if player.one_in(3) {
            drop(held);
            return Ok(());
        }
        held.into_inner().resign().await
    }

    async fn attend(&self, player: &Player) {
        let mut leaders = player.client().election::<String>("e").observe();
        while let Some(item) = leaders.next().await {
            match item {
                Ok(leader) => {
                    let seen =
                        |leader: Leader<String>| (leader.token.revision.0, leader.proclaimed.0);
                    let seen = leader.map(seen);
                    player.note(format!("sees {seen:?}"));
                    let mut observed = self.observed.borrow_mut();
                    observed.entry(player.index()).or_default().push(seen);
                }
                Err(error) => {
                    *self.failed.borrow_mut() = Some(format!("an observer failed: {error}"));
                    return;
                }
            }
        }
        *self.failed.borrow_mut() = Some("an observer's stream ended".to_owned());
    }

    fn check(&self, history: &History) -> std::result::Result<(), String> {
        if let Some(failed) = &*self.failed.borrow() {
            return Err(failed.clone());
        }
        let line = "quorate/election/e/";
        self.ledger.check(history, &Line::under(line))?;
        // What any leader or candidate ever said, by its token and the revision at which it did.
        let said: BTreeSet<(i64, i64)> = (history.changes())
            .filter_map(|(_, change)| change.kv.as_ref())
            .filter(|kv| kv.key.starts_with(line.as_bytes()) && kv.version > 0)
            .map(|kv| (kv.create_revision, kv.mod_revision))
            .collect();
        for (observer, seen) in &*self.observed.borrow() {
            let mut last = (0, 0);
            for leader in seen.iter().flatten() {
                if *leader < last {
                    return Err(format!("observer {observer} saw {leader:?} after {last:?}"));
                }
                if !said.contains(leader) {
                    return Err(format!(
                        "observer {observer} saw {leader:?}, which never was"
                    ));
                }
                last = *leader;
            }
            if seen.iter().flatten().next().is_none() {
                return Err(format!("observer {observer} saw no leader at all"));
            }
            if seen.last() != Some(&None) {
                return Err(format!(
                    "observer {observer} does not see that nobody leads"
                ));
            }
        }
        Ok(())
    }
}
