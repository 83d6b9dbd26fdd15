//! A session is one lease and what keeps it alive: everything a process holds, it holds under a
//! session, and loses with it. `actor` does the writes that must not be
//! left half done, `claim` creates keys exactly once, `lane` changes exactly once what others may
//! change as well, `renew` keeps the lease.

mod actor;
mod claim;
mod lane;
mod open;
mod renew;

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures::future::BoxFuture;
use tokio::sync::watch;

pub use actor::Actor;
pub use claim::{Attach, Claim, Claimed, NewKey, Owned};
pub(crate) use lane::LANE_OPS;
pub use lane::{Effect, Effected, Lane};
pub use open::{SessionBuilder, SessionRecord};

use crate::client::Client;
use crate::clock::Instant;
use crate::error::{Error, LostReason, Result};
use crate::keys::LeaseId;

/// Where a session stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SessionState {
    /// The last renewal was acknowledged.
    Live {
        /// The local deadline: lost then unless a renewal is acknowledged before.
        until: Instant,
    },
    /// A renewal failed or is overdue, but the lease is alive: fences are valid and work may go on.
    Suspended {
        /// The local deadline.
        until: Instant,
    },
    /// Over, for good.
    Lost(LostReason),
}

/// One lease, kept alive until the last handle of the session goes. Cheap to clone; guards,
/// contenders and registrations hold a clone, so a session lives at least as long as they do.
///
/// It is lost when the store says that the lease is gone, or when the local clock says that the
/// lease may have run out: no renewal acknowledged within its time to live, counted from the moment
/// the renewal was *sent*. Loss is final, also when the network comes back a moment later.
///
/// Dropping the last handle ends the session: the lease is revoked in the background.
#[derive(Clone)]
pub struct Session {
    handle: Arc<Handle>,
    task: Option<Arc<str>>,
}

/// The counted part: its drop is the drop of the last handle.
struct Handle {
    actor: Actor,
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.actor.close_in_background(None);
    }
}

impl Session {
    fn new(actor: Actor) -> Self {
        Self {
            handle: Arc::new(Handle { actor }),
            task: None,
        }
    }

    /// A handle of the same session for one of its tasks. What is taken through it is shown under that
    /// name, and told apart from what other tasks hold when deadlocks are looked for.
    #[must_use]
    pub fn for_task(&self, name: &str) -> Self {
        Self {
            handle: Arc::clone(&self.handle),
            task: Some(name.into()),
        }
    }

    /// The task that this handle is for.
    #[must_use]
    pub fn task(&self) -> Option<&str> {
        self.task.as_deref()
    }

    /// Where the session stands now. Judged by the clock, so it is right even when the session's
    /// own task has not been run in time.
    #[must_use]
    pub fn state(&self) -> SessionState {
        self.handle.actor.state()
    }

    /// Follows the state. For a decision use [`Session::state`], which also looks at the clock.
    #[must_use]
    pub fn watch_state(&self) -> watch::Receiver<SessionState> {
        self.handle.actor.subscribe()
    }

    /// Completes when the session is lost or closed.
    pub fn lost(&self) -> Lost {
        self.handle.actor.lost()
    }

    /// Time until the session is lost unless a renewal is acknowledged; zero once it is lost.
    #[must_use]
    pub fn remaining(&self) -> Duration {
        self.handle.actor.remaining()
    }

    /// Fails once the session is lost.
    ///
    /// # Errors
    /// [`Error::SessionLost`].
    pub fn check(&self) -> Result<()> {
        self.handle.actor.check()
    }

    /// The lease's id.
    #[must_use]
    pub fn lease(&self) -> LeaseId {
        self.handle.actor.lease()
    }

    /// The lease's full time to live, as granted by the store.
    #[must_use]
    pub fn ttl(&self) -> Duration {
        self.handle.actor.ttl()
    }

    /// The client that opened the session.
    #[must_use]
    pub fn client(&self) -> &Client {
        self.handle.actor.client()
    }

    /// What does the session's writes. It does not keep the session alive.
    #[must_use]
    pub fn actor(&self) -> &Actor {
        &self.handle.actor
    }

    /// Ends the session: every guard under it is lost at once, writes in progress are let finish,
    /// and the lease is revoked, which deletes every key attached to it.
    ///
    /// # Errors
    /// [`Error::OutcomeUnknown`] when the store did not acknowledge the revocation in time; the
    /// lease then runs out by itself.
    ///
    /// # Cancel safety
    /// Dropping the future does not stop the closing.
    pub async fn close(self) -> Result<()> {
        let (done, answer) = tokio::sync::oneshot::channel();
        self.handle.actor.close_in_background(Some(done));
        answer.await.map_err(|_| Error::Closed)?
    }
}

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Session")
            .field("lease", &self.lease())
            .field("state", &self.state())
            .finish_non_exhaustive()
    }
}

/// A future of the loss of a session or a guard. It holds neither of them.
#[must_use = "futures do nothing unless awaited"]
pub struct Lost(BoxFuture<'static, LostReason>);

impl Lost {
    pub(crate) fn new(future: impl Future<Output = LostReason> + Send + 'static) -> Self {
        Self(Box::pin(future))
    }
}

impl Future for Lost {
    type Output = LostReason;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<LostReason> {
        self.0.as_mut().poll(cx)
    }
}

impl fmt::Debug for Lost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Lost")
    }
}
