//! Barriers. [`Barrier`] keeps others waiting while anybody keeps it closed; [`DoubleBarrier`] and
//! [`CyclicBarrier`] let a fixed number of members go on together.
//!
//! `gate` is the first; `generation` is what the other two store and how it changes, `assembly` how
//! members arrive, wait and withdraw, `double` and `cyclic` what that looks like.

mod assembly;
mod cyclic;
mod double;
mod gate;
mod generation;
#[cfg(test)]
mod tests;

pub use assembly::Gathering;
pub use cyclic::{CyclicBarrier, Passed};
pub use double::{DoubleBarrier, Entered};
pub use gate::{Barrier, BarrierHold};

use crate::client::Client;

impl Client {
    /// The barrier of this name: others wait while it is held or set.
    #[must_use]
    pub fn barrier(&self, name: impl Into<String>) -> Barrier {
        Barrier::new(self.clone(), &name.into())
    }

    /// The double barrier of this name: `parties` enter together, and leave together.
    #[must_use]
    pub fn double_barrier(&self, name: impl Into<String>, parties: u32) -> DoubleBarrier {
        DoubleBarrier::new(self.clone(), &name.into(), parties)
    }

    /// The cyclic barrier of this name: each time `parties` have come, they go on together.
    #[must_use]
    pub fn cyclic_barrier(&self, name: impl Into<String>, parties: u32) -> CyclicBarrier {
        CyclicBarrier::new(self.clone(), &name.into(), parties)
    }
}
