//! One member's place in consensus: proposals in, a committed and applied log out. Used by `node`.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use openraft::ReadPolicy;
use openraft::async_runtime::watch::WatchReceiver as _;
use openraft::errors::{
    ClientWriteError, ForwardReason, InitializeError, LinearizableReadError, RaftError,
};
use openraft::impls::ProgressResponder;
use openraft::network::{NetSnapshot, RaftNetworkFactory};
use quorate_proto::Reason;
use tokio::sync::{Semaphore, TryAcquireError, watch};

use crate::apply;
use crate::clock;
use crate::error::{Error, Result};
use crate::peer::{Timings, Transport};
use crate::raft::alone::Alone;
use crate::raft::handler::RaftHandler;
use crate::raft::leadership::{Leadership, Observer};
use crate::raft::log::{self, Log};
use crate::raft::machine::{AppliedPoint, Failure, Machine, Parts, report};
use crate::raft::network::Network;
use crate::raft::pending::Pending;
use crate::raft::retention::{Limits, Retention, Transfers};
use crate::raft::settings;
use crate::raft::snapshot::{SnapshotData, installed_in};
use crate::raft::start::{Decision, check};
use crate::raft::state_machine::StateMachine;
use crate::raft::types::{Command, CommittedLeaderId, Peer, TypeConfig};
use crate::storage::kv::KvError;
use crate::storage::snapshot::Stores;
use crate::storage::wal::{Wal, WalError, WriterMode};
use crate::tasks::Tasks;
use crate::watch::Hub;

/// openraft, as this module fills it in.
pub(crate) type Raft = openraft::Raft<TypeConfig, StateMachine>;

/// Proposed and not resolved at most, in units of [`PROPOSAL_UNIT_BYTES`]: 64 MiB. Beyond, a
/// proposal is refused: what waits could not be replicated in any sensible time anyway.
const PROPOSED_UNITS_MAX: usize = 4_096;

/// What a proposed batch counts at least, in bytes.
const PROPOSAL_UNIT_BYTES: usize = 16 * 1024;

/// Size of the log on disk, in bytes, from which entries go that are kept for lagging followers.
const LOG_BYTES_MAX: u64 = 256 << 20;

/// What a member's consensus is made of.
#[derive(Debug)]
pub struct Options {
    /// This member.
    pub member_id: u64,
    /// Its cluster.
    pub cluster_id: u64,
    /// How often a leader shows that it lives.
    pub heartbeat_interval: Duration,
    /// How long followers wait for a leader before they elect another.
    pub election_timeout: Duration,
    /// The log.
    pub wal: Wal,
    /// Where the state's store lives and the next one is received.
    pub stores: Stores,
    /// The state, opened on `stores`.
    pub state: apply::State,
    /// Where applied events go.
    pub hub: Hub,
    /// This member's own proposals.
    pub pending: Arc<Pending>,
    /// The way to the peers; `None` in a cluster of one that opens no socket.
    pub transport: Option<Transport>,
    /// What the tasks belong to.
    pub tasks: Tasks,
    /// Applied entries kept for followers that lag.
    pub catch_up_entries: u64,
    /// Where the state is applied: on a thread of its own, or in the caller's for simulations.
    pub apply_on: WriterMode,
}

/// Why a proposal has no outcome here.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ProposeError {
    /// This member does not lead the term: certainly not appended.
    #[error("not the leader of the term; term {term}, leader {leader:?}")]
    NotLeader {
        /// The leader this member knows, perhaps itself in a later term.
        leader: Option<u64>,
        /// The current term.
        term: u64,
    },
    /// This member leads but takes no proposals just now: it has lost touch with its quorum, or is
    /// handing leadership over. Certainly not appended; wait and try again.
    #[error("the leader takes no proposals for the moment")]
    NotNow,
    /// Too much is proposed and not resolved: certainly not appended.
    #[error("too many proposals")]
    Full,
    /// It was appended, then replaced by another leader's entries here. It may still have been
    /// committed: only this member's own apply can tell.
    #[error("the proposal was discarded here, its outcome is unknown")]
    Discarded,
    /// Consensus has stopped. The outcome is unknown.
    #[error("consensus has stopped")]
    Stopped,
}

/// What this member knows of the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Status {
    /// The current term.
    pub term: u64,
    /// The leader of the term, silent or not.
    pub leader: Option<u64>,
    /// The last index of the log here.
    pub last_index: u64,
    /// The last index known to be committed.
    pub committed_index: u64,
    /// The last index applied here.
    pub applied_index: u64,
    /// Whether the state is being replaced by a snapshot.
    pub is_installing: bool,
}

