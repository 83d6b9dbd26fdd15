//! The double barrier: a fixed number enter together, work, and leave together.

use std::ops::Deref;

use super::assembly::{Assembly, Gathering};
use super::gate::until_empty;
use crate::client::Client;
use crate::error::Result;
use crate::keys::KeyRange;
use crate::lock::{Fence, Fenced, Hold, Holder};
use crate::session::Session;

/// A barrier that a fixed number of members enter together and leave together. A handle: cheap to
/// clone, holds nothing.
///
/// Who comes once a generation has entered belongs to the next one, which does not wait for the first
/// to leave.
#[derive(Debug, Clone)]
pub struct DoubleBarrier {
    assembly: Assembly,
}

impl DoubleBarrier {
    pub(super) fn new(client: Client, name: &str, parties: u32) -> Self {
        Self {
            assembly: Assembly::new(client, "double-barrier", name, parties),
        }
    }

    /// What [`DoubleBarrier::members`] shows for members that come by this handle.
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

    /// Comes, and waits until all have come. The last one opens the generation in the transaction of
    /// its coming, in which all others are seen alive.
    ///
    /// # Errors
    /// As [`CyclicBarrier::wait`](super::CyclicBarrier::wait).
    ///
    /// # Cancel safety
    /// Dropping the future withdraws, in the background, unless the generation has opened before: then
    /// this member has entered and left.
    pub async fn enter(&self, session: &Session) -> Result<Entered> {
        let arrived = self.assembly.arrive(session).await?;
        let (generation, index) = (arrived.generation, arrived.place);
        let together = self.assembly.members_of(generation).range();
        let owned = arrived.until_open().await?;
        Ok(Entered {
            hold: Hold::new(session.clone(), owned, vec![together.clone()]),
            together,
            client: self.assembly.client().clone(),
            generation,
            index,
        })
    }

    /// Where the barrier stands: who has come and not entered. Needs no session.
    ///
    /// # Errors
    /// The store's final refusals. Trouble with the store is waited out.
    pub async fn gathering(&self) -> Result<Gathering> {
        self.assembly.gathering().await
    }

    /// Who waits or is inside, at most `limit` of them, in the order of coming.
    ///
    /// # Errors
    /// The store's.
    pub async fn members(&self, limit: usize) -> Result<Vec<Holder>> {
        self.assembly.members(limit).await
    }
}

/// Being inside a [`DoubleBarrier`]; everything a guard can do is in [`Hold`], so that writes can be
/// made which the store refuses once the others may take this member for gone. Dropping it leaves, in
/// the background, without waiting for the others.
#[derive(Debug)]
#[must_use = "dropped, it leaves at once"]
pub struct Entered {
    hold: Hold,
    together: KeyRange,
    client: Client,
    generation: u64,
    index: u32,
}

impl Entered {
    /// The generation that was entered: the first is 1. Broken ones count.
    #[must_use]
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// Which of its members this one is: each of `0..parties` is one.
    #[must_use]
    pub fn index(&self) -> u32 {
        self.index
    }

    /// Leaves, and waits until all who entered together have left. A member whose session ends has
    /// left.
    ///
    /// # Errors
    /// [`Error::Fenced`](crate::Error::Fenced) or [`Error::SessionLost`](crate::Error::SessionLost)
    /// when this member counted as gone before it left; the store's final refusals. Trouble with the
    /// store is waited out.
    ///
    /// # Cancel safety
    /// When the future is dropped, this member leaves all the same.
    pub async fn leave(self) -> Result<()> {
        let Self {
            hold,
            together,
            client,
            ..
        } = self;
        hold.release().await?;
        until_empty(&client, &together).await
    }
}

impl Deref for Entered {
    type Target = Hold;

    fn deref(&self) -> &Hold {
        &self.hold
    }
}

impl Fenced for Entered {
    fn fence(&self) -> &Fence {
        self.hold.fence()
    }
}
