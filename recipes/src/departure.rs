//! How somebody went who was there under a lease: told by the registry and by membership.

/// How somebody went.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Departure {
    /// It said that it leaves.
    Clean,
    /// Its key went without a word: its lease ran out, or somebody deleted the key.
    Expired,
    /// It went while this observer was cut off from the store for so long that it is not known how, or between two
    /// looks between which so many went that not all are remembered.
    Unseen,
}
