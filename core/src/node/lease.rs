//! Requests on leases. Grants and revokes go through the log; keep-alives and remaining times are
//! answered by the leader, which alone knows deadlines.
//!
//! A keep-alive costs no log entry, but a leader that was cut off must not answer it: it goes
//! through a read barrier first, shared with all other reads and keep-alives, and the new deadline
//! counts from the instant before that barrier.

use std::sync::Arc;
use std::time::Duration;

use quorate_proto::etcdserverpb::{
    LeaseGrantRequest, LeaseGrantResponse, LeaseKeepAliveResponse, LeaseLeasesResponse,
    LeaseRevokeRequest, LeaseRevokeResponse, LeaseStatus, LeaseTimeToLiveRequest,
    LeaseTimeToLiveResponse,
};
use quorate_proto::limits::LEASE_TTL_SECONDS_MAX;
use quorate_proto::log::command::Kind;
use quorate_proto::log::{LeaseCheckpoint, LeaseGrant, LeaseRevoke, RemainingTtl};
use quorate_proto::peer::request::Kind as Asked;
use quorate_proto::peer::response::Kind as Answered;
use quorate_proto::{Reason, peer as pb};
use tokio::sync::Semaphore;
use uuid::Uuid;

use super::Node;
use super::kv::unexpected;
use super::rounds::Caller;
use crate::apply::Answer;
use crate::clock;
use crate::error::Result;
use crate::lease::{Remaining, Renewal};
use crate::mvcc;
use crate::raft::Leadership;

/// Messages of keep-alives on their way to the leader at once.
const FORWARDS_IN_FLIGHT: usize = 4;
/// Keep-alives in one message.
const FORWARD_IDS_MAX: usize = 1_024;
/// How often a free lease id is looked for before giving up; ids are random, so twice is rare.
const ID_ATTEMPTS: usize = 8;

impl Node {
    /// Grants a lease. Id 0 lets this member choose a positive one; a time to live below the
    /// minimum is raised to it.
    ///
    /// # Errors
    /// The id is taken, the time to live is too large; as any write.
    pub async fn lease_grant(&self, request: LeaseGrantRequest) -> Result<LeaseGrantResponse> {
        // What no member allows is refused when it is applied, after the alarms, as on etcd.
        let ttl_max = self.limits().max_lease_ttl_seconds;
        if ttl_max < LEASE_TTL_SECONDS_MAX && request.ttl > ttl_max {
            return Err(Reason::LeaseTtlTooLarge.into());
        }
        self.check_space()?;
        let ttl_seconds = request.ttl.max(self.shared.config.lease_ttl_min_seconds());
        for _ in 0..ID_ATTEMPTS {
            let id = if request.id == 0 {
                random_id()
            } else {
                request.id
            };
            let granted = self
                .propose(Kind::LeaseGrant(LeaseGrant { id, ttl_seconds }))
                .await;
            match granted {
                Ok((
                    Answer::LeaseGrant {
                        revision,
                        id,
                        ttl_seconds,
                    },
                    _,
                )) => {
                    return Ok(LeaseGrantResponse {
                        header: Some(self.header_at(revision)),
                        id,
                        ttl: ttl_seconds,
                        error: String::new(),
                    });
                }
                Ok((other, _)) => return Err(unexpected(&other)),
                Err(error) if error.reason() == Reason::LeaseExists && request.id == 0 => {}
                Err(error) => return Err(error),
            }
        }
        Err(Reason::LeaseExists.into())
    }

    /// Ends a lease and deletes its keys.
    ///
    /// # Errors
    /// No such lease; as any write.
    pub async fn lease_revoke(&self, request: LeaseRevokeRequest) -> Result<LeaseRevokeResponse> {
        match self
            .propose(Kind::LeaseRevoke(LeaseRevoke { id: request.id }))
            .await?
        {
            (Answer::LeaseRevoke { revision }, _) => Ok(LeaseRevokeResponse {
                header: Some(self.header_at(revision)),
            }),
            (other, _) => Err(unexpected(&other)),
        }
    }

