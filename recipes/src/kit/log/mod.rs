//! A log in segments: items in the order in which they were committed, appended without contention. Under
//! queues and topics.
//!
//! Every append compares the revision of one key, the *head*, that names the segment, and does not write
//! it; so appends hold up nobody, and all items of a segment are committed before the first of the next
//! one. Within a segment the store's own revisions are the order. Rolling on to the next segment, once one
//! is full, is one write of the head.
//!
//! `append` writes, `named` items under names of the caller's; here is how items are named and where they lie.

mod append;
mod named;

use std::cmp::Ordering;
use std::fmt;
use std::str::FromStr;
use std::sync::{Arc, Mutex};

use quorate_proto::mvccpb::KeyValue;
use serde::{Deserialize, Serialize};

pub use append::{Append, Appended, Rolled};
pub use named::Placed;

use crate::client::Client;
use crate::error::{Error, Result};
use crate::keys::{Key, KeyRange, KeySpace, Revision, encode};
use crate::store::ops;
use crate::value::{V1, from_json};
use crate::wait;

/// Items after which a segment is full, unless told otherwise.
const SEGMENT_ITEMS: usize = 256;

/// A log. A handle: cheap to clone; clones share what they know of the head.
///
/// | key | what |
/// |---|---|
/// | `head` | the segment that is appended to; absent: segment 0 |
/// | `segment/<16 hex digits>/<batch>.<index>` | an item: as it was given, never written again |
#[derive(Debug, Clone)]
pub struct SegmentedLog {
    client: Client,
    space: KeySpace,
    segments: KeySpace,
    segment_items: usize,
    /// Whether a full segment is closed by who fills it.
    rolls: bool,
    known: Arc<Mutex<Option<Known>>>,
}

/// The head as last known to this handle.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Known {
    head: Head,
    /// How many this handle has appended to it.
    appended: usize,
    /// How large those are together.
    bytes: usize,
}

impl Known {
    fn new(head: Head) -> Self {
        let (appended, bytes) = (0, 0);
        Self {
            head,
            appended,
            bytes,
        }
    }
}

/// The segment that is appended to, and the revision at which it became that.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Head {
    /// The segment's number.
    pub segment: u64,
    /// The mod revision of the key that names it; 0 while there is none.
    pub since: Revision,
}

/// The value of the head's key.
#[derive(Debug, Serialize, Deserialize)]
struct Record {
    v: V1,
    segment: u64,
}

/// Which item of a log: the segment, and a name there that no other item has or had. Its text form is
/// `<segment in 16 hexadecimal digits>/<name>`. The order of ids is by segment only in part the order of
/// the items; [`Position`] has all of it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ItemId {
    segment: u64,
    name: String,
}

/// Where an item stands: one with a larger position was committed later, or stands behind it in the same
/// batch.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Position {
    id: ItemId,
    created: Revision,
}

impl Ord for Position {
    fn cmp(&self, other: &Self) -> Ordering {
        let place = |position: &Self| (position.id.segment, position.created);
        let order = place(self).cmp(&place(other));
        order.then_with(|| self.id.name.cmp(&other.id.name))
    }
}

impl PartialOrd for Position {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl ItemId {
    /// The number of the segment.
    #[must_use]
    pub fn segment(&self) -> u64 {
        self.segment
    }

    /// The item of this name, which is escaped as the names of recipes are.
    #[must_use]
    pub fn named(segment: u64, name: &str) -> Self {
        let name = encode(name);
        Self { segment, name }
    }

    /// The name within the segment, as it is written in the key.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Item `index` of a batch; names of one batch are in the order of their numbers.
    fn of_batch(segment: u64, batch: &str, index: usize) -> Self {
        let name = format!("{batch}.{index:04x}");
        Self { segment, name }
    }
}

impl fmt::Display for ItemId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}/{}", self.segment, self.name)
    }
}

impl FromStr for ItemId {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let id = text.split_once('/').and_then(|(segment, name)| {
            let segment = u64::from_str_radix(segment, 16).ok()?;
            let name = name.to_owned();
            Some(Self { segment, name })
        });
        // What is written back differently would name another key.
        id.filter(|id| id.to_string() == text && !id.name.is_empty() && !id.name.contains('/'))
            .ok_or_else(|| Error::Invalid(format!("not the id of an item: {text:?}")))
    }
}

impl Position {
    /// The position of an item that was created at this revision.
    #[must_use]
    pub fn new(id: ItemId, created: Revision) -> Self {
        Self { id, created }
    }

    /// Before all items of a segment, and behind those of the segment before.
    pub(crate) fn before(segment: u64) -> Self {
        let name = String::new();
        Self::new(ItemId { segment, name }, Revision(0))
    }

    /// The item that stands there.
    #[must_use]
    pub fn id(&self) -> &ItemId {
        &self.id
    }

    /// The number of the segment.
    #[must_use]
    pub fn segment(&self) -> u64 {
        self.id.segment
    }

    /// The revision at which the item was committed.
    #[must_use]
    pub fn created(&self) -> Revision {
        self.created
    }
}

