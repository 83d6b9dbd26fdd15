//! Transactions. First the whole path of branches is decided, by the state before the transaction,
//! nested compares included; then the operations of the branches taken run in order, each seeing
//! the writes before it. Any refusal takes everything back. Used by the executor and, for
//! transactions that only read, by `node`.

use std::cmp::Ordering;
use std::sync::Arc;

use bytes::Bytes;
use quorate_proto::etcdserverpb::compare::{CompareResult, CompareTarget, TargetUnion};
use quorate_proto::etcdserverpb::request_op::Request;
use quorate_proto::etcdserverpb::response_op::Response;
use quorate_proto::etcdserverpb::{
    Compare, RangeResponse, RequestOp, ResponseHeader, TxnRequest, TxnResponse,
};
use quorate_proto::mvccpb::KeyValue;
use quorate_proto::{KeyRange, Reason};

use super::executor::header;
use super::kv;
use super::lease::Leases;
use crate::mvcc::{self, Error, Overlay, WriteTxn};
use crate::storage::kv::View;

/// Keys and values looked at together in a compare over a range, in bytes.
const COMPARE_PAGE_BYTES: usize = 1024 * 1024;

/// Which kinds of writes a transaction holds, in whichever branch.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Writes {
    /// Some put.
    pub puts: bool,
    /// Some delete.
    pub deletes: bool,
}

impl Writes {
    /// Looks through all branches and levels.
    #[must_use]
    pub fn of(request: &TxnRequest) -> Self {
        let mut writes = Self::default();
        for operation in request.success.iter().chain(&request.failure) {
            match &operation.request {
                Some(Request::RequestPut(_)) => writes.puts = true,
                Some(Request::RequestDeleteRange(_)) => writes.deletes = true,
                Some(Request::RequestTxn(nested)) => {
                    let nested = Self::of(nested);
                    writes.puts |= nested.puts;
                    writes.deletes |= nested.deletes;
                }
                Some(Request::RequestRange(_)) | None => {}
            }
        }
        writes
    }

    /// Whether there is no write: the transaction needs no place in the log.
    #[must_use]
    pub fn is_none(self) -> bool {
        self == Self::default()
    }
}

/// Answers a transaction that only reads, from one view. Blocking disk work.
///
/// # Errors
///
/// Refused: as when it is applied. A transaction that writes is a mistake of the caller:
/// [`Reason::Internal`].
pub fn read(view: Arc<dyn View>, request: TxnRequest) -> Result<TxnResponse, Error> {
    if !Writes::of(&request).is_none() {
        return Err(Reason::Internal.into());
    }
    let mut overlay = Overlay::new(view);
    let mut txn = overlay.begin()?;
    run(&mut txn, &Leases::default(), request, true)
}

/// Runs a transaction whose shape was checked.
///
/// # Errors
///
/// Refused: `txn` is to be dropped, so that nothing stays.
pub(super) fn run(
    txn: &mut WriteTxn<'_>,
    leases: &Leases,
    request: TxnRequest,
    answered: bool,
) -> Result<TxnResponse, Error> {
    let mut path = Vec::new();
    decide(txn.view(), &request, &mut path)?;
    let mut path = path.into_iter();
    let mut run = Run {
        txn,
        leases,
        answered,
        range_refused: None,
    };
    let mut answer = run.level(request, &mut path)?;
    if let Some(reason) = run.range_refused {
        return Err(reason.into());
    }
    answer.header = Some(header(txn.revision()));
    Ok(answer)
}

/// Appends whether the transaction succeeds, then the same for the nested ones of the branch it
/// takes, depth first.
fn decide(view: &dyn View, request: &TxnRequest, path: &mut Vec<bool>) -> Result<(), Error> {
    let mut succeeded = true;
    for compare in &request.compare {
        if !holds(view, compare)? {
            succeeded = false;
            break;
        }
    }
    path.push(succeeded);
    let branch = if succeeded {
        &request.success
    } else {
        &request.failure
    };
    for operation in branch {
        if let Some(Request::RequestTxn(nested)) = &operation.request {
            decide(view, nested, path)?;
        }
    }
    Ok(())
}

