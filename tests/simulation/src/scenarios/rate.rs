//! The rate limiter: in no window more permits than the limit.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::time::Duration;

use quorate_proto::mvccpb::event::EventType;
use quorate_recipes::clock::{Clock, Instant, SystemClock};
use quorate_recipes::{Result, Session};

use crate::gatherings::Wrong;
use crate::history::{History, key_of};
use crate::player::Player;
use crate::scenario::Scenario;

/// Clients that ask for permits.
#[derive(Debug)]
pub struct Rate {
    /// When somebody got how many.
    got: RefCell<Vec<(Instant, u32)>>,
    wrong: Wrong,
}

const LIMIT: u32 = 4;

const PER: Duration = Duration::from_secs(2);

/// How long a grant lives: for a window after the last moment in which its permits may be used.
const GRANT_LIFE: Duration = Duration::from_secs(3);

impl Scenario for Rate {
    const NAME: &'static str = "rate";

    fn new() -> Self {
        Self {
            got: RefCell::default(),
            wrong: Wrong::default(),
        }
    }

    async fn step(&self, player: &Player, session: &Session) -> Result<()> {
        let block = 1 + u32::from(player.one_in(2));
        let limiter = player.client().rate_limiter("r", LIMIT, PER).block(block);
        // How late the clock is may not change meanwhile: permits at hand are judged by it.
        let late = player.lateness();
        for _ in 0..=player.below(2) {
            let permits = 1 + u32::from(player.one_in(3));
            let outcome = match player.one_in(3) {
                true => limiter.try_acquire(session, permits).await,
                false => limiter.acquire(session, permits).await.map(|()| true),
            };
            let got = outcome.inspect_err(|error| self.wrong.note(error))?;
            if got && player.lateness() == late {
                player.note(format!("{permits} permits"));
                let now = SystemClock.now();
                self.got.borrow_mut().push((now, permits));
            }
            player.pause(300).await;
        }
        Ok(())
    }

    fn may_remain(&self, key: &str) -> bool {
        key == "quorate/rate/r/rule"
    }

    fn check(&self, history: &History) -> std::result::Result<(), String> {
        self.wrong.check()?;
        let lost = lost_grants(history);
        let mut got = self.got.borrow().clone();
        got.sort_unstable();
        for (index, (first, _)) in got.iter().enumerate() {
            let end = *first + PER;
            let window = got[index..].iter().take_while(|(at, _)| *at < end);
            let permits: u32 = window.map(|(_, permits)| permits).sum();
            // A permit may be used for a while after its grant was lost.
            let around = *first - PER..end;
            let counts = !lost.iter().any(|at| around.contains(at));
            if counts && permits > LIMIT {
                return Err(format!("{permits} permits from {first:?} on"));
            }
        }
        Ok(())
    }
}

/// When a grant ended before its time: because the nemesis has taken its lease, because it was never
/// used, or, a little, because it was written a while after its lease was granted. What holds is
/// promised of stores that keep leases; so windows around such an end are not judged.
fn lost_grants(history: &History) -> Vec<Instant> {
    let mut made = BTreeMap::new();
    let mut lost = Vec::new();
    for (commit, change) in history.changes() {
        let key = key_of(change);
        if !key.starts_with("quorate/rate/r/grant/") {
            continue;
        }
        match change.r#type() {
            EventType::Put => {
                made.insert(key, commit.at);
            }
            EventType::Delete => {
                let lived = made.remove(&key).map(|at| commit.at - at);
                if lived.is_some_and(|lived| lived < GRANT_LIFE) {
                    lost.push(commit.at);
                }
            }
        }
    }
    lost
}
