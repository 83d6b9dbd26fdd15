//! How a queue lies in the store: its keys, and what is written under them.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use quorate_proto::etcdserverpb::RequestOp;
use quorate_proto::mvccpb::KeyValue;
use serde::de::{DeserializeOwned, IgnoredAny};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::client::Client;
use crate::clock;
use crate::error::Result;
use crate::keys::{Key, KeyRange, KeySpace, decode};
use crate::kit::{ItemId, SegmentedLog};
use crate::store::ops;
use crate::value::{Json, V1, Value, from_json};

/// The longest reason that is kept with a dead letter, in bytes.
const REASON_BYTES_MAX: usize = 1_024;

/// How much of a request's bytes an item leaves for what is written with it when it is moved.
pub(super) const ITEM_BYTES_SPARE: usize = 8 * 1_024;

/// The keys of one queue.
#[derive(Debug, Clone)]
pub(super) struct Layout {
    pub(super) client: Client,
    space: KeySpace,
    pub(super) log: SegmentedLog,
    /// It is part of another recipe, which knows in which order all consumers take, and delays nothing.
    pub(super) of_recipe: bool,
    /// Items are given out only once their segment is closed. Somebody else closes it then.
    pub(super) gated: Option<Gated>,
    /// How many dead letters are kept.
    pub(super) dead_max: Option<usize>,
}

/// What else a recipe wants of a queue whose segments it closes.
#[derive(Debug, Clone)]
pub(crate) struct Gated {
    /// Where it is noted that an item is done.
    pub(crate) done: KeySpace,
    /// The names of those of which it is.
    pub(crate) noted: Arc<BTreeSet<String>>,
}

impl Gated {
    /// What notes that an item is done, if it is to be.
    pub(crate) fn when_done(&self, id: &ItemId) -> Option<RequestOp> {
        let name = decode(id.name()).filter(|name| self.noted.contains(name))?;
        let key = self.done.child(&name).itself();
        Some(ops::put(key, clock::wall_millis().to_string().into(), None))
    }
}

impl Layout {
    pub(super) fn new(client: Client, space: KeySpace) -> Self {
        let log = SegmentedLog::new(client.clone(), space.clone());
        Self {
            client,
            space,
            log,
            of_recipe: false,
            gated: None,
            dead_max: None,
        }
    }

    /// Of a queue below `space` whose segments somebody else closes.
    pub(super) fn gated(client: Client, space: KeySpace, log: SegmentedLog, gated: Gated) -> Self {
        Self {
            client,
            space,
            log,
            of_recipe: true,
            gated: Some(gated),
            dead_max: None,
        }
    }

    /// What the queue's consumers have agreed on.
    pub(super) fn settings(&self) -> Key {
        self.space.key("settings")
    }

    /// How many items the queue takes.
    pub(super) fn bound(&self) -> Key {
        self.space.key("bound")
    }

    /// Who waits for room.
    pub(super) fn pushers(&self) -> KeySpace {
        self.space.child("pusher")
    }

    /// Who takes items.
    pub(super) fn consumers(&self) -> KeySpace {
        self.space.child("consumer")
    }

    /// Everything that is kept about the taking of items.
    pub(super) fn tries(&self) -> KeySpace {
        self.space.child("try")
    }

    /// What is kept about the taking of one item.
    pub(super) fn tries_of(&self, id: &ItemId) -> KeyRange {
        KeyRange::prefix(self.tries().key(&format!("{id}/")).into_bytes())
    }

    /// Whoever has the item; leased.
    pub(super) fn claim(&self, id: &ItemId) -> Key {
        self.tries().key(&format!("{id}/claim"))
    }

    /// How often the item was taken.
    pub(super) fn attempts(&self, id: &ItemId) -> Key {
        self.tries().key(&format!("{id}/attempts"))
    }

    /// The item that a key about the taking of items is about, and what the key says of it.
    pub(super) fn tried(&self, key: &[u8]) -> Option<(ItemId, Tried)> {
        let (id, kind) = self
            .tries()
            .suffix(key)?
            .rsplit_once('/')
            .map(|(id, kind)| {
                let kind = match kind {
                    "claim" => Some(Tried::Claim),
                    "attempts" => Some(Tried::Attempts),
                    _ => None,
                };
                (id.parse().ok(), kind)
            })?;
        Some((id?, kind?))
    }

    /// Who sees to items whose time has come.
    pub(super) fn movers(&self) -> KeySpace {
        self.space.child("mover")
    }

    pub(super) fn dead_letters(&self) -> KeySpace {
        self.space.child("dead")
    }

    pub(super) fn dead_letter(&self, id: &ItemId) -> Key {
        self.dead_letters().key(&id.to_string())
    }

    pub(super) fn delayed(&self) -> KeySpace {
        self.space.child("delayed")
    }

    /// The key of an item that is to enter the queue at `due_ms`; those due first come first.
    pub(super) fn delayed_item(&self, due_ms: u64, nonce: &str) -> Key {
        self.delayed().key(&format!("{due_ms:016x}/{nonce}"))
    }

    /// When the item of this key is due.
    pub(super) fn due_ms(&self, key: &[u8]) -> Option<u64> {
        let delayed = self.delayed();
        let (due, _) = delayed.suffix(key)?.split_once('/')?;
        u64::from_str_radix(due, 16).ok()
    }

    /// Says that an item of this name is in the queue.
    pub(super) fn unique(&self, name: &str) -> Key {
        self.space.child("unique").child(name).itself()
    }
}

/// What a key about the taking of an item says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Tried {
    Claim,
    Attempts,
}

/// The value of an item's key.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct ItemRecord<T> {
    v: V1,
    #[serde(flatten)]
    pub(super) about: About,
    pub(super) value: T,
}

