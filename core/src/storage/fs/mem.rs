//! [`MemFs`]: files in memory.

/// A file system in memory. Clones are the same file system.
#[derive(Clone, Debug, Default)]
pub struct MemFs;

impl MemFs {
    /// An empty file system that keeps nothing for power cuts.
    #[must_use]
    pub fn new() -> Self {
        Self
    }
}
