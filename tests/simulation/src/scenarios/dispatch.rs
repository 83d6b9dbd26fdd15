//! Dispatched jobs: each ends at most once, nothing changes after its end, what is written with a reply is
//! written once, and what was sent is not lost. What is sent to all comes to exactly those that were there, once to
//! each, or to nobody.

mod jobs;

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

use quorate_recipes::dispatch::{
    Command, Dispatcher, Ended, Inbox, Job, JobState, Recipient, Sending, Target,
};
use quorate_recipes::keys::{LeaseId, Revision};
use quorate_recipes::store::Capabilities;
use quorate_recipes::{Error, Fenced as _, Result, Session, TxnError};

use jobs::Jobs;

use crate::effects::Effects;
use crate::history::History;
use crate::player::Player;
use crate::scenario::Scenario;

/// How long a client waits for a command, or for an end.
const WAIT: Duration = Duration::from_secs(2);

/// How long what is kept of jobs lives after the last has ended, and copies of calls are on their way.
const KEPT: Duration = Duration::from_secs(110);

/// How long what is kept of casts lives, and of those that were not begun in the end.
const CASTS_KEPT: Duration = Duration::from_secs(3_650);

/// The dispatcher of the worlds.
#[must_use]
pub fn ops(player: &Player) -> Dispatcher<i64, i64> {
    let ops = player.client().dispatcher("d");
    ops.max_attempts(4).retention(Duration::from_secs(60))
}

/// The key that is written when a job is done: by its number, or by its id if many have the same, which is
/// negative.
#[must_use]
pub fn job_done(number: i64, job: &str) -> String {
    match number < 0 {
        true => format!("effect/{job}"),
        false => format!("effect/{number}"),
    }
}

/// What is said of a client's inbox.
fn parity(player: &Player) -> &'static str {
    match player.index().is_multiple_of(2) {
        true => "even",
        false => "odd",
    }
}

/// Clients that send each other jobs and do them.
#[derive(Debug, Default)]
pub struct Dispatch {
    sent: Effects<()>,
    jobs: RefCell<BTreeMap<i64, String>>,
    /// By the number of each cast: what those are that it is for; all if nothing.
    casts: RefCell<BTreeMap<i64, Option<&'static str>>>,
    inboxes: RefCell<BTreeMap<usize, Desk>>,
    told: RefCell<Told>,
}

/// The inbox of a client, and the lease of the session that it is under.
type Desk = (LeaseId, Rc<Inbox<i64, i64>>);

/// What clients were told.
#[derive(Debug, Default)]
struct Told {
    /// When a job was done, by who did it.
    done: Vec<(String, Revision)>,
    /// How jobs have ended, by who waited, as their records say.
    ended: Vec<(String, &'static str)>,
}

fn word(ended: &Ended<i64>) -> &'static str {
    match ended {
        Ended::Done(_) => "done",
        Ended::Failed(_) => "failed",
        Ended::Expired => "expired",
        _ => "cancelled",
    }
}

impl Dispatch {
    /// Sends a job with a number that no other has.
    ///
    /// # Errors
    /// What the client was told.
    pub async fn send(&self, player: &Player, session: &Session) -> Result<Job<i64>> {
        let target = match player.one_in(2) {
            true => Target::Any("s".to_owned()),
            false => Target::Instance(player.below(3).to_string()),
        };
        let limit = Duration::from_millis(1_000 + player.below(9_000));
        let sending = match player.below(4) {
            0 => Sending::new().deadline(limit),
            1 => Sending::new().start_by(limit),
            _ => Sending::new(),
        };
        let mut job = None;
        let send = |number: i64| {
            let (ops, job) = (ops(player), &mut job);
            async move {
                let sent = ops.send_with(session, target, &number, sending).await?;
                self.jobs.borrow_mut().insert(number, sent.id().to_owned());
                *job = Some(sent);
                Ok(())
            }
        };
        self.sent.attempt(player, send).await?;
        job.ok_or(Error::Closed)
    }

