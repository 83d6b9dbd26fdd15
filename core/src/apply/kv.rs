//! Single operations on the key space, inside a transaction: put, delete, range. Used by the
//! executor and by transactions.

use quorate_proto::etcdserverpb::{
    DeleteRangeRequest, DeleteRangeResponse, PutRequest, PutResponse, RangeRequest, RangeResponse,
};
use quorate_proto::{KeyRange, Reason};

use super::executor::header;
use super::lease::Leases;
use crate::mvcc::{self, Error, RangeQuery, WriteTxn, meta};

/// Puts a key.
///
/// # Errors
///
/// Refused: a key that is not there although its value or lease is to be kept; an unknown lease.
pub(super) fn put(
    txn: &mut WriteTxn<'_>,
    leases: &Leases,
    request: PutRequest,
) -> Result<PutResponse, Error> {
    let PutRequest {
        key,
        mut value,
        mut lease,
        prev_kv,
        ignore_value,
        ignore_lease,
    } = request;
    if ignore_value || ignore_lease {
        let old = mvcc::key_value_at(txn.view(), &key, 0)?.ok_or(Reason::KeyNotFound)?;
        if ignore_value {
            value = old.value;
        }
        if ignore_lease {
            lease = old.lease;
        }
    }
    leases.expect(lease)?;
    let replaced = txn.put(key, value, lease)?;
    Ok(PutResponse {
        header: Some(header(txn.revision())),
        prev_kv: replaced.filter(|_| prev_kv),
    })
}

/// Deletes keys.
///
/// # Errors
///
/// Storage failures.
pub(super) fn delete_range(
    txn: &mut WriteTxn<'_>,
    request: DeleteRangeRequest,
) -> Result<DeleteRangeResponse, Error> {
    let prev_kv = request.prev_kv;
    let range = KeyRange::from_wire(request.key, request.range_end);
    let deleted = txn.delete_range(&range)?;
    Ok(DeleteRangeResponse {
        header: Some(header(txn.revision())),
        deleted: i64::try_from(deleted.len()).expect("a vector's length fits an i64"),
        prev_kvs: if prev_kv { deleted } else { Vec::new() },
    })
}

/// Reads keys; only whether that is possible, unless `answered`.
///
/// # Errors
///
/// Refused: a compacted or a future revision, an unknown sort target.
pub(super) fn range(
    txn: &WriteTxn<'_>,
    request: &RangeRequest,
    answered: bool,
) -> Result<RangeResponse, Error> {
    let query = RangeQuery::from_request(request)?;
    readable(txn, request.revision)?;
    if !answered {
        return Ok(RangeResponse::default());
    }
    let found = mvcc::range(txn.view(), &query)?;
    Ok(RangeResponse {
        header: Some(header(txn.revision())),
        kvs: found.kvs,
        more: found.more,
        count: found.count,
    })
}

/// The refusals of a read, without the read. In a transaction etcd takes a negative revision for one
/// that is compacted, if there was a compaction, whereas a read alone takes it for the current one.
fn readable(txn: &WriteTxn<'_>, revision: i64) -> Result<(), Error> {
    if revision > meta::current_revision(txn.view())? {
        return Err(Reason::FutureRevision.into());
    }
    if revision != 0 && revision < meta::compact_revision(txn.view())? {
        return Err(Reason::Compacted.into());
    }
    Ok(())
}
