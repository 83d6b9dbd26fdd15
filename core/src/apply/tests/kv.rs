//! Puts, deletes and compactions.

use quorate_proto::etcdserverpb::DeleteRangeResponse;

use super::*;

fn deleted(machine: &mut Machine, key: &str, range_end: &str) -> DeleteRangeResponse {
    match machine.run(delete(key, range_end)) {
        Ok(Answer::DeleteRange(answer)) => answer,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_put_counts_versions_and_revisions() {
    let mut machine = Machine::new();
    assert_eq!(machine.revision(), 1);
    let answer = machine.put(PutRequest {
        prev_kv: true,
        ..pair_of("k", "1")
    });
    assert_eq!((at(answer.header.as_ref()), answer.prev_kv), (2, None));
    // The same value again is a write like any other.
    let answer = machine.put(PutRequest {
        prev_kv: true,
        ..pair_of("k", "1")
    });
    assert_eq!(at(answer.header.as_ref()), 3);
    assert_eq!(answer.prev_kv.expect("a pair before").version, 1);
    let pair = machine.pair("k").expect("put");
    assert_eq!(
        (pair.create_revision, pair.mod_revision, pair.version),
        (2, 3, 2)
    );
    deleted(&mut machine, "k", "");
    machine.put(pair_of("k", "2"));
    let pair = machine.pair("k").expect("put again");
    assert_eq!(
        (pair.create_revision, pair.mod_revision, pair.version),
        (5, 5, 1)
    );
}

#[test]
fn a_put_that_is_refused_changes_nothing() {
    let mut machine = Machine::new();
    let keep = |request| {
        put(PutRequest {
            ignore_value: true,
            ..request
        })
    };
    let cases = [
        (put(pair_of("", "v")), Reason::EmptyKey),
        (keep(pair_of("k", "v")), Reason::ValueProvided),
        (keep(pair_of("k", "")), Reason::KeyNotFound),
        (
            put(PutRequest {
                ignore_lease: true,
                ..pair_of("k", "v")
            }),
            Reason::KeyNotFound,
        ),
        (
            put(PutRequest {
                ignore_lease: true,
                lease: 7,
                ..pair_of("k", "v")
            }),
            Reason::LeaseProvided,
        ),
        (
            put(PutRequest {
                lease: -7,
                ..pair_of("k", "v")
            }),
            Reason::LeaseNotFound,
        ),
        // etcd looks at the lease of a single put first.
        (
            keep(PutRequest {
                lease: 7,
                ..pair_of("k", "")
            }),
            Reason::LeaseNotFound,
        ),
        (put(pair_of(&"k".repeat(32_001), "v")), Reason::KeyTooLong),
    ];
    for (command, reason) in cases {
        assert_eq!(machine.run(command.clone()), Err(reason), "{command:?}");
    }
    assert_eq!(machine.revision(), 1);
    assert!(machine.events.is_empty() && machine.pair("k").is_none());
}

#[test]
fn a_put_moves_keeps_or_drops_the_lease_of_its_key() {
    let mut machine = Machine::new();
    machine.grant(7);
    machine.grant(8);
    let key = [Bytes::from("k")];
    machine.put(PutRequest {
        lease: 7,
        ..pair_of("k", "1")
    });
    assert_eq!(machine.keys_of_lease(7), key);
    machine.put(PutRequest {
        lease: 8,
        ..pair_of("k", "2")
    });
    assert!(machine.keys_of_lease(7).is_empty());
    assert_eq!(machine.keys_of_lease(8), key);
    machine.put(PutRequest {
        ignore_lease: true,
        ..pair_of("k", "3")
    });
    assert_eq!(machine.keys_of_lease(8), key);
    machine.put(PutRequest {
        ignore_value: true,
        lease: 7,
        ..pair_of("k", "")
    });
    assert_eq!(machine.keys_of_lease(7), key);
    assert_eq!(machine.pair("k").expect("put").value, "3");
    machine.put(pair_of("k", "4"));
    assert!(machine.keys_of_lease(7).is_empty());
    assert_eq!(machine.pair("k").expect("put").lease, 0);
}

#[test]
fn a_delete_tells_what_it_removed_in_key_order() {
    let mut machine = Machine::new();
    for key in ["c", "a", "b", "d"] {
        machine.put(pair_of(key, key));
    }
    let answer = deleted(&mut machine, "a", "d");
    assert_eq!((answer.deleted, at(answer.header.as_ref())), (3, 6));
    let keys: Vec<_> = answer.prev_kvs.iter().map(|kv| kv.key.as_ref()).collect();
    assert_eq!(keys, [b"a", b"b", b"c"]);
    let gone = |key| (6, EventKind::Delete, key);
    assert_eq!(
        machine.last_events(3),
        [gone(b"a".as_slice()), gone(b"b"), gone(b"c")]
    );
    // Nothing to remove: no revision, no event, no error.
    for (key, end) in [("a", ""), ("a", "d"), ("z", "a"), ("d", "d")] {
        let answer = deleted(&mut machine, key, end);
        assert_eq!((answer.deleted, at(answer.header.as_ref())), (0, 6));
    }
    assert_eq!(machine.events.len(), 7);
    assert_eq!(deleted(&mut machine, "\0", "\0").deleted, 1);
}

#[test]
fn compaction_is_bounded_by_the_present_and_the_last_one() {
    let mut machine = Machine::new();
    assert!(machine.run(compact(0)).is_ok(), "a store never compacted");
    machine.put(pair_of("k", "1"));
    machine.put(pair_of("k", "2"));
    assert_eq!(machine.run(compact(4)), Err(Reason::FutureRevision));
    assert_eq!(machine.run(compact(0)), Err(Reason::Compacted));
    let Ok(Answer::Compaction(answer)) = machine.run(compact(3)) else {
        panic!("the current revision can be compacted");
    };
    assert_eq!(at(answer.header.as_ref()), 3);
    for revision in [3, 2, 0, -1] {
        assert_eq!(machine.run(compact(revision)), Err(Reason::Compacted));
    }
    let reader = machine.state.reader();
    assert_eq!((reader.revision(), reader.compact_revision()), (3, 3));
}

#[test]
fn quota_is_a_hint_to_the_member_and_changes_no_command() {
    let mut machine = Machine::new();
    let small = Options {
        quota_backend_bytes: 10,
    };
    machine.state = State::open(machine.state.kv(), &small).expect("opens");
    assert!(!machine.state.reader().over_quota());
    machine.put(pair_of("k", "more than ten bytes"));
    assert!(machine.state.reader().over_quota());
    machine.put(pair_of("k", "and another"));
}

#[test]
fn a_command_of_a_later_version_is_refused_and_the_next_one_runs() {
    let mut machine = Machine::new();
    let boot_id = Bytes::copy_from_slice(OWN.as_bytes());
    let known = log::Command {
        kind: Some(put(pair_of("k", "v"))),
    };
    let proposal = |sequence, command| Proposal {
        boot_id: boot_id.clone(),
        sequence,
        command,
    };
    let unknown = Some(log::Command { kind: None });
    let proposals = vec![
        proposal(4, unknown),
        proposal(5, None),
        proposal(6, Some(known)),
    ];
    let payload = Payload::Normal(log::Batch { proposals }.encode_to_vec().into());
    let id = EntryId::new(1, 1);
    let applied = machine.apply_entries(vec![Committed { id, payload }]);
    let outcomes: Vec<_> = applied
        .outcomes
        .iter()
        .map(|outcome| (outcome.id.sequence, outcome.result.as_ref().err().copied()))
        .collect();
    let refused = Some(Reason::UnknownCommand);
    assert_eq!(outcomes, [(4, refused), (5, refused), (6, None)]);
    assert_eq!(machine.revision(), 2);
}