    /// Has `send` send a command with a number that no other has, which is negative, to all that are there and are
    /// `chosen`.
    ///
    /// # Errors
    /// What the client was told.
    pub async fn cast<F>(
        &self,
        player: &Player,
        chosen: Option<&'static str>,
        send: impl FnOnce(i64) -> F,
    ) -> Result<()>
    where
        F: Future<Output = Result<()>>,
    {
        let sent = self.sent.attempt(player, |number| {
            self.casts.borrow_mut().insert(number, chosen);
            send(-number)
        });
        match sent.await {
            // There was nobody.
            Err(Error::Conflict) => Ok(()),
            sent => sent,
        }
    }

    /// Sends a command to all that are there, or to those of whom something is said.
    async fn send_to_all(&self, player: &Player, session: &Session) -> Result<()> {
        let chosen =
            [None, Some("even"), Some("odd")][usize::try_from(player.below(3)).unwrap_or(0)];
        let limit = Duration::from_millis(1_000 + player.below(9_000));
        let sending = Sending::new().deadline(limit);
        let send = |number: i64| async move {
            let selected =
                move |one: &Recipient| chosen.is_none_or(|parity| one.is("parity", parity));
            let ops = ops(player);
            let cast = ops.send_all(session, selected, &number, sending).await?;
            player.note(format!("cast {} to {}", cast.id(), cast.jobs().len()));
            if cast.jobs().is_empty() {
                return Err(Error::Conflict);
            }
            if player.one_in(4) {
                cast.cancel().await?;
            }
            Ok(())
        };
        self.cast(player, chosen, send).await
    }

    /// A job that was sent before.
    fn any_job(&self, player: &Player) -> Option<String> {
        let jobs = self.jobs.borrow();
        let most = u64::try_from(jobs.len()).unwrap_or(0);
        let nth = usize::try_from(player.below(most.max(1))).unwrap_or(0);
        jobs.values().nth(nth).cloned()
    }

    async fn inbox(&self, player: &Player, session: &Session) -> Result<Rc<Inbox<i64, i64>>> {
        let known = self.inboxes.borrow().get(&player.index()).cloned();
        if let Some((_, inbox)) = known.filter(|(lease, _)| *lease == session.lease()) {
            return Ok(inbox);
        }
        // Two, so that a cast has more recipients than one transaction has room for.
        let names = [0, 10].map(|tens| (tens + player.index()).to_string());
        let instances = names.map(Target::Instance).into_iter();
        let targets = instances.chain([Target::Any("s".to_owned())]);
        let ops = ops(player).label("parity", parity(player));
        let inbox = Rc::new(ops.inbox(session, targets).await?);
        let known = (session.lease(), Rc::clone(&inbox));
        self.inboxes.borrow_mut().insert(player.index(), known);
        Ok(inbox)
    }

    /// Takes a command, if one comes in time.
    ///
    /// # Errors
    /// What the client was told.
    pub async fn take(
        &self,
        player: &Player,
        session: &Session,
    ) -> Result<Option<Command<i64, i64>>> {
        let inbox = self.inbox(player, session).await?;
        let taken = tokio::time::timeout(WAIT, inbox.next()).await;
        taken.ok().transpose()
    }

    async fn reply(&self, player: &Player, mut command: Command<i64, i64>) -> Result<()> {
        let number = *command.value();
        let lease = command.fence().lease().to_string();
        let done = job_done(number, command.job());
        let txn = player.client().txn().put(done, lease);
        match command.reply_with(&number, txn).await {
            Ok(at) => {
                let job = command.job().to_owned();
                self.told.borrow_mut().done.push((job, at));
            }
            Err(TxnError::Fenced { .. }) => {}
            Err(error) => return Err(error.into()),
        }
        Ok(())
    }

    async fn work(&self, player: &Player, mut command: Command<i64, i64>) -> Result<()> {
        player.note(format!("has job {} {}", command.value(), command.job()));
        player.pause(400).await;
        if player.one_in(2) {
            command.progress(0.5, "").await?;
        }
        match player.below(8) {
            0 => drop(command),
            1 => command.give_back().await?,
            2 => drop(command.fail("dice").await?),
            3 => {
                let told = tokio::time::timeout(WAIT, command.cancelled()).await;
                if told.is_ok() {
                    command.stop().await?;
                }
            }
            _ => self.reply(player, command).await?,
        }
        Ok(())
    }

