//! Members that were restored from a backup, from the file to what they do next.

use std::net::TcpListener;
use std::ops::Bound;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use quorate_proto::epoch::{self, EPOCH_KEY};
use quorate_proto::etcdserverpb::{HashKvRequest, LeaseTimeToLiveRequest, RangeRequest};

use super::snapshot::collect;
use super::*;
use crate::clock;
use crate::node::StartError;
use crate::node::restore::{RestoreError, RestoreOptions, RestoredMember, restore};
use crate::storage::kv::{Direction, DiskOptions, FjallKv, Kv, current_dir};

/// Three members to be: their folders are not there yet.
struct Seats {
    folder: tempfile::TempDir,
    listeners: Vec<Option<TcpListener>>,
    members: Vec<(String, Vec<String>)>,
}

impl Seats {
    fn new(count: usize) -> Self {
        let listeners: Vec<_> = (0..count)
            .map(|_| TcpListener::bind("127.0.0.1:0").unwrap())
            .collect();
        let members = listeners.iter().enumerate().map(|(n, listener)| {
            let url = format!("http://{}", listener.local_addr().unwrap());
            (format!("n{n}"), vec![url])
        });
        Self {
            folder: tempfile::tempdir().unwrap(),
            members: members.collect(),
            listeners: listeners.into_iter().map(Some).collect(),
        }
    }

    fn data_dir(&self, n: usize) -> PathBuf {
        self.folder.path().join(format!("n{n}"))
    }

    fn builder(&self, n: usize) -> NodeBuilder {
        quick(Node::builder())
            .name(format!("n{n}"))
            .data_dir(self.data_dir(n))
            .cluster(self.members.clone())
    }

    fn options(&self, n: usize, file: &Path) -> RestoreOptions {
        RestoreOptions {
            file: file.to_owned(),
            config: self.builder(n).config().clone(),
            skip_hash_check: false,
            bump_revision: None,
        }
    }

    fn restore(&self, n: usize, file: &Path) -> RestoredMember {
        restore(&self.options(n, file)).unwrap()
    }

    async fn start(&mut self) -> Vec<Node> {
        let starting: Vec<_> = (0..self.members.len())
            .map(|n| {
                let listener = self.listeners[n].take().unwrap();
                self.builder(n).peer_listener(listener).start()
            })
            .collect();
        let started = futures::future::join_all(starting).await;
        started.into_iter().map(Result::unwrap).collect()
    }

    /// What is beside the data folders.
    fn others(&self) -> Vec<String> {
        let entries = std::fs::read_dir(self.folder.path()).unwrap();
        let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        names.filter(|name| name.contains("part")).collect()
    }
}

/// A member's state, everything in it.
fn state_in(data_dir: &Path) -> Vec<(Bytes, Bytes)> {
    let folder = current_dir(data_dir).unwrap().unwrap();
    let kv = FjallKv::open(&folder, &DiskOptions::default()).unwrap();
    let view = kv.view();
    let all = view.range(Bound::Unbounded, Bound::Unbounded, Direction::Forward);
    all.map(Result::unwrap).collect()
}

/// Revision 4: `a` is 1, then 2; a key on lease 7.
async fn fill(node: &Node) {
    node.put(put("a", "1")).await.unwrap();
    node.put(put("a", "2")).await.unwrap();
    node.lease_grant(grant(600, 7)).await.unwrap();
    let mut leased = put("leased", "x");
    leased.lease = 7;
    node.put(leased).await.unwrap();
}

async fn backup_of(node: &Node, folder: &Path) -> PathBuf {
    let path = folder.join("backup.db");
    std::fs::write(&path, collect(node.snapshot().await.unwrap()).await).unwrap();
    path
}

/// The epoch, once it is raised.
async fn epoch(node: &Node) -> u64 {
    eventually("the epoch is raised", || async {
        let read = node.range(get(EPOCH_KEY)).await;
        read.is_ok_and(|read| !read.kvs.is_empty())
    })
    .await;
    let read = node.range(get(EPOCH_KEY)).await.unwrap();
    epoch::parse(Some(&read.kvs[0].value)).unwrap()
}

async fn hash_at(node: &Node, revision: i64) -> u32 {
    let answer = node.hash_kv(HashKvRequest { revision }).await.unwrap();
    answer.hash
}

