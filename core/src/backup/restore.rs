//! A backup file into an empty store. Used by `node`, which puts a data folder around it.
//!
//! What is taken: the history from the compact revision on, with its revisions, and the leases. What is
//! not: how far raft was, members and their versions, and alarms, which speak of members that are
//! gone; whoever is out of space raises its own again. Users and roles are refused.

use std::collections::BTreeSet;
use std::sync::Arc;

use bytes::Bytes;
use prost::Message;
use quorate_proto::limits::{KEY_BYTES_MAX, LEASE_TTL_SECONDS_MAX};
use quorate_proto::mvccpb::KeyValue;

use super::buckets::{StoredLease, TOMBSTONE};
use super::source::{Source, SourceError};
use crate::apply::{epoch_in, lease_record, restored_mark};
use crate::lease::Lease;
use crate::mvcc::import::{Import, ImportError};
use crate::mvcc::{Error, Revision, meta};
use crate::storage::bbolt::{Bucket, ReadAt};
use crate::storage::kv::Kv;

/// Bytes of a revision in a key of bucket `key`, and of `meta`.
const REVISION_BYTES: usize = 17;

/// What was restored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Restored {
    /// The current revision.
    pub revision: i64,
    /// The compact revision; -1 if history was never compacted.
    pub compact_revision: i64,
    /// Keys there are now.
    pub keys: u64,
    /// Leases.
    pub leases: usize,
}

/// Fills `kv`, which is empty, from a backup, and marks it as restored. The same file and `bump` give
/// the same store. With `bump`, which is greater than 0, the current revision becomes as much greater,
/// and all history up to it counts as compacted: who goes on from a revision that was given out after
/// the backup is told so, and does not take other changes for those that followed. Nothing is synced.
/// Blocks.
///
/// # Errors
///
/// [`SourceError`]. The store is to be thrown away then.
pub fn restore<S: ReadAt>(
    source: &Source<S>,
    kv: &Arc<dyn Kv>,
    bump: Option<i64>,
) -> Result<Restored, SourceError> {
    let buckets = source.buckets()?;
    let bucket = |name: &str| {
        let found = buckets.iter().find(|(found, _)| found == name);
        found.map(|(_, bucket)| bucket)
    };
    refuse_users(source, &bucket)?;
    let compacted = bucket("meta").map_or(Ok(meta::NEVER_COMPACTED), |meta| {
        compact_revision(source, meta)
    })?;
    let leases = bucket("lease").map_or(Ok(Vec::new()), |bucket| leases(source, bucket))?;
    let granted: BTreeSet<i64> = leases.iter().map(|lease| lease.id).collect();

    let keep_from = if bump.is_some() { i64::MAX } else { compacted };
    let mut import = Import::new(Arc::clone(kv), compacted.max(0), keep_from, granted);
    for lease in &leases {
        let (key, record) = lease_record(lease);
        import.set(key, Some(record));
    }
    let mut revision = compacted.max(meta::FIRST_REVISION);
    for pair in source.pairs("key", bucket("key").expect("it is there, or no source")) {
        let (key, value) = pair?;
        let item = Item::of(&key, value).map_err(|what| source.content("key", what))?;
        revision = revision.max(item.revision.main);
        let taken = match item.change {
            Change::None => Ok(()),
            Change::Put(pair) => import.put(item.revision, pair),
            Change::Delete(key) => import.delete(item.revision, &key),
        };
        taken.map_err(|error| not_taken(source, error))?;
    }
    let (revision, compact_revision) = match bump {
        None => (revision, compacted),
        Some(bump) => {
            let bumped = revision
                .checked_add(bump)
                .filter(|bumped| *bumped < i64::MAX);
            let bumped = bumped.ok_or_else(|| {
                source.unsupported(format!(
                    "{bump} revisions more than {revision} are too many"
                ))
            })?;
            (bumped, bumped)
        }
    };
    let (key, mark) = restored_mark();
    import.set(key, Some(mark));
    let keys = import
        .finish(revision, compact_revision)
        .map_err(|error| not_taken(source, error))?;
    check_epoch(source, kv)?;
    Ok(Restored {
        revision,
        compact_revision,
        keys,
        leases: leases.len(),
    })
}

fn not_taken<S: ReadAt>(source: &Source<S>, error: ImportError) -> SourceError {
    match error {
        ImportError::Storage(error) => error.into(),
        ImportError::Inconsistent { .. } => source.content("key", error.to_string()),
    }
}

