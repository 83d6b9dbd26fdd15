//! What a monitor shows: the tasks of a job as they stand.

use std::sync::Arc;

use serde::de::DeserializeOwned;

use super::overall::all_done;
use super::rate::{Eta, to_f64};
use crate::client::Identity;
use crate::clock::Instant;
use crate::error::{Error, Result};
use crate::keys::{Key, LeaseId, Revision};

/// How a task stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum TaskState {
    /// Its worker lives, and it advances.
    Running,
    /// Its worker lives, but nothing was done for a while.
    Stalled,
    /// Its worker's lease is gone, and the task was not finished.
    Lost,
    /// Finished.
    Done,
    /// Finished without success.
    Failed,
    /// Finished by its worker before it was done, because that was asked for.
    Cancelled,
    /// Its worker let go of it without finishing it.
    Abandoned,
}

impl TaskState {
    /// Whether somebody works on it.
    #[must_use]
    pub fn is_active(self) -> bool {
        matches!(self, Self::Running | Self::Stalled)
    }

    /// Whether it needs a new attempt, or somebody's attention, to become done.
    #[must_use]
    pub fn is_stuck(self) -> bool {
        !matches!(self, Self::Running | Self::Done | Self::Cancelled)
    }
}

/// One task of a job.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct TaskView {
    /// Its name in the job.
    pub name: String,
    /// How it stands.
    pub state: TaskState,
    /// How much is done, in units; never goes back within an attempt.
    pub done: u64,
    /// How much there is to do, if that is known.
    pub total: Option<u64>,
    /// What is counted: "files", "bytes"; may be empty.
    pub unit: String,
    /// What it is at; may be empty.
    pub stage: String,
    /// What its worker says, or why it failed; may be empty.
    pub message: String,
    /// Units a second; `None` before there are enough samples, and while it does not advance.
    pub rate: Option<f64>,
    /// When it will be done, counted from the view's time; `None` as for the rate, and without a
    /// total.
    pub eta: Option<Eta>,
    /// Which attempt this is, from 1.
    pub attempt: u32,
    /// Whether it is asked to end.
    pub cancelling: bool,
    /// Who works on it, or did last.
    pub owner: Identity,
    /// The lease of who works on it now; `None` once that is gone.
    pub lease: Option<LeaseId>,
    /// When the attempt began: milliseconds since the Unix epoch by its worker's wall clock.
    pub started_ms: u64,
    /// When it last reported, by the same clock.
    pub updated_ms: u64,
    /// When this monitor last saw it advance, begin or change its stage.
    pub advanced: Instant,
    pub(super) checkpoint: Arc<serde_json::Value>,
}

impl TaskView {
    /// How much is done, as a part of the total: 0.0 to 1.0, and 1.0 only for a task that is done.
    #[must_use]
    pub fn fraction(&self) -> Option<f64> {
        if self.state == TaskState::Done {
            return Some(1.0);
        }
        let total = self.total.filter(|total| *total > 0)?;
        let part = to_f64(self.done) / to_f64(total);
        Some(part.min(ALMOST))
    }

    /// The last checkpoint, if there was one.
    ///
    /// # Errors
    /// [`Error::Codec`] when it is not a `C`.
    pub fn checkpoint<C: DeserializeOwned>(&self) -> Result<Option<C>> {
        read_checkpoint(&self.checkpoint, &self.name)
    }
}

/// The most that is told of something that is not finished.
pub(super) const ALMOST: f64 = 0.99;

pub(super) fn read_checkpoint<C: DeserializeOwned>(
    checkpoint: &serde_json::Value,
    task: &str,
) -> Result<Option<C>> {
    if checkpoint.is_null() {
        return Ok(None);
    }
    let read = serde_json::from_value(checkpoint.clone());
    read.map(Some).map_err(|error| Error::Codec {
        key: Key::from(task),
        reason: format!("checkpoint: {error}"),
    })
}

/// The tasks of a job as they stood at one revision.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct JobView {
    /// The revision.
    pub revision: Revision,
    /// The tasks, by name.
    pub tasks: Vec<TaskView>,
    /// When the view was made.
    pub at: Instant,
    /// Since when the store has been out of reach: the view may be old.
    pub stale_since: Option<Instant>,
}

impl JobView {
    /// The task of this name.
    #[must_use]
    pub fn task(&self, name: &str) -> Option<&TaskView> {
        self.tasks.iter().find(|task| task.name == name)
    }

    /// How many tasks stand so.
    #[must_use]
    pub fn count(&self, state: TaskState) -> usize {
        self.tasks.iter().filter(|task| task.state == state).count()
    }

    /// Whether there are tasks, and all of them are done but for those that were cancelled.
    #[must_use]
    pub fn is_done(&self) -> bool {
        all_done(&self.tasks)
    }
}
