//! Broken counters.

use quorate_proto::etcdserverpb::TxnRequest;
use quorate_recipes::keys::{KeySpace, Revision};
use quorate_recipes::store::ops::{self, Compare};
use quorate_recipes::{Error, Result, Session};
use quorate_simulation::effects::Effects;
use quorate_simulation::{History, Player, Scenario, key_of, number_of, value_of};

use super::mutants::is_found;

/// A counter by plain compare-and-swap, tried again from the read when there was no answer: the first
/// attempt may have been counted.
struct NoLane(Effects<i64>);

async fn add(player: &Player, session: &Session, delta: i64) -> Result<i64> {
    let key = KeySpace::of("counter", "c").key("value");
    loop {
        let known = player.client().get(&key).await;
        let known = match known {
            Err(Error::Store(error)) if error.is_transient() => {
                player.pause(100).await;
                continue;
            }
            known => known?,
        };
        let at = Revision(known.as_ref().map_or(0, |kv| kv.mod_revision));
        let now = known.as_ref().map_or(0, value_of) + delta;
        let request = TxnRequest {
            compare: vec![Compare::mod_revision(&key, at).into()],
            success: vec![ops::put(&key, now.to_string().into(), None)],
            failure: Vec::new(),
        };
        match session.actor().attempt(request).await {
            Ok(answer) if answer.succeeded => return Ok(now),
            Ok(_) => {}
            Err(Error::Store(error)) if error.is_transient() => player.pause(100).await,
            // Which may be one too many, and is not what is broken here.
            Err(error) => return Err(Error::OutcomeUnknown(error.to_string())),
        }
    }
}

impl Scenario for NoLane {
    const NAME: &'static str = "a counter without a lane";

    fn new() -> Self {
        Self(Effects::default())
    }

    async fn step(&self, player: &Player, session: &Session) -> Result<()> {
        let add = |number| add(player, session, number);
        self.0.attempt(player, add).await.map(drop)
    }

    fn may_remain(&self, key: &str) -> bool {
        key.starts_with("quorate/counter/")
    }

    fn check(&self, history: &History) -> std::result::Result<(), String> {
        let mut value = 0;
        let changes = history.changes();
        let of_counter = changes.filter(|(_, change)| key_of(change) == "quorate/counter/c/value");
        self.0.check(of_counter.map(|(_, change)| {
            let before = std::mem::replace(&mut value, number_of(change));
            (value - before, value)
        }))
    }
}

#[test]
fn a_counter_without_a_lane_is_found() {
    // What was told is the second time; it has been counted before.
    is_found::<NoLane>("was told");
}
