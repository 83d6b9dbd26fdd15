//! Three members in one process, over loopback.

use std::net::TcpListener;

use quorate_proto::Reason;
use quorate_proto::etcdserverpb::{
    HashKvRequest, LeaseTimeToLiveRequest, MoveLeaderRequest, PutRequest, RangeRequest,
    WatchCreateRequest,
};

use super::*;
use crate::clock::Instant;

/// How long the leases of these tests live without renewal.
const LEASE_TTL: Duration = Duration::from_secs(4);

/// How often the members' data is compared.
const CHECK_INTERVAL: Duration = Duration::from_millis(200);

/// Three members, by position; one may be stopped.
pub(super) struct Cluster {
    nodes: Vec<Option<Node>>,
    members: Vec<(String, Vec<String>)>,
    folders: Vec<tempfile::TempDir>,
    catch_up_entries: u64,
}

impl Cluster {
    pub(super) async fn start() -> Self {
        Self::start_with(5_000).await
    }

    pub(super) async fn start_with(catch_up_entries: u64) -> Self {
        let listeners: Vec<TcpListener> = (0..3)
            .map(|_| TcpListener::bind("127.0.0.1:0").unwrap())
            .collect();
        let members = listeners
            .iter()
            .enumerate()
            .map(|(n, listener)| {
                let url = format!("http://{}", listener.local_addr().unwrap());
                (format!("n{n}"), vec![url])
            })
            .collect();
        let folders = (0..3).map(|_| tempfile::tempdir().unwrap()).collect();
        let mut cluster = Self {
            nodes: Vec::new(),
            members,
            folders,
            catch_up_entries,
        };
        let starting = listeners
            .into_iter()
            .enumerate()
            .map(|(n, listener)| cluster.builder(n).peer_listener(listener).start());
        let started = futures::future::join_all(starting).await;
        cluster.nodes = started
            .into_iter()
            .map(|node| Some(node.unwrap()))
            .collect();
        cluster
    }

    fn builder(&self, n: usize) -> NodeBuilder {
        quick(Node::builder())
            .name(format!("n{n}"))
            .data_dir(self.folders[n].path())
            .cluster(self.members.clone())
            .catch_up_entries(self.catch_up_entries)
            .corrupt_check_interval(Some(CHECK_INTERVAL))
    }

    pub(super) fn node(&self, n: usize) -> &Node {
        self.nodes[n].as_ref().expect("this member runs")
    }

    /// The positions of a member that leads and of one that runs and does not.
    pub(super) async fn roles(&self) -> (usize, usize) {
        let any = self.nodes.iter().flatten().next().unwrap();
        let leader = tokio::time::timeout(PATIENCE, any.wait_for_leader()).await;
        let leader = leader.expect("a leader in time").expect("the member runs");
        let leads =
            |node: &Option<Node>| node.as_ref().is_some_and(|node| node.member_id() == leader);
        let leads_at = self.nodes.iter().position(leads).expect("it runs");
        let follows_at = (0..3)
            .find(|&n| n != leads_at && self.nodes[n].is_some())
            .unwrap();
        (leads_at, follows_at)
    }

    /// Grants a lease with a key, and renews it by way of member `asked` once some of its time is
    /// over. Tells when.
    async fn renewed_lease(&self, id: i64, asked: usize) -> Instant {
        let node = self.node(asked);
        let ttl = LEASE_TTL.as_secs().try_into().unwrap();
        node.lease_grant(grant(ttl, id)).await.unwrap();
        let leased = PutRequest {
            lease: id,
            ..put(&format!("of {id}"), "x")
        };
        node.put(leased).await.unwrap();
        tokio::time::sleep(LEASE_TTL / 4).await;
        let renewed = crate::clock::now();
        assert_eq!(node.lease_keep_alive(id).await.unwrap().ttl, ttl);
        renewed
    }

    /// Whether the key of the lease is there, or nobody can tell for want of a leader.
    async fn lease_lives(&self, id: i64, asked: usize) -> bool {
        let read = self.node(asked).range(get(&format!("of {id}"))).await;
        read.map_or(true, |read| !read.kvs.is_empty())
    }

