//! What many answers come to: rise and fall, and a hold on what flaps. Without a clock of its own.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::clock::{self, Instant};

/// What a prober says of its target.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ProbeState {
    /// It answers.
    Up,
    /// It does not answer.
    Down,
    /// Too few checks have been made, or they do not agree.
    #[default]
    #[serde(other)]
    Unknown,
}

/// What a prober knows.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct ProbeReport {
    /// What it comes to.
    pub state: ProbeState,
    /// Since when.
    pub since: Instant,
    /// Why the last check that failed did; cut at 512 bytes.
    pub reason: Option<String>,
    /// How often it went from up to down lately.
    pub flaps: u32,
    /// Until when it stays down whatever is answered.
    pub held_until: Option<Instant>,
    /// How many checks have been made.
    pub checks: u64,
}

/// How many answers decide.
#[derive(Debug, Clone)]
pub(super) struct Rule {
    pub(super) every: Duration,
    pub(super) timeout: Duration,
    pub(super) rise: u32,
    pub(super) fall: u32,
    pub(super) hold_first: Duration,
    pub(super) hold_longest: Duration,
}

impl Default for Rule {
    fn default() -> Self {
        Self {
            every: Duration::from_secs(5),
            timeout: Duration::from_secs(2),
            rise: 2,
            fall: 3,
            hold_first: Duration::from_secs(10),
            hold_longest: Duration::from_secs(300),
        }
    }
}

impl Rule {
    pub(super) fn validate(&self) -> Result<(), String> {
        let wrong = match self {
            _ if self.every.is_zero() => "the interval of a probe is zero",
            _ if self.timeout.is_zero() => "the time limit of a check is zero",
            _ if self.rise == 0 || self.fall == 0 => "a probe needs checks to decide: at least 1",
            _ if self.hold_longest < self.hold_first => {
                "the longest hold is shorter than the first"
            }
            _ => return Ok(()),
        };
        Err(wrong.to_owned())
    }

    /// How long it stays down that went down so often.
    fn hold(&self, flaps: u32) -> Duration {
        match flaps {
            0 | 1 => Duration::ZERO,
            _ => {
                let times = 1_u32.checked_shl(flaps - 2).unwrap_or(u32::MAX);
                let length = self.hold_first.checked_mul(times);
                length.map_or(self.hold_longest, |length| length.min(self.hold_longest))
            }
        }
    }
}

/// Most bytes of a reason.
const REASON_BYTES_MAX: usize = 512;

/// Most flaps that are counted.
const FLAPS_MAX: u32 = 32;

/// Judges the answers of one target.
#[derive(Debug)]
pub(super) struct Judge {
    rule: Rule,
    report: ProbeReport,
    /// Checks in a row that ended as the last one.
    passed: u32,
    failed: u32,
    /// Since when flaps have been forgiven last, or the last one was counted.
    forgiven: Instant,
}

impl Judge {
    pub(super) fn new(rule: Rule, now: Instant) -> Self {
        Self {
            rule,
            report: ProbeReport {
                state: ProbeState::Unknown,
                since: now,
                reason: None,
                flaps: 0,
                held_until: None,
                checks: 0,
            },
            passed: 0,
            failed: 0,
            forgiven: now,
        }
    }

    pub(super) fn report(&self) -> &ProbeReport {
        &self.report
    }

    /// Takes an answer in.
    pub(super) fn note(&mut self, answer: Result<(), String>, now: Instant) {
        self.forgive(now);
        self.report.checks += 1;
        match answer {
            Ok(()) => {
                self.passed = self.passed.saturating_add(1);
                self.failed = 0;
            }
            Err(reason) => {
                self.failed = self.failed.saturating_add(1);
                self.passed = 0;
                self.report.reason = Some(cut(reason));
            }
        }
        if self.report.held_until.is_some_and(|until| until <= now) {
            self.report.held_until = None;
        }
        match self.report.state {
            ProbeState::Up if self.failed >= self.rule.fall => {
                self.flap(now);
                self.turn(ProbeState::Down, now);
            }
            ProbeState::Unknown if self.failed >= self.rule.fall => {
                self.turn(ProbeState::Down, now);
            }
            ProbeState::Unknown | ProbeState::Down
                if self.passed >= self.rule.rise && self.report.held_until.is_none() =>
            {
                self.turn(ProbeState::Up, now);
            }
            _ => {}
        }
    }

