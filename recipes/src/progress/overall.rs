//! A job, or a part of it, as a whole: the sums of its tasks, weighted by how much there is to do in each.
//! The parts are the nodes of the tree that the slashes in the tasks' names make.

use std::collections::BTreeMap;
use std::time::Duration;

use super::rate::{Eta, to_f64};
use super::view::{ALMOST, JobView, TaskState, TaskView};

/// A job, or a part of it, as a whole. What was cancelled is not to be done any more: it is counted, and
/// adds nothing else.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Overall {
    /// How much is done, weighted by how much there is to do in each task: 0.0 to 1.0, and 1.0 only
    /// once every task is done. `None` without a task, or while one of them has no total.
    pub fraction: Option<f64>,
    /// The sum of what is done.
    pub done: u64,
    /// The sum of what there is to do, if every task says so.
    pub total: Option<u64>,
    /// The sum of the rates, if there is one.
    pub rate: Option<f64>,
    /// When the last task will be done. `None` when nothing is left, and while a task that is left
    /// does not move, or not yet long enough to tell.
    pub eta: Option<Eta>,
    /// How many tasks there are.
    pub tasks: usize,
    /// How many of them are done.
    pub finished: usize,
    /// How many stand still although their worker lives.
    pub stalled: usize,
    /// How many have lost their worker.
    pub lost: usize,
    /// How many failed or were abandoned.
    pub failed: usize,
    /// How many were cancelled.
    pub cancelled: usize,
}

impl Overall {
    /// These tasks together, `elapsed` after their view was made.
    pub(super) fn of(all: &[&TaskView], elapsed: Duration) -> Self {
        let count = |state| all.iter().filter(|task| task.state == state).count();
        let wanted = all.iter().filter(|task| task.state != TaskState::Cancelled);
        let tasks: Vec<&TaskView> = wanted.copied().collect();
        let done = tasks.iter().map(|task| task.done);
        let rates: Vec<f64> = tasks.iter().filter_map(|task| task.rate).collect();
        Self {
            fraction: fraction(&tasks),
            done: done.fold(0, u64::saturating_add),
            total: total(&tasks),
            rate: (!rates.is_empty()).then(|| rates.iter().sum()),
            eta: eta(&tasks).map(|eta| eta.after(elapsed)),
            tasks: all.len(),
            finished: count(TaskState::Done),
            stalled: count(TaskState::Stalled),
            lost: count(TaskState::Lost),
            failed: count(TaskState::Failed) + count(TaskState::Abandoned),
            cancelled: count(TaskState::Cancelled),
        }
    }
}

/// Whether there are tasks, and all of them are done but for those that were cancelled.
pub(super) fn all_done<'a>(tasks: impl IntoIterator<Item = &'a TaskView>) -> bool {
    let states = tasks.into_iter().map(|task| task.state);
    let mut wanted = states
        .filter(|state| *state != TaskState::Cancelled)
        .peekable();
    wanted.peek().is_some() && wanted.all(|state| state == TaskState::Done)
}

/// The sum of what there is to do; of a task that is done, what was.
fn total(tasks: &[&TaskView]) -> Option<u64> {
    if tasks.is_empty() {
        return None;
    }
    let mut totals = tasks.iter().map(|task| match task.state {
        TaskState::Done => Some(task.done),
        _ => task.total,
    });
    totals.try_fold(0_u64, |sum, total| Some(sum.saturating_add(total?)))
}

fn fraction(tasks: &[&TaskView]) -> Option<f64> {
    if all_done(tasks.iter().copied()) {
        return Some(1.0);
    }
    let total = total(tasks).filter(|total| *total > 0)?;
    let done = tasks.iter().map(|task| match task.state {
        TaskState::Done => task.done,
        _ => task.done.min(task.total.unwrap_or(task.done)),
    });
    let part = to_f64(done.fold(0, u64::saturating_add)) / to_f64(total);
    Some(part.min(ALMOST))
}

/// When the last of the tasks will be done; nothing while one of them does not move.
fn eta(tasks: &[&TaskView]) -> Option<Eta> {
    let unfinished = tasks.iter().filter(|task| task.state != TaskState::Done);
    let mut all: Option<Eta> = None;
    for task in unfinished {
        let eta = task.eta?;
        all = Some(all.map_or(eta, |all| all.and(eta)));
    }
    all
}

