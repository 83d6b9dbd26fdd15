//! How the tasks of a job stand, decided from the changes of its keys and the time.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use quorate_proto::mvccpb::KeyValue;

use super::rate::Eta;
use super::record::{Part, Record, Written};
use super::view::{JobView, TaskState, TaskView};
use crate::clock::Instant;
use crate::follow::Digest;
use crate::keys::{KeySpace, LeaseId, Revision};
use crate::watch::{Batch, Change};

/// The state behind the views of one job.
pub(super) struct Tracker {
    space: KeySpace,
    stall_after: Duration,
    revision: Revision,
    /// The time up to which everything has been judged.
    now: Instant,
    tasks: BTreeMap<String, Task>,
}

#[derive(Debug, Default)]
struct Task {
    reported: Option<Reported>,
    /// Who has the right to report, since when.
    owner: Option<Owner>,
    /// It is asked to end.
    cancelling: bool,
}

#[derive(Debug)]
struct Owner {
    lease: LeaseId,
    since: i64,
}

#[derive(Debug)]
struct Reported {
    record: Record,
    /// The revision at which it was written.
    at: i64,
    seen: Instant,
    advanced: Instant,
    checkpoint: Arc<serde_json::Value>,
}

impl Tracker {
    pub(super) fn new(space: KeySpace, stall_after: Duration, now: Instant) -> Self {
        Self {
            space,
            stall_after,
            revision: Revision(0),
            now,
            tasks: BTreeMap::new(),
        }
    }

    fn put(&mut self, kv: &KeyValue, now: Instant) {
        match Part::of(&self.space, &kv.key) {
            Some(Part::Owner(task)) => {
                let owner = Owner {
                    lease: LeaseId(kv.lease),
                    since: kv.create_revision,
                };
                self.tasks.entry(task).or_default().owner = Some(owner);
            }
            Some(Part::Record(task)) => match serde_json::from_slice(&kv.value) {
                Ok(record) => {
                    let task = self.tasks.entry(task).or_default();
                    task.report(record, kv.mod_revision, now);
                }
                Err(error) => tracing::warn!(task, %error, "an unreadable report"),
            },
            Some(Part::Cancel(task)) => self.tasks.entry(task).or_default().cancelling = true,
            None => {}
        }
    }

    fn delete(&mut self, key: &[u8]) {
        let Some(part) = Part::of(&self.space, key) else {
            return;
        };
        let Some(task) = self.tasks.get_mut(part.task()) else {
            return;
        };
        match &part {
            Part::Owner(_) => task.owner = None,
            Part::Record(_) => task.reported = None,
            Part::Cancel(_) => task.cancelling = false,
        }
        if task.reported.is_none() && task.owner.is_none() && !task.cancelling {
            self.tasks.remove(part.task());
        }
    }
}

impl Task {
    fn report(&mut self, mut record: Record, at: i64, now: Instant) {
        let checkpoint = Arc::new(record.checkpoint.take());
        let advanced = match &self.reported {
            Some(before)
                if before.record.attempt == record.attempt
                    && before.record.done >= record.done
                    && before.record.stage == record.stage =>
            {
                before.advanced
            }
            _ => now,
        };
        self.reported = Some(Reported {
            record,
            at,
            seen: now,
            advanced,
            checkpoint,
        });
    }

    /// The worker whose attempt is the one reported; none while the next one has yet to report.
    fn worker(&self, reported: &Reported) -> Option<LeaseId> {
        let owner = self.owner.as_ref();
        let owner = owner.filter(|owner| owner.since < reported.at);
        owner.map(|owner| owner.lease)
    }

    fn state(&self, reported: &Reported, now: Instant, stall_after: Duration) -> TaskState {
        match reported.record.state {
            Written::Done => TaskState::Done,
            Written::Failed => TaskState::Failed,
            Written::Cancelled => TaskState::Cancelled,
            Written::Abandoned => TaskState::Abandoned,
            Written::Running if self.worker(reported).is_none() => TaskState::Lost,
            Written::Running if now >= reported.advanced + stall_after => TaskState::Stalled,
            Written::Running => TaskState::Running,
        }
    }

