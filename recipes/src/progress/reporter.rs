//! What a worker reports with: cheap calls that never wait, and a few that do.

use std::fmt;
use std::sync::Arc;

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::rate::Estimator;
use super::record::{Record, TaskName, Written, owner_key, record_key};
use super::view::{TaskState, read_checkpoint};
use super::writer::{Draft, Progress, Shared, Writer};
use crate::clock;
use crate::error::{Error, Result};
use crate::keys::{Key, LeaseId, Revision};
use crate::lock::{Fence, Fenced};
use crate::session::{Actor, Claim, Claimed, Session};
use crate::store::ops;
use crate::value::{Json, Value};
use crate::wait::{Backoff, deleted};

/// Most bytes of a stage or a message; more is cut off.
const TEXT_MOST: usize = 4_096;

/// Most bytes of a checkpoint, as JSON.
const CHECKPOINT_MOST: usize = 256 * 1024;

impl Session {
    /// Reports on a task of a job: `session.reporter("import/part-1").total(100).start().await`.
    pub fn reporter(&self, task: impl Into<TaskName>) -> ReporterBuilder {
        ReporterBuilder {
            session: self.clone(),
            name: task.into(),
            draft: Draft::default(),
            fences: Vec::new(),
            wait: false,
        }
    }
}

/// Begins an attempt at a task.
#[derive(Debug)]
#[must_use = "nothing is reported before start"]
pub struct ReporterBuilder {
    session: Session,
    name: TaskName,
    draft: Draft,
    fences: Vec<Fence>,
    wait: bool,
}

impl ReporterBuilder {
    /// How much there is to do, in units. Default: not known.
    pub fn total(mut self, total: u64) -> Self {
        self.draft.total = Some(total);
        self
    }

    /// What is counted: "files", "bytes". Default: nothing said.
    pub fn unit(mut self, unit: impl Into<String>) -> Self {
        self.draft.unit = cut(unit.into());
        self
    }

    /// Reports only while this guard is held too: the lock or leadership that gives the right to do
    /// the task.
    pub fn under(mut self, guard: &impl Fenced) -> Self {
        self.fences.push(guard.fence().clone());
        self
    }

    /// Waits for another worker's attempt to end instead of failing.
    pub fn wait(mut self) -> Self {
        self.wait = true;
        self
    }

    /// Begins the attempt: from here on, only this reporter can report on the task.
    ///
    /// # Errors
    /// [`Error::Taken`] while another worker's attempt is alive, unless [`ReporterBuilder::wait`];
    /// [`Error::Invalid`] for a name without a job or a task; [`Error::Fenced`] when a guard is not
    /// held; [`Error::SessionLost`]; the store's final refusals. Trouble with the store is waited
    /// out.
    ///
    /// # Cancel safety
    /// When the future is dropped, an attempt that turns out to have begun is abandoned.
    pub async fn start(self) -> Result<Reporter> {
        self.name.check()?;
        let lost = self.session.lost();
        tokio::select! {
            biased;
            reason = lost => Err(Error::SessionLost(reason)),
            reporter = self.start_while_live() => reporter,
        }
    }

    async fn start_while_live(&self) -> Result<Reporter> {
        let client = self.session.client();
        let mut pause = Backoff::between_attempts(client);
        loop {
            let begin = Begin {
                session: self.session.clone(),
                name: self.name.clone(),
                draft: self.draft.clone(),
                fences: self.fences.clone(),
            };
            let begun = self.session.actor().run(|actor| begin.run(actor)).await?;
            let (lease, seen) = match begun {
                Begun::Here(reporter) => return Ok(reporter),
                Begun::Elsewhere { lease, seen } => (lease, seen),
            };
            let key = owner_key(&self.name);
            if !self.wait {
                return Err(Error::Taken { key, lease });
            }
            match deleted(client, &[(key, lease)], Revision(seen.0 + 1)).await {
                Err(error) if !error.is_transient() => return Err(error.into()),
                _ => pause.pause().await,
            }
        }
    }
}

/// The beginning of an attempt, run to its end by the session.
struct Begin {
    session: Session,
    name: TaskName,
    draft: Draft,
    fences: Vec<Fence>,
}

enum Begun {
    Here(Reporter),
    Elsewhere { lease: LeaseId, seen: Revision },
}

