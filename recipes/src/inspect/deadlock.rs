//! Who waits for whom, over all locks, as it stood at one revision; and circles in it.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt;
use std::time::Duration;

use petgraph::Direction;
use petgraph::algo::tarjan_scc;
use petgraph::graph::{DiGraph, EdgeIndex, NodeIndex};
use petgraph::visit::EdgeRef;
use quorate_proto::mvccpb::KeyValue;
use serde::Serialize;

use super::Inspect;
use super::look::{by_name, whole_kind};
use crate::error::Result;
use crate::keys::Revision;
use crate::lock::{Holder, introduced, weight};

/// Time between two looks at the same circle.
const BETWEEN_LOOKS: Duration = Duration::from_millis(200);

/// A kind of lock.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum LockKind {
    /// A [`Mutex`](crate::lock::Mutex), or one of a [`MultiLock`](crate::lock::MultiLock).
    Mutex,
    /// A [`RwLock`](crate::lock::RwLock).
    RwLock,
    /// A [`Semaphore`](crate::lock::Semaphore).
    Semaphore,
    /// An [`ExclusiveLock`](crate::lock::ExclusiveLock), whose waiters leave no keys.
    Exclusive,
}

impl LockKind {
    pub(super) const ALL: [Self; 4] = [Self::Mutex, Self::RwLock, Self::Semaphore, Self::Exclusive];

    /// The name that the kind's keys have.
    pub(super) fn segment(self) -> &'static str {
        match self {
            Self::Exclusive => "exclusive",
            Self::Mutex => "lock",
            Self::RwLock => "rwlock",
            Self::Semaphore => "semaphore",
        }
    }
}

/// What follows a semaphore's name in the key of its limit.
pub(super) const LIMIT: &str = "limit";

/// One lock.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct LockName {
    /// Its kind.
    pub kind: LockKind,
    /// The name its user gave it.
    pub name: String,
}

impl fmt::Display for LockName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.kind.segment(), self.name)
    }
}

/// One contender waits for another one.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Wait {
    /// Who waits, and since when.
    pub waiter: Holder,
    /// For what.
    pub lock: LockName,
    /// Who stands before it, or holds it.
    pub holder: Holder,
}

impl fmt::Display for Wait {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} waits for {} of {}",
            self.waiter, self.lock, self.holder
        )
    }
}

/// A circle of waits: each waits for the next one, the last for the first.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Deadlock {
    /// The waits, in a circle.
    pub waits: Vec<Wait>,
    /// Whether it cannot end by itself, unless somebody has set a limit to its wait, which the store does not
    /// know of. It can if one of the owners is a session whose tasks are not told apart
    /// ([`Session::for_task`](crate::Session::for_task)), since another task may release what this one waits
    /// for; if one waits for several things at a time, since any of them may come first; or if somebody
    /// waits for any one of several permits.
    pub certain: bool,
    /// The revision at which it stood.
    pub revision: Revision,
}

/// Who can release: a task of a session, or a session that does not name its tasks.
type Owner = (i64, Option<String>);

pub(super) struct Edge {
    pub(super) waiter: KeyValue,
    holder: KeyValue,
    lock: LockName,
    /// Whether the wait ends only when this very holder goes.
    only: bool,
}

impl Edge {
    /// Whether the same contenders wait for each other.
    fn is_same(&self, other: &Self) -> bool {
        let mark = |kv: &KeyValue| (kv.key.clone(), kv.create_revision);
        let marks = |edge: &Self| (mark(&edge.waiter), mark(&edge.holder));
        marks(self) == marks(other)
    }
}

impl Inspect {
    /// The circles of waits among all locks: mutexes, read-write locks and semaphores of this library,
    /// under whatever session; not those under literal prefixes ([`Name::Raw`](crate::Name::Raw)), nor
    /// compare-and-swap locks, whose waiters leave no keys. Of locks that are entangled in several
    /// circles, one circle is told. Tasks of one session that are not told apart wait for each other all
    /// the time: circles among them alone are not told.
    ///
    /// A circle is told if the same contenders stood in it at two looks, a moment apart: one whose release
    /// is on its way is no contender any more a moment later. At the revision that is named it stood as
    /// told. It reads the keys of all locks, twice where there are circles.
    ///
    /// # Errors
    /// The store's; [`StoreError::Compacted`](crate::StoreError::Compacted) when the revision was
    /// compacted during the reads: ask again.
    pub async fn deadlocks(&self) -> Result<Vec<Deadlock>> {
        let (_, first) = self.waits().await?;
        if circles(&first).is_empty() {
            return Ok(Vec::new());
        }
        tokio::time::sleep(BETWEEN_LOOKS).await;
        let (revision, waits) = self.waits().await?;
        let stood = |edge: &Edge| first.iter().any(|other| other.is_same(edge));
        let mut found = Vec::new();
        for circle in circles(&waits) {
            if circle.iter().all(|edge| stood(edge)) {
                let alone = circle
                    .iter()
                    .all(|edge| waits_once(&waits, &owner(&edge.waiter)));
                found.push(self.tell(&circle, alone, revision).await?);
            }
        }
        Ok(found)
    }