    /// Renews a lease to its full time to live. The answer's TTL is 0 when there is no such lease.
    ///
    /// # Errors
    /// Time-outs, when no leader confirms: the lease may or may not have been renewed.
    pub async fn lease_keep_alive(&self, id: i64) -> Result<LeaseKeepAliveResponse> {
        let since = clock::now();
        let renewal = async {
            let mut leadership = self.shared.consensus.leadership();
            loop {
                let known = match leadership.wait_for(|known| known.leader.is_some()).await {
                    Ok(known) => *known,
                    Err(_) => return Err(Reason::Stopped.into()),
                };
                let renewed = if known.leader == Some(self.member_id()) {
                    self.renew_as_leader(id).await
                } else {
                    self.shared.keep_alives.join(id).await
                };
                match renewed {
                    Err(error) if is_for_another_leader(error.reason()) => {
                        self.pause_for_change(known).await;
                    }
                    decided => return decided,
                }
            }
        };
        match tokio::time::timeout(self.shared.config.request_timeout(), renewal).await {
            Ok(ttl) => Ok(LeaseKeepAliveResponse {
                header: Some(self.header()),
                id,
                ttl: ttl?,
            }),
            Err(_) => Err(self.timed_out(since).into()),
        }
    }

    /// What remains of a lease; TTL -1 when there is no such lease.
    ///
    /// # Errors
    /// Time-outs, when no leader answers.
    pub async fn lease_time_to_live(
        &self,
        request: LeaseTimeToLiveRequest,
    ) -> Result<LeaseTimeToLiveResponse> {
        let id = request.id;
        self.read_barrier().await?;
        let gone = || LeaseTimeToLiveResponse {
            header: Some(self.header()),
            id,
            ttl: -1,
            ..Default::default()
        };
        let Some(lease) = self.shared.reader.lessor().get(id) else {
            return Ok(gone());
        };
        let ttl = self.remaining(id).await?;
        if ttl < 0 {
            return Ok(gone());
        }
        let keys = if request.keys {
            let reader = self.shared.reader.clone();
            self.read(false, move || mvcc::keys_of_lease(&*reader.view(), id))
                .await?
        } else {
            Vec::new()
        };
        let granted_ttl = lease.granted_ttl_seconds;
        Ok(LeaseTimeToLiveResponse {
            header: Some(self.header()),
            id,
            ttl,
            granted_ttl,
            keys,
        })
    }

    /// All leases.
    ///
    /// # Errors
    /// Time-outs.
    pub async fn leases(&self) -> Result<LeaseLeasesResponse> {
        self.check_sound()?;
        self.read_barrier().await?;
        let ids = self.shared.reader.lessor().ids();
        let leases = ids.into_iter().map(|id| LeaseStatus { id }).collect();
        Ok(LeaseLeasesResponse {
            header: Some(self.header()),
            leases,
        })
    }

    /// Renews a lease as the leader; 0 when there is no such lease.
    ///
    /// # Errors
    /// Not leader, when leadership could not be confirmed or ended meanwhile; nothing was promised.
    pub(super) async fn renew_as_leader(&self, id: i64) -> Result<i64> {
        let lessor = self.shared.reader.lessor();
        let mut changes = lessor.changes();
        loop {
            let barrier_began = clock::now();
            self.barrier_as_leader().await?;
            match lessor.renew(id, barrier_began) {
                Renewal::Renewed { ttl_seconds } => return Ok(ttl_seconds),
                Renewal::Gone => return Ok(0),
                Renewal::NotLeading => return Err(Reason::NotLeader.into()),
                Renewal::Undecided => {
                    // Only the outcome can tell, and only a new barrier shows whether this member
                    // may. Many wait here when many leases end: only those concerned go on.
                    let decided = changes.wait_for(|_| !lessor.is_undecided(id));
                    if decided.await.is_err() {
                        return Err(Reason::Stopped.into());
                    }
                }
                Renewal::Checkpointed => {
                    let cleared = RemainingTtl {
                        id,
                        remaining_ttl_seconds: 0,
                    };
                    let leases = vec![cleared];
                    self.propose(Kind::LeaseCheckpoint(LeaseCheckpoint { leases }))
                        .await?;
                }
            }
        }
    }

    /// A read barrier that this member passes as the leader of one term. Without that check another
    /// leader could have let this one pass, whose deadlines are then not those that count.
    async fn barrier_as_leader(&self) -> Result<()> {
        let leadership = self.shared.consensus.leadership();
        let before = *leadership.borrow();
        if !before.ready {
            return Err(Reason::NotLeader.into());
        }
        self.read_barrier().await?;
        if *leadership.borrow() != before {
            return Err(Reason::LeaderChanged.into());
        }
        Ok(())
    }

    /// The whole seconds left of a lease by the leader's clock; -1 when it is gone.
    pub(super) async fn remaining_as_leader(&self, id: i64) -> Result<i64> {
        self.barrier_as_leader().await?;
        match self.shared.reader.lessor().remaining(id, clock::now()) {
            Remaining::Left(left) => Ok(i64::try_from(left.as_secs()).unwrap_or(i64::MAX)),
            Remaining::Gone => Ok(-1),
            Remaining::NotLeading => Err(Reason::NotLeader.into()),
        }
    }

