//! Keep-alives that clients share: those for one lease that come within a moment are one upstream. The
//! answer counts only for whoever asked before it was asked upstream; who asks later gets the next one.
//! Pure state; `lease` brings it the stream and the time.

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use quorate::core::clock::Instant;
use quorate::proto::etcdserverpb::LeaseKeepAliveResponse;
use tokio::sync::oneshot;
use tonic::Status;

/// How long a keep-alive waits for others of the same lease.
pub(super) const WINDOW: Duration = Duration::from_millis(5);

/// Where one client's answer goes.
pub(super) type Tell = oneshot::Sender<Result<LeaseKeepAliveResponse, Status>>;

/// All keep-alives of one caller that wait for an answer.
#[derive(Debug, Default)]
pub(super) struct Renewals {
    leases: HashMap<i64, Lease>,
    /// Leases to be asked for, by when.
    due: VecDeque<(Instant, i64)>,
    /// Leases that were asked for and not answered.
    under_way: usize,
}

#[derive(Debug, Default)]
struct Lease {
    /// Who asked before the request upstream; empty while there is none under way.
    asked: Vec<Tell>,
    waiting: Vec<Tell>,
    is_due: bool,
}

impl Renewals {
    /// A client wants this lease kept alive.
    pub(super) fn ask(&mut self, id: i64, tell: Tell, now: Instant) {
        let lease = self.leases.entry(id).or_default();
        lease.waiting.push(tell);
        if lease.asked.is_empty() && !std::mem::replace(&mut lease.is_due, true) {
            self.due.push_back((now + WINDOW, id));
        }
    }

    /// Whether nobody waits.
    pub(super) fn is_empty(&self) -> bool {
        self.leases.is_empty()
    }

    /// Whether some lease was asked for and not answered.
    pub(super) fn is_asked(&self) -> bool {
        self.under_way > 0
    }

    /// When the next lease is to be asked for.
    pub(super) fn next_due(&self) -> Option<Instant> {
        self.due.front().map(|(at, _)| *at)
    }

    /// Takes a lease to ask for now. Clients that have left do not count.
    pub(super) fn take_due(&mut self, now: Instant) -> Option<i64> {
        while self.next_due().is_some_and(|at| at <= now) {
            let (_, id) = self.due.pop_front()?;
            let Some(lease) = self.leases.get_mut(&id) else {
                continue;
            };
            lease.is_due = false;
            lease.asked = std::mem::take(&mut lease.waiting);
            lease.asked.retain(|tell| !tell.is_closed());
            if !lease.asked.is_empty() {
                self.under_way += 1;
                return Some(id);
            }
            self.leases.remove(&id);
        }
        None
    }

    /// An answer came: the one to the only request for its lease that is under way.
    pub(super) fn hear(&mut self, answer: &LeaseKeepAliveResponse, now: Instant) {
        let Some(lease) = self.leases.get_mut(&answer.id) else {
            return;
        };
        self.under_way -= usize::from(!lease.asked.is_empty());
        for tell in lease.asked.drain(..) {
            // Whoever left does not want to know.
            let _ = tell.send(Ok(*answer));
        }
        if lease.waiting.is_empty() {
            self.leases.remove(&answer.id);
        } else if !std::mem::replace(&mut lease.is_due, true) {
            self.due.push_back((now + WINDOW, answer.id));
        }
    }

    /// The stream is gone, and whether what it was asked was done is not known: it is asked again, which
    /// does no harm.
    pub(super) fn ask_again(&mut self, now: Instant) {
        self.due.clear();
        self.under_way = 0;
        for (id, lease) in &mut self.leases {
            lease.waiting.append(&mut lease.asked);
            lease.is_due = true;
            self.due.push_back((now, *id));
        }
    }

    /// Tells all who wait that it cannot be done.
    pub(super) fn end(&mut self, status: &Status) {
        self.due.clear();
        self.under_way = 0;
        for (_, lease) in self.leases.drain() {
            for tell in lease.asked.into_iter().chain(lease.waiting) {
                let _ = tell.send(Err(status.clone()));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use quorate::core::clock;

    use super::*;

    type Told = oneshot::Receiver<Result<LeaseKeepAliveResponse, Status>>;

    fn ask(renewals: &mut Renewals, id: i64, now: Instant) -> Told {
        let (tell, told) = oneshot::channel();
        renewals.ask(id, tell, now);
        told
    }

    fn answer(id: i64, ttl: i64) -> LeaseKeepAliveResponse {
        LeaseKeepAliveResponse {
            header: None,
            id,
            ttl,
        }
    }

    fn ttl(told: &mut Told) -> Option<i64> {
        told.try_recv().ok().map(|answer| answer.unwrap().ttl)
    }

    #[test]
    fn requests_of_one_moment_are_one_and_each_is_answered() {
        let mut renewals = Renewals::default();
        let now = clock::now();
        let mut all: Vec<Told> = (0..50).map(|_| ask(&mut renewals, 1, now)).collect();
        let mut other = ask(&mut renewals, 2, now);
        assert_eq!(renewals.take_due(now), None);
        let later = now + WINDOW;
        assert_eq!(renewals.take_due(later), Some(1));
        assert_eq!(renewals.take_due(later), Some(2));
        assert_eq!(renewals.take_due(later), None);
        renewals.hear(&answer(1, 9), later);
        assert!(all.iter_mut().all(|told| ttl(told) == Some(9)));
        assert_eq!(ttl(&mut other), None);
        renewals.hear(&answer(2, 8), later);
        assert_eq!(ttl(&mut other), Some(8));
        assert!(renewals.is_empty());
    }

    #[test]
    fn an_answer_to_what_was_asked_upstream_before_does_not_count() {
        let mut renewals = Renewals::default();
        let now = clock::now();
        let mut early = ask(&mut renewals, 1, now);
        let later = now + WINDOW;
        assert_eq!(renewals.take_due(later), Some(1));
        let mut late = ask(&mut renewals, 1, later);
        assert_eq!(renewals.take_due(later + WINDOW), None, "one at a time");
        renewals.hear(&answer(1, 9), later);
        assert_eq!((ttl(&mut early), ttl(&mut late)), (Some(9), None));
        assert!(!renewals.is_asked());
        assert_eq!(renewals.take_due(later + WINDOW), Some(1));
        renewals.hear(&answer(1, 7), later);
        assert_eq!(ttl(&mut late), Some(7));
    }

    #[test]
    fn what_a_broken_stream_did_not_answer_is_asked_again_once() {
        let mut renewals = Renewals::default();
        let now = clock::now();
        let mut early = ask(&mut renewals, 1, now);
        assert_eq!(renewals.take_due(now + WINDOW), Some(1));
        let mut late = ask(&mut renewals, 1, now);
        renewals.ask_again(now);
        assert_eq!(renewals.take_due(now), Some(1));
        assert_eq!(renewals.take_due(now + WINDOW), None);
        renewals.hear(&answer(1, 9), now);
        assert_eq!((ttl(&mut early), ttl(&mut late)), (Some(9), Some(9)));
    }

    #[test]
    fn nothing_is_asked_for_clients_that_left() {
        let mut renewals = Renewals::default();
        let now = clock::now();
        drop(ask(&mut renewals, 1, now));
        assert_eq!(renewals.take_due(now + WINDOW), None);
        assert!(renewals.is_empty());
        let mut told = ask(&mut renewals, 1, now);
        renewals.end(&Status::unavailable("over"));
        assert!(told.try_recv().unwrap().is_err() && renewals.is_empty());
    }
}
