//! Old history: decides when to give it up without being asked, removes what was given up, and gives
//! the space back. Run by `bootstrap` as three tasks.

use std::collections::VecDeque;
use std::sync::atomic::Ordering;
use std::time::Duration;

use quorate_proto::Reason;
use quorate_proto::etcdserverpb::CompactionRequest;

use super::Node;
use super::background::changed_since;
use super::read::blocking;
use crate::clock::{self, Instant};
use crate::config::{AutoCompaction, Data};
use crate::error::Result;
use crate::mvcc::compaction;
use crate::storage::kv::KvError;

/// Events looked at by one step of removing history; a step holds up applies for a few ms at most.
const STEP_EVENTS: usize = 1_000;
/// Pause between steps, so that removal takes a fraction of the disk's time.
const STEP_PAUSE: Duration = Duration::from_millis(10);
/// Pause before trying again what failed.
const RETRY_PAUSE: Duration = Duration::from_secs(1);
/// How often it is looked whether writes have become few, and how many entries since the last look are
/// few.
const QUIET_LOOK: Duration = Duration::from_secs(5);
const QUIET_ENTRIES: u64 = 1_000;
/// Less than this is not worth the work.
const GIVE_BACK_BYTES_MIN: u64 = 8 * 1024 * 1024;
/// Looks at the revision within the time that history is kept.
const LOOKS: u32 = 10;
/// Longest time between looks (etcd's).
const LOOK_INTERVAL_MAX: Duration = Duration::from_secs(3_600);
/// Time between looks when history is kept by revisions (etcd's).
const REVISION_LOOK_INTERVAL: Duration = Duration::from_secs(300);

