//! What a member does without being asked: expires and checkpoints leases while it leads, raises the
//! alarm when it outgrows its quota, tells the cluster its name, and learns who the others are.
//! Each duty is one task, started by `bootstrap`.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use prost::Message;
use quorate_proto::etcdserverpb::alarm_request::AlarmAction;
use quorate_proto::etcdserverpb::{AlarmRequest, AlarmType};
use quorate_proto::log::command::Kind;
use quorate_proto::log::{Batch, Command, LeaseCheckpoint, LeaseExpire, Proposal, RemainingTtl};

use tokio::sync::watch;
use uuid::Uuid;

use super::Node;
use crate::apply::Reader;
use crate::clock;
use crate::error::Error;
use crate::raft::{AppliedPoint, Completion, Leadership, ProposeError, Ticket};

/// Leases ended by one proposal.
const EXPIRE_MAX: usize = 1_000;
/// Leases checkpointed by one proposal (etcd's number).
const CHECKPOINT_MAX: usize = 1_000;
/// How often the remaining time of a lease longer than this is checkpointed (etcd's interval).
const CHECKPOINT_INTERVAL: Duration = Duration::from_secs(300);
/// When an expiry that was refused is tried again.
const EXPIRE_RETRY: Duration = Duration::from_millis(100);
/// Longest sleep of the lease clock, in case a deadline could be missed.
const LEASE_SLEEP_MAX: Duration = Duration::from_secs(60);
/// Pause between looks at what was applied.
const LOOK_PAUSE: Duration = Duration::from_millis(100);
/// Pause before trying again what the cluster could not do now.
const RETRY_PAUSE: Duration = Duration::from_secs(1);

/// Ends and checkpoints leases whenever this member leads.
pub(super) async fn lease_clock(node: Node) {
    let lessor = node.shared.reader.lessor();
    let mut leadership = node.shared.consensus.leadership();
    let mut changes = lessor.changes();
    // The term this member was promoted in, while it leads.
    let mut term = None;
    loop {
        let known = *leadership.borrow_and_update();
        changes.mark_unchanged();
        match (term, known.ready) {
            (Some(promoted), true) if promoted == known.term && lessor.leads() => {}
            (_, true) => {
                let election_timeout = node.shared.config.election_timeout;
                lessor.promote(clock::now(), election_timeout, CHECKPOINT_INTERVAL);
                term = Some(known.term);
            }
            (Some(_), false) => {
                lessor.demote();
                term = None;
            }
            (None, false) => {}
        }
        if term.is_some() {
            node.expire_due(known);
            node.checkpoint_due(known);
        }
        let now = clock::now();
        let next = lessor.next_deadline(now).unwrap_or(now + LEASE_SLEEP_MAX);
        let next = next.min(now + LEASE_SLEEP_MAX);
        tokio::select! {
            changed = leadership.changed() => if changed.is_err() { return },
            changed = changes.changed() => if changed.is_err() { return },
            () = tokio::time::sleep_until(next) => {}
        }
    }
}

/// What became of a proposal of the leader's own, made in one term and never repeated.
enum Outcome {
    Applied,
    /// Certainly not in the log, or refused by the state machine: nothing changed.
    Refused,
    Unknown,
}

impl Node {
    /// Proposes the end of all leases whose time is over.
    fn expire_due(&self, known: Leadership) {
        let lessor = self.shared.reader.lessor();
        loop {
            let ids = lessor.due(clock::now(), EXPIRE_MAX);
            if ids.is_empty() {
                return;
            }
            let node = self.clone();
            self.shared.tasks.spawn("expire leases", async move {
                let kind = Kind::LeaseExpire(LeaseExpire { ids: ids.clone() });
                if let Outcome::Refused = node.propose_as_leader(kind, known).await {
                    let lessor = node.shared.reader.lessor();
                    lessor.expiry_refused(&ids, clock::now() + EXPIRE_RETRY);
                }
            });
        }
    }

    /// Proposes checkpoints of all leases that want one.
    fn checkpoint_due(&self, known: Leadership) {
        let lessor = self.shared.reader.lessor();
        loop {
            let due = lessor.checkpoints_due(clock::now(), CHECKPOINT_MAX);
            if due.is_empty() {
                return;
            }
            let ids: Vec<i64> = due.iter().map(|(id, _)| *id).collect();
            let leases = due
                .into_iter()
                .map(|(id, remaining_ttl_seconds)| RemainingTtl {
                    id,
                    remaining_ttl_seconds,
                })
                .collect();
            let node = self.clone();
            self.shared.tasks.spawn("checkpoint leases", async move {
                let kind = Kind::LeaseCheckpoint(LeaseCheckpoint { leases });
                match node.propose_as_leader(kind, known).await {
                    Outcome::Applied | Outcome::Refused => {
                        node.shared.reader.lessor().checkpoints_settled(&ids);
                    }
                    // Counts as checkpointed until this member leads no more.
                    Outcome::Unknown => {}
                }
            });
        }
    }

