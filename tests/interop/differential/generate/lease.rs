//! Leases. They live for an hour at least, so that none expires within a sequence; one that is
//! granted with less is revoked at once.

use quorate_proto::etcdserverpb::{LeaseGrantRequest, LeaseRevokeRequest, LeaseTimeToLiveRequest};
use rand::RngExt;
use rand::seq::IteratorRandom;

use super::Generator;
use crate::differential::op::Op;
use crate::differential::world::World;

/// Ids given by the client.
const IDS: &[i64] = &[1, 2, 3, 4, 5, 6, -1, -7, 77, 9_999, i64::MAX, i64::MIN];

const HOUR: i64 = 3_600;

impl Generator {
    pub(super) fn lease(&mut self, world: &World) -> Op {
        match self.random.random_range(0..100) {
            0..35 => self.grant(world),
            35..55 => Op::LeaseRevoke(LeaseRevokeRequest {
                id: self.lease_given(world),
            }),
            55..70 => Op::LeaseKeepAlive(self.lease_given(world)),
            70..92 => Op::LeaseTimeToLive(LeaseTimeToLiveRequest {
                id: self.lease_given(world),
                keys: self.chance(60),
            }),
            _ => Op::LeaseLeases,
        }
    }

    /// A lease as requests name it: mostly one that is there.
    pub(super) fn lease_given(&mut self, world: &World) -> i64 {
        if self.chance(80)
            && let Some(lease) = world.leases.iter().choose(&mut self.random)
        {
            return *lease;
        }
        if self.chance(20) {
            return 0;
        }
        self.one_of(IDS)
    }

    fn grant(&mut self, world: &World) -> Op {
        let id = if self.chance(15) { 0 } else { self.one_of(IDS) };
        let ttl = match self.random.random_range(0..100) {
            0..80 => self.one_of(&[HOUR, 2 * HOUR, 9_000_000_000]),
            80..90 => self.one_of(&[9_000_000_001, i64::MAX]),
            _ => self.one_of(&[0, 1, -1, i64::MIN]),
        };
        let short = ttl < HOUR;
        // Not one that the server names: the plan could not name it.
        let id = if short && id == 0 { 77 } else { id };
        if short && !world.leases.contains(&id) {
            self.planned
                .push_back(Op::LeaseRevoke(LeaseRevokeRequest { id }));
        }
        Op::LeaseGrant(LeaseGrantRequest { ttl, id })
    }
}
