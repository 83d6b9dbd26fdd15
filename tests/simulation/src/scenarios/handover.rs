//! Elections in which leaders choose their successors: at most one leads, and the line never stands
//! still for somebody who was named.

use quorate_recipes::election::Succession;
use quorate_recipes::{Error, Result, Session};

use crate::fenced::{Ledger, Line};
use crate::history::History;
use crate::player::Player;
use crate::scenario::Scenario;

/// Candidates of several priorities, and leaders that hand over.
#[derive(Debug)]
pub struct Handover {
    ledger: Ledger,
}

impl Scenario for Handover {
    const NAME: &'static str = "handover";

    fn new() -> Self {
        Self {
            ledger: Ledger::default(),
        }
    }

    async fn step(&self, player: &Player, session: &Session) -> Result<()> {
        let priority = u32::try_from(player.below(3)).expect("small");
        let election = player.client().election("h").with_priority(priority);
        let leadership = election.campaign(session, player.index()).await?;
        let held = self.ledger.granted(player, leadership);
        self.ledger.increment(player, &held, "data/count").await?;
        player.pause(600).await;
        let mut candidates = election.candidates(9).await?;
        candidates.retain(|candidate| candidate.key != *held.key());
        if candidates.is_empty() || player.one_in(3) {
            return held.into_inner().resign().await;
        }
        let chosen = usize::try_from(player.below(9)).expect("small") % candidates.len();
        let to = &candidates[chosen];
        player.note(format!("hands over to {}", to.key));
        match held.into_inner().hand_over(to).await? {
            Succession::Named => Ok(()),
            Succession::Gone(leadership) | Succession::Blocked { leadership, .. } => {
                match leadership.resign().await {
                    Err(Error::Fenced { .. }) => Ok(()),
                    resigned => resigned,
                }
            }
        }
    }

    /// The name of a successor that has gone stays until somebody leads.
    fn may_remain(&self, key: &str) -> bool {
        key == "quorate/election-meta/h/handover"
    }

    fn check(&self, history: &History) -> std::result::Result<(), String> {
        self.ledger
            .check(history, &Line::under("quorate/election/h/"))
    }
}
