//! Transactions as they are applied.

use quorate_proto::etcdserverpb::compare::TargetUnion;
use quorate_proto::etcdserverpb::{Compare, RangeRequest, RequestOp};
use quorate_proto::txn::{
    TxnBuilder, absent, create_revision, delete as delete_op, exists, get, lease, mod_revision,
    put as put_op, value, version,
};

use super::*;
use crate::apply::txn::{Writes, read};
use crate::mvcc::Error;

fn machine(pairs: &[(&str, &str)]) -> Machine {
    let mut machine = Machine::new();
    for (key, value) in pairs {
        machine.put(pair_of(key, value));
    }
    machine
}

fn holds(machine: &mut Machine, compares: impl IntoIterator<Item = Compare>) -> bool {
    let request = TxnBuilder::new().when_all(compares).build();
    machine.txn(request).expect("only compares").succeeded
}

#[test]
fn compares_judge_as_etcd_does() {
    let mut machine = machine(&[("a", "1"), ("a", "2"), ("b", "5")]);
    let wrong_union = Compare {
        target_union: Some(TargetUnion::Version(2)),
        ..mod_revision("a").equal(0)
    };
    let no_union = Compare {
        target_union: None,
        ..version("a").greater(9)
    };
    let unknown = |result, target| Compare {
        result,
        target,
        ..version("a").equal(7)
    };
    let rows = [
        (version("a").equal(2), true),
        (version("a").not_equal(2), false),
        (create_revision("a").equal(2), true),
        (mod_revision("a").greater(2), true),
        (mod_revision("a").less(3), false),
        (lease("a").equal(0), true),
        (value("a").equal("2"), true),
        (value("a").greater("1"), true),
        // Absent: numbers are 0, and no statement on a value holds.
        (absent("x"), true),
        (version("x").equal(0), true),
        (lease("x").less(1), true),
        (value("x").equal(""), false),
        (value("x").not_equal("2"), false),
        // Ranges: all existing keys must satisfy it; none is like absent.
        (version("").over(&prefix("")).greater(0), true),
        (value("").over(&prefix("")).greater("1"), true),
        (value("").over(&prefix("")).greater("2"), false),
        (create_revision("").over(&prefix("x")).equal(0), true),
        (value("").over(&prefix("x")).not_equal("q"), false),
        // A union of another target, or none, is 0; unknown enums are as etcd takes them.
        (wrong_union, false),
        (no_union, true),
        (unknown(9, 0), true),
        (unknown(0, 9), true),
        (unknown(1, 9), false),
    ];
    for (compare, expected) in rows {
        assert_eq!(
            holds(&mut machine, [compare.clone()]),
            expected,
            "{compare:?}"
        );
    }
    assert!(holds(&mut machine, []), "no compares hold");
    assert!(!holds(&mut machine, [exists("a"), exists("x")]));
    assert_eq!(machine.revision(), 4);
}

fn prefix(prefix: &'static str) -> quorate_proto::KeyRange {
    quorate_proto::KeyRange::prefix(prefix)
}

#[test]
fn inner_headers_carry_the_revision_at_their_place() {
    let mut machine = machine(&[("a", "1")]);
    let request = TxnBuilder::new()
        .then(get("a"))
        .then(delete_op("x"))
        .then(put_op("b", "2"))
        .then(get("b"))
        .then(delete_op("x"))
        .then(TxnBuilder::new().then(get("a")).build())
        .build();
    let answer = machine.txn(request).expect("passes");
    assert!(answer.succeeded);
    assert_eq!(answer.revision(), 3);
    let inner: Vec<i64> = answer
        .responses
        .iter()
        .map(|response| {
            let header = response
                .as_range()
                .and_then(|answer| answer.header)
                .or_else(|| response.as_put().and_then(|answer| answer.header))
                .or_else(|| response.as_delete().and_then(|answer| answer.header))
                .or_else(|| response.as_txn().and_then(|answer| answer.header));
            header.expect("a header").revision
        })
        .collect();
    assert_eq!(inner, [2, 2, 3, 3, 3, 0]);
    // Reads see the writes before them.
    assert_eq!(
        answer.responses[3].as_range().expect("a range").kvs[0].value,
        "2"
    );
    let nested = answer.responses[5].as_txn().expect("nested");
    assert_eq!(
        nested.ranges().next().expect("a range").header,
        Some(super::super::executor::header(3))
    );
}