/// One member's consensus. Cheap to clone; all clones are the same.
#[derive(Debug, Clone)]
pub struct Consensus {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    raft: Raft,
    member_id: u64,
    heartbeat_interval: Duration,
    election_timeout: Duration,
    wal: Wal,
    machine: Machine,
    pending: Arc<Pending>,
    applied: watch::Receiver<AppliedPoint>,
    leadership: watch::Receiver<Leadership>,
    failure: Failure,
    proposals: Semaphore,
    retention: Retention,
    transport: Option<Transport>,
    tasks: Tasks,
}

impl Consensus {
    /// Checks that the log and the state belong together, replays what the state lacks of what is
    /// known to be committed, and joins the cluster.
    ///
    /// # Errors
    ///
    /// The log and the state do not belong together, storage fails, or the timers cannot work. The
    /// message names the way out.
    pub async fn start(options: Options) -> Result<Self> {
        let Some(transport) = options.transport.clone() else {
            return Self::start_on(options, Alone).await;
        };
        let timings = Timings {
            heartbeat_interval: options.heartbeat_interval,
            election_timeout: options.election_timeout,
        };
        let (stores, mode) = (options.stores.clone(), options.apply_on);
        let transfers = Transfers::default();
        let network = Network::new(transport.clone(), timings, mode, transfers.clone());
        let consensus = Self::start_with(options, network, transfers).await?;
        let streams_up = transport.streams_up();
        consensus.inner.tasks.spawn(
            "resume replication",
            resume_replication(consensus.raft().clone(), streams_up),
        );
        let handler = RaftHandler::new(
            consensus.raft().clone(),
            stores,
            mode,
            consensus.inner.tasks.clone(),
        );
        transport.set_handler(Arc::new(handler));
        Ok(consensus)
    }

    /// [`Consensus::start`] over any network.
    pub(crate) async fn start_on<N>(options: Options, network: N) -> Result<Self>
    where
        N: RaftNetworkFactory<TypeConfig>,
        N::Network: NetSnapshot<TypeConfig, SnapshotData = SnapshotData>,
    {
        Self::start_with(options, network, Transfers::default()).await
    }

    /// `transfers` are those that `network` makes.
    async fn start_with<N>(options: Options, network: N, transfers: Transfers) -> Result<Self>
    where
        N: RaftNetworkFactory<TypeConfig>,
        N::Network: NetSnapshot<TypeConfig, SnapshotData = SnapshotData>,
    {
        let config = settings::openraft_config(
            options.cluster_id,
            options.heartbeat_interval,
            options.election_timeout,
            options.catch_up_entries,
        )?;
        match_log_with_state(&options).await?;
        options.pending.started(options.state.applied().0);

        let log = Log::new(options.wal.clone());
        let (failure, _) = watch::channel(None);
        let parts = Parts {
            state: options.state,
            stores: options.stores.clone(),
            hub: options.hub,
            pending: Arc::clone(&options.pending),
            log: log.clone(),
            failure: failure.clone(),
        };
        let machine = Machine::start(parts, options.apply_on)
            .map_err(|error| Error::from(Reason::Internal).caused_by(error))?;
        let state_machine = StateMachine::new(machine.clone(), log.clone(), options.apply_on);
        let raft = Raft::build(
            options.member_id,
            config,
            network,
            log.clone(),
            state_machine,
        )
        .await
        .map_err(|fatal| {
            let detail = format!("consensus does not start: {fatal}");
            Error::with_detail(Reason::StorageFailed, detail)
        })?;
        let retention = |raft: &Raft| Retention {
            raft: raft.clone(),
            machine: machine.clone(),
            stores: options.stores.clone(),
            wal: options.wal.clone(),
            limits: Limits {
                catch_up_entries: options.catch_up_entries,
                log_bytes_max: LOG_BYTES_MAX,
            },
            transfers: transfers.clone(),
            election_timeout: options.election_timeout,
        };
        let (published, leadership) = watch::channel(Leadership::default());
        let observer = Observer {
            raft: raft.clone(),
            member_id: options.member_id,
            election_timeout: options.election_timeout,
            applied: machine.applied(),
            published,
            failure: failure.clone(),
            transport: options.transport.clone(),
            peers: BTreeMap::new(),
        };
        let tasks = options.tasks.child();
        tasks.spawn("leadership", observer.run());
        tasks.spawn("retention", retention(&raft).run());
        tasks.spawn(
            "log failure",
            report_log_failure(options.wal.clone(), failure.clone()),
        );
        let consensus = Self {
            inner: Arc::new(Inner {
                member_id: options.member_id,
                heartbeat_interval: options.heartbeat_interval,
                election_timeout: options.election_timeout,
                wal: options.wal.clone(),
                applied: machine.applied(),
                leadership,
                failure,
                pending: options.pending,
                proposals: Semaphore::new(PROPOSED_UNITS_MAX),
                retention: retention(&raft),
                transport: options.transport,
                machine,
                tasks,
                raft,
            }),
        };
        consensus.run().await;
        Ok(consensus)
    }

