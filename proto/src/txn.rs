//! Writing transactions without the noise of nested protobuf options; used by the recipes and by
//! tests. Their answers are read with the methods of [`TxnResponse`](crate::etcdserverpb::TxnResponse).

use bytes::Bytes;

use crate::KeyRange;
use crate::etcdserverpb::compare::{CompareResult, CompareTarget, TargetUnion};
use crate::etcdserverpb::request_op::Request;
use crate::etcdserverpb::{
    Compare, DeleteRangeRequest, PutRequest, RangeRequest, RequestOp, TxnRequest,
};

/// Collects a transaction: if all conditions hold one branch runs, else the other.
///
/// It checks nothing; the server refuses what exceeds [`limits`](crate::limits).
///
/// # Examples
/// ```
/// use quorate_proto::etcdserverpb::PutRequest;
/// use quorate_proto::txn::{TxnBuilder, absent, get, put};
///
/// let take = TxnBuilder::new()
///     .when(absent("owner"))
///     .then(PutRequest { lease: 7, ..put("owner", "me") })
///     .or_else(get("owner"))
///     .build();
/// assert_eq!(take.compare.len(), 1);
/// ```
#[derive(Clone, Debug, Default)]
#[must_use]
pub struct TxnBuilder {
    request: TxnRequest,
}

impl TxnBuilder {
    /// A transaction without conditions and operations.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a condition.
    pub fn when(self, condition: Compare) -> Self {
        self.when_all([condition])
    }

    /// Adds conditions.
    pub fn when_all(mut self, conditions: impl IntoIterator<Item = Compare>) -> Self {
        self.request.compare.extend(conditions);
        self
    }

    /// Adds an operation to the branch that runs if all conditions hold.
    pub fn then(self, operation: impl Into<RequestOp>) -> Self {
        self.then_all([operation.into()])
    }

    /// Adds operations to the branch that runs if all conditions hold.
    pub fn then_all(mut self, operations: impl IntoIterator<Item = RequestOp>) -> Self {
        self.request.success.extend(operations);
        self
    }

    /// Adds an operation to the branch that runs if some condition does not hold.
    pub fn or_else(self, operation: impl Into<RequestOp>) -> Self {
        self.or_else_all([operation.into()])
    }

    /// Adds operations to the branch that runs if some condition does not hold.
    pub fn or_else_all(mut self, operations: impl IntoIterator<Item = RequestOp>) -> Self {
        self.request.failure.extend(operations);
        self
    }

    /// The request.
    #[must_use]
    pub fn build(self) -> TxnRequest {
        self.request
    }
}

/// One side of a condition, waiting for the other: what is stored of a key or a range of keys.
///
/// Over a range the condition must hold for every existing key; a range without keys is judged
/// like an absent key.
#[derive(Clone, Debug)]
#[must_use]
pub struct Stored<T> {
    key: Bytes,
    range_end: Bytes,
    target: CompareTarget,
    given: fn(T) -> TargetUnion,
}

impl<T> Stored<T> {
    fn new(key: impl Into<Bytes>, target: CompareTarget, given: fn(T) -> TargetUnion) -> Self {
        Self {
            key: key.into(),
            range_end: Bytes::new(),
            target,
            given,
        }
    }

    /// Asks it of all existing keys from the key up to `range_end`, in the form of a range request.
    pub fn with_range(mut self, range_end: impl Into<Bytes>) -> Self {
        self.range_end = range_end.into();
        self
    }

    /// Asks it of all existing keys of `range` instead of the key.
    pub fn over(mut self, range: &KeyRange) -> Self {
        (self.key, self.range_end) = range.to_wire();
        self
    }

    /// Holds if what is stored equals `given`.
    pub fn equal(self, given: impl Into<T>) -> Compare {
        self.is(CompareResult::Equal, given.into())
    }

    /// Holds if what is stored differs from `given`; for values only if the key exists.
    pub fn not_equal(self, given: impl Into<T>) -> Compare {
        self.is(CompareResult::NotEqual, given.into())
    }

