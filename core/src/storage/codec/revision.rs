//! A position in the history of the key space.

use std::fmt;

/// `main` counts transactions that changed the key space, `sub` the changes inside one.
/// Both are never negative. Orders by `main`, then `sub`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Revision {
    /// The cluster-wide revision; that of a fresh store is 1, its first change has 2.
    pub main: i64,
    /// The change's number in its transaction, from 0.
    pub sub: i64,
}

impl Revision {
    /// The revision `main` with `sub`.
    #[must_use]
    pub const fn new(main: i64, sub: i64) -> Revision {
        Revision { main, sub }
    }
}

impl fmt::Display for Revision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.main, self.sub)
    }
}
