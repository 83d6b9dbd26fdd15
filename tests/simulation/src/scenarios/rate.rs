//! The rate limiter: in no window more permits than the limit.

use std::cell::RefCell;
use std::time::Duration;

use quorate_proto::mvccpb::event::EventType;
use quorate_recipes::clock::{Clock, Instant, SystemClock};
use quorate_recipes::keys::LeaseId;
use quorate_recipes::{Result, Session};

use crate::gatherings::Wrong;
use crate::history::{History, key_of};
use crate::player::Player;
use crate::scenario::Scenario;

/// Clients that ask for permits.
#[derive(Debug)]
pub struct Rate {
    granted: Granted,
    wrong: Wrong,
}

/// The permits of the rate limiter `r` that clients got: when, and how many.
#[derive(Debug, Default)]
pub struct Granted(RefCell<Vec<(Instant, u32)>>);

/// How long a permit may be used after it was granted.
const USABLE: Duration = Duration::from_secs(1);

/// Least windows of a world that must be judged, and least of them that have all permits.
const JUDGED_MIN: usize = 20;
const FULL_MIN: usize = 1;

impl Scenario for Rate {
    const NAME: &'static str = "rate";

    fn new() -> Self {
        Self {
            granted: Granted::default(),
            wrong: Wrong::default(),
        }
    }

    async fn step(&self, player: &Player, session: &Session) -> Result<()> {
        let block = 1 + u32::from(player.one_in(2));
        let limiter = player
            .client()
            .rate_limiter("r", Granted::LIMIT, Granted::PER)
            .block(block);
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
                self.granted.note(player, permits);
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
        self.granted.check(history)
    }
}

impl Granted {
    /// Most permits in a window.
    pub const LIMIT: u32 = 4;

    /// A window's length.
    pub const PER: Duration = Duration::from_secs(2);

    /// Notes that a client got so many now.
    pub fn note(&self, player: &Player, permits: u32) {
        player.note(format!("{permits} permits"));
        self.0.borrow_mut().push((SystemClock.now(), permits));
    }

    /// Judges all of them.
    ///
    /// # Errors
    /// What is broken.
    pub fn check(&self, history: &History) -> std::result::Result<(), String> {
        let lost = lost_grants(history);
        let mut got = self.0.borrow().clone();
        got.sort_unstable();
        let (mut judged, mut full) = (0, 0);
        for (index, (first, _)) in got.iter().enumerate() {
            let end = *first + Self::PER;
            let window = got[index..].iter().take_while(|(at, _)| *at < end);
            let permits: u32 = window.map(|(_, permits)| permits).sum();
            // What was granted up to a window before may be used in it, and its loss makes room.
            let around = *first - (Self::PER + USABLE)..end;
            if lost.iter().any(|at| around.contains(at)) {
                continue;
            }
            if permits > Self::LIMIT {
                return Err(format!("{permits} permits from {first:?} on"));
            }
            judged += 1;
            full += usize::from(permits == Self::LIMIT);
        }
        if judged < JUDGED_MIN || full < FULL_MIN {
            return Err(format!(
                "only {judged} of {} windows are judged, {full} of them full",
                got.len()
            ));
        }
        Ok(())
    }
}

/// When a grant went because the store lost its lease. What holds is promised of stores that keep
/// leases; so windows around such an end are not judged.
fn lost_grants(history: &History) -> Vec<Instant> {
    let grants = history.changes().filter(|(_, change)| {
        let lease = change.prev_kv.as_ref().map_or(0, |kv| kv.lease);
        change.r#type() == EventType::Delete
            && key_of(change).starts_with("quorate/rate/r/grant/")
            && history.losses.leases.contains(&LeaseId(lease))
    });
    grants.map(|(commit, _)| commit.at).collect()
}
