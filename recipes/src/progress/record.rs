//! What a task's report looks like in the store. Three keys a task, below one prefix a job, so that a
//! monitor needs one watch: `<job>/record/<task>` is durable and outlives its writer;
//! `<job>/owner/<task>` is leased, and only its creator may write the record; `<job>/cancel/<task>`
//! is there while the task is asked to end.

use serde::{Deserialize, Serialize};

use super::rate::Speed;
use crate::client::Identity;
use crate::error::{Error, Result};
use crate::keys::{Key, KeySpace, decode, encode};
use crate::value::V1;

/// The name of a task: the job it is part of, and its own name there. `"job/task"` is split at its
/// first slash. The slashes in the name of the task make a tree of the tasks of a job: see
/// [`JobView::below`](super::JobView::below).
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct TaskName {
    pub(super) job: String,
    pub(super) task: String,
}

impl TaskName {
    /// The task of this name in this job; both may hold slashes.
    #[must_use]
    pub fn new(job: impl Into<String>, task: impl Into<String>) -> Self {
        Self {
            job: job.into(),
            task: task.into(),
        }
    }

    /// Names that say nothing are mistakes.
    pub(super) fn check(&self) -> Result<()> {
        if self.job.is_empty() || self.task.is_empty() {
            return Err(Error::Invalid(format!(
                "the name of a task is \"job/task\", not {:?}",
                format!("{}/{}", self.job, self.task)
            )));
        }
        Ok(())
    }
}

impl From<&str> for TaskName {
    fn from(name: &str) -> Self {
        let (job, task) = name.split_once('/').unwrap_or((name, ""));
        Self::new(job, task)
    }
}
impl From<String> for TaskName {
    fn from(name: String) -> Self {
        name.as_str().into()
    }
}
impl From<&String> for TaskName {
    fn from(name: &String) -> Self {
        name.as_str().into()
    }
}
impl From<(&str, &str)> for TaskName {
    fn from((job, task): (&str, &str)) -> Self {
        Self::new(job, task)
    }
}

/// The space of a job's keys.
pub(super) fn job_space(job: &str) -> KeySpace {
    KeySpace::of(super::KIND, job)
}

pub(super) fn record_key(name: &TaskName) -> Key {
    job_space(&name.job).key(&format!("record/{}", encode(&name.task)))
}

pub(super) fn owner_key(name: &TaskName) -> Key {
    job_space(&name.job).key(&format!("owner/{}", encode(&name.task)))
}

pub(super) fn cancel_key(name: &TaskName) -> Key {
    job_space(&name.job).key(&format!("cancel/{}", encode(&name.task)))
}

/// Which of the three keys of which task a key of the job is.
pub(crate) enum Part {
    Record(String),
    Owner(String),
    Cancel(String),
}

impl Part {
    pub(crate) fn of(space: &KeySpace, key: &[u8]) -> Option<Self> {
        let (kind, task) = space.suffix(key)?.split_once('/')?;
        let task = decode(task)?;
        match kind {
            "record" => Some(Self::Record(task)),
            "owner" => Some(Self::Owner(task)),
            "cancel" => Some(Self::Cancel(task)),
            _ => None,
        }
    }

    pub(crate) fn task(&self) -> &str {
        match self {
            Self::Record(task) | Self::Owner(task) | Self::Cancel(task) => task,
        }
    }
}

/// What a writer says about the state of its attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Written {
    Running,
    Done,
    Failed,
    Cancelled,
    Abandoned,
}

impl Written {
    /// Whether the task has come to its end, and is asked nothing any more. One that was abandoned goes
    /// on with its next attempt.
    pub(super) fn is_end(self) -> bool {
        matches!(self, Self::Done | Self::Failed | Self::Cancelled)
    }
}

/// The value of `<job>/record/<task>`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Record {
    pub(crate) v: V1,
    pub(crate) state: Written,
    pub(crate) done: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) total: Option<u64>,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub(crate) unit: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub(crate) stage: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub(crate) message: String,
    /// Units a second, by the writer's own clock.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) rate: Option<f64>,
    /// By how much the rate usually differs from that.
    #[serde(default)]
    pub(crate) spread: f64,
    /// Counted from 1.
    pub(crate) attempt: u32,
    #[serde(default, skip_serializing_if = "serde_json::Value::is_null")]
    pub(crate) checkpoint: serde_json::Value,
    pub(crate) owner: Identity,
    /// For people: the writer's wall clock, in milliseconds since the Unix epoch.
    pub(crate) started_ms: u64,
    /// As `started_ms`.
    pub(crate) updated_ms: u64,
}

impl Record {
    pub(super) fn speed(&self) -> Option<Speed> {
        self.rate.map(|rate| Speed {
            rate,
            spread: self.spread,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_of_a_task_are_told_apart_whatever_its_name() {
        let name = TaskName::from("import/day 1/part/2");
        assert_eq!(
            (name.job.as_str(), name.task.as_str()),
            ("import", "day 1/part/2")
        );
        let space = job_space("import");
        let part = Part::of(&space, record_key(&name).as_bytes());
        assert!(matches!(part, Some(Part::Record(task)) if task == name.task));
        let part = Part::of(&space, owner_key(&name).as_bytes());
        assert!(matches!(part, Some(Part::Owner(task)) if task == name.task));
        let part = Part::of(&space, cancel_key(&name).as_bytes());
        assert!(matches!(part, Some(Part::Cancel(task)) if task == name.task));
        assert!(Part::of(&space, b"quorate/progress/import/else/x").is_none());
        assert!(TaskName::from("lonely").check().is_err());
        assert!(name.check().is_ok());
    }
}
