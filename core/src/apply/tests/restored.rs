//! A restored state: nothing for clients before the epoch is raised, everything after.

use quorate_proto::epoch::EPOCH_KEY;
use quorate_proto::etcdserverpb::alarm_request::AlarmAction;
use quorate_proto::etcdserverpb::{AlarmRequest, AlarmType};
use quorate_proto::log::{FinishRestore, MemberAttributes};
use quorate_proto::txn::TxnBuilder;

use super::*;
use crate::apply::restored_mark;

fn finish(wall_millis: u64) -> Command {
    Kind::FinishRestore(FinishRestore { wall_millis })
}

fn epoch(machine: &Machine) -> Option<Bytes> {
    machine.pair(EPOCH_KEY).map(|pair| pair.value)
}

/// A machine on what `machine` holds and the mark of a restore.
fn restored(machine: &Machine) -> Machine {
    let kv = machine.state.kv();
    let (key, mark) = restored_mark();
    let marked = [(key, Some(mark))].into_iter().collect();
    kv.commit(marked).unwrap();
    Machine {
        state: State::open(kv, &Options::default()).unwrap(),
        index: machine.index,
        events: Vec::new(),
    }
}

#[test]
fn clients_wait_until_the_epoch_is_raised() {
    let mut before = Machine::new();
    before.grant(7);
    before.put(pair_of("a", "1"));
    let mut machine = restored(&before);
    assert!(machine.state.reader().is_restore_unfinished());
    for command in [
        put(pair_of("a", "2")),
        delete("a", ""),
        Kind::Txn(TxnBuilder::new().build()),
        compact(2),
        Kind::LeaseGrant(LeaseGrant {
            id: 8,
            ttl_seconds: 60,
        }),
        revoke(7),
    ] {
        assert_eq!(machine.run(command), Err(Reason::RestoreUnfinished));
    }
    let attributes = MemberAttributes {
        id: 1,
        ..MemberAttributes::default()
    };
    // What members do by themselves goes on, and a full store does not keep clients out.
    for (command, expected) in [
        (checkpoint(7, 30), Answer::LeaseCheckpoint),
        (Kind::MemberAttributes(attributes), Answer::MemberAttributes),
    ] {
        assert_eq!(machine.run(command), Ok(expected));
    }
    let alarm = AlarmRequest {
        action: AlarmAction::Activate.into(),
        member_id: 1,
        alarm: AlarmType::Nospace.into(),
    };
    assert!(matches!(
        machine.run(Kind::Alarm(alarm)),
        Ok(Answer::Alarm(_))
    ));
    assert_eq!((machine.revision(), epoch(&machine)), (2, None));

    assert_eq!(machine.run(finish(1_000)), Ok(Answer::FinishRestore));
    assert!(!machine.state.reader().is_restore_unfinished());
    assert_eq!(epoch(&machine).unwrap(), "1000");
    let key = EPOCH_KEY.as_bytes();
    assert_eq!(machine.last_events(1), [(3, EventKind::Put, key)]);
    // A second one, of a leader that had not heard of the first, does nothing.
    assert_eq!(machine.run(finish(2_000)), Ok(Answer::FinishRestore));
    assert_eq!(
        (machine.revision(), epoch(&machine).unwrap()),
        (3, "1000".into())
    );
    assert_eq!(machine.run(expire(&[7])), Ok(Answer::LeaseExpire));
    let reopened = State::open(machine.state.kv(), &Options::default()).unwrap();
    assert!(!reopened.reader().is_restore_unfinished());
}

#[test]
fn the_next_command_of_the_same_batch_is_let_in() {
    let mut machine = restored(&Machine::new());
    let entry = machine.entry(vec![
        put(pair_of("early", "")),
        finish(5),
        put(pair_of("late", "")),
    ]);
    let applied = machine.apply_entries(vec![entry]);
    let passed: Vec<bool> = applied
        .outcomes
        .iter()
        .map(|outcome| outcome.result.is_ok())
        .collect();
    assert_eq!(passed, [false, true, true]);
    assert!(machine.pair("early").is_none() && machine.pair("late").is_some());
}

#[test]
fn the_epoch_grows_whatever_the_clock_says() {
    for (old, wall_millis, expected) in [
        (None, 0, "1"),
        (Some("41"), 0, "42"),
        (Some(" 41\n"), 42, "42"),
        (Some("41"), 1_000, "1000"),
        (Some("2000"), 1_000, "2001"),
        // No token was given out under what is no number.
        (Some("x"), 3, "3"),
        (Some("-5"), 0, "1"),
    ] {
        let mut before = Machine::new();
        if let Some(old) = old {
            before.put(pair_of(EPOCH_KEY, old));
        }
        let mut machine = restored(&before);
        machine.run(finish(wall_millis)).unwrap();
        assert_eq!(epoch(&machine).unwrap(), expected, "{old:?} {wall_millis}");
    }
}

#[test]
fn a_state_that_was_not_restored_keeps_its_epoch() {
    let mut machine = Machine::new();
    assert_eq!(machine.run(finish(1_000)), Ok(Answer::FinishRestore));
    assert_eq!((machine.revision(), epoch(&machine)), (1, None));
}

#[test]
fn an_installed_state_brings_the_mark_along_or_takes_it_away() {
    let mut machine = Machine::new();
    let marked = restored(&Machine::new());
    machine.state.install(marked.state.kv()).unwrap();
    assert!(machine.state.reader().is_restore_unfinished());
    assert_eq!(
        machine.run(put(pair_of("a", ""))),
        Err(Reason::RestoreUnfinished)
    );
    machine.state.install(Arc::new(MemKv::new())).unwrap();
    assert!(!machine.state.reader().is_restore_unfinished());
}
