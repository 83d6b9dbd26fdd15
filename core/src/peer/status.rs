//! What is known of each peer's connection: for operators, and for what depends on reachability.

use std::time::Duration;

use uuid::Uuid;

use crate::clock::Instant;

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
    /// Appends and requests sent and not answered.
    pub in_flight: usize,
    /// Messages refused because a buffer was full, since start.
    pub dropped: u64,
    /// How often the outgoing stream came up, since start.
    pub connects: u64,
    /// Why the stream is, or last was, down.
    pub last_error: Option<String>,
    /// The incarnation the peer showed in its latest handshake.
    pub incarnation: Option<Uuid>,
    /// The process start the peer showed in its latest handshake.
    pub boot: Option<Uuid>,
}
