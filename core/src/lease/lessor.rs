//! The lessor: every granted lease in memory, and the leader's deadlines beside it. `apply` feeds
//! it after each committed batch; `node` asks it.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::watch;

use super::expiry::{Expiry, Remaining, Renewal};
use crate::clock::Instant;

/// A granted lease, as the `leases` table holds it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lease {
    /// Never 0; may be negative.
    pub id: i64,
    /// Time to live in seconds, as granted.
    pub granted_ttl_seconds: i64,
    /// What was left at the last checkpoint, in seconds; 0 when there is none.
    pub remaining_ttl_seconds: i64,
    /// Index of the log entry that granted it, which tells it from an earlier lease of the same id;
    /// 0 if it was granted before that was recorded.
    pub granted_at: u64,
}

impl Lease {
    /// How long the lease must live from a change of leader on: the checkpointed remainder, or the
    /// whole time to live.
    #[must_use]
    pub fn lifetime(&self) -> Duration {
        let seconds = if self.remaining_ttl_seconds > 0 {
            self.remaining_ttl_seconds
        } else {
            self.granted_ttl_seconds
        };
        Duration::from_secs(u64::try_from(seconds).unwrap_or(0))
    }

    /// The whole time to live.
    #[must_use]
    pub fn granted(&self) -> Duration {
        Duration::from_secs(u64::try_from(self.granted_ttl_seconds).unwrap_or(0))
    }
}

/// One change of the `leases` table, told to the lessor once it is committed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// A lease came into being.
    Granted(Lease),
    /// A lease ended, by revocation or expiry.
    Ended(i64),
    /// A lease's checkpoint was set, or cleared (0 seconds).
    Checkpointed {
        /// Lease id.
        id: i64,
        /// Seconds left when proposed; 0 clears.
        remaining_ttl_seconds: i64,
    },
}

/// All leases of the store. Cheap to clone; clones share one state. Every method is short and
/// synchronous.
#[derive(Debug, Clone)]
pub struct Lessor {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    /// Counts the moments at which a waiter may want to look again.
    changes: watch::Sender<u64>,
}

#[derive(Debug, Default)]
struct State {
    leases: HashMap<i64, Lease>,
    /// Present while this member leads.
    expiry: Option<Expiry>,
}

impl Lessor {
    /// A lessor that knows exactly `leases`, on a member that does not lead.
    #[must_use]
    pub fn new(leases: impl IntoIterator<Item = Lease>) -> Self {
        let lessor = Self {
            shared: Arc::new(Shared {
                state: Mutex::default(),
                changes: watch::Sender::new(0),
            }),
        };
        lessor.reset(leases);
        lessor
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.shared
            .state
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn announce(&self) {
        self.shared
            .changes
            .send_modify(|count| *count = count.wrapping_add(1));
    }

    // --- what is replicated: called by `apply` alone -------------------------------------------

    /// Forgets everything and knows exactly `leases`: at open, and after a snapshot install. The
    /// member does not lead any more until promoted again.
    pub fn reset(&self, leases: impl IntoIterator<Item = Lease>) {
        let mut state = self.state();
        state.leases = leases.into_iter().map(|lease| (lease.id, lease)).collect();
        state.expiry = None;
        drop(state);
        self.announce();
    }

    /// Takes over what a committed batch changed, in order.
    pub fn commit(&self, changes: &[Change]) {
        if changes.is_empty() {
            return;
        }
        let mut state = self.state();
        let State { leases, expiry } = &mut *state;
        for change in changes {
            match *change {
                Change::Granted(lease) => {
                    leases.insert(lease.id, lease);
                    if let Some(expiry) = expiry {
                        expiry.granted(lease.id);
                    }
                }
                Change::Ended(id) => {
                    leases.remove(&id);
                    if let Some(expiry) = expiry {
                        expiry.ended(id);
                    }
                }
                Change::Checkpointed {
                    id,
                    remaining_ttl_seconds,
                } => {
                    if let Some(lease) = leases.get_mut(&id) {
                        lease.remaining_ttl_seconds = remaining_ttl_seconds;
                    }
                }
            }
        }
        drop(state);
        self.announce();
    }

    // --- asked by anyone ------------------------------------------------------------------------

    /// The lease, if it is granted.
    #[must_use]
    pub fn get(&self, id: i64) -> Option<Lease> {
        self.state().leases.get(&id).copied()
    }

    /// The ids of all leases, ascending.
    #[must_use]
    pub fn ids(&self) -> Vec<i64> {
        let mut ids: Vec<i64> = self.state().leases.keys().copied().collect();
        ids.sort_unstable();
        ids
    }

    /// How many leases there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.state().leases.len()
    }

