//! The shape of requests: what can be refused without knowing the state. `node` asks before it
//! proposes; `apply` asks again, for a log entry is no reason to trust what it holds.
//!
//! Every branch of a transaction is checked, taken or not. What depends on the state (an unknown
//! lease, an absent key, a compacted revision) is decided when the command is applied.

use std::collections::{BTreeMap, HashSet};

use quorate_proto::Reason;
use quorate_proto::etcdserverpb::range_request::SortTarget;
use quorate_proto::etcdserverpb::request_op::Request;
use quorate_proto::etcdserverpb::{
    AlarmRequest, AlarmType, Compare, DeleteRangeRequest, PutRequest, RangeRequest, RequestOp,
    TxnRequest, alarm_request::AlarmAction,
};
use quorate_proto::limits::{KEY_BYTES_MAX, LEASE_TTL_SECONDS_MAX, TXN_DEPTH_MAX};

/// No limit on the operations of a transaction, for `apply`: the limit is an option of each member,
/// and members must not judge the same entry differently.
pub const OPS_UNLIMITED: usize = usize::MAX;

/// Checks a put.
///
/// # Errors
///
/// Empty or too long key; a value or lease given together with the flag that ignores it.
pub fn put(request: &PutRequest) -> Result<(), Reason> {
    key(&request.key)?;
    if request.ignore_value && !request.value.is_empty() {
        return Err(Reason::ValueProvided);
    }
    if request.ignore_lease && request.lease != 0 {
        return Err(Reason::LeaseProvided);
    }
    Ok(())
}

/// Checks a range. An unknown sort order is no order, as in etcd; an unknown sort target, which
/// brings etcd down, is refused.
///
/// # Errors
///
/// Empty or too long key, too long range end, unknown sort target.
pub fn range(request: &RangeRequest) -> Result<(), Reason> {
    key(&request.key)?;
    range_end(&request.range_end)?;
    SortTarget::try_from(request.sort_target)
        .map(drop)
        .map_err(|_| Reason::InvalidSortOption)
}

/// Checks a delete.
///
/// # Errors
///
/// Empty or too long key, too long range end.
pub fn delete_range(request: &DeleteRangeRequest) -> Result<(), Reason> {
    key(&request.key)?;
    range_end(&request.range_end)
}

/// Checks a transaction: every compare and operation in every branch and level, how deep and how
/// wide it is, and that no key is put twice or both put and deleted.
///
/// `ops_max` limits compares, success and failure each; a nested transaction may use what its
/// parent's widest list leaves.
///
/// # Errors
///
/// As for the single requests, and too many operations, too deep, duplicate key, no request.
pub fn txn(request: &TxnRequest, ops_max: usize) -> Result<(), Reason> {
    level(request, ops_max, 1)?;
    Touched::by(&request.success)?;
    Touched::by(&request.failure)?;
    Ok(())
}

/// Checks a time to live in seconds; too small ones are raised, not refused. Asked only when the
/// grant is applied: as on etcd, an alarm goes first.
pub(super) fn ttl(ttl_seconds: i64) -> Result<(), Reason> {
    if ttl_seconds > LEASE_TTL_SECONDS_MAX {
        return Err(Reason::LeaseTtlTooLarge);
    }
    Ok(())
}

/// Checks an alarm request.
///
/// # Errors
///
/// Action or type outside the enums.
pub fn alarm(request: &AlarmRequest) -> Result<(), Reason> {
    AlarmAction::try_from(request.action)
        .and(AlarmType::try_from(request.alarm))
        .map(drop)
        .map_err(|_| Reason::UnknownAlarm)
}

fn key(key: &[u8]) -> Result<(), Reason> {
    if key.is_empty() {
        return Err(Reason::EmptyKey);
    }
    range_end(key)
}

fn range_end(end: &[u8]) -> Result<(), Reason> {
    if end.len() > KEY_BYTES_MAX {
        return Err(Reason::KeyTooLong);
    }
    Ok(())
}

