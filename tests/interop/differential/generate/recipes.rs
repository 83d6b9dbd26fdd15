//! The Lock and Election services. Every name belongs to one lease, so that no call ever waits.

use quorate_proto::v3electionpb::{
    CampaignRequest, LeaderKey, LeaderRequest, ProclaimRequest, ResignRequest,
};
use quorate_proto::v3lockpb::{LockRequest, UnlockRequest};
use rand::RngExt;

use super::Generator;
use crate::differential::op::Op;
use crate::differential::world::World;

/// Leases that lock and lead; 99 is never granted.
const LEASES: &[i64] = &[1, 2, 3, 77, 99];

impl Generator {
    pub(super) fn recipe(&mut self, world: &World) -> Op {
        let lease = self.one_of(LEASES);
        let election = format!("e{lease}");
        match self.random.random_range(0..100) {
            0..25 => Op::Lock(LockRequest {
                name: format!("l{lease}").into(),
                lease,
            }),
            25..45 => Op::Unlock(UnlockRequest {
                key: match self.chance(90) {
                    true => format!("l{lease}/{lease:x}").into(),
                    false => "".into(),
                },
            }),
            45..65 => Op::Campaign(CampaignRequest {
                name: election.into(),
                lease,
                value: self.value(),
            }),
            65..80 => Op::Proclaim(ProclaimRequest {
                leader: self.leader_key(world),
                value: self.value(),
            }),
            80..90 => Op::Resign(ResignRequest {
                leader: self.leader_key(world),
            }),
            _ => Op::Leader(LeaderRequest {
                name: election.into(),
            }),
        }
    }

    /// What a campaign was answered, lately or long ago; seldom with another revision.
    fn leader_key(&mut self, world: &World) -> Option<LeaderKey> {
        let recent = world.leaders.len().saturating_sub(8)..world.leaders.len();
        if recent.is_empty() {
            return None;
        }
        let chosen = self.random.random_range(recent);
        let mut leader = world.leaders[chosen].clone();
        if self.chance(10) {
            leader.rev += 1;
        }
        Some(leader)
    }
}
