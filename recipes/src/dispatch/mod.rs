//! Job dispatch: commands sent to an instance, to any one of a service, or to all that are there; each ends at
//! most once, with a reply that whoever sent it waits for.
//!
//! `record` is how jobs lie in the store, `logs` what a dispatcher knows of the inboxes it sends to, `job` what the
//! sender sees, `inbox` where commands come in, `command` one in somebody's hands, `cast` one for many, `spread` how
//! that comes to all of them, `retention` how long ended jobs are kept, `survey` what others may read of all that.

mod cast;
mod command;
mod inbox;
mod job;
mod logs;
mod record;
mod retention;
mod spread;
mod survey;
#[cfg(test)]
mod tests;

use std::fmt;
use std::marker::PhantomData;
use std::time::Duration;

use quorate_proto::etcdserverpb::TxnRequest;
use serde::Serialize;
use serde_json::value::{RawValue, to_raw_value};

pub use cast::{Cast, Recipient};
pub use command::Command;
pub use inbox::Inbox;
pub use job::Job;
pub use record::{Ended, JobLine, JobState, Target};
pub(crate) use survey::{KIND, Keys};

use crate::client::Client;
use crate::error::{Error, Result};
use crate::kit::Placed;
use crate::session::{Effect, Session};
use crate::store::ops::{self, Compare};
use record::{JobRecord, Labels, Layout, Times};
use retention::Retention;

/// How often a command is taken before its job has failed, unless told otherwise.
const ATTEMPTS_MAX: u32 = 5;

/// How long a job that has ended can be read, unless told otherwise.
const RETENTION: Duration = Duration::from_secs(3_600);

/// The least of it: shorter, an end might take longer to write.
const RETENTION_MIN: Duration = Duration::from_secs(60);

/// Sends commands `C` whose replies are `R`, and opens inboxes for them. A handle: cheap to clone, holds nothing in
/// the store.
///
/// Costs: sending is one transaction, and one more read the first time to a target: keep the handle, whose clones
/// share what they know of up to 1,024 targets.
///
/// ```no_run
/// # async fn example(client: quorate_recipes::Client) -> Result<(), Box<dyn std::error::Error>> {
/// use quorate_recipes::dispatch::{Ended, Target};
///
/// let dispatcher = client.dispatcher::<String, u32>("ops");
/// let session = client.session().await?;
/// let inbox = dispatcher.inbox(&session, [Target::Instance("web-1".to_owned())]).await?;
///
/// let to = Target::Instance("web-1".to_owned());
/// let job = dispatcher.send(&session, to, &"count".to_owned()).await?;
/// let mut command = inbox.next().await?;
/// command.reply(&7).await?; // else it goes back
/// assert_eq!(job.wait().await?, Ended::Done(7));
/// # Ok(()) }
/// ```
pub struct Dispatcher<C, R> {
    layout: Layout,
    max_attempts: u32,
    retention: Retention,
    labels: Labels,
    of: PhantomData<fn() -> (C, R)>,
}

impl<C, R> Clone for Dispatcher<C, R> {
    fn clone(&self) -> Self {
        Self {
            layout: self.layout.clone(),
            retention: self.retention.clone(),
            labels: self.labels.clone(),
            of: PhantomData,
            ..*self
        }
    }
}

/// How a command is sent.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Sending {
    deadline: Option<Duration>,
    start_by: Option<Duration>,
    require_live: bool,
}

impl Sending {
    /// For as long as it takes, whoever is there.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// The job expires so long after it was sent, unless it has ended, by wall clocks: whoever waits for it
    /// writes that, or an inbox that comes upon it.
    #[must_use]
    pub fn deadline(mut self, after: Duration) -> Self {
        self.deadline = Some(after);
        self
    }

    /// The job expires so long after it was sent, unless it was delivered.
    #[must_use]
    pub fn start_by(mut self, after: Duration) -> Self {
        self.start_by = Some(after);
        self
    }

    /// It is sent only if an inbox of the target is open at that very revision.
    #[must_use]
    pub fn require_live(mut self) -> Self {
        self.require_live = true;
        self
    }
}

/// How much there is, at one revision.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct DispatchStatus {
    /// Jobs, those that have ended and are still kept included.
    pub jobs: u64,
    /// Jobs that are asked to end.
    pub cancelling: u64,
    /// Commands to many that some recipients have not got yet.
    pub unsent: u64,
    /// Instances whose inbox is open, once for each inbox.
    pub instances: Vec<String>,
}

impl Client {
    /// The dispatcher of this name.
    #[must_use]
    pub fn dispatcher<C, R>(&self, name: impl AsRef<str>) -> Dispatcher<C, R> {
        Dispatcher {
            layout: Layout::new(self.clone(), name.as_ref()),
            max_attempts: ATTEMPTS_MAX,
            retention: Retention::new(RETENTION),
            labels: Labels::new(),
            of: PhantomData,
        }
    }
}

impl<C, R> Dispatcher<C, R> {
    /// A command that was taken so often (at least once) and given back fails; 5 if not told. Inboxes may
    /// differ in it.
    #[must_use]
    pub fn max_attempts(mut self, most: u32) -> Self {
        self.max_attempts = most.max(1);
        self
    }

    /// How long a job that has ended can be read, at least a minute, and up to an eighth longer; an hour if not
    /// told. Whoever ends it decides.
    #[must_use]
    pub fn retention(mut self, retention: Duration) -> Self {
        self.retention = Retention::new(retention.max(RETENTION_MIN));
        self
    }

    /// Says this of an instance whose inbox is opened with this handle, besides what is said of it already: what
    /// [`Dispatcher::send_all`] chooses by.
    #[must_use]
    pub fn label(mut self, key: impl Into<String>, value: impl Into<String>) -> Self {
        self.labels.insert(key.into(), value.into());
        self
    }

