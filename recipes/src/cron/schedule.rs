//! When a job is to run.

use std::fmt;
use std::str::FromStr;

use croner::errors::CronError;
use jiff::civil::DateTime;
use jiff::tz::{AmbiguousOffset, TimeZone};
use jiff::{SignedDuration, Timestamp, Zoned};
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// A time of a schedule, in whole seconds since 1970 (UTC). Shown as a date with its time in UTC.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Slot(pub i64);

impl Slot {
    /// The last whole second of a time in milliseconds since 1970.
    #[must_use]
    pub fn at_millis(millis: u64) -> Self {
        Self(i64::try_from(millis / 1_000).expect("a quarter of the whole numbers fits"))
    }

    /// In milliseconds since 1970.
    #[must_use]
    pub fn millis(self) -> u64 {
        u64::try_from(self.0).unwrap_or(0).saturating_mul(1_000)
    }
}

impl fmt::Display for Slot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match Timestamp::from_second(self.0) {
            Ok(time) => time.fmt(f),
            Err(_) => write!(f, "{} s", self.0),
        }
    }
}

/// A cron pattern in a time zone: `"0 3 * * *".parse::<Schedule>()?.in_zone("Europe/Berlin")?`. UTC unless said
/// otherwise.
///
/// The pattern has five fields (minute, hour, day of the month, month, day of the week), or six with seconds
/// in front, or seven with the year behind, as [croner](https://docs.rs/croner) reads them: lists, ranges, steps,
/// names of days and months, `L`, `#`, `W`, and `@hourly`, `@daily`, `@weekly`, `@monthly`, `@yearly`. With both a
/// day of the month and a day of the week either is enough.
///
/// A pattern whose second, minute and hour are numbers, lists and ranges of them (`0 2,14 * * *`) names times of
/// day: where clocks are put forward, one that does not exist is taken as the first time after the gap, once for all
/// that fall there; where they are put back, one that comes twice counts the first time. A pattern with a `*` or a
/// step in one of the three (`*/5 * * * *`, `0 */2 * * *`) recurs: it runs whenever the clocks show a time that
/// fits, so not at all for one that they leave out, and twice for one that they show twice.
#[derive(Debug, Clone)]
pub struct Schedule {
    text: String,
    pattern: croner::Cron,
    zone: TimeZone,
}

impl Schedule {
    /// The same pattern by the clocks of this zone of the IANA database, such as `Europe/Berlin`: the system's
    /// copy of the database, else one that is built in.
    ///
    /// # Errors
    /// [`Error::Invalid`] for a zone that is not known.
    pub fn in_zone(mut self, zone: &str) -> Result<Self> {
        self.zone = TimeZone::get(zone).map_err(|error| Error::Invalid(error.to_string()))?;
        Ok(self)
    }

    /// The first time after this one; `None` when there is none any more.
    #[must_use]
    pub fn next_after(&self, at: Slot) -> Option<Slot> {
        let now = self.zoned(at)?;
        if !self.names_times() {
            return self.slot(self.pattern.find_next_occurrence(&now, false));
        }
        let mut time = now.datetime();
        loop {
            let found = self.pattern.find_next_occurrence(&by_no_zone(time)?, false);
            time = self.found(found)?.datetime();
            // Less when clocks were put back since it was there for the first time.
            let slot = self.first_at(time)?;
            if slot > at {
                return Some(slot);
            }
        }
    }

    /// This time if it is one of the schedule, else the last one before; `None` when there was none.
    #[must_use]
    pub fn last_until(&self, at: Slot) -> Option<Slot> {
        let now = self.zoned(at)?;
        if !self.names_times() {
            return self.slot(self.pattern.find_previous_occurrence(&now, true));
        }
        let time = self.last_shown(&now)?;
        let found = self
            .pattern
            .find_previous_occurrence(&by_no_zone(time)?, true);
        self.first_at(self.found(found)?.datetime())
    }

    pub(super) fn pattern(&self) -> &str {
        &self.text
    }

    /// The name of the zone.
    pub(super) fn zone(&self) -> &str {
        self.zone.iana_name().unwrap_or("UTC")
    }

    /// Whether the pattern names times of day, other than what recurs.
    fn names_times(&self) -> bool {
        let pattern = &self.pattern.pattern;
        [&pattern.seconds, &pattern.minutes, &pattern.hours]
            .iter()
            .all(|field| !field.from_wildcard && field.step == 1)
    }

