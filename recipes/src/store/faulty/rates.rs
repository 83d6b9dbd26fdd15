//! How often calls fail at random, in which way, and how often they did.

use std::ops::{Add, Sub};
use std::time::Duration;

use rand::RngExt;
use tokio::time::Instant;

use super::{Calls, Chance};
use crate::clock;

/// How often each fault befalls a call, between 0 and 1, and how long what is delayed takes at most.
/// Of one call at most one of the first five; delays come on top.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Rates {
    /// Not sent, and the caller is told so.
    pub not_sent: f64,
    /// Applied, and the answer is lost.
    pub unanswered: f64,
    /// The caller is told that the outcome is unknown, and it is applied later.
    pub late: f64,
    /// Applied, the answer is lost, and it is applied a second time later.
    pub repeated: f64,
    /// Answered, and applied a second time later. No store may do this (see [`Store`]); something in
    /// between that repeats calls may, and recipes do not stand it: what was taken and given up can
    /// be there again.
    ///
    /// [`Store`]: crate::store::Store
    pub duplicate: f64,
    /// The request, or the answer, takes a while.
    pub delayed: f64,
    /// A watch ends after a while.
    pub watch_cut: f64,
    /// Longest delay of a request or an answer.
    pub delay_max: Duration,
    /// Longest time until a late call, or a second copy, is applied; longest life of a watch that is
    /// to be cut.
    pub late_max: Duration,
}

impl Rates {
    /// Nothing fails.
    pub const NONE: Self = Self {
        not_sent: 0.0,
        unanswered: 0.0,
        late: 0.0,
        repeated: 0.0,
        duplicate: 0.0,
        delayed: 0.0,
        watch_cut: 0.0,
        delay_max: Duration::ZERO,
        late_max: Duration::ZERO,
    };

    /// Calls fail at this rate in all, in each way that a store may as often as in any other, and as
    /// many are delayed; late copies come within 20 s, delays are up to 500 ms.
    #[must_use]
    pub fn evenly(rate: f64) -> Self {
        Self {
            not_sent: rate / 4.0,
            unanswered: rate / 4.0,
            late: rate / 4.0,
            repeated: rate / 4.0,
            duplicate: 0.0,
            delayed: rate,
            watch_cut: rate,
            delay_max: Duration::from_millis(500),
            late_max: Duration::from_secs(20),
        }
    }
}

/// How often each fault befell a call, and, of these, a transaction that may write: a late copy of what
/// only reads does nothing. The difference of two is what happened between.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[expect(missing_docs, reason = "as in `Rates`")]
pub struct FaultCounts {
    pub not_sent: u64,
    pub unanswered: u64,
    pub late: u64,
    pub repeated: u64,
    pub duplicate: u64,
    pub delayed: u64,
    pub watch_cut: u64,
    pub writes_not_sent: u64,
    pub writes_unanswered: u64,
    pub writes_late: u64,
    pub writes_repeated: u64,
}

impl FaultCounts {
    /// Each kind with its name, in the order of the fields.
    #[must_use]
    pub fn by_kind(&self) -> [(&'static str, u64); 11] {
        [
            ("not sent", self.not_sent),
            ("unanswered", self.unanswered),
            ("late", self.late),
            ("repeated", self.repeated),
            ("duplicate", self.duplicate),
            ("delayed", self.delayed),
            ("watch cut", self.watch_cut),
            ("writes not sent", self.writes_not_sent),
            ("writes unanswered", self.writes_unanswered),
            ("writes late", self.writes_late),
            ("writes repeated", self.writes_repeated),
        ]
    }

    fn each(self, other: Self, f: impl Fn(u64, u64) -> u64) -> Self {
        Self {
            not_sent: f(self.not_sent, other.not_sent),
            unanswered: f(self.unanswered, other.unanswered),
            late: f(self.late, other.late),
            repeated: f(self.repeated, other.repeated),
            duplicate: f(self.duplicate, other.duplicate),
            delayed: f(self.delayed, other.delayed),
            watch_cut: f(self.watch_cut, other.watch_cut),
            writes_not_sent: f(self.writes_not_sent, other.writes_not_sent),
            writes_unanswered: f(self.writes_unanswered, other.writes_unanswered),
            writes_late: f(self.writes_late, other.writes_late),
            writes_repeated: f(self.writes_repeated, other.writes_repeated),
        }
    }
}

impl Add for FaultCounts {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        self.each(other, |a, b| a + b)
    }
}

impl Sub for FaultCounts {
    type Output = Self;

    fn sub(self, before: Self) -> Self {
        self.each(before, |a, b| a - b)
    }
}

/// What befalls one call.
pub(super) struct Fate {
    pub(super) fault: Drawn,
    pub(super) before: Duration,
    pub(super) after: Duration,
}

#[derive(Debug, Clone, Copy)]
pub(super) enum Drawn {
    None,
    NotSent,
    Unanswered,
    Late(Duration),
    Repeated(Duration),
    Duplicate(Duration),
}

impl Chance {
    /// What befalls the next call, which may write or only reads.
    pub(super) fn draw(&mut self, kind: Calls, writes: bool) -> Fate {
        let mut fate = Fate {
            fault: Drawn::None,
            before: Duration::ZERO,
            after: Duration::ZERO,
        };
        if self.rates == Rates::NONE {
            return fate;
        }
        let (rates, counts) = (self.rates, &mut self.counts);
        let mut left = self.random.random::<f64>();
        let mut falls = |rate: f64| {
            left -= rate;
            left < 0.0 && left >= -rate
        };
        let late = part_of(rates.late_max, self.random.random());
        if falls(rates.not_sent) {
            counts.not_sent += 1;
            counts.writes_not_sent += u64::from(writes);
            fate.fault = Drawn::NotSent;
        } else if falls(rates.unanswered) {
            counts.unanswered += 1;
            counts.writes_unanswered += u64::from(writes);
            fate.fault = Drawn::Unanswered;
        } else if falls(rates.late) {
            counts.late += 1;
            counts.writes_late += u64::from(writes);
            fate.fault = Drawn::Late(late);
        } else if falls(rates.repeated) {
            counts.repeated += 1;
            counts.writes_repeated += u64::from(writes);
            fate.fault = Drawn::Repeated(late);
        } else if falls(rates.duplicate) && kind != Calls::Read {
            // What is only read leaves nothing behind when it comes again.
            counts.duplicate += 1;
            fate.fault = Drawn::Duplicate(late);
        }
        if self.random.random::<f64>() < rates.delayed {
            counts.delayed += 1;
            let delay = part_of(rates.delay_max, self.random.random());
            match self.random.random::<bool>() {
                true => fate.before = delay,
                false => fate.after = delay,
            }
        }
        fate
    }

    /// When a watch that was just opened is cut, if it is.
    pub(super) fn draw_lifetime(&mut self) -> Option<Instant> {
        if self.rates == Rates::NONE || self.random.random::<f64>() >= self.rates.watch_cut {
            return None;
        }
        self.counts.watch_cut += 1;
        Some(clock::now() + part_of(self.rates.late_max, self.random.random()))
    }
}

fn part_of(most: Duration, part: f64) -> Duration {
    most.mul_f64(part)
}
