//! Requests made from choices instead of decoded: few keys, leases and revisions, so that they hit one
//! another. They reach deeper than bytes that happen to decode.

use bytes::Bytes;
use quorate_proto::etcdserverpb::compare::TargetUnion;
use quorate_proto::etcdserverpb::request_op::Request;
use quorate_proto::etcdserverpb::{
    Compare, DeleteRangeRequest, PutRequest, RangeRequest, RequestOp, TxnRequest,
};

use crate::Input;

/// Operations of a branch, and compares, at most.
const OPS_MAX: u8 = 4;
/// Levels at most; nine are refused.
const DEPTH_MAX: u8 = 9;

/// A key; now and then none, or one with extreme bytes.
fn key(input: &mut Input<'_>) -> Bytes {
    const KEYS: [&[u8]; 8] = [b"a", b"b", b"c", b"ab", b"d", b"\0", b"\xff", b""];
    Bytes::from_static(KEYS[usize::from(input.byte() % 8)])
}

/// A range end; more often none than not.
fn range_end(input: &mut Input<'_>) -> Bytes {
    if input.byte().is_multiple_of(2) {
        return Bytes::new();
    }
    if input.byte().is_multiple_of(4) {
        return Bytes::from_static(b"\0");
    }
    key(input)
}

/// A revision, a limit or a number of versions.
fn number(input: &mut Input<'_>) -> i64 {
    match input.byte() {
        byte @ 0..0xf0 => i64::from(byte % 16),
        _ => input.extreme().cast_signed(),
    }
}

fn flag(input: &mut Input<'_>) -> bool {
    input.byte() % 4 == 3
}

pub(super) fn put(input: &mut Input<'_>) -> PutRequest {
    let key = key(input);
    let (ignore_value, ignore_lease) = (flag(input), flag(input));
    let value = if ignore_value { &[] } else { input.bytes(2) };
    PutRequest {
        key,
        value: Bytes::copy_from_slice(value),
        lease: if ignore_lease { 0 } else { number(input) % 4 },
        prev_kv: flag(input),
        ignore_value,
        ignore_lease,
    }
}

pub(super) fn delete(input: &mut Input<'_>) -> DeleteRangeRequest {
    DeleteRangeRequest {
        key: key(input),
        range_end: range_end(input),
        prev_kv: flag(input),
    }
}

pub(super) fn range(input: &mut Input<'_>) -> RangeRequest {
    let filter = |input: &mut Input<'_>| if flag(input) { number(input) } else { 0 };
    RangeRequest {
        key: key(input),
        range_end: range_end(input),
        limit: filter(input),
        revision: filter(input),
        sort_order: i32::from(input.byte() % 4),
        sort_target: i32::from(input.byte() % 5),
        serializable: flag(input),
        keys_only: flag(input),
        count_only: flag(input),
        min_mod_revision: filter(input),
        max_mod_revision: filter(input),
        min_create_revision: filter(input),
        max_create_revision: filter(input),
    }
}

fn compare(input: &mut Input<'_>) -> Compare {
    let target = i32::from(input.byte() % 6);
    let union = match input.byte() % 8 {
        0 => None,
        1 => Some(TargetUnion::CreateRevision(number(input))),
        2 => Some(TargetUnion::ModRevision(number(input))),
        3 => Some(TargetUnion::Lease(number(input))),
        4 => Some(TargetUnion::Value(Bytes::copy_from_slice(input.bytes(1)))),
        _ => Some(TargetUnion::Version(number(input))),
    };
    Compare {
        result: i32::from(input.byte() % 5),
        target,
        key: key(input),
        range_end: range_end(input),
        target_union: union,
    }
}

pub(super) fn txn(input: &mut Input<'_>, depth: u8) -> TxnRequest {
    let operations = |input: &mut Input<'_>| {
        (0..input.byte() % OPS_MAX)
            .map(|_| operation(input, depth))
            .collect()
    };
    TxnRequest {
        success: operations(input),
        failure: operations(input),
        compare: (0..input.byte() % OPS_MAX)
            .map(|_| compare(input))
            .collect(),
    }
}

fn operation(input: &mut Input<'_>, depth: u8) -> RequestOp {
    let request = match input.byte() % 8 {
        0 | 1 => Some(Request::RequestPut(put(input))),
        2 => Some(Request::RequestDeleteRange(delete(input))),
        3..=6 if depth < DEPTH_MAX && !input.is_empty() => {
            Some(Request::RequestTxn(txn(input, depth + 1)))
        }
        7 if flag(input) => None,
        _ => Some(Request::RequestRange(range(input))),
    };
    RequestOp { request }
}
