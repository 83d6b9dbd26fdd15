//! What the demo shows: a bar for each worker and one for the whole on a terminal, plain lines
//! elsewhere.

use std::collections::BTreeMap;
use std::io::{IsTerminal as _, Write as _};
use std::time::Duration;

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use quorate::core::clock::{self, Instant};
use quorate::recipes::progress::{JobView, TaskState, TaskView};

use super::keys;

/// How often plain lines say how far it is.
const LINE_EVERY: Duration = Duration::from_secs(1);

/// The demo's output.
#[derive(Debug)]
pub(crate) struct Screen {
    began: Instant,
    bars: Option<Bars>,
    last_line: Option<Instant>,
    /// What the last primary reported of the whole; a new one begins its report anew.
    done: u64,
}

#[derive(Debug)]
struct Bars {
    all: MultiProgress,
    whole: ProgressBar,
    workers: BTreeMap<String, ProgressBar>,
}

impl Screen {
    /// An empty screen; `files` is how long the bar of the whole is.
    pub(crate) fn new(files: u64) -> Self {
        let bars = std::io::stdout().is_terminal().then(|| {
            let all = MultiProgress::new();
            let whole = all.add(ProgressBar::new(files));
            whole.set_style(style(
                "{prefix:>8} [{bar:32.green}] {pos}/{len} files  {msg}",
            ));
            whole.set_prefix("whole");
            Bars {
                all,
                whole,
                workers: BTreeMap::new(),
            }
        });
        Self {
            began: clock::now(),
            bars,
            last_line: None,
            done: 0,
        }
    }

    /// Prints one line of what happened, with the time since the start.
    pub(crate) fn say(&self, line: &str) {
        let line = format!("{:>6.2}s  {line}", self.began.elapsed().as_secs_f64());
        match &self.bars {
            // A terminal that went away is no reason to stop the work.
            Some(bars) => drop(bars.all.println(line)),
            None => plain(&line),
        }
    }

    /// Shows how far each worker and the whole are.
    pub(crate) fn show(&mut self, job: &JobView) {
        let reported = job.task(keys::WHOLE).map_or(0, |whole| whole.done);
        self.done = self.done.max(reported);
        let done = self.done;
        let whole = job.task(keys::WHOLE).map(speed).unwrap_or_default();
        let Some(bars) = &mut self.bars else {
            if self
                .last_line
                .is_none_or(|last| last.elapsed() >= LINE_EVERY)
            {
                self.last_line = Some(clock::now());
                let workers = job.tasks.iter().filter(|task| task.name != keys::WHOLE);
                let workers: Vec<_> = workers.map(brief).collect();
                let whole = joined(", ", [format!("{done} files done"), whole]);
                self.say(&format!("{whole}  ({})", workers.join(", ")));
            }
            return;
        };
        bars.whole.set_position(done);
        bars.whole.set_message(whole);
        for task in job.tasks.iter().filter(|task| task.name != keys::WHOLE) {
            // A worker knows its share once it has claimed a batch.
            let Some(total) = task.total else { continue };
            let bar = bars.workers.entry(task.name.clone()).or_insert_with(|| {
                let bar = bars.all.add(ProgressBar::new(total));
                bar.set_style(style(
                    "{prefix:>8} [{bar:32.cyan}] {pos}/{len} files  {msg}",
                ));
                bar.set_prefix(task.name.clone());
                bar
            });
            bar.set_length(total.max(task.done));
            bar.set_position(task.done);
            bar.set_message(joined("  ", [speed(task), word(task.state).to_owned()]));
        }
    }

    /// Shows the last view, and leaves it there.
    pub(crate) fn finish(&mut self, job: &JobView) {
        self.last_line = None;
        self.show(job);
        if let Some(bars) = &self.bars {
            bars.workers.values().for_each(ProgressBar::abandon);
            bars.whole.abandon();
        }
    }
}

fn style(template: &str) -> ProgressStyle {
    let style = ProgressStyle::with_template(template).expect("a template of this file");
    style.progress_chars("=> ")
}

/// A worker in a line among others: `w1 40/150 12/s 9 s left`.
fn brief(task: &TaskView) -> String {
    let of = task.total.map(|total| format!("/{total}"));
    let done = format!("{} {}{}", task.name, task.done, of.unwrap_or_default());
    let speed = speed(task).replace(',', "");
    joined(" ", [done, speed, word(task.state).to_owned()])
}

/// The rate, and the time left while something is left: `12/s, 9 s left`.
fn speed(task: &TaskView) -> String {
    if !task.state.is_active() {
        return String::new();
    }
    let rate = task.rate.map(|rate| format!("{rate:.0}/s"));
    let eta = task
        .eta
        .filter(|_| task.total.is_some_and(|total| task.done < total));
    let left = eta.map(|eta| format!("{:.0} s left", eta.likely.as_secs_f64()));
    joined(", ", [rate.unwrap_or_default(), left.unwrap_or_default()])
}

/// What there is of the parts.
fn joined<const N: usize>(between: &str, parts: [String; N]) -> String {
    let parts: Vec<_> = parts.into_iter().filter(|part| !part.is_empty()).collect();
    parts.join(between)
}

fn word(state: TaskState) -> &'static str {
    match state {
        TaskState::Running => "",
        TaskState::Stalled => "stalled",
        TaskState::Done => "done",
        TaskState::Failed => "failed",
        TaskState::Abandoned => "abandoned",
        TaskState::Lost => "lost",
        _ => "",
    }
}

/// Prints a line. A reader that went away is no reason to stop the work: the exit code tells too.
pub(crate) fn plain(line: &str) {
    drop(writeln!(std::io::stdout(), "{line}"));
}
