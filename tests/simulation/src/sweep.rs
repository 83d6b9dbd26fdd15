//! Many worlds, on a few threads; what they went through, and the first that broke.

use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use crate::scenarios::Run;
use crate::world::Outcome;

/// Least part of the worlds that each kind of fault must have come in, in percent.
const PERCENT_MIN: u64 = 5;

/// Fewer worlds than this say nothing about how often faults come.
const WORLDS_MIN: u64 = 100;

/// What many worlds were like.
#[derive(Debug, Default)]
pub struct Report {
    /// How many there were.
    pub worlds: u64,
    /// Uses of the recipe in all of them.
    pub operations: u64,
    /// For each kind of fault, in how many worlds it came, and how often in all.
    pub faults: Vec<(&'static str, u64, u64)>,
    /// The broken world of the lowest seed among those that were run.
    pub broken: Option<Box<Outcome>>,
}

/// Runs the worlds of these seeds on so many threads. Stops at the first one that is broken.
#[must_use]
pub fn sweep(run: Run, seeds: Range<u64>, threads: usize) -> Report {
    let next = AtomicU64::new(seeds.start);
    let stop = AtomicBool::new(false);
    let report = Mutex::new(Report::default());
    std::thread::scope(|scope| {
        for _ in 0..threads.max(1) {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= seeds.end {
                        return;
                    }
                    let outcome = run(seed);
                    if outcome.broken.is_some() {
                        stop.store(true, Ordering::Relaxed);
                    }
                    let mut report = report.lock().unwrap_or_else(PoisonError::into_inner);
                    report.add(outcome);
                }
            });
        }
    });
    report.into_inner().unwrap_or_else(PoisonError::into_inner)
}

impl Report {
    fn add(&mut self, outcome: Outcome) {
        self.worlds += 1;
        self.operations += outcome.operations;
        let faults = outcome.faults.by_kind();
        if self.faults.is_empty() {
            self.faults = faults
                .map(|(kind, n)| (kind, u64::from(n > 0), n))
                .collect();
        } else {
            for (known, (_, n)) in self.faults.iter_mut().zip(faults) {
                known.1 += u64::from(n > 0);
                known.2 += n;
            }
        }
        let lower = |broken: &Outcome| outcome.seed < broken.seed;
        if outcome.broken.is_some() && self.broken.as_deref().is_none_or(lower) {
            self.broken = Some(Box::new(outcome));
        }
    }

    /// The kinds of faults that came in less than one world in twenty. Those of writes are kinds of their
    /// own: what befalls reads alone tests little.
    #[must_use]
    pub fn rare(&self) -> Vec<&'static str> {
        if self.worlds < WORLDS_MIN {
            return Vec::new();
        }
        let rare = |seen: u64| seen * 100 < self.worlds * PERCENT_MIN;
        let kinds = self.faults.iter().filter(|(_, seen, _)| rare(*seen));
        kinds.map(|(kind, ..)| *kind).collect()
    }
}