#[test]
fn one_revision_for_all_writes_none_without() {
    let mut machine = machine(&[("a", "1"), ("b", "1")]);
    let request = TxnBuilder::new()
        .then(put_op("c", "1"))
        .then(delete_op("a"))
        .then(TxnBuilder::new().then(put_op("d", "1")).build())
        .then(delete_op("b"))
        .build();
    machine.txn(request).expect("passes");
    assert_eq!(
        machine.last_events(4),
        [
            (4, EventKind::Put, b"c".as_slice()),
            (4, EventKind::Delete, b"a"),
            (4, EventKind::Put, b"d"),
            (4, EventKind::Delete, b"b"),
        ]
    );
    let idle = TxnBuilder::new()
        .then(delete_op("x"))
        .then(get("c"))
        .build();
    assert_eq!(machine.txn(idle).expect("passes").revision(), 4);
    assert_eq!(
        machine
            .txn(TxnRequest::default())
            .expect("passes")
            .responses,
        []
    );
    assert_eq!(machine.revision(), 4);
}

#[test]
fn nested_compares_see_the_store_before_the_whole_transaction() {
    let mut machine = machine(&[]);
    let nested = TxnBuilder::new()
        .when(absent("k"))
        .then(get("k"))
        .or_else(put_op("wrong", "branch"))
        .build();
    let request = TxnBuilder::new()
        .then(put_op("k", "1"))
        .then(nested)
        .build();
    let answer = machine.txn(request).expect("passes");
    let nested = answer.responses[1].as_txn().expect("nested");
    assert!(nested.succeeded, "k was absent before");
    // The read in it, however, sees the write.
    assert_eq!(nested.ranges().next().expect("a range").count, 1);
    assert!(machine.pair("wrong").is_none());
}

#[test]
fn a_range_with_a_revision_reads_that_revision() {
    let mut machine = machine(&[("k", "1"), ("k", "2")]);
    let old = |revision| RangeRequest {
        revision,
        ..get("k")
    };
    let request = TxnBuilder::new()
        .then(put_op("k", "3"))
        .then(old(2))
        .then(old(3))
        .then(get("k"))
        .build();
    let answer = machine.txn(request).expect("passes");
    let values: Vec<_> = answer.kvs().map(|kv| kv.value.as_ref()).collect();
    assert_eq!(values, [b"1", b"2", b"3"]);
}

/// Operations that are refused by the state, with what etcd says.
fn refused() -> Vec<(RequestOp, Reason)> {
    let revision = |revision| RangeRequest {
        revision,
        ..get("k")
    };
    let keep = PutRequest {
        ignore_value: true,
        ..put_op("x", "")
    };
    let keep_lease = PutRequest {
        ignore_lease: true,
        ..put_op("x", "")
    };
    vec![
        (
            PutRequest {
                lease: 77,
                ..put_op("l", "v")
            }
            .into(),
            Reason::LeaseNotFound,
        ),
        (keep.clone().into(), Reason::KeyNotFound),
        (PutRequest { lease: 77, ..keep }.into(), Reason::KeyNotFound),
        (keep_lease.into(), Reason::KeyNotFound),
        (revision(99).into(), Reason::FutureRevision),
        (revision(5).into(), Reason::FutureRevision),
        (revision(2).into(), Reason::Compacted),
    ]
}

