//! Writes one task's report: at most every half second, sooner for what cannot wait, and only while its
//! owner key is held. A task of the session, so it ends with it; when the session is closed it
//! first writes what is left.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use quorate_proto::etcdserverpb::TxnRequest;
use quorate_proto::mvccpb::KeyValue;
use tokio::sync::{Notify, watch};

use super::rate::Estimator;
use super::record::{Record, Written};
use crate::clock::Instant;
use crate::error::{Error, LostReason, Result};
use crate::keys::{Key, KeyRange, Revision};
use crate::lock::Fence;
use crate::session::{Actor, Owned};
use crate::store::ops::{self, Compare};
use crate::value::{Json, V1, Value};

/// Shortest time between two writes, except for what cannot wait.
const INTERVAL: Duration = Duration::from_millis(500);

/// Shortest time between a write and one of a new stage.
const INTERVAL_OF_STAGES: Duration = Duration::from_millis(100);

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
    /// How soon what is not written yet is to be; `None` if all is.
    hurry: Option<Hurry>,
}

/// How soon a change is to be written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Hurry {
    Not,
    Soon,
    Now,
}

impl Hurry {
    /// The time since the write before.
    fn interval(self) -> Duration {
        match self {
            Self::Not => INTERVAL,
            Self::Soon => INTERVAL_OF_STAGES,
            Self::Now => Duration::ZERO,
        }
    }
}

/// What has been written.
#[derive(Debug, Clone, Default)]
pub(super) struct Progress {
    /// The version of the draft that is in the store.
    pub(super) written: u64,
    /// The task is asked to end.
    pub(super) cancelling: bool,
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

    /// Changes the draft and returns its version; `None` if it is finished, and stays as it is.
    pub(super) fn change(&self, hurry: Hurry, change: impl FnOnce(&mut Draft)) -> Option<u64> {
        let mut draft = self.lock();
        if draft.terminal.is_some() {
            return None;
        }
        change(&mut draft);
        draft.version += 1;
        let wake = Some(hurry) > draft.hurry;
        draft.hurry = draft.hurry.max(Some(hurry));
        let version = draft.version;
        drop(draft);
        if wake {
            self.wake.notify_one();
        }
        Some(version)
    }

    /// When there is something to write.
    fn due(&self, last: Instant) -> Option<Instant> {
        self.lock().hurry.map(|hurry| last + hurry.interval())
    }

    fn take(&self) -> Draft {
        let mut draft = self.lock();
        draft.hurry = None;
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
    /// Gives it up if reporting ends otherwise than by a last report.
    pub(super) owned: Option<Owned>,
    pub(super) record_key: Key,
    pub(super) cancel_key: Key,
    /// The record's revision as last written or read; 0: absent.
    pub(super) at: Revision,
    /// Other guards that must be held.
    pub(super) fences: Vec<Fence>,
    pub(super) attempt: u32,
    pub(super) started_ms: u64,
    pub(super) estimator: Estimator,
}

/// The error of an end that may have been written.
fn unknown(record_key: &Key) -> Error {
    Error::OutcomeUnknown(format!("whether the last report was written: {record_key}"))
}

impl Drop for Writer {
    /// Nobody waits for what will not be written: closing ends the task when the store is out of reach.
    fn drop(&mut self) {
        let terminal = self.shared.read(|draft| draft.terminal);
        let loss = match terminal.is_some_and(Written::is_end) {
            true => unknown(&self.record_key),
            false => self.actor.loss(),
        };
        self.shared.progress.send_if_modified(|progress| {
            let goes_on = progress.ended.is_none();
            progress.ended.get_or_insert(Err(loss));
            goes_on
        });
    }
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
        let client = self.actor.client().clone();
        let mut lost = self.actor.lost();
        let mut closing = false;
        let mut cut_short = false;
        let mut last = client.now();
        loop {
            let due = self.shared.due(last);
            tokio::select! {
                biased;
                reason = &mut lost, if !closing => {
                    if reason != LostReason::Closed {
                        return Err(Error::SessionLost(reason));
                    }
                    closing = true;
                    let abandon = |draft: &mut Draft| draft.terminal = Some(Written::Abandoned);
                    cut_short = self.shared.change(Hurry::Now, abandon).is_some();
                    continue;
                }
                () = client.until(due) => {}
                () = self.shared.wake.notified() => continue,
            }
            last = client.now();
            let draft = self.shared.take();
            let terminal = draft.terminal.is_some();
            self.write(draft).await?;
            match (terminal, cut_short) {
                (false, _) => {}
                (true, false) => return Ok(()),
                (true, true) => return Err(Error::SessionLost(LostReason::Closed)),
            }
        }
    }

