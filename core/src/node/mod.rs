//! One member of a cluster: accepts requests, proposes or reads, answers. The waist of the house:
//! every face (gRPC, JSON, the recipes in the same process) calls a [`Node`], and nothing above
//! it knows of consensus or storage.
//!
//! A write goes to `propose`, which has the leader append it, and is answered when this member
//! itself applies it. A linearizable read joins a round of `read`, then reads this member's own
//! state. Leases are kept alive by the leader (`lease`), whose `lease_clock` ends them; `background`
//! holds what a member does unasked; `history` gives up and removes old history; `forward` is what a leader does for its peers. `bootstrap` puts a member together and is
//! the place to see all its parts at once.

mod background;
mod batch;
mod bootstrap;
mod builder;
mod cluster;
mod corruption;
mod data_dir;
mod departure;
mod force;
mod forward;
mod history;
mod join;
mod kv;
mod lease;
mod lease_clock;
mod maintenance;
mod membership;
mod observe;
mod propose;
mod read;
pub mod restore;
mod rounds;
mod runtime;
mod snapshot;
mod watch;

#[cfg(test)]
mod tests;

use std::sync::atomic::{AtomicBool, AtomicU64};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use quorate_proto::Reason;
use quorate_proto::etcdserverpb::ResponseHeader;
use tokio::sync::Semaphore;
use tokio_util::sync::DropGuard;
use uuid::Uuid;

pub use bootstrap::StartError;
pub use builder::NodeBuilder;
pub use data_dir::DataDirError;
pub use kv::RangePages;
pub use observe::Observed;
pub use snapshot::Snapshot;
pub use watch::{WatchControl, WatchSession};

use crate::apply::Reader;
use crate::clock::Instant;
use crate::config::{Config, Limits};
use crate::error::Error;
use crate::peer::{Activity, PeerStatus, Transport};
use crate::raft::{Completion, Consensus, Pending};
use crate::tasks::Tasks;
use crate::watch::Hub;

/// The etcd release whose surface is offered, as told to clients that look at versions.
pub const ETCD_VERSION: &str = "3.7.0";

/// How long the parts of a member may take to stop.
const STOP_LIMIT: Duration = Duration::from_secs(5);
/// Election timeouts without a leader after which streams that asked for one end (etcd's).
const LEADERLESS_ELECTION_TIMEOUTS: u32 = 3;

/// One running member. Cheap to clone; all clones are the same member, which runs until
/// [`Node::shutdown`], or until the runtime ends that it was started on.
///
/// Consensus and all that the member does unasked run on a thread of its own, so a task of the
/// process that blocks its runtime does not cost the member its leadership.
///
/// Requests and answers are etcd's messages, with whole headers. Every method waits at most the
/// member's request timeout ([`Config::request_timeout`]).
#[derive(Debug, Clone)]
pub struct Node {
    shared: Arc<Shared>,
}

/// The parts of a member.
#[derive(Debug)]
struct Shared {
    config: Config,
    cluster_id: u64,
    member_id: u64,
    /// Which life of the data folder this is.
    incarnation: Uuid,
    /// Which process start this is.
    boot: Uuid,
    own_peer_urls: Vec<String>,
    /// The quota in force.
    quota_bytes: u64,
    /// Whether the store had outgrown it when it was last measured.
    over_quota: AtomicBool,
    consensus: Consensus,
    reader: Reader,
    hub: Hub,
    /// Absent in a cluster of one that opens no socket.
    transport: Option<Transport>,
    pending: Arc<Pending>,
    proposals: rounds::Rounds<propose::Queued, Completion>,
    reads: rounds::Rounds<(), u64>,
    keep_alives: rounds::Rounds<i64, i64>,
    forwarded: forward::Forwarded,
    /// One permit: who changes the membership.
    changing: Semaphore,
    sending: tokio::sync::watch::Sender<departure::Sending>,
    /// As many as reads may wait or be under way.
    read_places: Arc<Semaphore>,
    disk_reads: Arc<Semaphore>,
    scan_places: Arc<Semaphore>,
    scans: Arc<Semaphore>,
    /// Up to which compact revision this member has removed history since it started.
    removed: tokio::sync::watch::Sender<i64>,
    snapshots: Arc<Semaphore>,
    /// One permit: who defragments.
    reclaim: Arc<Semaphore>,
    leaders: tokio::sync::watch::Sender<observe::Leaders>,
    /// Proposals whose outcome did not show, or that nobody took.
    proposals_failed: AtomicU64,
    /// The node's own tasks; cancelled first.
    tasks: Tasks,
    /// The transport and its listener; stopped last.
    network: Tasks,
    /// The data folder and whose it is. Its lock is held for disk work, so never by the runtime.
    data_dir: Arc<Mutex<Option<(data_dir::DataDir, data_dir::Identity)>>>,
    /// Ends the member's thread.
    _runtime: DropGuard,
}

/// What a member knows of its cluster's leader.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Leadership {
    /// The current term.
    pub term: u64,
    /// The leader of the term; `None` while there is none, or it is silent.
    pub leader: Option<u64>,
}

impl Node {
    /// Settings of a member to be, in memory and alone unless said otherwise.
    pub fn builder() -> NodeBuilder {
        NodeBuilder::default()
    }

    /// The settings it was started with.
    #[must_use]
    pub fn config(&self) -> &Config {
        &self.shared.config
    }

    /// Bounds of what a client may send.
    #[must_use]
    pub fn limits(&self) -> &Limits {
        &self.shared.config.limits
    }

