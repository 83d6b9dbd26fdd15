//! Three members on real sockets of the loopback interface, with logs and stores in memory.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use bytes::Bytes;
use openraft::async_runtime::watch::WatchReceiver as _;
use prost::Message;
use quorate_proto::etcdserverpb::PutRequest;
use quorate_proto::log;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio_stream::wrappers::TcpListenerStream;
use uuid::Uuid;

use super::*;
use crate::apply;
use crate::peer::Local;
use crate::raft::{Consensus, Options, Pending};
use crate::storage::fs::MemFs;
use crate::storage::snapshot::Stores;
use crate::storage::wal::{Identity, Wal, WalOptions};
use crate::tasks::Tasks;
use crate::watch::Hub;

const CLUSTER: u64 = 0xc0;
const LIMIT: Duration = Duration::from_secs(30);
const HEARTBEAT: Duration = Duration::from_millis(100);
const ELECTION: Duration = Duration::from_millis(1000);

/// What of a member outlives its process.
struct Machine {
    id: u64,
    fs: MemFs,
    stores: Stores,
    address: SocketAddr,
    running: Option<Running>,
}

/// A started member.
struct Running {
    consensus: Consensus,
    reader: apply::Reader,
    transport: Transport,
    tasks: Tasks,
}

impl Machine {
    async fn start(&mut self, listener: TcpListener, peers: &BTreeMap<u64, types::Peer>) {
        static BOOTS: AtomicU64 = AtomicU64::new(1);
        let boot = Uuid::from_u128(u128::from(BOOTS.fetch_add(1, Ordering::Relaxed)));
        let tasks = Tasks::new();
        let local = Local {
            cluster_id: CLUSTER,
            member_id: self.id,
            incarnation: Uuid::from_u128(u128::from(self.id)),
            boot,
        };
        let timings = Timings {
            heartbeat_interval: HEARTBEAT,
            election_timeout: ELECTION,
        };
        let transport = Transport::new(local, timings, &tasks);
        for (id, peer) in peers {
            transport.set_peer(*id, &peer.name, &peer.peer_urls);
        }
        let server = tonic::transport::Server::builder()
            .add_service(transport.service())
            .serve_with_incoming(TcpListenerStream::new(listener));
        tasks.spawn("test server", async move {
            server.await.ok();
        });
        let identity = Identity {
            cluster_id: CLUSTER,
            member_id: self.id,
        };
        let mut wal = WalOptions::new(identity, u64::from(boot.as_fields().0));
        wal.segment_bytes = 1 << 20;
        let wal = Wal::open(Arc::new(self.fs.clone()), Path::new("/wal"), wal).unwrap();
        let kv = self.stores.open().unwrap();
        let state = apply::State::open(kv, &apply::Options::default()).unwrap();
        let reader = state.reader();
        let views = state.reader();
        let hub = Hub::new(
            Arc::new(move || views.view()),
            reader.revision(),
            reader.compact_revision(),
            &crate::watch::Options::default(),
        );
        let consensus = Consensus::start(Options {
            member_id: self.id,
            cluster_id: CLUSTER,
            heartbeat_interval: HEARTBEAT,
            election_timeout: ELECTION,
            wal,
            stores: self.stores.clone(),
            state,
            hub,
            pending: Pending::new(boot, 1000),
            transport: Some(transport.clone()),
            tasks: tasks.clone(),
            catch_up_entries: 5000,
            apply_on: WriterMode::Thread,
        })
        .await
        .unwrap();
        self.running = Some(Running {
            consensus,
            reader,
            transport,
            tasks,
        });
    }

    async fn stop(&mut self) {
        if let Some(running) = self.running.take() {
            running.consensus.shutdown().await;
            assert!(running.tasks.stop(LIMIT).await, "a task would not end");
        }
    }

    fn consensus(&self) -> &Consensus {
        &self.running.as_ref().unwrap().consensus
    }
}

/// Three members.
struct Cluster {
    members: BTreeMap<u64, types::Peer>,
    machines: Vec<Machine>,
    sequence: u64,
}

impl Cluster {
    async fn form() -> Self {
        let mut machines = Vec::new();
        let mut listeners = Vec::new();
        for id in 1..=3 {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            machines.push(Machine {
                id,
                fs: MemFs::new(),
                stores: Stores::memory(),
                address: listener.local_addr().unwrap(),
                running: None,
            });
            listeners.push(listener);
        }
        let members = machines.iter().map(|machine| {
            let peer = types::Peer {
                name: format!("m{}", machine.id),
                peer_urls: vec![format!("http://{}", machine.address)],
                wants_vote: false,
            };
            (machine.id, peer)
        });
        let members: BTreeMap<_, _> = members.collect();
        for (machine, listener) in machines.iter_mut().zip(listeners) {
            machine.start(listener, &members).await;
        }
        for machine in &machines {
            let formed = machine.consensus().initialize(members.clone()).await;
            formed.unwrap();
        }
        Self {
            members,
            machines,
            sequence: 0,
        }
    }