    /// Lets openraft go. A lone voter need not wait for a leader it would only find in itself.
    async fn run(&self) {
        let raft = &self.inner.raft;
        raft.run();
        let membership = raft.with_raft_state(|state| state.membership_state.effective().clone());
        let Ok(membership) = membership.await else {
            return;
        };
        let voters: BTreeSet<u64> = membership.voter_ids().collect();
        if voters == BTreeSet::from([self.inner.member_id]) {
            // If it stopped at once, whoever uses it next is told.
            drop(raft.trigger().elect(false).await);
        }
    }

    /// Forms a cluster of `members`, this one among them. Every member may do it, with the same
    /// members; a member that belongs to a cluster already ignores it.
    ///
    /// # Errors
    ///
    /// This member is not in the list, or consensus has stopped.
    pub async fn initialize(&self, members: BTreeMap<u64, Peer>) -> Result<()> {
        match self.inner.raft.initialize(members).await {
            Ok(()) | Err(RaftError::APIError(InitializeError::NotAllowed(_))) => Ok(()),
            Err(RaftError::APIError(InitializeError::NotInMembers(error))) => {
                Err(Error::with_detail(Reason::Internal, error.to_string()))
            }
            Err(RaftError::Fatal(_)) => Err(Reason::Stopped.into()),
        }
    }

    /// Whether this member's log or vote says that it belongs to a cluster.
    ///
    /// # Errors
    ///
    /// Consensus has stopped.
    pub async fn is_initialized(&self) -> Result<bool> {
        let initialized = self.inner.raft.is_initialized().await;
        initialized.map_err(|_| Reason::Stopped.into())
    }

