//! Broken jobs.

use std::time::Duration;

use quorate_proto::etcdserverpb::TxnRequest;
use quorate_recipes::cron::Slot;
use quorate_recipes::keys::KeyRange;
use quorate_recipes::store::ops::{self, Compare};
use quorate_recipes::{Result, Session};
use quorate_simulation::scenarios::Starts;
use quorate_simulation::{History, Player, Scenario};

use super::mutants::is_found;

/// A job with a key for each time, created by whoever starts it and deleted when it is old: a client whose clock
/// is late finds no key any more.
#[derive(Default)]
struct Collected(Starts);

fn key(slot: i64) -> String {
    format!("data/slot/{slot:016}")
}

impl Scenario for Collected {
    const NAME: &'static str = "a job with collected keys";

    fn new() -> Self {
        Self::default()
    }

    async fn step(&self, player: &Player, session: &Session) -> Result<()> {
        let now = player.client().clock().wall_millis();
        let slot = Slot::at_millis(now / 2_000 * 2_000);
        let request = TxnRequest {
            compare: vec![Compare::absent(key(slot.0)).into()],
            success: vec![
                ops::put(key(slot.0), "".into(), None),
                ops::delete(KeyRange {
                    start: key(0).into(),
                    end: key(slot.0 - 4).into(),
                }),
            ],
            ..Default::default()
        };
        // An answer that was lost is no start: it is not this that is broken here.
        let (answer, repeated) = session.actor().repeat(request).await?;
        if answer.succeeded && !repeated {
            self.0.note(player, slot);
        }
        tokio::time::sleep(Duration::from_millis(500)).await;
        Ok(())
    }

    fn check(&self, _history: &History) -> std::result::Result<(), String> {
        self.0.check(1)
    }
}

#[test]
fn a_job_with_collected_keys_is_found() {
    is_found::<Collected>("was started");
}
