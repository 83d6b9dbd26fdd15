//! The shape of requests.

use quorate_proto::etcdserverpb::{Compare, RangeRequest, RequestOp, request_op::Request};
use quorate_proto::txn::{TxnBuilder, delete as delete_op, get, put as put_op, version};

use super::*;
use crate::apply::check;

fn del(key: &str, range_end: &'static str) -> RequestOp {
    DeleteRangeRequest {
        range_end: Bytes::from_static(range_end.as_bytes()),
        ..delete_op(key.to_owned())
    }
    .into()
}

fn set(key: &str) -> RequestOp {
    put_op(key.to_owned(), "v").into()
}

fn txn<const S: usize, const F: usize>(
    success: [RequestOp; S],
    failure: [RequestOp; F],
) -> TxnRequest {
    TxnBuilder::new()
        .then_all(success)
        .or_else_all(failure)
        .build()
}

fn nest(request: TxnRequest) -> RequestOp {
    request.into()
}

/// Rows as a real etcd 3.4.23 answers them.
#[test]
fn a_key_is_touched_once_on_every_way_through_a_transaction() {
    let dup = Err(Reason::DuplicateKey);
    let rows = [
        ("two puts", txn([set("k"), set("k")], []), dup),
        ("put, delete", txn([set("k"), del("k", "")], []), dup),
        ("delete, put", txn([del("k", ""), set("k")], []), dup),
        (
            "put in a deleted range",
            txn([set("k"), del("a", "z")], []),
            dup,
        ),
        (
            "put at the end of a range",
            txn([set("k"), del("a", "k")], []),
            Ok(()),
        ),
        (
            "put past one deleted key",
            txn([set("k\0"), del("k", "")], []),
            Ok(()),
        ),
        ("empty range", txn([set("k"), del("z", "a")], []), Ok(())),
        (
            "overlapping deletes",
            txn([del("a", "m"), del("b", "z"), set("k")], []),
            dup,
        ),
        (
            "nested ranges",
            txn([del("b", "c"), del("a", "z"), set("y")], []),
            dup,
        ),
        (
            "the branch not taken",
            txn([], [del("k", ""), set("k")]),
            dup,
        ),
        (
            "success and failure",
            txn([set("k")], [set("k"), del("l", "")]),
            Ok(()),
        ),
        (
            "two deletes",
            txn([del("k", ""), del("a", "z"), del("k", "")], []),
            Ok(()),
        ),
        (
            "from-key delete",
            txn([set("k"), del("a", "\0")], []),
            Ok(()),
        ),
        (
            "nested put, delete",
            txn([nest(txn([set("k")], [])), del("k", "")], []),
            dup,
        ),
        (
            "nested delete, put",
            txn([nest(txn([], [del("k", "")])), set("k")], []),
            dup,
        ),
        (
            "put, nested delete",
            txn([set("k"), nest(txn([del("a", "z")], []))], []),
            dup,
        ),
        (
            "siblings put",
            txn([nest(txn([], [set("k")])), nest(txn([], [set("k")]))], []),
            dup,
        ),
        (
            "sibling deletes, sibling puts",
            txn(
                [nest(txn([del("k", "")], [])), nest(txn([set("k")], []))],
                [],
            ),
            dup,
        ),
        (
            "sibling puts, sibling deletes",
            txn(
                [nest(txn([set("k")], [])), nest(txn([del("k", "")], []))],
                [],
            ),
            Ok(()),
        ),
        (
            "branches of one nested transaction",
            txn(
                [
                    nest(txn([set("k")], [set("k")])),
                    nest(txn([set("l")], [del("l", "")])),
                ],
                [],
            ),
            Ok(()),
        ),
    ];
    for (name, request, expected) in rows {
        assert_eq!(check::txn(&request, 128), expected, "{name}");
    }
}

