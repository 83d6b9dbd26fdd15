//! The latch: it counts each of them once, and nobody passes before zero.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::time::Duration;

use quorate_recipes::clock::{Clock, Instant, SystemClock};
use quorate_recipes::{Error, Result, Session};

use crate::history::{History, key_of};
use crate::player::Player;
use crate::scenario::Scenario;

/// What the latch counts down from.
const COUNT: u64 = 9;

/// How long a wait may take to see in the calm that the latch is open.
const PATIENCE: Duration = Duration::from_secs(10);

/// Clients that count down, wait, and now and then close the latch again.
#[derive(Debug)]
pub struct Latch {
    told: RefCell<Counted>,
    /// When each wait began, and when it was over.
    waits: RefCell<Vec<(Instant, Instant)>>,
    failed: RefCell<Option<String>>,
    /// When each client was last let through.
    passed: RefCell<BTreeMap<usize, Instant>>,
}

/// How often something certainly wrote, and may have written.
#[derive(Debug, Default)]
struct Counted {
    downs: (u64, u64),
    resets: (u64, u64),
}

/// What a change of the latch's key was.
#[derive(Debug, serde::Deserialize)]
struct State {
    count: u64,
    left: u64,
}

impl Latch {
    /// Has something done, and notes that it may have been, or certainly was.
    async fn attempt<T>(
        &self,
        which: impl Fn(&mut Counted) -> &mut (u64, u64),
        wrote: impl Fn(&T) -> bool,
        effect: impl Future<Output = Result<T>>,
    ) -> Result<T> {
        which(&mut self.told.borrow_mut()).1 += 1;
        let outcome = effect.await;
        let mut told = self.told.borrow_mut();
        let counted = which(&mut told);
        match &outcome {
            Ok(told) => counted.0 += u64::from(wrote(told)),
            Err(error) if error.is_ambiguous() => {}
            Err(_) => counted.1 -= 1,
        }
        drop(told);
        outcome
    }
}

impl Latch {
    /// Opens it for good: nobody closes it again.
    async fn open(&self, player: &Player) -> Result<()> {
        let session = player.client().session().await?;
        let latch = player.client().latch("l");
        latch.init(&session, COUNT).await?;
        while latch.count().await? != Some(0) {
            let down = latch.count_down(&session);
            self.attempt(|told| &mut told.downs, |_| true, down).await?;
        }
        session.close().await
    }
}

impl Scenario for Latch {
    const NAME: &'static str = "latch";

    fn new() -> Self {
        Self {
            told: RefCell::default(),
            waits: RefCell::default(),
            failed: RefCell::default(),
            passed: RefCell::default(),
        }
    }

    async fn step(&self, player: &Player, session: &Session) -> Result<()> {
        let latch = player.client().latch("l");
        if player.one_in(3) {
            latch.init(session, COUNT).await?;
            match latch.init(session, COUNT + 1).await {
                Err(Error::Mismatch { .. }) => {}
                Err(error) => return Err(error),
                Ok(()) => *self.failed.borrow_mut() = Some("two counts are agreed".to_owned()),
            }
        }
        if latch.count().await? == Some(0) {
            player.pause(2_000).await;
            return self
                .attempt(|told| &mut told.resets, |()| true, latch.reset(session))
                .await;
        }
        let left = self
            .attempt(
                |told| &mut told.downs,
                |left| *left > 0,
                latch.count_down(session),
            )
            .await?;
        player.note(format!("{left} left"));
        Ok(())
    }

    async fn attend(&self, player: &Player) {
        loop {
            let begun = SystemClock.now();
            if let Err(error) = player.client().latch("l").wait().await {
                *self.failed.borrow_mut() = Some(format!("a wait failed: {error}"));
                return;
            }
            player.note("passed");
            let over = SystemClock.now();
            self.waits.borrow_mut().push((begun, over));
            self.passed.borrow_mut().insert(player.index(), over);
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }

    async fn finish(&self, players: &[Player]) -> std::result::Result<(), String> {
        let opened = self.open(&players[0]).await;
        opened.map_err(|error| format!("in the calm: {error}"))?;
        let open = SystemClock.now();
        tokio::time::sleep(PATIENCE).await;
        let passed = self.passed.borrow();
        let hangs = players
            .iter()
            .find(|player| passed.get(&player.index()).is_none_or(|at| *at < open));
        hangs.map_or(Ok(()), |player| {
            Err(format!("player {} waits at an open latch", player.index()))
        })
    }

    fn may_remain(&self, key: &str) -> bool {
        key.starts_with("quorate/latch/")
    }

    fn check(&self, history: &History) -> std::result::Result<(), String> {
        if let Some(failed) = &*self.failed.borrow() {
            return Err(failed.clone());
        }
        let (mut downs, mut resets, mut left) = (0, 0, None);
        // When the latch was open, from and until.
        let mut open: Vec<(Instant, Option<Instant>)> = Vec::new();
        for (commit, change) in history.changes() {
            if key_of(change) != "quorate/latch/l/state" {
                continue;
            }
            let kv = change.kv.as_ref().ok_or("a change without a key")?;
            let state: State = serde_json::from_slice(&kv.value).map_err(|e| e.to_string())?;
            let before = left.replace(state.left);
            match before {
                None if state.left == COUNT => {}
                Some(before) if state.left + 1 == before => downs += 1,
                Some(_) if state.left == state.count => resets += 1,
                _ => {
                    return Err(format!(
                        "{before:?} became {state:?} at {}",
                        commit.revision
                    ));
                }
            }
            match (before, state.left) {
                (_, 0) => open.push((commit.at, None)),
                (Some(0), _) => open
                    .last_mut()
                    .into_iter()
                    .for_each(|open| open.1 = Some(commit.at)),
                _ => {}
            }
        }
        let told = self.told.borrow();
        for (what, happened, (certain, possible)) in [
            ("counts", downs, told.downs),
            ("resets", resets, told.resets),
        ] {
            if !(certain..=possible).contains(&happened) {
                return Err(format!("{happened} {what}, not {certain} to {possible}"));
            }
        }
        for (begun, over) in &*self.waits.borrow() {
            let within = |(from, until): &(Instant, Option<Instant>)| {
                from <= over && until.is_none_or(|until| until >= *begun)
            };
            if !open.iter().any(within) {
                return Err("somebody passed a latch that was not open".to_owned());
            }
        }
        Ok(())
    }
}