impl SegmentedLog {
    /// The log whose keys lie in `space`, as `head` and below `segment/`.
    #[must_use]
    pub fn new(client: Client, space: KeySpace) -> Self {
        let segments = space.child("segment");
        Self {
            client,
            space,
            segments,
            segment_items: SEGMENT_ITEMS,
            rolls: true,
            known: Arc::default(),
        }
    }

    /// Goes on to the next segment after about so many items, or 4 MiB of them; 256 if not told. At least 1.
    /// Handles may differ in it.
    #[must_use]
    pub fn with_segment_items(mut self, items: usize) -> Self {
        self.segment_items = items.max(1);
        self
    }

    /// Goes on to the next segment only when told to.
    #[must_use]
    pub fn without_automatic_roll(mut self) -> Self {
        self.rolls = false;
        self
    }

    /// Items after which a segment is full.
    #[must_use]
    pub fn segment_items(&self) -> usize {
        self.segment_items
    }

    /// Everything that the log has in the store.
    pub(crate) fn everything(&self) -> KeyRange {
        self.space.range()
    }

    /// The key that names the segment that is appended to.
    #[must_use]
    pub fn head_key(&self) -> Key {
        self.space.key("head")
    }

    /// The items of the segments from `from` on, of those before `to` if there is an end.
    #[must_use]
    pub fn range(&self, from: u64, to: Option<u64>) -> KeyRange {
        let start = |segment: u64| self.segments.key(&format!("{segment:016x}/")).into_bytes();
        KeyRange {
            start: start(from),
            end: to.map_or_else(|| self.segments.range().end, start),
        }
    }

    /// The items of one segment.
    #[must_use]
    pub fn segment(&self, segment: u64) -> KeyRange {
        KeyRange::prefix(self.segments.key(&format!("{segment:016x}/")).into_bytes())
    }

    /// The key of an item.
    #[must_use]
    pub fn key(&self, id: &ItemId) -> Key {
        self.segments.key(&id.to_string())
    }

    /// The item that has this key; `None` for the key of something else.
    #[must_use]
    pub fn item(&self, key: &[u8]) -> Option<ItemId> {
        self.segments.suffix(key)?.parse().ok()
    }

    /// The position of the item that `kv` is; `None` when it is none.
    #[must_use]
    pub fn position(&self, kv: &KeyValue) -> Option<Position> {
        let id = self.item(&kv.key)?;
        Some(Position::new(id, Revision(kv.create_revision)))
    }

    /// Reads what the head's key says.
    ///
    /// # Errors
    /// [`Error::Codec`] when it is damaged.
    pub fn head_of(&self, found: Option<&KeyValue>) -> Result<Head> {
        let Some(kv) = found else {
            let (segment, since) = (0, Revision(0));
            return Ok(Head { segment, since });
        };
        Ok(Head {
            segment: from_json::<Record>(&kv.key, &kv.value)?.segment,
            since: Revision(kv.mod_revision),
        })
    }

    /// The first segment from `from` to `last` that has an item, or `None`. Trouble with the store is waited
    /// out.
    ///
    /// It looks at one segment, then at twice as many as before each time: stores count all keys of a range,
    /// however few are asked for, so that a look at all of a long log would cost by its length.
    ///
    /// # Errors
    /// The store's final refusals.
    pub async fn first_with_items(&self, mut from: u64, last: u64) -> Result<Option<u64>> {
        let mut width = 1;
        while from <= last {
            let end = from.saturating_add(width);
            let mut request = ops::range(self.range(from, Some(end)));
            request.limit = 1;
            request.keys_only = true;
            let found = wait::read(&self.client, request).await?;
            if let Some(id) = found.kvs.first().and_then(|kv| self.item(&kv.key)) {
                return Ok(Some(id.segment()).filter(|segment| *segment <= last));
            }
            (from, width) = (end, width.saturating_mul(2));
        }
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::MemStore;

    #[test]
    fn ids_are_read_as_they_are_written() {
        let id = ItemId::of_batch(0x1f, "00ab", 3);
        assert_eq!(id.to_string(), "000000000000001f/00ab.0003");
        assert_eq!(id.to_string().parse::<ItemId>().unwrap(), id);
        for text in [
            "",
            "1f/00ab.0003",
            "000000000000001F/x",
            "000000000000001f/",
            "000000000000001f/a/b",
            "+00000000000001f/x",
            "000000000000001f",
        ] {
            assert!(text.parse::<ItemId>().is_err(), "{text}");
        }
    }

    #[tokio::test]
    async fn keys_and_ranges() {
        let client = Client::new(MemStore::new());
        let log = SegmentedLog::new(client, KeySpace::of("log", "a"));
        let id = ItemId::of_batch(7, "b", 0);
        let key = log.key(&id);
        assert_eq!(log.item(key.as_bytes()), Some(id));
        assert_eq!(log.item(log.head_key().as_bytes()), None);
        for (range, within) in [
            (log.segment(7), true),
            (log.segment(6), false),
            (log.range(7, Some(8)), true),
            (log.range(7, None), true),
            (log.range(8, None), false),
            (log.range(0, Some(7)), false),
        ] {
            assert_eq!(range.contains(key.as_bytes()), within, "{range:?}");
        }
        assert!(!log.range(0, None).contains(log.head_key().as_bytes()));
    }
}