    /// Holds if what is stored is greater than `given`.
    pub fn greater(self, given: impl Into<T>) -> Compare {
        self.is(CompareResult::Greater, given.into())
    }

    /// Holds if what is stored is less than `given`; for values only if the key exists.
    pub fn less(self, given: impl Into<T>) -> Compare {
        self.is(CompareResult::Less, given.into())
    }

    fn is(self, result: CompareResult, given: T) -> Compare {
        Compare {
            result: result.into(),
            target: self.target.into(),
            key: self.key,
            range_end: self.range_end,
            target_union: Some((self.given)(given)),
        }
    }
}

/// The version of a key: puts since it came into being, 0 if absent.
pub fn version(key: impl Into<Bytes>) -> Stored<i64> {
    Stored::new(key, CompareTarget::Version, TargetUnion::Version)
}

/// The create revision of a key, 0 if absent.
pub fn create_revision(key: impl Into<Bytes>) -> Stored<i64> {
    Stored::new(key, CompareTarget::Create, TargetUnion::CreateRevision)
}

/// The mod revision of a key, 0 if absent.
pub fn mod_revision(key: impl Into<Bytes>) -> Stored<i64> {
    Stored::new(key, CompareTarget::Mod, TargetUnion::ModRevision)
}

/// The value of a key; no condition on it holds for an absent key.
pub fn value(key: impl Into<Bytes>) -> Stored<Bytes> {
    Stored::new(key, CompareTarget::Value, TargetUnion::Value)
}

/// The lease of a key, 0 if it has none or is absent.
pub fn lease(key: impl Into<Bytes>) -> Stored<i64> {
    Stored::new(key, CompareTarget::Lease, TargetUnion::Lease)
}

/// The condition that a key exists.
#[must_use]
pub fn exists(key: impl Into<Bytes>) -> Compare {
    create_revision(key).greater(0)
}

/// The condition that a key does not exist.
#[must_use]
pub fn absent(key: impl Into<Bytes>) -> Compare {
    create_revision(key).equal(0)
}

/// A write of one key, without a lease.
#[must_use]
pub fn put(key: impl Into<Bytes>, value: impl Into<Bytes>) -> PutRequest {
    PutRequest {
        key: key.into(),
        value: value.into(),
        ..PutRequest::default()
    }
}

/// A read of one key.
#[must_use]
pub fn get(key: impl Into<Bytes>) -> RangeRequest {
    RangeRequest {
        key: key.into(),
        ..RangeRequest::default()
    }
}

/// A read of a range of keys, in key order, without limit.
#[must_use]
pub fn range(range: &KeyRange) -> RangeRequest {
    let (key, range_end) = range.to_wire();
    RangeRequest {
        key,
        range_end,
        ..RangeRequest::default()
    }
}

/// A removal of one key.
#[must_use]
pub fn delete(key: impl Into<Bytes>) -> DeleteRangeRequest {
    DeleteRangeRequest {
        key: key.into(),
        ..DeleteRangeRequest::default()
    }
}

/// A removal of a range of keys.
#[must_use]
pub fn delete_range(range: &KeyRange) -> DeleteRangeRequest {
    let (key, range_end) = range.to_wire();
    DeleteRangeRequest {
        key,
        range_end,
        prev_kv: false,
    }
}

impl From<RangeRequest> for RequestOp {
    fn from(request: RangeRequest) -> Self {
        Request::RequestRange(request).into()
    }
}

impl From<PutRequest> for RequestOp {
    fn from(request: PutRequest) -> Self {
        Request::RequestPut(request).into()
    }
}

impl From<DeleteRangeRequest> for RequestOp {
    fn from(request: DeleteRangeRequest) -> Self {
        Request::RequestDeleteRange(request).into()
    }
}

impl From<TxnRequest> for RequestOp {
    fn from(request: TxnRequest) -> Self {
        Request::RequestTxn(request).into()
    }
}

impl From<Request> for RequestOp {
    fn from(request: Request) -> Self {
        Self {
            request: Some(request),
        }
    }
}

