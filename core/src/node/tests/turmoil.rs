//! Writers on all members while leadership moves and members come and go: what was acknowledged is
//! there, and nothing was written twice.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};

use quorate_proto::KeyRange;
use quorate_proto::etcdserverpb::MoveLeaderRequest;
use quorate_proto::txn;

use super::cluster::Cluster;
use super::*;

const WRITERS: usize = 12;

/// Writes keys of its own, each once, until told to stop. Tells which were acknowledged.
async fn write(node: Node, writer: usize, stop: &AtomicBool) -> Vec<String> {
    let mut acknowledged = Vec::new();
    for round in 0.. {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        let key = format!("{writer:02}/{round:06}");
        match node.put(put(&key, "x")).await {
            Ok(_) => acknowledged.push(key),
            Err(error) => {
                let kind = error.kind();
                assert!(
                    kind.is_ambiguous() || error.reason().is_retryable(),
                    "{error} is no answer to a put while leaders change"
                );
                if node.is_stopping() {
                    break;
                }
            }
        }
    }
    acknowledged
}

/// Every acknowledged key is there, and no key was written more than once.
async fn check(node: &Node, acknowledged: Vec<Vec<String>>) {
    let found = node.range(txn::range(&KeyRange::all())).await.unwrap();
    let versions: BTreeMap<&[u8], i64> = found
        .kvs
        .iter()
        .map(|pair| (&*pair.key, pair.version))
        .collect();
    let twice: Vec<_> = versions
        .iter()
        .filter(|(_, version)| **version != 1)
        .collect();
    assert!(twice.is_empty(), "written more than once: {twice:?}");
    for key in acknowledged.iter().flatten() {
        assert!(
            versions.contains_key(key.as_bytes()),
            "{key} was acknowledged and is lost"
        );
    }
    let count: usize = acknowledged.iter().map(Vec::len).sum();
    assert!(count > WRITERS, "only {count} writes went through");
}

#[tokio::test(flavor = "multi_thread")]
async fn moving_leadership_under_load_loses_and_doubles_nothing() {
    let cluster = Cluster::start().await;
    cluster.roles().await;
    let stop = AtomicBool::new(false);
    let writers = (0..WRITERS).map(|writer| write(cluster.node(writer % 3).clone(), writer, &stop));
    let moving = async {
        for _ in 0..6 {
            let (leader, follower) = cluster.roles().await;
            let target_id = cluster.node(follower).member_id();
            let moved = cluster
                .node(leader)
                .move_leader(MoveLeaderRequest { target_id });
            if let Err(error) = moved.await {
                assert!(
                    error.kind().is_ambiguous() || error.reason().is_retryable(),
                    "{error}"
                );
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
        stop.store(true, Ordering::Relaxed);
    };
    let (acknowledged, ()) = tokio::join!(futures::future::join_all(writers), moving);
    check(cluster.node(0), acknowledged).await;
    cluster.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn stopping_members_under_load_loses_and_doubles_nothing() {
    let mut cluster = Cluster::start().await;
    let stop = AtomicBool::new(false);
    let mut acknowledged = Vec::new();
    for round in 0..3 {
        cluster.roles().await;
        let nodes: Vec<Node> = (0..3).map(|n| cluster.node(n).clone()).collect();
        let writers = nodes.into_iter().enumerate().flat_map(|(n, node)| {
            let first = round * WRITERS + n;
            [first, first + 3].map(|writer| write(node.clone(), writer, &stop))
        });
        let stopped = round;
        let churn = async {
            tokio::time::sleep(Duration::from_millis(300)).await;
            cluster.stop(stopped).await;
            tokio::time::sleep(Duration::from_millis(700)).await;
            stop.store(true, Ordering::Relaxed);
        };
        let (written, ()) = tokio::join!(futures::future::join_all(writers), churn);
        acknowledged.extend(written);
        cluster.restart(stopped).await;
        stop.store(false, Ordering::Relaxed);
    }
    check(cluster.node(0), acknowledged).await;
    cluster.shutdown().await;
}