    /// Whether there is no lease.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// A counter that moves whenever something a waiter may wait for has happened: leases granted,
    /// ended or checkpointed, expiries settled, leadership gained or lost.
    #[must_use]
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.shared.changes.subscribe()
    }

    // --- the leader's part: called by `node` ------------------------------------------------------

    /// Begins to lead: every lease lives at least max(what is left of it by the table,
    /// `election_timeout`) from `now` on. To be called once the term's first entry has applied.
    /// Leases longer than `checkpoint_interval` are offered for a checkpoint that often.
    pub fn promote(&self, now: Instant, election_timeout: Duration, checkpoint_interval: Duration) {
        let mut state = self.state();
        let expiry = Expiry::new(
            state.leases.values(),
            now,
            election_timeout,
            checkpoint_interval,
        );
        state.expiry = Some(expiry);
        drop(state);
        self.announce();
    }

    /// Ceases to lead: all deadlines and marks are forgotten.
    pub fn demote(&self) {
        self.state().expiry = None;
        self.announce();
    }

    /// Whether this member is promoted.
    #[must_use]
    pub fn leads(&self) -> bool {
        self.state().expiry.is_some()
    }

    /// Renews the lease to `barrier_began` plus its time to live, where `barrier_began` is the
    /// instant before the read barrier this renewal went through. Never shortens.
    #[must_use]
    pub fn renew(&self, id: i64, barrier_began: Instant) -> Renewal {
        let mut state = self.state();
        let State { leases, expiry } = &mut *state;
        let Some(expiry) = expiry else {
            return Renewal::NotLeading;
        };
        let Some(lease) = leases.get(&id) else {
            return Renewal::Gone;
        };
        expiry.renew(lease, barrier_began)
    }

    /// Whether an expiry or a checkpoint of the lease is proposed and not decided, so that it cannot
    /// be renewed now.
    #[must_use]
    pub fn is_undecided(&self, id: i64) -> bool {
        let state = self.state();
        let expiry = state.expiry.as_ref();
        expiry.is_some_and(|expiry| expiry.is_undecided(id))
    }

    /// What is left of a lease.
    #[must_use]
    pub fn remaining(&self, id: i64, now: Instant) -> Remaining {
        let state = self.state();
        let Some(expiry) = &state.expiry else {
            return Remaining::NotLeading;
        };
        state
            .leases
            .get(&id)
            .map_or(Remaining::Gone, |lease| expiry.remaining(lease, now))
    }

    /// Up to `max` leases whose deadline has passed, soonest first; each is marked expiring, and
    /// the caller owes an outcome: the expiry applies, or [`Lessor::expiry_settled`], or
    /// [`Lessor::demote`]. Leases granted since the last call are armed from `now`.
    #[must_use]
    pub fn due(&self, now: Instant, max: usize) -> Vec<i64> {
        let mut state = self.state();
        let State { leases, expiry } = &mut *state;
        expiry
            .as_mut()
            .map_or_else(Vec::new, |expiry| expiry.due(leases, now, max))
    }

    /// The proposal of these leases' expiry is decided and did not end those that are still there:
    /// renewals of them are answered again, and whatever is still past its deadline is due again at
    /// `retry_at`.
    pub fn expiry_settled(&self, ids: &[i64], retry_at: Instant) {
        if let Some(expiry) = &mut self.state().expiry {
            expiry.settled(ids, retry_at);
        }
        self.announce();
    }

    /// Up to `max` leases that want a checkpoint now, with the whole seconds left (at least 1).
    /// Each counts as checkpointed from here on, and the caller owes
    /// [`Lessor::checkpoints_settled`] once the proposal applied or certainly never will.
    #[must_use]
    pub fn checkpoints_due(&self, now: Instant, max: usize) -> Vec<(i64, i64)> {
        let mut state = self.state();
        let State { leases, expiry } = &mut *state;
        expiry
            .as_mut()
            .map_or_else(Vec::new, |expiry| expiry.checkpoints_due(leases, now, max))
    }

    /// The outcome of these leases' checkpoint proposals is known: applied, or refused before
    /// append.
    pub fn checkpoints_settled(&self, ids: &[i64]) {
        if let Some(expiry) = &mut self.state().expiry {
            expiry.checkpoints_settled(ids);
        }
        self.announce();
    }

    #[cfg(test)]
    pub(super) fn schedule_entries(&self) -> usize {
        self.state()
            .expiry
            .as_ref()
            .map_or(0, Expiry::schedule_entries)
    }

    /// When [`Lessor::due`] or [`Lessor::checkpoints_due`] should be called next: now if leases
    /// were granted that no call has seen, `None` if nothing will ever be due as things stand. May
    /// be earlier than necessary, never later. Look again whenever [`Lessor::changes`] moves.
    #[must_use]
    pub fn next_deadline(&self, now: Instant) -> Option<Instant> {
        self.state()
            .expiry
            .as_ref()
            .and_then(|expiry| expiry.next_deadline(now))
    }
}

impl Default for Lessor {
    fn default() -> Self {
        Self::new([])
    }
}
