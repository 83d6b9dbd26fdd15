//! A member on disk, over restarts.

use quorate_proto::etcdserverpb::{LeaseTimeToLiveRequest, PutRequest, RangeRequest};

use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng};

use super::*;
use crate::node::StartError;

async fn on_disk(folder: &std::path::Path) -> Node {
    quick(Node::builder().data_dir(folder))
        .start()
        .await
        .unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restarted_member_has_its_keys_history_leases_and_ids() {
    let folder = tempfile::tempdir().unwrap();
    let node = on_disk(folder.path()).await;
    node.put(put("a", "1")).await.unwrap();
    node.put(put("a", "2")).await.unwrap();
    node.lease_grant(grant(600, 7)).await.unwrap();
    node.put(PutRequest {
        lease: 7,
        ..put("leased", "x")
    })
    .await
    .unwrap();
    let ids = (node.cluster_id(), node.member_id());
    node.shutdown().await;
    drop(node);

    let node = on_disk(folder.path()).await;
    assert_eq!((node.cluster_id(), node.member_id()), ids);
    let read = node.range(get("a")).await.unwrap();
    assert_eq!(
        (values(&read), read.header.unwrap().revision),
        (vec!["2"], 4)
    );
    let old = node
        .range(RangeRequest {
            revision: 2,
            ..get("a")
        })
        .await
        .unwrap();
    assert_eq!(values(&old), ["1"]);
    let left = node
        .lease_time_to_live(LeaseTimeToLiveRequest { id: 7, keys: true })
        .await
        .unwrap();
    assert_eq!((left.granted_ttl, left.keys.len()), (600, 1));
    node.put(put("a", "3")).await.unwrap();
    node.shutdown().await;
}

/// Nobody could renew a lease while its member was away, so its time begins anew.
#[tokio::test(flavor = "multi_thread")]
async fn a_lease_lives_its_whole_time_again_after_a_restart() {
    const TTL: Duration = Duration::from_secs(4);
    let folder = tempfile::tempdir().unwrap();
    let node = on_disk(folder.path()).await;
    node.lease_grant(grant(4, 7)).await.unwrap();
    node.put(PutRequest {
        lease: 7,
        ..put("leased", "x")
    })
    .await
    .unwrap();
    // Some of its time is over when the member stops.
    tokio::time::sleep(TTL / 4).await;
    node.shutdown().await;
    drop(node);
    let restarted = crate::clock::now();
    let node = on_disk(folder.path()).await;
    eventually("the lease ends", || async {
        node.range(get("leased")).await.unwrap().kvs.is_empty()
    })
    .await;
    let lived = crate::clock::now() - restarted;
    assert!(lived >= TTL, "it lived {lived:?} after the restart");
    node.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn space_is_given_back_right_after_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let node = on_disk(folder.path()).await;
    let mut random = StdRng::seed_from_u64(5);
    for number in 0..24 {
        let mut value = vec![0; 1 << 20];
        random.fill(&mut value[..]);
        let put = PutRequest {
            key: format!("k{number}").into(),
            value: value.into(),
            ..PutRequest::default()
        };
        node.put(put).await.unwrap();
    }
    node.shutdown().await;
    drop(node);
    let node = on_disk(folder.path()).await;
    let mut sizes = Vec::new();
    for _ in 0..4 {
        node.defragment().await.unwrap();
        sizes.push(node.status().await.unwrap().db_size);
    }
    // What was written anew three times is not there three times.
    assert!(sizes[3] < sizes[0] + (8 << 20), "{sizes:?}");
    node.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_folder_serves_one_running_member_of_one_cluster() {
    let folder = tempfile::tempdir().unwrap();
    let node = on_disk(folder.path()).await;
    let second = quick(Node::builder().data_dir(folder.path()))
        .start()
        .await
        .unwrap_err();
    assert!(
        second.to_string().contains("locked by another process"),
        "{second}"
    );
    node.shutdown().await;
    drop(node);
    let other = quick(Node::builder().data_dir(folder.path()).token("other"))
        .start()
        .await;
    let error = other.unwrap_err();
    assert!(matches!(error, StartError::DataDir(_)));
    assert!(error.to_string().contains("belongs to member"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_state_that_nothing_names_is_kept_and_refused() {
    let folder = tempfile::tempdir().unwrap();
    let node = on_disk(folder.path()).await;
    node.put(put("a", "1")).await.unwrap();
    node.shutdown().await;
    drop(node);
    let current = folder.path().join("CURRENT");
    let named = std::fs::read(&current).unwrap();
    std::fs::remove_file(&current).unwrap();
    let refused = quick(Node::builder().data_dir(folder.path()))
        .start()
        .await
        .unwrap_err();
    assert!(refused.to_string().contains("CURRENT"), "{refused}");
    std::fs::write(&current, named).unwrap();
    let node = on_disk(folder.path()).await;
    assert_eq!(values(&node.range(get("a")).await.unwrap()), ["1"]);
    node.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_without_its_log_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let node = on_disk(folder.path()).await;
    node.put(put("a", "1")).await.unwrap();
    node.shutdown().await;
    drop(node);
    std::fs::remove_dir_all(folder.path().join("wal")).unwrap();
    let refused = quick(Node::builder().data_dir(folder.path()))
        .start()
        .await
        .unwrap_err();
    assert!(refused.to_string().contains("no log"), "{refused}");
}
