//! What a [`MemStore`](super::MemStore) refuses by the shape of a request alone, as etcd does, in every
//! branch of a transaction, taken or not.

use std::collections::BTreeSet;

use bytes::Bytes;
use quorate_proto::Reason;
use quorate_proto::etcdserverpb::range_request::SortTarget;
use quorate_proto::etcdserverpb::request_op::Request;
use quorate_proto::etcdserverpb::{PutRequest, RangeRequest, RequestOp, TxnRequest};
use quorate_proto::limits::TXN_DEPTH_MAX;

use crate::keys::KeyRange;

pub(super) fn range(request: &RangeRequest) -> Result<(), Reason> {
    key(&request.key)?;
    SortTarget::try_from(request.sort_target)
        .map(drop)
        .map_err(|_| Reason::InvalidSortOption)
}

/// A transaction: every level may use what its parents' widest lists leave of `most`.
pub(super) fn txn(request: &TxnRequest, most: usize) -> Result<(), Reason> {
    level(request, most, 1)?;
    changed_once(&request.success)?;
    changed_once(&request.failure)?;
    Ok(())
}

fn key(key: &[u8]) -> Result<(), Reason> {
    if key.is_empty() {
        return Err(Reason::EmptyKey);
    }
    Ok(())
}

fn put(request: &PutRequest) -> Result<(), Reason> {
    key(&request.key)?;
    if request.ignore_value && !request.value.is_empty() {
        return Err(Reason::ValueProvided);
    }
    if request.ignore_lease && request.lease != 0 {
        return Err(Reason::LeaseProvided);
    }
    Ok(())
}

fn level(request: &TxnRequest, most: usize, depth: usize) -> Result<(), Reason> {
    if depth > TXN_DEPTH_MAX {
        return Err(Reason::TxnTooDeep);
    }
    let branches = request.success.len().max(request.failure.len());
    let widest = request.compare.len().max(branches);
    let left = most.checked_sub(widest).ok_or(Reason::TooManyOps)?;
    for compare in &request.compare {
        key(&compare.key)?;
    }
    for op in request.success.iter().chain(&request.failure) {
        match &op.request {
            Some(Request::RequestRange(request)) => range(request)?,
            Some(Request::RequestPut(request)) => put(request)?,
            Some(Request::RequestDeleteRange(request)) => key(&request.key)?,
            Some(Request::RequestTxn(request)) => level(request, left, depth + 1)?,
            None => return Err(Reason::KeyNotFound),
        }
    }
    Ok(())
}

/// The keys a branch may put, and the ranges it may delete.
#[derive(Default)]
struct Changed {
    puts: BTreeSet<Bytes>,
    deletes: Vec<KeyRange>,
}

impl Changed {
    fn put(&mut self, key: &Bytes) -> Result<(), Reason> {
        let deleted = self.deletes.iter().any(|range| range.contains(key));
        if deleted || !self.puts.insert(key.clone()) {
            return Err(Reason::DuplicateKey);
        }
        Ok(())
    }
}

/// No key is put twice, or put and deleted, in one branch with all that is nested in it. As in etcd
/// the deletes of a level count before everything else in it, those of a nested transaction from its
/// place on, and the two branches of a nested transaction may put the same keys.
fn changed_once(branch: &[RequestOp]) -> Result<Changed, Reason> {
    let mut changed = Changed::default();
    for op in branch {
        // An end of one zero byte is no end, and etcd does not see it here.
        if let Some(Request::RequestDeleteRange(delete)) = &op.request
            && delete.range_end[..] != [0]
        {
            changed.deletes.push(KeyRange {
                start: delete.key.clone(),
                end: delete.range_end.clone(),
            });
        }
    }
    for op in branch {
        if let Some(Request::RequestTxn(nested)) = &op.request {
            let (success, failure) = (
                changed_once(&nested.success)?,
                changed_once(&nested.failure)?,
            );
            for key in success.puts.union(&failure.puts) {
                changed.put(key)?;
            }
            changed.deletes.extend(success.deletes);
            changed.deletes.extend(failure.deletes);
        }
    }
    for op in branch {
        if let Some(Request::RequestPut(put)) = &op.request {
            changed.put(&put.key)?;
        }
    }
    Ok(changed)
}
