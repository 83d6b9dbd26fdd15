//! What a history says about the tasks of a job: which attempts there were, what each wrote, and how it ended.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;

use quorate_proto::mvccpb::event::EventType;
use quorate_recipes::keys::decode;
use quorate_recipes::progress::{JobView, TaskState};
use serde_json::Value;

use crate::history::{History, key_of, state_at};

const PREFIX: &str = "quorate/progress/j/";

/// What the reports lie below, which stay.
pub const RECORDS: &str = "quorate/progress/j/record/";

/// The states by which a task has ended: what is asked of it goes with them.
const ENDS: [&str; 3] = ["done", "failed", "cancelled"];

/// A task, and the number of the attempt.
pub(super) type Attempt = (String, u32);

/// What clients were told.
#[derive(Debug, Default)]
pub(super) struct Told {
    pub(super) started: Vec<Started>,
    /// Checkpoints that were said to be written.
    pub(super) flushed: Vec<(Attempt, u64)>,
    pub(super) ended: Vec<(Attempt, &'static str)>,
    /// Attempts that were said not to have ended so.
    pub(super) refused: Vec<(Attempt, &'static str)>,
    pub(super) asked: Vec<Asked>,
}

/// An attempt that began.
#[derive(Debug)]
pub(super) struct Started {
    pub(super) attempt: Attempt,
    /// The checkpoint that it was given.
    pub(super) handed: Option<u64>,
    /// It was told at once that it is to end.
    pub(super) cancelling: bool,
}

/// A task that was asked to end, from one revision to another, and what the answer was.
#[derive(Debug)]
pub(super) struct Asked {
    pub(super) task: String,
    pub(super) asked: bool,
    pub(super) from: i64,
    pub(super) to: i64,
}

/// A task as a view shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Shown {
    attempt: u32,
    state: String,
    done: u64,
    cancelling: bool,
}

/// A view of a job.
#[derive(Debug)]
pub(super) struct Seen {
    revision: i64,
    tasks: BTreeMap<String, Shown>,
}

impl Seen {
    pub(super) fn of(view: &JobView) -> Self {
        let tasks = view.tasks.iter().map(|task| {
            let state = match task.state {
                // The store does not tell them apart.
                TaskState::Running | TaskState::Stalled => "running",
                TaskState::Lost => "lost",
                TaskState::Done => "done",
                TaskState::Failed => "failed",
                TaskState::Cancelled => "cancelled",
                _ => "abandoned",
            };
            let shown = Shown {
                attempt: task.attempt,
                state: state.to_owned(),
                done: task.done,
                cancelling: task.cancelling,
            };
            (task.name.clone(), shown)
        });
        Self {
            revision: view.revision.0,
            tasks: tasks.collect(),
        }
    }
}

/// A report.
#[derive(Debug, Clone)]
struct Report {
    attempt: u32,
    state: String,
    done: u64,
    checkpoint: Option<u64>,
    /// When it was written.
    at: i64,
}

impl Report {
    fn read(value: &[u8], at: i64) -> Option<Self> {
        let record: Value = serde_json::from_slice(value).ok()?;
        Some(Self {
            attempt: u32::try_from(record["attempt"].as_u64()?).ok()?,
            state: record["state"].as_str()?.to_owned(),
            done: record["done"].as_u64()?,
            checkpoint: record["checkpoint"].as_u64(),
            at,
        })
    }

    fn is_end(&self) -> bool {
        ENDS.contains(&&*self.state)
    }
}

/// Who has the right to report.
#[derive(Debug, Clone, Copy)]
struct Owner {
    created: i64,
    /// The attempt that has reported under it.
    attempt: Option<u32>,
}

/// A task at a revision.
#[derive(Debug, Clone, Default)]
struct Standing {
    report: Option<Report>,
    owner: Option<Owner>,
    cancelling: bool,
}

impl Standing {
    fn has_ended(&self) -> bool {
        self.owner.is_none() && self.report.as_ref().is_some_and(Report::is_end)
    }