impl Begin {
    async fn run(mut self, actor: Actor) -> Result<Begun> {
        let (owner_key, record_key) = (owner_key(&self.name), record_key(&self.name));
        let mark = serde_json::json!({ "v": 1, "nonce": actor.client().nonce() });
        let mark = Value::from(Json(mark)).into_bytes(&owner_key)?;
        let claim = Claim::of(owner_key.clone(), mark);
        let owned = match actor.claim(claim).await? {
            Claimed::Made { owned, .. } => owned,
            Claimed::Refused {
                revision, existing, ..
            } => {
                return Ok(Begun::Elsewhere {
                    lease: LeaseId(existing.first().map_or(0, |kv| kv.lease)),
                    seen: revision,
                });
            }
        };
        let (at, before) = read_record(&actor, &record_key).await?;
        let previous = before.map(Previous::of);
        let unfinished = previous.as_ref().filter(|p| p.state != TaskState::Done);
        if let Some(previous) = unfinished {
            self.draft.checkpoint = previous.checkpoint.clone();
        }
        let mut writer = Writer {
            shared: Arc::new(Shared::new(self.draft.clone())),
            owner_key,
            owner: owned.revision(),
            record_key,
            at,
            fences: self.fences,
            attempt: previous.as_ref().map_or(0, |p| p.attempt).saturating_add(1),
            started_ms: clock::wall_millis(),
            estimator: Estimator::new(clock::now(), 0),
            actor: actor.clone(),
        };
        // The first report, so that the task is there before any work is.
        writer.write(self.draft).await?;
        owned.disarm();
        let reporter = Reporter {
            shared: Arc::clone(&writer.shared),
            name: self.name,
            attempt: writer.attempt,
            previous,
            session: self.session,
        };
        actor.spawn("report", writer.run());
        Ok(Begun::Here(reporter))
    }
}

/// The task's record, and the revision at which it was written; 0 for none.
async fn read_record(actor: &Actor, key: &Key) -> Result<(Revision, Option<Record>)> {
    let request = quorate_proto::etcdserverpb::TxnRequest {
        success: vec![ops::read(ops::get(key))],
        ..Default::default()
    };
    let (answer, _) = actor.repeat(request).await?;
    let Some(kv) = ops::kvs(&answer.responses, 0).first() else {
        return Ok((Revision(0), None));
    };
    let record = serde_json::from_slice(&kv.value);
    if let Err(error) = &record {
        tracing::warn!(%key, %error, "an unreadable report is overwritten");
    }
    Ok((Revision(kv.mod_revision), record.ok()))
}

/// The attempt before this one.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Previous {
    /// Its number, from 1.
    pub attempt: u32,
    /// How it ended; [`TaskState::Lost`] when its worker vanished.
    pub state: TaskState,
    /// How much it had done.
    pub done: u64,
    checkpoint: serde_json::Value,
}

impl Previous {
    fn of(record: Record) -> Self {
        Self {
            attempt: record.attempt,
            state: match record.state {
                Written::Running => TaskState::Lost,
                Written::Done => TaskState::Done,
                Written::Failed => TaskState::Failed,
                Written::Abandoned => TaskState::Abandoned,
            },
            done: record.done,
            checkpoint: record.checkpoint,
        }
    }

    /// Its last checkpoint, or one from before it; `None` if there is none.
    ///
    /// # Errors
    /// [`Error::Codec`] when it is not a `C`.
    pub fn checkpoint<C: DeserializeOwned>(&self) -> Result<Option<C>> {
        read_checkpoint(&self.checkpoint, "the attempt before")
    }
}

/// How an attempt ends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// The task is done.
    Done,
    /// It failed, for this reason, which becomes the message.
    Failed(String),
}

/// An attempt at a task. Reports go out at most twice a second, except for what cannot wait: the
/// end, and a new stage. Only this attempt can write the task's record: the store refuses a worker
/// whose lease has gone, however late it wakes up.
///
/// Dropping it without [`Reporter::finish`] reports the task as abandoned.
#[must_use = "a dropped reporter abandons its task"]
pub struct Reporter {
    // Dropped before the session, so that the last report comes before a session's end.
    shared: Arc<Shared>,
    name: TaskName,
    attempt: u32,
    previous: Option<Previous>,
    session: Session,
}

impl Reporter {
    /// Notes that so many more units are done. Never waits.
    pub fn inc(&self, units: u64) {
        self.shared
            .change(false, |draft| draft.done = draft.done.saturating_add(units));
    }

    /// Notes how many units are done in all. A smaller number than before changes nothing. Never
    /// waits.
    pub fn set_done(&self, done: u64) {
        self.shared
            .change(false, |draft| draft.done = draft.done.max(done));
    }

    /// Notes units that an attempt before this one has done: they count as done, and not for the
    /// rate. Never waits.
    pub fn skip(&self, units: u64) {
        self.shared.change(false, |draft| {
            draft.done = draft.done.saturating_add(units);
            draft.skipped = draft.skipped.saturating_add(units);
        });
    }

    /// How many units are done.
    #[must_use]
    pub fn done(&self) -> u64 {
        self.shared.read(|draft| draft.done)
    }

    /// Notes how much there is to do. Never waits.
    pub fn set_total(&self, total: u64) {
        self.shared.change(false, |draft| draft.total = Some(total));
    }

    /// Notes what the task is at; goes out at once. Never waits. Cut off after 4 KiB.
    pub fn stage(&self, stage: impl Into<String>) {
        let stage = cut(stage.into());
        if self.shared.read(|draft| draft.stage != stage) {
            self.shared.change(true, |draft| draft.stage = stage);
        }
    }

