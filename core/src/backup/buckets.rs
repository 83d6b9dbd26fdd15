//! etcd's buckets, in order of their names, as a member of etcd's 3.5 line keeps them: what 3.4 does
//! not know it does not look at, and later lines take such a file and bring it up to date.

use prost::Message;
use quorate_proto::etcdserverpb::AlarmMember;
use serde::Serialize;

use super::revisions::Revisions;
use super::{Backup, BackupError, Detail, Member};
use crate::apply;
use crate::mvcc::{Revision, meta};
use crate::storage::bbolt::{Layout, Value, Writer};
use crate::storage::codec::{self, Table};
use crate::storage::kv::Direction;

/// The line of etcd whose buckets these are.
pub const SCHEMA_VERSION: &str = "3.5.0";
/// Mark of a deletion, after its revision.
pub(super) const TOMBSTONE: u8 = b't';
/// Revision of the auth store before anything was changed in it.
const FIRST_AUTH_REVISION: u64 = 1;
/// What etcd notes of a member that was removed.
const REMOVED: &[u8] = b"removed";

/// Takes the pages written so far out of the buffer it is given.
type Take<'a> = &'a mut dyn FnMut(&mut Vec<u8>) -> Result<(), BackupError>;

/// A member as etcd stores it.
#[derive(Serialize)]
struct MemberJson<'a> {
    id: u64,
    #[serde(rename = "peerURLs")]
    peer_urls: &'a [String],
    #[serde(rename = "isLearner", skip_serializing_if = "std::ops::Not::not")]
    is_learner: bool,
    #[serde(skip_serializing_if = "str::is_empty")]
    name: &'a str,
    #[serde(rename = "clientURLs", skip_serializing_if = "<[_]>::is_empty")]
    client_urls: &'a [String],
}

/// The raft membership as etcd stores it.
#[derive(Serialize)]
struct ConfStateJson {
    voters: Vec<u64>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    learners: Vec<u64>,
    auto_leave: bool,
}

/// A lease as etcd stores it.
#[derive(Clone, PartialEq, Message)]
pub(super) struct StoredLease {
    #[prost(int64, tag = "1")]
    pub(super) id: i64,
    #[prost(int64, tag = "2")]
    pub(super) ttl: i64,
    #[prost(int64, tag = "3")]
    pub(super) remaining_ttl: i64,
}

/// Writes all buckets.
pub(super) fn write(
    backup: &Backup,
    detail: Detail,
    take: Take<'_>,
) -> Result<Layout, BackupError> {
    let mut writer = Writer::new();
    alarms(backup, &mut writer)?;
    auth(backup, &mut writer)?;
    writer.bucket(b"cluster")?;
    writer.put(b"clusterVersion", Value::Bytes(SCHEMA_VERSION.as_bytes()))?;
    keys(backup, &mut writer, detail, take)?;
    leases(backup, &mut writer)?;
    members(backup, &mut writer)?;
    meta(backup, &mut writer)?;
    let layout = writer.finish()?;
    take(writer.written())?;
    Ok(layout)
}

/// The alarm is all in the key.
fn alarms(backup: &Backup, writer: &mut Writer) -> Result<(), BackupError> {
    let alarms = apply::alarms_in(&*backup.view)?;
    let stored = alarms
        .into_iter()
        .map(|alarm| AlarmMember::from(alarm).encode_to_vec());
    let mut stored: Vec<_> = stored.collect();
    stored.sort_unstable();
    writer.bucket(b"alarm")?;
    for key in stored {
        writer.put(&key, Value::Bytes(&[]))?;
    }
    Ok(())
}

/// Without users: as of an auth store that nobody has touched.
fn auth(backup: &Backup, writer: &mut Writer) -> Result<(), BackupError> {
    let (start, end) = codec::table_bounds(Table::Auth);
    if let Some(found) = backup.view.range(start, end, Direction::Forward).next() {
        found?;
        return Err(BackupError::Unsupported("users and roles"));
    }
    writer.bucket(b"auth")?;
    writer.put(
        b"authRevision",
        Value::Bytes(&FIRST_AUTH_REVISION.to_be_bytes()),
    )?;
    writer.bucket(b"authRoles")?;
    writer.bucket(b"authUsers")?;
    Ok(())
}

