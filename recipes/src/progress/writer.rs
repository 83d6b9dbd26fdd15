//! Writes one task's report: at most every half second, at once for what cannot wait, and only while
//! its owner key is held. A task of the session, so it ends with it; when the session is closed it
//! first writes what is left.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use quorate_proto::etcdserverpb::TxnRequest;
use tokio::sync::{Notify, watch};

use super::rate::Estimator;
use super::record::{Record, Written};
use crate::clock::{self, Instant};
use crate::error::{Error, LostReason, Result};
use crate::keys::{Key, KeyRange, Revision};
use crate::lock::Fence;
use crate::session::Actor;
use crate::store::ops::{self, Compare};
use crate::value::{Json, V1, Value};

/// Shortest time between two writes, except for what cannot wait.
const INTERVAL: Duration = Duration::from_millis(500);

/// What the task says, and what has been written of it.
#[derive(Debug)]
pub(super) struct Shared {
    draft: Mutex<Draft>,
    wake: Notify,
    pub(super) progress: watch::Sender<Progress>,
}

/// What the task says now.
#[derive(Debug, Clone, Default)]
pub(super) struct Draft {
    /// Grows with each change.
    pub(super) version: u64,
    pub(super) done: u64,
    /// How much of that was done before this attempt, and says nothing about its speed.
    pub(super) skipped: u64,
    pub(super) total: Option<u64>,
    pub(super) unit: String,
    pub(super) stage: String,
    pub(super) message: String,
    pub(super) checkpoint: serde_json::Value,
    pub(super) terminal: Option<Written>,
    pub(super) urgent: bool,
    dirty: bool,
}

/// What has been written.
#[derive(Debug, Clone, Default)]
pub(super) struct Progress {
    /// The version of the draft that is in the store.
    pub(super) written: u64,
    pub(super) revision: Revision,
    /// How it ended; nothing is written any more.
    pub(super) ended: Option<Result<()>>,
}

