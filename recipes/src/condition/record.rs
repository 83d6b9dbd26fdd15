//! How a condition queue lies in the store: its keys, and what is written under them.

use quorate_proto::etcdserverpb::RequestOp;
use quorate_proto::mvccpb::KeyValue;
use serde::{Deserialize, Serialize};

use crate::client::Client;
use crate::clock;
use crate::error::Result;
use crate::keys::{Key, KeyRange, KeySpace, Revision, decode};
use crate::kit::{ItemId, SegmentedLog};
use crate::store::ops;
use crate::value::{Json, V1, Value, from_json};

/// The kind of key space that condition queues live in.
pub(crate) const KIND: &str = "condition";

/// The keys of one condition queue.
#[derive(Debug, Clone)]
pub(super) struct Layout {
    pub(super) client: Client,
    pub(super) space: KeySpace,
    pub(super) log: SegmentedLog,
}

impl Layout {
    pub(super) fn new(client: Client, name: &str) -> Self {
        let space = KeySpace::of(KIND, name);
        let log = SegmentedLog::new(client.clone(), space.clone()).without_automatic_roll();
        Self { client, space, log }
    }

    /// What all have agreed on.
    pub(super) fn rule(&self) -> Key {
        self.space.key("rule")
    }

    /// Written when a task is withdrawn.
    pub(super) fn withdrawn(&self) -> Key {
        self.space.key("withdrawn")
    }

    pub(super) fn gates(&self) -> KeySpace {
        self.space.child("gate")
    }

    /// Says that the gate of an epoch is open.
    pub(super) fn gate(&self, epoch: u64) -> Key {
        self.gates().key(&number(epoch))
    }

    /// Gates of epochs before this one.
    pub(super) fn gates_before(&self, epoch: u64) -> KeyRange {
        KeyRange {
            start: self.gates().range().start,
            end: self.gate(epoch).into_bytes(),
        }
    }

    /// The epoch of a gate's or a claim's key.
    pub(super) fn epoch_of(space: &KeySpace, key: &[u8]) -> Option<u64> {
        let text = space.suffix(key)?;
        let epoch = u64::from_str_radix(text, 16).ok()?;
        (number(epoch) == text).then_some(epoch)
    }

    pub(super) fn claims(&self) -> KeySpace {
        self.space.child("claim")
    }

    /// Whoever has the batch of an epoch; leased.
    pub(super) fn claim(&self, epoch: u64) -> Key {
        self.claims().key(&number(epoch))
    }

    pub(super) fn all_attempts(&self) -> KeySpace {
        self.space.child("attempts")
    }

    /// How often the batch of an epoch was taken.
    pub(super) fn attempts(&self, epoch: u64) -> Key {
        self.all_attempts().key(&number(epoch))
    }

    /// Who has which task of a fan.
    pub(super) fn tries(&self) -> KeySpace {
        self.space.child("try")
    }

    /// What was said in an epoch, for its gate alone.
    pub(super) fn signals(&self, epoch: u64) -> KeySpace {
        self.space.child("signal").child(&number(epoch))
    }

    pub(super) fn started(&self, epoch: u64) -> Key {
        self.signals(epoch).key("started")
    }

    /// Says that this task was withdrawn in an epoch.
    pub(super) fn left(&self, epoch: u64, id: &str) -> Key {
        self.signals(epoch).child("left").child(id).itself()
    }

    /// The task whose withdrawal a key speaks of.
    pub(super) fn left_id(&self, epoch: u64, key: &[u8]) -> Option<String> {
        decode(self.signals(epoch).child("left").suffix(key)?)
    }

    pub(super) fn all_done(&self) -> KeySpace {
        self.space.child("done")
    }

    /// Says that this task is done.
    pub(super) fn done(&self, id: &str) -> Key {
        self.all_done().child(id).itself()
    }

    /// The key of a task that joins in this epoch.
    pub(super) fn item(&self, epoch: u64, id: &str) -> Key {
        self.log.key(&ItemId::named(epoch, id))
    }
}

fn number(epoch: u64) -> String {
    format!("{epoch:016x}")
}

/// The value of a gate's key.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct GateRecord {
    v: V1,
    reason: String,
    since_ms: u64,
}

impl GateRecord {
    pub(super) fn now(reason: String) -> Self {
        Self {
            v: V1,
            reason,
            since_ms: clock::wall_millis(),
        }
    }
}

/// The value of a batch's count of attempts.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub(super) struct AttemptsRecord {
    v: V1,
    pub(super) count: u32,
}

impl AttemptsRecord {
    /// What says that it was taken so often.
    pub(super) fn put(key: &Key, count: u32) -> Result<RequestOp> {
        let record = Value::from(Json(Self { v: V1, count }));
        Ok(ops::put(key, record.into_bytes(key)?, None))
    }

    /// An unreadable one is taken for none.
    pub(super) fn count_of(kv: &KeyValue) -> u32 {
        let record: Result<Self> = from_json(&kv.key, &kv.value);
        record.map_or_else(
            |error| {
                tracing::warn!(%error, "an unreadable count of attempts is taken for none");
                0
            },
            |record| record.count,
        )
    }
}

/// A gate that has opened.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Gate {
    /// The epoch that it ended, counted from 0: all tasks that had joined in it passed, and no other.
    pub epoch: u64,
    /// The revision at which it opened, and at which its condition held.
    pub revision: Revision,
    /// The terms of the condition that held.
    pub reason: String,
    /// When it opened, in milliseconds since the Unix epoch by the wall clock of who opened it.
    pub since_ms: u64,
}

impl Gate {
    pub(super) fn of(epoch: u64, kv: &KeyValue) -> Result<Self> {
        let record: GateRecord = from_json(&kv.key, &kv.value)?;
        Ok(Self {
            epoch,
            revision: Revision(kv.create_revision),
            reason: record.reason,
            since_ms: record.since_ms,
        })
    }
}

/// A task that has passed a gate.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Task<T> {
    /// The id that it joined under.
    pub id: String,
    /// What it brought; or why that cannot be read.
    pub value: std::result::Result<T, String>,
    /// When it joined, in milliseconds since the Unix epoch by the joiner's wall clock.
    pub since_ms: u64,
    /// The revision at which it joined.
    pub revision: Revision,
}
