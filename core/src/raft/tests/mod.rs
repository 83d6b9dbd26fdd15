//! Consensus as a whole: members of a cluster in one process, over a network and disks made for the
//! tests.

mod cluster;
mod durability;
mod lone;
mod network;
mod snapshots;
mod suite;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use prost::Message;
use quorate_proto::etcdserverpb::PutRequest;
use quorate_proto::log::{self, command::Kind};
use tokio::sync::watch;
use uuid::Uuid;

use self::network::Net;
use super::*;
use crate::apply::{self, Answer, Reader};
use crate::storage::codec::{self, Pair};
use crate::storage::fs::MemFs;
use crate::storage::snapshot::Stores;
use crate::storage::wal::{self, Identity, Wal, WalOptions, WriterMode};
use crate::tasks::Tasks;
use crate::watch::{self as hub, Hub};

const CLUSTER: u64 = 0xc;
const HEARTBEAT: Duration = Duration::from_millis(60);
const ELECTION: Duration = Duration::from_millis(600);
/// Longer than anything takes on a busy machine.
const PATIENCE: Duration = Duration::from_secs(20);

/// What a member keeps when its process ends.
#[derive(Debug, Clone)]
struct Disk {
    fs: MemFs,
    stores: Stores,
    mode: WriterMode,
}

impl Disk {
    fn new() -> Self {
        Self {
            fs: MemFs::crashable(),
            stores: Stores::memory(),
            mode: WriterMode::Thread,
        }
    }

    fn wal(&self, member_id: u64) -> Result<Wal, wal::WalError> {
        let cluster_id = CLUSTER;
        let identity = Identity {
            cluster_id,
            member_id,
        };
        let mut options = WalOptions::new(identity, 1);
        options.segment_bytes = 1 << 20;
        options.writer = self.mode;
        Wal::open(Arc::new(self.fs.clone()), Path::new("/wal"), options)
    }
}

/// A running member.
#[derive(Debug)]
struct Member {
    id: u64,
    consensus: Consensus,
    pending: Arc<Pending>,
    reader: Reader,
    wal: Wal,
    disk: Disk,
}

impl Member {
    async fn start(id: u64, disk: &Disk, net: &Net) -> crate::error::Result<Self> {
        Self::start_keeping(id, disk, net, 5_000).await
    }

    async fn start_keeping(
        id: u64,
        disk: &Disk,
        net: &Net,
        catch_up_entries: u64,
    ) -> crate::error::Result<Self> {
        let boot = Uuid::new_v4();
        let wal = disk.wal(id).expect("the log opens");
        let kv = disk.stores.open().expect("memory opens");
        let state = apply::State::open(kv, &apply::Options::default()).expect("the state opens");
        let reader = state.reader();
        let views = reader.clone();
        let hub = Hub::new(
            Arc::new(move || views.view()),
            reader.revision(),
            reader.compact_revision(),
            &hub::Options::default(),
        );
        let pending = Pending::new(boot, 1_000);
        let options = Options {
            member_id: id,
            cluster_id: CLUSTER,
            heartbeat_interval: HEARTBEAT,
            election_timeout: ELECTION,
            wal: wal.clone(),
            stores: disk.stores.clone(),
            state,
            hub,
            pending: Arc::clone(&pending),
            transport: None,
            tasks: Tasks::new(),
            catch_up_entries,
            apply_on: disk.mode,
        };
        let consensus = Consensus::start_on(options, net.of(id)).await?;
        net.join(id, consensus.raft().clone(), disk.stores.clone());
        Ok(Self {
            id,
            consensus,
            pending,
            reader,
            wal,
            disk: disk.clone(),
        })
    }

    /// Registers and proposes a put, and waits until it is answered.
    async fn put(&self, key: &str, value: &str) -> Result<Completion, ProposeError> {
        let term = self.consensus.status().term;
        let mut ticket = self.pending.register(term).expect("room");
        self.consensus
            .propose(batch(&ticket, key, value), term)
            .await?;
        Ok(ticket.completion().await)
    }

    /// Puts and expects to be answered.
    async fn put_ok(&self, key: &str, value: &str) -> EntryId {
        match self.put(key, value).await {
            Ok(Completion::Answer {
                answer: Answer::Put(_),
                applied,
            }) => applied,
            other => panic!("{other:?}"),
        }
    }

    fn get(&self, key: &str) -> Option<Bytes> {
        let view = self.reader.view();
        let pair = view
            .get(&codec::key_key(key.as_bytes()))
            .expect("memory reads");
        pair.map(|pair| Pair::decode(pair).expect("a pair").value)
    }

    fn applied(&self) -> u64 {
        self.consensus.status().applied_index
    }

    async fn wait_applied(&self, index: u64) {
        let applied = self.consensus.wait_applied(index);
        let applied = tokio::time::timeout(PATIENCE, applied).await;
        applied.expect("applied in time").expect("running");
    }

    async fn wait_ready(&self) {
        wait_for(&mut self.consensus.leadership(), |leadership| {
            leadership.ready
        })
        .await;
    }

    async fn stop(self, net: &Net) {
        net.leave(self.id);
        self.consensus.shutdown().await;
    }
}

use crate::storage::wal::EntryId;

/// One put as a log entry.
fn batch(ticket: &Ticket, key: &str, value: &str) -> Bytes {
    let put = PutRequest {
        key: Bytes::copy_from_slice(key.as_bytes()),
        value: Bytes::copy_from_slice(value.as_bytes()),
        ..PutRequest::default()
    };
    let proposal = log::Proposal {
        boot_id: Bytes::copy_from_slice(ticket.id().boot.as_bytes()),
        sequence: ticket.id().sequence,
        command: Some(log::Command {
            kind: Some(Kind::Put(put)),
        }),
    };
    let batch = log::Batch {
        proposals: vec![proposal],
    };
    Bytes::from(batch.encode_to_vec())
}

async fn wait_for<T: Clone>(
    receiver: &mut watch::Receiver<T>,
    condition: impl FnMut(&T) -> bool,
) -> T {
    let waited = tokio::time::timeout(PATIENCE, receiver.wait_for(condition)).await;
    waited.expect("in time").expect("running").clone()
}

fn peers(ids: impl IntoIterator<Item = u64>) -> BTreeMap<u64, Peer> {
    let peer = |id| Peer {
        name: format!("m{id}"),
        peer_urls: vec![format!("http://m{id}")],
        wants_vote: false,
    };
    ids.into_iter().map(|id| (id, peer(id))).collect()
}

/// Members 1 to 3, formed into a cluster.
async fn three(net: &Net, catch_up_entries: u64) -> Vec<Member> {
    let mut members = Vec::new();
    for id in 1..=3 {
        let disk = Disk::new();
        let member = Member::start_keeping(id, &disk, net, catch_up_entries).await;
        members.push(member.expect("starts"));
    }
    members[0]
        .consensus
        .initialize(peers(1..=3))
        .await
        .expect("forms");
    members
}

/// Waits until one of `members` leads and is ready; its place.
async fn leader_of(members: &[Member]) -> usize {
    let waits = members.iter().map(|member| Box::pin(member.wait_ready()));
    let ((), place, _) = futures::future::select_all(waits).await;
    place
}

/// Runs `future` beside the test; what it gives is waited for with the answer.
fn beside<T: Send + 'static>(
    future: impl Future<Output = T> + Send + 'static,
) -> impl Future<Output = T> {
    let (done, result) = tokio::sync::oneshot::channel();
    Tasks::new().spawn("beside", async move { drop(done.send(future.await)) });
    async { result.await.expect("it ends") }
}
