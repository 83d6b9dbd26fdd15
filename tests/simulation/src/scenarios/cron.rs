//! A job by the clock: no time of the schedule is started twice, whatever the clocks say, and a run that is over
//! writes nothing.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use quorate_recipes::cron::{Misfire, Run, Slot};
use quorate_recipes::{Result, Session, TxnError};

use crate::history::{History, key_of, number_of};
use crate::player::Player;
use crate::scenario::Scenario;

/// Clients that run one job, with clocks that are late.
#[derive(Debug, Default)]
pub struct Cron {
    starts: Starts,
}

/// Which times were started, and how often.
#[derive(Debug, Default)]
pub struct Starts(RefCell<BTreeMap<Slot, usize>>);

/// Where `last` is.
const LAST: &str = "quorate/cron/job/last";

/// What runs write.
const DATA: &str = "data/cron";
/// The starts of one time that what is written tells apart.
const STARTS_TOLD: i64 = 1_000;

/// Least starts of a world.
const STARTS_MIN: usize = 10;

impl Scenario for Cron {
    const NAME: &'static str = "cron";

    fn new() -> Self {
        Self::default()
    }

    async fn step(&self, player: &Player, session: &Session) -> Result<()> {
        let policy = match player.below(3) {
            0 => Misfire::Skip,
            1 => Misfire::RunOnce,
            _ => Misfire::RunAll { most: 3 },
        };
        let schedule = "*/2 * * * * *".parse()?;
        let job = player.client().cron("job", schedule).misfire(policy);
        let running = job.run(session, |run| self.work(player, run));
        let limit = Duration::from_millis(2_000 + player.below(4_000));
        match tokio::time::timeout(limit, running).await {
            Ok(Ok(never)) => match never {},
            Ok(Err(error)) => Err(error),
            Err(_) => Ok(()),
        }
    }

    fn may_remain(&self, key: &str) -> bool {
        key == LAST || key == "quorate/cron/job/run"
    }

    fn check(&self, history: &History) -> std::result::Result<(), String> {
        self.starts.check(STARTS_MIN)?;
        let written = slots(history)?;
        let started = self.starts.0.borrow();
        if let Some(slot) = started.keys().find(|slot| !written.contains(slot)) {
            return Err(format!("{slot} was started and not written down"));
        }
        let mut before = 0;
        for (commit, change) in history
            .changes()
            .filter(|(_, change)| key_of(change) == DATA)
        {
            let now = number_of(change);
            let (slot, last) = (now / STARTS_TOLD, before / STARTS_TOLD);
            if now != before && slot <= last {
                return Err(format!(
                    "the run of {slot} wrote after that of {last}: revision {}",
                    commit.revision
                ));
            }
            before = now;
        }
        Ok(())
    }
}

impl Cron {
    async fn work(&self, player: &Player, run: Run) -> std::result::Result<(), TxnError> {
        let start = self.starts.note(player, run.slot());
        player.pause(1_500).await;
        // The store may get it twice, within the run.
        let start = i64::try_from(start).unwrap_or(i64::MAX);
        let value = run.slot().0 * STARTS_TOLD + start;
        let done = run.txn().put(DATA, value.to_string()).commit().await;
        done.map(drop)
    }
}

impl Starts {
    /// Notes that a client starts the work of a time now. Returns how many starts of it there were.
    pub fn note(&self, player: &Player, slot: Slot) -> usize {
        player.note(format!("starts {slot}"));
        let mut starts = self.0.borrow_mut();
        let starts = starts.entry(slot).or_default();
        *starts += 1;
        *starts
    }

    /// Judges all of them.
    ///
    /// # Errors
    /// What is broken.
    pub fn check(&self, least: usize) -> std::result::Result<(), String> {
        let started = self.0.borrow();
        if let Some((slot, times)) = started.iter().find(|(_, times)| **times > 1) {
            return Err(format!("{slot} was started {times} times"));
        }
        match started.len() {
            enough if enough >= least => Ok(()),
            few => Err(format!("only {few} starts")),
        }
    }
}

/// Every value of `last`, which must only grow.
fn slots(history: &History) -> std::result::Result<BTreeSet<Slot>, String> {
    let mut all = BTreeSet::new();
    for (commit, change) in history
        .changes()
        .filter(|(_, change)| key_of(change) == LAST)
    {
        let value = change
            .kv
            .as_ref()
            .map(|kv| &kv.value[..])
            .unwrap_or_default();
        let value: serde_json::Value =
            serde_json::from_slice(value).map_err(|error| error.to_string())?;
        let slot = Slot(value["slot"].as_i64().unwrap_or(0));
        if all.last().is_some_and(|before| *before >= slot) {
            return Err(format!("revision {} goes back to {slot}", commit.revision));
        }
        all.insert(slot);
    }
    Ok(all)
}
