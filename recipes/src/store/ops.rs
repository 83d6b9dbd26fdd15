//! Short names for the pieces of etcd's requests that recipes are built of.

use bytes::Bytes;
use quorate_proto::etcdserverpb as pb;
use quorate_proto::etcdserverpb::compare::{CompareResult, CompareTarget, TargetUnion};
use quorate_proto::etcdserverpb::range_request::{SortOrder, SortTarget};
use quorate_proto::etcdserverpb::request_op::Request;
use quorate_proto::etcdserverpb::response_op::Response;
use quorate_proto::mvccpb::KeyValue;

use crate::keys::{Key, KeyRange, LeaseId, Revision};

/// A condition of a transaction. Over a range it must hold for every key there; an empty range is
/// judged like an absent key, whose revisions and lease are 0.
#[derive(Debug, Clone, PartialEq)]
pub struct Compare(pb::Compare);

impl Compare {
    fn new(range: KeyRange, result: CompareResult, union: TargetUnion) -> Self {
        let target = match union {
            TargetUnion::Version(_) => CompareTarget::Version,
            TargetUnion::CreateRevision(_) => CompareTarget::Create,
            TargetUnion::ModRevision(_) => CompareTarget::Mod,
            TargetUnion::Value(_) => CompareTarget::Value,
            TargetUnion::Lease(_) => CompareTarget::Lease,
        };
        Self(pb::Compare {
            result: result.into(),
            target: target.into(),
            key: range.start,
            range_end: range.end,
            target_union: Some(union),
        })
    }

    fn equal(key: impl Into<Key>, union: TargetUnion) -> Self {
        Self::new(KeyRange::one(key), CompareResult::Equal, union)
    }

    /// The key does not exist.
    #[must_use]
    pub fn absent(key: impl Into<Key>) -> Self {
        Self::equal(key, TargetUnion::CreateRevision(0))
    }

    /// The key exists.
    #[must_use]
    pub fn present(key: impl Into<Key>) -> Self {
        Self::new(
            KeyRange::one(key),
            CompareResult::Greater,
            TargetUnion::CreateRevision(0),
        )
    }

    /// No key of the range exists.
    #[must_use]
    pub fn empty(range: KeyRange) -> Self {
        Self::new(range, CompareResult::Equal, TargetUnion::CreateRevision(0))
    }

    /// A key of the range exists. Where several do, all of them do.
    #[must_use]
    pub fn occupied(range: KeyRange) -> Self {
        Self::new(
            range,
            CompareResult::Greater,
            TargetUnion::CreateRevision(0),
        )
    }

    /// The key was created at this revision, and has existed since; 0: it does not exist.
    #[must_use]
    pub fn create_revision(key: impl Into<Key>, revision: Revision) -> Self {
        Self::equal(key, TargetUnion::CreateRevision(revision.0))
    }

    /// The key was last written at this revision; 0: it does not exist.
    #[must_use]
    pub fn mod_revision(key: impl Into<Key>, revision: Revision) -> Self {
        Self::equal(key, TargetUnion::ModRevision(revision.0))
    }

    /// The key exists with this value.
    #[must_use]
    pub fn value(key: impl Into<Key>, value: impl Into<Bytes>) -> Self {
        Self::equal(key, TargetUnion::Value(value.into()))
    }

    /// The key is attached to this lease.
    #[must_use]
    pub fn lease(key: impl Into<Key>, lease: LeaseId) -> Self {
        Self::equal(key, TargetUnion::Lease(lease.0))
    }

    /// No key of the range was written after `revision`. Deletions are not seen.
    #[must_use]
    pub fn unwritten_since(range: KeyRange, revision: Revision) -> Self {
        Self::new(
            range,
            CompareResult::Less,
            TargetUnion::ModRevision(revision.0.saturating_add(1)),
        )
    }

    /// No key of the range was created after `revision`. Deletions are not seen.
    #[must_use]
    pub fn uncreated_since(range: KeyRange, revision: Revision) -> Self {
        Self::new(
            range,
            CompareResult::Less,
            TargetUnion::CreateRevision(revision.0.saturating_add(1)),
        )
    }

    /// Judges the condition on what a read of its one key returned.
    #[must_use]
    pub fn holds_for(&self, kv: Option<&KeyValue>) -> bool {
        let Some(union) = &self.0.target_union else {
            return false;
        };
        let order = match union {
            TargetUnion::Version(v) => kv.map_or(0, |kv| kv.version).cmp(v),
            TargetUnion::CreateRevision(v) => kv.map_or(0, |kv| kv.create_revision).cmp(v),
            TargetUnion::ModRevision(v) => kv.map_or(0, |kv| kv.mod_revision).cmp(v),
            TargetUnion::Lease(v) => kv.map_or(0, |kv| kv.lease).cmp(v),
            TargetUnion::Value(v) => match kv {
                Some(kv) => kv.value.cmp(v),
                None => return false,
            },
        };
        match self.0.result() {
            CompareResult::Equal => order.is_eq(),
            CompareResult::Greater => order.is_gt(),
            CompareResult::Less => order.is_lt(),
            CompareResult::NotEqual => order.is_ne(),
        }
    }
}

impl From<pb::Compare> for Compare {
    fn from(compare: pb::Compare) -> Self {
        Self(compare)
    }
}

