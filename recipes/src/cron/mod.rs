//! Jobs by the clock: each time of a schedule is started at most once, by whichever of many runners is first,
//! and never while the run before goes on.
//!
//! `schedule` is when, `misfire` what becomes of times that were missed, `record` what is written, `runner`
//! waits and starts, `run` is one start.

mod misfire;
mod record;
mod run;
mod runner;
mod schedule;
#[cfg(test)]
mod tests;

use std::time::Duration;

pub use self::misfire::Misfire;
pub use self::record::{CronStatus, Outcome, RunRecord};
pub(crate) use self::record::{Last, told};
pub use self::run::Run;
pub use self::schedule::{Schedule, Slot};
use crate::client::Client;
use crate::error::Result;
use crate::keys::{Key, KeySpace, Name};

/// The kind of key space that jobs live in.
pub(crate) const KIND: &str = "cron";

impl Client {
    /// The job of this name, and when it is to run: `client.cron("nightly", "0 3 * * *".parse()?)`.
    #[must_use]
    pub fn cron(&self, name: impl Into<Name>, schedule: Schedule) -> Cron {
        Cron {
            client: self.clone(),
            space: name.into().space(KIND),
            schedule,
            misfire: Misfire::default(),
            tolerance: Duration::from_secs(60),
        }
    }
}

/// A job. A handle: cheap to clone, runs nothing until [`Cron::run`].
///
/// All runners should have one schedule. While two are in use, as when a new release is rolled out, each
/// runner starts the times of its own; a time that is in both is started once, and one that is earlier than
/// what was started last is not started any more.
#[derive(Debug, Clone)]
pub struct Cron {
    client: Client,
    space: KeySpace,
    schedule: Schedule,
    misfire: Misfire,
    tolerance: Duration,
}

impl Cron {
    /// What becomes of times at which nobody ran it, or the run before was still going on. Default:
    /// [`Misfire::RunOnce`].
    #[must_use]
    pub fn misfire(mut self, policy: Misfire) -> Self {
        self.misfire = policy;
        self
    }

    /// How late a time may be started before [`Misfire::Skip`] counts it as missed. Default: 60 s.
    #[must_use]
    pub fn tolerance(mut self, late: Duration) -> Self {
        self.tolerance = late;
        self
    }

    /// When it is to run.
    #[must_use]
    pub fn schedule(&self) -> &Schedule {
        &self.schedule
    }

    /// What was started last, and how that ended, as of one revision.
    ///
    /// # Errors
    /// [`Error::Codec`](crate::Error::Codec) when the keys hold something else; the store's.
    pub async fn status(&self) -> Result<CronStatus> {
        let (_, kvs) = self.client.list(self.space.range()).await?;
        record::status(&self.space, &kvs)
    }

    /// The key that tells which time was started last. Deleting it makes the job begin anew: the times since
    /// are forgotten.
    fn last(&self) -> Key {
        self.space.key(record::LAST)
    }

    /// The key of the run that goes on.
    fn running(&self) -> Key {
        self.space.key(record::RUNNING)
    }

    /// The key of the last run's record.
    fn record(&self) -> Key {
        self.space.key(record::RUN)
    }
}