/// Whether every existing key of the range satisfies the compare; without any, an absent key is
/// judged, which has numbers of 0 and no value that any comparison holds for.
fn holds(view: &dyn View, compare: &Compare) -> Result<bool, Error> {
    let absent = || {
        compare.target != i32::from(CompareTarget::Value)
            && satisfies(compare, &KeyValue::default())
    };
    if compare.range_end.is_empty() {
        let found = mvcc::key_value_at(view, &compare.key, 0)?;
        return Ok(found.map_or_else(absent, |kv| satisfies(compare, &kv)));
    }
    let mut start = compare.key.clone();
    let mut any = false;
    loop {
        let range = KeyRange::from_wire(start, compare.range_end.clone());
        let page = mvcc::scan_page(view, &range, 0, COMPARE_PAGE_BYTES)?;
        any |= !page.kvs.is_empty();
        if !page.kvs.iter().all(|kv| satisfies(compare, kv)) {
            return Ok(false);
        }
        match page.next {
            Some(next) => start = next,
            None => return Ok(any || absent()),
        }
    }
}

/// Whether a pair satisfies a compare. A union that is missing or belongs to another target counts
/// as 0 or empty; an unknown target compares as equal, an unknown result as true, as in etcd.
fn satisfies(compare: &Compare, kv: &KeyValue) -> bool {
    let number = |given: Option<i64>, stored: i64| stored.cmp(&given.unwrap_or(0));
    let union = compare.target_union.as_ref();
    let order = match CompareTarget::try_from(compare.target) {
        Ok(CompareTarget::Version) => number(
            union.and_then(|union| match union {
                TargetUnion::Version(version) => Some(*version),
                _ => None,
            }),
            kv.version,
        ),
        Ok(CompareTarget::Create) => number(
            union.and_then(|union| match union {
                TargetUnion::CreateRevision(revision) => Some(*revision),
                _ => None,
            }),
            kv.create_revision,
        ),
        Ok(CompareTarget::Mod) => number(
            union.and_then(|union| match union {
                TargetUnion::ModRevision(revision) => Some(*revision),
                _ => None,
            }),
            kv.mod_revision,
        ),
        Ok(CompareTarget::Lease) => number(
            union.and_then(|union| match union {
                TargetUnion::Lease(lease) => Some(*lease),
                _ => None,
            }),
            kv.lease,
        ),
        Ok(CompareTarget::Value) => {
            let empty = Bytes::new();
            let given = union.and_then(|union| match union {
                TargetUnion::Value(value) => Some(value),
                _ => None,
            });
            kv.value.cmp(given.unwrap_or(&empty))
        }
        Err(_) => Ordering::Equal,
    };
    match CompareResult::try_from(compare.result) {
        Ok(CompareResult::Equal) => order.is_eq(),
        Ok(CompareResult::NotEqual) => order.is_ne(),
        Ok(CompareResult::Greater) => order.is_gt(),
        Ok(CompareResult::Less) => order.is_lt(),
        Err(_) => true,
    }
}

/// A transaction under way.
struct Run<'a, 't> {
    txn: &'a mut WriteTxn<'t>,
    leases: &'a Leases,
    answered: bool,
    /// The first range refused. It fails the transaction, but a put refused after it goes first:
    /// etcd looks at all puts before it looks at the ranges.
    range_refused: Option<Reason>,
}

impl Run<'_, '_> {
    fn level(
        &mut self,
        request: TxnRequest,
        path: &mut impl Iterator<Item = bool>,
    ) -> Result<TxnResponse, Error> {
        let succeeded = path.next().expect("a decision for every level taken");
        let branch = if succeeded {
            request.success
        } else {
            request.failure
        };
        let mut responses = Vec::with_capacity(branch.len());
        for operation in branch {
            responses.push(self.operation(operation, path)?.into());
        }
        Ok(TxnResponse {
            // Of a nested transaction the header stays empty, as in etcd.
            header: Some(ResponseHeader::default()),
            succeeded,
            responses,
        })
    }

    fn operation(
        &mut self,
        operation: RequestOp,
        path: &mut impl Iterator<Item = bool>,
    ) -> Result<Response, Error> {
        match operation.request {
            Some(Request::RequestPut(request)) => {
                let answer = kv::put(self.txn, self.leases, request)?;
                Ok(Response::ResponsePut(answer))
            }
            Some(Request::RequestDeleteRange(request)) => {
                let answer = kv::delete_range(self.txn, request)?;
                Ok(Response::ResponseDeleteRange(answer))
            }
            Some(Request::RequestRange(request)) => {
                match kv::range(self.txn, &request, self.answered) {
                    Ok(answer) => Ok(Response::ResponseRange(answer)),
                    Err(Error::Refused(reason)) => {
                        self.range_refused.get_or_insert(reason);
                        Ok(Response::ResponseRange(RangeResponse::default()))
                    }
                    Err(error) => Err(error),
                }
            }
            Some(Request::RequestTxn(request)) => {
                let answer = self.level(request, path)?;
                Ok(Response::ResponseTxn(answer))
            }
            None => Err(Reason::KeyNotFound.into()),
        }
    }
}
