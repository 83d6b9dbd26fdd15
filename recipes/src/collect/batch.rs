//! What agents publish.

use serde::{Deserialize, Serialize};

/// Lines of one source that follow one another.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Batch {
    /// Where the lines come from.
    pub source: String,
    /// Which run of the agent gathered them: numbers begin anew with each.
    pub run: String,
    /// The number of the first line, from 0 on.
    pub first: u64,
    /// The lines.
    #[serde(with = "super::packed")]
    pub lines: Vec<String>,
}

impl Batch {
    /// The number of the first line behind it.
    #[must_use]
    pub fn end(&self) -> u64 {
        self.first + self.count()
    }

    pub(super) fn count(&self) -> u64 {
        u64::try_from(self.lines.len()).unwrap_or(u64::MAX)
    }
}