    fn shown(&self) -> Option<Shown> {
        let report = self.report.as_ref()?;
        let worked_on = self.owner.is_some_and(|owner| owner.created < report.at);
        let state = match &*report.state {
            "running" if !worked_on => "lost",
            state => state,
        };
        Some(Shown {
            attempt: report.attempt,
            state: state.to_owned(),
            done: report.done,
            cancelling: self.cancelling,
        })
    }
}

/// What one commit does to a task.
#[derive(Debug, Default)]
struct Step {
    report: Option<Report>,
    /// When the owner key was created, or that it has gone.
    owner: Option<Option<i64>>,
    cancelling: Option<bool>,
}

/// The attempts, as they went through a history.
#[derive(Debug, Default)]
pub(super) struct Attempts {
    tasks: BTreeMap<String, Standing>,
    /// The same after each revision that changed something.
    states: BTreeMap<i64, BTreeMap<String, Standing>>,
    /// How each attempt began: with which checkpoint, and whether it was asked to end.
    begun: BTreeMap<Attempt, (Option<u64>, bool)>,
    /// The checkpoints that each attempt wrote.
    written: BTreeMap<Attempt, BTreeSet<u64>>,
    /// How each attempt ended that did not get lost.
    ended: BTreeMap<Attempt, String>,
}

impl Attempts {
    /// Reads a history, and judges what was written.
    ///
    /// # Errors
    /// What is broken.
    pub(super) fn of(history: &History) -> Result<Self, String> {
        let mut all = Self::default();
        for commit in &history.commits {
            let mut steps: BTreeMap<String, Step> = BTreeMap::new();
            for change in &commit.changes {
                let key = key_of(change);
                let of_task = key.strip_prefix(PREFIX).and_then(|key| key.split_once('/'));
                let Some((kind, task)) = of_task else {
                    continue;
                };
                let task = decode(task).ok_or(format!("no task's key: {key}"))?;
                let step = steps.entry(task).or_default();
                let kv = change.kv.as_ref();
                let put = kv.filter(|_| change.r#type() == EventType::Put);
                match kind {
                    "record" => {
                        let value = put.map(|kv| &kv.value[..]).unwrap_or_default();
                        let report = Report::read(value, commit.revision.0);
                        step.report = Some(report.ok_or(format!("{key} is no report"))?);
                    }
                    "owner" => step.owner = Some(put.map(|kv| kv.create_revision)),
                    _ => step.cancelling = Some(put.is_some()),
                }
            }
            let changed = !steps.is_empty();
            for (task, step) in steps {
                let before = all.tasks.get(&task).cloned().unwrap_or_default();
                let after = all.judge(&task, &before, step);
                let after = after.map_err(|broken| {
                    format!("revision {}: task {task} {broken}", commit.revision)
                })?;
                all.tasks.insert(task, after);
            }
            if changed {
                all.states.insert(commit.revision.0, all.tasks.clone());
            }
        }
        Ok(all)
    }

    fn judge(&mut self, task: &str, before: &Standing, step: Step) -> Result<Standing, String> {
        let mut after = before.clone();
        if let Some(owner) = step.owner {
            after.owner = owner.map(|created| Owner {
                created,
                attempt: None,
            });
        }
        let ends = step.report.as_ref().is_some_and(Report::is_end);
        match step.cancelling {
            Some(true) if before.has_ended() => return Err("is asked to end, and has".to_owned()),
            Some(false) if !ends => return Err("is not asked to end any more".to_owned()),
            None if ends && before.cancelling => {
                return Err("has ended, and is asked to".to_owned());
            }
            _ => {}
        }
        after.cancelling = step.cancelling.unwrap_or(before.cancelling);
        if let Some(report) = step.report {
            self.judge_report(task, before, &report)?;
            match &mut after.owner {
                Some(owner) if report.state == "running" => owner.attempt = Some(report.attempt),
                None if report.state != "running" => {
                    let attempt = (task.to_owned(), report.attempt);
                    self.ended.insert(attempt, report.state.clone());
                }
                owner => return Err(format!("is {}, and owned: {owner:?}", report.state)),
            }
            after.report = Some(report);
        }
        Ok(after)
    }

    fn judge_report(
        &mut self,
        task: &str,
        before: &Standing,
        report: &Report,
    ) -> Result<(), String> {
        let known = before.report.as_ref();
        let same = known.filter(|known| known.attempt == report.attempt);
        if same.is_some_and(|same| same.state != "running") {
            return Err(format!("is written after its end: {report:?}"));
        }
        let Some(owner) = before.owner else {
            return Err(format!("is written without its owner key: {report:?}"));
        };
        let attempt = (task.to_owned(), report.attempt);
        match (owner.attempt, same) {
            (None, None) => {
                if report.attempt != known.map_or(0, |known| known.attempt) + 1 {
                    return Err(format!("is begun by {report:?} after {known:?}"));
                }
                let unfinished = known.filter(|known| known.state != "done");
                let handed = unfinished.and_then(|known| known.checkpoint);
                if report.checkpoint != handed {
                    return Err(format!("does not go on from {handed:?}: {report:?}"));
                }
                self.begun
                    .insert(attempt.clone(), (handed, before.cancelling));
            }
            (Some(owns), Some(same)) if owns == report.attempt => {
                if report.done < same.done || report.checkpoint < same.checkpoint {
                    return Err(format!("goes back from {same:?} to {report:?}"));
                }
            }
            _ => return Err(format!("of {owner:?} is written by another: {report:?}")),
        }
        let written = self.written.entry(attempt).or_default();
        written.extend(report.checkpoint);
        Ok(())
    }

    /// Judges what clients were told.
    ///
    /// # Errors
    /// What is broken.
    pub(super) fn check(&self, told: &Told) -> Result<(), String> {
        let mut begun = BTreeSet::new();
        for started in &told.started {
            let (handed, cancelling) = self
                .begun
                .get(&started.attempt)
                .ok_or(format!("{started:?} never began"))?;
            if !begun.insert(&started.attempt) {
                return Err(format!("two clients have begun {:?}", started.attempt));
            }
            if *handed != started.handed {
                return Err(format!("{started:?}, and it was given {handed:?}"));
            }
            if *cancelling && !started.cancelling {
                return Err(format!("{started:?}, and it was asked to end before"));
            }
        }
        for (attempt, checkpoint) in &told.flushed {
            let written = self.written.get(attempt);
            if !written.is_some_and(|written| written.contains(checkpoint)) {
                return Err(format!("{checkpoint} of {attempt:?} was not written"));
            }
            let done = self.ended.get(attempt).is_some_and(|end| end == "done");
            let next = self.begun.get(&(attempt.0.clone(), attempt.1 + 1));
            if !done && next.is_some_and(|(handed, _)| *handed < Some(*checkpoint)) {
                return Err(format!("{checkpoint} of {attempt:?} was given to nobody"));
            }
        }
        for (attempt, word) in &told.ended {
            let ended = self.ended.get(attempt);
            if ended.map(String::as_str) != Some(*word) {
                return Err(format!("{attempt:?}: told {word}, and it is {ended:?}"));
            }
        }
        for (attempt, word) in &told.refused {
            if self.ended.get(attempt).is_some_and(|ended| ended == word) {
                return Err(format!("{attempt:?} is {word}, and told not to be"));
            }
        }
        told.asked
            .iter()
            .try_for_each(|asked| self.judge_asked(asked))
    }

    /// A task was asked to end if it had not ended.
    fn judge_asked(&self, asked: &Asked) -> Result<(), String> {
        let at_first = state_at(&self.states, asked.from).into_iter();
        let later = (Bound::Excluded(asked.from), Bound::Included(asked.to));
        let later = self.states.range(later);
        let states = at_first.chain(later.map(|(_, state)| state));
        let mut standing = states.filter_map(|state| state.get(&asked.task));
        let holds = match asked.asked {
            true => standing.any(|task| {
                let report = task.report.as_ref();
                task.cancelling || report.is_some_and(|report| report.state == "cancelled")
            }),
            false => standing.any(Standing::has_ended),
        };
        match holds {
            true => Ok(()),
            false => Err(format!("{asked:?} is not so")),
        }
    }

    /// Judges the views of one observer.
    ///
    /// # Errors
    /// What is broken.
    pub(super) fn check_views(&self, seen: &[Seen]) -> Result<(), String> {
        let mut last = 0;
        for view in seen {
            if view.revision < last {
                return Err(format!("view {} comes after view {last}", view.revision));
            }
            last = view.revision;
            let state = state_at(&self.states, view.revision);
            let state = state.map(shown).unwrap_or_default();
            if view.tasks != state {
                return Err(format!("{view:?}, and not {state:?}"));
            }
        }
        let end = shown(&self.tasks);
        match seen.last() {
            Some(view) if view.tasks == end => Ok(()),
            last => Err(format!("the last view is {last:?}, and not {end:?}")),
        }
    }
}

fn shown(tasks: &BTreeMap<String, Standing>) -> BTreeMap<String, Shown> {
    let shown = tasks.iter();
    let shown = shown.filter_map(|(task, standing)| Some((task.clone(), standing.shown()?)));
    shown.collect()
}
