//! The cyclic barrier: each time a fixed number has come, they go on together, and the next
//! generation begins.

use super::assembly::{Assembly, Gathering};
use crate::client::Client;
use crate::error::Result;
use crate::lock::Holder;
use crate::session::Session;

/// A barrier that a fixed number of members pass together, again and again. A handle: cheap to clone,
/// holds nothing.
///
/// Exactly as many pass a generation as are its parties, and all of them were alive when it opened. A
/// member that ends before breaks the generation for all who came to it; the next one begins afresh.
#[derive(Debug, Clone)]
pub struct CyclicBarrier {
    assembly: Assembly,
}

/// A generation that was passed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Passed {
    /// Which one: the first is 1. Broken ones count.
    pub generation: u64,
    /// Which of its members this one was: each of `0..parties` is one. Choose one, say 0, for what
    /// one of them shall do.
    pub index: u32,
}

impl CyclicBarrier {
    pub(super) fn new(client: Client, name: &str, parties: u32) -> Self {
        Self {
            assembly: Assembly::new(client, "cyclic-barrier", name, parties),
        }
    }

    /// What [`CyclicBarrier::members`] shows for members that come by this handle.
    #[must_use]
    pub fn with_info(mut self, info: impl Into<String>) -> Self {
        self.assembly.info = info.into();
        self
    }

    /// The prefix of the barrier's keys.
    #[must_use]
    pub fn prefix(&self) -> &str {
        self.assembly.prefix()
    }

    /// Comes to the generation that gathers, and waits until all have come. The last one opens it in
    /// the transaction of its coming.
    ///
    /// # Errors
    /// [`Error::Broken`](crate::Error::Broken) when another member ended before all had come;
    /// [`Error::Mismatch`](crate::Error::Mismatch) when the barrier is for another number;
    /// [`Error::Invalid`](crate::Error::Invalid) for a number that cannot be;
    /// [`Error::SessionLost`](crate::Error::SessionLost) at once when the session is lost;
    /// [`Error::Removed`](crate::Error::Removed) when somebody deleted this member's key, or the
    /// barrier's register; [`Error::OutcomeUnknown`](crate::Error::OutcomeUnknown) when more than 64
    /// generations went by unseen; the store's final refusals. Trouble with the store is waited out.
    ///
    /// # Cancel safety
    /// Dropping the future withdraws, in the background, unless the generation has opened before: then
    /// this member counts as having passed.
    pub async fn wait(&self, session: &Session) -> Result<Passed> {
        let arrived = self.assembly.arrive(session).await?;
        let passed = Passed {
            generation: arrived.generation,
            index: arrived.place,
        };
        // The key has done its part, and goes in the background.
        drop(arrived.until_open().await?);
        Ok(passed)
    }

    /// Where the barrier stands. Needs no session.
    ///
    /// # Errors
    /// The store's final refusals. Trouble with the store is waited out.
    pub async fn gathering(&self) -> Result<Gathering> {
        self.assembly.gathering().await
    }

    /// Who waits, or has just passed, at most `limit` of them, in the order of coming.
    ///
    /// # Errors
    /// The store's.
    pub async fn members(&self, limit: usize) -> Result<Vec<Holder>> {
        self.assembly.members(limit).await
    }
}
