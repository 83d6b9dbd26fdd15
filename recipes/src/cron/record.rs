//! What is written of a job, and how it is read.

use bytes::Bytes;
use quorate_proto::mvccpb::KeyValue;
use serde::{Deserialize, Serialize};

use super::schedule::{Schedule, Slot};
use crate::client::Identity;
use crate::error::{Error, Result};
use crate::keys::{Key, KeySpace, LeaseId};
use crate::value::{Json, V1, Value, from_json};

/// The key of what was started last: it only grows.
pub(super) const LAST: &str = "last";

/// The leased key of the run that goes on.
pub(super) const RUNNING: &str = "running";

/// The key of the last run's record.
pub(super) const RUN: &str = "run";

/// The value of `last`.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Last {
    v: V1,
    pub(crate) slot: Slot,
    /// By which it was started, for people. Earlier versions did not say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    schedule: Option<WrittenSchedule>,
}

/// A schedule as it is written.
#[derive(Debug, Serialize, Deserialize)]
struct WrittenSchedule {
    pattern: String,
    zone: String,
}

impl Last {
    pub(super) fn at(slot: Slot, schedule: &Schedule) -> Self {
        Self {
            v: V1,
            slot,
            schedule: Some(WrittenSchedule {
                pattern: schedule.pattern().to_owned(),
                zone: schedule.zone().to_owned(),
            }),
        }
    }

    /// The schedule, as it is shown, and its next time; which is not known of one that cannot be read here.
    pub(crate) fn schedule(&self) -> Option<(String, Option<Slot>)> {
        let WrittenSchedule { pattern, zone } = self.schedule.as_ref()?;
        let read = pattern.parse::<Schedule>();
        let read = read.and_then(|schedule| schedule.in_zone(zone));
        let next = read
            .ok()
            .and_then(|schedule| schedule.next_after(self.slot));
        Some((format!("{pattern} ({zone})"), next))
    }
}

/// The value of `run`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Record {
    v: V1,
    /// Of the run, as in its `running` key.
    nonce: String,
    slot: Slot,
    started_ms: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    ended: Option<Ended>,
    by: Identity,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
struct Ended {
    at_ms: u64,
    #[serde(flatten)]
    how: How,
}

/// How a run ended, as its runner says.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(tag = "outcome", content = "reason", rename_all = "lowercase")]
pub(super) enum How {
    Done,
    Failed(String),
    Dropped,
}

/// Most bytes of a reason.
const REASON_BYTES_MAX: usize = 4_096;

impl Record {
    pub(super) fn started(nonce: String, slot: Slot, started_ms: u64, by: Identity) -> Self {
        Self {
            v: V1,
            nonce,
            slot,
            started_ms,
            ended: None,
            by,
        }
    }

    pub(super) fn ended(&self, at_ms: u64, mut how: How) -> Self {
        if let How::Failed(reason) = &mut how {
            reason.truncate(reason.floor_char_boundary(REASON_BYTES_MAX));
        }
        Self {
            ended: Some(Ended { at_ms, how }),
            ..self.clone()
        }
    }
}

/// The value of `running`.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Running {
    v: V1,
    nonce: String,
}

impl Running {
    pub(super) fn new(nonce: String) -> Self {
        Self { v: V1, nonce }
    }
}

pub(super) fn write(key: &Key, record: &impl Serialize) -> Result<Bytes> {
    Value::from(Json(record)).into_bytes(key)
}

/// What was started last of a job, and how that ended.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct CronStatus {
    /// The newest time that counts as started: no earlier one is started any more. At first the moment at
    /// which the job was run for the first time.
    pub last: Option<Slot>,
    /// The last run.
    pub run: Option<RunRecord>,
}

/// One run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct RunRecord {
    /// The time that it was started for.
    pub slot: Slot,
    /// When it began, in milliseconds since 1970 by its runner's clock.
    pub started_ms: u64,
    /// When it ended, by the same clock, if its runner could say.
    pub ended_ms: Option<u64>,
    /// How it stands.
    pub outcome: Outcome,
    /// Who ran it.
    pub by: Identity,
}

/// How a run stands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Outcome {
    /// It goes on, under this lease.
    Running(LeaseId),
    /// It came to its end.
    Done,
    /// It failed, for this reason, cut at 4096 bytes.
    Failed(String),
    /// Its runner dropped it, or panicked.
    Dropped,
    /// Its runner was lost, with what became of it.
    Lost,
}

/// What a job's keys say, each by itself.
pub(crate) struct Told<'a> {
    pub(crate) last: Option<Result<Last>>,
    pub(crate) run: Option<Result<RunRecord>>,
    /// The key of the run that goes on.
    pub(crate) running: Option<&'a KeyValue>,
    /// Why it is not known which one that is.
    pub(crate) which: Option<Error>,
}

/// Reads a job's keys one by one.
pub(crate) fn told<'a>(space: &KeySpace, kvs: &'a [KeyValue]) -> Told<'a> {
    let find = |name| kvs.iter().find(|kv| space.suffix(&kv.key) == Some(name));
    let last = find(LAST).map(|kv| from_json(&kv.key, &kv.value));
    let running = find(RUNNING);
    let (nonce, which) = match running.map(|kv| from_json::<Running>(&kv.key, &kv.value)) {
        Some(Ok(running)) => (Some(running.nonce), None),
        Some(Err(error)) => (None, Some(error)),
        None => (None, None),
    };
    let run = find(RUN).map(|kv| {
        let record: Record = from_json(&kv.key, &kv.value)?;
        // There is one run at a time, so it is this one if that cannot be read.
        let is_this = nonce.as_ref().is_none_or(|nonce| *nonce == record.nonce);
        let going_on = running.filter(|_| is_this);
        Ok(RunRecord {
            slot: record.slot,
            started_ms: record.started_ms,
            ended_ms: record.ended.as_ref().map(|ended| ended.at_ms),
            outcome: match (record.ended.map(|ended| ended.how), going_on) {
                (Some(How::Done), _) => Outcome::Done,
                (Some(How::Failed(reason)), _) => Outcome::Failed(reason),
                (Some(How::Dropped), _) => Outcome::Dropped,
                (None, Some(kv)) => Outcome::Running(LeaseId(kv.lease)),
                (None, None) => Outcome::Lost,
            },
            by: record.by,
        })
    });
    Told {
        last,
        run,
        running,
        which,
    }
}

/// Reads a job's keys.
pub(super) fn status(space: &KeySpace, kvs: &[KeyValue]) -> Result<CronStatus> {
    let told = told(space, kvs);
    if let Some(error) = told.which {
        return Err(error);
    }
    Ok(CronStatus {
        last: told.last.transpose()?.map(|last| last.slot),
        run: told.run.transpose()?,
    })
}
