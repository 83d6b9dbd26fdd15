//! How much of the log is kept: enough for followers that lag, and no more than the disk should
//! hold. One task, started by `consensus`, which makes the state durable and then purges.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use openraft::Instant as _;
use openraft::async_runtime::watch::WatchReceiver as _;
use tokio::time::MissedTickBehavior;

use crate::failpoint;
use crate::raft::consensus::Raft;
use crate::raft::machine::Machine;
use crate::storage::snapshot::Stores;
use crate::storage::wal::Wal;

/// How often it is looked whether something can go.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);

/// Looks after which a view kept for sending is let go of, if nobody sends it, and files of
/// replaced stores are removed: one minute. Transfers that are retried come sooner.
const LOOKS_UNTIL_CLEANUP: u32 = 60;

/// How long the state may take to become durable before the next look tries again.
const PERSIST_TIMEOUT: Duration = Duration::from_secs(60);

/// What to keep.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    /// Applied entries kept for followers that lag. One that needs older ones gets a snapshot.
    pub(super) catch_up_entries: u64,
    /// Size of the log on disk, in bytes, from which older entries go even if fewer are kept.
    pub(super) log_bytes_max: u64,
}

/// The snapshots on their way to members, by member: the index each ends at, and whether it is still
/// being sent. Cheap to clone; told by `network`. What such a member needs next must not go
/// meanwhile, or the snapshot is outdated when it is there, and so is the next.
#[derive(Debug, Clone, Default)]
pub(super) struct Transfers {
    under_way: Arc<Mutex<BTreeMap<u64, Transfer>>>,
}

#[derive(Debug, Clone, Copy)]
struct Transfer {
    index: u64,
    is_over: bool,
}

/// A snapshot that is being sent, until this is dropped.
#[derive(Debug)]
pub(super) struct Sending {
    transfers: Transfers,
    target: u64,
}

impl Transfers {
    /// A snapshot up to `index` is on its way to `target`.
    pub(super) fn begin(&self, target: u64, index: u64) -> Sending {
        let is_over = false;
        self.lock().insert(target, Transfer { index, is_over });
        let transfers = self.clone();
        Sending { transfers, target }
    }

