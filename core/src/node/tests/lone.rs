//! Every kind of request, on a lone member in memory.

use std::collections::BTreeSet;
use std::time::Duration;

use quorate_proto::etcdserverpb::alarm_request::AlarmAction;
use quorate_proto::etcdserverpb::watch_create_request::FilterType;
use quorate_proto::etcdserverpb::{
    AlarmRequest, AlarmType, CompactionRequest, DeleteRangeRequest, HashKvRequest,
    LeaseRevokeRequest, LeaseTimeToLiveRequest, MoveLeaderRequest, PutRequest, RangeRequest,
    WatchCreateRequest,
};
use quorate_proto::txn::{self, TxnBuilder};
use quorate_proto::{KeyRange, Reason};
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng};

use super::*;

#[tokio::test(flavor = "multi_thread")]
async fn writes_are_read_back_with_whole_headers() {
    let node = lone().await;
    let answer = node.put(put("a", "1")).await.unwrap();
    let header = answer.header.unwrap();
    assert_eq!(
        (header.cluster_id, header.member_id),
        (node.cluster_id(), node.member_id())
    );
    assert_eq!(header.revision, 2);
    assert!(header.raft_term > 0);
    let again = PutRequest {
        prev_kv: true,
        ..put("a", "2")
    };
    assert_eq!(node.put(again).await.unwrap().prev_kv.unwrap().value, "1");
    let read = node.range(get("a")).await.unwrap();
    assert_eq!(
        (values(&read), read.header.unwrap().revision),
        (vec!["2"], 3)
    );
    let old = node
        .range(RangeRequest {
            revision: 2,
            ..get("a")
        })
        .await
        .unwrap();
    assert_eq!(values(&old), ["1"]);
    let serializable = RangeRequest {
        serializable: true,
        ..get("a")
    };
    assert_eq!(values(&node.range(serializable).await.unwrap()), ["2"]);
    let deleted = DeleteRangeRequest {
        key: "a".into(),
        prev_kv: true,
        ..Default::default()
    };
    let deleted = node.delete_range(deleted).await.unwrap();
    assert_eq!((deleted.deleted, deleted.prev_kvs.len()), (1, 1));
    assert!(node.range(get("a")).await.unwrap().kvs.is_empty());
    node.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_transaction_takes_one_branch_and_one_revision() {
    let node = lone().await;
    let request = || {
        TxnBuilder::new()
            .when(txn::absent("lock"))
            .then(txn::put("lock", "mine"))
            .then(txn::put("log", "taken"))
            .or_else(txn::get("lock"))
            .build()
    };
    let won = node.txn(request()).await.unwrap();
    assert!(won.succeeded && won.responses.len() == 2);
    assert_eq!(won.header.as_ref().unwrap().revision, 2);
    let lost = node.txn(request()).await.unwrap();
    assert!(!lost.succeeded);
    assert_eq!(values(lost.responses[0].as_range().unwrap()), ["mine"]);
    assert_eq!(
        lost.header.as_ref().unwrap().revision,
        2,
        "it wrote nothing"
    );
    node.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_transaction_that_only_reads_takes_no_place_in_the_log() {
    let node = lone().await;
    node.put(put("a", "1")).await.unwrap();
    eventually("the member has told its name", || async {
        node.shared.reader.members().len() == 1
    })
    .await;
    // A put is answered once its entry counts as applied, so this is exact.
    node.put(put("a", "2")).await.unwrap();
    let before = node.shared.consensus.status().applied_index;
    let both = TxnBuilder::new()
        .when(txn::exists("a"))
        .then(txn::get("a"))
        .then(txn::range(&KeyRange::all()))
        .build();
    let answer = node.txn(both).await.unwrap();
    assert!(answer.succeeded);
    assert_eq!(
        answer.ranges().map(|range| range.count).collect::<Vec<_>>(),
        [1, 1]
    );
    let header = answer.header.unwrap();
    assert_eq!((header.revision, header.member_id), (3, node.member_id()));
    node.put(put("a", "3")).await.unwrap();
    assert_eq!(node.shared.consensus.status().applied_index, before + 1);
    node.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn history_is_given_up_by_age_without_being_asked() {
    let keep = crate::config::AutoCompaction::Periodic(Duration::from_secs(1));
    let node = quick(Node::builder().in_memory())
        .auto_compaction(keep)
        .start()
        .await
        .unwrap();
    for round in 0..5 {
        node.put(put("a", &round.to_string())).await.unwrap();
    }
    eventually("old history is compacted", || async {
        let old = RangeRequest {
            revision: 2,
            ..get("a")
        };
        node.range(old)
            .await
            .is_err_and(|error| error.reason() == Reason::Compacted)
    })
    .await;
    assert_eq!(values(&node.range(get("a")).await.unwrap()), ["4"]);
    node.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn malformed_requests_are_refused_as_etcd_does() {
    let node = lone().await;
    let refusal = |error: crate::error::Error| error.reason();
    assert_eq!(
        node.put(put("", "x")).await.map_err(refusal),
        Err(Reason::EmptyKey)
    );
    assert_eq!(
        node.range(get("")).await.map_err(refusal),
        Err(Reason::EmptyKey)
    );
    let leased = PutRequest {
        lease: 77,
        ..put("a", "x")
    };
    assert_eq!(
        node.put(leased).await.map_err(refusal),
        Err(Reason::LeaseNotFound)
    );
    let large = put("big", &"x".repeat(1_572_864));
    assert_eq!(
        node.put(large).await.map_err(refusal),
        Err(Reason::RequestTooLarge)
    );
    node.put(put("big", &"x".repeat(1_572_800))).await.unwrap();
    let future = RangeRequest {
        revision: 99,
        ..get("a")
    };
    assert_eq!(
        node.range(future).await.map_err(refusal),
        Err(Reason::FutureRevision)
    );
    let twice = TxnBuilder::new()
        .then(txn::put("k", "1"))
        .then(txn::put("k", "2"))
        .build();
    assert_eq!(
        node.txn(twice).await.map_err(refusal),
        Err(Reason::DuplicateKey)
    );
    node.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn compaction_hides_history_and_then_removes_it() {
    let node = lone().await;
    for round in 0..20 {
        node.put(put("a", &round.to_string())).await.unwrap();
    }
    let compact = |revision| CompactionRequest {
        revision,
        physical: true,
    };
    node.compact(compact(15)).await.unwrap();
    let view = node.shared.reader.view();
    let left = crate::mvcc::compaction::pending(&*view).unwrap();
    assert_eq!(
        left, None,
        "a physical compaction is over when it is answered"
    );
    let before = RangeRequest {
        revision: 14,
        ..get("a")
    };
    assert_eq!(
        node.range(before).await.unwrap_err().reason(),
        Reason::Compacted
    );
    let at = RangeRequest {
        revision: 15,
        ..get("a")
    };
    assert_eq!(values(&node.range(at).await.unwrap()), ["13"]);
    assert_eq!(
        node.compact(compact(15)).await.unwrap_err().reason(),
        Reason::Compacted
    );
    assert_eq!(
        node.compact(compact(99)).await.unwrap_err().reason(),
        Reason::FutureRevision
    );
    let logical = CompactionRequest {
        revision: 16,
        physical: false,
    };
    node.compact(logical).await.unwrap();
    eventually("history is removed", || async {
        let view = node.shared.reader.view();
        crate::mvcc::compaction::pending(&*view).unwrap().is_none()
    })
    .await;
    let hashed = node.hash_kv(HashKvRequest::default()).await.unwrap();
    assert_eq!((hashed.compact_revision, hashed.hash_revision), (16, 21));
    node.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lease_is_granted_kept_alive_listed_and_revoked_with_its_keys() {
    let node = lone().await;
    let chosen = node.lease_grant(grant(60, 0)).await.unwrap();
    assert!(chosen.id > 0 && chosen.ttl == 60);
    let short = node.lease_grant(grant(-5, 7)).await.unwrap();
    assert_eq!(
        (short.id, short.ttl),
        (7, 1),
        "raised to one and a half election timeouts"
    );
    let taken = node.lease_grant(grant(60, 7)).await.unwrap_err();
    assert_eq!(taken.reason(), Reason::LeaseExists);
    let leased = PutRequest {
        lease: chosen.id,
        ..put("leased", "x")
    };
    node.put(leased).await.unwrap();
    assert_eq!(node.lease_keep_alive(chosen.id).await.unwrap().ttl, 60);
    assert_eq!(node.lease_keep_alive(12345).await.unwrap().ttl, 0);
    let ask = LeaseTimeToLiveRequest {
        id: chosen.id,
        keys: true,
    };
    let left = node.lease_time_to_live(ask).await.unwrap();
    assert!((58..=60).contains(&left.ttl) && left.granted_ttl == 60);
    assert_eq!(left.keys, ["leased"]);
    let unknown = LeaseTimeToLiveRequest {
        id: 12345,
        keys: true,
    };
    assert_eq!(node.lease_time_to_live(unknown).await.unwrap().ttl, -1);
    assert!(
        node.leases()
            .await
            .unwrap()
            .leases
            .iter()
            .any(|lease| lease.id == chosen.id)
    );
    node.lease_revoke(LeaseRevokeRequest { id: chosen.id })
        .await
        .unwrap();
    assert!(node.range(get("leased")).await.unwrap().kvs.is_empty());
    let again = node
        .lease_revoke(LeaseRevokeRequest { id: chosen.id })
        .await
        .unwrap_err();
    assert_eq!(again.reason(), Reason::LeaseNotFound);
    node.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lease_nobody_keeps_alive_expires_with_its_keys_and_a_kept_one_does_not() {
    let node = lone().await;
    node.lease_grant(grant(1, 1)).await.unwrap();
    node.lease_grant(grant(1, 2)).await.unwrap();
    let began = crate::clock::now();
    node.put(PutRequest {
        lease: 1,
        ..put("left", "x")
    })
    .await
    .unwrap();
    node.put(PutRequest {
        lease: 2,
        ..put("kept", "x")
    })
    .await
    .unwrap();
    eventually("the lease expires", || async {
        assert_eq!(node.lease_keep_alive(2).await.unwrap().ttl, 1);
        node.range(get("left")).await.unwrap().kvs.is_empty()
    })
    .await;
    let lived = crate::clock::now() - began;
    assert!(
        lived > Duration::from_millis(900),
        "it lived only {lived:?}"
    );
    assert_eq!(node.lease_keep_alive(1).await.unwrap().ttl, 0);
    assert_eq!(values(&node.range(get("kept")).await.unwrap()), ["x"]);
    node.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn leases_that_end_together_all_do_and_each_once() {
    const LEASES: i64 = 2_600;
    let node = lone().await;
    let mut session = node.watch();
    let request = WatchCreateRequest {
        key: "lease/".into(),
        range_end: "lease0".into(),
        filters: vec![FilterType::Noput.into()],
        ..Default::default()
    };
    session.control().create(request).await;
    assert!(next(&mut session).await.created);
    let began = crate::clock::now();
    let granted = (1..=LEASES).map(|id| {
        let node = node.clone();
        async move {
            node.lease_grant(grant(1, id)).await.unwrap();
            let leased = PutRequest {
                lease: id,
                ..put(&format!("lease/{id}"), "x")
            };
            // Under load the first ones end before the last ones are granted.
            match node.put(leased).await {
                Ok(_) => 1,
                Err(error) => {
                    assert_eq!(error.reason(), Reason::LeaseNotFound);
                    0
                }
            }
        }
    });
    let attached: usize = futures::future::join_all(granted).await.into_iter().sum();
    let mut gone = BTreeSet::new();
    while gone.len() < attached {
        for event in next(&mut session).await.events {
            let key = event.kv.unwrap().key;
            assert!(gone.insert(key), "a key went twice");
        }
    }
    let lived = crate::clock::now() - began;
    assert!(lived > Duration::from_millis(900), "they lived {lived:?}");
    eventually("no lease is left", || async {
        node.leases().await.unwrap().leases.is_empty()
    })
    .await;
    node.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_streamed_range_is_the_same_as_a_whole_one() {
    let node = lone().await;
    let value = "v".repeat(400 * 1024);
    for n in 0..6 {
        node.put(put(&format!("k{n}"), &value)).await.unwrap();
    }
    let all = RangeRequest {
        key: "k".into(),
        range_end: "l".into(),
        ..Default::default()
    };
    let whole = node.range(all.clone()).await.unwrap();
    let mut pages = node.range_stream(all.clone()).await.unwrap();
    let (mut kvs, mut headers) = (Vec::new(), Vec::new());
    let mut count = 0;
    while let Some(page) = pages.next().await.unwrap() {
        kvs.extend(page.kvs);
        headers.push(page.header);
        count = page.count;
    }
    assert_eq!((kvs, count), (whole.kvs, 6));
    let last = headers.pop().unwrap();
    assert_eq!(last, whole.header);
    assert!(
        !headers.is_empty() && headers.iter().all(Option::is_none),
        "only the last has one"
    );
    let limited = RangeRequest {
        limit: 2,
        keys_only: true,
        ..all
    };
    let mut pages = node.range_stream(limited).await.unwrap();
    let page = pages.next().await.unwrap().unwrap();
    assert_eq!((page.kvs.len(), page.more, page.count), (2, true, 6));
    assert!(page.kvs[0].value.is_empty());
    assert!(pages.next().await.unwrap().is_none());
    node.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn operators_see_status_members_and_alarms() {
    let node = lone().await;
    node.put(put("a", "1")).await.unwrap();
    let status = node.status().await.unwrap();
    assert_eq!(
        (status.leader, status.version.as_str()),
        (node.member_id(), super::super::ETCD_VERSION)
    );
    assert!(status.raft_applied_index > 0 && status.errors.is_empty());
    eventually("the member's name is known", || async {
        let list = node.member_list(true).await.unwrap();
        list.members.len() == 1 && list.members[0].name == "default"
    })
    .await;
    let alarm = |action: AlarmAction| AlarmRequest {
        action: action.into(),
        member_id: node.member_id(),
        alarm: AlarmType::Nospace.into(),
    };
    node.alarm(alarm(AlarmAction::Activate)).await.unwrap();
    assert_eq!(
        node.put(put("a", "2")).await.unwrap_err().reason(),
        Reason::NoSpace
    );
    let errors = node.status().await.unwrap().errors;
    assert_eq!(
        errors,
        [format!("memberID:{} alarm:NOSPACE ", node.member_id())]
    );
    assert_eq!(
        node.alarm(alarm(AlarmAction::Deactivate))
            .await
            .unwrap()
            .alarms
            .len(),
        1
    );
    node.put(put("a", "2")).await.unwrap();
    let nobody = MoveLeaderRequest { target_id: 5 };
    assert_eq!(
        node.move_leader(nobody).await.unwrap_err().reason(),
        Reason::BadLeaderTransferee
    );
    node.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn while_members_disagree_only_plain_reads_are_answered() {
    let node = lone().await;
    let alarm = AlarmRequest {
        action: AlarmAction::Activate.into(),
        // Another one: whose own data differs reads nothing.
        member_id: 5,
        alarm: AlarmType::Corrupt.into(),
    };
    node.alarm(alarm).await.unwrap();
    let plain = TxnBuilder::new().then(get("k")).or_else(get("k")).build();
    let nested = TxnBuilder::new().or_else(plain.clone()).build();
    assert!(node.range(get("k")).await.is_ok());
    assert!(node.txn(plain).await.is_ok());
    let refused = node.txn(nested).await.unwrap_err();
    assert_eq!(refused.reason(), Reason::Corrupt);
    node.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn outgrowing_the_quota_raises_the_alarm_and_refuses_puts_but_not_deletes() {
    let node = quick(Node::builder().in_memory())
        .quota(256 * 1024)
        .start()
        .await
        .unwrap();
    let value = "v".repeat(64 * 1024);
    eventually("a put is refused", || async {
        match node.put(put("a", &value)).await {
            Ok(_) => false,
            Err(error) => {
                assert_eq!(error.reason(), Reason::NoSpace);
                true
            }
        }
    })
    .await;
    eventually("the alarm is raised", || async { node.alarms().len() == 1 }).await;
    let everything = KeyRange::all().to_wire();
    let delete = DeleteRangeRequest {
        key: everything.0,
        range_end: everything.1,
        prev_kv: false,
    };
    assert_eq!(node.delete_range(delete).await.unwrap().deleted, 1);
    node.shutdown().await;
}

/// The way out of a full store that operators know: delete, compact, defragment, lift the alarm.
#[tokio::test(flavor = "multi_thread")]
async fn a_full_store_takes_puts_again_once_space_was_given_back() {
    let folder = tempfile::tempdir().unwrap();
    let node = quick(Node::builder().data_dir(folder.path()))
        .quota(160 << 20)
        .start()
        .await
        .unwrap();
    let mut random = StdRng::seed_from_u64(3);
    let mut number = 0;
    let refused = loop {
        // Of random bytes, which nothing makes smaller.
        let mut value = vec![0; 1 << 20];
        random.fill(&mut value[..]);
        let put = PutRequest {
            key: format!("k{number}").into(),
            value: value.into(),
            ..PutRequest::default()
        };
        match node.put(put).await {
            Ok(_) => number += 1,
            Err(error) => break error,
        }
        assert!(number < 1_000, "the quota stops nobody");
    };
    assert_eq!(refused.reason(), Reason::NoSpace);
    eventually("the alarm is raised", || async { node.alarms().len() == 1 }).await;

    let everything = KeyRange::all().to_wire();
    let delete = DeleteRangeRequest {
        key: everything.0,
        range_end: everything.1,
        prev_kv: false,
    };
    let deleted = node.delete_range(delete).await.unwrap();
    let compaction = CompactionRequest {
        revision: deleted.header.unwrap().revision,
        physical: true,
    };
    node.compact(compaction).await.unwrap();
    let full = node.status().await.unwrap().db_size;
    node.defragment().await.unwrap();
    // What is left is journals, which the engine keeps up to a size that is small beside real quotas.
    eventually("half of the space is given back", || async {
        node.status().await.unwrap().db_size < full / 2
    })
    .await;

    assert_eq!(
        node.put(put("k", "v")).await.unwrap_err().reason(),
        Reason::NoSpace
    );
    let lift = AlarmRequest {
        action: AlarmAction::Deactivate.into(),
        member_id: node.member_id(),
        alarm: AlarmType::Nospace.into(),
    };
    node.alarm(lift).await.unwrap();
    node.put(put("k", "v")).await.unwrap();
    assert_eq!(node.alarms(), []);
    node.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn space_of_removed_history_is_given_back_once_there_is_little_to_do() {
    let folder = tempfile::tempdir().unwrap();
    let node = quick(Node::builder().data_dir(folder.path()));
    let node = node.start().await.unwrap();
    let mut random = StdRng::seed_from_u64(4);
    let mut revision = 0;
    for _ in 0..100 {
        let mut value = vec![0; 1 << 20];
        random.fill(&mut value[..]);
        let put = PutRequest {
            key: "k".into(),
            value: value.into(),
            ..PutRequest::default()
        };
        revision = node.put(put).await.unwrap().header.unwrap().revision;
    }
    // More than the journals, which stay for a while.
    const LITTLE: i64 = 96 << 20;
    assert!(node.status().await.unwrap().db_size > LITTLE);
    let compaction = CompactionRequest {
        revision,
        physical: true,
    };
    node.compact(compaction).await.unwrap();
    let given_back = async {
        while node.status().await.unwrap().db_size >= LITTLE {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    // It is looked twice whether little is to do, and then everything is written anew.
    let given_back = tokio::time::timeout(3 * PATIENCE, given_back).await;
    given_back.expect("the space is given back");
    assert_eq!(node.range(get("k")).await.unwrap().kvs[0].version, 100);
    node.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn many_writers_at_once_are_all_answered_and_counted_once() {
    let node = lone().await;
    let writers = (0..64).map(|writer| {
        let node = node.clone();
        async move {
            for round in 0..20 {
                node.put(put(&format!("w{writer}"), &round.to_string()))
                    .await
                    .unwrap();
            }
        }
    });
    futures::future::join_all(writers).await;
    assert_eq!(
        node.range(get("w0"))
            .await
            .unwrap()
            .header
            .unwrap()
            .revision,
        1 + 64 * 20
    );
    node.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stopped_member_refuses_at_once() {
    let node = lone().await;
    node.put(put("a", "1")).await.unwrap();
    let mut session = node.watch();
    node.shutdown().await;
    assert_eq!(
        node.put(put("a", "2")).await.unwrap_err().reason(),
        Reason::Stopped
    );
    assert_eq!(
        node.range(get("a")).await.unwrap_err().reason(),
        Reason::Stopped
    );
    assert_eq!(
        node.lease_keep_alive(1).await.unwrap_err().reason(),
        Reason::Stopped
    );
    assert_eq!(session.next().await.unwrap_err().reason(), Reason::Stopped);
    node.shutdown().await;
}
