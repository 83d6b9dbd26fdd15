//! Puts a load on: every client is a task that takes turns from one schedule and sends requests.

use std::sync::Arc;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};
use quorate::core::clock::{self, Instant};
use tokio::task::JoinSet;

use super::args::Load;
use super::report::{grouped, short};
use super::schedule::{End, Pace, Schedule, counts_from};
use super::tally::Tally;

/// How long a client without a rate pauses after a failure: a server that refuses at once would
/// otherwise be asked as fast as it can refuse.
const FAILURE_PAUSE: Duration = Duration::from_millis(10);
/// How often the progress line changes.
const PROGRESS_EVERY: Duration = Duration::from_millis(250);

/// A client: one request at a time.
pub(super) trait Worker: Send + 'static {
    /// The endpoint that it uses.
    fn endpoint(&self) -> usize;

    /// Sends one request, whose latency counts from `from`, and awaits its answer. Returns the
    /// revision that the answer names, or the kind of failure. It may be dropped at any await.
    fn request(
        &mut self,
        from: Instant,
        tally: &Tally,
    ) -> impl Future<Output = Result<i64, String>> + Send;
}

/// A phase that is over.
#[derive(Debug)]
pub(super) struct Phase {
    /// From its first turn to its last answer.
    pub(super) took: Duration,
    /// Requests that were due and never sent, because no client was free in time.
    pub(super) not_sent: u64,
}

/// Runs `workers` through the warm-up and the measurement. What goes wrong in the warm-up is told
/// with the measurement's; nothing else of it is. Gives the workers back.
///
/// # Errors
/// When a client panicked.
pub(super) async fn drive<W: Worker>(
    workers: Vec<W>,
    load: &Load,
    warmup: &Arc<Tally>,
    measured: &Arc<Tally>,
) -> anyhow::Result<(Vec<W>, Phase)> {
    let mut workers = workers;
    if !load.warmup.is_zero() {
        let end = End::After(load.warmup);
        (workers, _) = phase("warming up", workers, load, end, warmup).await?;
        measured.take_over(warmup);
    }
    phase("measuring", workers, load, load.end, measured).await
}

async fn phase<W: Worker>(
    name: &'static str,
    workers: Vec<W>,
    load: &Load,
    end: End,
    tally: &Arc<Tally>,
) -> anyhow::Result<(Vec<W>, Phase)> {
    let began = clock::now();
    let schedule = Arc::new(Schedule::new(began, load.pace, end));
    let before = attempts(tally);
    let mut tasks = JoinSet::new();
    for worker in workers {
        let (schedule, tally) = (Arc::clone(&schedule), Arc::clone(tally));
        tasks.spawn(client(worker, schedule, load.timeout, tally));
    }
    let progress = Progress::new(name, began, end);
    let mut ticks = tokio::time::interval(PROGRESS_EVERY);
    let mut workers = Vec::with_capacity(tasks.len());
    loop {
        tokio::select! {
            ended = tasks.join_next() => match ended {
                Some(worker) => workers.push(worker?),
                None => break,
            },
            _ = ticks.tick() => progress.show(tally),
        }
    }
    let last = tally.look(|figures| figures.last).unwrap_or(began);
    let not_sent = match load.pace {
        Pace::Closed => 0,
        Pace::Open { .. } => schedule.turns().saturating_sub(attempts(tally) - before),
    };
    let took = last.saturating_duration_since(began);
    Ok((workers, Phase { took, not_sent }))
}

/// Requests that ended, one way or the other.
fn attempts(tally: &Tally) -> u64 {
    tally.look(|figures| figures.latencies.count() + figures.failed)
}

/// One client's task.
async fn client<W: Worker>(
    mut worker: W,
    schedule: Arc<Schedule>,
    limit: Duration,
    tally: Arc<Tally>,
) -> W {
    loop {
        let asked = clock::now();
        let Some(turn) = schedule.turn(asked) else {
            return worker;
        };
        let from = match turn.due {
            None => asked,
            Some(due) => {
                let late = asked > due;
                if !late {
                    tokio::time::sleep_until(due).await;
                }
                counts_from(due, clock::now(), late)
            }
        };
        let request = worker.request(from, &tally);
        let ended = match tokio::time::timeout(limit, request).await {
            Ok(ended) => ended,
            Err(_) => Err(format!("no answer within {}", short(limit))),
        };
        let failed = ended.is_err();
        tally.request(worker.endpoint(), from, clock::now(), ended);
        if failed && turn.due.is_none() {
            tokio::time::sleep(FAILURE_PAUSE).await;
        }
    }
}

/// A line on standard error that says how far it is; nothing where that is no terminal.
struct Progress {
    name: &'static str,
    began: Instant,
    end: End,
    line: ProgressBar,
}