/// One more must be possible.
fn check_epoch<S: ReadAt>(source: &Source<S>, kv: &Arc<dyn Kv>) -> Result<(), SourceError> {
    match epoch_in(&*kv.view()) {
        Ok(u64::MAX) => Err(source.unsupported(
            "the epoch of its fencing tokens is the largest possible, so that no later token can be \
             told from an earlier one",
        )),
        Ok(_) => Ok(()),
        Err(Error::Storage(error)) => Err(error.into()),
        Err(error @ Error::Refused(_)) => Err(source.content("key", error.to_string())),
    }
}

/// An etcd whose users are left out is open to everyone.
fn refuse_users<'a, S: ReadAt>(
    source: &Source<S>,
    bucket: &impl Fn(&str) -> Option<&'a Bucket>,
) -> Result<(), SourceError> {
    for name in ["auth", "authUsers", "authRoles"] {
        let Some(bucket) = bucket(name) else {
            continue;
        };
        for pair in source.pairs(name, bucket) {
            let (key, value) = pair?;
            let is_enabled = &*key == b"authEnabled" && value.first() == Some(&1);
            if is_enabled || name != "auth" {
                return Err(source.unsupported(
                    "it has users or roles, which this version does not have: without them the \
                     restored cluster would be open to everyone. Disable authentication and delete \
                     all users and roles before the backup",
                ));
            }
        }
    }
    Ok(())
}

/// The revision that history was last asked to be compacted at, whether that was finished or not: from
/// there on everything is there.
fn compact_revision<S: ReadAt>(source: &Source<S>, meta: &Bucket) -> Result<i64, SourceError> {
    let mut compacted = meta::NEVER_COMPACTED;
    for pair in source.pairs("meta", meta) {
        let (key, value) = pair?;
        if matches!(&*key, b"scheduledCompactRev" | b"finishedCompactRev") {
            let revision = revision_of(&value).ok_or_else(|| {
                let what = format!("{value:02x?} as the compact revision");
                source.content("meta", what)
            })?;
            compacted = compacted.max(revision.main);
        }
    }
    Ok(compacted)
}

fn leases<S: ReadAt>(source: &Source<S>, bucket: &Bucket) -> Result<Vec<Lease>, SourceError> {
    let leases = source.pairs("lease", bucket).map(|pair| {
        let (key, value) = pair?;
        let lease = lease_of(&key, &value);
        lease.ok_or_else(|| source.content("lease", format!("lease {key:02x?} is damaged")))
    });
    leases.collect()
}

fn lease_of(key: &[u8], value: &[u8]) -> Option<Lease> {
    let id = i64::from_be_bytes(key.try_into().ok()?);
    let stored = StoredLease::decode(value).ok()?;
    let is_possible = id != 0
        && stored.id == id
        && (1..=LEASE_TTL_SECONDS_MAX).contains(&stored.ttl)
        && (0..=LEASE_TTL_SECONDS_MAX).contains(&stored.remaining_ttl);
    is_possible.then_some(Lease {
        id,
        granted_ttl_seconds: stored.ttl,
        remaining_ttl_seconds: stored.remaining_ttl,
        granted_at: 0,
    })
}

/// An item of bucket `key`.
struct Item {
    revision: Revision,
    change: Change,
}

enum Change {
    /// Nothing but a revision that was skipped: what `etcdutl snapshot restore --bump-revision` leaves.
    None,
    Put(KeyValue),
    Delete(Bytes),
}

impl Item {
    fn of(key: &[u8], value: Bytes) -> Result<Self, String> {
        let damaged = || format!("{key:02x?} is no revision");
        let (revision, mark) = key.split_at_checked(REVISION_BYTES).ok_or_else(damaged)?;
        let revision = revision_of(revision).ok_or_else(damaged)?;
        let is_tombstone = match mark {
            [] => false,
            [TOMBSTONE] => true,
            _ => return Err(damaged()),
        };
        if value.is_empty() && !is_tombstone {
            let change = Change::None;
            return Ok(Self { revision, change });
        }
        let pair = KeyValue::decode(value)
            .map_err(|error| format!("revision {revision}: no pair: {error}"))?;
        if pair.key.is_empty() || pair.key.len() > KEY_BYTES_MAX {
            return Err(format!(
                "revision {revision}: a key of {} bytes (1 to {KEY_BYTES_MAX} are possible)",
                pair.key.len()
            ));
        }
        let change = if is_tombstone {
            Change::Delete(pair.key)
        } else {
            Change::Put(pair)
        };
        Ok(Self { revision, change })
    }
}

/// A revision as etcd writes it: 8 bytes, `_`, 8 bytes.
fn revision_of(bytes: &[u8]) -> Option<Revision> {
    let (main, rest) = bytes.split_first_chunk()?;
    let sub = rest.strip_prefix(b"_")?.try_into().ok()?;
    let (main, sub) = (i64::from_be_bytes(*main), i64::from_be_bytes(sub));
    (main >= 0 && sub >= 0).then_some(Revision::new(main, sub))
}
