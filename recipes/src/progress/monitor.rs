//! Following the progress of a job: a view of its tasks, kept up to date in the background.

use std::fmt;
use std::future::IntoFuture;
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use futures::future::BoxFuture;

use super::overall::Overall;
use super::record::job_space;
use super::tracker::Tracker;
use super::view::JobView;
use crate::client::Client;
use crate::error::Result;
use crate::follow::Followed;
use crate::keys::KeyRange;
use crate::store::ops::Compare;

/// After how long without advance a task counts as stalled.
const STALL_AFTER: Duration = Duration::from_secs(30);

impl Client {
    /// Follows the progress of a job: `client.monitor("import").await`. Ready once the first listing
    /// is in. Needs no session.
    pub fn monitor(&self, job: impl Into<String>) -> MonitorBuilder {
        MonitorBuilder {
            client: self.clone(),
            job: job.into(),
            stall_after: STALL_AFTER,
        }
    }

    /// Deletes the reports of a job, provided that nobody works on it.
    ///
    /// # Errors
    /// [`Error::Conflict`](crate::Error::Conflict) while somebody does; the store's.
    pub async fn forget_job(&self, job: &str) -> Result<()> {
        let space = job_space(job);
        let owners = KeyRange::prefix(space.key("owner/"));
        let unowned = self.txn().when(Compare::empty(owners));
        unowned.delete_range(space.range()).commit().await?;
        Ok(())
    }
}

/// Starts a [`Monitor`] when awaited.
#[derive(Debug)]
#[must_use = "awaiting the builder starts the monitor"]
pub struct MonitorBuilder {
    client: Client,
    job: String,
    stall_after: Duration,
}

impl MonitorBuilder {
    /// After how long without advance a task whose worker lives counts as stalled, counted from
    /// when this monitor saw it advance. Default: 30 s.
    pub fn stall_after(mut self, limit: Duration) -> Self {
        self.stall_after = limit;
        self
    }
}

impl IntoFuture for MonitorBuilder {
    type Output = Result<Monitor>;
    type IntoFuture = BoxFuture<'static, Result<Monitor>>;

    /// Lists the tasks and starts to follow them.
    ///
    /// # Errors
    /// The store's final refusals. Trouble with the store is waited out.
    ///
    /// # Cancel safety
    /// Dropping the future starts nothing.
    fn into_future(self) -> Self::IntoFuture {
        async move {
            let space = job_space(&self.job);
            let now = self.client.now();
            let digest = Tracker::new(space.clone(), self.stall_after, now);
            let followed = Followed::start(&self.client, space.range(), digest).await?;
            Ok(Monitor(followed))
        }
        .boxed()
    }
}

/// The progress of a job, with one watch, however many tasks it has. Reports are durable, so a late
/// monitor sees the same as an early one, except for how long ago a task last advanced.
///
/// Clones share the view; each waits for changes by itself. Dropping the last stops following.
#[derive(Clone)]
pub struct Monitor(Followed<JobView>);

impl Monitor {
    /// The tasks as they stand.
    #[must_use]
    pub fn snapshot(&self) -> Arc<JobView> {
        self.0.view()
    }

    /// The job as a whole, now: the remaining time is less by how old the view is.
    #[must_use]
    pub fn overall(&self) -> Overall {
        let view = self.0.view();
        let now = self.0.client().now();
        view.overall_after(now.saturating_duration_since(view.at))
    }

    /// Waits for a view that has not been waited for before, and returns it. Time alone makes a new
    /// view when a task stalls.
    ///
    /// # Errors
    /// The store's final refusal that ended the monitor.
    ///
    /// # Cancel safety
    /// No view is missed when the future is dropped; intermediate ones may be skipped.
    pub async fn changed(&mut self) -> Result<Arc<JobView>> {
        self.0.changed().await
    }

    /// Waits until a view satisfies `enough`, which may be the one now, and returns it.
    ///
    /// # Errors
    /// As [`Monitor::changed`].
    ///
    /// # Cancel safety
    /// As [`Monitor::changed`].
    pub async fn wait_for(&mut self, enough: impl FnMut(&JobView) -> bool) -> Result<Arc<JobView>> {
        self.0.wait_for(enough).await
    }
}

impl fmt::Debug for Monitor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let view = self.snapshot();
        f.debug_struct("Monitor")
            .field("revision", &view.revision)
            .field("tasks", &view.tasks.len())
            .finish_non_exhaustive()
    }
}