impl Progress {
    fn new(name: &'static str, began: Instant, end: End) -> Self {
        let line = ProgressBar::new_spinner();
        let style = ProgressStyle::with_template("{spinner} {msg}");
        line.set_style(style.expect("a template of this file"));
        Self {
            name,
            began,
            end,
            line,
        }
    }

    fn show(&self, tally: &Tally) {
        if self.line.is_hidden() {
            return;
        }
        let (done, failed, p99) = tally.look(|figures| {
            let latencies = &figures.latencies;
            (latencies.count(), figures.failed, latencies.quantile(0.99))
        });
        let passed = self.began.elapsed();
        let of = match self.end {
            End::Total(total) => format!("{} of {}", grouped(done), grouped(total)),
            End::After(length) => format!(
                "{:.0} of {:.0} s, {} requests",
                passed.as_secs_f64(),
                length.as_secs_f64(),
                grouped(done)
            ),
        };
        self.line.set_message(format!(
            "{}  {of}, {}/s, p99 {}, {failed} failed",
            self.name,
            grouped(per_second(done, passed)),
            short(p99),
        ));
        self.line.tick();
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.line.finish_and_clear();
    }
}

/// The rate of `count` over `time`, rounded; 0 over no time.
fn per_second(count: u64, time: Duration) -> u64 {
    let millis = time.as_millis().max(1);
    u64::try_from(u128::from(count) * 1000 / millis).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Takes 40 ms for its first request and nothing for the others, and fails every fourth.
    struct Stalls {
        sent: u64,
    }

    impl Worker for Stalls {
        fn endpoint(&self) -> usize {
            0
        }

        async fn request(&mut self, _: Instant, _: &Tally) -> Result<i64, String> {
            self.sent += 1;
            match self.sent {
                1 => tokio::time::sleep(Duration::from_millis(40)).await,
                n if n % 4 == 0 => return Err("fourth".into()),
                _ => {}
            }
            Ok(5)
        }
    }

    fn load(pace: Pace, end: End) -> Load {
        Load {
            endpoints: vec!["http://127.0.0.1:1".into()],
            clients: 1,
            connections: 1,
            end,
            warmup: Duration::ZERO,
            pace,
            timeout: Duration::from_secs(1),
            json: true,
        }
    }

    async fn driven(load: &Load) -> (Phase, super::super::tally::Figures) {
        let tallies = [0, 1].map(|id| Arc::new(Tally::new(id, 1)));
        let workers = vec![Stalls { sent: 0 }];
        let phase = drive(workers, load, &tallies[0], &tallies[1]).await;
        (phase.unwrap().1, tallies[1].snapshot())
    }

    #[tokio::test]
    async fn at_a_rate_the_requests_behind_a_slow_one_count_their_waiting() {
        let pace = Pace::Open { per_second: 1000.0 };
        let (phase, figures) = driven(&load(pace, End::Total(40))).await;
        assert_eq!(phase.not_sent, 0);
        assert_eq!((figures.latencies.count(), figures.failed), (30, 10));
        assert!(figures.latencies.max() >= Duration::from_millis(40));
        // Of 40 that were due in 40 ms, half waited for 20 ms or more.
        assert!(figures.latencies.quantile(0.5) >= Duration::from_millis(18));
        assert_eq!(figures.errors.iter().collect::<Vec<_>>(), [("fourth", 10)]);
    }

    #[tokio::test]
    async fn as_fast_as_answered_a_slow_request_holds_up_nobody() {
        let (_, figures) = driven(&load(Pace::Closed, End::Total(40))).await;
        assert_eq!((figures.latencies.count(), figures.failed), (30, 10));
        assert!(figures.latencies.quantile(0.9) < Duration::from_millis(20));
        assert_eq!(figures.revision, 5);
    }

    #[tokio::test]
    async fn requests_that_were_due_and_not_sent_in_time_are_told() {
        let pace = Pace::Open { per_second: 1000.0 };
        let end = End::After(Duration::from_millis(30));
        let (phase, figures) = driven(&load(pace, end)).await;
        assert_eq!((figures.latencies.count(), phase.not_sent), (1, 29));
        assert!(phase.took >= Duration::from_millis(40));
    }

    #[tokio::test]
    async fn a_request_without_an_answer_fails_at_the_limit() {
        let mut load = load(Pace::Closed, End::Total(2));
        load.timeout = Duration::from_millis(10);
        let (_, figures) = driven(&load).await;
        assert_eq!((figures.latencies.count(), figures.failed), (1, 1));
        let kinds: Vec<_> = figures.errors.iter().collect();
        assert_eq!(kinds, [("no answer within 10 ms", 1)]);
    }
}