impl TxnRequest {
    /// Levels of nesting, this one included: 1 without nested transactions.
    #[must_use]
    pub fn depth(&self) -> usize {
        let mut depth = 0;
        let mut level = vec![self];
        while !level.is_empty() {
            depth += 1;
            level = level.into_iter().flat_map(Self::nested).collect();
        }
        depth
    }

    /// The transactions directly inside this one, of both branches.
    pub fn nested(&self) -> impl Iterator<Item = &Self> {
        let operations = self.success.iter().chain(&self.failure);
        operations.filter_map(|operation| match &operation.request {
            Some(Request::RequestTxn(txn)) => Some(txn),
            _ => None,
        })
    }
}

#[cfg(test)]
mod tests {
    use prost::Message;

    use super::*;

    #[test]
    fn a_transaction_says_what_was_written() {
        let request = TxnBuilder::new()
            .when(mod_revision("a").equal(5))
            .when(value("b").not_equal("x"))
            .then(put("c", "1"))
            .then(delete_range(&KeyRange::prefix("d/")))
            .or_else(get("c"))
            .build();
        let [a, b] = request.compare.try_into().expect("two compares");
        assert_eq!(a.target(), CompareTarget::Mod);
        assert_eq!(a.target_union, Some(TargetUnion::ModRevision(5)));
        assert_eq!(a.result(), CompareResult::Equal);
        assert_eq!(b.target(), CompareTarget::Value);
        assert_eq!(b.target_union, Some(TargetUnion::Value("x".into())));
        assert_eq!(b.result(), CompareResult::NotEqual);
        let [write, remove] = request.success.try_into().expect("two operations");
        assert_eq!(write, put("c", "1").into());
        let expected = DeleteRangeRequest {
            key: "d/".into(),
            range_end: "d0".into(),
            prev_kv: false,
        };
        assert_eq!(remove.request, Some(Request::RequestDeleteRange(expected)));
        assert_eq!(request.failure, [RequestOp::from(get("c"))]);
    }

    #[test]
    fn every_target_carries_its_own_union() {
        let pairs = [
            (version("k").less(1), TargetUnion::Version(1)),
            (
                create_revision("k").greater(2),
                TargetUnion::CreateRevision(2),
            ),
            (mod_revision("k").equal(3), TargetUnion::ModRevision(3)),
            (lease("k").equal(-4), TargetUnion::Lease(-4)),
        ];
        let targets = [
            CompareTarget::Version,
            CompareTarget::Create,
            CompareTarget::Mod,
            CompareTarget::Lease,
        ];
        for ((compare, union), target) in pairs.into_iter().zip(targets) {
            assert_eq!(compare.target_union, Some(union));
            assert_eq!(compare.target(), target);
        }
    }

    #[test]
    fn a_condition_can_span_a_range() {
        let below = mod_revision("").over(&KeyRange::prefix("p")).less(10);
        assert_eq!((below.key, below.range_end), ("p".into(), "q".into()));
        let from = version("p").with_range("\0").greater(0);
        assert_eq!((from.key, from.range_end), ("p".into(), "\0".into()));
    }

    #[test]
    fn depth_counts_the_longest_way_down() {
        let leaf = TxnBuilder::new().then(put("k", "v")).build();
        assert_eq!(leaf.depth(), 1);
        let middle = TxnBuilder::new()
            .then(get("k"))
            .or_else(leaf.clone())
            .build();
        let outer = TxnBuilder::new().then(leaf).then(middle).build();
        assert_eq!(outer.depth(), 3);
        assert_eq!(outer.nested().count(), 2);
    }

    #[test]
    fn the_range_end_of_a_compare_has_etcds_number() {
        let compare = value("").with_range("z").equal("");
        let encoded = compare.encode_to_vec();
        // Field 64, wire type 2, is the two-byte tag 0x82 0x04.
        assert!(encoded.windows(4).any(|window| window == b"\x82\x04\x01z"));
    }
}
