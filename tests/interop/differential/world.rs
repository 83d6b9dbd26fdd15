//! What a sequence knows of the stores it has driven so far: enough to ask for what exists, and to
//! say what every watcher is due. The events are those that a watcher of everything got.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use quorate_proto::KeyRange;
use quorate_proto::etcdserverpb::WatchCreateRequest;
use quorate_proto::etcdserverpb::alarm_request::AlarmAction;
use quorate_proto::etcdserverpb::watch_create_request::FilterType;
use quorate_proto::mvccpb::Event;
use quorate_proto::mvccpb::event::EventType;
use quorate_proto::v3electionpb::LeaderKey;

use super::op::{Answer, CHOSEN_LEASES, Op, Reply};

/// Watch streams of a sequence, without the one on which everything is watched.
pub(crate) const STREAMS: usize = 3;

/// What a sequence knows.
#[derive(Debug)]
pub(crate) struct World {
    pub revision: i64,
    /// -1 before any compaction.
    pub compacted: i64,
    /// Leases that are there, as operations name them.
    pub leases: BTreeSet<i64>,
    chosen_leases: i64,
    pub streams: Vec<BTreeMap<i64, Watcher>>,
    /// Alarms that are raised: the member and the kind.
    pub alarms: BTreeSet<(u64, i32)>,
    /// What campaigns were answered.
    pub leaders: Vec<LeaderKey>,
    /// Every event so far, by revision.
    events: Vec<Event>,
}

/// A watcher, as its stream knows it. One that was refused because of a compaction keeps its id.
#[derive(Debug, Clone)]
pub(crate) struct Watcher {
    range: KeyRange,
    puts: bool,
    deletes: bool,
    /// Its first revision.
    pub start: i64,
    /// Nothing before this revision is due any more.
    due_from: i64,
    pub refused: bool,
    /// Whether that refusal is still to be told.
    refusal_due: bool,
}

impl World {
    /// Of two fresh stores.
    pub(crate) fn new() -> Self {
        Self {
            revision: 1,
            compacted: -1,
            leases: BTreeSet::new(),
            chosen_leases: 0,
            streams: vec![BTreeMap::new(); STREAMS],
            alarms: BTreeSet::new(),
            leaders: Vec::new(),
            events: Vec::new(),
        }
    }

    /// Takes note of what an operation did.
    pub(crate) fn note(&mut self, op: &Op, answer: &Answer) {
        let Ok(reply) = answer else { return };
        if let Some(revision) = revision_in(reply) {
            self.revision = self.revision.max(revision);
        }
        match (op, reply) {
            (Op::Compact(request), _) => self.compacted = request.revision,
            (Op::LeaseGrant(request), _) if request.id == 0 => {
                self.leases.insert(CHOSEN_LEASES + self.chosen_leases);
                self.chosen_leases += 1;
            }
            (Op::LeaseGrant(request), _) => drop(self.leases.insert(request.id)),
            (Op::LeaseRevoke(request), _) => drop(self.leases.remove(&request.id)),
            (Op::Alarm(request), _) => {
                let alarm = (request.member_id, request.alarm);
                if request.action == i32::from(AlarmAction::Activate) {
                    self.alarms.insert(alarm);
                } else if request.action == i32::from(AlarmAction::Deactivate) {
                    self.alarms.remove(&alarm);
                }
            }
            (Op::Campaign(_), Reply::Campaign(answer)) => {
                self.leaders.extend(answer.leader.clone())
            }
            (Op::WatchCreate { stream, request }, Reply::Watch(created)) if !created.canceled => {
                let watcher = Watcher::new(request, self.revision, self.compacted);
                self.streams[*stream].insert(created.watch_id, watcher);
            }
            (Op::WatchCancel { stream, id, .. }, _) => drop(self.streams[*stream].remove(id)),
            _ => {}
        }
    }

    /// Whether a request for progress is answered, by the rule of etcd 3.5.30, once all watchers
    /// were told what they are due.
    pub(crate) fn in_sync(&self, stream: usize) -> bool {
        let live = || self.streams[stream].values().filter(|w| !w.refused);
        live().count() > 0 && live().all(|watcher| watcher.start <= self.revision)
    }

