//! What the demo does to its own processes: it kills the primary worker at a quarter of the work
//! and the leading member at half of it, and tells who took over and after how long.

use std::time::Duration;

use futures::StreamExt as _;
use quorate::core::clock::{self, Instant};
use quorate::core::tasks::Tasks;
use quorate::recipes::Client;
use quorate::recipes::progress::JobView;
use tokio::sync::watch;

use super::keys;
use super::members::Members;
use super::screen::Screen;
use super::workers::Workers;

/// Shares of the work, in percent.
const PRIMARY_DIES_AT: u64 = 25;
const LEADER_DIES_AT: u64 = 50;

/// Where the plan stands.
#[derive(Debug)]
enum Stage {
    Calm,
    BeforePrimary,
    PrimaryDead { name: String, since: Instant },
    BeforeLeader,
    Done,
}

/// The plan, and what is needed to carry it out.
#[derive(Debug)]
pub(crate) struct Faults {
    stage: Stage,
    files: u64,
    primary: watch::Receiver<Option<String>>,
    tasks: Tasks,
}

impl Drop for Faults {
    fn drop(&mut self) {
        self.tasks.cancel();
    }
}

impl Faults {
    /// Kills nothing.
    pub(crate) fn none() -> Self {
        Self {
            stage: Stage::Calm,
            files: 0,
            primary: watch::channel(None).1,
            tasks: Tasks::new(),
        }
    }

    /// Kills a worker and a member; the work is `files` files.
    pub(crate) fn planned(client: &Client, files: u64) -> Self {
        let (sender, primary) = watch::channel(None);
        let tasks = Tasks::new();
        let election = client.election::<String>(keys::ELECTION);
        tasks.spawn("observe the primary", async move {
            let mut leaders = std::pin::pin!(election.observe());
            while let Some(Ok(leader)) = leaders.next().await {
                sender.send_replace(leader.map(|leader| leader.value));
            }
        });
        Self {
            stage: Stage::BeforePrimary,
            files,
            primary,
            tasks,
        }
    }

    /// Ends the plan because the work is complete, and says what of it was not carried out.
    pub(crate) fn end(&mut self, screen: &Screen) {
        let missed = match &self.stage {
            Stage::Calm | Stage::Done => return,
            Stage::BeforePrimary => "no worker and no member was killed",
            Stage::PrimaryDead { .. } => "nobody had to take over, and no member was killed",
            Stage::BeforeLeader => "no member was killed",
        };
        screen.say(&format!(
            "the work was complete too soon: {missed} (a larger --pace leaves time)"
        ));
        self.stage = Stage::Done;
    }

    /// Does what is due.
    ///
    /// # Errors
    /// When a process cannot be killed or started, or nobody takes over.
    #[expect(
        clippy::collapsible_match,
        reason = "a kill is no condition: it belongs into the arm's body"
    )]
    pub(crate) async fn step(
        &mut self,
        job: &JobView,
        members: &mut Members,
        workers: &mut Workers,
        screen: &Screen,
    ) -> anyhow::Result<()> {
        let done: u64 = job
            .tasks
            .iter()
            .filter(|t| t.name != keys::WHOLE)
            .map(|t| t.done)
            .sum();
        let percent = 100 * done / self.files.max(1);
        let primary = self.primary.borrow().clone();
        match (&self.stage, primary) {
            (Stage::BeforePrimary, Some(name)) if percent >= PRIMARY_DIES_AT => {
                if workers.kill(&name).await? {
                    screen.say(&format!("SIGKILL for worker {name}, the primary"));
                    self.stage = Stage::PrimaryDead {
                        name,
                        since: clock::now(),
                    };
                }
            }
            (Stage::PrimaryDead { name, since }, Some(next)) if next != *name => {
                let after = since.elapsed();
                screen.say(&format!(
                    "worker {next} took over as primary after {}",
                    text(after)
                ));
                self.stage = Stage::BeforeLeader;
            }
            (Stage::BeforeLeader, _) if percent >= LEADER_DIES_AT => {
                replace_leader(members, screen).await?;
                self.stage = Stage::Done;
            }
            _ => {}
        }
        Ok(())
    }
}

/// Kills the leading member, waits for another, and brings the dead one back.
async fn replace_leader(members: &mut Members, screen: &Screen) -> anyhow::Result<()> {
    let (leader, term) = members.leader(0).await?;
    let name = members.name(leader).to_owned();
    members.kill(leader).await?;
    let killed = clock::now();
    screen.say(&format!(
        "SIGKILL for member {name}, the leader of term {term}"
    ));
    let (next, term) = members.leader(term).await?;
    let after = text(killed.elapsed());
    screen.say(&format!(
        "member {} leads in term {term} after {after}",
        members.name(next)
    ));
    members.launch(leader)?;
    let started = clock::now();
    let index = members.caught_up(leader, next).await?;
    let after = text(started.elapsed());
    screen.say(&format!(
        "member {name} is back and has applied all up to {index} after {after}"
    ));
    Ok(())
}

fn text(time: Duration) -> String {
    format!("{:.2} s", time.as_secs_f64())
}
