//! When each request is sent: as soon as the one before is answered, or at a fixed rate, and from
//! when its latency counts.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use quorate::core::clock::Instant;

/// How late a timer may wake a client that had nothing else to do: tokio's timers are a millisecond
/// coarse. That much is this program's doing and not the server's.
const TIMER_SLACK: Duration = Duration::from_millis(2);

/// What sets the pace.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Pace {
    /// The answers: each client sends its next request when it has the answer to the last.
    Closed,
    /// The clock: requests are due at equal distances, whoever is free takes the next.
    Open {
        /// Requests a second, of all clients together.
        per_second: f64,
    },
}

/// When there is enough.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    /// After this many requests.
    Total(u64),
    /// No request is sent later than this after the start.
    After(Duration),
}

/// The turns of one phase, which all clients take from.
#[derive(Debug)]
pub(super) struct Schedule {
    began: Instant,
    pace: Pace,
    end: End,
    taken: AtomicU64,
}

/// The right to send one request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Turn {
    /// When the request is due; `None`: at once.
    pub(super) due: Option<Instant>,
}

impl Schedule {
    /// A schedule whose first turn is at `began`.
    pub(super) fn new(began: Instant, pace: Pace, end: End) -> Self {
        Self {
            began,
            pace,
            end,
            taken: AtomicU64::new(0),
        }
    }

    /// The next turn of whoever asks; `None` when there are no more.
    pub(super) fn turn(&self, now: Instant) -> Option<Turn> {
        if let End::After(length) = self.end
            && now >= self.began + length
        {
            return None;
        }
        let n = self.taken.fetch_add(1, Ordering::Relaxed);
        (n < self.turns()).then(|| Turn { due: self.due(n) })
    }

    /// How many requests the schedule has in all; without a rate, time alone is no limit.
    pub(super) fn turns(&self) -> u64 {
        match (self.end, self.pace) {
            (End::Total(total), _) => total,
            (End::After(_), Pace::Closed) => u64::MAX,
            (End::After(length), Pace::Open { per_second }) => {
                let turns = (length.as_secs_f64() * per_second).ceil();
                #[expect(
                    clippy::cast_possible_truncation,
                    clippy::cast_sign_loss,
                    reason = "positive, and a cast saturates"
                )]
                let turns = turns as u64;
                turns
            }
        }
    }

    fn due(&self, n: u64) -> Option<Instant> {
        let Pace::Open { per_second } = self.pace else {
            return None;
        };
        #[expect(clippy::cast_precision_loss, reason = "far below 2^52 requests")]
        let after = Duration::try_from_secs_f64(n as f64 / per_second).unwrap_or(Duration::MAX);
        self.began.checked_add(after)
    }
}

/// From when the latency of a request counts that was due at `due` and is sent at `sent`.
///
/// A client that was `late`, because it still awaited an earlier answer, makes the request wait, as
/// it would have waited in a queue: it counts from when it was due. Leaving that out would hide
/// just the requests that a stall of the server delays. A client that slept until it was due counts
/// from when its timer woke it, so that the timer's coarseness does not count; what is beyond that
/// does.
pub(super) fn counts_from(due: Instant, sent: Instant, late: bool) -> Instant {
    if late {
        due
    } else {
        sent.max(due).min(due + TIMER_SLACK)
    }
}

#[cfg(test)]
mod tests {
    use quorate::core::clock;

    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn a_closed_loop_ends_after_its_number_or_its_time() {
        let began = clock::now();
        let counted = Schedule::new(began, Pace::Closed, End::Total(2));
        let late = began + 3600 * 1000 * MS;
        assert_eq!(counted.turn(late), Some(Turn { due: None }));
        assert_eq!(counted.turn(late), Some(Turn { due: None }));
        assert_eq!(counted.turn(late), None);
        let timed = Schedule::new(began, Pace::Closed, End::After(5 * MS));
        assert!(timed.turn(began + 4 * MS).is_some());
        assert!(timed.turn(began + 5 * MS).is_none());
    }

    #[test]
    fn an_open_loop_has_equal_distances_whoever_asks_and_whenever() {
        let began = clock::now();
        let pace = Pace::Open { per_second: 200.0 };
        let schedule = Schedule::new(began, pace, End::After(20 * MS));
        assert_eq!(schedule.turns(), 4);
        // The second and third turns are taken late: their dues stay.
        for (asked, due) in [(0, 0), (12, 5), (12, 10), (13, 15)] {
            let turn = schedule.turn(began + asked * MS).unwrap();
            assert_eq!(turn.due, Some(began + due * MS));
        }
        assert_eq!(schedule.turn(began + 14 * MS), None);
    }

    #[test]
    fn what_an_open_loop_could_not_send_in_its_time_is_not_sent_later() {
        let began = clock::now();
        let pace = Pace::Open { per_second: 1000.0 };
        let schedule = Schedule::new(began, pace, End::After(20 * MS));
        assert!(schedule.turn(began).is_some());
        assert!(schedule.turn(began + 20 * MS).is_none());
        assert_eq!(schedule.turns(), 20);
        // A number is kept, however late.
        let schedule = Schedule::new(began, pace, End::Total(2));
        assert!(schedule.turn(began + 100 * MS).is_some());
        assert!(schedule.turn(began + 100 * MS).is_some());
        assert!(schedule.turn(began + 100 * MS).is_none());
    }

    #[test]
    fn rates_below_one_and_far_dues_are_exact() {
        let began = clock::now();
        let pace = Pace::Open { per_second: 0.5 };
        let schedule = Schedule::new(began, pace, End::Total(2));
        schedule.turn(began).unwrap();
        assert_eq!(
            schedule.turn(began).unwrap().due,
            Some(began + 2 * 1000 * MS)
        );
    }

    #[test]
    fn a_request_that_had_to_wait_for_a_client_counts_from_when_it_was_due() {
        let due = clock::now();
        // The stall of the request before took 100 ms beyond this one's due.
        assert_eq!(counts_from(due, due + 100 * MS, true), due);
        // Nothing held it up but the timer.
        assert_eq!(counts_from(due, due + MS, false), due + MS);
        // More than a timer's slack is not the timer's.
        assert_eq!(counts_from(due, due + 100 * MS, false), due + TIMER_SLACK);
    }

    /// The correction as a whole: ten requests a millisecond apart, the first of which takes 5 ms.
    /// One client sees the queue behind the slow one; without the correction nine of ten would
    /// have taken 100 µs.
    #[test]
    fn a_stall_shows_in_every_request_that_was_due_meanwhile() {
        let began = clock::now();
        let pace = Pace::Open { per_second: 1000.0 };
        let schedule = Schedule::new(began, pace, End::Total(10));
        let mut now = began;
        let mut latencies = Vec::new();
        for n in 0..10 {
            let due = schedule.turn(now).unwrap().due.unwrap();
            let late = now > due;
            now = now.max(due);
            let from = counts_from(due, now, late);
            now += if n == 0 { 5 * MS } else { MS / 10 };
            latencies.push((now - from).as_micros());
        }
        assert_eq!(
            latencies,
            [5000, 4100, 3200, 2300, 1400, 500, 100, 100, 100, 100]
        );
    }
}