async fn value_at(node: &Node, key: &str, revision: i64) -> Vec<String> {
    let request = RangeRequest {
        revision,
        ..get(key)
    };
    let read = node.range(request).await.unwrap();
    values(&read).into_iter().map(str::to_owned).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lone_member_goes_on_from_a_backup_in_a_new_epoch() {
    let seats = Seats::new(0);
    let builder = || quick(Node::builder()).data_dir(seats.data_dir(9));
    let before = lone().await;
    fill(&before).await;
    let file = backup_of(&before, seats.folder.path()).await;
    let (old_cluster, hash) = (before.cluster_id(), hash_at(&before, 4).await);
    // What came after the backup is forgotten.
    before.put(put("a", "3")).await.unwrap();
    before.shutdown().await;

    let options = RestoreOptions {
        config: builder().config().clone(),
        ..seats.options(0, &file)
    };
    let began = clock::wall_millis();
    let made = restore(&options).unwrap();
    assert_eq!((made.restored.revision, made.restored.keys), (4, 2));
    assert_ne!(made.cluster_id, old_cluster);
    let node = builder().start().await.unwrap();
    assert_eq!(node.cluster_id(), made.cluster_id);
    // At once: it waits for the epoch, and is not refused.
    let written = node.put(put("a", "4")).await.unwrap();
    assert_eq!(written.header.unwrap().revision, 6);
    let first = epoch(&node).await;
    assert!(first >= began);
    assert_eq!(value_at(&node, "a", 2).await, ["1"]);
    assert_eq!(value_at(&node, "a", 4).await, ["2"]);
    assert_eq!(hash_at(&node, 4).await, hash);
    let lease = LeaseTimeToLiveRequest { id: 7, keys: true };
    let left = node.lease_time_to_live(lease).await.unwrap();
    assert_eq!((left.granted_ttl, left.keys), (600, vec!["leased".into()]));
    node.shutdown().await;
    drop(node);
    // An ordinary member from now on.
    let node = builder().start().await.unwrap();
    assert_eq!(value_at(&node, "a", 0).await, ["4"]);
    assert_eq!(epoch(&node).await, first);
    node.shutdown().await;
    drop(node);

    // The same once more, from the same file: no token of the first restore comes again.
    std::fs::remove_dir_all(seats.data_dir(9)).unwrap();
    restore(&options).unwrap();
    let node = builder().start().await.unwrap();
    assert!(epoch(&node).await > first);
    node.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn three_members_restore_the_same_state_elect_a_leader_and_replicate() {
    let mut seats = Seats::new(3);
    let before = lone().await;
    fill(&before).await;
    let file = backup_of(&before, seats.folder.path()).await;
    let hash = hash_at(&before, 4).await;
    before.shutdown().await;
    let made: Vec<_> = (0..3).map(|n| seats.restore(n, &file)).collect();
    assert!(made.iter().all(|one| one.cluster_id == made[0].cluster_id));
    let states: Vec<_> = (0..3).map(|n| state_in(&seats.data_dir(n))).collect();
    assert!(states[0] == states[1] && states[1] == states[2]);
    assert!(seats.others().is_empty());

    let nodes = seats.start().await;
    for (node, made) in nodes.iter().zip(&made) {
        assert_eq!(
            (node.cluster_id(), node.member_id()),
            (made.cluster_id, made.member_id)
        );
    }
    for (n, node) in nodes.iter().enumerate() {
        node.put(put("a", &n.to_string())).await.unwrap();
    }
    let first = epoch(&nodes[0]).await;
    for node in &nodes {
        assert_eq!(value_at(node, "a", 0).await, ["2"]);
        assert_eq!(value_at(node, "a", 2).await, ["1"]);
        // One raises it, the others do not.
        assert_eq!(value_at(node, EPOCH_KEY, 5).await, [first.to_string()]);
        assert_eq!(epoch(node).await, first);
        assert_eq!(hash_at(node, 4).await, hash);
    }
    let leader = nodes[0].wait_for_leader().await.unwrap();
    // A member that joins needs all of the state: no log goes back to its beginning.
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let joined = quick(Node::builder())
        .name("late")
        .data_dir(seats.data_dir(3))
        .cluster([("late", [url])])
        .peer_listener(listener)
        .join(&seats.members[0].1[0])
        .start()
        .await
        .unwrap();
    assert_eq!(value_at(&joined, "a", 2).await, ["1"]);
    assert_eq!(hash_at(&joined, 4).await, hash);
    assert!(joined.put(put("a", "late")).await.is_ok());
    // And so does one whose leader ends.
    let leads = nodes.iter().position(|node| node.member_id() == leader);
    let leads = leads.unwrap();
    nodes[leads].shutdown().await;
    let follower = &nodes[(leads + 1) % 3];
    eventually("another one leads", || async {
        follower.put(put("a", "after")).await.is_ok()
    })
    .await;
    joined.shutdown().await;
    for node in &nodes {
        node.shutdown().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_cluster_id_depends_on_the_settings_the_file_and_the_bump() {
    let seats = Seats::new(2);
    let before = lone().await;
    fill(&before).await;
    let file = backup_of(&before, seats.folder.path()).await;
    let id = |change: &dyn Fn(&mut RestoreOptions)| {
        let mut options = seats.options(0, &file);
        change(&mut options);
        let made = restore(&options).unwrap();
        std::fs::remove_dir_all(seats.data_dir(0)).unwrap();
        made.cluster_id
    };
    let first = id(&|_| {});
    assert_eq!(id(&|_| {}), first);
    assert_eq!(id(&|options| options.skip_hash_check = true), first);
    let bumped = id(&|options| options.bump_revision = Some(5));
    let other_token = id(&|options| options.config.token = "other".to_owned());
    before.put(put("b", "")).await.unwrap();
    let file = backup_of(&before, seats.folder.path()).await;
    let later = id(&|options| options.file = file.clone());
    let derived = seats.builder(0).config().identities().unwrap().cluster_id;
    let ids = [first, bumped, other_token, later, derived];
    let different: std::collections::BTreeSet<_> = ids.into_iter().collect();
    assert_eq!(different.len(), ids.len());
    before.shutdown().await;

    // The folder knows its token.
    seats.restore(0, &file);
    let refused = seats.builder(0).token("other").start().await.unwrap_err();
    assert!(matches!(refused, StartError::DataDir(_)), "{refused}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restore_that_fails_leaves_everything_as_it_was() {
    let seats = Seats::new(1);
    let before = lone().await;
    fill(&before).await;
    let file = backup_of(&before, seats.folder.path()).await;
    before.shutdown().await;
    let target = seats.data_dir(0);
    let failed = |options: &RestoreOptions| {
        let error = restore(options).unwrap_err();
        assert!(seats.others().is_empty(), "{error}");
        error
    };
    let good = seats.options(0, &file);

    // The place is not free.
    std::fs::create_dir(&target).unwrap();
    std::fs::write(target.join("precious"), "x").unwrap();
    let error = failed(&good);
    assert!(error.to_string().contains("is not empty"), "{error}");
    assert_eq!(std::fs::read(target.join("precious")).unwrap(), b"x");
    std::fs::remove_dir_all(&target).unwrap();
    std::fs::write(&target, "x").unwrap();
    assert!(matches!(failed(&good), RestoreError::Target { .. }));
    std::fs::remove_file(&target).unwrap();

    // The file is not whole; the last of these is found only while the store is filled.
    let bytes = std::fs::read(&file).unwrap();
    let damaged = |bytes: &[u8], skip_hash_check| {
        let path = seats.folder.path().join("damaged.db");
        std::fs::write(&path, bytes).unwrap();
        let options = RestoreOptions {
            file: path,
            skip_hash_check,
            ..good.clone()
        };
        let error = failed(&options);
        assert!(!target.exists(), "{error}");
        error
    };
    let mut flipped = bytes.clone();
    flipped[bytes.len() / 2] ^= 1;
    damaged(&flipped, false);
    damaged(&flipped, true);
    damaged(&bytes[..bytes.len() - 1], false);
    damaged(&bytes[..bytes.len() - 32], false);
    damaged(b"", true);
    // A key of another revision than its item's.
    let mut bare = bytes[..bytes.len() - 32].to_vec();
    let revision = [&3_i64.to_be_bytes()[..], b"_", &0_i64.to_be_bytes()].concat();
    let at = bare.windows(17).position(|part| part == revision).unwrap();
    bare[at + 16] = 1;
    bare[at + 7] = 2;
    let error = damaged(&bare, true);
    assert!(matches!(error, RestoreError::Source(_)), "{error}");

    // Settings that cannot work.
    let mut options = good.clone();
    options.config.name = "nobody".to_owned();
    assert!(matches!(failed(&options), RestoreError::Config(_)));
    options.config = quick(Node::builder()).config().clone();
    assert!(matches!(failed(&options), RestoreError::Target { .. }));

    // An empty folder is a free place, wherever a link leads to it; folders are made where needed.
    let elsewhere = seats.folder.path().join("deep").join("er");
    std::fs::create_dir_all(&elsewhere).unwrap();
    std::os::unix::fs::symlink(&elsewhere, &target).unwrap();
    restore(&good).unwrap();
    assert!(elsewhere.join("IDENTITY").exists());
    options.config = good.config.clone();
    options.config.data = crate::config::Data::Folder(elsewhere.join("new").join("one"));
    restore(&options).unwrap();
}
