//! The kinds of faults, and how often each came.

use quorate_recipes::store::faulty::FaultCounts;

/// What the nemesis does, beside faults of single calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trouble {
    /// Watches end, and what they missed is compacted, perhaps several times in a row.
    Resync,
    /// The store loses a lease.
    LeaseLoss,
    /// A client's clock stands still for longer than its lease lives.
    StoppedClock,
    /// All watches end, calls fail for a while, and all leases get their full time again.
    LeaderChange,
    /// A client cannot reach the store for a while.
    Disconnection,
    /// A client drops a future in the middle.
    DroppedFuture,
}

impl Trouble {
    const NAMES: [&'static str; 6] = [
        "resync",
        "lease loss",
        "stopped clock",
        "leader change",
        "disconnection",
        "dropped future",
    ];
}

/// How often each fault came.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Faults {
    /// Of single calls.
    pub calls: FaultCounts,
    /// Watches that were told that what they missed is compacted.
    pub compacted: u64,
    troubles: [u64; 6],
}

impl Faults {
    pub(crate) fn count(&mut self, trouble: Trouble) {
        self.troubles[trouble as usize] += 1;
    }

    /// How often the nemesis struck.
    #[must_use]
    pub fn strikes(&self) -> u64 {
        let all: u64 = self.troubles.iter().sum();
        all - self.troubles[Trouble::DroppedFuture as usize]
    }

    /// Each kind with its name, always in the same order.
    pub fn by_kind(&self) -> impl Iterator<Item = (&'static str, u64)> {
        // An answered call that is applied again is more than a store may do.
        let calls = self.calls.by_kind().into_iter();
        let calls = calls.filter(|(kind, _)| *kind != "duplicate");
        let troubles = Trouble::NAMES.into_iter().zip(self.troubles);
        calls
            .chain(troubles)
            .chain([("compacted watch", self.compacted)])
    }
}
