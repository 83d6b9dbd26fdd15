//! Members whose state was damaged, lost or left behind: with peers they take theirs, alone they
//! refuse.

use std::fs;
use std::path::{Path, PathBuf};

use super::cluster::Cluster;
use super::*;
use crate::node::StartError;

/// Entries kept in the log: few, so that a purged log cannot replay a state.
const CATCH_UP_ENTRIES: u64 = 8;

fn states(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path());
    let is_state = |path: &PathBuf| {
        let name = path.file_name().unwrap().to_str().unwrap();
        name.starts_with("kv-")
    };
    entries.filter(is_state).collect()
}

/// The largest file of the state: tables and journals, not markers.
fn largest(folder: &Path) -> PathBuf {
    let mut files = Vec::new();
    let mut folders = states(folder);
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else {
                files.push(path);
            }
        }
    }
    files
        .into_iter()
        .max_by_key(|file| fs::metadata(file).unwrap().len())
        .unwrap()
}

async fn purge(node: &Node) {
    let applied = node.shared.consensus.status().applied_index;
    node.shared.consensus.purge(applied).await;
    eventually("the log is purged", || async {
        node.shared.consensus.purged_index() >= Some(applied)
    })
    .await;
}

/// Three members with keys and a purged log; the last is stopped and `spoil`ed.
async fn spoiled(spoil: impl FnOnce(&Path)) -> Cluster {
    let mut cluster = Cluster::start_with(CATCH_UP_ENTRIES).await;
    for number in 0..20 {
        let put = put(&format!("k{number}"), &format!("v{number}"));
        cluster.node(0).put(put).await.unwrap();
    }
    // What was put is applied there as well.
    cluster.node(2).range(get("k19")).await.unwrap();
    purge(cluster.node(2)).await;
    cluster.stop(2).await;
    spoil(cluster.folder(2));
    cluster
}

async fn rebuilds(mut cluster: Cluster) {
    cluster.node(0).put(put("k0", "later")).await.unwrap();
    cluster.restart(2).await;
    let node = cluster.node(2);
    assert_eq!(values(&node.range(get("k0")).await.unwrap()), ["later"]);
    assert_eq!(values(&node.range(get("k19")).await.unwrap()), ["v19"]);
    node.put(put("own", "1")).await.unwrap();
    let hash = |n: usize| {
        let node = cluster.node(n);
        async move {
            node.range(get("own")).await.unwrap();
            node.hash_kv(Default::default()).await.unwrap().hash
        }
    };
    assert_eq!(hash(2).await, hash(0).await);
    let now = states(cluster.folder(2));
    assert_eq!(now.len(), 1, "nothing is left of the old one: {now:?}");
    assert!(!now[0].ends_with("kv-1"), "it is another one: {now:?}");

    // And it starts again by itself.
    cluster.stop(2).await;
    cluster.restart(2).await;
    let read = cluster.node(2).range(get("own")).await.unwrap();
    assert_eq!(values(&read), ["1"]);
    cluster.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_whose_state_was_deleted_takes_that_of_a_peer() {
    let spoil = |folder: &Path| {
        for state in states(folder) {
            fs::remove_dir_all(state).unwrap();
        }
    };
    rebuilds(spoiled(spoil).await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_whose_state_and_its_name_were_deleted_takes_that_of_a_peer() {
    let spoil = |folder: &Path| {
        for state in states(folder) {
            fs::remove_dir_all(state).unwrap();
        }
        fs::remove_file(folder.join("CURRENT")).unwrap();
    };
    rebuilds(spoiled(spoil).await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_whose_state_is_damaged_takes_that_of_a_peer() {
    let spoil = |folder: &Path| {
        for state in states(folder) {
            fs::remove_file(state.join("version")).unwrap();
        }
    };
    rebuilds(spoiled(spoil).await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_whose_state_was_put_back_to_an_older_one_takes_that_of_a_peer() {
    let spoil = |folder: &Path| {
        // fjall takes a cut journal for the end of it: an older state opens without a word.
        let journal = largest(folder);
        fs::OpenOptions::new()
            .write(true)
            .open(journal)
            .unwrap()
            .set_len(0)
            .unwrap();
    };
    rebuilds(spoiled(spoil).await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lone_member_refuses_and_says_why() {
    let folder = tempfile::tempdir().unwrap();
    let start = || {
        quick(Node::builder().data_dir(folder.path()))
            .catch_up_entries(CATCH_UP_ENTRIES)
            .start()
    };
    let node = start().await.unwrap();
    for number in 0..20 {
        node.put(put(&format!("k{number}"), "v")).await.unwrap();
    }
    purge(&node).await;
    node.shutdown().await;
    drop(node);
    for state in states(folder.path()) {
        fs::remove_dir_all(state).unwrap();
    }
    let refused = start().await.unwrap_err();
    assert!(matches!(refused, StartError::Member(_)), "{refused}");
    assert!(refused.to_string().contains("holds no store"), "{refused}");
    fs::remove_file(folder.path().join("CURRENT")).unwrap();
    let refused = start().await.unwrap_err();
    assert!(
        refused.to_string().contains("the state is behind the log"),
        "{refused}"
    );
    assert!(
        refused.to_string().contains("restore a snapshot"),
        "{refused}"
    );
}
