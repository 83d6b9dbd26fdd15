//! How dispatched jobs lie in the store: their keys, and what is written under them.

use std::collections::BTreeMap;

use bytes::Bytes;
use quorate_proto::mvccpb::KeyValue;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::logs::Logs;
use super::survey::KIND;
use crate::client::Client;
use crate::error::{Error, Result};
use crate::keys::{Key, KeyRange, KeySpace, Revision, decode};
use crate::kit::{ItemId, SegmentedLog};
use crate::lock::ContenderRecord;
use crate::queue::Queue;
use crate::value::{Json, V1, Value, from_json};

/// The longest reason or message that is kept, in bytes.
const TEXT_BYTES_MAX: usize = 1_024;

/// The keys of one dispatcher.
#[derive(Debug, Clone)]
pub(super) struct Layout {
    pub(super) client: Client,
    space: KeySpace,
    logs: Logs,
}

/// Who is to do a job.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Target {
    /// The instance of this name, and no other.
    Instance(String),
    /// Any one of those that work for this service.
    Any(String),
}

impl Layout {
    pub(super) fn new(client: Client, name: &str) -> Self {
        let space = KeySpace::of(KIND, name);
        let logs = Logs::default();
        Self {
            client,
            space,
            logs,
        }
    }

    pub(super) fn prefix(&self) -> &str {
        self.space.prefix()
    }

    pub(super) fn jobs(&self) -> KeySpace {
        self.space.child("job")
    }

    /// How far a job is.
    pub(super) fn job(&self, id: &str) -> Key {
        self.jobs().child(id).itself()
    }

    /// The job that a key is of.
    pub(super) fn job_of(&self, key: &[u8]) -> Option<String> {
        decode(self.jobs().suffix(key)?)
    }

    /// The jobs of one call to many.
    pub(super) fn jobs_of_cast(&self, cast: &str) -> KeyRange {
        KeyRange::prefix(self.job(&format!("{cast}.")))
    }

    pub(super) fn cancels(&self) -> KeySpace {
        self.space.child("cancel")
    }

    /// Asks for the end of a job that somebody has.
    pub(super) fn cancel(&self, id: &str) -> Key {
        self.cancels().child(id).itself()
    }

    /// One command for many, and who they are.
    pub(super) fn cast(&self, id: &str) -> Key {
        self.space.child("cast").child(id).itself()
    }

    /// Casts of which some recipients have no job yet.
    pub(super) fn unsent(&self) -> KeySpace {
        self.space.child("unsent")
    }

    /// To how many of its recipients such a cast was sent.
    pub(super) fn sent(&self, id: &str) -> Key {
        self.space.child("sent").child(id).itself()
    }

    /// Instances whose inbox is open; leased.
    pub(super) fn here(&self) -> KeySpace {
        self.space.child("here")
    }

    /// The instance that a key of those says is here.
    pub(super) fn instance_of(&self, key: &[u8]) -> Option<String> {
        let here = self.here();
        let (name, _) = here.suffix(key)?.split_once('/')?;
        decode(name)
    }

    pub(super) fn inbox(&self, target: &Target) -> KeySpace {
        match target {
            Target::Instance(name) => self.space.child("inbox").child(name),
            Target::Any(name) => self.space.child("service").child(name),
        }
    }

    /// Those who take what is sent to the target; leased.
    pub(super) fn takers(&self, target: &Target) -> KeySpace {
        self.inbox(target).child("consumer")
    }

    /// The log of an inbox, of which nothing is known.
    pub(super) fn log_of(&self, target: &Target) -> SegmentedLog {
        self.queue::<Envelope>(target).log().clone()
    }

    /// The log of an inbox, to send to.
    pub(super) fn log(&self, target: &Target) -> SegmentedLog {
        self.logs.of(target, || self.log_of(target))
    }

    /// An item of an inbox, as it is written.
    pub(super) fn item(&self, target: &Target, job: &str, command: &RawValue) -> Result<Bytes> {
        self.queue(target).written(&Envelope {
            job: job.to_owned(),
            command: command.to_owned(),
        })
    }

    pub(super) fn queue<T>(&self, target: &Target) -> Queue<T> {
        Queue::of_recipe(&self.client, self.inbox(target))
    }
}