    /// Appends a batch of proposals as the leader of `term`, and returns once it is applied here.
    /// The answers come through [`Pending`] on the member that each proposal is of.
    ///
    /// # Errors
    ///
    /// See [`ProposeError`]; which of them mean that nothing was appended, is said there.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future forgets the outcome, not the proposal.
    pub async fn propose(&self, batch: Bytes, term: u64) -> Result<(), ProposeError> {
        let units = batch.len().div_ceil(PROPOSAL_UNIT_BYTES).max(1);
        let units = u32::try_from(units.min(PROPOSED_UNITS_MAX)).expect("a small number");
        let _room = self.inner.proposals.try_acquire_many(units);
        let _room = _room.map_err(|error| match error {
            TryAcquireError::NoPermits => ProposeError::Full,
            TryAcquireError::Closed => ProposeError::Stopped,
        })?;
        let (responder, resolved) = ProgressResponder::complete_only();
        self.inner
            .raft
            .write(Command(batch))
            .with_leader(CommittedLeaderId::new(term))
            .responder(responder)
            .await
            .map_err(|_| ProposeError::Stopped)?;
        match resolved.await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(ClientWriteError::ForwardToLeader(forward))) => match forward.reason {
                ForwardReason::NotLeader => Err(ProposeError::NotLeader {
                    leader: forward.leader_id,
                    term: self.status().term,
                }),
                ForwardReason::LeaseExpired | ForwardReason::LeadershipTransfer => {
                    Err(ProposeError::NotNow)
                }
            },
            Ok(Err(_)) => Err(ProposeError::Discarded),
            Err(_) => Err(ProposeError::Stopped),
        }
    }

    /// The index up to which a linearizable read that arrived before this call must have applied.
    /// One round to a quorum, which confirms that this member still leads; no clock is trusted.
    ///
    /// # Errors
    ///
    /// [`Reason::NotLeader`] or [`Reason::NoLeader`] if it does not lead; [`Reason::Timeout`] if no
    /// quorum answered within an election timeout; [`Reason::Stopped`].
    ///
    /// # Cancel safety
    ///
    /// Cancel safe.
    pub async fn read_index(&self) -> Result<u64, Reason> {
        let deadline = clock::now() + self.inner.election_timeout;
        loop {
            let round = self.inner.raft.get_read_linearizer(ReadPolicy::ReadIndex);
            let forward = match round.await {
                Ok(linearizer) => return Ok(linearizer.read_log_id().index()),
                Err(RaftError::APIError(LinearizableReadError::ForwardToLeader(forward))) => {
                    forward
                }
                Err(RaftError::APIError(LinearizableReadError::QuorumNotEnough(_))) => {
                    return Err(Reason::Timeout);
                }
                Err(RaftError::Fatal(_)) => return Err(Reason::Stopped),
            };
            match (forward.reason, forward.leader_id) {
                (ForwardReason::NotLeader, Some(_)) => return Err(Reason::NotLeader),
                (ForwardReason::NotLeader, None) => return Err(Reason::NoLeader),
                // Still the leader: its quorum, or its successor, will show soon.
                (ForwardReason::LeaseExpired | ForwardReason::LeadershipTransfer, _) => {}
            }
            if clock::now() >= deadline {
                return Err(Reason::Timeout);
            }
            tokio::time::sleep(self.inner.heartbeat_interval).await;
        }
    }

    /// Waits until this member has applied the entry at `index`. The caller sets the deadline.
    ///
    /// # Errors
    ///
    /// [`Reason::Stopped`].
    ///
    /// # Cancel safety
    ///
    /// Cancel safe.
    pub async fn wait_applied(&self, index: u64) -> Result<()> {
        let mut applied = self.inner.applied.clone();
        let mut failure = self.inner.failure.subscribe();
        tokio::select! {
            reached = applied.wait_for(|point| point.covers(index)) => {
                reached.map(drop).map_err(|_| Reason::Stopped.into())
            }
            Ok(failure) = failure.wait_for(Option::is_some) => {
                let error = failure.as_deref().cloned();
                Err(error.unwrap_or_else(|| Reason::Stopped.into()))
            }
            () = self.inner.tasks.cancelled() => Err(Reason::Stopped.into()),
        }
    }

    /// How far this member has applied the log, as it goes.
    #[must_use]
    pub fn applied(&self) -> watch::Receiver<AppliedPoint> {
        self.inner.applied.clone()
    }

    /// Who leads, as it changes.
    #[must_use]
    pub fn leadership(&self) -> watch::Receiver<Leadership> {
        self.inner.leadership.clone()
    }

    /// The first failure after which this member cannot go on: its process should report it and
    /// end.
    #[must_use]
    pub fn failure(&self) -> watch::Receiver<Option<Arc<Error>>> {
        self.inner.failure.subscribe()
    }

    /// Where the log stands.
    #[must_use]
    pub fn status(&self) -> Status {
        let metrics = self.inner.raft.metrics();
        let metrics = metrics.borrow_watched();
        Status {
            term: metrics.current_term,
            leader: metrics.current_leader,
            last_index: metrics.last_log_index.unwrap_or(0),
            committed_index: metrics.local_committed.map_or(0, |id| id.index),
            applied_index: self.inner.applied.borrow().id.map_or(0, |id| id.index),
            is_installing: self.inner.machine.is_installing(),
        }
    }

    /// Up to which index the log was purged, if it was.
    #[must_use]
    pub fn purged_index(&self) -> Option<u64> {
        self.inner.wal.log_state().purged.map(|id| id.index)
    }

    /// Hands leadership to the voter `to`, and waits until it leads.
    ///
    /// # Errors
    ///
    /// [`Reason::NotLeader`]; [`Reason::BadLeaderTransferee`] if `to` does not vote;
    /// [`Reason::TimeoutLeaderTransfer`] if it did not take over within an election timeout.
    pub async fn transfer_leader(&self, to: u64) -> Result<()> {
        let leadership = self.inner.leadership.clone();
        if leadership.borrow().leader != Some(self.inner.member_id) {
            return Err(Reason::NotLeader.into());
        }
        if !self
            .members()
            .get(&to)
            .is_some_and(|member| member.is_voter)
        {
            return Err(Reason::BadLeaderTransferee.into());
        }
        if to == self.inner.member_id {
            return Ok(());
        }
        let triggered = self.inner.raft.trigger().transfer_leader(to).await;
        triggered.map_err(|_| Error::from(Reason::Stopped))?;
        let mut leadership = leadership;
        let taken = leadership.wait_for(|leadership| leadership.leader == Some(to));
        match tokio::time::timeout(self.inner.election_timeout, taken).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(_)) => Err(Reason::Stopped.into()),
            Err(_) => Err(Reason::TimeoutLeaderTransfer.into()),
        }
    }

    /// Makes all that is applied durable now: a power cut loses none of it, and the next start has
    /// it before it reads the log. Applying waits meanwhile.
    ///
    /// # Errors
    ///
    /// [`Reason::StorageFailed`], after which the member cannot go on, or [`Reason::Stopped`].
    pub async fn make_durable(&self) -> Result<()> {
        let persisted = self.inner.machine.run(|worker| worker.persist()).await;
        persisted.map_err(|error| {
            let failure = self.inner.failure.borrow().as_deref().cloned();
            failure.unwrap_or_else(|| Error::from(Reason::Stopped).caused_by(error))
        })
    }

    /// Lets go of the state that was last given to be sent, which holds back the store's housekeeping,
    /// unless it is on its way to a follower.
    pub async fn unpin(&self) {
        let unpinned = self.inner.machine.run(|worker| {
            worker.unpin();
            Ok(())
        });
        if unpinned.await.is_err() {
            tracing::debug!("the state's thread has stopped, with all it held");
        }
    }

    /// Makes the state durable and purges the log up to `upto`, or as far as is applied. What still
    /// goes out to a follower is purged later.
    pub async fn purge(&self, upto: u64) {
        let applied = self.inner.applied.borrow().id.map(|id| id.index);
        if let Some(upto) = applied.map(|applied| applied.min(upto)) {
            self.inner.retention.purge(upto).await;
        }
    }

    /// Leaves consensus: refuses proposals, ends waiting ones with an unknown outcome, makes the
    /// state durable so that the next start is quick, and closes the log. Later calls do nothing.
    /// The transport stops with it.
    pub async fn shutdown(&self) {
        self.inner.proposals.close();
        if let Some(transport) = &self.inner.transport {
            // It holds the handler, which holds openraft.
            transport.stop();
        }
        // Its only error is that the task was gone already.
        drop(self.inner.raft.shutdown().await);
        self.inner.pending.close();
        self.inner.tasks.stop(self.inner.election_timeout).await;
        if let Err(error) = self.inner.machine.stop().await {
            tracing::warn!(%error, "the state was not made durable, the log will replay it");
        }
        let wal = self.inner.wal.clone();
        match tokio::task::spawn_blocking(move || wal.close()).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!(%error, "the log was not closed in order"),
            Err(error) => tracing::warn!(%error, "the log was not closed in order"),
        }
    }

    /// Ends this member's part for good: whoever watches [`Consensus::failure`] is told why, unless
    /// there was a reason before.
    pub fn fail(&self, cause: Error) {
        report(&self.inner.failure, cause);
    }

    /// openraft itself, for the handler of the peers' messages and for tests.
    pub(crate) fn raft(&self) -> &Raft {
        &self.inner.raft
    }
}

