//! Writers that never stop: each puts numbered keys, turns to another member when one does not
//! answer, and remembers what was acknowledged and when.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use bytes::Bytes;
use quorate_proto::etcdserverpb::PutRequest;
use quorate_proto::etcdserverpb::kv_client::KvClient;
use tokio::task::JoinHandle;
use tonic::transport::{Channel, Endpoint};

use crate::keys::read_all;

/// How long a writer waits for one member before it turns to the next.
const CALL_LIMIT: Duration = Duration::from_secs(8);
const CONNECT_LIMIT: Duration = Duration::from_millis(500);
const RETRY_PAUSE: Duration = Duration::from_millis(10);
/// Below it, all keys of loads.
const PREFIX: &str = "load/";

/// What was acknowledged.
#[derive(Debug, Default)]
struct Acknowledged {
    /// Key to value, of puts that were answered.
    pairs: BTreeMap<String, String>,
    /// When each answer came.
    times: Vec<Instant>,
}

/// A load of writes on a cluster.
#[derive(Debug)]
pub struct Load {
    stop: Arc<AtomicBool>,
    acknowledged: Arc<Mutex<Acknowledged>>,
    writers: Vec<JoinHandle<()>>,
}

/// What a [`Load`] did.
#[derive(Debug)]
pub struct Report {
    /// Key to value, of every put that was acknowledged.
    pub pairs: BTreeMap<String, String>,
    times: Vec<Instant>,
}

impl Load {
    /// Starts `writers` writers of values of `value_bytes` bytes; each begins at another of `endpoints`.
    #[must_use]
    #[expect(
        clippy::disallowed_methods,
        reason = "the harness owns and joins these tasks"
    )]
    pub fn start(endpoints: &[String], writers: usize, value_bytes: usize) -> Self {
        let (stop, acknowledged) = (Arc::<AtomicBool>::default(), Arc::<Mutex<_>>::default());
        let writers = (0..writers)
            .map(|writer| {
                let mut endpoints = endpoints.to_vec();
                let first = writer % endpoints.len();
                endpoints.rotate_left(first);
                let writer = Writer {
                    writer,
                    endpoints,
                    value_bytes,
                    stop: Arc::clone(&stop),
                    acknowledged: Arc::clone(&acknowledged),
                };
                tokio::spawn(writer.run())
            })
            .collect();
        Self {
            stop,
            acknowledged,
            writers,
        }
    }

    /// How many puts were acknowledged so far.
    #[must_use]
    pub fn acknowledged(&self) -> usize {
        self.acknowledged
            .lock()
            .map_or(0, |acknowledged| acknowledged.pairs.len())
    }

    /// Stops the writers and says what they did.
    ///
    /// # Errors
    /// When a writer panicked.
    pub async fn stop(self) -> anyhow::Result<Report> {
        self.stop.store(true, Ordering::Relaxed);
        for writer in self.writers {
            writer.await?;
        }
        let acknowledged = Arc::try_unwrap(self.acknowledged)
            .ok()
            .context("a writer still runs")?;
        let Acknowledged { pairs, mut times } = acknowledged.into_inner()?;
        times.sort();
        Ok(Report { pairs, times })
    }
}

impl Report {
    /// The longest time without any acknowledgement between `from` and the end.
    #[must_use]
    pub fn longest_gap(&self) -> Duration {
        let gaps = self.times.windows(2).map(|pair| pair[1] - pair[0]);
        gaps.max().unwrap_or_default()
    }

    /// The longest time without any acknowledgement of each stretch that begins at one of `starts`.
    #[must_use]
    pub fn longest_gaps(&self, starts: &[Instant]) -> Vec<Duration> {
        let mut gaps = vec![Duration::ZERO; starts.len()];
        for pair in self.times.windows(2) {
            let stretch = starts.partition_point(|start| *start <= pair[1]);
            if stretch > 0 {
                gaps[stretch - 1] = gaps[stretch - 1].max(pair[1] - pair[0]);
            }
        }
        gaps
    }

    /// Reads every acknowledged pair back through `endpoint`, linearizably.
    ///
    /// # Errors
    /// When one is missing or has another value.
    pub async fn verify(&self, endpoint: &str) -> anyhow::Result<()> {
        let found = read_all(endpoint, PREFIX).await?.into_iter();
        let found: BTreeMap<Bytes, Bytes> = found.map(|pair| (pair.key, pair.value)).collect();
        for (key, value) in &self.pairs {
            let found = found.get(key.as_bytes());
            anyhow::ensure!(
                found.is_some_and(|found| found == value.as_bytes()),
                "{key} was acknowledged and is now {found:?}"
            );
        }
        Ok(())
    }
}

/// One writer.
#[derive(Debug)]
struct Writer {
    writer: usize,
    endpoints: Vec<String>,
    value_bytes: usize,
    stop: Arc<AtomicBool>,
    acknowledged: Arc<Mutex<Acknowledged>>,
}

impl Writer {
    async fn run(self) {
        let mut clients: Vec<_> = self.endpoints.iter().map(|url| connect(url)).collect();
        let mut at = 0;
        for n in 0_u64.. {
            let key = format!("{PREFIX}{}/{n:09}", self.writer);
            let value = format!("{n:0width$}", width = self.value_bytes);
            loop {
                if self.stop.load(Ordering::Relaxed) {
                    return;
                }
                let put = PutRequest {
                    key: key.clone().into(),
                    value: value.clone().into(),
                    ..PutRequest::default()
                };
                let count = clients.len();
                let call = clients[at % count].put(put);
                if matches!(tokio::time::timeout(CALL_LIMIT, call).await, Ok(Ok(_))) {
                    break;
                }
                // The value of a key never changes, so putting it again does no harm.
                at += 1;
                tokio::time::sleep(RETRY_PAUSE).await;
            }
            self.acknowledge(key, value);
        }
    }

    #[expect(clippy::disallowed_methods, reason = "measures what clients see")]
    fn acknowledge(&self, key: String, value: String) {
        if let Ok(mut acknowledged) = self.acknowledged.lock() {
            acknowledged.pairs.insert(key, value);
            acknowledged.times.push(Instant::now());
        }
    }
}

fn connect(url: &str) -> KvClient<Channel> {
    let endpoint = Endpoint::from_shared(url.to_owned()).expect("a URL of the harness");
    KvClient::new(
        endpoint
            .connect_timeout(CONNECT_LIMIT)
            .tcp_nodelay(true)
            .connect_lazy(),
    )
}
