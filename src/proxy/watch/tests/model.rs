//! The random runs.

use std::collections::HashSet;
use std::sync::Arc;

use rand::rngs::SmallRng;
use rand::{RngExt as _, SeedableRng as _};

use super::client::Client;
use super::wire::Wire;
use super::{Log, common};
use crate::proxy::watch::outbox::Room;
use crate::proxy::watch::session::{Limits, Session};
use crate::proxy::watch::trunk::Common;

const CLIENTS: usize = 5;
const STEPS: usize = 3_000;
const RUNS: u64 = 60;
pub(super) const LIMITS: Limits = Limits {
    watchers: 6,
    piece_bytes: 150,
    room: Room {
        answers: 4,
        bytes: 400,
    },
};

struct World {
    random: SmallRng,
    log: Log,
    common: Arc<Common>,
    trunk: Wire,
    clients: Vec<Client>,
    is_ordered: bool,
    lags: bool,
    sessions: u64,
    /// How often progress is asked for.
    asks: f64,
}

impl World {
    fn new(seed: u64, is_ordered: bool, lags: bool) -> Self {
        let mut world = Self {
            random: SmallRng::seed_from_u64(seed),
            log: Log::new(),
            common: common(),
            trunk: Wire::new(is_ordered, lags),
            clients: Vec::new(),
            is_ordered,
            lags,
            sessions: 0,
            asks: [0.01, 0.1][usize::from(seed.is_multiple_of(2))],
        };
        for _ in 0..CLIENTS {
            world.join();
        }
        world
    }

    fn join(&mut self) {
        self.sessions += 1;
        let session = Session::new(self.sessions, Arc::clone(&self.common), LIMITS);
        self.clients
            .push(Client::new(session, self.is_ordered, self.lags));
    }

    fn step(&mut self) {
        let Self { random, log, .. } = self;
        let at = random.random_range(0..self.clients.len());
        let client = &mut self.clients[at];
        if random.random_bool(self.asks) {
            client.ask_progress(log);
        }
        match random.random_range(0..1000) {
            0..150 => {
                let keys = ["a", "b", "bb", "c", "d"];
                let count = random.random_range(1..4);
                let first = random.random_range(0..keys.len() - count);
                let changes: Vec<_> = keys[first..first + count]
                    .iter()
                    .map(|key| (*key, random.random_bool(0.7)))
                    .collect();
                log.write(&changes, random.random_range(0..60));
            }
            150..190 => client.create(log, random),
            190..205 => client.cancel(random),
            205..220 => {
                self.clients.remove(at);
                self.join();
            }
            220..226 => self.break_trunk(),
            226..232 => client.break_line(),
            232..235 => {
                // No further than whatever a lagging member has.
                let to = (log.revision() - 8).max(log.compacted);
                log.compacted = to.max(0);
            }
            235..245 => client.reads = [0.0, 0.3, 0.9, 0.9][random.random_range(0..4)],
            245..300 => client.resolve(log, random.random_bool(0.1)),
            300..310 if client.session.is_in_doubt() && client.line.is_open => {
                client.session.ask_line();
            }
            300..500 => {
                client.line.apply(log, random);
                client.drive_line(log, random);
            }
            500..750 => {
                self.trunk.apply(&self.log, &mut self.random);
                self.drive_trunk();
            }
            _ => {
                if random.random_bool(client.reads) {
                    client.read(log);
                }
            }
        }
    }

    fn drive_trunk(&mut self) -> bool {
        let mut shared = self.common.lock();
        if !self.trunk.is_open {
            if shared.is_idle() {
                return false;
            }
            self.trunk.open(&self.log, &mut self.random);
            shared.open();
            return true;
        }
        if let Some(request) = shared.request() {
            self.trunk.take(request, &self.log);
            return true;
        }
        if let Some(answer) = self.trunk.answered() {
            shared.hear(answer, self.is_ordered).unwrap();
            return true;
        }
        if shared.waits_for_progress() && self.random.random_bool(0.1) {
            shared.ask_progress_again();
        }
        self.trunk.tell(&self.log, &mut self.random)
    }

