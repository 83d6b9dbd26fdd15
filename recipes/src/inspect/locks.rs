//! Locks of all kinds, and elections: who has them, and who waits.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use quorate_proto::mvccpb::KeyValue;
use serde::Serialize;

use super::deadlock::{LIMIT, LockKind, LockName, edges};
use super::look::{Look, by_name};
use crate::error::Result;
use crate::keys::{Key, LeaseId};
use crate::lock::{Holder, weight};

/// A lock.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct LockInfo {
    /// Which.
    pub lock: LockName,
    /// Who has it, in the order in which they came.
    pub holders: Vec<Contention>,
    /// Who waits for it, in order. Those of a compare-and-swap lock leave no keys.
    pub waiters: Vec<Contention>,
    /// How many permits there are, of a semaphore.
    pub limit: Option<u32>,
    /// Keys among the contenders' that no contender can have put there: who comes to stand behind one is told
    /// [`Error::ForeignKey`](crate::Error::ForeignKey).
    pub foreign: Vec<Key>,
}

/// One who has a lock, or waits for it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Contention {
    /// Who, and since when.
    pub by: Holder,
    /// Whether together with others: a reader, or one with permits.
    pub shared: bool,
    /// How many permits of a semaphore; 1 for any other lock.
    pub permits: u32,
}

/// An election.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct ElectionInfo {
    /// Its name.
    pub name: String,
    /// Who stands, in order: the first one leads.
    pub candidates: Vec<Candidate>,
    /// Keys among the candidates' that no candidate can have put there.
    pub foreign: Vec<Key>,
}

/// One who stands in an election.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Candidate {
    /// Who.
    pub by: Holder,
    /// What it says of itself, as it is in the store; not shown as JSON where it is no text.
    #[serde(serialize_with = "as_text")]
    pub value: Bytes,
}

fn as_text<S: serde::Serializer>(value: &Bytes, serializer: S) -> Result<S::Ok, S::Error> {
    std::str::from_utf8(value).ok().serialize(serializer)
}

type Line = Vec<(String, KeyValue)>;

/// All locks.
pub(super) async fn locks(look: &Look) -> Result<Vec<LockInfo>> {
    let mut found = Vec::new();
    for kind in LockKind::ALL {
        let kvs = look.list_kind(kind.segment()).await?;
        for (name, line) in by_name(kind.segment(), kvs) {
            let lock = lock(look, LockName { kind, name }, line);
            // Only settings are left of others.
            if !lock.holders.is_empty() || !lock.waiters.is_empty() || !lock.foreign.is_empty() {
                found.push(lock);
            }
        }
    }
    Ok(found)
}

/// Takes those apart that can be contenders, in the order in which they came; the others are foreign.
fn sorted(line: Line) -> (Line, Vec<Key>) {
    let is_contender = |(rest, kv): &(String, KeyValue)| {
        let lease = LeaseId(kv.lease).to_string();
        kv.lease != 0 && (rest == "owner" || rest.split('/').any(|segment| segment == lease))
    };
    let (mut there, others): (Line, Line) = line.into_iter().partition(is_contender);
    there.sort_by_key(|(_, kv)| kv.create_revision);
    let foreign = others.into_iter().map(|(_, kv)| kv.key.into());
    (there, foreign.collect())
}

fn lock(look: &Look, lock: LockName, mut line: Line) -> LockInfo {
    let is_limit = |rest: &str| lock.kind == LockKind::Semaphore && rest == LIMIT;
    let limit = line.iter().position(|(rest, _)| is_limit(rest));
    let limit = limit.map(|index| line.remove(index));
    let (mut line, foreign) = sorted(line);
    let limit_of = |kv: &KeyValue| std::str::from_utf8(&kv.value).ok()?.parse().ok();
    let mut info = LockInfo {
        lock,
        holders: Vec::new(),
        waiters: Vec::new(),
        limit: limit.as_ref().and_then(|(_, kv)| limit_of(kv)),
        foreign,
    };
    let contenders = contenders(look, info.lock.kind, &line);
    line.extend(limit);
    let mut waits = Vec::new();
    edges(&info.lock, &line, &mut waits);
    let waiting = waits.iter().map(|edge| edge.waiter.create_revision);
    // Who stands at the door of a semaphore waits, if only to be let in.
    let at_door = line.iter().filter(|(rest, _)| rest.starts_with("door/"));
    let at_door = at_door.map(|(_, kv)| kv.create_revision);
    let waiting: BTreeSet<i64> = waiting.chain(at_door).collect();
    for contention in contenders {
        match waiting.contains(&contention.by.revision.0) {
            true => info.waiters.push(contention),
            false => info.holders.push(contention),
        }
    }
    info
}

/// Who stands in a line, in order; a writer of a read-write lock has two keys there.
fn contenders(look: &Look, kind: LockKind, line: &Line) -> Vec<Contention> {
    let mut found: BTreeMap<(i64, &str), Contention> = BTreeMap::new();
    for (rest, kv) in line {
        let (part, name) = match kind {
            LockKind::Mutex | LockKind::Exclusive => ("", rest.as_str()),
            LockKind::RwLock | LockKind::Semaphore => rest.split_once('/').unwrap_or(("", rest)),
        };
        let known = found.entry((kv.create_revision, name));
        let contention = known.or_insert_with(|| Contention {
            by: look.holder(kv),
            shared: matches!(kind, LockKind::RwLock | LockKind::Semaphore),
            permits: 1,
        });
        match (kind, part) {
            (LockKind::RwLock, "write") => contention.shared = false,
            (LockKind::Semaphore, _) => contention.permits = weight(kv).unwrap_or(1),
            _ => {}
        }
    }
    found.into_values().collect()
}

/// All elections.
pub(super) async fn elections(look: &Look) -> Result<Vec<ElectionInfo>> {
    let kvs = look.list_kind("election").await?;
    let each = by_name("election", kvs).into_iter().map(|(name, line)| {
        let (line, foreign) = sorted(line);
        let candidates = line.into_iter().map(|(_, kv)| Candidate {
            by: look.holder(&kv),
            value: kv.value,
        });
        ElectionInfo {
            name,
            candidates: candidates.collect(),
            foreign,
        }
    });
    Ok(each.collect())
}

impl LockInfo {
    /// How many permits are taken; of a lock that is none, how many have it.
    #[must_use]
    pub fn taken(&self) -> u64 {
        self.holders.iter().map(|one| u64::from(one.permits)).sum()
    }

    /// The contenders of one session.
    pub fn of_session(&self, lease: LeaseId) -> impl Iterator<Item = &Contention> {
        let all = self.holders.iter().chain(&self.waiters);
        all.filter(move |one| one.by.lease == lease)
    }
}