    /// Proposes under this member's own leadership: never forwarded, never in a later term.
    async fn propose_as_leader(&self, kind: Kind, known: Leadership) -> Outcome {
        let Ok(mut ticket) = self.shared.pending.register(known.term) else {
            return Outcome::Refused;
        };
        let batch = Batch {
            proposals: vec![named(&ticket, kind)],
        };
        let batch = Bytes::from(batch.encode_to_vec());
        match self.shared.consensus.propose(batch, known.term).await {
            Ok(()) => {}
            Err(ProposeError::NotLeader { .. } | ProposeError::NotNow | ProposeError::Full) => {
                return Outcome::Refused;
            }
            Err(ProposeError::Discarded | ProposeError::Stopped) => return Outcome::Unknown,
        }
        match ticket.completion().await {
            Completion::Answer { .. } => Outcome::Applied,
            Completion::Refused { .. } | Completion::Lost => Outcome::Refused,
            Completion::Unknown => Outcome::Unknown,
        }
    }
}

fn named(ticket: &Ticket, kind: Kind) -> Proposal {
    let id = ticket.id();
    Proposal {
        boot_id: id.boot.as_bytes().to_vec().into(),
        sequence: id.sequence,
        command: Some(Command { kind: Some(kind) }),
    }
}

/// Raises this member's alarm once its store is over its quota, and again after it was lifted.
pub(super) async fn guard_quota(node: Node) {
    let mut applied = node.shared.consensus.applied();
    loop {
        let reader = node.shared.reader.clone();
        // The size is asked of the file system.
        let measured = node
            .read(false, move || Ok::<_, Error>(reader.over_quota()))
            .await;
        let over = measured.unwrap_or(false);
        node.shared.over_quota.store(over, Ordering::Relaxed);
        if over && !node.has_space_alarm() {
            let alarm = AlarmRequest {
                action: AlarmAction::Activate.into(),
                member_id: node.member_id(),
                alarm: AlarmType::Nospace.into(),
            };
            match node.alarm(alarm).await {
                Ok(_) => tracing::warn!("the store is over its quota: writes are refused"),
                Err(error) => {
                    tracing::warn!(%error, "cannot raise the space alarm, trying again");
                    tokio::time::sleep(RETRY_PAUSE).await;
                    continue;
                }
            }
        }
        if !changed_since(&mut applied).await {
            return;
        }
    }
}

/// Waits until something was applied, and then a little, so that a busy member is looked at now and
/// then and not after each batch. False when the member stops.
pub(super) async fn changed_since(applied: &mut watch::Receiver<AppliedPoint>) -> bool {
    let changed = applied.changed().await.is_ok();
    tokio::time::sleep(LOOK_PAUSE).await;
    changed
}

impl Node {
    fn has_space_alarm(&self) -> bool {
        let own = self.member_id();
        let alarms = self.shared.reader.alarms();
        alarms
            .iter()
            .any(|alarm| alarm.member == own && alarm.kind == AlarmType::Nospace)
    }
}

/// Tells the cluster who this member is, once it can.
pub(super) async fn publish(node: Node) {
    while let Err(error) = node.publish_attributes().await {
        tracing::debug!(%error, "cannot publish this member's attributes yet");
        tokio::time::sleep(RETRY_PAUSE).await;
    }
}

/// Binds every peer to the data folder it said to have: one that lost it must not come back under
/// its old id, for a voter that forgets what it acknowledged can undo what was committed.
pub(super) async fn bind_incarnations(node: Node) {
    let Some(transport) = node.shared.transport.clone() else {
        return;
    };
    let mut applied = node.shared.consensus.applied();
    let mut bound = BTreeMap::new();
    loop {
        let mut is_new = false;
        for (id, incarnation) in incarnations(&node.shared.reader, node.member_id()) {
            if bound.insert(id, incarnation) != Some(incarnation) {
                transport.set_incarnation(id, incarnation);
                is_new = true;
            }
        }
        // The next start must know it before it talks to anybody, and so before the log is replayed.
        if is_new && let Err(error) = node.shared.consensus.make_durable().await {
            tracing::warn!(%error, "whom the members are bound to is not durable yet");
        }
        if !changed_since(&mut applied).await {
            return;
        }
    }
}

/// The data folders that the members other than `own` said to have.
pub(super) fn incarnations(reader: &Reader, own: u64) -> Vec<(u64, Uuid)> {
    let members = reader.members();
    let others = members.iter().filter(|member| member.id != own);
    others
        .filter_map(|member| Some((member.id, Uuid::from_slice(&member.incarnation).ok()?)))
        .collect()
}

/// Notes since when there is a leader, for the time-outs that blame an election.
pub(super) async fn note_leaders(node: Node) {
    let mut leadership = node.shared.consensus.leadership();
    let mut last = None;
    loop {
        let known = *leadership.borrow_and_update();
        let leader = known.leader.map(|leader| (known.term, leader));
        if leader.is_some() && leader != last {
            last = leader;
            node.shared.leaders.send_modify(|leaders| {
                leaders.since = Some(clock::now());
                leaders.count += 1;
            });
        }
        if leadership.changed().await.is_err() {
            return;
        }
    }
}
