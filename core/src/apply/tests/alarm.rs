//! Alarms, what they forbid, and member attributes.

use quorate_proto::etcdserverpb::alarm_request::AlarmAction;
use quorate_proto::etcdserverpb::{AlarmMember, AlarmRequest, AlarmType};
use quorate_proto::log::MemberAttributes;
use quorate_proto::txn::{TxnBuilder, delete as delete_op, get, put as put_op};

use super::*;
use crate::apply::{Alarm, Member};

fn alarm(action: AlarmAction, member_id: u64, kind: AlarmType) -> Command {
    Kind::Alarm(AlarmRequest {
        action: action.into(),
        member_id,
        alarm: kind.into(),
    })
}

fn told(machine: &mut Machine, command: Command) -> Vec<(u64, AlarmType)> {
    let Ok(Answer::Alarm(answer)) = machine.run(command) else {
        panic!("an alarm request passes");
    };
    assert_eq!(at(answer.header.as_ref()), machine.revision());
    let pair = |alarm: &AlarmMember| (alarm.member_id, alarm.alarm());
    answer.alarms.iter().map(pair).collect()
}

#[test]
fn alarms_are_raised_listed_and_cleared() {
    use AlarmAction::{Activate, Deactivate, Get};
    use AlarmType::{Corrupt, None, Nospace};
    let mut machine = Machine::new();
    assert_eq!(
        told(&mut machine, alarm(Activate, 2, Nospace)),
        [(2, Nospace)]
    );
    assert_eq!(
        told(&mut machine, alarm(Activate, 2, Nospace)),
        [(2, Nospace)]
    );
    assert_eq!(
        told(&mut machine, alarm(Activate, 1, Corrupt)),
        [(1, Corrupt)]
    );
    assert_eq!(told(&mut machine, alarm(Activate, 1, None)), []);
    let all = [(1, Corrupt), (2, Nospace)];
    assert_eq!(told(&mut machine, alarm(Get, 0, None)), all);
    assert_eq!(told(&mut machine, alarm(Get, 0, Nospace)), [(2, Nospace)]);
    let reopened = State::open(machine.state.kv(), &Options::default()).expect("opens");
    for reader in [machine.state.reader(), reopened.reader()] {
        let raised: Vec<_> = reader.alarms().iter().map(|a| (a.member, a.kind)).collect();
        assert_eq!(raised, all);
    }
    assert_eq!(told(&mut machine, alarm(Deactivate, 1, Nospace)), []);
    assert_eq!(
        told(&mut machine, alarm(Deactivate, 2, Nospace)),
        [(2, Nospace)]
    );
    assert_eq!(
        *machine.state.reader().alarms(),
        [Alarm {
            member: 1,
            kind: Corrupt
        }]
    );
    let bad = |action, alarm| {
        Kind::Alarm(AlarmRequest {
            action,
            member_id: 1,
            alarm,
        })
    };
    assert_eq!(machine.run(bad(9, 1)), Err(Reason::UnknownAlarm));
    assert_eq!(machine.run(bad(0, 9)), Err(Reason::UnknownAlarm));
    assert_eq!(machine.revision(), 1);
}

type Outcome = Result<(), Reason>;

/// A command of each kind that alarms may forbid, with what they make of it.
fn commands() -> Vec<(Command, Outcome, Outcome)> {
    let (space, corrupt) = (Err(Reason::NoSpace), Err(Reason::Corrupt));
    let txn = |builder: TxnBuilder| Kind::Txn(builder.build());
    let grant = Kind::LeaseGrant(LeaseGrant {
        id: 99,
        ttl_seconds: 5,
    });
    let in_the_other_branch = TxnBuilder::new().then(get("k")).or_else(put_op("k", "v"));
    let nested = TxnBuilder::new().then(TxnBuilder::new().or_else(put_op("k", "v")).build());
    vec![
        (put(pair_of("k", "v")), space, corrupt),
        (grant, space, corrupt),
        (txn(in_the_other_branch), space, corrupt),
        (txn(nested), space, corrupt),
        (txn(TxnBuilder::new().then(delete_op("k"))), Ok(()), corrupt),
        (txn(TxnBuilder::new().then(get("k"))), Ok(()), Ok(())),
        (delete("k", ""), Ok(()), corrupt),
        (revoke(7), Ok(()), corrupt),
        (expire(&[8]), Ok(()), corrupt),
        (checkpoint(9, 5), Ok(()), Ok(())),
        (compact(1), Ok(()), corrupt),
    ]
}

#[test]
fn nospace_forbids_what_grows_and_corrupt_all_writes() {
    for kind in [AlarmType::Nospace, AlarmType::Corrupt] {
        for (command, nospace, corrupt) in commands() {
            let mut machine = Machine::new();
            for lease in [7, 8, 9] {
                machine.grant(lease);
            }
            machine
                .run(alarm(AlarmAction::Activate, 1, kind))
                .expect("raised");
            let expected = if kind == AlarmType::Nospace {
                nospace
            } else {
                corrupt
            };
            let result = machine.run(command.clone()).map(drop);
            assert_eq!(result, expected, "{kind:?} {command:?}");
            machine
                .run(alarm(AlarmAction::Deactivate, 1, kind))
                .expect("cleared");
            if expected.is_err() {
                assert!(
                    machine.run(command.clone()).is_ok(),
                    "after {kind:?}: {command:?}"
                );
            }
        }
    }
}

#[test]
fn a_member_replaces_what_was_known_of_it() {
    let mut machine = Machine::new();
    let attributes = |name: &str| MemberAttributes {
        id: 5,
        name: name.to_owned(),
        client_urls: vec!["http://127.0.0.1:2379".to_owned()],
        incarnation: Bytes::from_static(&[9; 16]),
        peer_urls: Vec::new(),
    };
    for name in ["old", "new"] {
        let command = Kind::MemberAttributes(attributes(name));
        assert_eq!(machine.run(command), Ok(Answer::MemberAttributes));
    }
    let reopened = State::open(machine.state.kv(), &Options::default()).expect("opens");
    for reader in [machine.state.reader(), reopened.reader()] {
        assert_eq!(*reader.members(), [Member::from(attributes("new"))]);
    }
    assert_eq!(machine.revision(), 1);
}

#[test]
fn a_member_that_lost_its_folder_cannot_bind_itself_anew() {
    let mut machine = Machine::new();
    let attributes = |incarnation: u8| MemberAttributes {
        id: 5,
        name: "m".to_owned(),
        client_urls: Vec::new(),
        incarnation: vec![incarnation; 16].into(),
        peer_urls: Vec::new(),
    };
    for incarnation in [9, 8] {
        let command = Kind::MemberAttributes(attributes(incarnation));
        assert_eq!(machine.run(command), Ok(Answer::MemberAttributes));
    }
    let members = machine.state.reader().members();
    assert_eq!(*members, [Member::from(attributes(9))]);
}

#[test]
fn an_alarm_goes_before_a_time_to_live_that_is_too_large() {
    let mut machine = Machine::new();
    let grant = Kind::LeaseGrant(LeaseGrant {
        id: 99,
        ttl_seconds: i64::MAX,
    });
    assert_eq!(
        machine.run(grant.clone()).map(drop),
        Err(Reason::LeaseTtlTooLarge)
    );
    let raise = alarm(AlarmAction::Activate, 1, AlarmType::Nospace);
    machine.run(raise).expect("raised");
    assert_eq!(machine.run(grant).map(drop), Err(Reason::NoSpace));
}