/// The value of an item of an inbox.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Envelope {
    /// The job's id, which is the item's name too.
    pub(super) job: String,
    pub(super) command: Box<RawValue>,
}

/// What is read of an item of an inbox: the same, or why it cannot be read.
pub(super) type Received = std::result::Result<Envelope, String>;

/// The value of a job's key.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct JobRecord {
    v: V1,
    pub(super) target: Target,
    /// The segment of the inbox that it is in.
    pub(super) segment: u64,
    /// When it was sent, by the sender's wall clock.
    pub(super) since_ms: u64,
    /// When it expires, unless it has ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) deadline_ms: Option<u64>,
    /// When it expires, unless it was delivered.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) start_by_ms: Option<u64>,
    pub(super) state: State,
}

/// How far a job is, as it is written.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum State {
    Queued,
    Delivered {
        attempt: u32,
    },
    Running {
        attempt: u32,
        fraction: f64,
        message: String,
    },
    Done(Box<RawValue>),
    Failed(String),
    Expired,
    Cancelled,
}

impl State {
    /// Whether nothing comes after it.
    pub(super) fn is_end(&self) -> bool {
        matches!(
            self,
            Self::Done(_) | Self::Failed(_) | Self::Expired | Self::Cancelled
        )
    }

    /// What it is called in a list.
    pub(super) fn word(&self) -> &'static str {
        match self {
            Self::Queued => "queued",
            Self::Delivered { .. } => "delivered",
            Self::Running { .. } => "running",
            Self::Done(_) => "done",
            Self::Failed(_) => "failed",
            Self::Expired => "expired",
            Self::Cancelled => "cancelled",
        }
    }

    pub(super) fn failed(reason: &str) -> Self {
        Self::Failed(cut(reason))
    }
}

/// A text, as much of it as is kept.
pub(super) fn cut(text: &str) -> String {
    text[..text.floor_char_boundary(TEXT_BYTES_MAX)].to_owned()
}

impl JobRecord {
    pub(super) fn queued(target: Target, segment: u64, times: Times) -> Self {
        Self {
            v: V1,
            target,
            segment,
            since_ms: times.since_ms,
            deadline_ms: times.deadline_ms,
            start_by_ms: times.start_by_ms,
            state: State::Queued,
        }
    }

    /// In place of a record that cannot be read, of the job of this item.
    pub(super) fn unknown(target: Target, item: &ItemId, since_ms: u64) -> Self {
        let times = Times {
            since_ms,
            deadline_ms: None,
            start_by_ms: None,
        };
        Self::queued(target, item.segment(), times)
    }

    pub(super) fn item(&self, id: &str) -> ItemId {
        ItemId::named(self.segment, id)
    }

    pub(super) fn read(kv: &KeyValue) -> Result<Self> {
        from_json(&kv.key, &kv.value)
    }

    /// The same job in another state, as it is written.
    pub(super) fn with(&self, state: State, key: &Key) -> Result<Bytes> {
        let record = Self {
            state,
            ..self.clone()
        };
        record.write(key)
    }

    pub(super) fn write(&self, key: &Key) -> Result<Bytes> {
        Value::from(Json(self)).into_bytes(key)
    }

    /// When it expires as it is now, by wall clocks.
    pub(super) fn due_ms(&self) -> Option<u64> {
        let start_by = self
            .start_by_ms
            .filter(|_| matches!(self.state, State::Queued));
        match self.state.is_end() {
            true => None,
            false => self.deadline_ms.into_iter().chain(start_by).min(),
        }
    }
}

/// When a job was sent and when it expires, in milliseconds since the Unix epoch by the sender's wall clock.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub(super) struct Times {
    pub(super) since_ms: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) deadline_ms: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) start_by_ms: Option<u64>,
}

/// The value of a cast's key.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct CastRecord {
    v: V1,
    /// The revision of which its recipients are.
    pub(super) revision: Revision,
    pub(super) times: Times,
    /// `None` once it was sent to all of them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    command: Option<Box<RawValue>>,
    /// The names of the recipients, in order.
    pub(super) recipients: Vec<String>,
}

impl CastRecord {
    pub(super) fn new(
        revision: Revision,
        times: Times,
        command: Box<RawValue>,
        recipients: Vec<String>,
    ) -> Self {
        Self {
            v: V1,
            revision,
            times,
            command: Some(command),
            recipients,
        }
    }