    async fn restart(&mut self, id: u64) {
        let machine = self.machines.iter_mut().find(|m| m.id == id).unwrap();
        let deadline = crate::clock::now() + LIMIT;
        let listener = loop {
            match TcpListener::bind(machine.address).await {
                Ok(listener) => break listener,
                Err(error) => assert!(crate::clock::now() < deadline, "{error}"),
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        };
        machine.start(listener, &self.members).await;
    }

    fn machine(&mut self, id: u64) -> &mut Machine {
        self.machines.iter_mut().find(|m| m.id == id).unwrap()
    }

    fn running(&self) -> impl Iterator<Item = &Machine> {
        self.machines.iter().filter(|m| m.running.is_some())
    }

    /// Waits until a running member leads and is ready; its id and term.
    async fn leader(&self) -> (u64, u64) {
        let mut found = None;
        until("a leader", || {
            found = self.running().find_map(|machine| {
                let leadership = *machine.consensus().leadership().borrow();
                leadership.ready.then_some((machine.id, leadership.term))
            });
            found.is_some()
        })
        .await;
        found.unwrap()
    }

    /// Puts `count` values of `bytes` through the leader, each acknowledged.
    async fn put(&mut self, count: usize, bytes: usize) {
        for _ in 0..count {
            let deadline = crate::clock::now() + LIMIT;
            loop {
                let (leader, term) = self.leader().await;
                self.sequence += 1;
                let batch = self.batch(bytes);
                let leader = self.machine(leader).consensus().clone();
                if leader.propose(batch, term).await.is_ok() {
                    break;
                }
                assert!(crate::clock::now() < deadline, "nothing is acknowledged");
            }
        }
    }

    fn batch(&self, bytes: usize) -> Bytes {
        let put = PutRequest {
            key: Bytes::from(format!("key-{}", self.sequence % 10)),
            value: Bytes::from(vec![b'x'; bytes]),
            ..PutRequest::default()
        };
        let proposal = log::Proposal {
            boot_id: Bytes::copy_from_slice(Uuid::from_u128(77).as_bytes()),
            sequence: self.sequence,
            command: Some(log::Command {
                kind: Some(log::command::Kind::Put(put)),
            }),
        };
        let batch = log::Batch {
            proposals: vec![proposal],
        };
        Bytes::from(batch.encode_to_vec())
    }

    /// Waits until all running members have applied the same, at `revision` or later.
    async fn agree(&self, revision: i64) {
        until("the members agree", || {
            let points = self.running().map(|machine| {
                let running = machine.running.as_ref().unwrap();
                let status = running.consensus.status();
                (status.applied_index, running.reader.revision())
            });
            let points: Vec<_> = points.collect();
            points
                .iter()
                .all(|point| *point == points[0] && point.1 >= revision)
        })
        .await;
    }

    async fn stop(mut self) {
        for machine in &mut self.machines {
            machine.stop().await;
        }
    }
}

async fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let wait = async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let waited = tokio::time::timeout(LIMIT, wait).await;
    assert!(waited.is_ok(), "not within {LIMIT:?}: {what}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_acknowledged_reaches_every_member() {
    let mut cluster = Cluster::form().await;
    cluster.put(50, 10_000).await;
    cluster.agree(51).await;
    let (leader, _) = cluster.leader().await;
    let consensus = cluster.machine(leader).consensus().clone();
    let index = consensus.read_index().await.unwrap();
    assert!(index >= 50, "{index}");
    let status = cluster.machine(leader).running.as_ref().unwrap();
    let status = status.transport.status();
    assert_eq!(status.len(), 2);
    for peer in status {
        assert_eq!(peer.connects, 1, "{peer:?}");
        assert_eq!(peer.dropped, 0, "{peer:?}");
        assert!(peer.incoming, "{peer:?}");
    }
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_outlives_its_leader_and_takes_it_back() {
    let mut cluster = Cluster::form().await;
    cluster.put(10, 100).await;
    let (first, term) = cluster.leader().await;
    cluster.machine(first).stop().await;
    let (second, later) = cluster.leader().await;
    assert!(second != first && later > term, "{second} in {later}");
    cluster.put(10, 100).await;
    cluster.restart(first).await;
    cluster.agree(21).await;
    cluster.put(1, 100).await;
    cluster.agree(22).await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_that_missed_too_much_gets_a_snapshot() {
    let mut cluster = Cluster::form().await;
    cluster.put(5, 100).await;
    let (leader, _) = cluster.leader().await;
    let lagging = if leader == 1 { 2 } else { 1 };
    cluster.machine(lagging).stop().await;
    cluster.put(20, 100_000).await;
    let (leader, _) = cluster.leader().await;
    let consensus = cluster.machine(leader).consensus().clone();
    consensus.purge(u64::MAX).await;
    cluster.put(1, 100).await;
    until("the log is purged", || {
        let metrics = consensus.raft().metrics();
        let purged = metrics.borrow_watched().purged;
        purged.is_some_and(|id| id.index >= 20)
    })
    .await;
    cluster.restart(lagging).await;
    cluster.agree(27).await;
    cluster.put(1, 100).await;
    cluster.agree(28).await;
    let stores = cluster.machine(lagging).stores.clone();
    let installed = crate::raft::snapshot::installed_in(&*stores.open().unwrap().view());
    assert!(installed.unwrap().is_some(), "it came as a snapshot");
    cluster.stop().await;
}

/// Passes connections on, and cuts the first one that has carried more than `cut_at` bytes to
/// `to`. Gives what was carried to it in all.
fn cutting_proxy(listener: TcpListener, to: SocketAddr, cut_at: u64) -> (Tasks, Arc<AtomicU64>) {
    let (tasks, carried) = (Tasks::new(), Arc::new(AtomicU64::new(0)));
    let (inner, counter) = (tasks.clone(), Arc::clone(&carried));
    let has_cut = Arc::new(AtomicBool::new(false));
    tasks.spawn("proxy", async move {
        while let Ok((from, _)) = listener.accept().await {
            let Ok(to) = TcpStream::connect(to).await else {
                continue;
            };
            let (counter, has_cut) = (Arc::clone(&counter), Arc::clone(&has_cut));
            inner.spawn("proxied", async move {
                let ((mut from_read, mut from_write), (mut to_read, mut to_write)) =
                    (from.into_split(), to.into_split());
                let there = async {
                    let (mut buffer, mut own) = (vec![0; 16 * 1024], 0_u64);
                    while let Ok(count @ 1..) = from_read.read(&mut buffer).await {
                        own += count as u64;
                        counter.fetch_add(count as u64, Ordering::Relaxed);
                        if own > cut_at && !has_cut.swap(true, Ordering::Relaxed) {
                            return;
                        }
                        if to_write.write_all(&buffer[..count]).await.is_err() {
                            return;
                        }
                    }
                };
                tokio::select! {
                    () = there => {}
                    _ = tokio::io::copy(&mut to_read, &mut from_write) => {}
                }
            });
        }
    });
    (tasks, carried)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_snapshot_whose_connection_breaks_goes_on_where_it_was() {
    const CUT_AT: u64 = 3_000_000;
    let mut cluster = Cluster::form().await;
    cluster.put(1, 100).await;
    let (leader, _) = cluster.leader().await;
    let lagging = if leader == 1 { 2 } else { 1 };
    cluster.machine(lagging).stop().await;
    // Every revision is part of a snapshot: some 4 MB.
    cluster.put(40, 100_000).await;
    let (leader, _) = cluster.leader().await;
    let consensus = cluster.machine(leader).consensus().clone();
    consensus.purge(u64::MAX).await;
    cluster.put(1, 100).await;
    until("the log is purged", || consensus.purged_index() >= Some(40)).await;

    let members = cluster.members.clone();
    let machine = cluster.machine(lagging);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let front = TcpListener::bind(machine.address).await.unwrap();
    let (proxy, carried) = cutting_proxy(front, listener.local_addr().unwrap(), CUT_AT);
    machine.start(listener, &members).await;
    cluster.agree(43).await;
    let carried = carried.load(Ordering::Relaxed);
    assert!(
        carried > 4_000_000,
        "it came as a snapshot: {carried} bytes"
    );
    assert!(
        carried < 4_000_000 + CUT_AT / 2,
        "what had come was sent again: {carried} bytes"
    );
    cluster.put(1, 100).await;
    cluster.agree(44).await;
    proxy.stop(LIMIT).await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn leadership_is_handed_over_on_request() {
    let mut cluster = Cluster::form().await;
    cluster.put(3, 100).await;
    let (leader, _) = cluster.leader().await;
    let next = if leader == 3 { 1 } else { 3 };
    let consensus = cluster.machine(leader).consensus().clone();
    consensus.transfer_leader(next).await.unwrap();
    until("the chosen one leads", || {
        let chosen = cluster.running().find(|m| m.id == next).unwrap();
        chosen.consensus().leadership().borrow().ready
    })
    .await;
    cluster.put(3, 100).await;
    cluster.agree(7).await;
    cluster.stop().await;
}

#[tokio::test]
async fn a_member_that_lacks_what_it_acknowledged_is_noticed() {
    let local = Local {
        cluster_id: CLUSTER,
        member_id: 1,
        incarnation: Uuid::from_u128(1),
        boot: Uuid::from_u128(1),
    };
    let timings = Timings {
        heartbeat_interval: HEARTBEAT,
        election_timeout: ELECTION,
    };
    let transport = Transport::new(local, timings, &Tasks::new());
    let transfers = Transfers::default();
    let mut network = Network::new(transport, timings, WriterMode::Thread, transfers);
    let client = network.new_client(2, &types::Peer::default()).await;
    let at = |index| types::LogId::new(types::CommittedLeaderId::new(1), index);
    let answers = [
        (Err(StreamAppendError::Conflict(at(9))), false),
        (Ok(Some(at(5))), false),
        (Err(StreamAppendError::Conflict(at(6))), false),
        (Err(StreamAppendError::Conflict(at(5))), true),
    ];
    for (answer, forgotten) in answers {
        client.watch_memory(&answer);
        let noticed = client.has_forgotten.load(Ordering::Relaxed);
        assert_eq!(noticed, forgotten, "{answer:?}");
    }
}
