//! Clients at work while members come and go: each puts keys that are written once, and reads back
//! what was acknowledged through another member. Unlike a [`Load`](crate::load::Load) it counts
//! whatever a user would have seen fail.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use bytes::Bytes;
use hdrhistogram::Histogram;
use quorate_proto::mvccpb::KeyValue;
use tokio::task::JoinHandle;

use crate::client::Client;
use crate::keys::read_all;

/// Below it, all keys of traffic.
pub const PREFIX: &str = "traffic/";
/// Failures whose text is kept.
const FAILURES_MAX: usize = 20;
/// Puts of one client between two reads.
const PUTS_PER_READ: u64 = 4;

/// What happened so far.
#[derive(Debug)]
struct Told {
    /// Key to the revision it was acknowledged at.
    puts: BTreeMap<String, i64>,
    reads: usize,
    failed: usize,
    failures: Vec<String>,
    /// Reads that did not show what had been acknowledged.
    stale: Vec<String>,
    /// How long puts took, in microseconds.
    latencies: Histogram<u64>,
    slowest: Duration,
}

/// Clients at work on a cluster.
#[derive(Debug)]
pub struct Traffic {
    stop: Arc<AtomicBool>,
    told: Arc<Mutex<Told>>,
    clients: Vec<JoinHandle<()>>,
}

/// How long puts took.
#[derive(Debug)]
pub struct Latencies(Histogram<u64>);

impl Latencies {
    /// What this part of the puts, from 0 to 1, did not exceed.
    #[must_use]
    pub fn at(&self, quantile: f64) -> Duration {
        Duration::from_micros(self.0.value_at_quantile(quantile))
    }
}

impl fmt::Display for Latencies {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} puts, median {:?}, 99% {:?}, longest {:?}",
            self.0.len(),
            self.at(0.5),
            self.at(0.99),
            self.at(1.0)
        )
    }
}

/// What [`Traffic`] saw.
#[derive(Debug)]
pub struct Report {
    /// Key to the revision it was acknowledged at.
    pub puts: BTreeMap<String, i64>,
    /// Reads that were answered.
    pub reads: usize,
    /// Calls that failed although they were repeated where that is safe.
    pub failed: usize,
    /// What the first of them said.
    pub failures: Vec<String>,
    /// Reads that did not show what had been acknowledged before.
    pub stale: Vec<String>,
    /// The longest that a put took.
    pub slowest: Duration,
}

impl Traffic {
    /// Starts `clients` clients of `endpoints` with values of `value_bytes` bytes. They follow the
    /// members as these change.
    #[must_use]
    pub fn start(endpoints: &[String], clients: usize, value_bytes: usize) -> Self {
        Self::begin(endpoints, clients, value_bytes, true)
    }

    /// As [`Traffic::start`], but puts alone, through `endpoint` alone.
    #[must_use]
    pub fn puts_through(endpoint: &str, clients: usize, value_bytes: usize) -> Self {
        Self::begin(&[endpoint.to_owned()], clients, value_bytes, false)
    }

    #[expect(
        clippy::disallowed_methods,
        reason = "the harness owns and joins these tasks"
    )]
    fn begin(endpoints: &[String], clients: usize, value_bytes: usize, roams: bool) -> Self {
        let stop = Arc::<AtomicBool>::default();
        let told = Arc::new(Mutex::new(Told::new()));
        let clients = (0..clients)
            .map(|worker| {
                let worker = Worker {
                    worker,
                    client: Client::new(endpoints, worker),
                    value: Bytes::from(vec![b'v'; value_bytes]),
                    roams,
                    stop: Arc::clone(&stop),
                    told: Arc::clone(&told),
                };
                tokio::spawn(worker.run())
            })
            .collect();
        Self {
            stop,
            told,
            clients,
        }
    }

    /// How many puts were acknowledged so far.
    #[must_use]
    pub fn acknowledged(&self) -> usize {
        lock(&self.told).puts.len()
    }

    /// How long puts took since the last call, or the start.
    #[must_use]
    pub fn take_latencies(&self) -> Latencies {
        Latencies(std::mem::replace(
            &mut lock(&self.told).latencies,
            latencies(),
        ))
    }

    /// Stops the clients and says what they saw.
    ///
    /// # Errors
    /// When a client panicked.
    pub async fn stop(self) -> anyhow::Result<Report> {
        self.stop.store(true, Ordering::Relaxed);
        for client in self.clients {
            client.await?;
        }
        let told = Arc::try_unwrap(self.told).ok();
        let told = told.context("a client still runs")?.into_inner()?;
        Ok(Report {
            puts: told.puts,
            reads: told.reads,
            failed: told.failed,
            failures: told.failures,
            stale: told.stale,
            slowest: told.slowest,
        })
    }
}

