//! Who leads, as far as this member can tell: openraft's view, minus leaders nobody hears of. Also
//! keeps the transport's peers as the membership says. One task, started by `consensus`.

use std::collections::BTreeMap;
use std::time::Duration;

use openraft::Instant as _;
use openraft::async_runtime::watch::WatchReceiver as _;
use openraft::errors::Fatal;
use quorate_proto::Reason;
use tokio::sync::watch;
use tokio::time::MissedTickBehavior;

use crate::clock::{self, Instant};
use crate::error::Error;
use crate::peer::Transport;
use crate::raft::consensus::Raft;
use crate::raft::machine::{AppliedPoint, Failure, report};
use crate::raft::types::{Peer, StoredMembership};

/// What this member knows of its cluster's leader.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Leadership {
    /// The current term.
    pub term: u64,
    /// The leader of the term. `None` while there is none, and while the known one is silent: a
    /// follower has not heard it, or it has not heard a quorum, for an election timeout.
    pub leader: Option<u64>,
    /// Whether this member leads and has applied the first entry of its term, and with it
    /// everything that was committed before.
    pub ready: bool,
}

/// The task's parts.
#[derive(Debug)]
pub(super) struct Observer {
    pub(super) raft: Raft,
    pub(super) member_id: u64,
    pub(super) election_timeout: Duration,
    pub(super) applied: watch::Receiver<AppliedPoint>,
    pub(super) published: watch::Sender<Leadership>,
    pub(super) failure: Failure,
    pub(super) transport: Option<Transport>,
    /// The peers told to the transport.
    pub(super) peers: BTreeMap<u64, Peer>,
}

/// What is read off openraft at once.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Seen {
    term: u64,
    leader: Option<u64>,
    is_leader: bool,
}

impl Observer {
    /// Observes until it is dropped or openraft stops.
    pub(super) async fn run(mut self) {
        let mut metrics = self.raft.metrics();
        let mut ticks = tokio::time::interval(self.election_timeout / 4);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut is_silent = false;
        // Which leader was seen last, in which term and of how many voters, and since when.
        let (mut last, mut since) = (None, clock::now());
        loop {
            let (seen, membership, stopped) = {
                let metrics = metrics.borrow_and_update();
                let seen = Seen {
                    term: metrics.current_term,
                    leader: metrics.current_leader,
                    is_leader: metrics.state.is_leader(),
                };
                let stopped = metrics.running_state.clone().err();
                (seen, metrics.membership_config.clone(), stopped)
            };
            if let Some(fatal) = stopped {
                self.publish(&seen, true);
                return self.report(&fatal);
            }
            self.follow_membership(&membership);
            let known = Some((seen.term, seen.leader, membership.voter_ids().count()));
            if last != known {
                (last, since) = (known, clock::now());
            }
            self.publish(&seen, is_silent);
            tokio::select! {
                changed = metrics.changed() => {
                    if changed.is_err() {
                        return self.publish(&seen, true);
                    }
                    // Another leader, or another term, has not been silent yet.
                    let metrics = metrics.borrow_watched();
                    is_silent &= metrics.current_term == seen.term
                        && metrics.current_leader == seen.leader;
                }
                Ok(()) = self.applied.changed() => {}
                _ = ticks.tick() => is_silent = self.is_silent(&seen, since).await,
            }
        }
    }

    fn publish(&self, seen: &Seen, is_silent: bool) {
        let leader = seen.leader.filter(|_| !is_silent);
        let applied = self.applied.borrow().id;
        let leadership = Leadership {
            term: seen.term,
            leader,
            ready: seen.is_leader
                && leader == Some(self.member_id)
                && applied.is_some_and(|id| id.term == seen.term),
        };
        self.published.send_if_modified(|published| {
            let is_new = *published != leadership;
            if is_new && published.leader != leadership.leader {
                let Leadership { term, leader, .. } = leadership;
                tracing::info!(term, leader, "leader");
            }
            *published = leadership;
            is_new
        });
    }

    /// Whether the known leader, known `since` then, has been out of contact for an election timeout.
    async fn is_silent(&self, seen: &Seen, since: Instant) -> bool {
        if seen.leader.is_none() {
            return false;
        }
        if seen.is_leader {
            let metrics = self.raft.metrics();
            let metrics = metrics.borrow_watched();
            let is_alone = metrics.membership_config.voter_ids().nth(1).is_none();
            // One that was elected and heard nobody since has none.
            let heard = metrics.last_quorum_acked;
            let silence = heard.map_or_else(|| since.elapsed(), |at| at.elapsed());
            return !is_alone && silence > self.election_timeout;
        }
        // The leader's every message renews the follower's vote for it.
        let heard = self
            .raft
            .with_raft_state(|state| state.vote_last_modified());
        match heard.await {
            Ok(Some(at)) => at.elapsed() > self.election_timeout,
            Ok(None) | Err(_) => true,
        }
    }

    /// Tells the transport who its peers are. A member without any membership keeps those it was
    /// started with.
    fn follow_membership(&mut self, membership: &StoredMembership) {
        let Some(transport) = &self.transport else {
            return;
        };
        if membership.voter_ids().next().is_none() {
            return;
        }
        let mut removed = std::mem::take(&mut self.peers);
        for (id, peer) in membership.nodes() {
            if *id == self.member_id {
                continue;
            }
            if removed.remove(id).as_ref() != Some(peer) {
                transport.set_peer(*id, &peer.name, &peer.peer_urls);
            }
            self.peers.insert(*id, peer.clone());
        }
        for id in removed.into_keys() {
            transport.remove_peer(id);
        }
    }

    fn report(&self, fatal: &Fatal<crate::raft::types::TypeConfig>) {
        let reason = match fatal {
            Fatal::Stopped => return,
            Fatal::StorageError(_) => Reason::StorageFailed,
            Fatal::Panicked => Reason::Internal,
        };
        let detail = format!("consensus stopped: {fatal}");
        report(&self.failure, Error::with_detail(reason, detail));
    }
}
