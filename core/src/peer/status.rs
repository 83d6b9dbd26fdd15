//! What is known of each peer's connection: for operators, and for what depends on reachability.
//! State changes are logged here, each once.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tracing::{debug, info, warn};
use uuid::Uuid;

use super::counts::{RoundTrips, TransferCounts, Transfers};
use crate::clock::{self, Instant};

/// Whether the outgoing stream to a peer is up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activity {
    /// Up since this instant.
    Active(Instant),
    /// Down since this instant.
    Inactive(Instant),
}

/// A snapshot of one peer's connection.
#[derive(Debug, Clone)]
pub struct PeerStatus {
    /// Member id.
    pub id: u64,
    /// Name, for people.
    pub name: String,
    /// Where it is reached, tried in turn.
    pub urls: Vec<String>,
    /// Whether the outgoing stream is up.
    pub activity: Activity,
    /// Whether the peer's own stream to this member is up.
    pub incoming: bool,
    /// Round trip of the latest ping over the stream.
    pub rtt: Option<Duration>,
    /// All round trips of pings, since the peer was added.
    pub round_trips: RoundTrips,
    /// Appends and requests sent and not answered.
    pub in_flight: usize,
    /// Messages refused because a buffer was full, since the peer was added.
    pub dropped: u64,
    /// How often the outgoing stream came up, since the peer was added.
    pub connects: u64,
    /// How often it went down again.
    pub disconnects: u64,
    /// Snapshots sent to it, since the peer was added.
    pub snapshots: TransferCounts,
    /// Why the stream is, or last was, down.
    pub last_error: Option<String>,
    /// The incarnation the peer showed in its latest handshake.
    pub incarnation: Option<Uuid>,
    /// The process start the peer showed in its latest handshake.
    pub boot: Option<Uuid>,
}

#[derive(Debug)]
struct State {
    activity: Activity,
    rtt: Option<Duration>,
    round_trips: RoundTrips,
    last_error: Option<String>,
}

/// The changing part of a peer's status.
#[derive(Debug)]
pub(super) struct StatusCell {
    peer: u64,
    state: Mutex<State>,
    dropped: AtomicU64,
    connects: AtomicU64,
    disconnects: AtomicU64,
    snapshots: Arc<Transfers>,
}

impl StatusCell {
    pub(super) fn new(peer: u64) -> Self {
        Self {
            peer,
            state: Mutex::new(State {
                activity: Activity::Inactive(clock::now()),
                rtt: None,
                round_trips: RoundTrips::default(),
                last_error: None,
            }),
            dropped: AtomicU64::new(0),
            connects: AtomicU64::new(0),
            disconnects: AtomicU64::new(0),
            snapshots: Arc::default(),
        }
    }

    pub(super) fn up(&self, url: &str) {
        self.connects.fetch_add(1, Ordering::Relaxed);
        let mut state = self.lock();
        state.activity = Activity::Active(clock::now());
        info!(peer = self.peer, url, "peer stream up");
    }

    pub(super) fn down(&self, why: &str) {
        let mut state = self.lock();
        let was_up = matches!(state.activity, Activity::Active(_));
        if was_up {
            self.disconnects.fetch_add(1, Ordering::Relaxed);
            state.activity = Activity::Inactive(clock::now());
            state.rtt = None;
        }
        if was_up || state.last_error.is_none() {
            warn!(peer = self.peer, why, "peer stream down");
        } else if state.last_error.as_deref() != Some(why) {
            debug!(peer = self.peer, why, "peer stream still down");
        }
        state.last_error = Some(why.to_owned());
    }

    pub(super) fn round_trip(&self, rtt: Duration) {
        let mut state = self.lock();
        state.rtt = Some(rtt);
        state.round_trips.add(rtt);
    }

    /// What counts the snapshots sent.
    pub(super) fn snapshots(&self) -> &Arc<Transfers> {
        &self.snapshots
    }

    /// Counts a refused message.
    pub(super) fn drop_one(&self) {
        let before = self.dropped.fetch_add(1, Ordering::Relaxed);
        debug!(peer = self.peer, dropped = before + 1, "buffer full");
    }

    /// Fills in the changing part of `status`.
    pub(super) fn fill(&self, status: &mut PeerStatus) {
        let state = self.lock();
        status.activity = state.activity;
        status.rtt = state.rtt;
        status.round_trips.clone_from(&state.round_trips);
        status.last_error.clone_from(&state.last_error);
        status.dropped = self.dropped.load(Ordering::Relaxed);
        status.connects = self.connects.load(Ordering::Relaxed);
        status.disconnects = self.disconnects.load(Ordering::Relaxed);
        status.snapshots = self.snapshots.counts();
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Every section leaves the state whole, so a panic elsewhere does not spoil it.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
