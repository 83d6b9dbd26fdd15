//! The one place that says what of two answers may differ: what etcd leaves undefined (the order of
//! equals in a sort, of lists, of a lease's keys), and what belongs to one server alone (its
//! version, its addresses, its raft's and its disk's own numbers, how many seconds are left).
//! Everything else is compared to the letter.

use bytes::Bytes;
use quorate_proto::etcdserverpb::range_request::{SortOrder, SortTarget};
use quorate_proto::etcdserverpb::request_op::Request;
use quorate_proto::etcdserverpb::response_op::Response;
use quorate_proto::etcdserverpb::{RangeRequest, RangeResponse, TxnRequest, TxnResponse};
use quorate_proto::mvccpb::KeyValue;

use super::op::{Answer, OWN_MEMBER, Op, Reply};

/// How many seconds of a lease may have gone by since it was granted or renewed. All leases of
/// the random sequences live for an hour at least.
const SECONDS_GONE_MAX: i64 = 600;

/// Takes out of an answer to `op` what may differ.
pub(crate) fn normalise(op: &Op, answer: &mut Answer) {
    let Ok(reply) = answer else { return };
    match (op, reply) {
        (Op::Range(request), Reply::Range(answer)) => ties(request, answer),
        (Op::Txn(request), Reply::Txn(answer)) => txn(request, answer),
        (_, Reply::LeaseTimeToLive(answer)) => {
            answer.keys.sort_unstable();
            if answer.ttl >= 0 && answer.granted_ttl - answer.ttl <= SECONDS_GONE_MAX {
                answer.ttl = answer.granted_ttl;
            }
        }
        (_, Reply::LeaseLeases(answer)) => answer.leases.sort_unstable_by_key(|lease| lease.id),
        (_, Reply::Alarm(answer)) => {
            answer
                .alarms
                .sort_unstable_by_key(|alarm| (alarm.alarm, alarm.member_id));
        }
        (_, Reply::Status(answer)) => {
            answer.errors.sort_unstable();
            answer.version.clear();
            answer.storage_version.clear();
            answer.db_size = answer.db_size.signum();
            answer.db_size_in_use = answer.db_size_in_use.signum();
            answer.db_size_quota = 0;
            answer.raft_index = answer.raft_index.min(1);
            answer.raft_term = answer.raft_term.min(1);
            // Not filled in before 3.5.
            answer.raft_applied_index = 0;
            answer.downgrade_info = None;
        }
        (_, Reply::Hash(answer)) => answer.hash = 0,
        (_, Reply::HashKv(answer)) => {
            answer.hash = 0;
            // Not filled in before 3.6.
            answer.hash_revision = 0;
        }
        (_, Reply::MemberList(answer)) => {
            for member in &mut answer.members {
                member.name.clear();
                for url in member.peer_ur_ls.iter_mut().chain(&mut member.client_ur_ls) {
                    url.clear();
                }
            }
            answer
                .members
                .sort_unstable_by_key(|member| member.id != OWN_MEMBER);
        }
        _ => {}
    }
}

fn txn(request: &TxnRequest, answer: &mut TxnResponse) {
    let branch = if answer.succeeded {
        &request.success
    } else {
        &request.failure
    };
    for (operation, response) in branch.iter().zip(&mut answer.responses) {
        match (&operation.request, &mut response.response) {
            (Some(Request::RequestRange(request)), Some(Response::ResponseRange(answer))) => {
                ties(request, answer);
            }
            (Some(Request::RequestTxn(request)), Some(Response::ResponseTxn(answer))) => {
                txn(request, answer);
            }
            _ => {}
        }
    }
}

/// Equals of a sort that is not by key come in any order, and where a limit cuts through them, any
/// of them may be left out: they are put in key order, and of those at the cut only what they were
/// sorted by is kept.
fn ties(request: &RangeRequest, answer: &mut RangeResponse) {
    let sorted = SortOrder::try_from(request.sort_order).is_ok();
    if !sorted || request.sort_target == SortTarget::Key as i32 {
        return;
    }
    let by = |pair: &KeyValue| -> (i64, Bytes) {
        match SortTarget::try_from(request.sort_target) {
            Ok(SortTarget::Version) => (pair.version, Bytes::new()),
            Ok(SortTarget::Create) => (pair.create_revision, Bytes::new()),
            Ok(SortTarget::Mod) => (pair.mod_revision, Bytes::new()),
            // Blank with `keys_only`: then all count as equals.
            Ok(SortTarget::Value) => (0, pair.value.clone()),
            Ok(SortTarget::Key) | Err(_) => (0, Bytes::new()),
        }
    };
    for equals in answer.kvs.chunk_by_mut(|a, b| by(a) == by(b)) {
        equals.sort_unstable_by(|a, b| a.key.cmp(&b.key));
    }
    if !answer.more {
        return;
    }
    let Some(last) = answer.kvs.last().map(by) else {
        return;
    };
    for pair in answer
        .kvs
        .iter_mut()
        .rev()
        .take_while(|pair| by(pair) == last)
    {
        *pair = match SortTarget::try_from(request.sort_target) {
            Ok(SortTarget::Version) => KeyValue {
                version: pair.version,
                ..KeyValue::default()
            },
            Ok(SortTarget::Create) => KeyValue {
                create_revision: pair.create_revision,
                ..KeyValue::default()
            },
            Ok(SortTarget::Mod) => KeyValue {
                mod_revision: pair.mod_revision,
                ..KeyValue::default()
            },
            _ => KeyValue {
                value: pair.value.clone(),
                ..KeyValue::default()
            },
        };
    }
}