    fn turn(&mut self, state: ProbeState, now: Instant) {
        self.report.state = state;
        self.report.since = now;
    }

    fn flap(&mut self, now: Instant) {
        if self.rule.hold_first.is_zero() {
            return;
        }
        self.report.flaps = (self.report.flaps + 1).min(FLAPS_MAX);
        self.forgiven = now;
        let hold = self.rule.hold(self.report.flaps);
        self.report.held_until = (!hold.is_zero()).then(|| clock::after(now, hold));
    }

    fn forgive(&mut self, now: Instant) {
        let each = self.rule.hold_longest;
        while self.report.flaps > 0 && now.saturating_duration_since(self.forgiven) >= each {
            self.forgiven += each;
            self.report.flaps -= 1;
        }
    }
}

/// The beginning of a reason, whole characters.
fn cut(mut reason: String) -> String {
    let end = reason.floor_char_boundary(REASON_BYTES_MAX);
    reason.truncate(end);
    reason
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Target {
        judge: Judge,
        now: Instant,
    }

    impl Target {
        fn new(change: impl FnOnce(&mut Rule)) -> Self {
            let mut rule = Rule::default();
            change(&mut rule);
            let now = clock::now();
            Self {
                judge: Judge::new(rule, now),
                now,
            }
        }

        /// A second passes, then the answers come, `+` passed and `-` failed; what each led to: `?`, `u`, `d`.
        fn answers(&mut self, answers: &str) -> String {
            let each = answers.chars().map(|answer| {
                self.now += Duration::from_secs(1);
                let answer = match answer {
                    '+' => Ok(()),
                    _ => Err("no answer".to_owned()),
                };
                self.judge.note(answer, self.now);
                match self.judge.report().state {
                    ProbeState::Unknown => '?',
                    ProbeState::Up => 'u',
                    ProbeState::Down => 'd',
                }
            });
            each.collect()
        }
    }

    #[test]
    fn only_so_many_in_a_row_decide() {
        let mut target = Target::new(|_| {});
        assert_eq!(target.answers("+-+--+--+"), "?????????");
        assert_eq!(target.answers("+"), "u");
        assert_eq!(target.answers("--+--+---"), "uuuuuuuud");
        assert_eq!(target.answers("+-+-++"), "dddddu");
        assert_eq!(target.judge.report().reason.as_deref(), Some("no answer"));
        let mut dead = Target::new(|rule| rule.fall = 2);
        assert_eq!(dead.answers("-+--"), "???d");
    }

    #[test]
    fn what_flaps_is_held_longer_each_time_but_not_for_ever() {
        let mut target = Target::new(|rule| {
            (rule.rise, rule.fall) = (1, 1);
            rule.hold_first = Duration::from_secs(4);
            rule.hold_longest = Duration::from_secs(10);
        });
        assert_eq!(target.answers("+-+"), "udu", "once is not held");
        assert_eq!(target.answers("-++++"), "ddddu", "4 s");
        assert_eq!(target.answers("-++++++++"), "ddddddddu", "8 s");
        assert_eq!(target.answers("-++++++++++"), "ddddddddddu", "10 s");
        assert_eq!(
            target.answers("-++++++++++"),
            "ddddddddddu",
            "and no longer"
        );
        let flaps = target.judge.report().flaps;
        assert_eq!(target.answers(&"+".repeat(60)), "u".repeat(60));
        assert!(target.judge.report().flaps < flaps, "forgiven");
        assert_eq!(target.answers("-+"), "du", "as if it were the first time");
    }

    #[test]
    fn reasons_are_cut() {
        assert_eq!(cut("ü".repeat(300)), "ü".repeat(256));
        assert_eq!(cut(format!("a{}", "ü".repeat(300))).len(), 511);
    }
}
