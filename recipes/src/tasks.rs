//! The only place that starts tasks. A session holds one group for what it does on behalf of its
//! guards; mirrors hold one of their own.

use std::future::Future;
use std::time::Duration;

use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::Instrument;

/// A group of tasks on the runtime it was made on, so that a value dropped on another thread can
/// still start its clean-up. Cheap to clone; all clones are the same group.
#[derive(Debug, Clone)]
pub(crate) struct Tasks {
    tracker: TaskTracker,
    token: CancellationToken,
    runtime: Handle,
}

impl Tasks {
    /// An empty group on the current runtime.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub(crate) fn current() -> Self {
        Self {
            tracker: TaskTracker::new(),
            token: CancellationToken::new(),
            runtime: Handle::current(),
        }
    }

    /// An empty group on the same runtime.
    pub(crate) fn beside(&self) -> Self {
        Self {
            tracker: TaskTracker::new(),
            token: CancellationToken::new(),
            runtime: self.runtime.clone(),
        }
    }

    /// Starts `future`; it is dropped at its next await once the group is cancelled.
    pub(crate) fn spawn<F>(&self, name: &'static str, future: F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        self.spawn_on(&self.runtime, name, future);
    }

    /// As [`Tasks::spawn`], on another runtime than the group's.
    pub(crate) fn spawn_on<F>(&self, runtime: &Handle, name: &'static str, future: F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let token = self.token.clone();
        let task = async move { token.run_until_cancelled(future).await.unwrap_or(()) };
        let span = tracing::debug_span!("task", name);
        drop(runtime.spawn(self.tracker.track_future(task.instrument(span))));
    }

    /// Starts `future` outside the group, so that it may wait for the group itself. It must be
    /// bounded in time by itself.
    pub(crate) fn spawn_apart<F>(&self, name: &'static str, future: F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        Self::spawn_apart_on(&self.runtime, name, future);
    }

    /// As [`Tasks::spawn_apart`], on this runtime.
    pub(crate) fn spawn_apart_on<F>(runtime: &Handle, name: &'static str, future: F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let span = tracing::debug_span!("task", name);
        drop(runtime.spawn(future.instrument(span)));
    }

    /// Waits until no task of the group is left, at most `limit`. Returns whether none is.
    pub(crate) async fn idle(&self, limit: Duration) -> bool {
        self.tracker.close();
        tokio::time::timeout(limit, self.tracker.wait())
            .await
            .is_ok()
    }

    /// Drops every task of the group at its next await.
    pub(crate) fn cancel(&self) {
        self.token.cancel();
    }
}
