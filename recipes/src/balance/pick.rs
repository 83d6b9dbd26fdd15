//! An instance that was picked: what the caller holds while it uses it.

use std::fmt;
use std::ops::Deref;
use std::sync::Arc;
use std::time::Duration;

use thiserror::Error;

use super::balancer::Shared;
use super::incarnation::Incarnation;
use crate::registry::Endpoint;

/// There is no instance to pick.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("no instance takes work; {known} are known")]
#[non_exhaustive]
pub struct NoInstance {
    /// How many instances in the view may be picked at all; none of them takes work.
    pub known: usize,
}

/// How the use of an instance ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Outcome {
    Success,
    Failure,
    /// Given up: it took at least that long.
    Open,
}

/// An instance that was picked. It counts as outstanding until this is dropped; say by
/// [`success`](Pick::success) or [`failure`](Pick::failure) how it went, as one that is merely dropped
/// tells nothing about the instance's health. It shows the instance as it was when it was picked.
#[must_use = "a dropped pick is not outstanding any more"]
pub struct Pick<M: Send + Sync + 'static> {
    pub(super) shared: Arc<Shared<M>>,
    pub(super) endpoint: Arc<Endpoint<M>>,
    pub(super) incarnation: Arc<Incarnation>,
    /// Since the balancer's start.
    pub(super) at: Duration,
    pub(super) in_panic: bool,
    pub(super) outcome: Outcome,
}

impl<M: Send + Sync + 'static> Pick<M> {
    /// The instance.
    #[must_use]
    pub fn endpoint(&self) -> &Arc<Endpoint<M>> {
        &self.endpoint
    }

    /// Whether it was picked although it is ejected or drains, because there was no other.
    #[must_use]
    pub fn in_panic(&self) -> bool {
        self.in_panic
    }

    /// The instance did what was asked of it. An error that is the caller's fault is a success.
    pub fn success(mut self) {
        self.outcome = Outcome::Success;
    }

    /// The instance failed: it could not be reached, did not answer in time, or said that it cannot.
    pub fn failure(mut self) {
        self.outcome = Outcome::Failure;
    }
}

impl<M: Send + Sync + 'static> Deref for Pick<M> {
    type Target = Endpoint<M>;

    fn deref(&self) -> &Endpoint<M> {
        &self.endpoint
    }
}

impl<M: Send + Sync + 'static> Drop for Pick<M> {
    fn drop(&mut self) {
        self.shared.ended(&self.incarnation, self.at, self.outcome);
    }
}

impl<M: Send + Sync + 'static> fmt::Debug for Pick<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pick")
            .field("id", &self.endpoint.id)
            .field("address", &self.endpoint.address)
            .field("in_panic", &self.in_panic)
            .finish_non_exhaustive()
    }
}
