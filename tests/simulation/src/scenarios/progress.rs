//! Progress: one at a time reports on a task, each attempt goes on from the checkpoint of the one before and ends
//! once; who is asked to end hears of it; who watches sees states of the store in order.

mod attempts;

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

use quorate_recipes::progress::{JobView, Outcome, Reporter, TaskState};
use quorate_recipes::{Error, Result, Session};

pub use attempts::RECORDS;
use attempts::{Asked, Attempts, Seen, Started, Told};

use crate::history::History;
use crate::player::Player;
use crate::scenario::Scenario;

/// The job of the worlds.
pub const JOB: &str = "j";

/// Its tasks.
pub const TASKS: [&str; 4] = ["eu/x", "eu/y", "us/x", "z"];

/// How long a client waits for a task that another one has, or for a request to end.
const WAIT: Duration = Duration::from_secs(2);

/// How long it may take in the calm until a request to end is heard.
const HEARD_WITHIN: Duration = Duration::from_secs(30);

/// Clients that work on the tasks of a job, ask for their end and watch them.
#[derive(Debug, Clone, Default)]
pub struct Progress(Rc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    /// Attempts that go on from one step to the next, by client.
    kept: RefCell<BTreeMap<usize, Work>>,
    /// The last checkpoint of all; each is larger than those before.
    last: Cell<u64>,
    told: RefCell<Told>,
    seen: RefCell<BTreeMap<usize, Vec<Seen>>>,
    failed: RefCell<Option<String>>,
}

/// An attempt at a task.
#[derive(Debug)]
pub struct Work {
    task: &'static str,
    reporter: Reporter,
}

impl Work {
    /// The task.
    #[must_use]
    pub fn task(&self) -> &'static str {
        self.task
    }

    fn attempt(&self) -> attempts::Attempt {
        (self.task.to_owned(), self.reporter.attempt())
    }
}

/// What a record says of an attempt that ended so.
fn word(outcome: &Outcome) -> &'static str {
    match outcome {
        Outcome::Done => "done",
        Outcome::Failed(_) => "failed",
        Outcome::Cancelled => "cancelled",
    }
}