    fn view(&self, name: &str, now: Instant, stall_after: Duration) -> Option<TaskView> {
        let reported = self.reported.as_ref()?;
        let Reported { record, .. } = reported;
        let state = self.state(reported, now, stall_after);
        let speed = record.speed().filter(|_| state == TaskState::Running);
        let remaining = record.total.map(|total| total.saturating_sub(record.done));
        let eta = speed.zip(remaining);
        let eta = eta.and_then(|(speed, remaining)| Eta::of(remaining, speed));
        Some(TaskView {
            name: name.to_owned(),
            state,
            done: record.done,
            total: record.total,
            unit: record.unit.clone(),
            stage: record.stage.clone(),
            message: record.message.clone(),
            rate: speed.map(|speed| speed.rate),
            eta: eta.map(|eta| eta.after(now.saturating_duration_since(reported.seen))),
            attempt: record.attempt,
            cancelling: self.cancelling,
            owner: record.owner.clone(),
            lease: self.worker(reported),
            started_ms: record.started_ms,
            updated_ms: record.updated_ms,
            advanced: reported.advanced,
            checkpoint: Arc::clone(&reported.checkpoint),
        })
    }

    /// When it will count as stalled, if it does not advance.
    fn stalls_at(&self, stall_after: Duration) -> Option<Instant> {
        let reported = self.reported.as_ref()?;
        let running = reported.record.state == Written::Running && self.worker(reported).is_some();
        running.then(|| reported.advanced + stall_after)
    }
}

impl Digest for Tracker {
    type View = JobView;

    fn take(&mut self, batch: Batch, now: Instant) {
        self.revision = batch.revision;
        self.now = now;
        for change in batch.changes {
            match change {
                Change::Put { kv, .. } => self.put(&kv, now),
                Change::Delete { key, .. } => self.delete(key.as_bytes()),
            }
        }
    }

    fn tick(&mut self, now: Instant) -> bool {
        // Only asked for when a task has stalled.
        self.now = now;
        true
    }

    fn next_deadline(&self) -> Option<Instant> {
        let stalls = self.tasks.values();
        let stalls = stalls.filter_map(|task| task.stalls_at(self.stall_after));
        stalls.filter(|at| *at > self.now).min()
    }