    /// Writes the draft; a final one also gives the owner key up. Learns whether the task is asked to end.
    pub(super) async fn write(&mut self, draft: Draft) -> Result<()> {
        let own = draft.done.saturating_sub(draft.skipped);
        self.estimator.note(self.actor.client().now(), own);
        let version = draft.version;
        let terminal = draft.terminal;
        let ends = terminal.is_some_and(Written::is_end);
        let record = self.record(draft);
        let value = Value::from(Json(&record)).into_bytes(&self.record_key)?;
        loop {
            let request = self.request(&value, terminal);
            let (answer, repeated) = match self.actor.repeat(request).await {
                Err(Error::SessionLost(_)) if ends => {
                    return Err(unknown(&self.record_key));
                }
                answered => answered?,
            };
            let written = if answer.succeeded {
                answer.header.map(|header| header.revision)
            } else {
                let read = |index| ops::kvs(&answer.responses, index).first();
                let (found, owner) = (read(0), read(2));
                let same = found.filter(|kv| kv.value == value);
                let owned = owner.is_some_and(|kv| kv.create_revision == self.owner.0);
                let there = Revision(found.map_or(0, |kv| kv.mod_revision));
                match same {
                    // An earlier copy of this write was applied and its answer lost.
                    Some(kv) => Some(kv.mod_revision),
                    // It may have been applied, and another attempt have begun since.
                    None if !owned && ends && repeated && !self.wrote(found) => {
                        return Err(unknown(&self.record_key));
                    }
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
            if terminal.is_some()
                && let Some(owned) = self.owned.take()
            {
                owned.disarm();
            }
            let asked = !ops::kvs(&answer.responses, 1).is_empty();
            self.shared.progress.send_modify(|progress| {
                progress.written = version;
                progress.cancelling |= asked;
            });
            return Ok(());
        }
    }

    fn request(&self, value: &bytes::Bytes, terminal: Option<Written>) -> TxnRequest {
        let own = [
            Compare::create_revision(&self.owner_key, self.owner),
            Compare::lease(&self.owner_key, self.actor.lease()),
            Compare::mod_revision(&self.record_key, self.at),
        ];
        let others = self.fences.iter().flat_map(Fence::compares);
        let asked = ops::read(ops::get(&self.cancel_key));
        let mut success = vec![ops::put(&self.record_key, value.clone(), None), asked];
        if terminal.is_some() {
            success.push(ops::delete(KeyRange::one(&self.owner_key)));
        }
        if terminal.is_some_and(Written::is_end) {
            success.push(ops::delete(KeyRange::one(&self.cancel_key)));
        }
        TxnRequest {
            compare: own.into_iter().chain(others).map(Into::into).collect(),
            success,
            failure: [&self.record_key, &self.cancel_key, &self.owner_key]
                .map(|key| ops::read(ops::get(key)))
                .into(),
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
            updated_ms: self.actor.client().wall_millis(),
        }
    }

    /// Whether the report that is there is of this attempt.
    fn wrote(&self, found: Option<&KeyValue>) -> bool {
        let record = found.map(|kv| serde_json::from_slice::<Record>(&kv.value));
        record.is_some_and(|record| record.is_ok_and(|record| record.attempt == self.attempt))
    }

    /// Why the owner key is gone.
    async fn not_owner(&self) -> Error {
        self.actor.why_gone(&self.owner_key).await
    }
}
