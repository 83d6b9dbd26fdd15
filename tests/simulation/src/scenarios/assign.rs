//! Partitions: one owner each at every revision, whatever the members think; and whoever joins has its
//! whole share in the end.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use futures::TryFutureExt;
use futures::future::{try_join, try_join_all};
use quorate_recipes::clock::{Clock, SystemClock};
use quorate_recipes::store::Commit;
use quorate_recipes::{Partition, Result, Session};

use crate::fenced::{Held, Ledger, Line};
use crate::history::{History, key_of};
use crate::player::Player;
use crate::scenario::Scenario;

/// How many partitions there are.
const COUNT: u32 = 5;

/// Clients that join, work on their shares, give back what is revoked, and leave.
#[derive(Debug)]
pub struct Assign {
    /// One a partition.
    ledgers: Vec<Ledger>,
}

/// The partitions that each client has.
type Shares = RefCell<BTreeMap<usize, BTreeSet<u32>>>;

/// When the first one leaves, so that the others share again.
const LEAVES: Duration = Duration::from_secs(6);

impl Assign {
    /// Has whatever falls to it for so long.
    async fn stay(&self, player: &Player, shares: &Shares, length: Duration) -> Result<()> {
        let session = player.client().session().await?;
        let set = player.client().partitions("a", COUNT);
        let mut partitions = set.join(&session).await?;
        let until = SystemClock.now() + length;
        let mut held: BTreeMap<u32, Held<Partition>> = BTreeMap::new();
        while SystemClock.now() < until {
            let next = tokio::time::timeout(Duration::from_millis(100), partitions.next());
            if let Ok(next) = next.await {
                let partition = next?;
                let index = partition.index();
                let ledger = &self.ledgers[usize::try_from(index).expect("there are few")];
                held.insert(index, ledger.granted(player, partition));
            }
            held.retain(|_, partition| !partition.is_revoked());
            let share = held.keys().copied().collect();
            shares.borrow_mut().insert(player.index(), share);
        }
        shares.borrow_mut().remove(&player.index());
        drop(held);
        partitions.leave().await?;
        session.close().await
    }
}

/// Whether so many members have everything, each as much as the others, but for one.
fn even(
    shares: &BTreeMap<usize, BTreeSet<u32>>,
    members: usize,
) -> std::result::Result<(), String> {
    let mut all: Vec<u32> = shares.values().flatten().copied().collect();
    all.sort_unstable();
    let count = usize::try_from(COUNT).expect("there are few");
    let fair = count / members..=count.div_ceil(members);
    let is_fair = shares.values().all(|share| fair.contains(&share.len()));
    if shares.len() == members && is_fair && all.into_iter().eq(0..COUNT) {
        return Ok(());
    }
    Err(format!("{members} members in the calm have {shares:?}"))
}

impl Scenario for Assign {
    const NAME: &'static str = "assign";

    fn new() -> Self {
        Self {
            ledgers: (0..COUNT).map(|_| Ledger::default()).collect(),
        }
    }

    async fn step(&self, player: &Player, session: &Session) -> Result<()> {
        let set = player.client().partitions("a", COUNT);
        let mut partitions = set.join(session).await?;
        let mut held: BTreeMap<u32, Held<Partition>> = BTreeMap::new();
        let mut rounds = 0;
        // Until all of its share was there for a while. Others come and go meanwhile.
        while rounds < 3 {
            let limit = Duration::from_millis(50 + player.below(200));
            if let Ok(next) = tokio::time::timeout(limit, partitions.next()).await {
                let partition = next?;
                let index = partition.index();
                let ledger = &self.ledgers[usize::try_from(index).expect("there are few")];
                player.note(format!("has partition {index}"));
                let partition = ledger.granted(player, partition);
                let count = format!("data/{index}/count");
                ledger.increment(player, &partition, &count).await?;
                held.insert(index, partition);
            }
            held.retain(|_, partition| !partition.is_revoked());
            if !held.is_empty() && player.one_in(4) {
                let at = usize::try_from(player.below(u64::from(COUNT))).unwrap_or(0);
                let (index, partition) = held.iter().nth(at % held.len()).expect("it has some");
                let ledger = &self.ledgers[usize::try_from(*index).expect("there are few")];
                let mark = format!("data/{index}/mark");
                ledger.put(player, partition, &mark, "").await?;
            }
            let whole = held.keys().copied().eq(partitions.share());
            rounds = if whole { rounds + 1 } else { 0 };
        }
        if player.one_in(2) {
            partitions.leave().await?;
        }
        Ok(())
    }

    async fn finish(&self, players: &[Player]) -> std::result::Result<(), String> {
        let shares = Shares::default();
        let stays = |(index, player)| {
            let length = if index == 0 { LEAVES } else { 2 * LEAVES };
            self.stay(player, &shares, length)
        };
        let stays = try_join_all(players.iter().enumerate().map(stays));
        let stays = stays.map_err(|error| format!("in the calm: {error}"));
        let judged = async {
            for members in [players.len(), players.len() - 1] {
                tokio::time::sleep(LEAVES - Duration::from_secs(1)).await;
                even(&shares.borrow(), members)?;
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
            Ok(())
        };
        try_join(stays, judged).await.map(drop)
    }

    fn check(&self, history: &History) -> std::result::Result<(), String> {
        for (index, ledger) in self.ledgers.iter().enumerate() {
            let line = format!("quorate/assign/a/{index}/");
            let data = format!("data/{index}/");
            let of_it = |key: &str| {
                key.starts_with(&line)
                    || key.starts_with(&data)
                    || key.starts_with("quorate/session/")
            };
            let commits = history.commits.iter().map(|commit| {
                let changes = commit.changes.iter();
                Arc::new(Commit {
                    changes: changes
                        .filter(|change| of_it(&key_of(change)))
                        .cloned()
                        .collect(),
                    ..Commit::clone(commit)
                })
            });
            let part = History {
                commits: commits.collect(),
                losses: history.losses.clone(),
                calm: history.calm,
            };
            let judged = ledger.check(&part, &Line::under(line.as_str()));
            judged.map_err(|broken| format!("partition {index}: {broken}"))?;
        }
        Ok(())
    }
}
