//! Keys of all tables, and the bounds of scans over them.
//!
//! In `versions` something follows the user key, so it is escaped to keep the order: `00` becomes
//! `00 ff`, and `00 01` ends it. The end sorts before every continuation, so all versions of a key
//! come before those of a longer one.

use std::ops::Bound;

use bytes::{BufMut, Bytes, BytesMut};

use super::Revision;
use crate::storage::kv::KvError;

const ESCAPED_ZERO: [u8; 2] = [0x00, 0xff];
const TERMINATOR: [u8; 2] = [0x00, 0x01];
/// Sorts after every version of a key and before those of the next.
const AFTER_TERMINATOR: [u8; 2] = [0x00, 0x02];
const REVISION_BYTES: usize = 16;

/// A pair of bounds over stored keys.
type Bounds = (Bound<Bytes>, Bound<Bytes>);

/// The tables; the number is the first byte of their keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Table {
    /// Current pairs by user key.
    Keys = 1,
    /// Replaced and deleted pairs by user key, newest first.
    Versions = 2,
    /// Events by revision.
    Events = 3,
    /// Leases by id.
    Leases = 4,
    /// Keys attached to leases.
    LeaseKeys = 5,
    /// Users, roles and the auth switch.
    Auth = 6,
    /// Single facts about the store.
    Meta = 7,
    /// Members of the cluster.
    Members = 8,
    /// Alarms raised.
    Alarms = 9,
}

impl Table {
    const fn byte(self) -> u8 {
        self as u8
    }

    /// Whether a stored key is one of this table.
    #[must_use]
    pub fn holds(self, key: &[u8]) -> bool {
        key.first() == Some(&self.byte())
    }
}

/// Names in table `meta`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MetaKey {
    /// Id of the last log entry applied; the raft layer's encoding.
    Applied,
    /// Membership as of [`MetaKey::Applied`]; the raft layer's encoding.
    Membership,
    /// Log id of the snapshot this store was installed from, if it was.
    Installed,
    /// Current main revision, a number; absent in a fresh store.
    CurrentRevision,
    /// Compact revision, a number; absent before any compaction.
    CompactRevision,
    /// How far old history is removed physically.
    CompactionProgress,
    /// Highest log index whose cluster-level change is in the store.
    ConsistentIndex,
    /// Present in a state that was restored from a backup, until clients are let in.
    Restored,
}

impl MetaKey {
    fn name(self) -> &'static [u8] {
        match self {
            MetaKey::Applied => b"applied",
            MetaKey::Membership => b"membership",
            MetaKey::Installed => b"installed",
            MetaKey::CurrentRevision => b"current_revision",
            MetaKey::CompactRevision => b"compact_revision",
            MetaKey::CompactionProgress => b"compaction_progress",
            MetaKey::ConsistentIndex => b"consistent_index",
            MetaKey::Restored => b"restored",
        }
    }
}

fn joined(table: Table, parts: &[&[u8]]) -> Bytes {
    let length: usize = parts.iter().map(|part| part.len()).sum();
    let mut key = BytesMut::with_capacity(1 + length);
    key.put_u8(table.byte());
    for part in parts {
        key.put_slice(part);
    }
    key.freeze()
}

/// Everything in a table.
#[must_use]
pub fn table_bounds(table: Table) -> Bounds {
    (Bound::Included(joined(table, &[])), table_end(table))
}

fn table_end(table: Table) -> Bound<Bytes> {
    Bound::Excluded(Bytes::copy_from_slice(&[table.byte() + 1]))
}

/// Key in `keys` of a user key.
#[must_use]
pub fn key_key(user_key: &[u8]) -> Bytes {
    joined(Table::Keys, &[user_key])
}

/// The user key of a key in `keys`, sharing its memory.
#[must_use]
pub fn user_key_of_key(key: &Bytes) -> Bytes {
    key.slice(1..)
}