/// The checks before anything starts, and the reset of a log that an installed state has left
/// behind.
async fn match_log_with_state(options: &Options) -> Result<()> {
    let storage_failed = |error: &dyn std::fmt::Display| {
        Error::with_detail(Reason::StorageFailed, error.to_string())
    };
    let (applied, _) = options.state.applied();
    let view = options.state.kv().view();
    let installed = installed_in(&*view).map_err(|error: KvError| storage_failed(&error))?;
    let wal = &options.wal;
    match check(applied, installed, wal.log_state(), |index| {
        wal.entry_id(index)
    }) {
        Decision::GoOn => Ok(()),
        Decision::ResetLogTo(installed) => {
            tracing::warn!(%installed, "the log ends before the installed snapshot, it starts over");
            let reset = log::reset(wal, installed).await;
            reset.map_err(|error: WalError| storage_failed(&error))
        }
        Decision::Refuse(refusal) => Err(refusal.into()),
    }
}

/// Ends the pauses of replication, which grow while a peer is away, when a peer can be reached again.
async fn resume_replication(raft: Raft, mut streams_up: watch::Receiver<u64>) {
    while streams_up.changed().await.is_ok() {
        if raft.trigger().reset_backoff([]).await.is_err() {
            return;
        }
    }
}

/// Tells when the log fails: nothing this member says can be relied on any more.
async fn report_log_failure(wal: Wal, failure: Failure) {
    let mut poisoned = wal.failure();
    if let Ok(cause) = poisoned.wait_for(Option::is_some).await
        && let Some(cause) = cause.as_deref()
    {
        let detail = cause.to_string();
        report(&failure, Error::with_detail(Reason::StorageFailed, detail));
    }
}
