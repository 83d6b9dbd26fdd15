//! Watchers: created with every option, cancelled, asked for progress.

use bytes::Bytes;
use quorate_proto::etcdserverpb::{DeleteRangeRequest, PutRequest, WatchCreateRequest};
use rand::RngExt;
use rand::seq::IteratorRandom;

use super::Generator;
use crate::differential::op::Op;
use crate::differential::world::{STREAMS, World};

/// Watchers of one stream; at so many one is cancelled first.
const WATCHERS_MAX: usize = 12;

/// Ids that the client chooses.
const IDS: &[i64] = &[1, 2, 3, 5, 8, 13, 20, 21, 22, -2, -5, i64::MAX, i64::MIN];

impl Generator {
    pub(super) fn watch(&mut self, world: &World) -> Op {
        let stream = self.random.random_range(0..STREAMS);
        let watchers = &world.streams[stream];
        match self.random.random_range(0..100) {
            0..60 if watchers.len() < WATCHERS_MAX => Op::WatchCreate {
                stream,
                request: self.watch_request(world),
            },
            85..100 => Op::WatchProgress {
                stream,
                in_sync: world.in_sync(stream),
            },
            _ => {
                let known = watchers.keys().choose(&mut self.random).copied();
                let id = match known {
                    Some(id) if self.chance(80) || watchers.len() == WATCHERS_MAX => id,
                    _ => self.one_of(IDS),
                };
                Op::WatchCancel {
                    stream,
                    id,
                    known: watchers.contains_key(&id),
                }
            }
        }
    }

    fn watch_request(&mut self, world: &World) -> WatchCreateRequest {
        let (key, range_end) = self.range_given();
        let filters = match self.random.random_range(0..10) {
            0..7 => vec![],
            7 => vec![0],
            8 => vec![1],
            _ => self
                .one_of::<&[i32]>(&[&[0, 1], &[0, 0], &[7, 1], &[-1]])
                .to_vec(),
        };
        let start_revision = match self.random.random_range(0..100) {
            0..50 => 0,
            // A negative one is answered differently by 3.5.30 than by those before it.
            _ => self.revision(world).max(0),
        };
        // What was deleted in the compacted revision is gone from the history of etcds before 3.5.16.
        let lost = start_revision == world.compacted && world.deleted_when_compacted();
        let start_revision = start_revision + i64::from(lost);
        let past = (1..=world.revision).contains(&start_revision);
        let start_revision = match past {
            true if !self.plan_event(world, &key, &filters) => 0,
            _ => start_revision,
        };
        WatchCreateRequest {
            key,
            range_end,
            start_revision,
            progress_notify: self.chance(15),
            filters,
            prev_kv: self.chance(40),
            watch_id: if self.chance(30) { self.one_of(IDS) } else { 0 },
            fragment: self.chance(15),
        }
    }

    /// Plans an event for a watcher that begins in the past, unless that is not possible: once it is
    /// told of it, it has surely read all of that past, and a compaction no longer meets it there.
    fn plan_event(&mut self, world: &World, key: &Bytes, filters: &[i32]) -> bool {
        let (no_puts, no_deletes) = (filters.contains(&0), filters.contains(&1));
        if !world.alarms.is_empty() || no_puts && no_deletes {
            return false;
        }
        let key = match key.is_empty() {
            true => Bytes::from_static(b"\0"),
            false => key.clone(),
        };
        self.planned.push_back(Op::Put(PutRequest {
            key: key.clone(),
            ..PutRequest::default()
        }));
        if no_puts {
            self.planned.push_back(Op::DeleteRange(DeleteRangeRequest {
                key,
                ..DeleteRangeRequest::default()
            }));
        }
        true
    }
}
