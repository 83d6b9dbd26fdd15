//! What happened in one phase: latencies, failures by kind, and how far the store got. All clients
//! of the phase write into one.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use hdrhistogram::Histogram;
use quorate::core::clock::Instant;
use tonic::Status;

/// The longest latency that is told from longer ones.
const LATENCY_MAX: Duration = Duration::from_secs(3600);
/// Decimal digits of a latency that are kept.
const DIGITS: u8 = 3;
/// Kinds of failures that are told apart; the rest is one.
const KINDS_MAX: usize = 16;
/// Characters of a kind's name.
const KIND_CHARS: usize = 160;
const OTHER: &str = "other";

/// Latencies, in microseconds.
#[derive(Debug, Clone)]
pub(super) struct Latencies(Histogram<u64>);

impl Latencies {
    fn new() -> Self {
        let histogram = Histogram::new_with_bounds(1, micros(LATENCY_MAX), DIGITS);
        Self(histogram.expect("bounds that a histogram takes"))
    }

    fn add(&mut self, latency: Duration) {
        self.0.saturating_record(micros(latency));
    }

    /// How many there are.
    pub(super) fn count(&self) -> u64 {
        self.0.len()
    }

    /// The latency that this part of all did not exceed.
    pub(super) fn quantile(&self, part: f64) -> Duration {
        Duration::from_micros(self.0.value_at_quantile(part))
    }

    /// The longest, within the kept digits.
    pub(super) fn max(&self) -> Duration {
        Duration::from_micros(self.0.max())
    }

    /// The mean.
    pub(super) fn mean(&self) -> Duration {
        Duration::from_secs_f64(self.0.mean() / 1e6)
    }
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

/// How often each kind of failure happened.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Kinds(BTreeMap<String, u64>);

impl Kinds {
    fn add(&mut self, kind: &str, times: u64) {
        let kind: String = kind.chars().take(KIND_CHARS).collect();
        let known = self.0.contains_key(&kind) || self.0.len() < KINDS_MAX;
        let kind = if known { kind } else { OTHER.to_owned() };
        *self.0.entry(kind).or_default() += times;
    }

    /// Each kind and how often, in alphabetical order.
    pub(super) fn iter(&self) -> impl Iterator<Item = (&str, u64)> {
        self.0.iter().map(|(kind, times)| (kind.as_str(), *times))
    }
}

/// The kind of failure that a status is: its code and text.
pub(super) fn kind(status: &Status) -> String {
    match status.message() {
        "" => format!("{:?}", status.code()),
        text => format!("{:?}: {text}", status.code()),
    }
}

/// What happened so far.
#[derive(Debug, Clone)]
pub(super) struct Figures {
    /// Of the requests that succeeded.
    pub(super) latencies: Latencies,
    /// Of parts of requests, or of what came of them, by name.
    pub(super) parts: BTreeMap<&'static str, Latencies>,
    /// Requests that succeeded, by endpoint.
    pub(super) by_endpoint: Vec<u64>,
    /// Requests that failed.
    pub(super) failed: u64,
    /// What went wrong, requests and everything else that was watched.
    pub(super) errors: Kinds,
    /// Calls to the store that failed below a request of a recipe, which repeats them by itself.
    pub(super) store_errors: Kinds,
    /// The highest revision that an answer named.
    pub(super) revision: i64,
    /// When the last request ended.
    pub(super) last: Option<Instant>,
}

/// The place where a phase's clients write what they saw.
#[derive(Debug)]
pub(super) struct Tally {
    id: u64,
    figures: Mutex<Figures>,
}

impl Tally {
    /// An empty one for requests to this many endpoints; `id` tells phases apart, also those of
    /// other runs.
    pub(super) fn new(id: u64, endpoints: usize) -> Self {
        let figures = Figures {
            latencies: Latencies::new(),
            parts: BTreeMap::new(),
            by_endpoint: vec![0; endpoints],
            failed: 0,
            errors: Kinds::default(),
            store_errors: Kinds::default(),
            revision: 0,
            last: None,
        };
        Self {
            id,
            figures: Mutex::new(figures),
        }
    }

    /// Which phase of which run this is.
    pub(super) fn id(&self) -> u64 {
        self.id
    }

    /// A request to `endpoint` that counts from `from` ended at `now`: at a revision, or in a
    /// failure of some kind.
    pub(super) fn request(
        &self,
        endpoint: usize,
        from: Instant,
        now: Instant,
        ended: Result<i64, String>,
    ) {
        let mut figures = self.figures();
        figures.last = figures.last.max(Some(now));
        match ended {
            Ok(revision) => {
                figures.latencies.add(now.saturating_duration_since(from));
                figures.by_endpoint[endpoint] += 1;
                figures.revision = figures.revision.max(revision);
            }
            Err(kind) => {
                figures.failed += 1;
                figures.errors.add(&kind, 1);
            }
        }
    }

