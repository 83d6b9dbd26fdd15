//! Lease commands.

use super::*;
use crate::lease::Lease;

#[test]
fn a_grant_costs_no_revision_and_is_refused_twice() {
    let mut machine = Machine::new();
    let grant = |id, ttl_seconds| Kind::LeaseGrant(LeaseGrant { id, ttl_seconds });
    let granted = Answer::LeaseGrant {
        revision: 1,
        id: -5,
        ttl_seconds: 9_000_000_000,
    };
    assert_eq!(machine.run(grant(-5, 9_000_000_000)), Ok(granted));
    assert_eq!(machine.run(grant(-5, 10)), Err(Reason::LeaseExists));
    assert_eq!(
        machine.run(grant(6, 9_000_000_001)),
        Err(Reason::LeaseTtlTooLarge)
    );
    assert_eq!(machine.run(grant(0, 10)), Err(Reason::UnknownCommand));
    assert_eq!(machine.state.reader().lessor().ids(), [-5]);
}

#[test]
fn a_revoke_deletes_the_keys_in_key_order_in_one_revision() {
    let mut machine = Machine::new();
    machine.grant(7);
    for key in ["c", "a", "b"] {
        machine.put(PutRequest {
            lease: 7,
            ..pair_of(key, "v")
        });
    }
    machine.put(pair_of("free", "v"));
    assert_eq!(
        machine.run(revoke(7)),
        Ok(Answer::LeaseRevoke { revision: 6 })
    );
    let gone = |key| (6, EventKind::Delete, key);
    assert_eq!(
        machine.last_events(3),
        [gone(b"a".as_slice()), gone(b"b"), gone(b"c")]
    );
    assert!(machine.pair("free").is_some());
    assert!(machine.state.reader().lessor().is_empty());
    assert_eq!(machine.run(revoke(7)), Err(Reason::LeaseNotFound));
    // Without keys there is no revision.
    machine.grant(8);
    assert_eq!(
        machine.run(revoke(8)),
        Ok(Answer::LeaseRevoke { revision: 6 })
    );
}

#[test]
fn an_expiry_of_many_has_one_revision_for_each_with_keys_and_skips_the_unknown() {
    let mut machine = Machine::new();
    for id in [1, 2, 3] {
        machine.grant(id);
    }
    machine.put(PutRequest {
        lease: 1,
        ..pair_of("one", "v")
    });
    machine.put(PutRequest {
        lease: 3,
        ..pair_of("three", "v")
    });
    assert_eq!(machine.run(expire(&[3, 99, 2, 1])), Ok(Answer::LeaseExpire));
    assert_eq!(
        machine.last_events(2),
        [
            (4, EventKind::Delete, b"one".as_slice()),
            (5, EventKind::Delete, b"three")
        ]
    );
    assert!(machine.state.reader().lessor().is_empty());
    assert_eq!(machine.run(expire(&[1])), Ok(Answer::LeaseExpire));
}

#[test]
fn an_expiry_does_not_end_a_lease_that_took_over_the_id() {
    let mut machine = Machine::new();
    machine.grant(7);
    let judged_at = machine.index;
    machine.run(revoke(7)).expect("granted");
    machine.grant(7);
    machine.put(PutRequest {
        lease: 7,
        ..pair_of("a", "v")
    });
    let late = |as_of| {
        Kind::LeaseExpire(LeaseExpire {
            ids: vec![7],
            as_of,
        })
    };
    assert_eq!(machine.run(late(judged_at)), Ok(Answer::LeaseExpire));
    assert!(machine.pair("a").is_some());
    let reopened = State::open(machine.state.kv(), &Options::default()).expect("opens");
    machine.state = reopened;
    assert_eq!(machine.run(late(judged_at)), Ok(Answer::LeaseExpire));
    assert!(machine.pair("a").is_some());
    let judged_at = machine.index;
    assert_eq!(machine.run(late(judged_at)), Ok(Answer::LeaseExpire));
    assert!(machine.pair("a").is_none());
}

#[test]
fn commands_of_one_batch_see_each_others_leases() {
    let mut machine = Machine::new();
    let grant = Kind::LeaseGrant(LeaseGrant {
        id: 7,
        ttl_seconds: 9,
    });
    let with_lease = |key| {
        put(PutRequest {
            lease: 7,
            ..pair_of(key, "v")
        })
    };
    let entry = machine.entry(vec![grant, with_lease("a"), revoke(7), with_lease("b")]);
    let applied = machine.apply_entries(vec![entry]);
    let passed: Vec<_> = applied
        .outcomes
        .iter()
        .map(|outcome| (outcome.id.sequence, outcome.result.is_ok()))
        .collect();
    assert_eq!(passed, [(1, true), (2, true), (3, true), (4, false)]);
    assert_eq!(machine.revision(), 3);
    assert!(machine.pair("a").is_none() && machine.pair("b").is_none());
    assert!(machine.state.reader().lessor().is_empty());
}

#[test]
fn checkpoints_are_kept_cleared_and_reopened() {
    let mut machine = Machine::new();
    machine.grant(7);
    let expected = |remaining_ttl_seconds| Lease {
        id: 7,
        granted_ttl_seconds: 60,
        remaining_ttl_seconds,
        granted_at: 1,
    };
    for remaining in [40, 0, 12] {
        machine.run(checkpoint(7, remaining)).expect("recorded");
        machine.run(checkpoint(99, 5)).expect("unknown: skipped");
        let lessor = machine.state.reader().lessor();
        assert_eq!(lessor.get(7), Some(expected(remaining)));
        let reopened = State::open(machine.state.kv(), &Options::default()).expect("opens");
        let lessor = reopened.reader().lessor();
        assert_eq!(lessor.get(7), Some(expected(remaining)));
        assert_eq!(lessor.get(99), None);
    }
}
