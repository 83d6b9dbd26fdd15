//! How a topic lies in the store: its keys, and what is written under them.

use std::sync::Arc;

use bytes::Bytes;
use quorate_proto::mvccpb::KeyValue;
use serde::de::{DeserializeOwned, IgnoredAny};
use serde::{Deserialize, Serialize};

use super::position::Place;
use crate::client::Client;
use crate::error::{Error, Result};
use crate::keys::{self, Key, KeySpace, Revision};
use crate::kit::SegmentedLog;
use crate::value::{Json, V1, Value, from_json};

/// The kind of key space that topics live in.
pub(crate) const KIND: &str = "topic";

const SHARE: &str = "share";

/// How much of a request's bytes a message leaves for what is written with it.
const MESSAGE_BYTES_SPARE: usize = 8 * 1_024;

/// Below this, who shares out the partitions of each group of the topic of this name.
pub(crate) fn shares(name: &str) -> KeySpace {
    KeySpace::of(KIND, name).child(SHARE)
}

/// How many messages a group has done in a partition, by its cursor; `None` if that is not known.
pub(crate) fn passed(cursor: &KeyValue) -> Option<u64> {
    CursorRecord::read(cursor).ok()?.passed
}

/// The keys of one topic.
#[derive(Debug, Clone)]
pub(super) struct Layout {
    pub(super) client: Client,
    space: KeySpace,
    /// One a partition.
    logs: Arc<[SegmentedLog]>,
}

impl Layout {
    pub(super) fn new(client: Client, name: &str, partitions: u32) -> Self {
        let space = KeySpace::of(KIND, name);
        let logs = (0..partitions).map(|index| {
            let log = space.child("partition").child(&index.to_string());
            SegmentedLog::new(client.clone(), log)
        });
        Self {
            logs: logs.collect(),
            client,
            space,
        }
    }

    /// The same topic with so many items in a segment.
    pub(super) fn with_segment_items(self, items: usize) -> Self {
        let logs = self.logs.iter().cloned();
        let logs = logs.map(|log| log.with_segment_items(items)).collect();
        Self { logs, ..self }
    }

    pub(super) fn partitions(&self) -> u32 {
        u32::try_from(self.logs.len()).unwrap_or(u32::MAX)
    }

    pub(super) fn log(&self, partition: u32) -> &SegmentedLog {
        &self.logs[partition as usize]
    }

    /// What all handles have agreed on.
    pub(super) fn meta(&self) -> Key {
        self.space.key("meta")
    }

    /// What was removed from a partition.
    pub(super) fn removed(&self, partition: u32) -> Key {
        self.space.key(&format!("removed/{partition}"))
    }

    /// The cursors of all groups.
    pub(super) fn groups(&self) -> KeySpace {
        self.space.child("group")
    }

    /// The cursors of a group.
    pub(super) fn group(&self, group: &str) -> KeySpace {
        self.groups().child(group)
    }

    pub(super) fn cursor(&self, group: &str, partition: u32) -> Key {
        self.group(group).key(&partition.to_string())
    }

    /// The group and the partition that a cursor's key is of.
    pub(super) fn cursor_of(&self, key: &[u8]) -> Option<(String, u32)> {
        let groups = self.groups();
        let (group, partition) = groups.suffix(key)?.split_once('/')?;
        Some((keys::decode(group)?, partition.parse().ok()?))
    }

    /// Who shares out the partitions of a group.
    pub(super) fn share(&self, group: &str) -> KeySpace {
        self.space.child(SHARE).child(group)
    }

    /// Who sees to what is not kept any more.
    pub(super) fn retainers(&self) -> KeySpace {
        self.space.child("retainer")
    }

    /// The key that is named in errors about a value that cannot be written.
    pub(super) fn any_key(&self) -> Key {
        self.space.itself()
    }

    /// A message as it is written.
    pub(super) fn message<T: Serialize>(&self, key: Option<&str>, value: &T) -> Result<Bytes> {
        let record = MessageRecord {
            v: V1,
            since_ms: self.client.wall_millis(),
            key: key.map(str::to_owned),
            value,
        };
        let bytes = Value::from(Json(record)).into_bytes(&self.any_key())?;
        let limit = self.client.store().capabilities().max_request_bytes;
        let most = limit.saturating_sub(MESSAGE_BYTES_SPARE);
        if bytes.len() > most {
            let size = bytes.len();
            return Err(Error::Invalid(format!(
                "a message of {size} bytes; at most {most}"
            )));
        }
        Ok(bytes)
    }
}