fn level(request: &TxnRequest, ops_max: usize, depth: usize) -> Result<(), Reason> {
    if depth > TXN_DEPTH_MAX {
        return Err(Reason::TxnTooDeep);
    }
    let widest = request
        .compare
        .len()
        .max(request.success.len())
        .max(request.failure.len());
    let left = ops_max.checked_sub(widest).ok_or(Reason::TooManyOps)?;
    for compare in &request.compare {
        let Compare {
            key: start,
            range_end: end,
            ..
        } = compare;
        key(start)?;
        range_end(end)?;
    }
    for operation in request.success.iter().chain(&request.failure) {
        match &operation.request {
            Some(Request::RequestRange(request)) => range(request)?,
            Some(Request::RequestPut(request)) => put(request)?,
            Some(Request::RequestDeleteRange(request)) => delete_range(request)?,
            Some(Request::RequestTxn(request)) => level(request, left, depth + 1)?,
            None => return Err(Reason::KeyNotFound),
        }
    }
    Ok(())
}

/// The keys a branch may put and the spans it may delete, nested transactions included.
#[derive(Default)]
struct Touched<'a> {
    puts: HashSet<&'a [u8]>,
    deletes: Spans<'a>,
}

impl<'a> Touched<'a> {
    /// What `operations` may touch, if nothing is touched twice. As in etcd, the deletes of a level
    /// count before everything else in it, those of a nested transaction from its place on, and the
    /// two branches of one transaction may touch the same keys.
    fn by(operations: &'a [RequestOp]) -> Result<Self, Reason> {
        let mut touched = Self::default();
        for operation in operations {
            if let Some(Request::RequestDeleteRange(delete)) = &operation.request {
                touched.deletes.insert_wire(&delete.key, &delete.range_end);
            }
        }
        for operation in operations {
            if let Some(Request::RequestTxn(nested)) = &operation.request {
                touched.nested(nested)?;
            }
        }
        for operation in operations {
            if let Some(Request::RequestPut(put)) = &operation.request {
                touched.put(&put.key)?;
            }
        }
        Ok(touched)
    }

    fn nested(&mut self, nested: &'a TxnRequest) -> Result<(), Reason> {
        let success = Self::by(&nested.success)?;
        let failure = Self::by(&nested.failure)?;
        for key in &success.puts {
            self.put(key)?;
        }
        for key in failure.puts {
            if !success.puts.contains(key) {
                self.put(key)?;
            }
        }
        self.deletes.merge(success.deletes);
        self.deletes.merge(failure.deletes);
        Ok(())
    }

    fn put(&mut self, key: &'a [u8]) -> Result<(), Reason> {
        if self.deletes.contain(key) || !self.puts.insert(key) {
            return Err(Reason::DuplicateKey);
        }
        Ok(())
    }
}

/// A set of keys as disjoint half-open spans: first key to the first key beyond.
#[derive(Debug, Default)]
struct Spans<'a> {
    by_start: BTreeMap<&'a [u8], End<'a>>,
}

/// Where a span ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End<'a> {
    /// Before this key.
    Before(&'a [u8]),
    /// After this key, which is the last.
    After(&'a [u8]),
}

impl<'a> End<'a> {
    /// Orders ends as the keys they let in.
    fn order(self) -> (&'a [u8], bool) {
        match self {
            Self::Before(key) => (key, false),
            Self::After(key) => (key, true),
        }
    }

    fn lets_in(self, key: &[u8]) -> bool {
        match self {
            Self::Before(end) => key < end,
            Self::After(last) => key <= last,
        }
    }
}

impl<'a> Spans<'a> {
    /// Adds what a delete names. An end of one zero byte, which stands for no end, is taken
    /// literally and so adds nothing: etcd does not see such a delete beside a put either, and
    /// executes both in order.
    fn insert_wire(&mut self, key: &'a [u8], range_end: &'a [u8]) {
        if range_end.is_empty() {
            self.insert(key, End::After(key));
        } else {
            self.insert(key, End::Before(range_end));
        }
    }

    fn insert(&mut self, start: &'a [u8], end: End<'a>) {
        if !end.lets_in(start) {
            return;
        }
        let (mut start, mut end) = (start, end);
        // Take out every span that begins within the new one, and the one that reaches into it.
        while let Some((&at, &until)) = self.by_start.range(..=end.order().0).next_back() {
            if until.order() < (start, false) {
                break;
            }
            self.by_start.remove(at);
            start = start.min(at);
            if until.order() > end.order() {
                end = until;
            }
        }
        self.by_start.insert(start, end);
    }

    fn merge(&mut self, other: Self) {
        for (start, end) in other.by_start {
            self.insert(start, end);
        }
    }

    fn contain(&self, key: &[u8]) -> bool {
        self.by_start
            .range(..=key)
            .next_back()
            .is_some_and(|(_, end)| end.lets_in(key))
    }
}