#[test]
fn a_refusal_in_the_branch_taken_takes_everything_back() {
    for (operation, reason) in refused() {
        for nest in [false, true] {
            let mut machine = machine(&[("k", "1"), ("k", "2"), ("gone", "g")]);
            machine.run(compact(3)).expect("compacts");
            let bad = if nest {
                TxnBuilder::new().then(operation.clone()).build().into()
            } else {
                operation.clone()
            };
            let request = TxnBuilder::new()
                .then(put_op("first", "v"))
                .then(delete_op("gone"))
                .then(bad.clone())
                .then(put_op("last", "v"))
                .build();
            assert_eq!(machine.txn(request), Err(reason), "{operation:?}");
            assert_eq!(machine.revision(), 4);
            assert!(machine.pair("first").is_none() && machine.pair("gone").is_some());
            // Not taken, it does not matter.
            let request = TxnBuilder::new()
                .then(put_op("ok", "v"))
                .or_else(bad)
                .build();
            assert!(machine.txn(request).is_ok(), "{operation:?}");
        }
    }
}

#[test]
fn a_negative_revision_in_a_transaction_counts_as_older_than_the_compacted_one() {
    let mut machine = machine(&[("k", "1")]);
    let read = |machine: &mut Machine, revision| {
        let request = RangeRequest {
            revision,
            ..get("k")
        };
        let answer = machine.txn(TxnBuilder::new().then(request).then(delete_op("x")).build());
        answer.map(|answer| answer.kvs().count())
    };
    assert_eq!(read(&mut machine, -1), Ok(1));
    assert_eq!(read(&mut machine, -2), Err(Reason::Compacted));
    machine.run(compact(1)).expect("compacts");
    assert_eq!(read(&mut machine, 0), Ok(1));
    assert_eq!(read(&mut machine, -1), Err(Reason::Compacted));
}

#[test]
fn a_refused_put_goes_before_a_refused_range() {
    let mut machine = machine(&[]);
    let future = RangeRequest {
        revision: 99,
        ..get("k")
    };
    let keep = PutRequest {
        ignore_value: true,
        ..put_op("k", "")
    };
    let request = TxnBuilder::new().then(future).then(keep).build();
    assert_eq!(machine.txn(request), Err(Reason::KeyNotFound));
}

#[test]
fn a_key_deleted_before_is_not_there_to_keep_its_value() {
    // etcd accepts this shape and crashes on it.
    let mut machine = machine(&[("k", "1")]);
    let all = DeleteRangeRequest {
        range_end: "\0".into(),
        ..delete_op("a")
    };
    let keep = PutRequest {
        ignore_value: true,
        ..put_op("k", "")
    };
    let request = TxnBuilder::new()
        .then(all.clone())
        .then(keep.clone())
        .build();
    assert_eq!(machine.txn(request), Err(Reason::KeyNotFound));
    assert_eq!(machine.pair("k").expect("still there").value, "1");
    // The other way round it is put, then deleted.
    let request = TxnBuilder::new().then(keep).then(all).build();
    let answer = machine.txn(request).expect("passes");
    assert_eq!(answer.deletes().next().expect("a delete").deleted, 1);
    assert!(machine.pair("k").is_none());
}

#[test]
fn shape_is_checked_when_applied_but_not_the_number_of_operations() {
    let mut machine = machine(&[]);
    let twice = TxnBuilder::new()
        .or_else(put_op("k", "1"))
        .or_else(put_op("k", "2"));
    assert_eq!(machine.txn(twice.build()), Err(Reason::DuplicateKey));
    let many = (0..500).map(|number| put_op(format!("{number}"), "v").into());
    assert!(
        machine
            .txn(TxnBuilder::new().then_all(many).build())
            .is_ok()
    );
}

#[test]
fn a_transaction_that_only_reads_needs_no_log() {
    let machine = machine(&[("k", "1")]);
    let view = machine.state.reader().view();
    let request = TxnBuilder::new().when(exists("k")).then(get("k")).build();
    assert!(Writes::of(&request).is_none());
    let answer = read(Arc::clone(&view), request).expect("readable");
    assert!(answer.succeeded && answer.kvs().count() == 1 && answer.revision() == 2);
    let writing = TxnBuilder::new().or_else(delete_op("k")).build();
    assert!(matches!(
        read(view, writing),
        Err(Error::Refused(Reason::Internal))
    ));
}