    fn break_trunk(&mut self) {
        self.trunk.close();
        self.common.lock().close();
    }

    /// Lets everything come to rest: nothing breaks or lags any more and everybody reads.
    fn settle(&mut self) {
        let (mut quiet, mut rounds) = (0, 0);
        while quiet < 5 {
            rounds += 1;
            assert!(
                rounds < 1_000,
                "no rest: {:?} {:?}",
                self.common,
                self.trunk
            );
            let mut busy = false;
            self.trunk.apply_all(&self.log);
            while self.drive_trunk() {
                busy = true;
                self.trunk.apply_all(&self.log);
            }
            self.trunk.tell_all(&self.log, &mut self.random);
            if self.common.lock().waits_for_progress() {
                self.common.lock().ask_progress_again();
            }
            for client in &mut self.clients {
                client.resolve(&self.log, false);
                client.line.apply_all(&self.log);
                while client.drive_line(&self.log, &mut self.random) {
                    busy = true;
                    client.line.apply_all(&self.log);
                }
                client.line.tell_all(&self.log, &mut self.random);
                if client.session.is_in_doubt() && client.line.is_open {
                    client.session.ask_line();
                }
                while client.read(&self.log) {
                    busy = true;
                }
            }
            quiet = if busy { 0 } else { quiet + 1 };
        }
    }

    fn check(&mut self) {
        for client in &self.clients {
            client.check_done(&self.log);
        }
        let specs: HashSet<_> = self
            .clients
            .iter()
            .flat_map(|client| client.watchers.values().map(|watcher| watcher.spec()))
            .collect();
        if self.is_ordered {
            // Whoever can share does.
            assert_eq!(self.trunk.watches(), specs.len());
            assert!(self.clients.iter().all(|client| client.line.watches() == 0));
        }
        assert_eq!(self.common.lock().watches(), self.trunk.watches());
        for client in &mut self.clients {
            client.progress.clear();
            client.ask_progress(&self.log);
        }
        self.settle();
        for client in &self.clients {
            let is_in_sync = !client.watchers.is_empty();
            let expected: &[i64] = if is_in_sync {
                &[self.log.revision()]
            } else {
                &[]
            };
            // One that begins in the future has made no progress yet, but is in sync.
            assert_eq!(client.progress, expected, "{:?}", client.watchers);
        }
    }
}

/// Runs this many seeds, or as many as `QUORATE_RUNS` says, from `first` or `QUORATE_SEED` on.
fn run(first: u64, is_ordered: bool, lags: bool) {
    let number = |name, default| match std::env::var(name) {
        Ok(number) => number.parse().expect("a number"),
        Err(_) => default,
    };
    let (first, runs) = (number("QUORATE_SEED", first), number("QUORATE_RUNS", RUNS));
    let (mut events, mut behind) = (0, 0);
    for seed in first..first + runs {
        println!("seed {seed}, ordered {is_ordered}, lags {lags}");
        let mut world = World::new(seed, is_ordered, lags);
        for _ in 0..STEPS {
            world.step();
        }
        world.settle();
        world.check();
        events += world
            .clients
            .iter()
            .map(|client| client.events)
            .sum::<usize>();
        behind += world.common.lock().behind();
        // Nobody is left: neither is anything upstream.
        world.clients.clear();
        assert!(world.common.lock().is_idle());
    }
    println!("{events} events told to those who stayed, {behind} times behind");
    assert!(events > 1_000 && behind > 10, "the runs prove little");
}

#[test]
fn every_watcher_hears_exactly_the_log() {
    run(0, true, false);
}

#[test]
fn every_watcher_hears_exactly_the_log_from_members_that_lag() {
    run(100, true, true);
}

#[test]
fn every_watcher_hears_exactly_the_log_from_members_that_answer_progress_too_soon() {
    run(200, false, true);
}
