//! Random writers, watchers, compactions and installs against a list of all events ever.

use std::task::Poll;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::*;
use crate::mvcc::EventKind;

/// A watcher and what it still has to tell.
struct Reader {
    watcher: Watcher,
    request: Request,
    /// Everything below has been told, or was not asked for.
    next: i64,
    over: bool,
    seed: u64,
}

/// Everything that happened.
struct World {
    store: Store,
    /// Events of each revision, from 2 on.
    history: Vec<Vec<Event>>,
    rng: StdRng,
}

fn key(rng: &mut StdRng) -> String {
    format!("{}", (b'a' + rng.random_range(0..6)) as char)
}

impl World {
    fn revision(&self) -> i64 {
        1 + i64::try_from(self.history.len()).expect("small")
    }

    fn write(&mut self) -> Vec<Event> {
        let writes: Vec<(String, Option<String>)> = (0..self.rng.random_range(1..4))
            .map(|_| {
                let value = self
                    .rng
                    .random_bool(0.7)
                    .then(|| "v".repeat(self.rng.random_range(0..40)));
                (key(&mut self.rng), value)
            })
            .collect();
        let writes: Vec<Write<'_>> = writes
            .iter()
            .map(|(key, value)| (key.as_str(), value.as_deref()))
            .collect();
        let events = self.store.write_quietly(&writes);
        if !events.is_empty() {
            self.history.push(events.clone());
        }
        events
    }

    fn watch(&mut self, seed: u64) -> Reader {
        let rng = &mut self.rng;
        let range = match rng.random_range(0..4) {
            0 => KeyRange::all(),
            1 => KeyRange::single(key(rng)),
            2 => KeyRange::from_key(key(rng)),
            _ => KeyRange::half_open("b", "e"),
        };
        let now = 1 + i64::try_from(self.history.len()).expect("small");
        let start_revision = match rng.random_range(0..3) {
            0 => 0,
            1 => rng.random_range(1..=now),
            _ => rng.random_range(now..now + 10),
        };
        let request = Request {
            range,
            start_revision,
            prev_kv: rng.random_bool(0.5),
            puts: rng.random_bool(0.9),
            deletes: rng.random_bool(0.9),
            progress_every: None,
        };
        let next = if start_revision == 0 {
            now + 1
        } else {
            start_revision
        };
        Reader {
            watcher: self
                .store
                .hub
                .watch(request.clone())
                .expect("a good request"),
            request,
            next,
            over: false,
            seed,
        }
    }

    /// The events of a revision that a reader asked for.
    fn wanted(&self, request: &Request, revision: i64) -> Vec<&Event> {
        let index = usize::try_from(revision - 2).expect("a change has revision 2 or more");
        let wanted = |event: &&Event| {
            let kind = match event.kind {
                EventKind::Put => request.puts,
                EventKind::Delete => request.deletes,
            };
            kind && request.range.contains(&event.kv.key)
        };
        self.history[index].iter().filter(wanted).collect()
    }

    /// Takes in what a watcher told; it must be exactly what comes next, in whole revisions.
    fn check(&self, reader: &mut Reader, item: Item) {
        let (_, compact_revision) = self.store.revisions();
        let seed = reader.seed;
        match item {
            Item::Progress { .. } => panic!("seed {seed}: nobody asked for progress"),
            Item::Compacted {
                compact_revision: told,
            } => {
                assert!(
                    reader.next < told,
                    "seed {seed}: {} is not compacted",
                    reader.next
                );
                assert!(told <= compact_revision);
                reader.over = true;
            }
            Item::Events { events, .. } => {
                let mut told = events.into_iter().peekable();
                assert!(told.peek().is_some(), "seed {seed}: an empty item");
                while told.peek().is_some() {
                    let revision = reader.next.max(2);
                    assert!(revision <= self.revision(), "seed {seed}: from the future");
                    for expected in self.wanted(&reader.request, revision) {
                        let event = told.next().expect("whole revisions");
                        assert_eq!(event.kv.as_ref(), Some(&expected.kv), "seed {seed}");
                        let owed = reader.request.prev_kv && revision > compact_revision;
                        if owed || event.prev_kv.is_some() {
                            assert!(reader.request.prev_kv);
                            // A key made anew has none, even if it was there before.
                            let anew = expected.kv.create_revision == revision;
                            let before = expected.prev_kv.clone().filter(|_| !anew);
                            assert_eq!(event.prev_kv, before, "seed {seed}");
                        }
                    }
                    reader.next = revision + 1;
                }
            }
        }
    }

    /// Whether a reader has been told everything there is.
    fn is_done(&self, reader: &Reader) -> bool {
        let mut rest = reader.next.max(2)..=self.revision();
        reader.over || rest.all(|revision| self.wanted(&reader.request, revision).is_empty())
    }