    /// When the clocks show this time for the first time, or one that is not before it.
    fn first_at(&self, time: DateTime) -> Option<Slot> {
        let found = match self.zone.to_ambiguous_timestamp(time).offset() {
            AmbiguousOffset::Unambiguous { offset } => offset.to_timestamp(time).ok()?,
            AmbiguousOffset::Fold { before, .. } => before.to_timestamp(time).ok()?,
            AmbiguousOffset::Gap { after, .. } => {
                // By the clocks as they are after the gap, it is before it.
                let before_gap = after.to_timestamp(time).ok()?;
                self.zone.following(before_gap).next()?.timestamp()
            }
        };
        Some(Slot(found.as_second()))
    }

    /// The last time of day that the clocks have shown until now, also if they have been put back since.
    fn last_shown(&self, now: &Zoned) -> Option<DateTime> {
        let shown = now.datetime();
        match self.zone.to_ambiguous_timestamp(shown).offset() {
            AmbiguousOffset::Fold { before, after } if now.offset() == after => {
                let second = SignedDuration::from_secs(1);
                let until_now = now.timestamp().checked_add(second).ok()?;
                let put_back = self.zone.preceding(until_now).next()?.timestamp();
                Some(before.to_datetime(put_back.checked_sub(second).ok()?))
            }
            _ => Some(shown),
        }
    }

    fn zoned(&self, at: Slot) -> Option<Zoned> {
        let time = Timestamp::from_second(at.0).ok()?;
        Some(time.to_zoned(self.zone.clone()))
    }

    fn slot(&self, found: std::result::Result<Zoned, CronError>) -> Option<Slot> {
        Some(Slot(self.found(found)?.timestamp().as_second()))
    }

    fn found(&self, found: std::result::Result<Zoned, CronError>) -> Option<Zoned> {
        found
            .inspect_err(|error| tracing::debug!(schedule = %self, %error, "no more times"))
            .ok()
    }
}

/// The time of day where clocks are never put forward or back.
fn by_no_zone(time: DateTime) -> Option<Zoned> {
    time.to_zoned(TimeZone::UTC).ok()
}

impl FromStr for Schedule {
    type Err = Error;

    /// # Errors
    /// [`Error::Invalid`] for what is no pattern, and for a pattern that no time fits.
    fn from_str(text: &str) -> Result<Self> {
        let pattern = croner::Cron::from_str(text)
            .map_err(|error| Error::Invalid(format!("the schedule {text:?}: {error}")))?;
        let schedule = Self {
            text: text.trim().to_owned(),
            pattern,
            zone: TimeZone::UTC,
        };
        match schedule.next_after(Slot(0)) {
            Some(_) => Ok(schedule),
            None => Err(Error::Invalid(format!(
                "no time fits the schedule {text:?}"
            ))),
        }
    }
}

