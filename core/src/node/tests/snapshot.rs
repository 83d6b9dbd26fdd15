//! Snapshots as their callers see them: whole, or ended with an error.

use std::collections::BTreeMap;

use quorate_proto::Reason;
use quorate_proto::etcdserverpb::{DeleteRangeRequest, DowngradeRequest};
use sha2::{Digest, Sha256};

use super::*;
use crate::node::Snapshot;
use crate::storage::bbolt::reader;

pub(super) async fn collect(mut snapshot: Snapshot) -> Vec<u8> {
    let (mut stream, mut remaining) = (Vec::new(), Vec::new());
    while let Some(piece) = snapshot.next().await.unwrap() {
        stream.extend_from_slice(&piece.blob);
        remaining.push((piece.remaining_bytes, stream.len() as u64));
        assert!(piece.header.is_none());
    }
    assert!(
        snapshot.next().await.unwrap().is_none(),
        "it stays at its end"
    );
    let file = stream.len() as u64 - 32;
    assert_eq!(remaining.pop(), Some((0, file + 32)));
    for (remaining, sent) in remaining {
        assert_eq!(remaining + sent, file);
    }
    stream
}

#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_is_a_database_and_its_checksum() {
    let node = lone().await;
    let id = -9;
    node.lease_grant(grant(100, id)).await.unwrap();
    node.lease_grant(grant(50, 3)).await.unwrap();
    for i in 0..300 {
        let request = PutRequest {
            lease: id * (i % 2),
            ..put(&format!("key {i}"), &"v".repeat(1_000))
        };
        node.put(request).await.unwrap();
    }
    let deleted = DeleteRangeRequest {
        key: "key 7".into(),
        ..Default::default()
    };
    node.delete_range(deleted).await.unwrap();
    let stream = collect(node.snapshot().await.unwrap()).await;
    assert_eq!(stream.len() % 512, 32);
    let (file, checksum) = stream.split_at(stream.len() - 32);
    assert_eq!(Sha256::digest(file).as_slice(), checksum);
    let buckets: BTreeMap<_, _> = reader::read(file).into_iter().collect();
    assert_eq!(buckets[b"key".as_slice()].len(), 301);
    let leases = &buckets[b"lease".as_slice()];
    let ids: Vec<_> = leases.iter().map(|lease| lease.0.as_slice()).collect();
    assert_eq!(ids, [3_i64.to_be_bytes(), id.to_be_bytes()]);
    let [(name, member)] = buckets[b"members".as_slice()].as_slice() else {
        panic!("one member");
    };
    assert_eq!(name, format!("{:x}", node.member_id()).as_bytes());
    let member: serde_json::Value = serde_json::from_slice(member).unwrap();
    assert_eq!(member["id"], node.member_id());
    node.shutdown().await;
}

/// A member with more than the pieces that are made ahead.
async fn laden() -> Node {
    let node = lone().await;
    for i in 0..20 {
        node.put(put(&format!("key {i}"), &"v".repeat(200_000)))
            .await
            .unwrap();
    }
    node
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_takes_nothing_loses_its_stream() {
    let node = laden().await;
    let mut snapshot = node
        .snapshot_within(Duration::from_millis(50))
        .await
        .unwrap();
    let all = node.shared.snapshots.clone();
    eventually("the work ends", || async { all.available_permits() == 2 }).await;
    let error = loop {
        match snapshot.next().await {
            Ok(piece) => assert!(piece.is_some(), "it must not end well"),
            Err(error) => break error,
        }
    };
    assert_eq!(error.reason(), Reason::Timeout);
    node.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dropped_snapshot_and_a_stopped_member_end_the_work() {
    let node = laden().await;
    let snapshots = node.shared.snapshots.clone();
    let first = node.snapshot().await.unwrap();
    let mut second = node.snapshot().await.unwrap();
    let third = node.snapshot();
    tokio::pin!(third);
    assert!(
        futures::poll!(&mut third).is_pending(),
        "two are made at once"
    );
    drop(first);
    let mut third = third.await.unwrap();
    node.shutdown().await;
    eventually("the work ends", || async {
        snapshots.available_permits() == 2
    })
    .await;
    for snapshot in [&mut second, &mut third] {
        let error = loop {
            match snapshot.next().await {
                Ok(piece) => assert!(piece.is_some(), "it must not end well"),
                Err(error) => break error,
            }
        };
        assert_eq!(error.reason(), Reason::Stopped);
    }
    let refused = node.snapshot().await.unwrap_err();
    assert_eq!(refused.reason(), Reason::Stopped);
}

#[tokio::test(flavor = "multi_thread")]
async fn downgrades_are_refused_in_etcds_order() {
    let node = lone().await;
    for (action, version, reason) in [
        (0, "3.6", Reason::DowngradeInvalidTarget),
        (0, "3.6.0", Reason::DowngradeInvalidTarget),
        (0, "3.6.0-rc.1+x", Reason::DowngradeInvalidTarget),
        (1, "3.6.0", Reason::DowngradeInvalidTarget),
        (0, "", Reason::DowngradeBadVersion),
        (1, "3", Reason::DowngradeBadVersion),
        (0, "v3.6.0", Reason::DowngradeBadVersion),
        (0, "3.6.0.1", Reason::DowngradeBadVersion),
        (2, "anything", Reason::NoDowngrade),
        (3, "3.6.0", Reason::UnknownMethod),
    ] {
        let request = DowngradeRequest {
            action,
            version: version.to_owned(),
        };
        let refused = node.downgrade(&request).await.unwrap_err();
        assert_eq!(refused.reason(), reason, "{action} {version:?}");
    }
    node.shutdown().await;
}