    /// Up to which index the log may go for those who receive one, and for those who have received
    /// one as long as they `lag` behind what is kept anyway.
    fn needed(&self, lags: impl Fn(u64) -> bool) -> Option<u64> {
        let mut under_way = self.lock();
        under_way.retain(|target, transfer| !transfer.is_over || lags(*target));
        under_way.values().map(|transfer| transfer.index).min()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<u64, Transfer>> {
        // Every section leaves the map whole.
        self.under_way
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Sending {
    fn drop(&mut self) {
        if let Some(transfer) = self.transfers.lock().get_mut(&self.target) {
            transfer.is_over = true;
        }
    }
}

/// What there is.
#[derive(Debug, Clone, Copy)]
struct Held {
    /// The last purged index, if any.
    purged: Option<u64>,
    /// The last applied index.
    applied: u64,
    /// The log on disk, in bytes.
    log_bytes: u64,
    /// The lowest index known to be on a follower that is alive and within the catch-up window.
    slowest: Option<u64>,
    /// Where the oldest snapshot ends that is on its way, or whose receiver lags behind the window.
    sent: Option<u64>,
}

impl Limits {
    /// Up to which index to purge now, if it is worth it.
    fn purge_upto(&self, held: Held) -> Option<u64> {
        let first = held.purged.map_or(0, |purged| purged + 1);
        let window = held.applied.checked_sub(self.catch_up_entries);
        let upto = if held.log_bytes > self.log_bytes_max {
            // Twice too much: not even a slow follower holds the disk hostage.
            let slowest = held.slowest.into_iter().chain(held.sent).min();
            let slowest = slowest.filter(|_| held.log_bytes <= 2 * self.log_bytes_max);
            let wanted = slowest.unwrap_or(held.applied).min(held.applied);
            return (wanted >= first).then_some(wanted);
        } else {
            window?.min(held.sent.unwrap_or(u64::MAX))
        };
        // Purging costs a sync of the state: only do it for a good part of the window.
        let batch = (self.catch_up_entries / 10).max(1);
        (upto + 1 >= first + batch).then_some(upto)
    }
}

/// The task's parts.
#[derive(Debug)]
pub(super) struct Retention {
    pub(super) raft: Raft,
    pub(super) machine: Machine,
    pub(super) stores: Stores,
    pub(super) wal: Wal,
    pub(super) limits: Limits,
    pub(super) transfers: Transfers,
    pub(super) election_timeout: Duration,
}

impl Retention {
    /// Looks regularly until it is dropped.
    pub(super) async fn run(self) {
        let mut looks = tokio::time::interval(LOOK_INTERVAL);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut until_cleanup = LOOKS_UNTIL_CLEANUP;
        loop {
            looks.tick().await;
            if let Some(upto) = self.limits.purge_upto(self.held()) {
                self.purge(upto).await;
            }
            until_cleanup -= 1;
            if until_cleanup == 0 {
                until_cleanup = LOOKS_UNTIL_CLEANUP;
                self.clean_up().await;
            }
        }
    }

    /// Makes the state durable, then purges the log up to `upto`, or as far as the durable state
    /// allows.
    pub(super) async fn purge(&self, upto: u64) {
        if self.raft.trigger().snapshot().await.is_err() {
            return;
        }
        let wait = self.raft.wait(Some(PERSIST_TIMEOUT));
        let persisted = wait.metrics(
            |metrics| {
                let snapshot = metrics.snapshot.map(|id| id.index);
                snapshot >= Some(upto) || metrics.running_state.is_err()
            },
            "state is durable",
        );
        match persisted.await {
            Ok(_) => {
                tracing::debug!(upto, "purging the log");
                failpoint::reach("purge: state durable");
                // It stops if openraft has stopped, and then there is nothing to purge.
                drop(self.raft.trigger().purge_log(upto).await);
            }
            Err(error) => tracing::warn!(%error, upto, "the log is not purged"),
        }
    }

    fn held(&self) -> Held {
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow_watched();
        let applied = metrics.last_applied.map_or(0, |id| id.index);
        let oldest = applied.saturating_sub(self.limits.catch_up_entries);
        let alive = metrics
            .replication
            .iter()
            .flatten()
            .filter_map(|(id, matched)| {
                let matched = matched.map_or(0, |id| id.index);
                let heard = metrics.heartbeat.as_ref()?.get(id)?.as_ref()?;
                let is_alive = heard.elapsed() < self.election_timeout * 10;
                is_alive.then_some((*id, matched))
            });
        let alive: BTreeMap<u64, u64> = alive.collect();
        let slowest = alive.values().copied().filter(|matched| *matched >= oldest);
        let lags = |target| alive.get(&target).is_some_and(|matched| *matched < oldest);
        Held {
            purged: metrics.purged.map(|id| id.index),
            applied,
            log_bytes: self.wal.disk_bytes(),
            slowest: slowest.min(),
            sent: self.transfers.needed(lags),
        }
    }

    async fn clean_up(&self) {
        let stores = self.stores.clone();
        let unpinned = self.machine.run(|worker| {
            worker.unpin();
            Ok(())
        });
        if unpinned.await.is_err() {
            return;
        }
        let removed = tokio::task::spawn_blocking(move || stores.remove_stale()).await;
        if let Ok(Err(error)) = removed {
            tracing::warn!(%error, "files of a replaced store stay");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: Limits = Limits {
        catch_up_entries: 100,
        log_bytes_max: 1_000,
    };

    fn held(purged: Option<u64>, applied: u64, log_bytes: u64, slowest: Option<u64>) -> Held {
        Held {
            purged,
            applied,
            log_bytes,
            slowest,
            sent: None,
        }
    }

    #[test]
    fn what_comes_after_a_snapshot_on_its_way_is_kept() {
        let transfers = Transfers::default();
        let held = |applied, log_bytes, lags: bool| Held {
            sent: transfers.needed(|_| lags),
            ..held(Some(9), applied, log_bytes, None)
        };
        let sending = transfers.begin(2, 50);
        assert_eq!(LIMITS.purge_upto(held(500, 10, false)), Some(50));
        assert_eq!(LIMITS.purge_upto(held(500, 1_001, false)), Some(50));
        assert_eq!(LIMITS.purge_upto(held(500, 2_001, false)), Some(500));
        drop(sending);
        assert_eq!(LIMITS.purge_upto(held(500, 10, true)), Some(50));
        assert_eq!(LIMITS.purge_upto(held(500, 10, false)), Some(400));
        let other = transfers.begin(3, 60);
        let again = transfers.begin(2, 490);
        assert_eq!(LIMITS.purge_upto(held(500, 10, false)), Some(60));
        drop((other, again));
    }

    #[test]
    fn what_lagging_followers_may_need_is_kept() {
        assert_eq!(LIMITS.purge_upto(held(None, 0, 10, None)), None);
        assert_eq!(LIMITS.purge_upto(held(None, 100, 10, None)), None);
        assert_eq!(LIMITS.purge_upto(held(None, 108, 10, None)), None);
        assert_eq!(LIMITS.purge_upto(held(None, 109, 10, None)), Some(9));
        assert_eq!(LIMITS.purge_upto(held(Some(9), 118, 10, None)), None);
        assert_eq!(
            LIMITS.purge_upto(held(Some(9), 119, 10, Some(30))),
            Some(19)
        );
    }

    #[test]
    fn a_log_too_large_for_its_disk_goes_up_to_what_live_followers_need() {
        assert_eq!(LIMITS.purge_upto(held(None, 50, 1_001, None)), Some(50));
        assert_eq!(LIMITS.purge_upto(held(None, 50, 1_001, Some(20))), Some(20));
        assert_eq!(LIMITS.purge_upto(held(Some(20), 50, 1_001, Some(20))), None);
        assert_eq!(
            LIMITS.purge_upto(held(Some(20), 50, 1_001, Some(70))),
            Some(50)
        );
    }

    #[test]
    fn a_log_far_too_large_waits_for_nobody() {
        assert_eq!(LIMITS.purge_upto(held(None, 50, 2_001, Some(20))), Some(50));
        assert_eq!(LIMITS.purge_upto(held(Some(50), 50, 2_001, None)), None);
    }
}