impl fmt::Display for Schedule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.text, self.zone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn slot(time: &str) -> Slot {
        Slot(time.parse::<Timestamp>().unwrap().as_second())
    }

    fn schedule(text: &str, zone: &str) -> Schedule {
        text.parse::<Schedule>().unwrap().in_zone(zone).unwrap()
    }

    /// The next times after one, in UTC.
    fn next(schedule: &Schedule, after: &str, count: usize) -> Vec<String> {
        let times = std::iter::successors(schedule.next_after(slot(after)), |at| {
            schedule.next_after(*at)
        });
        times.take(count).map(|at| at.to_string()).collect()
    }

    #[test]
    fn what_is_no_schedule_is_refused() {
        for wrong in ["", "* * *", "61 * * * *", "0 0 30 2 *", "tomorrow"] {
            let refused = wrong.parse::<Schedule>();
            assert!(
                matches!(refused, Err(Error::Invalid(_))),
                "{wrong}: {refused:?}"
            );
        }
        let fine: Schedule = "@daily".parse().unwrap();
        assert!(matches!(
            fine.in_zone("Atlantis/Town"),
            Err(Error::Invalid(_))
        ));
    }

    #[test]
    fn times_are_those_of_the_zones_clocks() {
        let nightly = schedule("30 2 * * *", "Europe/Berlin");
        assert_eq!(nightly.to_string(), "30 2 * * * (Europe/Berlin)");
        // 29 March 2026: from 2:00 to 3:00, so 2:30 does not exist. 25 October: 2:30 comes twice.
        assert_eq!(
            next(&nightly, "2026-03-27T12:00:00Z", 3),
            [
                "2026-03-28T01:30:00Z",
                "2026-03-29T01:00:00Z",
                "2026-03-30T00:30:00Z"
            ]
        );
        assert_eq!(
            next(&nightly, "2026-10-23T12:00:00Z", 3),
            [
                "2026-10-24T00:30:00Z",
                "2026-10-25T00:30:00Z",
                "2026-10-26T01:30:00Z"
            ]
        );
        let often = schedule("*/30 * * * *", "Europe/Berlin");
        assert_eq!(
            next(&often, "2026-10-24T23:50:00Z", 5),
            [
                "2026-10-25T00:00:00Z",
                "2026-10-25T00:30:00Z",
                "2026-10-25T01:00:00Z",
                "2026-10-25T01:30:00Z",
                "2026-10-25T02:00:00Z"
            ]
        );
    }

    /// Lists and ranges name times of day as single numbers do.
    #[test]
    fn each_time_of_a_list_is_one_of_the_day() {
        let spring = "2026-03-28T12:00:00Z";
        let autumn = "2026-10-24T10:00:00Z";
        for (pattern, from, expected) in [
            (
                "0 2,14 * * *",
                autumn,
                &[
                    "2026-10-24T12:00:00Z",
                    "2026-10-25T00:00:00Z",
                    "2026-10-25T13:00:00Z",
                ][..],
            ),
            (
                "0 2,14 * * *",
                spring,
                &[
                    "2026-03-28T13:00:00Z",
                    "2026-03-29T01:00:00Z",
                    "2026-03-29T12:00:00Z",
                ],
            ),
            // What falls into the gap is one time, and the same one as three o'clock.
            (
                "0,30 1-3 * * *",
                spring,
                &[
                    "2026-03-29T00:00:00Z",
                    "2026-03-29T00:30:00Z",
                    "2026-03-29T01:00:00Z",
                    "2026-03-29T01:30:00Z",
                    "2026-03-29T23:00:00Z",
                ],
            ),
            (
                "0,30 1-3 * * *",
                autumn,
                &[
                    "2026-10-24T23:00:00Z",
                    "2026-10-24T23:30:00Z",
                    "2026-10-25T00:00:00Z",
                    "2026-10-25T00:30:00Z",
                    "2026-10-25T02:00:00Z",
                    "2026-10-25T02:30:00Z",
                    "2026-10-26T00:00:00Z",
                ],
            ),
            (
                "0-59 0-59 2 * * *",
                "2026-10-25T00:59:58Z",
                &["2026-10-25T00:59:59Z", "2026-10-26T01:00:00Z"],
            ),
            // A step recurs.
            (
                "0 2-14/12 * * *",
                autumn,
                &[
                    "2026-10-24T12:00:00Z",
                    "2026-10-25T00:00:00Z",
                    "2026-10-25T01:00:00Z",
                    "2026-10-25T13:00:00Z",
                ],
            ),
            (
                "0 2-14/12 * * *",
                spring,
                &["2026-03-28T13:00:00Z", "2026-03-29T12:00:00Z"],
            ),
        ] {
            let schedule = schedule(pattern, "Europe/Berlin");
            let found = next(&schedule, from, expected.len());
            assert_eq!(found, expected, "{pattern}");
            for pair in expected.windows(2) {
                let (one, other) = (slot(pair[0]), slot(pair[1]));
                for at in [one.0, one.0 + 1, other.0 - 1] {
                    let told = format!("{pattern}: until {}", Slot(at));
                    let last = if at < other.0 { one } else { other };
                    assert_eq!(schedule.last_until(Slot(at)), Some(last), "{told}");
                }
            }
        }
    }

    #[test]
    fn looking_back_finds_the_same_times() {
        let patterns = [
            "30 2 * * *",
            "0 2,14 * * *",
            "0,15,45 0-4 * * *",
            "0 */2 * * *",
            "*/7 1-3 * * *",
            "15 10 2 29 2 *",
            "0 0 * * 1#1",
        ];
        for zone in [
            "UTC",
            "Europe/Berlin",
            "America/New_York",
            "Australia/Lord_Howe",
        ] {
            for pattern in patterns {
                let schedule = schedule(pattern, zone);
                for from in [
                    "2026-03-06T00:00:00Z",
                    "2026-03-28T00:00:00Z",
                    "2026-04-03T00:00:00Z",
                    "2026-10-24T00:00:00Z",
                    "2026-10-31T00:00:00Z",
                ] {
                    let mut at = slot(from);
                    let mut last = schedule.last_until(at);
                    for _ in 0..40 {
                        let next = schedule.next_after(at).unwrap();
                        let told = format!("{schedule}: {next} after {at}");
                        assert!(next > at, "{told}");
                        assert_eq!(schedule.last_until(next), Some(next), "{told}");
                        assert_eq!(schedule.last_until(Slot(next.0 + 1)), Some(next), "{told}");
                        assert_eq!(schedule.last_until(Slot(next.0 - 1)), last, "{told}");
                        (at, last) = (next, Some(next));
                    }
                }
            }
        }
    }
}