/// Whether a task lies below a node of the tree, or is that node; every task lies below `""`.
pub(super) fn lies_below(task: &str, node: &str) -> bool {
    let rest = task.strip_prefix(node);
    node.is_empty() || rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

/// The nodes that a task lies below, but for itself and `""`: of `a/b/c` these are `a` and `a/b`.
fn nodes_above(task: &str) -> impl Iterator<Item = &str> {
    let ends = task.match_indices('/').map(|(end, _)| end);
    ends.filter(|end| *end > 0).map(|end| &task[..end])
}

impl JobView {
    /// The job as a whole, when the view was made.
    #[must_use]
    pub fn overall(&self) -> Overall {
        self.overall_after(Duration::ZERO)
    }

    pub(super) fn overall_after(&self, elapsed: Duration) -> Overall {
        let tasks: Vec<&TaskView> = self.tasks.iter().collect();
        Overall::of(&tasks, elapsed)
    }

    /// The part of the view that lies below a node of the tree of tasks: below `"a/b"` lie `a/b` itself
    /// and `a/b/c`, and not `a/bc`. Below `""` lies all of it.
    #[must_use]
    pub fn below(&self, node: &str) -> Self {
        let tasks = self.tasks.iter();
        let tasks = tasks.filter(|task| lies_below(&task.name, node)).cloned();
        Self {
            tasks: tasks.collect(),
            ..*self
        }
    }

    /// Every inner node of the tree of tasks, by its path, with all that lies below it: with the tasks
    /// `a/x` and `a/b/y` these are `a` with both and `a/b` with one.
    #[must_use]
    pub fn nodes(&self) -> BTreeMap<&str, Overall> {
        let mut nodes: BTreeMap<&str, Vec<&TaskView>> = BTreeMap::new();
        for task in &self.tasks {
            for node in nodes_above(&task.name) {
                nodes.entry(node).or_default().push(task);
            }
        }
        // A task may have the name of a node.
        for task in &self.tasks {
            if let Some(tasks) = nodes.get_mut(&*task.name) {
                tasks.push(task);
            }
        }
        let overall = |tasks: Vec<_>| Overall::of(&tasks, Duration::ZERO);
        let nodes = nodes.into_iter();
        nodes.map(|(node, tasks)| (node, overall(tasks))).collect()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::client::Identity;
    use crate::clock;
    use crate::keys::Revision;

    fn task(name: &str, state: TaskState, done: u64, total: Option<u64>) -> TaskView {
        let now = clock::now();
        TaskView {
            name: name.to_owned(),
            state,
            done,
            total,
            unit: String::new(),
            stage: String::new(),
            message: String::new(),
            rate: None,
            eta: None,
            attempt: 1,
            cancelling: false,
            owner: Identity {
                host: String::new(),
                pid: 1,
                label: String::new(),
            },
            lease: None,
            started_ms: 0,
            updated_ms: 0,
            advanced: now,
            checkpoint: Arc::default(),
        }
    }

    fn job(tasks: Vec<TaskView>) -> JobView {
        JobView {
            revision: Revision(7),
            tasks,
            at: clock::now(),
            stale_since: None,
        }
    }

    fn names(view: &JobView) -> Vec<&str> {
        view.tasks.iter().map(|task| &*task.name).collect()
    }

    #[test]
    fn a_part_matches_whole_segments() {
        let all = ["a", "a/b", "a/b/c", "a/bc", "a/b/d/e", "ab", "b"];
        let running = |name: &&str| task(name, TaskState::Running, 0, None);
        let view = job(all.iter().map(running).collect());
        let below = view.below("a/b");
        assert_eq!(names(&below), ["a/b", "a/b/c", "a/b/d/e"]);
        assert_eq!(below.revision, view.revision);
        assert_eq!(names(&view.below("a/b/d")), ["a/b/d/e"]);
        assert_eq!(names(&view.below("b")), ["b"]);
        assert_eq!(view.below(""), view);
        for nothing in ["a/", "c", "a/b/c/d", "/"] {
            assert_eq!(names(&view.below(nothing)), [""; 0], "{nothing:?}");
        }
    }

    #[test]
    fn each_node_is_weighted_by_what_lies_below_it() {
        let view = job(vec![
            task("eu", TaskState::Running, 0, Some(100)),
            task("eu/x", TaskState::Running, 50, Some(100)),
            task("eu/y/1", TaskState::Done, 300, None),
            task("eu/y/2", TaskState::Lost, 0, Some(100)),
            task("us/x", TaskState::Failed, 1, None),
            task("whole", TaskState::Running, 1, Some(2)),
        ]);
        let nodes = view.nodes();
        assert_eq!(nodes.keys().collect::<Vec<_>>(), [&"eu", &"eu/y", &"us"]);
        let eu = &nodes["eu"];
        assert_eq!((eu.tasks, eu.finished, eu.lost), (4, 1, 1));
        assert_eq!((eu.done, eu.total), (350, Some(600)));
        assert_eq!(eu.fraction, Some(350.0 / 600.0));
        assert_eq!(nodes["eu/y"].fraction, Some(0.75));
        assert_eq!((nodes["us"].fraction, nodes["us"].failed), (None, 1));
        for (node, overall) in &nodes {
            assert_eq!(*overall, view.below(node).overall(), "{node}");
        }
        assert_eq!(view.overall().tasks, 6);
    }

    #[test]
    fn what_was_cancelled_is_not_waited_for() {
        let cancelled = task("b", TaskState::Cancelled, 10, Some(300));
        let mut view = job(vec![
            task("a", TaskState::Running, 50, Some(100)),
            cancelled.clone(),
        ]);
        let overall = view.overall();
        assert_eq!((overall.tasks, overall.cancelled), (2, 1));
        assert_eq!((overall.done, overall.total), (50, Some(100)));
        assert_eq!((overall.fraction, view.is_done()), (Some(0.5), false));
        view.tasks[0].state = TaskState::Done;
        assert_eq!((view.overall().fraction, view.is_done()), (Some(1.0), true));
        let view = job(vec![cancelled]);
        assert_eq!((view.overall().fraction, view.is_done()), (None, false));
    }

    #[test]
    fn empty_segments_make_no_nodes_of_their_own() {
        let running = |name| task(name, TaskState::Running, 0, None);
        let view = job(vec![running("/a"), running("a//b"), running("c/")]);
        let nodes = view.nodes();
        assert_eq!(nodes.keys().collect::<Vec<_>>(), [&"a", &"a/", &"c"]);
    }
}
