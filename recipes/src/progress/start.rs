//! Begins an attempt at a task: takes the right to report, and looks at what the attempt before has left.

use std::sync::Arc;

use quorate_proto::etcdserverpb::TxnRequest;
use serde::de::DeserializeOwned;

use super::rate::Estimator;
use super::record::{Record, TaskName, Written, cancel_key, owner_key, record_key};
use super::reporter::{Reporter, cut};
use super::view::{TaskState, read_checkpoint};
use super::writer::{Draft, Shared, Writer};
use crate::error::{Error, Result};
use crate::keys::{Key, LeaseId, Revision};
use crate::lock::{Fence, Fenced};
use crate::session::{Actor, Claim, Claimed, Session};
use crate::store::ops;
use crate::value::{Json, Value};
use crate::wait::{Backoff, deleted};

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
        let client = actor.client().clone();
        let mark = serde_json::json!({ "v": 1, "nonce": client.nonce() });
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
            owned: Some(owned),
            record_key,
            cancel_key: cancel_key(&self.name),
            at,
            fences: self.fences,
            attempt: previous.as_ref().map_or(0, |p| p.attempt).saturating_add(1),
            started_ms: client.wall_millis(),
            estimator: Estimator::new(client.now(), 0),
            actor: actor.clone(),
        };
        // The first report, so that the task is there before any work is.
        writer.write(self.draft).await?;
        let shared = Arc::clone(&writer.shared);
        let reporter = Reporter::new(shared, self.name, writer.attempt, previous, self.session);
        actor.spawn("report", writer.run());
        Ok(Begun::Here(reporter))
    }
}

/// The task's record, and the revision at which it was written; 0 for none.
async fn read_record(actor: &Actor, key: &Key) -> Result<(Revision, Option<Record>)> {
    let request = TxnRequest {
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
                Written::Cancelled => TaskState::Cancelled,
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