/// What an item says besides its value.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct About {
    /// When it was pushed, by the pusher's wall clock.
    pub(super) since_ms: u64,
    /// Items of the same key are taken one after the other.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) key: Option<String>,
    /// The name that no other item of the queue has.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) unique: Option<String>,
    /// How often it was taken before it came to this place.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub(super) attempts: u32,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde calls it so")]
fn is_zero(n: &u32) -> bool {
    *n == 0
}

impl About {
    pub(super) fn now() -> Self {
        Self {
            since_ms: clock::wall_millis(),
            key: None,
            unique: None,
            attempts: 0,
        }
    }

    /// Of an item that cannot be read.
    pub(super) fn unknown() -> Self {
        Self {
            since_ms: 0,
            key: None,
            unique: None,
            attempts: 0,
        }
    }

    /// What an item says, whatever its value is.
    pub(super) fn read(key: &Key, item: &Bytes) -> Result<Self> {
        let record: ItemRecord<IgnoredAny> = from_json(key.as_bytes(), item)?;
        Ok(record.about)
    }
}

impl<T: Serialize> ItemRecord<T> {
    pub(super) fn new(about: About, value: T) -> Self {
        let v = V1;
        Self { v, about, value }
    }

    pub(super) fn write(self, key: &Key) -> Result<Bytes> {
        Value::from(Json(self)).into_bytes(key)
    }
}

impl<T: DeserializeOwned> ItemRecord<T> {
    pub(super) fn read(key: &Key, item: &Bytes) -> Result<Self> {
        from_json(key.as_bytes(), item)
    }
}

/// The same item with other things said about it, its value as it was.
pub(super) fn rewritten(key: &Key, item: &Bytes, about: About) -> Result<Bytes> {
    let record: ItemRecord<Box<RawValue>> = ItemRecord::read(key, item)?;
    ItemRecord::new(about, record.value).write(key)
}

/// The value of an item's `attempts`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct AttemptsRecord {
    v: V1,
    /// How often the item was taken at this place.
    pub(super) count: u32,
    /// How long it is to be left alone.
    #[serde(flatten)]
    pause: Option<Pause>,
}

/// A pause before the next attempt, in milliseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct Pause {
    pause_ms: u64,
    /// When it is over, by the wall clock of who began it.
    due_ms: u64,
}

impl AttemptsRecord {
    pub(super) fn new(count: u32) -> Self {
        let (v, pause) = (V1, None);
        Self { v, count, pause }
    }

    /// The item is to be left alone for so long from now, in milliseconds since the Unix epoch.
    pub(super) fn paused(mut self, pause_ms: u64, now_ms: u64) -> Self {
        let due_ms = now_ms.saturating_add(pause_ms);
        self.pause = Some(Pause { pause_ms, due_ms });
        self
    }

    /// How long the item is to be left alone now: by this machine's wall clock, but no longer than was asked for.
    pub(super) fn pause_left(self, now_ms: u64) -> Option<Duration> {
        let pause = self.pause?;
        let left = pause.due_ms.saturating_sub(now_ms).min(pause.pause_ms);
        Some(Duration::from_millis(left))
    }

    pub(super) fn write(self, key: &Key) -> Result<Bytes> {
        Value::from(Json(self)).into_bytes(key)
    }
}

/// The value of a dead letter's key.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct DeadRecord<T> {
    v: V1,
    /// When it was put there, by the wall clock of who did.
    pub(super) since_ms: u64,
    /// How often it had been taken.
    pub(super) attempts: u32,
    pub(super) reason: String,
    /// The item's record.
    pub(super) item: T,
}

impl DeadRecord<Box<RawValue>> {
    /// The dead letter that `item` becomes now. What is not JSON is kept as a text. A long reason is cut.
    pub(super) fn write(
        key: &Key,
        item: &Bytes,
        attempts: u32,
        mut reason: String,
    ) -> Result<Bytes> {
        reason.truncate(reason.floor_char_boundary(REASON_BYTES_MAX));
        let item: Box<RawValue> = match serde_json::from_slice(item) {
            Ok(item) => item,
            Err(_) => serde_json::value::to_raw_value(&String::from_utf8_lossy(item))
                .expect("a text can be written"),
        };
        let record = Self {
            v: V1,
            since_ms: clock::wall_millis(),
            attempts,
            reason,
            item,
        };
        Value::from(Json(record)).into_bytes(key)
    }
}

/// In which order items are given out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Order {
    /// Several at a time, about in the order in which they were pushed.
    Parallel,
    /// One after the other among those of the same key, exactly in that order.
    Keyed,
    /// One after the other, exactly in that order.
    Strict,
}

/// The value of `settings`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Settings {
    v: V1,
    pub(super) order: Order,
}

impl fmt::Display for Order {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Parallel => "a queue without an exact order",
            Self::Keyed => "a queue in order by key",
            Self::Strict => "a queue in strict order",
        })
    }
}

impl Settings {
    pub(super) fn new(order: Order) -> Self {
        Self { v: V1, order }
    }
}

/// An item's value, or why it cannot be read; and when it was pushed.
pub(crate) fn read_item<T: DeserializeOwned>(
    kv: &KeyValue,
) -> (std::result::Result<T, String>, u64) {
    let key = Key::from(kv.key.clone());
    match ItemRecord::<T>::read(&key, &kv.value) {
        Ok(record) => (Ok(record.value), record.about.since_ms),
        Err(error) => {
            let about = About::read(&key, &kv.value).unwrap_or_else(|_| About::unknown());
            (Err(error.to_string()), about.since_ms)
        }
    }
}