    /// Who waits for whom, at one revision.
    async fn waits(&self) -> Result<(Revision, Vec<Edge>)> {
        let mut waits = Vec::new();
        let mut at = Revision(0);
        for kind in LockKind::ALL {
            let range = whole_kind(kind.segment());
            let (revision, kvs) = self.client.list_at(range, at).await?;
            at = revision;
            for (name, mut line) in by_name(kind.segment(), kvs) {
                line.retain(|(rest, kv)| kv.lease != 0 || rest == LIMIT);
                line.sort_by_key(|(_, kv)| kv.create_revision);
                edges(&LockName { kind, name }, &line, &mut waits);
            }
        }
        Ok((at, waits))
    }

    /// `alone`: none of those in the circle waits for anything else.
    async fn tell(&self, circle: &[&Edge], alone: bool, revision: Revision) -> Result<Deadlock> {
        let waiters = introduced(&self.client, circle.iter().map(|edge| &edge.waiter)).await?;
        let holders = introduced(&self.client, circle.iter().map(|edge| &edge.holder)).await?;
        let certain = alone
            && waiters.iter().all(|waiter| waiter.task.is_some())
            && circle.iter().all(|edge| edge.only);
        let each = circle.iter().zip(waiters).zip(holders);
        Ok(Deadlock {
            waits: each
                .map(|((edge, waiter), holder)| Wait {
                    waiter,
                    lock: edge.lock.clone(),
                    holder,
                })
                .collect(),
            certain,
            revision,
        })
    }
}

/// Adds who waits for whom in one lock. A contender that waits for one that waits itself is told as
/// waiting for that one only.
pub(super) fn edges(lock: &LockName, line: &[(String, KeyValue)], waits: &mut Vec<Edge>) {
    let mut add = |waiter: &KeyValue, holder: &KeyValue, only: bool| {
        waits.push(Edge {
            waiter: waiter.clone(),
            holder: holder.clone(),
            lock: lock.clone(),
            only,
        });
    };
    let under = |part: &str| -> Vec<(&str, &KeyValue)> {
        let inside = line.iter().filter_map(|(rest, kv)| {
            let name = rest.strip_prefix(part)?.strip_prefix('/')?;
            Some((name, kv))
        });
        inside.collect()
    };
    match lock.kind {
        LockKind::Exclusive => {}
        LockKind::Mutex => {
            for pair in line.windows(2) {
                add(&pair[1].1, &pair[0].1, true);
            }
        }
        LockKind::RwLock => {
            let writers = under("write");
            // Those that a writer to come would wait for: the last writer and all after it.
            let mut ahead: Vec<&KeyValue> = Vec::new();
            for (name, kv) in under("read") {
                let created = kv.create_revision;
                let asked_to_write = writers
                    .iter()
                    .any(|(writer, twin)| *writer == name && twin.create_revision == created);
                if asked_to_write {
                    ahead.drain(..).for_each(|holder| add(kv, holder, true));
                } else {
                    // Also for one that asked to read and has become a writer since.
                    let before =
                        |(_, writer): &&(&str, &KeyValue)| writer.create_revision < created;
                    let last = writers.iter().rfind(before);
                    last.into_iter()
                        .for_each(|(_, writer)| add(kv, writer, true));
                }
                ahead.push(kv);
            }
        }
        LockKind::Semaphore => {
            let (door, permits) = (under("door"), under("permit"));
            for pair in door.windows(2) {
                add(pair[1].1, pair[0].1, true);
            }
            let limit = line.iter().find(|(rest, _)| rest == LIMIT);
            let limit = limit.and_then(|(_, kv)| std::str::from_utf8(&kv.value).ok()?.parse().ok());
            if let (Some((_, first)), Some(limit)) = (door.first(), limit) {
                let number = |kv: &KeyValue| i64::from(weight(kv).unwrap_or(1));
                let (wanted, limit): (i64, i64) = (number(first), limit);
                let out: i64 = permits.iter().map(|(_, permit)| number(permit)).sum();
                for (_, permit) in &permits {
                    if out + wanted > limit {
                        // Without this one there is no room, whoever else gives permits back.
                        add(first, permit, number(permit) + wanted > limit);
                    }
                }
            }
        }
    }
}