    /// Reads a little, perhaps giving up half-way.
    async fn read_some(&mut self, reader: &mut Reader) {
        for _ in 0..self.rng.random_range(1..4) {
            if reader.over {
                return;
            }
            let Some(item) = self.poll_some(&mut reader.watcher).await else {
                return;
            };
            self.check(reader, item);
        }
    }

    /// What comes next, if it comes before the reader loses patience and drops the future.
    async fn poll_some(&mut self, watcher: &mut Watcher) -> Option<Item> {
        let mut next = std::pin::pin!(watcher.next());
        for _ in 0..self.rng.random_range(1..60) {
            if let Poll::Ready(item) = futures::poll!(next.as_mut()) {
                return Some(item.expect("memory does not fail"));
            }
            tokio::task::yield_now().await;
        }
        None
    }

    fn step(&mut self) {
        match self.rng.random_range(0..20) {
            0 if self.revision() > 3 => {
                let (now, compacted) = self.store.revisions();
                let revision = self.rng.random_range(1..=now);
                if revision > compacted {
                    self.store.compact(revision);
                }
            }
            1 => {
                // A snapshot install: another store, further on than what was published.
                for _ in 0..self.rng.random_range(0..20) {
                    self.write();
                }
                let (revision, compact_revision) = self.store.revisions();
                self.store.hub.reset(revision, compact_revision);
            }
            _ => {
                let batch: Vec<_> = (0..self.rng.random_range(1..5))
                    .map(|_| self.write())
                    .collect();
                self.store.publish(batch);
            }
        }
    }
}

async fn run(seed: u64) {
    let mut rng = StdRng::seed_from_u64(seed);
    let options = Options {
        watchers_max: 100,
        recent_bytes_max: [0, 500, 5_000, 1 << 20][rng.random_range(0..4)],
        watcher_bytes_max: [0, 200, 2_000, 1 << 20][rng.random_range(0..4)],
        waiting_bytes_max: [0, 1_000, 1 << 20][rng.random_range(0..3)],
    };
    let mut world = World {
        store: Store::new(&options),
        history: Vec::new(),
        rng,
    };
    let mut readers: Vec<Reader> = Vec::new();
    for _ in 0..150 {
        world.step();
        if readers.len() < 12 && world.rng.random_bool(0.3) {
            let reader = world.watch(seed);
            readers.push(reader);
        }
        if !readers.is_empty() && world.rng.random_bool(0.02) {
            let index = world.rng.random_range(0..readers.len());
            drop(readers.swap_remove(index));
        }
        for (index, reader) in readers.iter_mut().enumerate() {
            // Some read eagerly, some hardly ever.
            if world.rng.random_bool([0.9, 0.3, 0.02][index % 3]) {
                world.read_some(reader).await;
            }
        }
    }
    for reader in &mut readers {
        while !world.is_done(reader) {
            let item = next(&mut reader.watcher).await;
            world.check(reader, item);
        }
        if !reader.over {
            let more = tokio::time::timeout(Duration::from_millis(2), reader.watcher.next()).await;
            if let Ok(item) = more {
                // Only that nothing is left to tell, because what it wants next is compacted.
                world.check(reader, item.expect("memory does not fail"));
                assert!(reader.over, "seed {seed}: told twice");
            }
        }
    }
    drop(readers);
    assert_eq!(world.store.hub.watchers(), 0);
    assert_eq!(world.store.hub.waiting_bytes(), 0);
}

#[tokio::test]
async fn every_watcher_sees_its_events_in_order_once() {
    for seed in 0..60 {
        run(seed).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_busy_writer_and_fast_and_slow_readers_agree() {
    let store = Arc::new(Store::new(&Options {
        recent_bytes_max: 20_000,
        watcher_bytes_max: 1_000,
        ..Options::default()
    }));
    const WRITES: i64 = 5_000;
    let readers = (0..8).map(|number| {
        let mut watcher = store.watch(|request| request.start_revision = 2);
        async move {
            let mut expected = 2;
            while expected < WRITES + 2 {
                for (revision, _) in next_events(&mut watcher).await.1 {
                    assert_eq!(revision, expected);
                    expected += 1;
                }
                if number % 2 == 1 {
                    tokio::time::sleep(Duration::from_micros(500)).await;
                }
            }
        }
    });
    let readers = readers.collect::<Vec<_>>();
    let writer = Arc::clone(&store);
    let writer = tokio::task::spawn_blocking(move || {
        for _ in 0..WRITES {
            writer.put("key", "value");
        }
    });
    let mut reading = tokio::task::JoinSet::new();
    for reader in readers {
        reading.spawn(reader);
    }
    while let Some(done) = reading.join_next().await {
        done.expect("no reader failed");
    }
    writer.await.expect("the writer ends");
}
