//! The leader's deadlines: two heaps with one entry a lease, corrected when they surface. Used by
//! the lessor alone.
//!
//! A renewal only writes the new deadline into the lease's record: the heap's entry stays where it
//! is, and when it surfaces too early it is put back at the right place. So a renewal costs O(1),
//! there is one heap entry a lease however often it is renewed, and nothing ever scans.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap, HashSet};
use std::time::Duration;

use super::lessor::Lease;
use crate::clock::Instant;

/// Entries of ended leases a heap may hold beyond one a live lease, before it is rebuilt.
const STALE_ENTRIES_MAX: usize = 1024;

/// What became of a renewal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Renewal {
    /// Renewed; the answer is this time to live in seconds.
    Renewed {
        /// The whole granted time to live.
        ttl_seconds: i64,
    },
    /// No such lease: the answer is time to live 0.
    Gone,
    /// Its expiry or a checkpoint of it is proposed: wait until [`Lessor::is_undecided`] says no
    /// more, looking again at each of [`Lessor::changes`], then go through a new barrier.
    ///
    /// [`Lessor::is_undecided`]: super::Lessor::is_undecided
    /// [`Lessor::changes`]: super::Lessor::changes
    Undecided,
    /// A checkpoint stands: propose clearing it, wait until that applied, try again.
    Checkpointed,
    /// This member does not lead: nothing may be answered.
    NotLeading,
}

/// What is left of a lease.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Remaining {
    /// This long, by the leader's clock; zero when it is overdue but its end not yet applied.
    Left(Duration),
    /// No such lease.
    Gone,
    /// This member does not lead and cannot know.
    NotLeading,
}

/// Deadlines and marks of all leases, on the leader.
#[derive(Debug)]
pub(super) struct Expiry {
    checkpoint_interval: Duration,
    armed: HashMap<i64, Armed>,
    /// Granted since the last look: armed at the next one, for `apply` has no clock.
    granted: HashSet<i64>,
    /// Armings so far; those made at promotion are 0.
    armings: u64,
    deadlines: Schedule,
    checkpoints: Schedule,
}

#[derive(Debug)]
struct Armed {
    /// Tells entries of this arming from those of an ended lease with the same id.
    arming: u64,
    deadline: Instant,
    expiring: bool,
    /// Checkpoint proposals whose outcome is not known.
    checkpoints_open: u32,
}

impl Armed {
    fn is_undecided(&self) -> bool {
        self.expiring || self.checkpoints_open > 0
    }
}

/// Moments with the lease and arming they are for, soonest first.
#[derive(Debug, Default)]
struct Schedule {
    heap: BinaryHeap<Reverse<(Instant, i64, u64)>>,
}

impl Schedule {
    fn push(&mut self, at: Instant, id: i64, arming: u64) {
        self.heap.push(Reverse((at, id, arming)));
    }

    fn next(&self) -> Option<Instant> {
        self.heap.peek().map(|Reverse((at, ..))| *at)
    }

    /// The soonest entry, if its moment has come.
    fn pop_due(&mut self, now: Instant) -> Option<(i64, u64)> {
        let Reverse((at, id, arming)) = *self.heap.peek()?;
        if at > now {
            return None;
        }
        self.heap.pop();
        Some((id, arming))
    }

    /// Drops the entries of ended leases once they outnumber the living.
    fn shed(&mut self, armed: &HashMap<i64, Armed>) {
        if self.heap.len() <= armed.len() * 2 + STALE_ENTRIES_MAX {
            return;
        }
        self.heap.retain(|Reverse((_, id, arming))| {
            armed.get(id).is_some_and(|lease| lease.arming == *arming)
        });
    }
}

/// `now + wait`, or a moment no process lives to see.
fn after(now: Instant, wait: Duration) -> Instant {
    const CENTURY: Duration = Duration::from_secs(100 * 365 * 24 * 3600);
    now.checked_add(wait).unwrap_or_else(|| now + CENTURY)
}

