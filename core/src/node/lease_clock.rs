//! The leader's lease clock: ends leases whose time is over, and records what is left of long ones.
//! One task, started by `bootstrap`; it rests on members that do not lead.
//!
//! However many leases end at once, few proposals are under way at a time and each is short, so that
//! the writes of clients get their turn between them; and there is no pause between them, so that no
//! lease ends late for it.

use std::collections::VecDeque;

use bytes::Bytes;
use futures::StreamExt;
use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;
use prost::Message;
use quorate_proto::log::command::Kind;
use quorate_proto::log::{Batch, Command, LeaseCheckpoint, LeaseExpire, Proposal, RemainingTtl};

use std::time::Duration;

use super::Node;
use crate::clock::{self, Instant};
use crate::raft::{Completion, Leadership, ProposeError, Ticket};

/// Leases ended or recorded by one proposal. A write waits for at most [`PROPOSALS_MAX`] of these.
const LEASES_MAX: usize = 500;
/// Proposals under way at once: some are on their way to a quorum while one is applied.
const PROPOSALS_MAX: usize = 4;
/// Leases taken from the schedule at once. They are ended in the order of their ids, in which their
/// keys are found with few looks at the store.
const ROUND_MAX: usize = 100_000;
/// How often the remaining time of a lease longer than this is recorded (etcd's interval).
const CHECKPOINT_INTERVAL: Duration = Duration::from_secs(300);
/// When an expiry that was refused is tried again.
const EXPIRE_RETRY: Duration = Duration::from_millis(100);
/// Longest sleep, in case a deadline could be missed.
const SLEEP_MAX: Duration = Duration::from_secs(60);

/// Ends and records leases whenever this member leads, until it stops.
pub(super) async fn run(node: Node) {
    let lessor = node.shared.reader.lessor();
    let mut leadership = node.shared.consensus.leadership();
    let mut changes = lessor.changes();
    // The term this member was promoted in, while it leads.
    let mut term = None;
    let mut duties = Duties::default();
    loop {
        let known = *leadership.borrow_and_update();
        changes.mark_unchanged();
        match (term, known.ready) {
            (Some(promoted), true) if promoted == known.term && lessor.leads() => {}
            (_, true) => {
                let election_timeout = node.shared.config.election_timeout;
                duties.forget();
                lessor.promote(clock::now(), election_timeout, CHECKPOINT_INTERVAL);
                term = Some(known.term);
            }
            (Some(_), false) => {
                duties.forget();
                lessor.demote();
                term = None;
            }
            (None, false) => {}
        }
        if term.is_some() {
            duties.take_due(&node, clock::now());
            duties.propose(&node, known, clock::now());
        }
        let latest = clock::now() + SLEEP_MAX;
        let next = duties.next_look(&node).unwrap_or(latest).min(latest);
        tokio::select! {
            changed = leadership.changed() => if changed.is_err() { return },
            changed = changes.changed() => if changed.is_err() { return },
            Some(()) = duties.under_way.next(), if !duties.under_way.is_empty() => {}
            () = tokio::time::sleep_until(next) => {}
        }
    }
}

/// What has to be proposed, and what is.
#[derive(Default)]
struct Duties {
    /// Leases to end, a proposal's worth each, all judged at the same moment.
    expiries: VecDeque<Vec<i64>>,
    /// The last entry applied at that moment.
    as_of: u64,
    under_way: FuturesUnordered<BoxFuture<'static, ()>>,
}

impl Duties {
    /// Leadership changed: nothing that waits is this member's affair any more. What is under way
    /// goes on, since its outcome is open.
    fn forget(&mut self) {
        self.expiries.clear();
    }

    /// Asks the schedule what has to end, once all it said before is on its way.
    fn take_due(&mut self, node: &Node, now: Instant) {
        if !self.expiries.is_empty() {
            return;
        }
        // Looked at first: what is granted after it is not what is judged now.
        let applied = node.shared.consensus.applied().borrow().id;
        self.as_of = applied.map_or(0, |id| id.index);
        let mut due = node.shared.reader.lessor().due(now, ROUND_MAX);
        due.sort_unstable();
        self.expiries = due.chunks(LEASES_MAX).map(<[i64]>::to_vec).collect();
    }

    /// Proposes what there is room for; expiries go first. What is to be recorded is asked for only
    /// when it can be proposed at once: renewals of these leases wait until that is decided.
    fn propose(&mut self, node: &Node, known: Leadership, now: Instant) {
        while self.has_room() {
            if let Some(ids) = self.expiries.pop_front() {
                let expired = node.clone().expire(ids, self.as_of, known);
                self.under_way.push(Box::pin(expired));
                continue;
            }
            let left = node.shared.reader.lessor().checkpoints_due(now, LEASES_MAX);
            if left.is_empty() {
                return;
            }
            let recorded = node.clone().checkpoint(left, known);
            self.under_way.push(Box::pin(recorded));
        }
    }