/// Removes what lies behind the compact revision, step by step, on every member by itself.
pub(super) async fn remove(node: Node) {
    let mut applied = node.shared.consensus.applied();
    let mut done = 0;
    loop {
        let compact_revision = node.shared.reader.compact_revision();
        if compact_revision != done {
            match node.remove_compacted().await {
                Ok(()) => {
                    done = compact_revision;
                    node.shared.removed.send_replace(done);
                }
                Err(error) => {
                    tracing::warn!(%error, "cannot remove compacted history, trying again");
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

/// Gives the space of removed history back to the file system. Under a load of writes the storage
/// engine does so by itself, as it merges old data with new; this is for when the load has gone. It
/// writes anew what is left, so it is done only where that was at most half of what is there, where
/// space has run out, and for the first removal after a start, which does not tell how much of what
/// is there is garbage.
pub(super) async fn give_back(node: Node) {
    if node.shared.config.data == Data::Memory {
        return;
    }
    let mut removed = node.shared.removed.subscribe();
    let mut compacted = node.shared.reader.compact_revision();
    // What it takes right after space was given back, and so without removed history.
    let mut clean_bytes = 0;
    while removed.changed().await.is_ok() {
        let done = *removed.borrow_and_update();
        // At the start nothing was removed, only looked.
        if done <= compacted {
            continue;
        }
        compacted = done;
        node.wait_until_quiet().await;
        let Ok(bytes) = node.disk_bytes().await else {
            return;
        };
        let has_doubled = bytes >= clean_bytes * 2 + GIVE_BACK_BYTES_MIN;
        let is_needed = bytes > clean_bytes && node.shared.over_quota.load(Ordering::Relaxed);
        if !has_doubled && !is_needed {
            continue;
        }
        if let Err(error) = node.defragment().await {
            tracing::warn!(%error, "cannot give back the space of removed history");
            continue;
        }
        clean_bytes = node.disk_bytes().await.unwrap_or(clean_bytes);
    }
}

impl Node {
    /// Waits until few writes come.
    async fn wait_until_quiet(&self) {
        let applied = self.shared.consensus.applied();
        let index = || applied.borrow().id.map_or(0, |id| id.index);
        loop {
            let before = index();
            tokio::time::sleep(QUIET_LOOK).await;
            if index().saturating_sub(before) <= QUIET_ENTRIES {
                return;
            }
        }
    }

    /// Waits until this member has removed everything that compaction at `revision` gives up.
    ///
    /// # Errors
    /// The member stops.
    pub(super) async fn removed(&self, revision: i64) -> Result<()> {
        let mut removed = self.shared.removed.subscribe();
        tokio::select! {
            () = self.shared.tasks.cancelled() => Err(Reason::Stopped.into()),
            done = removed.wait_for(|&done| done >= revision) => {
                done.map(drop).map_err(|_| Reason::Stopped.into())
            }
        }
    }

    /// Removes what the compact revision allows.
    async fn remove_compacted(&self) -> Result<()> {
        loop {
            let reader = self.shared.reader.clone();
            let step = move || {
                // One store for the whole step, which tells how far it is itself: between two steps
                // another may have been installed.
                let kv = reader.kv();
                let view = kv.view();
                let Some(cursor) = compaction::pending(&*view)? else {
                    return Ok(false);
                };
                let step = compaction::step(&*view, cursor, STEP_EVENTS)?;
                kv.commit(step.batch)?;
                Ok::<_, KvError>(step.next.is_some())
            };
            let is_more = blocking(step).await?;
            if !is_more {
                return Ok(());
            }
            tokio::time::sleep(STEP_PAUSE).await;
        }
    }
}

/// Gives up history as the settings say, whenever this member leads.
pub(super) async fn give_up(node: Node) {
    let (interval, mode) = match node.shared.config.auto_compaction {
        AutoCompaction::Off => return,
        mode @ AutoCompaction::Periodic(keep) => ((keep / LOOKS).min(LOOK_INTERVAL_MAX), mode),
        mode @ AutoCompaction::Revision(_) => (REVISION_LOOK_INTERVAL, mode),
    };
    let mut seen = Seen::default();
    loop {
        tokio::time::sleep(interval).await;
        let (now, revision) = (clock::now(), node.shared.reader.revision());
        let upto = match mode {
            AutoCompaction::Periodic(keep) => seen.older_than(keep, now, revision),
            AutoCompaction::Revision(keep) => Some(revision - keep),
            AutoCompaction::Off => None,
        };
        let leads = node.shared.consensus.leadership().borrow().ready;
        let compacted = node.shared.reader.compact_revision();
        let Some(upto) = upto.filter(|&upto| leads && upto > compacted) else {
            continue;
        };
        match node
            .compact(CompactionRequest {
                revision: upto,
                physical: false,
            })
            .await
        {
            Ok(_) => tracing::info!(revision = upto, "compacted history"),
            // Somebody else was quicker.
            Err(error) if error.reason() == Reason::Compacted => {}
            Err(error) => tracing::warn!(%error, revision = upto, "cannot compact history"),
        }
    }
}

/// Which revision was current when.
#[derive(Debug, Default)]
struct Seen {
    looks: VecDeque<(Instant, i64)>,
}

impl Seen {
    /// Notes the revision of now, and gives the last one that was current `keep` ago or before.
    fn older_than(&mut self, keep: Duration, now: Instant, revision: i64) -> Option<i64> {
        self.looks.push_back((now, revision));
        let mut old = None;
        while let Some((at, revision)) = self.looks.front().copied() {
            if now - at < keep {
                break;
            }
            old = Some(revision);
            self.looks.pop_front();
        }
        old
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn only_what_was_current_long_enough_ago_is_given_up() {
        let (mut seen, start, keep) = (Seen::default(), clock::now(), Duration::from_secs(10));
        let at = |seconds| start + Duration::from_secs(seconds);
        assert_eq!(seen.older_than(keep, at(0), 100), None);
        assert_eq!(seen.older_than(keep, at(5), 200), None);
        assert_eq!(seen.older_than(keep, at(10), 300), Some(100));
        assert_eq!(
            seen.older_than(keep, at(14), 400),
            None,
            "it was given up already"
        );
        assert_eq!(seen.older_than(keep, at(25), 500), Some(400));
    }
}