impl From<Compare> for pb::Compare {
    fn from(compare: Compare) -> Self {
        compare.0
    }
}

/// A put, attached to `lease`, or to none.
#[must_use]
pub fn put(key: impl Into<Key>, value: Bytes, lease: Option<LeaseId>) -> pb::RequestOp {
    op(Request::RequestPut(pb::PutRequest {
        key: key.into().into_bytes(),
        value,
        lease: lease.map_or(0, |lease| lease.0),
        ..Default::default()
    }))
}

/// Whether a transaction puts a key under another lease than this one, on either branch, or in one inside of it.
#[must_use]
pub fn uses_other_lease(request: &pb::TxnRequest, lease: LeaseId) -> bool {
    let mut both = request.success.iter().chain(&request.failure);
    both.any(|op| match &op.request {
        Some(Request::RequestPut(put)) => put.lease != 0 && put.lease != lease.0,
        Some(Request::RequestTxn(inside)) => uses_other_lease(inside, lease),
        _ => false,
    })
}

/// A deletion of every key of the range.
#[must_use]
pub fn delete(range: KeyRange) -> pb::RequestOp {
    op(Request::RequestDeleteRange(pb::DeleteRangeRequest {
        key: range.start,
        range_end: range.end,
        prev_kv: false,
    }))
}

/// A read as part of a transaction.
#[must_use]
pub fn read(request: pb::RangeRequest) -> pb::RequestOp {
    op(Request::RequestRange(request))
}

/// A transaction as part of a transaction.
#[must_use]
pub fn nested(request: pb::TxnRequest) -> pb::RequestOp {
    op(Request::RequestTxn(request))
}

/// An operation that is only done if this holds, whatever else the transaction does.
#[must_use]
pub fn when(compare: Compare, operation: pb::RequestOp) -> pb::RequestOp {
    nested(pb::TxnRequest {
        compare: vec![compare.into()],
        success: vec![operation],
        failure: Vec::new(),
    })
}

fn op(request: Request) -> pb::RequestOp {
    pb::RequestOp {
        request: Some(request),
    }
}

/// A read of every key of the range, in key order.
#[must_use]
pub fn range(range: KeyRange) -> pb::RangeRequest {
    pb::RangeRequest {
        key: range.start,
        range_end: range.end,
        ..Default::default()
    }
}

/// A read of one key.
#[must_use]
pub fn get(key: impl Into<Key>) -> pb::RangeRequest {
    range(KeyRange::one(key))
}

/// A read of the `limit` keys of the range that were created last, newest first, without values.
#[must_use]
pub fn newest(keys: KeyRange, limit: i64) -> pb::RangeRequest {
    pb::RangeRequest {
        limit,
        sort_order: SortOrder::Descend.into(),
        sort_target: SortTarget::Create.into(),
        keys_only: true,
        ..range(keys)
    }
}

/// A read of the last key of the range in key order, without its value.
#[must_use]
pub fn last(keys: KeyRange) -> pb::RangeRequest {
    pb::RangeRequest {
        limit: 1,
        sort_order: SortOrder::Descend.into(),
        sort_target: SortTarget::Key.into(),
        keys_only: true,
        ..range(keys)
    }
}

/// A count of the keys of the range.
#[must_use]
pub fn counting(keys: KeyRange) -> pb::RangeRequest {
    pb::RangeRequest {
        count_only: true,
        ..range(keys)
    }
}

/// A read of the `limit` keys of the range that were created first, oldest first.
#[must_use]
pub fn oldest(keys: KeyRange, limit: i64) -> pb::RangeRequest {
    pb::RangeRequest {
        limit,
        sort_order: SortOrder::Ascend.into(),
        sort_target: SortTarget::Create.into(),
        ..range(keys)
    }
}

/// The keys that operation `index` of a transaction read; empty if it was not a read.
#[must_use]
pub fn kvs(responses: &[pb::ResponseOp], index: usize) -> &[KeyValue] {
    match responses.get(index).and_then(|op| op.response.as_ref()) {
        Some(Response::ResponseRange(range)) => &range.kvs,
        _ => &[],
    }
}

/// How many keys operation `index` of a transaction found, beyond its limit too; 0 if it was not a read.
#[must_use]
pub fn count(responses: &[pb::ResponseOp], index: usize) -> u64 {
    match responses.get(index).and_then(|op| op.response.as_ref()) {
        Some(Response::ResponseRange(range)) => u64::try_from(range.count).unwrap_or(0),
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_condition_is_judged_on_a_read_as_the_store_judges_it() {
        let kv = KeyValue {
            key: "k".into(),
            create_revision: 5,
            mod_revision: 7,
            lease: 9,
            value: "v".into(),
            ..Default::default()
        };
        let cases = [
            (Compare::absent("k"), false, true),
            (Compare::present("k"), true, false),
            (Compare::create_revision("k", Revision(5)), true, false),
            (Compare::mod_revision("k", Revision(5)), false, false),
            (Compare::lease("k", LeaseId(9)), true, false),
            (Compare::value("k", "v"), true, false),
            (Compare::value("k", ""), false, false),
        ];
        for (compare, with, without) in cases {
            assert_eq!(compare.holds_for(Some(&kv)), with, "{compare:?}");
            assert_eq!(compare.holds_for(None), without, "{compare:?}");
        }
    }
}