    /// A part of a request, or what came of one, took these.
    pub(super) fn part(&self, name: &'static str, took: impl IntoIterator<Item = Duration>) {
        let mut figures = self.figures();
        let part = figures.parts.entry(name).or_insert_with(Latencies::new);
        took.into_iter().for_each(|took| part.add(took));
    }

    /// Something went wrong `times` beside the requests.
    pub(super) fn error(&self, kind: &str, times: u64) {
        if times > 0 {
            self.figures().errors.add(kind, times);
        }
    }

    /// A call to the store failed below a request.
    pub(super) fn store_error(&self, kind: &str) {
        self.figures().store_errors.add(kind, 1);
    }

    /// Takes over what went wrong in `earlier`, so that it is told although it was not measured.
    pub(super) fn take_over(&self, earlier: &Self) {
        let earlier = earlier.snapshot();
        let mut figures = self.figures();
        figures.failed += earlier.failed;
        for (kind, times) in earlier.errors.iter() {
            figures.errors.add(kind, times);
        }
    }

    /// What happened so far.
    pub(super) fn snapshot(&self) -> Figures {
        self.figures().clone()
    }

    /// Looks at what happened so far, without a copy.
    pub(super) fn look<T>(&self, at: impl FnOnce(&Figures) -> T) -> T {
        at(&self.figures())
    }

    fn figures(&self) -> MutexGuard<'_, Figures> {
        self.figures.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use quorate::core::clock;
    use tonic::Code;

    use super::*;

    fn total(kinds: &Kinds) -> u64 {
        kinds.0.values().sum()
    }

    #[test]
    fn percentiles_are_those_of_the_requests_that_succeeded() {
        let tally = Tally::new(1, 2);
        let from = clock::now();
        for n in 1..=1000 {
            let now = from + Duration::from_micros(n);
            tally.request(
                usize::from(n > 900),
                from,
                now,
                Ok(i64::try_from(n).unwrap()),
            );
        }
        let late = from + Duration::from_secs(60);
        tally.request(0, from, late, Err("no answer".into()));
        let figures = tally.snapshot();
        let quantile = |part| figures.latencies.quantile(part).as_micros();
        assert_eq!([0.5, 0.9, 0.99, 0.999].map(quantile), [500, 900, 990, 999]);
        assert_eq!(figures.latencies.max(), Duration::from_micros(1000));
        assert_eq!(figures.latencies.mean(), Duration::from_nanos(500_500));
        assert_eq!(figures.latencies.count(), 1000);
        assert_eq!(figures.by_endpoint, [900, 100]);
        assert_eq!(figures.revision, 1000);
        assert_eq!((figures.failed, total(&figures.errors)), (1, 1));
        assert_eq!(figures.last, Some(late));
    }

    #[test]
    fn long_latencies_keep_their_digits_and_endless_ones_are_an_hour() {
        let mut latencies = Latencies::new();
        latencies.add(Duration::from_millis(12_345));
        let off = latencies
            .quantile(1.0)
            .abs_diff(Duration::from_millis(12_345));
        assert!(off < Duration::from_millis(13), "{off:?}");
        latencies.add(Duration::from_secs(1_000_000));
        assert!(latencies.max() >= LATENCY_MAX);
        assert!(latencies.max() < LATENCY_MAX + Duration::from_secs(4));
    }

    #[test]
    fn failures_are_told_apart_up_to_a_bound() {
        let unavailable = Status::new(Code::Unavailable, "etcdserver: no leader");
        assert_eq!(kind(&unavailable), "Unavailable: etcdserver: no leader");
        assert_eq!(kind(&Status::new(Code::Cancelled, "")), "Cancelled");
        let mut kinds = Kinds::default();
        for n in 0..100 {
            kinds.add(&format!("kind {:02}", n % 50), 1);
        }
        assert_eq!(kinds.0.len(), KINDS_MAX + 1);
        assert_eq!(total(&kinds), 100);
        assert_eq!(kinds.0[OTHER], 100 - 2 * 16);
        kinds.add(&"x".repeat(1000), 1);
        assert!(kinds.0.keys().all(|kind| kind.len() <= KIND_CHARS));
    }

    #[test]
    fn what_went_wrong_before_the_measurement_is_told_and_not_measured() {
        let (before, measured) = (Tally::new(1, 1), Tally::new(2, 1));
        let now = clock::now();
        before.request(0, now, now, Err("a".into()));
        before.request(0, now, now, Ok(7));
        measured.take_over(&before);
        let figures = measured.snapshot();
        assert_eq!((figures.failed, total(&figures.errors)), (1, 1));
        assert_eq!((figures.latencies.count(), figures.revision), (0, 0));
        assert_eq!(figures.last, None);
    }
}
