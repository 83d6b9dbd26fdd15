//! Transactions, up to three levels.

use quorate_proto::etcdserverpb::compare::TargetUnion;
use quorate_proto::etcdserverpb::request_op::Request;
use quorate_proto::etcdserverpb::{AlarmType, Compare, RangeRequest, RequestOp, TxnRequest};
use rand::RngExt;

use super::Generator;
use crate::differential::op::CHOSEN_LEASES;
use crate::differential::world::World;

const LEVELS: usize = 3;

/// What all levels of one transaction have in common.
#[derive(Debug, Clone, Copy)]
struct Kind {
    /// Puts may keep values and leases; then there are no deletes.
    keep: bool,
    reads_only: bool,
    levels: usize,
}

impl Generator {
    pub(super) fn txn(&mut self, world: &World) -> TxnRequest {
        let reads_only = self.chance(15);
        let full = i32::from(AlarmType::Nospace);
        let full = world.alarms.iter().any(|(_, kind)| *kind == full);
        let kind = Kind {
            keep: self.chance(25),
            reads_only,
            // When the store is full etcd lets puts pass in nested transactions, by mistake.
            levels: if full && !reads_only { 1 } else { LEVELS },
        };
        let mut request = self.level(world, kind, 1);
        if self.random.random_ratio(1, 100) {
            self.widen(&mut request);
        }
        request
    }

    fn level(&mut self, world: &World, kind: Kind, depth: usize) -> TxnRequest {
        let compares = self.one_of(&[0, 1, 1, 1, 2, 3]);
        TxnRequest {
            compare: (0..compares).map(|_| self.compare(world)).collect(),
            success: self.branch(world, kind, depth),
            failure: self.branch(world, kind, depth),
        }
    }

    fn branch(&mut self, world: &World, kind: Kind, depth: usize) -> Vec<RequestOp> {
        let operations = self.one_of(&[0, 1, 1, 2, 2, 3, 4]);
        let mut branch = Vec::new();
        for _ in 0..operations {
            let request = match self.random.random_range(0..100) {
                0..30 => Request::RequestRange(self.range_inside(world)),
                30..70 if !kind.reads_only => Request::RequestPut(self.put(world, kind.keep)),
                70..85 if !kind.keep && !kind.reads_only => {
                    Request::RequestDeleteRange(self.delete_range())
                }
                85..100 if depth < kind.levels => {
                    Request::RequestTxn(self.level(world, kind, depth + 1))
                }
                _ => Request::RequestRange(self.range_inside(world)),
            };
            branch.push(request.into());
        }
        if self.random.random_ratio(1, 300) {
            branch.push(RequestOp { request: None });
        }
        branch
    }

    /// A range that fails less often than one alone: it would take everything else with it.
    fn range_inside(&mut self, world: &World) -> RangeRequest {
        let mut request = self.range(world);
        if self.chance(70) {
            request.revision = 0;
        }
        request
    }

    fn compare(&mut self, world: &World) -> Compare {
        let (key, mut range_end) = self.range_given();
        if self.chance(50) {
            range_end.clear();
        }
        let target = self.random.random_range(0..5);
        let result = self.random.random_range(0..4);
        let number = match self.random.random_range(0..10) {
            0..4 => self.random.random_range(0..4),
            4..9 => self.revision(world),
            _ => -1,
        };
        // Mostly the union that belongs to the target.
        let union = if self.chance(90) {
            target
        } else {
            self.random.random_range(0..6)
        };
        let target_union = match union {
            0 => Some(TargetUnion::Version(number)),
            1 => Some(TargetUnion::CreateRevision(number)),
            2 => Some(TargetUnion::ModRevision(number)),
            3 => Some(TargetUnion::Value(self.value())),
            4 => Some(TargetUnion::Lease(self.lease_given(world))),
            _ => None,
        };
        let mut compare = Compare {
            result,
            target,
            key,
            range_end,
            target_union,
        };
        if self.chance(2) {
            compare.target = self.one_of(&[5, -1, 100]);
        }
        if self.chance(2) {
            compare.result = self.one_of(&[4, -1, 100]);
        }
        // Ids that servers chose have no order that two of them share.
        if let Some(TargetUnion::Lease(lease)) = compare.target_union
            && lease >= CHOSEN_LEASES
            && compare.result > 1
        {
            compare.result = 0;
        }
        if let Some(TargetUnion::Lease(lease)) = compare.target_union
            && lease >= CHOSEN_LEASES
            && ![0, 3].contains(&compare.result)
        {
            compare.result = 3;
        }
        compare
    }

    /// Makes a level as wide as it may be, or wider.
    fn widen(&mut self, request: &mut TxnRequest) {
        let wide = self.one_of(&[127, 128, 129, 300]);
        let get = || RangeRequest {
            key: b"a".as_slice().into(),
            count_only: true,
            ..RangeRequest::default()
        };
        match self.random.random_range(0..3) {
            0 => request.success.resize_with(wide, || get().into()),
            1 => request.failure.resize_with(wide, || get().into()),
            _ => request.compare.resize_with(wide, || Compare {
                key: b"a".as_slice().into(),
                ..Compare::default()
            }),
        }
    }
}