/// Bounds in `keys` of bounds over user keys.
#[must_use]
pub fn key_bounds(start: Bound<&[u8]>, end: Bound<&[u8]>) -> Bounds {
    let start = match start {
        Bound::Unbounded => Bound::Included(key_key(&[])),
        _ => start.map(key_key),
    };
    let end = match end {
        Bound::Unbounded => table_end(Table::Keys),
        _ => end.map(key_key),
    };
    (start, end)
}

/// Table byte and escaped user key, with room for `more` bytes.
fn escaped(user_key: &[u8], more: usize) -> BytesMut {
    let zeros = user_key.iter().filter(|byte| **byte == 0).count();
    let mut key = BytesMut::with_capacity(1 + user_key.len() + zeros + more);
    key.put_u8(Table::Versions.byte());
    let mut parts = user_key.split(|byte| *byte == 0);
    // A split gives one part more than there are separators, so at least one.
    key.put_slice(parts.next().unwrap_or_default());
    for part in parts {
        key.put_slice(&ESCAPED_ZERO);
        key.put_slice(part);
    }
    key
}

fn put_inverted(key: &mut BytesMut, revision: Revision) {
    key.put_u64(!revision.main.cast_unsigned());
    key.put_u64(!revision.sub.cast_unsigned());
}

/// Key in `versions` of the pair that `user_key` had from `revision` on.
#[must_use]
pub fn version_key(user_key: &[u8], revision: Revision) -> Bytes {
    let mut key = escaped(user_key, TERMINATOR.len() + REVISION_BYTES);
    key.put_slice(&TERMINATOR);
    put_inverted(&mut key, revision);
    key.freeze()
}

/// The user key and revision of a key in `versions`.
///
/// # Errors
///
/// [`KvError::Corrupt`] if it is none.
pub fn version_of(key: &[u8]) -> Result<(Bytes, Revision), KvError> {
    let bad = || KvError::corrupt(format!("key {key:02x?} in versions"));
    let body = key
        .strip_prefix(&[Table::Versions.byte()])
        .ok_or_else(bad)?;
    let split = body.len().checked_sub(REVISION_BYTES).ok_or_else(bad)?;
    let (escaped, revision) = body.split_at(split);
    let mut rest = escaped.strip_suffix(&TERMINATOR).ok_or_else(bad)?;
    let mut user_key = BytesMut::with_capacity(rest.len());
    while let Some(zero) = rest.iter().position(|byte| *byte == 0) {
        user_key.put_slice(&rest[..=zero]);
        rest = rest[zero..].strip_prefix(&ESCAPED_ZERO).ok_or_else(bad)?;
    }
    user_key.put_slice(rest);
    let inverted = read_revision(revision).ok_or_else(bad)?;
    let revision = Revision::new(!inverted.main, !inverted.sub);
    Ok((user_key.freeze(), revision))
}

/// Bounds in `versions` of bounds over user keys: all versions of all of them.
#[must_use]
pub fn version_bounds(start: Bound<&[u8]>, end: Bound<&[u8]>) -> Bounds {
    let before = |user_key| escaped(user_key, 0).freeze();
    let after = |user_key| {
        let mut key = escaped(user_key, AFTER_TERMINATOR.len());
        key.put_slice(&AFTER_TERMINATOR);
        key.freeze()
    };
    let start = match start {
        Bound::Included(user_key) => before(user_key),
        Bound::Excluded(user_key) => after(user_key),
        Bound::Unbounded => joined(Table::Versions, &[]),
    };
    let end = match end {
        Bound::Included(user_key) => Bound::Excluded(after(user_key)),
        Bound::Excluded(user_key) => Bound::Excluded(before(user_key)),
        Bound::Unbounded => table_end(Table::Versions),
    };
    (Bound::Included(start), end)
}

