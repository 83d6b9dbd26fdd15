//! Puts a member together: data folder, log, state, hub, peers, consensus, and the node's own
//! tasks. The order is that of the layers: nothing listens before it can refuse, nothing takes part
//! in consensus before its past is checked.

use std::net::TcpListener;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::sync::{Arc, Mutex};

use futures::future::BoxFuture;
use quorate_proto::Reason;
use tokio::sync::Semaphore;
use tokio_util::sync::DropGuard;
use uuid::Uuid;

use super::data_dir::{DataDir, Identity};
use super::join::Known;
use super::rounds::Rounds;
use super::runtime::OwnRuntime;
use super::{
    DataDirError, Node, Shared, background, batch, cluster, corruption, force, forward, history,
    lease, lease_clock, membership, read, restore, snapshot,
};
use crate::apply::{self, Reader, State};
use crate::config::{Config, ConfigError, DEFAULT_QUOTA_BYTES, Data, url_authority};
use crate::error::Error;
use crate::mvcc;
use crate::peer::{self, Local, Timings, Transport};
use crate::raft::{self, Consensus, Peer, Pending};
use crate::storage::fs::{Fs, MemFs, RealFs};
use crate::storage::kv::{DiskOptions, Kv, KvError};
use crate::storage::snapshot::Stores;
use crate::storage::wal::{self, Wal, WalOptions, WriterMode};
use crate::tasks::Tasks;
use crate::watch::Hub;

/// The log of a member in memory is kept in pieces of this size.
const MEMORY_SEGMENT_BYTES: u64 = 4 << 20;
/// Recent entries a member in memory keeps twice, in bytes.
const MEMORY_CACHE_BYTES: usize = 4 << 20;
/// Entries a member keeps that has no peers to catch up.
const LONE_CATCH_UP_ENTRIES: u64 = 512;
/// Room in the registry of proposals beyond those clients wait for: the leader's own, and those
/// whose clients have gone while they are under way.
const PENDING_EXTRA: usize = 16_384;

