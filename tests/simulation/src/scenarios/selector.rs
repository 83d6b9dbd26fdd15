//! Leading as a loop: the leader's work is done once a call, under a leadership whose writes pass, and a
//! lost leadership begins anew by itself.

use std::cell::Cell;
use std::ops::Deref;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use quorate_recipes::lock::Hold;
use quorate_recipes::{Leadership, Result, Session};

use crate::fenced::{Ledger, Line};
use crate::history::History;
use crate::player::Player;
use crate::scenario::Scenario;

/// Clients whose every step is to lead once.
#[derive(Debug)]
pub struct Selector {
    ledger: Ledger,
    broken: Rc<Cell<Option<&'static str>>>,
}

impl Scenario for Selector {
    const NAME: &'static str = "selector";

    fn new() -> Self {
        Self {
            ledger: Ledger::default(),
            broken: Rc::default(),
        }
    }

    async fn step(&self, player: &Player, _session: &Session) -> Result<()> {
        let election = player.client().election("s");
        let ttl = Duration::from_secs(3 + player.below(4));
        let sessions = player.client().session().ttl(ttl);
        let leading = Rc::new(Cell::new(0_u32));
        let led = election.run(sessions, player.index(), |leadership| {
            let leading = Leading::new(&leading);
            async move {
                if leading.others() > 0 {
                    self.broken.set(Some("two works of one call at a time"));
                }
                let held = self.ledger.granted(player, Leads(leadership));
                let done = self.ledger.increment(player, &held, "data/count").await;
                player.pause(600).await;
                drop((held, leading));
                done.is_ok()
            }
        });
        let led = led.await?;
        player.note(format!("led, and wrote: {led}"));
        if leading.get() > 0 {
            self.broken.set(Some("a work outlived its call"));
        }
        Ok(())
    }

    fn check(&self, history: &History) -> std::result::Result<(), String> {
        if let Some(broken) = self.broken.get() {
            return Err(broken.to_owned());
        }
        self.ledger
            .check(history, &Line::under("quorate/election/s/"))
    }
}

/// A leadership as a hold.
struct Leads(Arc<Leadership<usize>>);

impl Deref for Leads {
    type Target = Hold;

    fn deref(&self) -> &Hold {
        &self.0
    }
}

/// Counts one that leads for as long as it does.
struct Leading(Rc<Cell<u32>>);

impl Leading {
    fn new(count: &Rc<Cell<u32>>) -> Self {
        count.set(count.get() + 1);
        Self(Rc::clone(count))
    }

    fn others(&self) -> u32 {
        self.0.get() - 1
    }
}

impl Drop for Leading {
    fn drop(&mut self) {
        self.0.set(self.0.get() - 1);
    }
}
