//! The only place that starts tasks. Every part of a member holds a [`Tasks`]; stopping it cancels
//! the part's tasks and waits for them, with a limit.

use std::future::Future;
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::task::JoinError;
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};
use tokio_util::task::TaskTracker;
use tracing::Instrument;

/// A group of tasks with one cancellation token. Cheap to clone; all clones are the same group.
#[derive(Debug, Clone, Default)]
pub struct Tasks {
    tracker: TaskTracker,
    token: CancellationToken,
}

impl Tasks {
    /// An empty group.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// A group of its own that is cancelled together with this one, and that can be stopped alone.
    #[must_use]
    pub fn child(&self) -> Self {
        Self {
            tracker: TaskTracker::new(),
            token: self.token.child_token(),
        }
    }

    /// Starts `future` as a task of this group. It is dropped at its next await once the group is
    /// cancelled; a task that must finish something first uses [`Tasks::spawn_draining`].
    #[expect(clippy::disallowed_methods, reason = "this module starts the tasks")]
    pub fn spawn<F>(&self, name: &'static str, future: F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let token = self.token.clone();
        let task = async move { token.run_until_cancelled(future).await.unwrap_or(()) };
        let span = tracing::debug_span!("task", name);
        drop(tokio::spawn(
            self.tracker.track_future(task.instrument(span)),
        ));
    }

    /// Starts `future`, which watches [`Tasks::cancelled`] itself and ends on its own.
    #[expect(clippy::disallowed_methods, reason = "this module starts the tasks")]
    pub fn spawn_draining<F>(&self, name: &'static str, future: F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let span = tracing::debug_span!("task", name);
        drop(tokio::spawn(
            self.tracker.track_future(future.instrument(span)),
        ));
    }

    /// Completes when the group is cancelled.
    pub fn cancelled(&self) -> WaitForCancellationFutureOwned {
        self.token.clone().cancelled_owned()
    }

    /// Whether the group is cancelled.
    #[must_use]
    pub fn is_cancelled(&self) -> bool {
        self.token.is_cancelled()
    }

    /// Tells the tasks to stop, without waiting for them.
    pub fn cancel(&self) {
        self.token.cancel();
    }

    /// Cancels the group and waits for its tasks, at most `limit`. Returns whether all ended in time.
    pub async fn stop(&self, limit: Duration) -> bool {
        self.token.cancel();
        self.tracker.close();
        tokio::time::timeout(limit, self.tracker.wait())
            .await
            .is_ok()
    }
}

/// Runs `future` on another runtime and waits for it here.
///
/// # Errors
/// It panicked, or that runtime ended.
pub(crate) async fn run_on<F>(runtime: &Handle, future: F) -> Result<F::Output, JoinError>
where
    F: Future<Output: Send> + Send + 'static,
{
    runtime.spawn(future).await
}

/// Cancels `token` when this runtime ends, unless it was cancelled before.
#[expect(clippy::disallowed_methods, reason = "this module starts the tasks")]
pub(crate) fn cancel_with_runtime(token: CancellationToken) {
    // Made here: a task that never ran holds it too.
    let guard = token.clone().drop_guard();
    drop(tokio::spawn(async move {
        token.cancelled().await;
        drop(guard);
    }));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn stop_cancels_the_group_and_its_children_and_waits() {
        let tasks = Tasks::new();
        let child = tasks.child();
        tasks.spawn("forever", std::future::pending());
        child.spawn("forever too", std::future::pending());
        assert!(tasks.stop(Duration::from_secs(5)).await);
        assert!(child.is_cancelled());
        assert!(child.stop(Duration::from_secs(5)).await);
    }

    #[tokio::test]
    async fn stop_reports_a_task_that_will_not_end() {
        let tasks = Tasks::new();
        tasks.spawn_draining("stubborn", std::future::pending());
        assert!(!tasks.stop(Duration::from_millis(20)).await);
    }
}