/// The history: by revision, the pair that was put or the key that was deleted.
fn keys(
    backup: &Backup,
    writer: &mut Writer,
    detail: Detail,
    take: Take<'_>,
) -> Result<(), BackupError> {
    writer.bucket(b"key")?;
    let mut revisions = Revisions::new(backup, detail)?;
    while let Some(item) = revisions.next()? {
        let revision = stored_revision(item.revision);
        let (live, dead) = (&revision[..17], &revision[..]);
        let key = if item.is_tombstone { dead } else { live };
        writer.put(key, item.pair.as_value())?;
        if !writer.written().is_empty() {
            take(writer.written())?;
        }
    }
    Ok(())
}

/// A revision as etcd writes it, big-endian, and the mark of a deletion after it.
fn stored_revision(revision: Revision) -> [u8; 18] {
    let mut stored = [0; 18];
    stored[..8].copy_from_slice(&revision.main.to_be_bytes());
    stored[8] = b'_';
    stored[9..17].copy_from_slice(&revision.sub.to_be_bytes());
    stored[17] = TOMBSTONE;
    stored
}

/// etcd orders ids as if they had no sign. The keys of a lease are found through their pairs.
fn leases(backup: &Backup, writer: &mut Writer) -> Result<(), BackupError> {
    let mut leases = apply::leases_in(&*backup.view)?;
    leases.sort_unstable_by_key(|lease| lease.id.cast_unsigned());
    writer.bucket(b"lease")?;
    for lease in leases {
        let stored = StoredLease {
            id: lease.id,
            ttl: lease.granted_ttl_seconds,
            remaining_ttl: lease.remaining_ttl_seconds,
        };
        let value = stored.encode_to_vec();
        writer.put(&lease.id.to_be_bytes(), Value::Bytes(&value))?;
    }
    Ok(())
}

fn members(backup: &Backup, writer: &mut Writer) -> Result<(), BackupError> {
    let mut stored: Vec<_> = backup
        .members
        .iter()
        .map(|member| (format!("{:x}", member.id), json(&member_json(member))))
        .collect();
    stored.sort_unstable();
    writer.bucket(b"members")?;
    for (id, member) in &stored {
        writer.put(id.as_bytes(), Value::Bytes(member))?;
    }
    let mut removed: Vec<_> = backup.removed.iter().map(|id| format!("{id:x}")).collect();
    removed.sort_unstable();
    writer.bucket(b"members_removed")?;
    for id in removed {
        writer.put(id.as_bytes(), Value::Bytes(REMOVED))?;
    }
    Ok(())
}

fn member_json(member: &Member) -> MemberJson<'_> {
    MemberJson {
        id: member.id,
        peer_urls: &member.peer_urls,
        is_learner: !member.is_voter,
        name: &member.name,
        client_urls: &member.client_urls,
    }
}

fn json(value: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec(value).expect("numbers, texts and lists have a JSON form")
}

/// How far the state is. Whoever restores sets index, term and membership anew.
fn meta(backup: &Backup, writer: &mut Writer) -> Result<(), BackupError> {
    let (applied, _) = apply::applied_in(&*backup.view)?;
    let compacted = meta::compact_revision(&*backup.view)?;
    let ids = |voters| {
        let members = backup
            .members
            .iter()
            .filter(move |member| member.is_voter == voters);
        members.map(|member| member.id).collect()
    };
    let membership = ConfStateJson {
        voters: ids(true),
        learners: ids(false),
        auto_leave: false,
    };
    writer.bucket(b"meta")?;
    writer.put(b"confState", Value::Bytes(&json(&membership)))?;
    if let Some(applied) = applied {
        writer.put(
            b"consistent_index",
            Value::Bytes(&applied.index.to_be_bytes()),
        )?;
    }
    if compacted >= 0 {
        // Everything before it is left out, so the compaction is done.
        let revision = stored_revision(Revision::new(compacted, 0));
        for name in [b"finishedCompactRev".as_slice(), b"scheduledCompactRev"] {
            writer.put(name, Value::Bytes(&revision[..17]))?;
        }
    }
    if let Some(applied) = applied {
        writer.put(b"term", Value::Bytes(&applied.term.to_be_bytes()))?;
    }
    Ok(())
}