    /// Adds what the watcher of everything was told.
    pub(crate) fn happened(&mut self, events: Vec<Event>) {
        self.events.extend(events);
    }

    /// Whether something happened that is not known yet.
    pub(crate) fn behind(&self) -> bool {
        self.events.last().map_or(1, mod_revision) < self.revision
    }

    /// Whether something was deleted in the compacted revision.
    pub(crate) fn deleted_when_compacted(&self) -> bool {
        let compacted = |event: &&Event| mod_revision(event) == self.compacted;
        let mut events = self.events.iter().rev().filter(compacted);
        events.any(|event| event.r#type() == EventType::Delete)
    }

    /// The events that every watcher of a stream is due and was not due before, by watcher; and
    /// which of them are due a refusal.
    pub(crate) fn due(&mut self, stream: usize) -> BTreeMap<i64, Due> {
        let (revision, events) = (self.revision, &self.events);
        let due = self.streams[stream].iter_mut().map(|(id, watcher)| {
            let due = Due {
                events: watcher.take_due(events, revision),
                refusal: std::mem::take(&mut watcher.refusal_due),
            };
            (*id, due)
        });
        due.collect()
    }
}

/// What a watcher is due.
#[derive(Debug, Default)]
pub(crate) struct Due {
    pub events: Vec<Event>,
    pub refusal: bool,
}

impl Due {
    /// Of how many things it is to be told.
    pub(crate) fn count(&self) -> usize {
        self.events.len() + usize::from(self.refusal)
    }
}

impl Watcher {
    fn new(request: &WatchCreateRequest, revision: i64, compacted: i64) -> Self {
        let key = if request.key.is_empty() {
            Bytes::from_static(b"\0")
        } else {
            request.key.clone()
        };
        let filtered = |kind: FilterType| request.filters.contains(&i32::from(kind));
        let start = match request.start_revision {
            0 => revision + 1,
            start => start,
        };
        let refused = request.start_revision != 0 && start < compacted;
        Self {
            range: KeyRange::from_wire(key, request.range_end.clone()),
            puts: !filtered(FilterType::Noput),
            deletes: !filtered(FilterType::Nodelete),
            // As etcd has it, a watcher from now on is in sync from the beginning.
            start: request.start_revision,
            due_from: start,
            refused,
            refusal_due: refused,
        }
    }

    fn take_due(&mut self, events: &[Event], revision: i64) -> Vec<Event> {
        if self.refused || self.due_from > revision {
            return Vec::new();
        }
        let first = events.partition_point(|event| mod_revision(event) < self.due_from);
        self.due_from = revision + 1;
        let wanted = |event: &&Event| {
            let key = event.kv.as_ref().map(|kv| &kv.key);
            let kind = if event.r#type() == EventType::Put {
                self.puts
            } else {
                self.deletes
            };
            kind && key.is_some_and(|key| self.range.contains(key))
        };
        events[first..].iter().filter(wanted).cloned().collect()
    }
}

/// The main revision of an event.
pub(crate) fn mod_revision(event: &Event) -> i64 {
    event.kv.as_ref().map_or(0, |kv| kv.mod_revision)
}

/// The store's revision, where an answer tells it.
fn revision_in(reply: &Reply) -> Option<i64> {
    let header = match reply {
        Reply::Range(answer) => &answer.header,
        Reply::Put(answer) => &answer.header,
        Reply::DeleteRange(answer) => &answer.header,
        Reply::Txn(answer) => &answer.header,
        Reply::LeaseRevoke(answer) => &answer.header,
        Reply::Lock(answer) => &answer.header,
        Reply::Unlock(answer) => &answer.header,
        Reply::Campaign(answer) => &answer.header,
        Reply::Proclaim(answer) => &answer.header,
        Reply::Resign(answer) => &answer.header,
        _ => return None,
    };
    header.as_ref().map(|header| header.revision)
}
