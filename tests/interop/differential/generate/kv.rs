//! Range, put, delete and compaction.

use bytes::Bytes;
use quorate_proto::etcdserverpb::{
    CompactionRequest, DeleteRangeRequest, PutRequest, RangeRequest,
};
use rand::RngExt;

use super::Generator;
use crate::differential::op::Op;
use crate::differential::world::World;

impl Generator {
    pub(super) fn range(&mut self, world: &World) -> RangeRequest {
        let (key, range_end) = self.range_given();
        let mut request = RangeRequest {
            key,
            range_end,
            serializable: self.chance(30),
            ..RangeRequest::default()
        };
        if self.chance(30) {
            request.revision = self.revision(world);
        }
        if self.chance(35) {
            request.limit = self.one_of(&[1, 1, 2, 3, 5, 10, 100, -1, i64::MIN, i64::MAX]);
        }
        if self.chance(35) {
            request.sort_order = self.one_of(&[0, 1, 2, 1, 2, 3, -1, 99]);
            request.sort_target = self.random.random_range(0..5);
        }
        request.keys_only = self.chance(10);
        request.count_only = self.chance(10);
        if self.chance(15) {
            let filters = [
                &mut request.min_mod_revision,
                &mut request.max_mod_revision,
                &mut request.min_create_revision,
                &mut request.max_create_revision,
            ];
            for filter in filters {
                if self.chance(40) {
                    *filter = self.revision(world);
                }
            }
        }
        request
    }

    /// A put. Where it may not `keep`, it does not ask to keep the value or the lease: in a
    /// transaction whose deletes go first that brings etcd down.
    pub(super) fn put(&mut self, world: &World, keep: bool) -> PutRequest {
        let mut request = PutRequest {
            key: self.key_given(),
            value: self.value(),
            prev_kv: self.chance(35),
            ..PutRequest::default()
        };
        if self.chance(30) {
            request.lease = self.lease_given(world);
        }
        if keep && self.chance(12) {
            request.ignore_value = true;
            if self.chance(85) {
                request.value = Bytes::new();
            }
        }
        if keep && self.chance(12) {
            request.ignore_lease = true;
            if self.chance(85) {
                request.lease = 0;
            }
        }
        request
    }

    pub(super) fn delete_range(&mut self) -> DeleteRangeRequest {
        let (key, mut range_end) = self.range_given();
        // Keep some keys: most deletes are of one.
        if self.chance(60) {
            range_end = Bytes::new();
        }
        DeleteRangeRequest {
            key,
            range_end,
            prev_kv: self.chance(40),
        }
    }

    pub(super) fn compact(&mut self, world: &World) -> Op {
        let revision = match self.random.random_range(0..10) {
            0..6 => {
                let behind = self.random.random_range(0..60);
                (world.revision - behind).max(world.compacted)
            }
            6 => world.revision,
            _ => self.revision(world),
        };
        Op::Compact(CompactionRequest {
            revision,
            physical: self.chance(30),
        })
    }
}