/// The value of `meta`.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub(super) struct MetaRecord {
    v: V1,
    pub(super) partitions: u32,
}

impl MetaRecord {
    pub(super) fn new(partitions: u32) -> Self {
        Self { v: V1, partitions }
    }
}

/// The value of a message's key.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct MessageRecord<T> {
    v: V1,
    /// When it was published, by the publisher's wall clock.
    pub(super) since_ms: u64,
    /// What its partition was chosen by.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) key: Option<String>,
    pub(super) value: T,
}

impl<T: DeserializeOwned> MessageRecord<T> {
    pub(super) fn read(key: &Key, bytes: &Bytes) -> Result<Self> {
        from_json(key.as_bytes(), bytes)
    }
}

/// When a message was published, whatever its value is; 0 if it cannot be read.
pub(super) fn since_ms(kv: &KeyValue) -> u64 {
    let record: Result<MessageRecord<IgnoredAny>> = from_json(&kv.key, &kv.value);
    record.map_or(0, |record| record.since_ms)
}

/// The value of `removed/<partition>`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct RemovedRecord {
    v: V1,
    /// The first segment that was not removed.
    pub(super) segment: u64,
    /// Messages in all those that were.
    pub(super) messages: u64,
    /// The revision at which the last of them was committed.
    revision: i64,
    /// When the last of them was published.
    pub(super) since_ms: u64,
}

impl RemovedRecord {
    pub(super) fn read(kv: Option<&KeyValue>) -> Result<Self> {
        match kv {
            Some(kv) => from_json(&kv.key, &kv.value),
            None => Ok(Self::nothing()),
        }
    }

    fn nothing() -> Self {
        Self {
            v: V1,
            segment: 0,
            messages: 0,
            revision: 0,
            since_ms: 0,
        }
    }

    /// With one more segment removed, in which there were so many messages, this one the last.
    pub(super) fn and(self, messages: u64, last: Option<&KeyValue>) -> Self {
        Self {
            segment: self.segment + 1,
            messages: self.messages + messages,
            revision: last.map_or(self.revision, |kv| kv.create_revision),
            since_ms: last.map_or(self.since_ms, since_ms),
            ..self
        }
    }

    pub(super) fn revision(self) -> Revision {
        Revision(self.revision)
    }

    pub(super) fn write(self, key: &Key) -> Result<Bytes> {
        Value::from(Json(self)).into_bytes(key)
    }
}

/// The value of a group's cursor: everything up to there is done.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct CursorRecord {
    v: V1,
    segment: u64,
    revision: i64,
    name: String,
    /// How many messages of the partition are up to there, removed ones included; not known where the group
    /// began behind a message that was removed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) passed: Option<u64>,
}

impl CursorRecord {
    pub(super) fn new(place: &Place, passed: Option<u64>) -> Self {
        Self {
            v: V1,
            segment: place.segment,
            revision: place.created.0,
            name: place.name.clone(),
            passed,
        }
    }

    pub(super) fn read(kv: &KeyValue) -> Result<Self> {
        from_json(&kv.key, &kv.value)
    }

    pub(super) fn place(&self) -> Place {
        Place {
            segment: self.segment,
            created: Revision(self.revision),
            name: self.name.clone(),
        }
    }

    pub(super) fn write(&self, key: &Key) -> Result<Bytes> {
        Value::from(Json(self)).into_bytes(key)
    }
}

/// The value of a live topic's key.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct LiveRecord<T> {
    v: V1,
    /// When it was published, by the publisher's wall clock.
    pub(super) since_ms: u64,
    pub(super) value: T,
}

impl<T> LiveRecord<T> {
    pub(super) fn new(client: &Client, value: T) -> Self {
        Self {
            v: V1,
            since_ms: client.wall_millis(),
            value,
        }
    }
}

impl<T: DeserializeOwned> LiveRecord<T> {
    pub(super) fn read(key: &Key, bytes: &Bytes) -> Result<Self> {
        from_json(key.as_bytes(), bytes)
    }
}