impl Progress {
    fn any_task(player: &Player) -> &'static str {
        TASKS[usize::try_from(player.below(4)).unwrap_or(0)]
    }

    /// Begins an attempt, unless another client has the task.
    ///
    /// # Errors
    /// What the client was told.
    pub async fn start(
        &self,
        player: &Player,
        session: &Session,
        task: &'static str,
        limit: Duration,
    ) -> Result<Option<Work>> {
        let builder = session.reporter((JOB, task)).total(100);
        let reporter = match tokio::time::timeout(limit, builder.wait().start()).await {
            Ok(reporter) => reporter?,
            Err(_) => return Ok(None),
        };
        let before = reporter.previous();
        let unfinished = before.filter(|before| before.state != TaskState::Done);
        let handed = unfinished.map(|before| before.checkpoint());
        let work = Work { task, reporter };
        let started = Started {
            attempt: work.attempt(),
            handed: handed.transpose()?.flatten(),
            cancelling: work.reporter.is_cancelled(),
        };
        player.note(format!("{started:?}"));
        self.0.told.borrow_mut().started.push(started);
        Ok(Some(work))
    }

    /// Does some of a task, and perhaps waits until that is written.
    ///
    /// # Errors
    /// What the client was told.
    pub async fn report(&self, player: &Player, work: &Work, flushes: bool) -> Result<()> {
        let checkpoint = self.0.last.get() + 1;
        self.0.last.set(checkpoint);
        let reporter = &work.reporter;
        reporter.inc(player.below(9));
        match player.below(3) {
            0 => reporter.stage(checkpoint.to_string()),
            1 => reporter.message(checkpoint.to_string()),
            _ => {}
        }
        reporter.checkpoint(&checkpoint)?;
        if flushes {
            reporter.flush().await?;
            player.note(format!("flushed {checkpoint} of {:?}", work.attempt()));
            let flushed = (work.attempt(), checkpoint);
            self.0.told.borrow_mut().flushed.push(flushed);
        }
        Ok(())
    }

    /// Ends an attempt.
    ///
    /// # Errors
    /// What the client was told.
    pub async fn finish(&self, player: &Player, work: Work, outcome: Outcome) -> Result<()> {
        let (attempt, word) = (work.attempt(), word(&outcome));
        player.note(format!("ends {attempt:?} as {word}"));
        let ended = work.reporter.finish(outcome).await;
        player.note(format!("{attempt:?} is {word}: {ended:?}"));
        match &ended {
            Ok(()) => self.is_told(attempt, word),
            Err(error) if error.is_ambiguous() => {}
            Err(_) => self.0.told.borrow_mut().refused.push((attempt, word)),
        }
        ended
    }

    /// Notes that a client was told that its attempt is done.
    pub fn is_told_done(&self, work: &Work) {
        self.is_told(work.attempt(), word(&Outcome::Done));
    }

    fn is_told(&self, attempt: attempts::Attempt, word: &'static str) {
        self.0.told.borrow_mut().ended.push((attempt, word));
    }

    /// Asks for the end of a task.
    ///
    /// # Errors
    /// What the client was told.
    pub async fn cancel(&self, player: &Player, task: &'static str) -> Result<()> {
        let from = player.revision();
        let asked = player.client().cancel_task((JOB, task)).await?;
        player.note(format!("{task} is asked to end: {asked}"));
        let asked = Asked {
            task: task.to_owned(),
            asked,
            from: from.0,
            to: player.revision().0,
        };
        self.0.told.borrow_mut().asked.push(asked);
        Ok(())
    }

    /// Works on a task for a while, a new one or that of the step before.
    async fn work(&self, player: &Player, session: &Session) -> Result<()> {
        let kept = self.0.kept.borrow_mut().remove(&player.index());
        let work = match kept {
            Some(work) => Some(work),
            None => {
                let task = Self::any_task(player);
                self.start(player, session, task, WAIT).await?
            }
        };
        let Some(work) = work else { return Ok(()) };
        for _ in 0..player.below(4) {
            self.report(player, &work, player.one_in(2)).await?;
            player.pause(700).await;
        }
        match player.below(8) {
            0 => drop(work),
            1 | 2 => drop(self.0.kept.borrow_mut().insert(player.index(), work)),
            3 => {
                let failed = Outcome::Failed("dice".to_owned());
                self.finish(player, work, failed).await?;
            }
            4 => {
                let asked = tokio::time::timeout(WAIT, work.reporter.cancelled()).await;
                if asked.is_ok() {
                    self.finish(player, work, Outcome::Cancelled).await?;
                }
            }
            _ if work.reporter.is_cancelled() => {
                self.finish(player, work, Outcome::Cancelled).await?;
            }
            _ => self.finish(player, work, Outcome::Done).await?,
        }
        Ok(())
    }

    /// Who works on a task is told that it is to end, and every task can be done.
    async fn all_end(&self, player: &Player, other: &Player) -> Result<()> {
        self.end();
        let session = player.client().session().await?;
        for (nth, task) in TASKS.into_iter().enumerate() {
            let started = self.start(player, &session, task, Duration::MAX).await?;
            let work = started.ok_or(Error::Closed)?;
            let outcome = match nth.is_multiple_of(2) {
                true => Outcome::Done,
                false => {
                    let hears = work.reporter.cancelled();
                    self.cancel(other, task).await?;
                    let heard = tokio::time::timeout(HEARD_WITHIN, hears).await;
                    let unheard = |_| Error::Invalid(format!("{task} is not told to end"));
                    heard.map_err(unheard)?;
                    Outcome::Cancelled
                }
            };
            self.finish(player, work, outcome).await?;
        }
        session.close().await
    }

    fn sees(&self, player: &Player, view: &JobView) {
        let mut seen = self.0.seen.borrow_mut();
        let views = seen.entry(player.index()).or_default();
        views.push(Seen::of(view));
    }

    /// Follows the job for as long as the world lasts. `change` is done to every view before it is noted.
    pub async fn observe(&self, player: &Player, mut change: impl FnMut(&mut JobView)) {
        let failed = match player.client().monitor(JOB).await {
            Ok(mut monitor) => loop {
                let mut view = JobView::clone(&monitor.snapshot());
                change(&mut view);
                self.sees(player, &view);
                if let Err(error) = monitor.changed().await {
                    break error;
                }
            },
            Err(error) => error,
        };
        let failed = format!("an observer failed: {failed}");
        self.0.failed.borrow_mut().get_or_insert(failed);
    }
}

impl Scenario for Progress {
    const NAME: &'static str = "progress";

    fn new() -> Self {
        Self::default()
    }

    async fn step(&self, player: &Player, session: &Session) -> Result<()> {
        match player.below(8) {
            0 | 1 => self.cancel(player, Self::any_task(player)).await?,
            2 => drop(player.client().cancel_tasks((JOB, "eu")).await?),
            _ => {}
        }
        self.work(player, session).await
    }

    async fn attend(&self, player: &Player) {
        self.observe(player, |_| {}).await;
    }

    async fn finish(&self, players: &[Player]) -> std::result::Result<(), String> {
        let ended = self.all_end(&players[0], &players[1]).await;
        ended.map_err(|error| error.to_string())
    }

    fn end(&self) {
        self.0.kept.borrow_mut().clear();
    }

    fn may_remain(&self, key: &str) -> bool {
        key.starts_with(RECORDS)
    }

    fn check(&self, history: &History) -> std::result::Result<(), String> {
        if let Some(failed) = &*self.0.failed.borrow() {
            return Err(failed.clone());
        }
        let attempts = Attempts::of(history)?;
        attempts.check(&self.0.told.borrow())?;
        for (index, seen) in &*self.0.seen.borrow() {
            let judged = attempts.check_views(seen);
            judged.map_err(|broken| format!("observer {index}: {broken}"))?;
        }
        Ok(())
    }
}