    async fn ask(&self, player: &Player, job: &Job<i64>) -> Result<()> {
        if player.one_in(3) {
            job.cancel().await?;
        }
        if let Ok(ended) = tokio::time::timeout(WAIT, job.wait()).await {
            let ended = word(&ended?);
            player.note(format!("job {} {ended}", job.id()));
            let mut told = self.told.borrow_mut();
            told.ended.push((job.id().to_owned(), ended));
        }
        Ok(())
    }

    /// Has every job end.
    async fn drain(&self, player: &Player) -> Result<()> {
        self.end();
        let session = player.client().session().await?;
        let names = [0, 10].into_iter().flat_map(|tens| tens..tens + 5);
        let targets = names.map(|name| Target::Instance(name.to_string()));
        let targets = targets.chain([Target::Any("s".to_owned())]);
        let inbox = ops(player).inbox(&session, targets).await?;
        loop {
            let jobs = ops(player).jobs(usize::MAX).await?;
            let ends = ["done", "failed", "expired", "cancelled"];
            let unsent = ops(player).status().await?.unsent;
            if unsent == 0 && jobs.iter().all(|job| ends.contains(&job.state)) {
                break;
            }
            if let Ok(command) = tokio::time::timeout(WAIT, inbox.next()).await {
                self.reply(player, command?).await?;
            }
        }
        // All that is left in the inboxes.
        let rest = tokio::time::timeout(WAIT, inbox.next()).await;
        if let Ok(command) = rest {
            player.note(format!("{command:?} of a job that has ended"));
            return Err(Error::Conflict);
        }
        drop(inbox);
        session.close().await?;
        let ids: Vec<String> = self.jobs.borrow().values().cloned().collect();
        for id in ids {
            match ops(player).job(&id).state().await {
                Ok(JobState::Ended(_)) | Err(Error::Removed(_)) => {}
                Ok(_) => return Err(Error::Conflict),
                Err(error) => return Err(error),
            }
        }
        tokio::time::sleep(KEPT).await;
        Ok(())
    }
}

impl Scenario for Dispatch {
    const NAME: &'static str = "dispatch";

    fn new() -> Self {
        Self::default()
    }

    fn capabilities() -> Capabilities {
        Capabilities {
            max_txn_ops: 16,
            ..Capabilities::default()
        }
    }

    async fn step(&self, player: &Player, session: &Session) -> Result<()> {
        match player.one_in(4) {
            true => self.send_to_all(player, session).await?,
            false => drop(self.send(player, session).await?),
        }
        if player.one_in(2)
            && let Some(job) = self.any_job(player)
        {
            let asked = self.ask(player, &ops(player).job(job)).await;
            // Ended long ago, it is not kept any more.
            match asked {
                Err(Error::Removed(_)) => {}
                asked => asked?,
            }
        }
        match self.take(player, session).await? {
            Some(command) => match self.work(player, command).await {
                Err(Error::Fenced { .. }) => Ok(()),
                worked => worked,
            },
            None => Ok(()),
        }
    }

    async fn finish(&self, players: &[Player]) -> std::result::Result<(), String> {
        let drained = self.drain(&players[0]).await;
        drained.map_err(|error| error.to_string())
    }

    fn end(&self) {
        self.inboxes.borrow_mut().clear();
    }

    fn may_remain(&self, key: &str) -> bool {
        let of_dispatcher = key.strip_prefix("quorate/dispatch/d/");
        of_dispatcher.is_some_and(|rest| rest.ends_with("/head") || rest.starts_with("cast/"))
    }

    fn outlives() -> Duration {
        CASTS_KEPT
    }

    fn check(&self, history: &History) -> std::result::Result<(), String> {
        let jobs = Jobs::of(history)?;
        let sent = jobs.sent.iter().chain(jobs.casts.keys());
        self.sent.check(sent.map(|number| (*number, ())))?;
        jobs.check_casts(&self.casts.borrow())?;
        jobs.check(&self.told.borrow())
    }
}
