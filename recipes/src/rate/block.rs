//! The permits of one grant, in the process that got it: how many are left, and how long they may be
//! used.

use std::time::Duration;

use crate::client::Client;
use crate::clock::Instant;

/// Permits of one grant. A permit may be used while the grant's lease is certain to have a whole
/// window left; so the time counts from the moment the lease was *asked for*, with a tenth taken off
/// for clocks that run at different rates.
#[derive(Debug)]
pub(super) struct Block {
    left: u32,
    asked: Instant,
    suspended: Duration,
    usable: Duration,
}

impl Block {
    /// A block whose lease is asked for now, and lives longer than a window by `usable`.
    pub(super) fn asked_now(client: &Client, permits: u32, usable: Duration) -> Self {
        Self {
            left: permits,
            asked: client.now(),
            suspended: client.clock().suspended(),
            usable: usable - usable / 10,
        }
    }

    /// Whether permits may be taken now. The monotonic clock stands still while the machine sleeps, and
    /// a lease does not.
    pub(super) fn is_usable(&self, client: &Client) -> bool {
        self.left > 0 && self.age(client) < self.usable
    }

    /// Time since its lease was asked for.
    pub(super) fn age(&self, client: &Client) -> Duration {
        let awake = client.now().saturating_duration_since(self.asked);
        let slept = client.clock().suspended().saturating_sub(self.suspended);
        awake + slept
    }

    /// When it ends, if the machine does not sleep until then.
    pub(super) fn ends(&self) -> Instant {
        self.asked + self.usable
    }

    pub(super) fn left(&self) -> u32 {
        self.left
    }

    /// Takes as many of `wanted` as there are.
    pub(super) fn take(&mut self, wanted: u32) -> u32 {
        let taken = wanted.min(self.left);
        self.left -= taken;
        taken
    }
}
