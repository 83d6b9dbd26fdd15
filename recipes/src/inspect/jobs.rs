//! Jobs whose tasks report how far they are.

use std::collections::{BTreeMap, BTreeSet};

use quorate_proto::mvccpb::KeyValue;
use serde::Serialize;

use super::look::{Look, by_name};
use crate::client::Identity;
use crate::error::Result;
use crate::keys::{KeySpace, LeaseId};
use crate::progress::{self, Part, Record, Written};

/// A job.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct JobInfo {
    /// Its name.
    pub name: String,
    /// Its tasks, in the order of their names.
    pub tasks: Vec<TaskInfo>,
}

/// A task, as it reported last. Whether one that runs has stalled a single look cannot tell; a
/// [`Monitor`](crate::progress::Monitor) does, which sees it advance.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct TaskInfo {
    /// Its name in the job.
    pub name: String,
    /// How it stands.
    pub state: TaskStanding,
    /// How much is done, in units.
    pub done: u64,
    /// How much there is to do, if that is known.
    pub total: Option<u64>,
    /// What is counted; may be empty.
    pub unit: String,
    /// What it is at; may be empty.
    pub stage: String,
    /// What its worker says, or why it failed; may be empty.
    pub message: String,
    /// Units a second.
    pub rate: Option<f64>,
    /// Which attempt this is, from 1.
    pub attempt: u32,
    /// Whether it is asked to end.
    pub cancelling: bool,
    /// Who works on it, or did last.
    pub owner: Identity,
    /// The lease of who works on it.
    pub lease: Option<LeaseId>,
    /// When it last reported, in milliseconds since the Unix epoch by its worker's wall clock.
    pub updated_ms: u64,
}

/// How a task stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum TaskStanding {
    /// Its worker lives.
    Running,
    /// Its worker's lease is gone, and the task was not finished.
    Lost,
    /// Finished.
    Done,
    /// Finished without success.
    Failed,
    /// Finished before it was done, because that was asked for.
    Cancelled,
    /// Its worker let go of it without finishing it.
    Abandoned,
}

/// All jobs.
pub(super) async fn jobs(look: &Look) -> Result<Vec<JobInfo>> {
    let kvs = look.list_kind(progress::KIND).await?;
    let each = by_name(progress::KIND, kvs)
        .into_iter()
        .map(|(name, keys)| {
            let space = KeySpace::of(progress::KIND, &name);
            let part = |kv: &KeyValue| Part::of(&space, &kv.key);
            let owners = keys.iter().filter_map(|(_, kv)| match part(kv)? {
                Part::Owner(task) => Some((task, kv)),
                Part::Record(_) | Part::Cancel(_) => None,
            });
            let owners: BTreeMap<String, &KeyValue> = owners.collect();
            let cancelling = keys.iter().filter_map(|(_, kv)| match part(kv)? {
                Part::Cancel(task) => Some(task),
                Part::Record(_) | Part::Owner(_) => None,
            });
            let cancelling: BTreeSet<String> = cancelling.collect();
            let tasks = keys.iter().filter_map(|(_, kv)| {
                let Part::Record(name) = part(kv)? else {
                    return None;
                };
                let record: Record = serde_json::from_slice(&kv.value).ok()?;
                // One that came after the report is of the next attempt, which has not reported yet.
                let owner = owners.get(&name);
                let owner = owner.filter(|owner| owner.create_revision < kv.mod_revision);
                let lease = owner.map(|owner| LeaseId(owner.lease));
                let cancelling = cancelling.contains(&name);
                Some(task(name, record, lease, cancelling))
            });
            JobInfo {
                tasks: tasks.collect(),
                name,
            }
        });
    Ok(each.collect())
}

fn task(name: String, record: Record, lease: Option<LeaseId>, cancelling: bool) -> TaskInfo {
    let state = match record.state {
        Written::Running if lease.is_some() => TaskStanding::Running,
        Written::Running => TaskStanding::Lost,
        Written::Done => TaskStanding::Done,
        Written::Failed => TaskStanding::Failed,
        Written::Cancelled => TaskStanding::Cancelled,
        Written::Abandoned => TaskStanding::Abandoned,
    };
    TaskInfo {
        name,
        state,
        done: record.done,
        total: record.total,
        unit: record.unit,
        stage: record.stage,
        message: record.message,
        rate: record.rate,
        attempt: record.attempt,
        cancelling,
        owner: record.owner,
        lease,
        updated_ms: record.updated_ms,
    }
}
