//! Waiting for the times of a job and starting them: whoever writes a time into `last` first has started it.
//!
//! The transaction is `If MOD(last)=seen && CREATE(running)=0 Then put last=slot, put run, put running`, the last
//! of these leased. `last` only grows, so it is enough to know one time to know all that may not be started
//! again; keys for each time would have to be collected one day, and then a late clock could start one anew.

use std::convert::Infallible;
use std::fmt::Display;
use std::time::Duration;

use bytes::Bytes;

use super::Cron;
use super::misfire::{Due, due};
use super::record::{How, LAST, Last, RUNNING, Record, Running, write};
use super::run::Run;
use super::schedule::Slot;
use crate::error::{Error, Result};
use crate::keys::{Key, KeyRange, Revision};
use crate::lock::{Fenced, Hold};
use crate::session::{Claim, Claimed, Effect, Session};
use crate::store::ops::{self, Compare};
use crate::value::from_json;
use crate::watch::Watcher;

/// Longest time between two looks at the wall clock, which somebody may set.
const LOOK_EVERY: Duration = Duration::from_secs(10);

/// How long a runner that came second waits to see who was first, before it tries again.
const SECOND_LOOK: Duration = Duration::from_secs(1);

/// The job as it stands.
struct Seen {
    last: Option<(Slot, Revision)>,
    is_running: bool,
}

/// A start that this runner has made.
struct Started {
    hold: Hold,
    record: Record,
    run: Run,
}

