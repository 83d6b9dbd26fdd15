//! Leases: what is granted (replicated, changed only by `apply`) and, on the leader, when each one
//! runs out (volatile, on the monotonic clock). Used by `apply`, which owns the table, and by
//! `node`, which renews, expires and checkpoints.
//!
//! The two halves live behind one [`Lessor`] because each change of the first must be seen by the
//! second at once. Nothing here reads the clock, proposes or waits for consensus: instants come in
//! as arguments, and what must go through the log is handed out as ids.
//!
//! What a leader does, and what it must never do:
//!
//! - A renewal answers a TTL only after a read barrier that began after the renewal arrived; its
//!   deadline counts from the instant *before* that barrier.
//! - Once an expiry is proposed the lease is *expiring*: no renewal is answered until the outcome
//!   is known.
//! - Once a checkpoint is proposed the lease is *checkpointed*: no renewal is answered before a
//!   clearing of the checkpoint applied, or the next leader would count from the old remainder.

mod expiry;
mod lessor;

#[cfg(test)]
mod tests;

pub use expiry::{Remaining, Renewal};
pub use lessor::{Change, Lease, Lessor};

/// Largest time to live a client may ask for, in seconds (etcd's limit).
pub const TTL_SECONDS_MAX: i64 = 9_000_000_000;