impl Told {
    fn new() -> Self {
        Self {
            puts: BTreeMap::new(),
            reads: 0,
            failed: 0,
            failures: Vec::new(),
            stale: Vec::new(),
            latencies: latencies(),
            slowest: Duration::ZERO,
        }
    }

    fn fail(&mut self, failure: String) {
        self.failed += 1;
        if self.failures.len() < FAILURES_MAX {
            self.failures.push(failure);
        }
    }
}

impl Report {
    /// Whether nothing failed, was lost or written twice, or read as it had been before; through
    /// `endpoint`. Returns all keys, by revision.
    ///
    /// # Errors
    /// What was not as it should be.
    pub async fn verify(&self, endpoint: &str) -> anyhow::Result<Vec<KeyValue>> {
        anyhow::ensure!(
            self.failed == 0,
            "{} requests failed: {:#?}",
            self.failed,
            self.failures
        );
        anyhow::ensure!(self.stale.is_empty(), "stale reads: {:#?}", self.stale);
        let mut pairs = read_all(endpoint, PREFIX).await?;
        pairs.sort_by_key(|pair| pair.mod_revision);
        for pair in &pairs {
            let key = String::from_utf8_lossy(&pair.key);
            let acknowledged = self.puts.get(&*key);
            anyhow::ensure!(
                pair.version == 1 && acknowledged == Some(&pair.mod_revision),
                "{key} has version {} and revision {}, acknowledged was {acknowledged:?}",
                pair.version,
                pair.mod_revision
            );
        }
        let (found, acknowledged) = (pairs.len(), self.puts.len());
        anyhow::ensure!(
            found == acknowledged,
            "{found} keys of {acknowledged} acknowledged"
        );
        Ok(pairs)
    }
}

/// One client's work.
#[derive(Debug)]
struct Worker {
    worker: usize,
    client: Client,
    value: Bytes,
    roams: bool,
    stop: Arc<AtomicBool>,
    told: Arc<Mutex<Told>>,
}

impl Worker {
    #[expect(clippy::disallowed_methods, reason = "measures what clients see")]
    async fn run(mut self) {
        for n in 0_u64.. {
            if self.stop.load(Ordering::Relaxed) {
                return;
            }
            let key = format!("{PREFIX}{}/{n:09}", self.worker);
            let began = Instant::now();
            let put = self.client.put(&key, &self.value).await;
            let took = began.elapsed();
            let revision = {
                let mut told = lock(&self.told);
                told.latencies
                    .saturating_record(u64::try_from(took.as_micros()).unwrap_or(u64::MAX));
                told.slowest = told.slowest.max(took);
                match put {
                    Ok(revision) => {
                        told.puts.insert(key.clone(), revision);
                        revision
                    }
                    Err(failed) => {
                        told.fail(format!("put {key}: {failed}"));
                        continue;
                    }
                }
            };
            if self.roams && n % PUTS_PER_READ == 0 {
                self.client.sync().await;
                self.client.turn();
                self.read(&key, revision).await;
            }
        }
    }

    async fn read(&mut self, key: &str, revision: i64) {
        let read = self.client.get(key).await;
        let mut told = lock(&self.told);
        match read {
            Err(failed) => told.fail(format!("get {key}: {failed}")),
            Ok(answer) => {
                told.reads += 1;
                let found = answer.kvs.first().map(|pair| pair.mod_revision);
                if found != Some(revision) {
                    told.stale
                        .push(format!("{key}: {found:?} after {revision}"));
                }
            }
        }
    }
}

fn latencies() -> Histogram<u64> {
    Histogram::new_with_max(60_000_000, 3).expect("bounds that go together")
}

fn lock(told: &Mutex<Told>) -> MutexGuard<'_, Told> {
    told.lock().unwrap_or_else(PoisonError::into_inner)
}