impl Expiry {
    /// Arms every lease from `now`, each for at least `at_least`.
    pub(super) fn new<'a>(
        leases: impl Iterator<Item = &'a Lease>,
        now: Instant,
        at_least: Duration,
        checkpoint_interval: Duration,
    ) -> Self {
        let mut expiry = Self {
            checkpoint_interval,
            armed: HashMap::new(),
            granted: HashSet::new(),
            armings: 0,
            deadlines: Schedule::default(),
            checkpoints: Schedule::default(),
        };
        let mut deadlines = Vec::new();
        let mut checkpoints = Vec::new();
        for lease in leases {
            let deadline = after(now, lease.lifetime().max(at_least));
            let armed = Armed {
                arming: 0,
                deadline,
                expiring: false,
                checkpoints_open: 0,
            };
            expiry.armed.insert(lease.id, armed);
            deadlines.push(Reverse((deadline, lease.id, 0)));
            if lease.granted() > checkpoint_interval {
                checkpoints.push(Reverse((after(now, checkpoint_interval), lease.id, 0)));
            }
        }
        expiry.deadlines.heap = deadlines.into();
        expiry.checkpoints.heap = checkpoints.into();
        expiry
    }

    pub(super) fn granted(&mut self, id: i64) {
        self.granted.insert(id);
    }

    pub(super) fn ended(&mut self, id: i64) {
        self.granted.remove(&id);
        self.armed.remove(&id);
        self.deadlines.shed(&self.armed);
        self.checkpoints.shed(&self.armed);
    }

    /// Arms what was granted since the last look.
    fn arm_granted(&mut self, leases: &HashMap<i64, Lease>, now: Instant) {
        for id in std::mem::take(&mut self.granted) {
            if let Some(lease) = leases.get(&id) {
                self.arm(lease, now);
            }
        }
    }

    fn arm(&mut self, lease: &Lease, from: Instant) -> &mut Armed {
        let Self {
            checkpoint_interval,
            armed,
            armings,
            deadlines,
            checkpoints,
            ..
        } = self;
        armed.entry(lease.id).or_insert_with(|| {
            *armings += 1;
            let arming = *armings;
            let deadline = after(from, lease.granted());
            deadlines.push(deadline, lease.id, arming);
            if lease.granted() > *checkpoint_interval {
                checkpoints.push(after(from, *checkpoint_interval), lease.id, arming);
            }
            Armed {
                arming,
                deadline,
                expiring: false,
                checkpoints_open: 0,
            }
        })
    }

    pub(super) fn renew(&mut self, lease: &Lease, barrier_began: Instant) -> Renewal {
        let armed = self.arm(lease, barrier_began);
        if armed.is_undecided() {
            return Renewal::Undecided;
        }
        if lease.remaining_ttl_seconds > 0 {
            return Renewal::Checkpointed;
        }
        armed.deadline = armed.deadline.max(after(barrier_began, lease.granted()));
        Renewal::Renewed {
            ttl_seconds: lease.granted_ttl_seconds,
        }
    }

    pub(super) fn is_undecided(&self, id: i64) -> bool {
        self.armed.get(&id).is_some_and(Armed::is_undecided)
    }

    pub(super) fn remaining(&self, lease: &Lease, now: Instant) -> Remaining {
        Remaining::Left(self.armed.get(&lease.id).map_or_else(
            || lease.granted(),
            |armed| armed.deadline.saturating_duration_since(now),
        ))
    }

    pub(super) fn due(
        &mut self,
        leases: &HashMap<i64, Lease>,
        now: Instant,
        max: usize,
    ) -> Vec<i64> {
        self.arm_granted(leases, now);
        let mut due = Vec::new();
        while due.len() < max {
            let Some((id, arming)) = self.deadlines.pop_due(now) else {
                break;
            };
            let Some(lease) = self.armed.get_mut(&id) else {
                continue;
            };
            if lease.arming != arming || lease.expiring {
                continue;
            }
            if lease.deadline > now {
                let deadline = lease.deadline;
                self.deadlines.push(deadline, id, arming);
                continue;
            }
            lease.expiring = true;
            due.push(id);
        }
        due
    }

    pub(super) fn settled(&mut self, ids: &[i64], retry_at: Instant) {
        for id in ids {
            if let Some(lease) = self.armed.get_mut(id)
                && lease.expiring
            {
                lease.expiring = false;
                self.deadlines.push(retry_at, *id, lease.arming);
            }
        }
    }

    pub(super) fn checkpoints_due(
        &mut self,
        leases: &HashMap<i64, Lease>,
        now: Instant,
        max: usize,
    ) -> Vec<(i64, i64)> {
        self.arm_granted(leases, now);
        let mut due = Vec::new();
        while due.len() < max {
            let Some((id, arming)) = self.checkpoints.pop_due(now) else {
                break;
            };
            let Some(lease) = self.armed.get_mut(&id) else {
                continue;
            };
            if lease.arming != arming {
                continue;
            }
            let left = lease.deadline.saturating_duration_since(now);
            self.checkpoints
                .push(after(now, self.checkpoint_interval), id, arming);
            // One about to end needs none, and an open one is not worth a second.
            let seconds = i64::try_from(left.as_secs()).unwrap_or(i64::MAX);
            if lease.expiring || lease.checkpoints_open > 0 || seconds < 1 {
                continue;
            }
            lease.checkpoints_open += 1;
            due.push((id, seconds));
        }
        due
    }

    pub(super) fn checkpoints_settled(&mut self, ids: &[i64]) {
        for id in ids {
            if let Some(lease) = self.armed.get_mut(id) {
                lease.checkpoints_open = lease.checkpoints_open.saturating_sub(1);
            }
        }
    }

    #[cfg(test)]
    pub(super) fn schedule_entries(&self) -> usize {
        self.deadlines.heap.len() + self.checkpoints.heap.len()
    }

    pub(super) fn next_deadline(&self, now: Instant) -> Option<Instant> {
        if !self.granted.is_empty() {
            return Some(now);
        }
        match (self.deadlines.next(), self.checkpoints.next()) {
            (Some(one), Some(other)) => Some(one.min(other)),
            (one, other) => one.or(other),
        }
    }
}