    fn has_room(&self) -> bool {
        self.under_way.len() < PROPOSALS_MAX
    }

    /// When the schedule has to be asked again; without room, not before a proposal is decided.
    fn next_look(&self, node: &Node) -> Option<Instant> {
        let lessor = node.shared.reader.lessor();
        let may_ask = self.expiries.is_empty() && self.has_room();
        may_ask
            .then(|| lessor.next_deadline(clock::now()))
            .flatten()
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
    /// Proposes the end of leases that were due when the entry `as_of` was the last one applied.
    async fn expire(self, ids: Vec<i64>, as_of: u64, known: Leadership) {
        let kind = Kind::LeaseExpire(LeaseExpire {
            ids: ids.clone(),
            as_of,
        });
        match self.propose_as_leader(kind, known).await {
            Outcome::Applied | Outcome::Refused => {
                let lessor = self.shared.reader.lessor();
                lessor.expiry_settled(&ids, clock::now() + EXPIRE_RETRY);
            }
            // Counts as expiring until this member leads no more.
            Outcome::Unknown => {}
        }
    }

    /// Proposes to record what is left of leases.
    async fn checkpoint(self, left: Vec<(i64, i64)>, known: Leadership) {
        let ids: Vec<i64> = left.iter().map(|(id, _)| *id).collect();
        let leases = left
            .into_iter()
            .map(|(id, remaining_ttl_seconds)| RemainingTtl {
                id,
                remaining_ttl_seconds,
            })
            .collect();
        let kind = Kind::LeaseCheckpoint(LeaseCheckpoint { leases });
        match self.propose_as_leader(kind, known).await {
            Outcome::Applied | Outcome::Refused => {
                self.shared.reader.lessor().checkpoints_settled(&ids);
            }
            // Counts as recorded until this member leads no more.
            Outcome::Unknown => {}
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lease::{Change, Lease, Renewal};
    use crate::node::tests::{eventually, lone};

    #[tokio::test(flavor = "multi_thread")]
    async fn few_proposals_are_under_way_however_many_leases_end() {
        let node = lone().await;
        let known = *node.shared.consensus.leadership().borrow();
        let chunks = 3 * PROPOSALS_MAX;
        let mut duties = Duties {
            expiries: (0..chunks).map(|_| vec![1]).collect(),
            ..Duties::default()
        };
        let now = clock::now();
        duties.propose(&node, known, now);
        assert_eq!(duties.under_way.len(), PROPOSALS_MAX);
        // One more for each that ends.
        for left in (0..chunks - PROPOSALS_MAX).rev() {
            duties.under_way.next().await;
            duties.propose(&node, known, now);
            let both = (duties.under_way.len(), duties.expiries.len());
            assert_eq!(both, (PROPOSALS_MAX, left));
        }
        while duties.under_way.next().await.is_some() {}
        node.shutdown().await;
    }

    /// With thousands of leases to be recorded, only those whose proposal is on its way are marked.
    #[tokio::test(flavor = "multi_thread")]
    async fn renewals_wait_for_few_checkpoints_however_many_are_due() {
        let node = lone().await;
        let lessor = node.shared.reader.lessor();
        // The node's own clock begins once, and then finds nothing to do here.
        eventually("it leads", || async { lessor.leads() }).await;
        let leases = i64::try_from(2 * PROPOSALS_MAX * LEASES_MAX).unwrap();
        let granted = (1..=leases).map(|id| Lease {
            id,
            granted_ttl_seconds: 10_000,
            remaining_ttl_seconds: 0,
            granted_at: 0,
        });
        lessor.commit(&granted.map(Change::Granted).collect::<Vec<_>>());
        let now = clock::now();
        lessor.promote(now, Duration::ZERO, CHECKPOINT_INTERVAL);
        let due = now + CHECKPOINT_INTERVAL;
        let known = *node.shared.consensus.leadership().borrow();
        let mut duties = Duties::default();
        duties.propose(&node, known, due);
        assert_eq!(duties.under_way.len(), PROPOSALS_MAX);
        let undecided = |id: &i64| lessor.renew(*id, now) == Renewal::Undecided;
        let marked = (1..=leases).filter(undecided).count();
        assert_eq!(marked, PROPOSALS_MAX * LEASES_MAX);
        while duties.under_way.next().await.is_some() {
            duties.propose(&node, known, due);
        }
        assert_eq!((1..=leases).filter(undecided).count(), 0);
        node.shutdown().await;
    }
}