fn owner(kv: &KeyValue) -> Owner {
    (kv.lease, Holder::of(kv).task)
}

/// Whether there is one thing that this owner waits for: one contender, in however many lines.
fn waits_once(waits: &[Edge], of: &Owner) -> bool {
    let own = waits.iter().filter(|edge| owner(&edge.waiter) == *of);
    let contenders: BTreeSet<i64> = own.map(|edge| edge.waiter.create_revision).collect();
    contenders.len() == 1
}

/// One circle of each knot of waits.
fn circles(waits: &[Edge]) -> Vec<Vec<&Edge>> {
    let mut graph: DiGraph<Owner, usize> = DiGraph::new();
    let mut nodes: BTreeMap<Owner, NodeIndex> = BTreeMap::new();
    for (index, edge) in waits.iter().enumerate() {
        let mut node = |owner: Owner| {
            let known = nodes.entry(owner);
            *known.or_insert_with_key(|owner| graph.add_node(owner.clone()))
        };
        let (from, to) = (owner(&edge.waiter), owner(&edge.holder));
        // Tasks that are not told apart wait for each other all the time.
        if from == to && from.1.is_none() {
            continue;
        }
        let (from, to) = (node(from), node(to));
        graph.add_edge(from, to, index);
    }
    let knots = tarjan_scc(&graph).into_iter();
    let mut found: Vec<Vec<&Edge>> = knots
        .filter_map(|knot| circle(&graph, &knot))
        .map(|circle| circle.into_iter().map(|edge| &waits[graph[edge]]).collect())
        .collect();
    found.sort_by_key(|circle| circle.iter().map(|edge| edge.waiter.create_revision).min());
    found
}