impl Shared {
    pub(super) fn new(draft: Draft) -> Self {
        Self {
            draft: Mutex::new(draft),
            wake: Notify::new(),
            progress: watch::Sender::new(Progress::default()),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Draft> {
        self.draft.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn read<T>(&self, read: impl FnOnce(&Draft) -> T) -> T {
        read(&self.lock())
    }

    /// Changes the draft, unless it is finished. Returns its version.
    pub(super) fn change(&self, urgent: bool, change: impl FnOnce(&mut Draft)) -> u64 {
        let mut draft = self.lock();
        if draft.terminal.is_some() {
            return draft.version;
        }
        change(&mut draft);
        draft.version += 1;
        let wake = !draft.dirty || (urgent && !draft.urgent);
        draft.dirty = true;
        draft.urgent |= urgent;
        let version = draft.version;
        drop(draft);
        if wake {
            self.wake.notify_one();
        }
        version
    }

    /// When there is something to write: at once if it is urgent.
    fn due(&self, last: Instant) -> Option<Instant> {
        let draft = self.lock();
        match (draft.dirty, draft.urgent) {
            (false, _) => None,
            (true, true) => Some(last),
            (true, false) => Some(last + INTERVAL),
        }
    }

    fn take(&self) -> Draft {
        let mut draft = self.lock();
        (draft.dirty, draft.urgent) = (false, false);
        draft.clone()
    }
}

/// The task that writes.
pub(super) struct Writer {
    pub(super) actor: Actor,
    pub(super) shared: Arc<Shared>,
    pub(super) owner_key: Key,
    /// The revision at which we created the owner key.
    pub(super) owner: Revision,
    pub(super) record_key: Key,
    /// The record's revision as last written or read; 0: absent.
    pub(super) at: Revision,
    /// Other guards that must be held.
    pub(super) fences: Vec<Fence>,
    pub(super) attempt: u32,
    pub(super) started_ms: u64,
    pub(super) estimator: Estimator,
}

impl Writer {
    pub(super) async fn run(mut self) {
        let outcome = self.work().await;
        if let Err(error) = &outcome {
            tracing::warn!(record = %self.record_key, %error, "reporting ended");
        }
        let ended = |progress: &mut Progress| progress.ended = Some(outcome);
        self.shared.progress.send_modify(ended);
    }

    async fn work(&mut self) -> Result<()> {
        let mut lost = self.actor.lost();
        let mut closing = false;
        let mut last = clock::now();
        loop {
            let due = self.shared.due(last);
            tokio::select! {
                biased;
                reason = &mut lost, if !closing => {
                    if reason != LostReason::Closed {
                        return Err(Error::SessionLost(reason));
                    }
                    closing = true;
                    self.shared.change(true, |draft| draft.terminal = Some(Written::Abandoned));
                    continue;
                }
                () = tokio::time::sleep_until(due.unwrap_or(last)), if due.is_some() => {}
                () = self.shared.wake.notified() => continue,
            }
            last = clock::now();
            let draft = self.shared.take();
            let terminal = draft.terminal.is_some();
            self.write(draft).await?;
            if terminal {
                return Ok(());
            }
        }
    }

    /// Writes the draft; a final one also gives the owner key up.
    pub(super) async fn write(&mut self, draft: Draft) -> Result<()> {
        let own = draft.done.saturating_sub(draft.skipped);
        self.estimator.note(clock::now(), own);
        let version = draft.version;
        let last = draft.terminal.is_some();
        let record = self.record(draft);
        let value = Value::from(Json(&record)).into_bytes(&self.record_key)?;
        loop {
            let request = self.request(&value, last);
            let (answer, _) = self.actor.repeat(request).await?;
            let written = if answer.succeeded {
                answer.header.map(|header| header.revision)
            } else {
                let read = |index| ops::kvs(&answer.responses, index).first();
                let (owner, found) = (read(0), read(1));
                let same = found.filter(|kv| kv.value == value);
                let owned = owner.is_some_and(|kv| kv.create_revision == self.owner.0);
                let there = Revision(found.map_or(0, |kv| kv.mod_revision));
                match same {
                    // An earlier copy of this write was applied and its answer lost.
                    Some(kv) => Some(kv.mod_revision),
                    None if !owned => return Err(self.not_owner().await),
                    None if there == self.at => return Err(Error::Fenced { owner: None }),
                    // Changed by somebody who asked nobody; the owner's word counts.
                    None => {
                        self.at = there;
                        continue;
                    }
                }
            };
            self.at = Revision(written.unwrap_or(0));
            let revision = self.at;
            self.shared.progress.send_modify(|progress| {
                progress.written = version;
                progress.revision = revision;
            });
            return Ok(());
        }
    }

    fn request(&self, value: &bytes::Bytes, last: bool) -> TxnRequest {
        let own = [
            Compare::create_revision(&self.owner_key, self.owner),
            Compare::lease(&self.owner_key, self.actor.lease()),
            Compare::mod_revision(&self.record_key, self.at),
        ];
        let others = self.fences.iter().flat_map(Fence::compares);
        let mut success = vec![ops::put(&self.record_key, value.clone(), None)];
        if last {
            success.push(ops::delete(KeyRange::one(&self.owner_key)));
        }
        TxnRequest {
            compare: own.into_iter().chain(others).map(Into::into).collect(),
            success,
            failure: [&self.owner_key, &self.record_key]
                .into_iter()
                .map(|key| ops::read(ops::get(key)))
                .collect(),
        }
    }

    fn record(&self, draft: Draft) -> Record {
        let speed = self.estimator.speed();
        Record {
            v: V1,
            state: draft.terminal.unwrap_or(Written::Running),
            done: draft.done,
            total: draft.total,
            unit: draft.unit,
            stage: draft.stage,
            message: draft.message,
            rate: speed.map(|speed| speed.rate),
            spread: speed.map_or(0.0, |speed| speed.spread),
            attempt: self.attempt,
            checkpoint: draft.checkpoint,
            owner: self.actor.client().identity().clone(),
            started_ms: self.started_ms,
            updated_ms: clock::wall_millis(),
        }
    }

    /// Why the owner key is gone.
    async fn not_owner(&self) -> Error {
        self.actor.why_gone(&self.owner_key).await
    }
}