    /// The cluster's id.
    #[must_use]
    pub fn cluster_id(&self) -> u64 {
        self.shared.cluster_id
    }

    /// This member's id.
    #[must_use]
    pub fn member_id(&self) -> u64 {
        self.shared.member_id
    }

    /// The current term and its leader.
    #[must_use]
    pub fn leadership(&self) -> Leadership {
        let known = *self.shared.consensus.leadership().borrow();
        Leadership {
            term: known.term,
            leader: known.leader,
        }
    }

    /// Waits for a leader and names it; `None` when the member stops.
    pub async fn wait_for_leader(&self) -> Option<u64> {
        let mut leadership = self.shared.consensus.leadership();
        let known = leadership
            .wait_for(|known| known.leader.is_some())
            .await
            .ok()?;
        known.leader
    }

    /// Completes once there has been no leader for three election timeouts, or the member stops.
    pub async fn leaderless(&self) {
        let limit = LEADERLESS_ELECTION_TIMEOUTS * self.shared.config.election_timeout;
        let mut leadership = self.shared.consensus.leadership();
        loop {
            if leadership
                .wait_for(|known| known.leader.is_none())
                .await
                .is_err()
            {
                return;
            }
            let found = leadership.wait_for(|known| known.leader.is_some());
            match tokio::time::timeout(limit, found).await {
                Ok(Ok(_)) => {}
                Ok(Err(_)) | Err(_) => return,
            }
        }
    }

    /// The header of an answer at the current revision.
    #[must_use]
    pub fn header(&self) -> ResponseHeader {
        self.header_at(self.shared.reader.revision())
    }

    /// The state of the connection to every peer; empty in a cluster of one without network.
    #[must_use]
    pub fn peers(&self) -> Vec<PeerStatus> {
        self.shared
            .transport
            .as_ref()
            .map(Transport::status)
            .unwrap_or_default()
    }

    /// The failure after which this member cannot go on, if there was one. The process that owns
    /// the member should report it and end.
    #[must_use]
    pub fn failure(&self) -> Option<Error> {
        self.shared.consensus.failure().borrow().as_deref().cloned()
    }

    /// Completes when this member can go on no longer, with the reason; never otherwise.
    pub async fn failed(&self) -> Error {
        let mut failure = self.shared.consensus.failure();
        let told = failure.wait_for(Option::is_some).await.ok().map(|failure| {
            let cause = failure.as_deref().cloned();
            cause.unwrap_or_else(|| Reason::Stopped.into())
        });
        match told {
            Some(cause) => cause,
            None => std::future::pending().await,
        }
    }

    /// Stops the member: refuses new requests, answers waiting ones with `server stopped`, and
    /// ends consensus and storage in order. Later calls do nothing. The data folder is free once
    /// all clones of the node are dropped as well.
    pub async fn shutdown(&self) {
        let shared = &self.shared;
        if !self.is_stopping() {
            self.hand_over().await;
        }
        shared.tasks.cancel();
        shared.proposals.close();
        shared.reads.close();
        shared.keep_alives.close();
        shared.changing.close();
        if !shared.tasks.stop(STOP_LIMIT).await {
            tracing::warn!("some tasks of the node did not stop in time");
        }
        shared.consensus.shutdown().await;
        if let Some(transport) = &shared.transport {
            transport.stop();
        }
        if !shared.network.stop(STOP_LIMIT).await {
            tracing::warn!("some connections to peers did not end in time");
        }
        drop(
            shared
                .data_dir
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .take(),
        );
    }

    /// Hands leadership to a peer that is connected, so that the others need not find out that it
    /// is gone. Without one, or in vain: they will.
    async fn hand_over(&self) {
        let own = self.member_id();
        if self.leadership().leader != Some(own) {
            return;
        }
        let members = self.shared.consensus.members();
        let can_lead = |peer: &&PeerStatus| {
            matches!(peer.activity, Activity::Active(_))
                && members.get(&peer.id).is_some_and(|member| member.is_voter)
        };
        let peers = self.peers();
        let Some(peer) = peers.iter().find(can_lead) else {
            return;
        };
        if let Err(error) = self.shared.consensus.transfer_leader(peer.id).await {
            tracing::debug!(peer = peer.id, %error, "leadership was not handed over");
        }
    }

    fn is_stopping(&self) -> bool {
        self.shared.tasks.is_cancelled()
    }

    /// The header of an answer at this revision; 0 where etcd's has none.
    fn header_at(&self, revision: i64) -> ResponseHeader {
        ResponseHeader {
            cluster_id: self.shared.cluster_id,
            member_id: self.shared.member_id,
            revision,
            raft_term: self.leadership().term,
        }
    }

    /// Fills in what `apply` does not know: who answers.
    fn complete(&self, header: &mut Option<ResponseHeader>) {
        let revision = header.as_ref().map_or(0, |header| header.revision);
        *header = Some(self.header_at(revision));
    }

    /// Whether a request that began at `since` may be slow for want of a connection: to the leader,
    /// or for a leader to a quorum.
    fn connection_to_blame(&self, since: Instant) -> bool {
        let Some(leader) = self.leadership().leader else {
            return false;
        };
        let held = |peer: &&PeerStatus| match peer.activity {
            Activity::Active(at) => at <= since,
            Activity::Inactive(_) => false,
        };
        let peers = self.peers();
        if leader == self.member_id() {
            let quorum = self.shared.consensus.members().len() / 2 + 1;
            peers.iter().filter(held).count() + 1 < quorum
        } else {
            !peers.iter().filter(held).any(|peer| peer.id == leader)
        }
    }
}
