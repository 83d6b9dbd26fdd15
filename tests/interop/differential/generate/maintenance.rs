//! Maintenance and cluster requests. An alarm is raised for a while and then lifted.

use quorate_proto::etcdserverpb::alarm_request::AlarmAction;
use quorate_proto::etcdserverpb::{
    AlarmRequest, AlarmType, DowngradeRequest, HashKvRequest, MoveLeaderRequest,
};
use rand::RngExt;

use super::Generator;
use crate::differential::op::{OWN_MEMBER, Op};
use crate::differential::world::World;

impl Generator {
    pub(super) fn maintenance(&mut self, world: &World) -> Op {
        match self.random.random_range(0..100) {
            0..20 => Op::Status,
            20..25 => Op::Hash,
            25..45 => Op::HashKv(HashKvRequest {
                revision: self.revision(world),
            }),
            45..48 => Op::Defragment,
            48..55 => Op::MoveLeader(MoveLeaderRequest {
                target_id: self.one_of(&[0, 5, u64::MAX]),
            }),
            55..62 => self.downgrade(),
            62..75 => Op::MemberList {
                linearizable: self.chance(50),
            },
            75..85 => self.raise(world),
            _ => self.alarm_request(),
        }
    }

    /// Lifts alarms when it is time.
    pub(super) fn lift(&mut self, world: &World) -> Option<Op> {
        if world.alarms.is_empty() || self.alarm_left > 0 {
            self.alarm_left = self.alarm_left.saturating_sub(1);
            return None;
        }
        let (member_id, alarm) = *world.alarms.first()?;
        Some(Op::Alarm(AlarmRequest {
            action: AlarmAction::Deactivate.into(),
            member_id,
            alarm,
        }))
    }

    /// Raises an alarm, of one kind at a time: on etcd the second one undoes what the first forbids.
    fn raise(&mut self, world: &World) -> Op {
        self.alarm_left = self.random.random_range(5..60);
        let kind = match world.alarms.first() {
            Some((_, kind)) => AlarmType::try_from(*kind).expect("one that was raised"),
            None if self.chance(65) => AlarmType::Nospace,
            None => AlarmType::Corrupt,
        };
        // One whose own data is said to differ answers no reads, where etcd's does.
        let member_id = match kind {
            AlarmType::Corrupt => 77,
            _ => self.one_of(&[OWN_MEMBER, OWN_MEMBER, 77]),
        };
        Op::Alarm(AlarmRequest {
            action: AlarmAction::Activate.into(),
            member_id,
            alarm: kind.into(),
        })
    }

    /// Lists alarms, or lifts one that is most often not there.
    fn alarm_request(&mut self) -> Op {
        let action = if self.chance(70) {
            AlarmAction::Get
        } else {
            AlarmAction::Deactivate
        };
        Op::Alarm(AlarmRequest {
            action: action.into(),
            member_id: self.one_of(&[0, OWN_MEMBER, 77]),
            alarm: self.random.random_range(0..3),
        })
    }

    fn downgrade(&mut self) -> Op {
        Op::Downgrade(DowngradeRequest {
            action: self.one_of(&[0, 1, 2, 9]),
            version: self.one_of(&["", "x", "3", "1.2.3.4", "-1.2"]).to_owned(),
        })
    }
}