    /// The prefix of the dispatcher's keys.
    #[must_use]
    pub fn prefix(&self) -> &str {
        self.layout.prefix()
    }

    /// Opens an inbox for these targets: an instance's own, services that it works for, or both.
    ///
    /// # Errors
    /// [`Error::Invalid`] without a target; [`Error::SessionLost`]; the store's final refusals. Trouble with
    /// the store is waited out.
    ///
    /// # Cancel safety
    /// Nothing is left behind when the future is dropped.
    pub async fn inbox(
        &self,
        session: &Session,
        targets: impl IntoIterator<Item = Target>,
    ) -> Result<Inbox<C, R>> {
        Inbox::open(self, session, targets.into_iter().collect()).await
    }

    /// A job that was sent before, by whomever. Whether there is one shows when it is asked.
    #[must_use]
    pub fn job(&self, id: impl Into<String>) -> Job<R> {
        Job::new(self.layout.clone(), id.into(), self.retention.clone())
    }

    /// Jobs that have not ended, or are still kept, at most `limit`, those sent first before the others.
    ///
    /// # Errors
    /// The store's.
    pub async fn jobs(&self, limit: usize) -> Result<Vec<JobLine>> {
        if limit == 0 {
            return Ok(Vec::new());
        }
        let jobs = self.layout.jobs();
        let limit = i64::try_from(limit).unwrap_or(i64::MAX);
        let found = self.layout.client.store();
        let found = found.range(ops::oldest(jobs.range(), limit)).await?;
        let lines = found.kvs.iter().filter_map(|kv| {
            let id = self.layout.job_of(&kv.key)?;
            Some(JobLine::of(id, kv))
        });
        Ok(lines.collect())
    }

    /// How much there is.
    ///
    /// # Errors
    /// The store's.
    pub async fn status(&self) -> Result<DispatchStatus> {
        let layout = &self.layout;
        let jobs = ops::counting(layout.jobs().range());
        let cancels = ops::counting(layout.cancels().range());
        let unsent = ops::counting(layout.unsent().range());
        let mut here = ops::range(layout.here().range());
        here.keys_only = true;
        let request = TxnRequest {
            success: [jobs, cancels, unsent, here].map(ops::read).into(),
            ..TxnRequest::default()
        };
        let answer = layout.client.store().txn(request).await?;
        let instances = ops::kvs(&answer.responses, 3).iter();
        Ok(DispatchStatus {
            jobs: ops::count(&answer.responses, 0),
            cancelling: ops::count(&answer.responses, 1),
            unsent: ops::count(&answer.responses, 2),
            instances: instances
                .filter_map(|kv| layout.instance_of(&kv.key))
                .collect(),
        })
    }

    fn times(&self, sending: Sending) -> Times {
        let now = self.layout.client.wall_millis();
        let at = |after: Duration| {
            let after = u64::try_from(after.as_millis()).unwrap_or(u64::MAX);
            now.saturating_add(after)
        };
        Times {
            since_ms: now,
            deadline_ms: sending.deadline.map(at),
            start_by_ms: sending.start_by.map(at),
        }
    }
}

impl<C: Serialize, R> Dispatcher<C, R> {
    /// Sends a command, for as long as it takes.
    ///
    /// # Errors
    /// As [`Dispatcher::send_with`].
    ///
    /// # Cancel safety
    /// As [`Dispatcher::send_with`].
    pub async fn send(&self, session: &Session, target: Target, command: &C) -> Result<Job<R>> {
        self.send_with(session, target, command, Sending::new())
            .await
    }

    /// Sends a command, exactly once, although answers get lost.
    ///
    /// # Errors
    /// [`Error::Conflict`] when somebody is required to be there and nobody is; [`Error::Codec`];
    /// [`Error::Invalid`] for a command that is too large; [`Error::SessionLost`]; [`Error::OutcomeUnknown`]
    /// when the session ended with an answer still to come; the store's final refusals.
    ///
    /// # Cancel safety
    /// Dropping the future is an unknown outcome: once or not at all.
    pub async fn send_with(
        &self,
        session: &Session,
        target: Target,
        command: &C,
        sending: Sending,
    ) -> Result<Job<R>> {
        let layout = &self.layout;
        let id = layout.client.nonce();
        let key = layout.job(&id);
        let command = self.raw(&id, command)?;
        let item = layout.item(&target, &id, &command)?;
        let log = layout.log(&target);
        let times = self.times(sending);
        // The numbers of segments are as wide in any case, so that this is what fails if anything does.
        JobRecord::queued(target.clone(), u64::MAX, times).write(&key)?;
        let besides = |item: &crate::kit::ItemId| {
            let record = JobRecord::queued(target.clone(), item.segment(), times).write(&key);
            let live = sending
                .require_live
                .then(|| Compare::occupied(layout.takers(&target).range()));
            Effect {
                when: [Compare::absent(&key)].into_iter().chain(live).collect(),
                then: record
                    .map(|record| ops::put(&key, record, None))
                    .into_iter()
                    .collect(),
                otherwise: Vec::new(),
            }
        };
        let placed = log.append_named(session, &id, &item, besides);
        match placed.await? {
            Placed::Done { .. } => Ok(self.job(id)),
            Placed::There(_) | Placed::Refused { .. } => Err(Error::Conflict),
        }
    }

    fn raw(&self, id: &str, command: &C) -> Result<Box<RawValue>> {
        to_raw_value(command).map_err(|error| Error::Codec {
            key: self.layout.job(id),
            reason: error.to_string(),
        })
    }
}

impl<C, R> fmt::Debug for Dispatcher<C, R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Dispatcher")
            .field("name", &self.prefix())
            .finish_non_exhaustive()
    }
}