/// Bounds in `versions` of those of one user key that began at main revision `main` or before;
/// the newest comes first.
#[must_use]
pub fn versions_until(user_key: &[u8], main: i64) -> Bounds {
    let start = version_key(user_key, Revision::new(main, i64::MAX));
    let (_, end) = version_bounds(Bound::Unbounded, Bound::Included(user_key));
    (Bound::Included(start), end)
}

/// Key in `events` of the record whose first event has this revision.
#[must_use]
pub fn event_key(revision: Revision) -> Bytes {
    joined(
        Table::Events,
        &[&revision.main.to_be_bytes(), &revision.sub.to_be_bytes()],
    )
}

/// The revision of a key in `events`.
///
/// # Errors
///
/// [`KvError::Corrupt`] if it is none.
pub fn event_revision(key: &[u8]) -> Result<Revision, KvError> {
    let body = key.strip_prefix(&[Table::Events.byte()]);
    let revision = body.and_then(read_revision);
    revision.ok_or_else(|| KvError::corrupt(format!("key {key:02x?} in events")))
}

fn read_revision(bytes: &[u8]) -> Option<Revision> {
    let (main, sub) = bytes.split_first_chunk::<8>()?;
    let sub: [u8; 8] = sub.try_into().ok()?;
    Some(Revision::new(
        i64::from_be_bytes(*main),
        i64::from_be_bytes(sub),
    ))
}

/// Big-endian with the sign bit flipped: orders as signed numbers do.
fn signed(id: i64) -> [u8; 8] {
    (id.cast_unsigned() ^ (1 << 63)).to_be_bytes()
}

/// Key in `leases`.
#[must_use]
pub fn lease_key(lease: i64) -> Bytes {
    joined(Table::Leases, &[&signed(lease)])
}

/// The lease id of a key in `leases` or `lease_keys`.
///
/// # Errors
///
/// [`KvError::Corrupt`] if it is too short.
pub fn lease_of(key: &[u8]) -> Result<i64, KvError> {
    let id = key.get(1..).and_then(<[u8]>::first_chunk::<8>);
    let id = id.ok_or_else(|| KvError::corrupt(format!("key {key:02x?} of a lease")))?;
    Ok((u64::from_be_bytes(*id) ^ (1 << 63)).cast_signed())
}

/// Key in `lease_keys`: `user_key` is attached to `lease`.
#[must_use]
pub fn lease_key_key(lease: i64, user_key: &[u8]) -> Bytes {
    joined(Table::LeaseKeys, &[&signed(lease), user_key])
}

/// The user key of a key in `lease_keys`, sharing its memory.
///
/// # Errors
///
/// [`KvError::Corrupt`] if it is too short.
pub fn user_key_of_lease_key(key: &Bytes) -> Result<Bytes, KvError> {
    lease_of(key)?;
    Ok(key.slice(9..))
}

/// Bounds in `lease_keys` of the keys attached to `lease`.
#[must_use]
pub fn lease_key_bounds(lease: i64) -> Bounds {
    let start = Bound::Included(lease_key_key(lease, &[]));
    match lease.checked_add(1) {
        Some(next) => (start, Bound::Excluded(lease_key_key(next, &[]))),
        None => (start, table_end(Table::LeaseKeys)),
    }
}

/// Key in `auth`; what follows the table is the auth store's.
#[must_use]
pub fn auth_key(name: &[u8]) -> Bytes {
    joined(Table::Auth, &[name])
}

/// Key in `meta`.
#[must_use]
pub fn meta_key(name: MetaKey) -> Bytes {
    joined(Table::Meta, &[name.name()])
}

/// Key in `members`.
#[must_use]
pub fn member_key(member: u64) -> Bytes {
    joined(Table::Members, &[&member.to_be_bytes()])
}

/// Key in `alarms`: `alarm` (its number on the wire) raised for `member`.
#[must_use]
pub fn alarm_key(member: u64, alarm: i32) -> Bytes {
    joined(
        Table::Alarms,
        &[&member.to_be_bytes(), &alarm.to_be_bytes()],
    )
}
