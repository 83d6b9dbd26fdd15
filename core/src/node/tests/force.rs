//! One member that is left of three.

use std::fs;

use quorate_proto::epoch::EPOCH_KEY;
use quorate_proto::etcdserverpb::{HashKvRequest, LeaseTimeToLiveRequest};

use super::cluster::Cluster;
use super::*;

/// A cluster with keys, history and a lease; all its members are stopped.
async fn lost() -> (Cluster, u32, u64) {
    let mut cluster = Cluster::start().await;
    for number in 0..10 {
        let put = put(&format!("k{number}"), &format!("v{number}"));
        cluster.node(number % 3).put(put).await.unwrap();
    }
    cluster.node(1).put(put("k0", "later")).await.unwrap();
    cluster.node(2).lease_grant(grant(600, 7)).await.unwrap();
    let node = cluster.node(0);
    node.range(get("k0")).await.unwrap();
    let hash = node.hash_kv(HashKvRequest::default()).await.unwrap().hash;
    let id = node.cluster_id();
    for n in 0..3 {
        cluster.stop(n).await;
    }
    (cluster, hash, id)
}

#[tokio::test(flavor = "multi_thread")]
async fn one_member_goes_on_alone_with_everything() {
    let (cluster, hash, lost_id) = lost().await;
    let survivor = cluster.builder_at(0).force_new_cluster();
    let node = survivor.start().await.unwrap();
    assert_ne!(node.cluster_id(), lost_id);
    assert_eq!(node.member_list(true).await.unwrap().members.len(), 1);
    let at = HashKvRequest { revision: 12 };
    assert_eq!(node.hash_kv(at).await.unwrap().hash, hash);
    let old = RangeRequest {
        revision: 2,
        ..get("k0")
    };
    assert_eq!(values(&node.range(old).await.unwrap()), ["v0"]);
    let lease = LeaseTimeToLiveRequest { id: 7, keys: false };
    assert_eq!(
        node.lease_time_to_live(lease).await.unwrap().granted_ttl,
        600
    );
    node.put(put("k0", "alone")).await.unwrap();
    let epoch = node.range(get(EPOCH_KEY)).await.unwrap();
    assert!(values(&epoch)[0].parse::<u64>().unwrap() > 0, "{epoch:?}");
    let term = node.leadership().term;
    node.shutdown().await;
    drop(node);

    // Without the flag it goes on as what it is, and so it does with it.
    for flag in [false, true] {
        let mut again = cluster.builder_at(0);
        if flag {
            again = again.force_new_cluster();
        }
        let node = again.start().await.unwrap();
        assert!(node.wait_for_leader().await.is_some());
        assert!(node.leadership().term > term, "terms never go back");
        assert_eq!(values(&node.range(get("k0")).await.unwrap()), ["alone"]);
        let now = node.range(get(EPOCH_KEY)).await.unwrap();
        assert_eq!(values(&now), values(&epoch), "raised once");
        node.shutdown().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_lost_members_are_refused_when_they_come_back() {
    let (mut cluster, ..) = lost().await;
    let node = cluster
        .builder_at(0)
        .force_new_cluster()
        .start()
        .await
        .unwrap();
    cluster.restart(1).await;
    eventually("it is refused", || async {
        let peers = cluster.node(1).peers();
        let own = peers.iter().find(|peer| peer.id == node.member_id());
        own.and_then(|peer| peer.last_error.as_ref())
            .is_some_and(|why| why.contains("cluster id mismatch"))
    })
    .await;
    node.put(put("k", "goes on")).await.unwrap();
    assert_eq!(node.member_list(true).await.unwrap().members.len(), 1);
    node.shutdown().await;
    cluster.stop(1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_empty_folder_and_an_interrupted_attempt_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let empty = quick(Node::builder().data_dir(folder.path().join("new")));
    let refused = empty.force_new_cluster().start().await.unwrap_err();
    assert!(refused.to_string().contains("is empty"), "{refused}");
    let memory = quick(Node::builder().in_memory()).force_new_cluster();
    let refused = memory.start().await.unwrap_err();
    assert!(refused.to_string().contains("on disk"), "{refused}");

    let (cluster, hash, _) = lost().await;
    fs::write(cluster.folder(0).join("FORCING"), "").unwrap();
    let refused = cluster.builder_at(0).start().await.unwrap_err();
    assert!(refused.to_string().contains("run it again"), "{refused}");
    let node = cluster
        .builder_at(0)
        .force_new_cluster()
        .start()
        .await
        .unwrap();
    let at = HashKvRequest { revision: 12 };
    assert_eq!(node.hash_kv(at).await.unwrap().hash, hash);
    assert!(!cluster.folder(0).join("FORCING").exists());
    node.shutdown().await;
}