    async fn lease_lives_until(&self, id: i64, end: Instant, asked: usize) {
        while crate::clock::now() < end {
            let lives = self.lease_lives(id, asked).await;
            // An answer that took longer than that tells nothing.
            assert!(lives || crate::clock::now() >= end, "it ended early");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Settings of member `n`, which does not run.
    pub(super) fn builder_at(&self, n: usize) -> NodeBuilder {
        self.builder(n).listen_peers([self.members[n].1[0].clone()])
    }

    pub(super) fn folder(&self, n: usize) -> &std::path::Path {
        self.folders[n].path()
    }

    pub(super) fn peer_url(&self, n: usize) -> &str {
        &self.members[n].1[0]
    }

    /// Waits until every member knows the data folder of every other.
    async fn all_bound(&self) {
        let nodes = || self.nodes.iter().flatten();
        let knows = |node: &Node, id: u64| {
            let transport = node.shared.transport.as_ref().expect("it has peers");
            id == node.member_id() || transport.bound_incarnation(id).is_some()
        };
        eventually("the members know each other", || async {
            nodes().all(|node| nodes().all(|other| knows(node, other.member_id())))
        })
        .await;
    }

    pub(super) async fn stop(&mut self, n: usize) {
        let node = self.nodes[n].take().expect("this member runs");
        node.shutdown().await;
    }

    pub(super) async fn restart(&mut self, n: usize) {
        let url = self.members[n].1[0].clone();
        let node = self.builder(n).listen_peers([url]).start().await.unwrap();
        self.nodes[n] = Some(node);
    }

    pub(super) async fn shutdown(mut self) {
        for node in self.nodes.iter_mut().filter_map(Option::take) {
            node.shutdown().await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn any_member_writes_and_every_member_reads_it_at_once() {
    let cluster = Cluster::start().await;
    for writer in 0..3 {
        for reader in 0..3 {
            let value = format!("{writer} to {reader}");
            cluster.node(writer).put(put("a", &value)).await.unwrap();
            let read = cluster.node(reader).range(get("a")).await.unwrap();
            assert_eq!(values(&read), [value]);
        }
    }
    // Its own writes are in a member's own state, also without asking the leader.
    let (_, follower) = cluster.roles().await;
    cluster.node(follower).put(put("own", "x")).await.unwrap();
    let local = RangeRequest {
        serializable: true,
        ..get("own")
    };
    assert_eq!(
        values(&cluster.node(follower).range(local).await.unwrap()),
        ["x"]
    );
    for reader in 0..3 {
        cluster.node(reader).range(get("own")).await.unwrap();
    }
    let hash = |n: usize| cluster.node(n).hash_kv(HashKvRequest { revision: 10 });
    let hashes = [hash(0).await, hash(1).await, hash(2).await].map(|hash| hash.unwrap().hash);
    assert!(hashes.iter().all(|&hash| hash == hashes[0]), "{hashes:?}");
    cluster.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn writers_on_all_members_at_once_each_write_once() {
    let cluster = Cluster::start().await;
    let writers = (0..24).map(|writer| {
        let node = cluster.node(writer % 3).clone();
        async move {
            for round in 0..10 {
                node.put(put(&format!("w{writer}"), &round.to_string()))
                    .await
                    .unwrap();
            }
        }
    });
    futures::future::join_all(writers).await;
    let read = cluster.node(0).range(get("w0")).await.unwrap();
    assert_eq!(read.kvs[0].version, 10);
    assert_eq!(read.header.unwrap().revision, 1 + 24 * 10);
    cluster.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn writes_go_on_when_the_leader_stops_and_it_catches_up_when_it_is_back() {
    let mut cluster = Cluster::start().await;
    let (leader, follower) = cluster.roles().await;
    cluster
        .node(follower)
        .put(put("a", "before"))
        .await
        .unwrap();
    cluster.stop(leader).await;
    cluster.node(follower).put(put("a", "after")).await.unwrap();
    let read = cluster.node(follower).range(get("a")).await.unwrap();
    assert_eq!(values(&read), ["after"]);
    cluster.restart(leader).await;
    let read = cluster.node(leader).range(get("a")).await.unwrap();
    assert_eq!(values(&read), ["after"]);
    cluster.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_beyond_the_catch_up_window_gets_a_snapshot() {
    let mut cluster = Cluster::start_with(20).await;
    let (leader, follower) = cluster.roles().await;
    cluster.node(leader).put(put("early", "x")).await.unwrap();
    cluster.stop(follower).await;
    for round in 0..200 {
        cluster
            .node(leader)
            .put(put("a", &round.to_string()))
            .await
            .unwrap();
    }
    let applied = cluster.node(leader).shared.consensus.status().applied_index;
    cluster.node(leader).shared.consensus.purge(applied).await;
    cluster.restart(follower).await;
    let read = cluster.node(follower).range(get("a")).await.unwrap();
    assert_eq!(values(&read), ["199"]);
    let early = RangeRequest {
        serializable: true,
        revision: 2,
        ..get("early")
    };
    assert_eq!(
        values(&cluster.node(follower).range(early).await.unwrap()),
        ["x"]
    );
    // Counted once the sender was answered, after what it brought can be read.
    eventually("it counts as received", || async {
        let received = cluster.node(follower).observe().await.unwrap();
        received.snapshots_received.succeeded >= 1 && !received.is_installing
    })
    .await;
    eventually("the sender hears that it arrived", || async {
        let peers = cluster.node(leader).peers();
        let mut sent = peers.iter().map(|peer| peer.snapshots);
        sent.any(|sent| sent.succeeded >= 1 && sent.under_way == 0)
    })
    .await;
    cluster.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_follower_keeps_leases_alive_and_watches_what_others_write() {
    let cluster = Cluster::start().await;
    let (leader, follower) = cluster.roles().await;
    let (leader, follower) = (cluster.node(leader), cluster.node(follower));
    follower.lease_grant(grant(1, 5)).await.unwrap();
    follower
        .put(PutRequest {
            lease: 5,
            ..put("leased", "x")
        })
        .await
        .unwrap();
    let mut session = follower.watch();
    let request = WatchCreateRequest {
        key: "leased".into(),
        ..Default::default()
    };
    session.control().create(request).await;
    assert!(next(&mut session).await.created);
    let until = crate::clock::now() + Duration::from_secs(3);
    while crate::clock::now() < until {
        assert_eq!(follower.lease_keep_alive(5).await.unwrap().ttl, 1);
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert_eq!(values(&leader.range(get("leased")).await.unwrap()), ["x"]);
    let ask = LeaseTimeToLiveRequest { id: 5, keys: true };
    let left = follower.lease_time_to_live(ask).await.unwrap();
    assert_eq!((left.granted_ttl, left.keys.len()), (1, 1));
    // Nobody keeps it alive any more: the leader ends it, and the follower's watch tells.
    let gone = next(&mut session).await;
    assert_eq!(gone.events.len(), 1);
    assert!(follower.range(get("leased")).await.unwrap().kvs.is_empty());
    assert_eq!(follower.lease_keep_alive(5).await.unwrap().ttl, 0);
    cluster.shutdown().await;
}

/// A new leader cannot know of renewals that the old one took last.
#[tokio::test(flavor = "multi_thread")]
async fn leases_outlive_a_change_of_leader_by_their_whole_time() {
    let mut cluster = Cluster::start().await;
    let (leader, follower) = cluster.roles().await;
    let renewed = cluster.renewed_lease(1, follower).await;
    let target_id = cluster.node(follower).member_id();
    let transfer = MoveLeaderRequest { target_id };
    cluster.node(leader).move_leader(transfer).await.unwrap();
    cluster
        .lease_lives_until(1, renewed + LEASE_TTL, follower)
        .await;

    let (leader, follower) = cluster.roles().await;
    let renewed = cluster.renewed_lease(2, follower).await;
    cluster.stop(leader).await;
    cluster
        .lease_lives_until(2, renewed + LEASE_TTL, follower)
        .await;
    eventually("it ends", async || !cluster.lease_lives(2, follower).await).await;
    cluster.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_that_lost_its_folder_does_not_count_under_its_old_id() {
    a_member_that_lost(|folder| *folder = tempfile::tempdir().unwrap()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_that_lost_all_but_its_identity_does_not_count() {
    a_member_that_lost(|folder| {
        for entry in std::fs::read_dir(folder.path()).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                std::fs::remove_dir_all(path).unwrap();
            } else if path.file_name().unwrap() == "CURRENT" {
                std::fs::remove_file(path).unwrap();
            }
        }
        assert!(folder.path().join("IDENTITY").exists());
    })
    .await;
}

/// A follower loses its data, or a part of it, and comes back.
async fn a_member_that_lost(lose: impl FnOnce(&mut tempfile::TempDir)) {
    let mut cluster = Cluster::start().await;
    let (leader, wiped) = cluster.roles().await;
    let third = 3 - leader - wiped;
    cluster.all_bound().await;
    cluster.node(leader).put(put("a", "1")).await.unwrap();
    cluster.stop(wiped).await;
    lose(&mut cluster.folders[wiped]);
    cluster.restart(wiped).await;
    cluster.node(leader).put(put("a", "2")).await.unwrap();
    cluster.stop(third).await;
    // One member with its data and one without: no quorum.
    let alone = cluster.node(leader).put(put("a", "3"));
    let answered = tokio::time::timeout(3 * ELECTION_TIMEOUT, alone).await;
    assert!(answered.is_err(), "{answered:?}");
    cluster.restart(third).await;
    eventually("a quorum with data writes", || async {
        cluster.node(third).put(put("a", "4")).await.is_ok()
    })
    .await;
    cluster.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_that_lost_its_folder_is_known_to_members_that_start_after_it() {
    let mut cluster = Cluster::start().await;
    cluster.node(0).put(put("a", "1")).await.unwrap();
    cluster.all_bound().await;
    for n in 0..3 {
        cluster.stop(n).await;
    }
    cluster.folders[0] = tempfile::tempdir().unwrap();
    cluster.restart(0).await;
    cluster.restart(1).await;
    // One member with its data and one without: no quorum.
    let alone = cluster.node(1).put(put("a", "2"));
    let answered = tokio::time::timeout(3 * ELECTION_TIMEOUT, alone).await;
    assert!(
        !matches!(answered, Ok(Ok(_))),
        "a wiped member counted: {answered:?}"
    );
    cluster.restart(2).await;
    eventually("a quorum with data writes", || async {
        cluster.node(1).put(put("a", "3")).await.is_ok()
    })
    .await;
    let wiped = cluster.node(0).shared.consensus.status();
    assert_eq!(wiped.applied_index, 0, "it was told nothing");
    cluster.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn leadership_moves_when_asked_and_all_members_are_listed_by_name() {
    let cluster = Cluster::start().await;
    let (leader, follower) = cluster.roles().await;
    eventually("all members are named", || async {
        let list = cluster.node(follower).member_list(true).await.unwrap();
        let mut names: Vec<&str> = list
            .members
            .iter()
            .map(|member| member.name.as_str())
            .collect();
        names.sort_unstable();
        names == ["n0", "n1", "n2"]
    })
    .await;
    let target_id = cluster.node(follower).member_id();
    let refused = async |from: usize, target_id| {
        let asked = cluster
            .node(from)
            .move_leader(MoveLeaderRequest { target_id });
        asked.await.unwrap_err().reason()
    };
    assert_eq!(refused(follower, target_id).await, Reason::NotLeader);
    assert_eq!(refused(follower, 5).await, Reason::NotLeader);
    assert_eq!(refused(leader, 5).await, Reason::BadLeaderTransferee);
    for target_id in [cluster.node(leader).member_id(), target_id] {
        let moved = cluster
            .node(leader)
            .move_leader(MoveLeaderRequest { target_id });
        assert!(moved.await.unwrap().header.is_none());
    }
    eventually("the follower leads", || async {
        cluster.node(follower).leadership().leader == Some(target_id)
    })
    .await;
    cluster.node(leader).put(put("a", "1")).await.unwrap();
    cluster.shutdown().await;
}
