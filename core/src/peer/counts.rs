//! What is counted of a peer's connection: round trips by length, snapshots by outcome. Used by
//! `status`, and by metrics, which show them under etcd's names.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Bounds of [`RoundTrips::counts`]: 0.1 ms, and twice as much each, as etcd's.
const BOUNDS: usize = 16;

/// Round trips by how long they took, since the peer was added.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RoundTrips {
    counts: [u64; BOUNDS + 1],
    sum: Duration,
}

impl RoundTrips {
    /// Upper bounds in seconds, each inclusive, with how many round trips fell below it and above the
    /// one before; the last bound is infinite.
    #[must_use]
    pub fn buckets(&self) -> Vec<(f64, u64)> {
        let finite = (0..).map(|i| bound(i).as_secs_f64()).take(BOUNDS);
        let bounds = finite.chain([f64::INFINITY]);
        bounds.zip(self.counts).collect()
    }

    /// How many there were.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.counts.iter().sum()
    }

    /// How long they took together.
    #[must_use]
    pub fn sum(&self) -> Duration {
        self.sum
    }

    pub(super) fn add(&mut self, took: Duration) {
        let bucket = (0..).take(BOUNDS).position(|i| took <= bound(i));
        self.counts[bucket.unwrap_or(BOUNDS)] += 1;
        self.sum += took;
    }
}

fn bound(i: u32) -> Duration {
    Duration::from_micros(100) * 2_u32.pow(i)
}

/// Snapshots that went one way, by outcome, since the process or the peer began.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct TransferCounts {
    /// On their way.
    pub under_way: u64,
    /// Arrived, and installed there.
    pub succeeded: u64,
    /// Given up.
    pub failed: u64,
}

/// Counts snapshots.
#[derive(Debug, Default)]
pub(super) struct Transfers {
    began: AtomicU64,
    succeeded: AtomicU64,
    failed: AtomicU64,
}

impl Transfers {
    /// Counts one that begins; it counts as given up when what this returns is dropped before it was
    /// told of its success.
    pub(super) fn begin(self: &Arc<Self>) -> Transfer {
        self.began.fetch_add(1, Ordering::Relaxed);
        Transfer(Some(Arc::clone(self)))
    }

    pub(super) fn counts(&self) -> TransferCounts {
        let succeeded = self.succeeded.load(Ordering::Acquire);
        let failed = self.failed.load(Ordering::Acquire);
        // Read last: all that ended had begun.
        let began = self.began.load(Ordering::Relaxed);
        TransferCounts {
            under_way: began - succeeded - failed,
            succeeded,
            failed,
        }
    }
}

/// One snapshot on its way.
#[derive(Debug)]
pub(super) struct Transfer(Option<Arc<Transfers>>);

impl Transfer {
    pub(super) fn succeeded(mut self) {
        if let Some(transfers) = self.0.take() {
            transfers.succeeded.fetch_add(1, Ordering::Release);
        }
    }
}

impl Drop for Transfer {
    fn drop(&mut self) {
        if let Some(transfers) = self.0.take() {
            transfers.failed.fetch_add(1, Ordering::Release);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn round_trips_fall_into_etcds_buckets() {
        let mut trips = RoundTrips::default();
        for micros in [1, 100, 101, 3_276_800, 3_276_801, 60_000_000] {
            trips.add(Duration::from_micros(micros));
        }
        let buckets = trips.buckets();
        assert_eq!(buckets.len(), 17);
        assert_eq!(buckets[0], (0.0001, 2));
        assert_eq!(buckets[1], (0.0002, 1));
        assert_eq!(buckets[15], (3.2768, 1));
        assert_eq!(buckets[16], (f64::INFINITY, 2));
        assert_eq!(trips.count(), 6);
        assert_eq!(trips.sum(), Duration::from_micros(66_553_803));
    }

    #[test]
    fn a_snapshot_that_is_dropped_is_given_up() {
        let transfers = Arc::new(Transfers::default());
        let (first, second) = (transfers.begin(), transfers.begin());
        assert_eq!(transfers.counts().under_way, 2);
        first.succeeded();
        drop(second);
        let expected = TransferCounts {
            under_way: 0,
            succeeded: 1,
            failed: 1,
        };
        assert_eq!(transfers.counts(), expected);
    }
}
