//! How a balancer chooses: what its user picks from. `chooser` does what is said here.

use std::time::Duration;

use super::own::{Choice, Choices, Own};

/// Outstanding picks per unit of weight at which an instance nearby counts as busy, unless told otherwise.
const BUSY: u32 = 64;

/// Keys that a sticky policy remembers, unless told otherwise.
const KEYS: usize = 10_000;

/// Most keys that a sticky policy remembers. Room for all is made at the start.
const KEYS_MOST: usize = 10_000_000;

/// How fast a peak of the latency is forgotten, unless told otherwise.
const DECAY: Duration = Duration::from_secs(10);

/// How to choose an instance. Weights count everywhere except in [`Policy::round_robin`].
#[derive(Debug, Clone, Default)]
pub struct Policy(pub(super) Kind);

#[derive(Debug, Clone, Default)]
pub(super) enum Kind {
    RoundRobin,
    WeightedRoundRobin,
    Random,
    #[default]
    LeastOutstanding,
    PeakEwma(Duration),
    ConsistentHash(f64),
    Own(Own),
    Sticky {
        keys: usize,
        over: Box<Kind>,
    },
    Near {
        zone: String,
        busy: u32,
        over: Box<Kind>,
    },
}

impl Policy {
    /// Of two drawn by weight, the one with fewer picks outstanding for its weight (Mitzenmacher, "The
    /// power of two choices in randomized load balancing", 2001). The default.
    #[must_use]
    pub fn least_outstanding() -> Self {
        Self(Kind::LeastOutstanding)
    }

    /// Of two drawn by weight, the one with the smaller product of latency and picks outstanding. The
    /// latency rises to a peak at once and comes down slowly, in 10 s to about a third, as in Finagle's
    /// balancer of that name. It is measured from a pick to the end of it.
    #[must_use]
    pub fn peak_ewma() -> Self {
        Self(Kind::PeakEwma(DECAY))
    }

    /// As [`Policy::peak_ewma`], coming down to about a third in `decay`.
    #[must_use]
    pub fn peak_ewma_within(decay: Duration) -> Self {
        Self(Kind::PeakEwma(decay))
    }

    /// One after the other by id, whatever their weights.
    #[must_use]
    pub fn round_robin() -> Self {
        Self(Kind::RoundRobin)
    }

    /// In turn, each as often as its weight says, spread out as evenly as that goes.
    #[must_use]
    pub fn weighted_round_robin() -> Self {
        Self(Kind::WeightedRoundRobin)
    }

    /// Any, each as likely as its weight says.
    #[must_use]
    pub fn random() -> Self {
        Self(Kind::Random)
    }

    /// The same instance for the same key, as long as it has no more than 1.25 times its fair part of
    /// what is outstanding. See [`Policy::consistent_hash_within`].
    #[must_use]
    pub fn consistent_hash() -> Self {
        Self::consistent_hash_within(1.25)
    }

    /// The same instance for the same key, in every process, as long as it has no more than `bound`
    /// times its fair part, by weight, of this balancer's outstanding picks; then the next in the key's
    /// own order. A bound below 1 counts as 1, infinity as none. Picks without a key draw one.
    #[must_use]
    pub fn consistent_hash_within(bound: f64) -> Self {
        Self(Kind::ConsistentHash(bound.max(1.0)))
    }

    /// As `choose` says. It is called for every pick for which there are instances to choose from, in the picking
    /// thread: it must not wait, nor pick from the same balancer. When all are ejected, it is as with other policies.
    ///
    /// ```
    /// # use quorate_recipes::balance::Policy;
    /// // The first is filled with 10 calls before the next is used, and so on; then the least busy one.
    /// let policy = Policy::own(|among| {
    ///     let free = among.iter().find(|one| one.outstanding() < 10);
    ///     free.unwrap_or_else(|| among.cheapest(|one| one.outstanding()))
    /// });
    /// ```
    #[must_use]
    pub fn own(
        choose: impl for<'a> Fn(&Choices<'a>) -> Choice<'a> + Send + Sync + 'static,
    ) -> Self {
        Self(Kind::Own(Own::new(choose)))
    }

    /// Chooses by this policy once for each key, and keeps to that instance until it is gone, takes no
    /// work any more or is ejected. Picks without a key are of one key. 10,000 keys are remembered, then one
    /// that was not used lately is forgotten.
    #[must_use]
    pub fn sticky(self) -> Self {
        self.sticky_for(KEYS)
    }

    /// As [`Policy::sticky`], remembering so many keys, 1 to 10,000,000. Room for all is made at the
    /// start, about 70 bytes a key.
    #[must_use]
    pub fn sticky_for(self, keys: usize) -> Self {
        Self(Kind::Sticky {
            keys: keys.clamp(1, KEYS_MOST),
            over: Box::new(self.0),
        })
    }

    /// Chooses by this policy among the instances of `zone`, and among the others when none is there, or
    /// when the one chosen has 64 picks outstanding for each unit of its weight and the one chosen
    /// elsewhere has fewer.
    #[must_use]
    pub fn near(self, zone: impl Into<String>) -> Self {
        self.near_until(zone, BUSY)
    }

    /// As [`Policy::near`], with so many picks outstanding for each unit of weight.
    #[must_use]
    pub fn near_until(self, zone: impl Into<String>, busy: u32) -> Self {
        Self(Kind::Near {
            zone: zone.into(),
            busy,
            over: Box::new(self.0),
        })
    }
}

impl Kind {
    /// How fast a latency is forgotten, where it is measured.
    pub(super) fn decay(&self) -> Option<Duration> {
        match self {
            Self::PeakEwma(decay) => Some(*decay),
            Self::Sticky { over, .. } | Self::Near { over, .. } => over.decay(),
            _ => None,
        }
    }
}