/// A shortest way from the first node of `knot` back to it; `None` when it is alone.
fn circle(graph: &DiGraph<Owner, usize>, knot: &[NodeIndex]) -> Option<Vec<EdgeIndex>> {
    let start = *knot.iter().min()?;
    let mut came_by: BTreeMap<NodeIndex, EdgeIndex> = BTreeMap::new();
    let mut next = VecDeque::from([start]);
    while let Some(node) = next.pop_front() {
        for edge in graph.edges_directed(node, Direction::Outgoing) {
            let to = edge.target();
            if !knot.contains(&to) || came_by.contains_key(&to) {
                continue;
            }
            came_by.insert(to, edge.id());
            next.push_back(to);
        }
    }
    let mut way = Vec::new();
    let mut node = start;
    loop {
        let edge = *came_by.get(&node)?;
        way.push(edge);
        (node, _) = graph.edge_endpoints(edge)?;
        if node == start {
            way.reverse();
            return Some(way);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keys::LeaseId;

    fn kv(lease: i64, task: &str, created: i64) -> KeyValue {
        let value = match task {
            "" => r#"{"v":1,"since_ms":0}"#.to_owned(),
            task => format!(r#"{{"v":1,"since_ms":0,"task":"{task}"}}"#),
        };
        KeyValue {
            lease,
            create_revision: created,
            value: value.into(),
            key: format!("{}/{created}", LeaseId(lease)).into(),
            ..Default::default()
        }
    }

    fn waits(kind: LockKind, line: &[(&str, KeyValue)]) -> Vec<(i64, i64)> {
        let name = "x".to_owned();
        let line: Vec<_> = line
            .iter()
            .map(|(rest, kv)| ((*rest).to_owned(), kv.clone()))
            .collect();
        let mut waits = Vec::new();
        edges(&LockName { kind, name }, &line, &mut waits);
        let each = waits.iter();
        each.map(|edge| (edge.waiter.lease, edge.holder.lease))
            .collect()
    }

    #[test]
    fn who_waits_for_whom() {
        let line = [
            ("1/a", kv(1, "", 1)),
            ("2/a", kv(2, "", 2)),
            ("3/a", kv(3, "", 3)),
        ];
        assert_eq!(waits(LockKind::Mutex, &line), [(2, 1), (3, 2)]);
        let line = [
            ("read/1/a", kv(1, "", 1)),
            ("read/2/a", kv(2, "", 2)),
            ("read/3/a", kv(3, "", 3)),
            ("write/3/a", kv(3, "", 3)),
            ("read/4/a", kv(4, "", 4)),
            ("read/5/a", kv(5, "", 5)),
            ("write/5/a", kv(5, "", 5)),
        ];
        let expected = [(3, 1), (3, 2), (4, 3), (5, 3), (5, 4)];
        assert_eq!(waits(LockKind::RwLock, &line), expected);
        let upgraded = [
            ("read/1/a", kv(1, "", 1)),
            ("write/1/a", kv(1, "", 2)),
            ("read/2/a", kv(2, "", 3)),
            ("read/3/a", kv(3, "", 4)),
            ("write/3/a", kv(3, "", 4)),
        ];
        let expected = [(2, 1), (3, 1), (3, 2)];
        assert_eq!(waits(LockKind::RwLock, &upgraded), expected);
        let limit = |number: &str| KeyValue {
            value: number.to_owned().into(),
            ..Default::default()
        };
        let line = |number| {
            [
                ("limit", limit(number)),
                ("permit/1/a", kv(1, "", 1)),
                ("permit/2/a", kv(2, "", 2)),
                ("door/3/a", kv(3, "", 3)),
                ("door/4/a", kv(4, "", 4)),
            ]
        };
        let full = waits(LockKind::Semaphore, &line("2"));
        assert_eq!(full, [(4, 3), (3, 1), (3, 2)]);
        let room = waits(LockKind::Semaphore, &line("3"));
        assert_eq!(room, [(4, 3)], "it is about to be let in");
    }

    fn edge(waiter: KeyValue, holder: KeyValue) -> Edge {
        let lock = LockName {
            kind: LockKind::Mutex,
            name: format!("{}", holder.lease),
        };
        Edge {
            waiter,
            holder,
            lock,
            only: true,
        }
    }

    #[test]
    fn circles_are_found_and_only_they() {
        let line = [
            edge(kv(1, "", 1), kv(2, "", 2)),
            edge(kv(2, "", 3), kv(3, "", 4)),
            edge(kv(4, "", 5), kv(3, "", 4)),
        ];
        assert!(circles(&line).is_empty());
        let mut ring = Vec::from(line);
        ring.push(edge(kv(3, "", 6), kv(1, "", 7)));
        let found = circles(&ring);
        assert_eq!(found.len(), 1);
        let way: Vec<_> = found[0].iter().map(|edge| edge.waiter.lease).collect();
        assert_eq!(way.len(), 3);
        for pair in found[0].windows(2) {
            assert_eq!(pair[0].holder.lease, pair[1].waiter.lease);
        }
        assert_eq!(found[0][2].holder.lease, found[0][0].waiter.lease);
    }

    #[test]
    fn a_task_that_waits_for_itself_is_a_circle_and_a_session_is_not() {
        let by_session = [edge(kv(1, "", 2), kv(1, "", 1))];
        assert!(circles(&by_session).is_empty());
        let by_task = [edge(kv(1, "t", 2), kv(1, "t", 1))];
        assert_eq!(circles(&by_task).len(), 1);
        let by_tasks = [edge(kv(1, "t", 2), kv(1, "u", 1))];
        assert!(circles(&by_tasks).is_empty());
    }

    /// Of one who waits for several things at a time, any may come first.
    #[tokio::test(start_paused = true)]
    async fn who_waits_for_several_things_is_in_no_certain_circle() {
        let client = crate::Client::new(crate::store::MemStore::new());
        let session = client.session().await.unwrap();
        let (one, other) = (session.for_task("one"), session.for_task("other"));
        let (a, b, c) = (client.mutex("a"), client.mutex("b"), client.mutex("c"));
        let _holds = (a.lock(&one).await.unwrap(), b.lock(&other).await.unwrap());
        let third = c.lock(&session.for_task("third")).await.unwrap();
        for several in [false, true] {
            let either = async {
                tokio::select! {
                    _ = b.lock(&one) => {}
                    _ = c.lock(&one), if several => {}
                }
            };
            let looks = async {
                tokio::time::sleep(Duration::from_secs(1)).await;
                client.inspect().deadlocks().await.unwrap()
            };
            tokio::select! {
                biased;
                () = either => unreachable!("all are held"),
                _ = a.lock(&other) => unreachable!("it is held"),
                found = looks => {
                    assert_eq!(found.len(), 1);
                    assert_eq!(found[0].certain, !several, "{found:?}");
                }
            }
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
        third.release().await.unwrap();
    }
}