    fn view(&self, stale_since: Option<Instant>) -> JobView {
        let now = self.now;
        let tasks = self.tasks.iter();
        JobView {
            revision: self.revision,
            tasks: tasks
                .filter_map(|(name, task)| task.view(name, now, self.stall_after))
                .collect(),
            at: now,
            stale_since,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::overall::Overall;
    use super::super::record::{TaskName, cancel_key, job_space, owner_key, record_key};
    use super::*;
    use crate::clock;
    use crate::keys::Key;
    use crate::watch::Origin;

    struct Job {
        tracker: Tracker,
        now: Instant,
        revision: i64,
    }

    impl Job {
        fn new() -> Self {
            let now = clock::now();
            Self {
                tracker: Tracker::new(job_space("j"), Duration::from_secs(30), now),
                now,
                revision: 1,
            }
        }

        fn take(&mut self, changes: Vec<Change>) {
            let batch = Batch {
                revision: Revision(self.revision),
                origin: Origin::Live,
                changes,
            };
            self.tracker.take(batch, self.now);
        }

        fn owner(&mut self, task: &str) {
            let key = owner_key(&TaskName::new("j", task)).into_bytes();
            self.revision += 1;
            let kv = KeyValue {
                key,
                lease: 7,
                create_revision: self.revision,
                ..Default::default()
            };
            self.take(vec![Change::Put { kv, previous: None }]);
        }

        fn gone(&mut self, task: &str) {
            self.delete(owner_key(&TaskName::new("j", task)));
        }

        fn delete(&mut self, key: Key) {
            self.take(vec![Change::Delete {
                key,
                previous: None,
            }]);
        }

        fn cancel(&mut self, task: &str) {
            let kv = KeyValue {
                key: cancel_key(&TaskName::new("j", task)).into_bytes(),
                ..Default::default()
            };
            self.take(vec![Change::Put { kv, previous: None }]);
        }

        fn report(&mut self, task: &str, json: serde_json::Value) {
            let mut record = serde_json::json!({
                "v": 1, "state": "running", "done": 0, "attempt": 1, "started_ms": 0,
                "updated_ms": 0, "owner": { "host": "h", "pid": 1 },
            });
            if let serde_json::Value::Object(given) = json {
                record.as_object_mut().unwrap().extend(given);
            }
            self.revision += 1;
            let kv = KeyValue {
                key: record_key(&TaskName::new("j", task)).into_bytes(),
                value: record.to_string().into(),
                mod_revision: self.revision,
                ..Default::default()
            };
            self.take(vec![Change::Put { kv, previous: None }]);
        }

        fn wait(&mut self, seconds: u64) {
            self.now += Duration::from_secs(seconds);
            if self
                .tracker
                .next_deadline()
                .is_some_and(|at| at <= self.now)
            {
                self.tracker.tick(self.now);
            }
        }

        fn state(&self, task: &str) -> TaskState {
            self.tracker.view(None).task(task).unwrap().state
        }

        fn overall(&self) -> Overall {
            self.tracker.view(None).overall()
        }
    }

    #[test]
    fn standing_still_and_dying_are_told_apart() {
        let mut job = Job::new();
        job.owner("a");
        assert!(job.tracker.view(None).tasks.is_empty(), "nothing said yet");
        job.report("a", serde_json::json!({ "done": 5, "total": 10 }));
        job.wait(29);
        assert_eq!(job.state("a"), TaskState::Running);
        job.report(
            "a",
            serde_json::json!({ "done": 5, "total": 10, "message": "hm" }),
        );
        job.wait(1);
        assert_eq!(
            job.state("a"),
            TaskState::Stalled,
            "a message is no advance"
        );
        assert_eq!(job.tracker.next_deadline(), None);
        job.report("a", serde_json::json!({ "done": 6, "total": 10 }));
        assert_eq!(job.state("a"), TaskState::Running);
        job.gone("a");
        assert_eq!(job.state("a"), TaskState::Lost);
        job.owner("a");
        assert_eq!(
            job.state("a"),
            TaskState::Lost,
            "until the next one reports"
        );
        job.report(
            "a",
            serde_json::json!({ "done": 0, "total": 10, "attempt": 2 }),
        );
        assert_eq!(job.state("a"), TaskState::Running);
        job.report(
            "a",
            serde_json::json!({ "state": "done", "done": 10, "attempt": 2 }),
        );
        job.gone("a");
        assert_eq!(job.state("a"), TaskState::Done);
    }

    #[test]
    fn the_whole_is_weighted_and_full_only_when_all_is_done() {
        let mut job = Job::new();
        for task in ["a", "b"] {
            job.owner(task);
        }
        let moving = |done: u64, total: u64, rate: f64| serde_json::json!({ "done": done, "total": total, "rate": rate, "spread": 0.0 });
        job.report("a", moving(50, 100, 10.0));
        job.report("b", moving(300, 300, 10.0));
        let overall = job.overall();
        assert_eq!((overall.done, overall.total), (350, Some(400)));
        assert_eq!(overall.fraction, Some(0.875));
        assert_eq!(overall.rate, Some(20.0));
        assert_eq!(overall.eta.unwrap().likely, Duration::from_secs(5));
        job.report("a", moving(100, 100, 10.0));
        assert_eq!(
            job.overall().fraction,
            Some(0.99),
            "all counted, nothing finished"
        );
        for task in ["a", "b"] {
            job.report(task, serde_json::json!({ "state": "done", "done": 100 }));
            job.gone(task);
        }
        let overall = job.overall();
        assert_eq!((overall.fraction, overall.finished), (Some(1.0), 2));
        assert_eq!(overall.eta, None);
        job.report("c", serde_json::json!({ "done": 1 }));
        let overall = job.overall();
        assert_eq!(
            (overall.fraction, overall.lost),
            (None, 1),
            "how much is left is open"
        );
    }

    #[test]
    fn requests_are_shown_as_long_as_they_are_there() {
        let mut job = Job::new();
        job.cancel("a");
        assert!(job.tracker.view(None).tasks.is_empty(), "nothing begun yet");
        job.owner("a");
        job.report("a", serde_json::json!({ "done": 5 }));
        assert!(job.tracker.view(None).task("a").unwrap().cancelling);
        job.report("a", serde_json::json!({ "state": "cancelled", "done": 5 }));
        job.gone("a");
        job.delete(cancel_key(&TaskName::new("j", "a")));
        assert_eq!(job.state("a"), TaskState::Cancelled);
        assert!(!job.tracker.view(None).task("a").unwrap().cancelling);
        job.delete(record_key(&TaskName::new("j", "a")));
        assert!(job.tracker.tasks.is_empty());
    }
}