    /// As [`Node::remaining_as_leader`], from whoever leads.
    async fn remaining(&self, id: i64) -> Result<i64> {
        let since = clock::now();
        let asking = async {
            let mut leadership = self.shared.consensus.leadership();
            loop {
                let known = match leadership.wait_for(|known| known.leader.is_some()).await {
                    Ok(known) => *known,
                    Err(_) => return Err(Reason::Stopped.into()),
                };
                let remaining = if known.leader == Some(self.member_id()) {
                    self.remaining_as_leader(id).await
                } else {
                    self.remaining_of(known, id).await.map_err(Into::into)
                };
                match remaining {
                    Err(error) if is_for_another_leader(error.reason()) => {
                        self.pause_for_change(known).await;
                    }
                    decided => return decided,
                }
            }
        };
        match tokio::time::timeout(self.shared.config.request_timeout(), asking).await {
            Ok(decided) => decided,
            Err(_) => Err(self.timed_out(since).into()),
        }
    }

    async fn remaining_of(&self, known: Leadership, id: i64) -> Result<i64, Reason> {
        let request = Asked::TimeToLive(pb::TimeToLiveRequest { id });
        match self
            .ask_leader(known, request, self.forward_timeout())
            .await
        {
            Ok(Answered::TimeToLive(pb::TimeToLiveResponse {
                outcome: Some(pb::time_to_live_response::Outcome::RemainingSeconds(seconds)),
            })) => Ok(seconds),
            Ok(_) | Err(_) => Err(Reason::NotLeader),
        }
    }

    /// How long one message to the leader is waited for; asking again is harmless.
    fn forward_timeout(&self) -> Duration {
        self.shared
            .config
            .election_timeout
            .max(Duration::from_millis(500))
    }

    /// Forwards keep-alives to the leader and answers their callers. A caller that is told
    /// `NotLeader` asks again.
    async fn forward_keep_alives(&self, callers: Vec<Caller<i64, i64>>) {
        let known = *self.shared.consensus.leadership().borrow();
        if known.leader.is_none() || known.leader == Some(self.member_id()) {
            return refuse_all(callers);
        }
        let ids = callers.iter().map(|caller| caller.question).collect();
        let request = Asked::KeepAlive(pb::KeepAliveRequest { ids });
        // The leader may have to wait for an expiry or a checkpoint to be decided.
        let timeout = self.shared.config.request_timeout();
        let leases = match self.ask_leader(known, request, timeout).await {
            Ok(Answered::KeepAlive(answer)) if answer.refused.is_none() => answer.leases,
            Ok(_) => return refuse_all(callers),
            Err(error) => {
                tracing::debug!(leader = known.leader, %error, "keep-alives did not reach the leader");
                return refuse_all(callers);
            }
        };
        let mut kept = leases.into_iter();
        for caller in callers {
            let answer = match kept.next().filter(|kept| kept.id == caller.question) {
                Some(pb::KeptAlive {
                    outcome: Some(pb::kept_alive::Outcome::TtlSeconds(ttl)),
                    ..
                }) => Ok(ttl),
                _ => Err(Reason::NotLeader.into()),
            };
            caller.answer(answer);
        }
    }
}

/// Forwards waiting keep-alives to the leader until the member stops.
pub(super) async fn run(node: Node) {
    let window = Arc::new(Semaphore::new(FORWARDS_IN_FLIGHT));
    loop {
        let Ok(permit) = window.clone().acquire_owned().await else {
            return;
        };
        let mut count = 0;
        let callers = node
            .shared
            .keep_alives
            .gather(|_| {
                count += 1;
                count <= FORWARD_IDS_MAX
            })
            .await;
        let task = node.clone();
        node.shared.tasks.spawn("forward keep-alives", async move {
            task.forward_keep_alives(callers).await;
            drop(permit);
        });
    }
}

fn refuse_all(callers: Vec<Caller<i64, i64>>) {
    for caller in callers {
        caller.answer(Err(Reason::NotLeader.into()));
    }
}

/// Whether another leader, or the same one a little later, may answer.
fn is_for_another_leader(reason: Reason) -> bool {
    matches!(
        reason,
        Reason::NotLeader | Reason::NoLeader | Reason::LeaderChanged
    )
}

/// A positive lease id. Random, since members choose ids without asking each other.
fn random_id() -> i64 {
    let (high, _) = Uuid::new_v4().as_u64_pair();
    i64::try_from(high >> 1).unwrap_or(1).max(1)
}