impl Cron {
    /// Runs the job whenever it is due, until the session is lost. Of all that run it one starts each time; the
    /// others wait. When the run is lost, with the session or because somebody deleted its key, `work`'s
    /// future is dropped where it stands.
    ///
    /// At most once: a runner that dies in the middle of its work leaves it half done, and nobody begins it
    /// again. What it writes through [`Run::txn`] is done only while the run lasts.
    ///
    /// ```no_run
    /// # async fn make_backup() -> Result<(), std::io::Error> { Ok(()) }
    /// # async fn example(client: quorate_recipes::Client) -> Result<(), quorate_recipes::Error> {
    /// let session = client.session().await?;
    /// let job = client.cron("backup", "0 3 * * *".parse()?);
    /// let never = job.run(&session, |run| async move {
    ///     println!("backup of {}", run.slot());
    ///     make_backup().await
    /// });
    /// match never.await? {}
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`Error::SessionLost`]; [`Error::Invalid`] for a session of another store, and a [`Misfire`](super::Misfire)
    /// that cannot be; [`Error::Codec`] when the job's keys hold something else; the store's final refusals.
    /// Trouble with the store is waited out. That `work` fails is recorded, and ends nothing.
    ///
    /// # Cancel safety
    /// When the future is dropped, so is `work`'s, and the run ends as dropped. A start that is under way may
    /// still take place; it counts as started then, and is not run by anybody.
    pub async fn run<F, Fut, E>(&self, session: &Session, work: F) -> Result<Infallible>
    where
        F: FnMut(Run) -> Fut,
        Fut: Future<Output = std::result::Result<(), E>>,
        E: Display,
    {
        session.belongs_to(&self.client)?;
        self.misfire.validate()?;
        tokio::select! {
            biased;
            reason = session.lost() => Err(Error::SessionLost(reason)),
            ended = self.run_while_live(session, work) => ended,
        }
    }

    async fn run_while_live<F, Fut, E>(&self, session: &Session, mut work: F) -> Result<Infallible>
    where
        F: FnMut(Run) -> Fut,
        Fut: Future<Output = std::result::Result<(), E>>,
        E: Display,
    {
        let mut watcher = self.client.watch(self.space.range());
        watcher.next().await?;
        loop {
            let seen = self.seen(&watcher)?;
            let Some((last, at)) = seen.last else {
                self.begin(session).await?;
                self.news(&mut watcher, SECOND_LOOK).await?;
                continue;
            };
            let now = self.client.wall_millis();
            let policy = (self.misfire, self.tolerance);
            match due(&self.schedule, policy, last, now) {
                Due::Start(_) if seen.is_running => self.news(&mut watcher, LOOK_EVERY).await?,
                Due::Start(slot) => match self.start(session, slot, at).await? {
                    Some(started) => self.work(started, &mut work).await?,
                    None => self.news(&mut watcher, SECOND_LOOK).await?,
                },
                Due::Wait(next) => {
                    let left = next.map(|next| next.millis().saturating_sub(now));
                    let left = left.map_or(LOOK_EVERY, Duration::from_millis);
                    self.news(&mut watcher, left.min(LOOK_EVERY)).await?;
                }
            }
        }
    }

    fn seen(&self, watcher: &Watcher) -> Result<Seen> {
        let known = |name| watcher.known().get(self.space.key(name).as_bytes());
        let last = match known(LAST) {
            Some(kv) => {
                let last = from_json::<Last>(&kv.key, &kv.value)?;
                Some((last.slot, Revision(kv.mod_revision)))
            }
            None => None,
        };
        Ok(Seen {
            last,
            is_running: known(RUNNING).is_some(),
        })
    }

    /// Waits until the job's keys change, at most so long by the client's clock.
    async fn news(&self, watcher: &mut Watcher, limit: Duration) -> Result<()> {
        let deadline = self.client.deadline(limit);
        let news = self.client.before(deadline, watcher.next()).await;
        news.map_or(Ok(()), |batch| batch.map(drop))
    }

    /// The value of `last`.
    fn started(&self, key: &Key, slot: Slot) -> Result<Bytes> {
        write(key, &Last::at(slot, &self.schedule))
    }

    /// Writes down that the job begins now, if nobody has.
    async fn begin(&self, session: &Session) -> Result<()> {
        let key = self.last();
        let now = Slot::at_millis(self.client.wall_millis());
        let effect = Effect {
            when: vec![Compare::absent(&key)],
            then: vec![ops::put(&key, self.started(&key, now)?, None)],
            otherwise: Vec::new(),
        };
        session.actor().apply(effect).await.map(drop)
    }

    /// Starts a time, if nothing was started since `last` was seen as written at `at`.
    async fn start(&self, session: &Session, slot: Slot, at: Revision) -> Result<Option<Started>> {
        let (last, running, record) = (self.last(), self.running(), self.record());
        let nonce = self.client.nonce();
        let now = self.client.wall_millis();
        let by = session.who().clone();
        let started = Record::started(nonce.clone(), slot, now, by);
        let dropped = started.ended(now, How::Dropped);
        let claim = Claim {
            when: vec![Compare::mod_revision(&last, at)],
            also: vec![
                ops::put(&last, self.started(&last, slot)?, None),
                ops::put(&record, write(&record, &started)?, None),
            ],
            when_released: vec![ops::put(&record, write(&record, &dropped)?, None)],
            ..Claim::of(running.clone(), write(&running, &Running::new(nonce))?)
        };
        let claimed = session
            .actor()
            .run(|actor| async move { actor.claim(claim).await });
        let Claimed::Made { owned, .. } = claimed.await? else {
            return Ok(None);
        };
        let hold = Hold::new(session.clone(), owned, vec![KeyRange::one(&running)]);
        let run = Run {
            slot,
            late: Duration::from_millis(now.saturating_sub(slot.millis())),
            fence: hold.fence().clone(),
            client: self.client.clone(),
        };
        Ok(Some(Started {
            hold,
            record: started,
            run,
        }))
    }

    /// Does the work of a start, and writes down how it ended.
    async fn work<F, Fut, E>(&self, started: Started, work: &mut F) -> Result<()>
    where
        F: FnMut(Run) -> Fut,
        Fut: Future<Output = std::result::Result<(), E>>,
        E: Display,
    {
        let Started {
            mut hold,
            record,
            run,
        } = started;
        let slot = run.slot;
        tracing::debug!(job = self.space.prefix(), %slot, "started");
        let how = match hold.scope(work(run)).await {
            Ok(Ok(())) => How::Done,
            Ok(Err(error)) => How::Failed(error.to_string()),
            Err(error @ Error::SessionLost(_)) => return Err(error),
            Err(error) => {
                tracing::warn!(job = self.space.prefix(), %slot, %error, "a run was lost");
                return Ok(());
            }
        };
        if let How::Failed(reason) = &how {
            tracing::warn!(job = self.space.prefix(), %slot, reason, "a run has failed");
        }
        let key = self.record();
        let ended = record.ended(self.client.wall_millis(), how);
        hold.nothing_when_released();
        hold.when_released(ops::put(&key, write(&key, &ended)?, None));
        match hold.release().await {
            // That it was lost in the last moment changes nothing about what was done.
            Err(Error::Fenced { .. } | Error::Removed(_)) => Ok(()),
            released => released,
        }
    }
}
