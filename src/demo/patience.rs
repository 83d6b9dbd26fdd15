//! How long the demo waits for work that does not advance: what is done may take as long as it
//! takes, standing still may not.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::ensure;
use quorate::core::clock::Instant;
use quorate::recipes::progress::JobView;

/// The longest that the work may stand still, beyond what the pace gives a file. Progress is a file
/// that a worker has done or a batch that is complete, so this is also the longest that one file may
/// take to hash.
const STANDSTILL_LIMIT: Duration = Duration::from_secs(120);

/// Watches whether the work advances.
#[derive(Debug)]
pub(crate) struct Patience {
    limit: Duration,
    /// The most that each task has reported; an attempt that begins anew counts once it is beyond.
    most: BTreeMap<String, u64>,
    advanced: Instant,
}

impl Patience {
    /// Begins to wait, `now`, for work that takes at least `per_file` a file.
    pub(crate) fn new(per_file: Duration, now: Instant) -> Self {
        Self {
            limit: STANDSTILL_LIMIT + per_file,
            most: BTreeMap::new(),
            advanced: now,
        }
    }

    /// The longest that the work may stand still.
    pub(crate) fn limit(&self) -> Duration {
        self.limit
    }

    /// Looks at how far the tasks are.
    ///
    /// # Errors
    /// When none of them has advanced for as long as the limit.
    pub(crate) fn check(&mut self, job: &JobView, now: Instant) -> anyhow::Result<()> {
        let done = job.tasks.iter().map(|task| (task.name.as_str(), task.done));
        self.note(done, now)
    }

    fn note<'a>(
        &mut self,
        done: impl Iterator<Item = (&'a str, u64)>,
        now: Instant,
    ) -> anyhow::Result<()> {
        for (name, done) in done {
            let most = self.most.entry(name.to_owned()).or_default();
            if done > *most {
                *most = done;
                self.advanced = now;
            }
        }
        ensure!(
            now.duration_since(self.advanced) < self.limit,
            "nothing more was done for {:?}",
            self.limit
        );
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use quorate::core::clock;

    use super::*;

    #[test]
    fn only_standing_still_ends_the_patience() {
        let began = clock::now();
        let mut patience = Patience::new(Duration::from_secs(1), began);
        let at = |seconds| began + Duration::from_secs(seconds);
        assert_eq!(patience.limit(), Duration::from_secs(121));
        assert!(patience.note([("w1", 1)].into_iter(), at(100)).is_ok());
        assert!(patience.note([("w1", 2)].into_iter(), at(220)).is_ok());
        // Beginning anew is no progress.
        assert!(patience.note([("w1", 0)].into_iter(), at(230)).is_ok());
        assert!(patience.note([("w1", 2)].into_iter(), at(340)).is_ok());
        assert!(patience.note([("w1", 2)].into_iter(), at(341)).is_err());
    }
}
