//! A dispatcher's keys for whoever looks on, whatever its commands and replies are.

use quorate_proto::mvccpb::KeyValue;

use super::record::{JobRecord, Layout, State, Target};
use crate::client::Client;
use crate::error::Result;
use crate::keys::{KeyRange, KeySpace, decode};
use crate::kit::ItemId;
use crate::queue::Queue;

/// The kind of key space that dispatchers live in.
pub(crate) const KIND: &str = "dispatch";

/// Where things are.
#[derive(Debug)]
pub(crate) struct Keys(Layout);

type TargetOf = fn(String) -> Target;

/// A job, as its record tells.
#[derive(Debug)]
pub(crate) struct Told {
    pub(crate) target: Target,
    pub(crate) state: &'static str,
    /// Whether nothing comes after that.
    pub(crate) ended: bool,
    /// How often it was taken, as far as that is told.
    pub(crate) attempt: Option<u32>,
    /// How much of it is done, 0 to 1, as far as that is told.
    pub(crate) fraction: Option<f64>,
    /// What was told of it, or why it failed; may be empty.
    pub(crate) message: String,
    pub(crate) since_ms: u64,
    pub(crate) due_ms: Option<u64>,
}

impl Keys {
    pub(crate) fn new(client: &Client, name: &str) -> Self {
        Self(Layout::new(client.clone(), name))
    }

    pub(crate) fn jobs(&self) -> KeySpace {
        self.0.jobs()
    }

    pub(crate) fn cancels(&self) -> KeySpace {
        self.0.cancels()
    }

    pub(crate) fn unsent(&self) -> KeySpace {
        self.0.unsent()
    }

    /// What lies above the inboxes of instances, and those of services.
    pub(crate) fn inboxes(&self) -> [(KeySpace, TargetOf); 2] {
        let space = KeySpace::raw(self.0.prefix());
        [
            (space.child("inbox"), Target::Instance),
            (space.child("service"), Target::Any),
        ]
    }

    pub(crate) fn queue(&self, target: &Target) -> Queue<()> {
        self.0.queue(target)
    }

    /// Those who take what is sent to a target.
    pub(crate) fn takers(&self, target: &Target) -> KeyRange {
        self.0.takers(target).range()
    }

    /// The job that an item of an inbox is of.
    pub(crate) fn job_of(item: &ItemId) -> Option<String> {
        decode(item.name())
    }

    /// A job's id, and what its record tells, or why that cannot be read.
    pub(crate) fn told(&self, kv: &KeyValue) -> Option<(String, Result<Told>)> {
        let id = self.0.job_of(&kv.key)?;
        Some((id, JobRecord::read(kv).map(Told::of)))
    }
}

impl Told {
    fn of(record: JobRecord) -> Self {
        let (due_ms, ended) = (record.due_ms(), record.state.is_end());
        let state = record.state.word();
        let (attempt, fraction, message) = match record.state {
            State::Delivered { attempt } => (Some(attempt), None, String::new()),
            State::Running {
                attempt,
                fraction,
                message,
            } => (Some(attempt), Some(fraction), message),
            State::Failed(why) => (None, None, why),
            State::Queued | State::Done(_) | State::Expired | State::Cancelled => {
                (None, None, String::new())
            }
        };
        Self {
            target: record.target,
            state,
            ended,
            attempt,
            fraction,
            message,
            since_ms: record.since_ms,
            due_ms,
        }
    }
}