#[test]
fn every_branch_and_level_is_checked() {
    let bad_compare = |key: &str| {
        TxnBuilder::new()
            .when(version(key.to_owned()).equal(0))
            .build()
    };
    let long = "k".repeat(32_001);
    let range = |change: fn(&mut RangeRequest)| {
        let mut request = get("k");
        change(&mut request);
        RequestOp::from(request)
    };
    let keep = |value: &'static str, lease| PutRequest {
        ignore_value: true,
        ignore_lease: true,
        lease,
        ..put_op("k", value)
    };
    let long_end = Compare {
        range_end: long.clone().into(),
        ..version("k").equal(0)
    };
    let operations = [
        (set(""), Reason::EmptyKey),
        (del("", "\0"), Reason::EmptyKey),
        (get("").into(), Reason::EmptyKey),
        (nest(bad_compare("")), Reason::EmptyKey),
        (set(&long), Reason::KeyTooLong),
        (
            range(|range| range.range_end = vec![1; 32_001].into()),
            Reason::KeyTooLong,
        ),
        (nest(bad_compare(&long)), Reason::KeyTooLong),
        (
            nest(TxnBuilder::new().when(long_end).build()),
            Reason::KeyTooLong,
        ),
        (
            range(|range| range.sort_target = 9),
            Reason::InvalidSortOption,
        ),
        (keep("v", 0).into(), Reason::ValueProvided),
        (keep("", 3).into(), Reason::LeaseProvided),
        (RequestOp { request: None }, Reason::KeyNotFound),
    ];
    for (operation, reason) in operations {
        let single = match operation.request.clone() {
            Some(Request::RequestRange(request)) => check::range(&request),
            Some(Request::RequestPut(request)) => check::put(&request),
            Some(Request::RequestDeleteRange(request)) => check::delete_range(&request),
            Some(Request::RequestTxn(_)) | None => Err(reason),
        };
        assert_eq!(single, Err(reason), "{operation:?}");
        let inner = txn([], [operation.clone()]);
        for request in [
            txn([operation.clone()], []),
            inner.clone(),
            txn([], [nest(inner)]),
        ] {
            assert_eq!(check::txn(&request, 128), Err(reason), "{operation:?}");
        }
    }
    // Fine: an unknown order, the longest key, an odd revision.
    assert_eq!(
        check::txn(&txn([range(|range| range.sort_order = 9)], []), 128),
        Ok(())
    );
    assert_eq!(check::put(&put_op("k".repeat(32_000), "")), Ok(()));
}

#[test]
fn operations_are_limited_by_level_and_what_the_parents_leave() {
    let gets = |count: usize| vec![RequestOp::from(get("k")); count];
    let compares = |count: usize| vec![version("k").equal(0); count];
    let check = |builder: TxnBuilder| check::txn(&builder.build(), 128);
    let many = Err(Reason::TooManyOps);
    let new = TxnBuilder::new;
    assert_eq!(
        check(new().then_all(gets(100)).or_else_all(gets(100))),
        Ok(())
    );
    assert_eq!(check(new().when_all(compares(128)).then(get("k"))), Ok(()));
    assert_eq!(check(new().when_all(compares(129))), many);
    assert_eq!(check(new().or_else_all(gets(129))), many);
    let nested = |count| new().then_all(gets(count)).build();
    assert_eq!(check(new().then(nested(127))), Ok(()));
    assert_eq!(check(new().then(nested(129))), many);
    assert_eq!(check(new().then_all(gets(100)).then(nested(100))), many);
    assert_eq!(check(new().then_all(gets(100)).then(nested(27))), Ok(()));
}

#[test]
fn nesting_is_limited() {
    let mut request = TxnRequest::default();
    for _ in 1..8 {
        request = TxnBuilder::new().then(request).build();
    }
    assert_eq!(check::txn(&request, 128), Ok(()));
    let deeper = TxnBuilder::new().or_else(request).build();
    assert_eq!(check::txn(&deeper, 128), Err(Reason::TxnTooDeep));
}

#[test]
fn a_time_to_live_has_an_upper_bound_alone() {
    let grant = check::ttl;
    for ttl in [-1, 0, 1, 9_000_000_000] {
        assert_eq!(grant(ttl), Ok(()));
    }
    assert_eq!(grant(9_000_000_001), Err(Reason::LeaseTtlTooLarge));
}
