//! A member whose data is not that of the others.

use bytes::BytesMut;
use quorate_proto::Reason;
use quorate_proto::etcdserverpb::alarm_request::AlarmAction;
use quorate_proto::etcdserverpb::{AlarmRequest, AlarmType, WatchCreateRequest};

use super::cluster::Cluster;
use super::*;
use crate::storage::codec::key_key;
use crate::storage::kv::WriteBatch;

/// Changes the last byte of a value on one member's disk, behind everybody's back.
fn falsify(node: &Node, key: &str) {
    let kv = node.shared.reader.kv();
    let stored = key_key(key.as_bytes());
    let mut record = BytesMut::from(&kv.view().get(&stored).unwrap().unwrap()[..]);
    *record.last_mut().unwrap() ^= 1;
    let mut batch = WriteBatch::new();
    batch.put(stored, record.freeze());
    kv.commit(batch).unwrap();
}

async fn raised(node: &Node, member: u64) {
    eventually("the alarm is raised", || async {
        node.alarms()
            .iter()
            .any(|alarm| alarm.member_id == member && alarm.alarm() == AlarmType::Corrupt)
    })
    .await;
}

async fn a_member_that_differs_is_found(leads: bool) {
    let cluster = Cluster::start().await;
    cluster.node(0).put(put("a", "1")).await.unwrap();
    let (leader, follower) = cluster.roles().await;
    let (bad, good) = if leads {
        (leader, follower)
    } else {
        (follower, leader)
    };
    let (bad, good) = (cluster.node(bad), cluster.node(good));
    bad.range(get("a")).await.unwrap();
    let mut session = bad.watch();
    let request = WatchCreateRequest {
        key: "a".into(),
        start_revision: 1,
        ..Default::default()
    };
    session.control().create(request).await;
    assert!(next(&mut session).await.created);
    falsify(bad, "a");

    raised(good, bad.member_id()).await;
    raised(bad, bad.member_id()).await;
    let serializable = RangeRequest {
        serializable: true,
        ..get("a")
    };
    let refused = bad.range(serializable).await.unwrap_err();
    assert_eq!(refused.reason(), Reason::Corrupt);
    assert_eq!(bad.leases().await.unwrap_err().reason(), Reason::Corrupt);
    assert_eq!(bad.snapshot().await.unwrap_err().reason(), Reason::Corrupt);
    assert_eq!(values(&good.range(get("a")).await.unwrap()), ["1"]);
    let refused = good.put(put("a", "2")).await.unwrap_err();
    assert_eq!(
        refused.reason(),
        Reason::Corrupt,
        "as on etcd, nobody writes"
    );
    eventually("one that is sound leads", || async {
        good.leadership()
            .leader
            .is_some_and(|leader| leader != bad.member_id())
    })
    .await;

    let disarm = AlarmRequest {
        action: AlarmAction::Deactivate.into(),
        member_id: bad.member_id(),
        alarm: AlarmType::Corrupt.into(),
    };
    good.alarm(disarm).await.unwrap();
    raised(good, bad.member_id()).await;
    cluster.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_follower_that_differs_is_found_and_answers_nothing() {
    a_member_that_differs_is_found(false).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_that_differs_is_found_and_answers_nothing() {
    a_member_that_differs_is_found(true).await;
}