    /// The id of the job of a recipient, by its place.
    pub(super) fn job(cast: &str, place: usize) -> String {
        format!("{cast}.{place:04x}")
    }

    /// Each recipient with the id of its job.
    pub(super) fn jobs(&self, cast: &str) -> impl Iterator<Item = (&String, String)> {
        let each = self.recipients.iter().enumerate();
        each.map(move |(place, name)| (name, Self::job(cast, place)))
    }

    /// What they are to be sent.
    ///
    /// # Errors
    /// [`Error::Invalid`] when all of them have got it.
    pub(super) fn command(&self) -> Result<&RawValue> {
        let sent = || Error::Invalid("a cast that was sent to all".to_owned());
        self.command.as_deref().ok_or_else(sent)
    }

    /// Whether all of them have got it.
    pub(super) fn is_sent(&self) -> bool {
        self.command.is_none()
    }

    /// What it is once it was sent to all.
    pub(super) fn sent(&self) -> Self {
        Self {
            v: V1,
            revision: self.revision,
            times: self.times,
            command: None,
            recipients: self.recipients.clone(),
        }
    }

    /// About how many bytes the names take as they are written.
    pub(super) fn names_bytes(&self) -> usize {
        self.recipients.iter().map(|name| 2 * name.len() + 3).sum()
    }
}

/// The value of the key that says that an inbox is open.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct HereRecord {
    #[serde(flatten)]
    pub(super) contender: ContenderRecord,
    #[serde(default, skip_serializing_if = "Labels::is_empty")]
    pub(super) labels: Labels,
}

/// What is said of an instance.
pub(super) type Labels = BTreeMap<String, String>;

/// How far a job is.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum JobState<R> {
    /// Nobody has taken it yet.
    Queued,
    /// Somebody has it, or had it and gave it back.
    Delivered {
        /// How often it was taken, this time included.
        attempt: u32,
    },
    /// Somebody has it, or had it, and told how far it is.
    Running {
        /// How often it was taken, this time included.
        attempt: u32,
        /// How much of it is done: 0 to 1.
        fraction: f64,
        /// What was told.
        message: String,
    },
    /// It has ended.
    Ended(Ended<R>),
}

/// How a job ended. Nothing changes that any more.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum Ended<R> {
    /// It is done, with this reply.
    Done(R),
    /// It failed, for this reason.
    Failed(String),
    /// It was not done, or not begun, in time.
    Expired,
    /// It was cancelled.
    Cancelled,
}

impl<R: DeserializeOwned> JobState<R> {
    pub(super) fn of(key: &Key, state: State) -> Result<Self> {
        Ok(match state {
            State::Queued => Self::Queued,
            State::Delivered { attempt } => Self::Delivered { attempt },
            State::Running {
                attempt,
                fraction,
                message,
            } => Self::Running {
                attempt,
                fraction,
                message,
            },
            State::Done(reply) => {
                let reply = serde_json::from_str(reply.get()).map_err(|error| Error::Codec {
                    key: key.clone(),
                    reason: error.to_string(),
                })?;
                Self::Ended(Ended::Done(reply))
            }
            State::Failed(reason) => Self::Ended(Ended::Failed(reason)),
            State::Expired => Self::Ended(Ended::Expired),
            State::Cancelled => Self::Ended(Ended::Cancelled),
        })
    }
}

/// A job in a list.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct JobLine {
    /// The job's id.
    pub id: String,
    /// Who is to do it; `None`: its record cannot be read.
    pub target: Option<Target>,
    /// `queued`, `delivered`, `running`, `done`, `failed`, `expired`, `cancelled`, or `unreadable`.
    pub state: &'static str,
    /// When it was sent, in milliseconds since the Unix epoch by the sender's wall clock; `None`: its record
    /// cannot be read.
    pub since_ms: Option<u64>,
    /// The revision of its last change.
    pub revision: Revision,
}

impl JobLine {
    pub(super) fn of(id: String, kv: &KeyValue) -> Self {
        let record = JobRecord::read(kv).ok();
        Self {
            id,
            state: record
                .as_ref()
                .map_or("unreadable", |record| record.state.word()),
            since_ms: record.as_ref().map(|record| record.since_ms),
            target: record.map(|record| record.target),
            revision: Revision(kv.mod_revision),
        }
    }
}
