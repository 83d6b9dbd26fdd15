//! What a balancer knows about one incarnation of an instance, from its first view of it to its last.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::ejection::Health;
use super::grpc::Line;
use super::latency::Latency;
use crate::hash::fnv1a;
use crate::keys::Revision;

/// One incarnation of an instance: the same id, registered once. Kept while it is in the view or a pick
/// of it is outstanding. Times count from the balancer's start.
#[derive(Debug)]
pub(super) struct Incarnation {
    pub(super) id: String,
    pub(super) created: Revision,
    /// Of the id: the same in every process.
    pub(super) hash: u64,
    /// When it was first seen; `None` for those that were there before the balancer.
    pub(super) joined: Option<Duration>,
    outstanding: AtomicU32,
    /// Nanoseconds; 0 or past: it is not ejected.
    ejected_until: AtomicU64,
    health: Mutex<Health>,
    latency: Mutex<Latency>,
    /// Where calls are balanced: the connection to it.
    line: Mutex<Option<Line>>,
}

impl Incarnation {
    pub(super) fn new(id: &str, created: Revision, joined: Option<Duration>) -> Self {
        Self {
            id: id.to_owned(),
            created,
            hash: fnv1a(id.as_bytes()),
            joined,
            outstanding: AtomicU32::new(0),
            ejected_until: AtomicU64::new(0),
            health: Mutex::default(),
            latency: Mutex::default(),
            line: Mutex::default(),
        }
    }

    pub(super) fn outstanding(&self) -> u32 {
        self.outstanding.load(Ordering::Relaxed)
    }

    pub(super) fn begin(&self) {
        self.outstanding.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn end(&self) {
        self.outstanding.fetch_sub(1, Ordering::Relaxed);
    }

    pub(super) fn is_ejected(&self, now: Duration) -> bool {
        nanos(now) < self.ejected_until.load(Ordering::Relaxed)
    }

    /// For how long it is ejected yet.
    pub(super) fn ejected_for(&self, now: Duration) -> Option<Duration> {
        let until = Duration::from_nanos(self.ejected_until.load(Ordering::Relaxed));
        until.checked_sub(now).filter(|left| !left.is_zero())
    }

    pub(super) fn set_ejected_until(&self, until: Duration) {
        self.ejected_until.store(nanos(until), Ordering::Relaxed);
    }

    pub(super) fn health(&self) -> MutexGuard<'_, Health> {
        self.health.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn line(&self) -> MutexGuard<'_, Option<Line>> {
        self.line.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn latency(&self) -> MutexGuard<'_, Latency> {
        self.latency.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Nanoseconds, which last for five centuries.
pub(super) fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}