    /// Notes something for people to read. Never waits. Cut off after 4 KiB.
    pub fn message(&self, message: impl Into<String>) {
        let message = cut(message.into());
        self.shared.change(false, |draft| draft.message = message);
    }

    /// Notes from where the next attempt can go on, should this one not finish. Never waits; call
    /// [`Reporter::flush`] before relying on it.
    ///
    /// # Errors
    /// [`Error::Codec`]; [`Error::Invalid`] for more than 256 KiB of JSON.
    pub fn checkpoint<C: Serialize>(&self, checkpoint: &C) -> Result<()> {
        let key = || record_key(&self.name);
        let encoded = serde_json::to_value(checkpoint).and_then(|value| {
            let length = serde_json::to_vec(&value)?.len();
            Ok((value, length))
        });
        let (value, length) = encoded.map_err(|error| Error::Codec {
            key: key(),
            reason: error.to_string(),
        })?;
        if length > CHECKPOINT_MOST {
            return Err(Error::Invalid(format!(
                "a checkpoint of {length} bytes; at most {CHECKPOINT_MOST}"
            )));
        }
        self.shared.change(false, |draft| draft.checkpoint = value);
        Ok(())
    }

    /// Waits until everything noted so far is in the store.
    ///
    /// # Errors
    /// Why reporting has ended, as [`Reporter::ended`] says.
    ///
    /// # Cancel safety
    /// The report goes out when the future is dropped.
    pub async fn flush(&self) -> Result<()> {
        let version = self.shared.change(true, |_| {});
        let mut progress = self.shared.progress.subscribe();
        let reached = |p: &Progress| p.written >= version || p.ended.is_some();
        match progress.wait_for(reached).await.as_deref() {
            Ok(progress) if progress.written >= version => Ok(()),
            Ok(Progress {
                ended: Some(Err(error)),
                ..
            }) => Err(error.clone()),
            _ => Err(Error::Closed),
        }
    }

    /// Ends the attempt and waits until that is in the store. Done means done: commit the work
    /// first.
    ///
    /// # Errors
    /// [`Error::SessionLost`], [`Error::Removed`] or [`Error::Fenced`] when the attempt was lost
    /// before; the store's final refusals. The task is not reported as finished then.
    ///
    /// # Cancel safety
    /// The report goes out when the future is dropped.
    pub async fn finish(self, outcome: Outcome) -> Result<()> {
        self.shared.change(true, |draft| match outcome {
            Outcome::Done => draft.terminal = Some(Written::Done),
            Outcome::Failed(reason) => {
                draft.message = cut(reason);
                draft.terminal = Some(Written::Failed);
            }
        });
        let mut progress = self.shared.progress.subscribe();
        let ended = progress.wait_for(|progress| progress.ended.is_some()).await;
        match ended.map(|progress| progress.ended.clone()) {
            Ok(Some(outcome)) => outcome,
            _ => Err(Error::Closed),
        }
    }

    /// Waits until reporting has ended although it was not finished, and says why:
    /// [`Error::SessionLost`], [`Error::Removed`] when somebody deleted the owner key,
    /// [`Error::Fenced`] when a guard it is [`under`](ReporterBuilder::under) was lost. Another
    /// worker may have the task then: stop.
    ///
    /// The last two show when the next report is refused.
    ///
    /// # Cancel safety
    /// Nothing happens when the future is dropped.
    pub async fn ended(&self) -> Error {
        let mut progress = self.shared.progress.subscribe();
        let ended = progress.wait_for(|progress| progress.ended.is_some()).await;
        match ended.map(|progress| progress.ended.clone()) {
            Ok(Some(Err(error))) => error,
            _ => Error::Closed,
        }
    }

    /// Which attempt at the task this is, from 1.
    #[must_use]
    pub fn attempt(&self) -> u32 {
        self.attempt
    }

    /// The attempt before this one, if there was one.
    #[must_use]
    pub fn previous(&self) -> Option<&Previous> {
        self.previous.as_ref()
    }

    /// The session it reports under.
    #[must_use]
    pub fn session(&self) -> &Session {
        &self.session
    }
}

impl Drop for Reporter {
    fn drop(&mut self) {
        self.shared
            .change(true, |draft| draft.terminal = Some(Written::Abandoned));
    }
}

impl fmt::Debug for Reporter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reporter")
            .field("name", &self.name)
            .field("attempt", &self.attempt)
            .field("done", &self.done())
            .finish_non_exhaustive()
    }
}

/// Cuts a text off at a character's end.
fn cut(mut text: String) -> String {
    if text.len() > TEXT_MOST {
        let end = (0..=TEXT_MOST)
            .rev()
            .find(|end| text.is_char_boundary(*end));
        text.truncate(end.unwrap_or(0));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_texts_are_cut_between_characters() {
        assert_eq!(cut("short".to_owned()), "short");
        let long = "ü".repeat(TEXT_MOST);
        assert_eq!(cut(format!("a{long}")).len(), TEXT_MOST - 1);
    }
}