/// Why a member did not start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    /// Settings that cannot work.
    #[error("bad configuration: {0}")]
    Config(#[from] ConfigError),
    /// A data folder that cannot be used.
    #[error(transparent)]
    DataDir(#[from] DataDirError),
    /// An address that cannot be listened on.
    #[error("cannot listen for peers on {address}: {source}")]
    Listen {
        /// The address.
        address: String,
        /// The system's answer.
        source: std::io::Error,
    },
    /// The cluster this member is to join cannot be asked, or does not have it.
    #[error("cannot join the cluster: {0}")]
    Join(String),
    /// Consensus or its storage refused to start.
    #[error("cannot start the member: {0}")]
    Member(#[from] Error),
}

/// A failure of storage, told with its own text.
pub(super) fn storage(error: impl std::error::Error + Send + Sync + 'static) -> StartError {
    let text = error.to_string();
    StartError::Member(Error::with_detail(Reason::StorageFailed, text).caused_by(error))
}

/// What is opened before consensus starts.
struct Opened {
    wal: Wal,
    stores: Stores,
    state: Result<State, KvError>,
}

/// Starts a member on a thread of its own. On an error nothing keeps running.
pub(super) async fn start(
    config: Config,
    peer_listener: Option<TcpListener>,
) -> Result<Node, StartError> {
    let runtime = OwnRuntime::start();
    let runtime = runtime.map_err(|error| Error::from(Reason::Internal).caused_by(error))?;
    let (network, hold) = (Tasks::new(), runtime.hold());
    let assembled = runtime
        .run(assembly(config, peer_listener, network, hold))
        .await;
    let node = assembled.map_err(|error| Error::from(Reason::Internal).caused_by(error))??;
    runtime.end_with_callers();
    Ok(node)
}

/// Boxed so that all a member consists of is compiled with this crate: the body of an `async fn` is
/// compiled again in every program that awaits it, which would then hold all of consensus twice.
fn assembly(
    config: Config,
    peer_listener: Option<TcpListener>,
    network: Tasks,
    runtime: DropGuard,
) -> BoxFuture<'static, Result<Node, StartError>> {
    Box::pin(async move {
        let assembled = assemble(config, peer_listener, &network, runtime).await;
        if assembled.is_err() {
            network.cancel();
        }
        assembled
    })
}

async fn assemble(
    config: Config,
    peer_listener: Option<TcpListener>,
    network: &Tasks,
    runtime: DropGuard,
) -> Result<Node, StartError> {
    config.validate()?;
    let boot = Uuid::new_v4();
    let listeners = bind(&config, peer_listener)?;
    let (data_dir, identity, ids) = claim(&config).await?;

    let quota_bytes = match config.quota_backend_bytes {
        0 => DEFAULT_QUOTA_BYTES,
        bytes => bytes,
    };
    let opened = {
        let folder = data_dir
            .as_ref()
            .map(|dir| (dir.path().to_owned(), dir.wal()));
        let wal_id = wal::Identity {
            cluster_id: ids.cluster_id,
            member_id: ids.member_id,
        };
        let opening = tokio::task::spawn_blocking(move || {
            let paths = folder
                .as_ref()
                .map(|(root, wal)| (root.as_path(), wal.as_path()));
            open(paths, wal_id, quota_bytes)
        });
        opening.await.map_err(|_| Error::from(Reason::Internal))??
    };
    let pending = Pending::new(boot, config.limits.max_pending + PENDING_EXTRA);
    let bound = opened.state.as_ref().ok().map(State::reader);
    let bound = bound.map(|reader| cluster::incarnations(&reader, ids.member_id));
    let transport = config.cluster.is_some().then(|| {
        transport(
            &config,
            &ids,
            Local {
                cluster_id: ids.cluster_id,
                member_id: ids.member_id,
                incarnation: identity.incarnation,
                boot,
            },
            &bound.unwrap_or_default(),
            network,
        )
    });
    let state = match raft::usable(opened.state, &opened.wal) {
        Ok(state) => state,
        Err(unusable) => {
            let peers = peers(transport.as_ref(), &ids);
            let kv = raft::take_state(unusable, &peers, &opened.stores).await?;
            open_state(kv, quota_bytes).await?
        }
    };
    let reader = state.reader();
    let hub = hub(&reader);
    if let Some(transport) = &transport {
        for (address, listener) in listeners {
            transport
                .serve(listener, network)
                .map_err(|source| StartError::Listen { address, source })?;
        }
    }
    let catch_up_entries = match config.cluster {
        Some(_) => config.catch_up_entries,
        None => config.catch_up_entries.min(LONE_CATCH_UP_ENTRIES),
    };
    let consensus = Consensus::start(raft::Options {
        member_id: ids.member_id,
        cluster_id: ids.cluster_id,
        heartbeat_interval: config.heartbeat_interval,
        election_timeout: config.election_timeout,
        wal: opened.wal,
        stores: opened.stores,
        state,
        hub: hub.clone(),
        pending: Arc::clone(&pending),
        transport: transport.clone(),
        tasks: network.clone(),
        catch_up_entries,
        apply_on: WriterMode::Thread,
    })
    .await?;

    let limits = config.limits;
    let own_peer_urls = config.peer_urls();
    let node = Node {
        shared: Arc::new(Shared {
            cluster_id: ids.cluster_id,
            member_id: ids.member_id,
            incarnation: identity.incarnation,
            boot,
            own_peer_urls,
            quota_bytes,
            over_quota: AtomicBool::new(false),
            consensus,
            reader,
            hub,
            transport,
            pending,
            proposals: Rounds::new(limits.max_pending),
            reads: Rounds::new(limits.max_pending),
            keep_alives: Rounds::new(limits.max_pending),
            forwarded: forward::Forwarded::default(),
            changing: Semaphore::new(1),
            sending: tokio::sync::watch::Sender::default(),
            read_places: Arc::new(Semaphore::new(limits.max_pending)),
            disk_reads: Arc::new(Semaphore::new(read::READS_IN_FLIGHT)),
            scan_places: Arc::new(Semaphore::new(read::SCANS_MAX)),
            scans: Arc::new(Semaphore::new(read::SCANS_IN_FLIGHT)),
            removed: tokio::sync::watch::Sender::new(mvcc::meta::NEVER_COMPACTED),
            snapshots: Arc::new(Semaphore::new(snapshot::SNAPSHOTS_IN_FLIGHT)),
            reclaim: Arc::new(Semaphore::new(1)),
            leaders: tokio::sync::watch::Sender::default(),
            proposals_failed: AtomicU64::new(0),
            tasks: Tasks::new(),
            network: network.clone(),
            data_dir: Arc::new(Mutex::new(data_dir.map(|dir| (dir, identity)))),
            config,
            _runtime: runtime,
        }),
    };
    if let Err(error) = node.take_part(ids).await {
        node.shutdown().await;
        return Err(error.into());
    }
    Ok(node)
}

/// Locks the data folder and learns, decides or asks whose it is.
async fn claim(config: &Config) -> Result<(Option<DataDir>, Identity, Known), StartError> {
    let Data::Folder(path) = &config.data else {
        let known = Known::ask(config).await?;
        return Ok((None, known.identity(config), known));
    };
    let dir = DataDir::lock(path)?;
    let found = dir.identity(config)?;
    let Some(found) = found else {
        if config.force_new_cluster {
            return Err(force::nothing_to_force());
        }
        let known = Known::ask(config).await?;
        let identity = dir.claim(None, &known.identity(config))?;
        return Ok((Some(dir), identity, known));
    };
    let settings = config.clone();
    let forcing = tokio::task::spawn_blocking(move || {
        force::settle(&dir, &found, &settings)?;
        let found = match settings.force_new_cluster {
            true => force::force(&dir, &found, &settings)?,
            false => found,
        };
        Ok::<_, StartError>((dir, found))
    });
    let (dir, found) = forcing.await.map_err(|_| Error::from(Reason::Internal))??;
    let known = Known::of(&found, config)?;
    let identity = dir.claim(Some(found), &known.identity(config))?;
    Ok((Some(dir), identity, known))
}

/// Binds where peers will connect; nothing is accepted yet.
fn bind(
    config: &Config,
    given: Option<TcpListener>,
) -> Result<Vec<(String, TcpListener)>, StartError> {
    if let Some(listener) = given {
        return Ok(vec![("the given listener".to_owned(), listener)]);
    }
    let urls = config
        .cluster
        .iter()
        .flat_map(|cluster| &cluster.listen_peer_urls);
    urls.map(|url| {
        let address = url_authority(url).unwrap_or(url).to_owned();
        match TcpListener::bind(&address) {
            Ok(listener) => Ok((address, listener)),
            Err(source) => Err(StartError::Listen { address, source }),
        }
    })
    .collect()
}

/// Opens log, store and state: disk work.
fn open(
    folder: Option<(&Path, &Path)>,
    identity: wal::Identity,
    quota_backend_bytes: u64,
) -> Result<Opened, StartError> {
    // Unpredictable for clients, so that no value can pose as a log record.
    let (salt_seed, _) = Uuid::new_v4().as_u64_pair();
    let mut options = WalOptions::new(identity, salt_seed);
    let (wal, stores) = match folder {
        Some((root, wal)) => {
            let fs: Arc<dyn Fs> = Arc::new(RealFs);
            let wal = Wal::open(fs, wal, options).map_err(storage)?;
            (
                wal,
                Stores::disk(root, DiskOptions::of_member(identity.member_id)),
            )
        }
        None => {
            options.segment_bytes = MEMORY_SEGMENT_BYTES;
            options.cache_bytes = MEMORY_CACHE_BYTES;
            let fs: Arc<dyn Fs> = Arc::new(MemFs::new());
            let wal = Wal::open(fs, Path::new("/wal"), options).map_err(storage)?;
            (wal, Stores::memory())
        }
    };
    let options = apply::Options {
        quota_backend_bytes,
    };
    let state = stores.open().and_then(|kv| State::open(kv, &options));
    match state {
        // Space or rights are missing: that says nothing about the state.
        Err(error @ (KvError::DiskFull { .. } | KvError::Io { .. })) => Err(storage(error)),
        state => Ok(Opened { wal, stores, state }),
    }
}

/// Opens a state that came from a peer.
async fn open_state(kv: Arc<dyn Kv>, quota_backend_bytes: u64) -> Result<State, StartError> {
    let options = apply::Options {
        quota_backend_bytes,
    };
    let opening = tokio::task::spawn_blocking(move || State::open(kv, &options));
    let opened = opening.await.map_err(|_| Error::from(Reason::Internal))?;
    opened.map_err(storage)
}

/// The ways to the members that are known before the log is read.
fn peers(transport: Option<&Transport>, ids: &Known) -> Vec<peer::Peer> {
    let ids = ids.members.keys();
    transport
        .map(|transport| ids.filter_map(|id| transport.peer(*id)).collect())
        .unwrap_or_default()
}

fn hub(reader: &Reader) -> Hub {
    let source = reader.clone();
    Hub::new(
        Arc::new(move || source.view()),
        reader.revision(),
        reader.compact_revision(),
        &crate::watch::Options::default(),
    )
}

/// A transport that knows the initial members, until the membership says otherwise. It talks to
/// none of them that is not the one it is bound to.
fn transport(
    config: &Config,
    ids: &Known,
    local: Local,
    bound: &[(u64, Uuid)],
    network: &Tasks,
) -> Transport {
    let timings = Timings {
        heartbeat_interval: config.heartbeat_interval,
        election_timeout: config.election_timeout,
    };
    let transport = Transport::new(local, timings, network);
    transport.limit_snapshots(config.snapshot_bytes_per_second);
    for (id, incarnation) in bound {
        transport.set_incarnation(*id, *incarnation);
    }
    for (id, member) in &ids.members {
        if *id != local.member_id {
            transport.set_peer(*id, &member.name, &member.peer_urls);
        }
    }
    transport
}

impl Node {
    /// Forms the cluster if it is new, and starts the node's duties.
    async fn take_part(&self, known: Known) -> Result<(), Error> {
        if let Some(transport) = &self.shared.transport {
            transport.set_request_handler(Arc::new(forward::Serving::new(self.clone())));
        }
        if known.is_founder && !self.shared.consensus.is_initialized().await? {
            let peers = known.members.into_iter().map(|(id, member)| {
                let peer = Peer {
                    name: member.name,
                    peer_urls: member.peer_urls,
                    wants_vote: false,
                };
                (id, peer)
            });
            self.shared.consensus.initialize(peers.collect()).await?;
        }
        let tasks = &self.shared.tasks;
        tasks.spawn("finish restore", restore::finish(self.clone()));
        tasks.spawn("batch proposals", batch::run(self.clone()));
        tasks.spawn("read rounds", read::run(self.clone()));
        tasks.spawn("keep-alives", lease::run(self.clone()));
        tasks.spawn("lease clock", lease_clock::run(self.clone()));
        tasks.spawn("remove history", history::remove(self.clone()));
        tasks.spawn("give up history", history::give_up(self.clone()));
        tasks.spawn("give back space", history::give_back(self.clone()));
        tasks.spawn("follow members", cluster::follow(self.clone()));
        tasks.spawn("heed removal", cluster::heed_removal(self.clone()));
        tasks.spawn("give votes", membership::give_votes(self.clone()));
        tasks.spawn("compare data", corruption::compare(self.clone()));
        tasks.spawn("guard quota", background::guard_quota(self.clone()));
        tasks.spawn("publish attributes", background::publish(self.clone()));
        tasks.spawn("note leaders", background::note_leaders(self.clone()));
        Ok(())
    }
}
