//! One client of a world: its connection, its clock, its dice.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use quorate_recipes::Client;
use quorate_recipes::clock::{Clock, LateClock, SystemClock};
use quorate_recipes::keys::Revision;
use quorate_recipes::store::{Faulty, MemStore};
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};

use crate::history::Log;
use crate::telling::Telling;

/// One client, as a scenario sees it. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Player {
    inner: Rc<Inner>,
}

#[derive(Debug)]
struct Inner {
    index: usize,
    client: Client,
    connection: Faulty<Telling>,
    clock: Arc<LateClock>,
    random: RefCell<SmallRng>,
    log: Log,
}

impl Player {
    pub(crate) fn new(index: usize, seed: u64, store: &MemStore, log: &Log) -> Self {
        let connection = Faulty::new(Telling::new(store.clone()));
        let clock = Arc::new(LateClock::default());
        let client = Client::builder_shared(Arc::new(connection.clone()))
            .clock(Arc::clone(&clock) as _)
            .label(format!("player {index}"))
            .seed(seed)
            .build();
        Self {
            inner: Rc::new(Inner {
                index,
                client,
                connection,
                clock,
                random: RefCell::new(SmallRng::seed_from_u64(!seed)),
                log: log.clone(),
            }),
        }
    }

    /// Which one: 0 and up.
    #[must_use]
    pub fn index(&self) -> usize {
        self.inner.index
    }

    /// The client.
    #[must_use]
    pub fn client(&self) -> &Client {
        &self.inner.client
    }

    pub(crate) fn connection(&self) -> &Faulty<Telling> {
        &self.inner.connection
    }

    /// The store's revision now, as nobody but the test can see it.
    #[must_use]
    pub fn revision(&self) -> Revision {
        self.inner.connection.inner().revision()
    }

    /// How late this client's clock is now.
    #[must_use]
    pub fn lateness(&self) -> Duration {
        let real = SystemClock.now();
        real.saturating_duration_since(self.inner.clock.now())
    }

    pub(crate) fn clock(&self) -> &LateClock {
        &self.inner.clock
    }

    /// A random number below `most`, which is at least 1.
    #[must_use]
    pub fn below(&self, most: u64) -> u64 {
        self.inner.random.borrow_mut().random_range(0..most)
    }

    /// True once in `most` times.
    #[must_use]
    pub fn one_in(&self, most: u64) -> bool {
        self.below(most) == 0
    }

    /// Does nothing for a random time of less than so many milliseconds of the store's time.
    pub async fn pause(&self, millis: u64) {
        let length = Duration::from_millis(self.below(millis));
        tokio::time::sleep(length).await;
    }

    /// Notes what this client did or was told.
    pub fn note(&self, text: impl AsRef<str>) {
        let line = format!("player {}: {}", self.index(), text.as_ref());
        self.inner.log.note(line);
    }
}
