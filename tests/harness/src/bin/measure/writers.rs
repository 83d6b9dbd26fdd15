//! Writers that put as fast as they are answered, and how long each answer took.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use bytes::Bytes;
use hdrhistogram::Histogram;
use quorate_proto::etcdserverpb::PutRequest;
use quorate_proto::etcdserverpb::kv_client::KvClient;
use tokio::task::JoinHandle;

use crate::server::Server;

/// Connections that writers share.
const CONNECTIONS: usize = 4;

/// A load of puts on a fixed set of keys.
pub(crate) struct Writers {
    stop: Arc<AtomicBool>,
    latencies: Arc<Mutex<Histogram<u64>>>,
    tasks: Vec<JoinHandle<anyhow::Result<i64>>>,
}

/// Latencies of a stretch, in microseconds.
pub(crate) struct Stretch(Histogram<u64>);

impl Stretch {
    pub(crate) fn millis(&self, quantile: f64) -> f64 {
        micros_to_millis(self.0.value_at_quantile(quantile))
    }

    pub(crate) fn count(&self) -> u64 {
        self.0.len()
    }

    /// One line for people.
    pub(crate) fn describe(&self) -> String {
        let [p50, p99, p999] = [0.5, 0.99, 0.999].map(|quantile| self.millis(quantile));
        let max = micros_to_millis(self.0.max());
        let count = self.count();
        format!(
            "{count} writes, p50 {p50:.1} ms, p99 {p99:.1} ms, p99.9 {p999:.1} ms, max {max:.1} ms"
        )
    }
}

#[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
fn micros_to_millis(micros: u64) -> f64 {
    micros as f64 / 1000.0
}

impl Writers {
    /// Starts `count` writers of values of `value_bytes` over `keys` keys below `prefix`.
    pub(crate) async fn start(
        server: &Server,
        count: usize,
        prefix: &str,
        keys: usize,
        value_bytes: usize,
    ) -> anyhow::Result<Self> {
        let stop = Arc::<AtomicBool>::default();
        let latencies = Arc::new(Mutex::new(histogram()));
        let mut channels = Vec::new();
        for _ in 0..CONNECTIONS {
            channels.push(server.connect().await?);
        }
        let tasks = (0..count)
            .map(|writer| {
                let mut client = KvClient::new(channels[writer % CONNECTIONS].clone());
                let (stop, latencies) = (Arc::clone(&stop), Arc::clone(&latencies));
                let prefix = prefix.to_owned();
                tokio::spawn(async move {
                    let mut revision = 0;
                    for n in (writer..).step_by(count) {
                        if stop.load(Ordering::Relaxed) {
                            break;
                        }
                        let put = PutRequest {
                            key: format!("{prefix}{:08}", n % keys).into(),
                            value: value(n, value_bytes),
                            ..PutRequest::default()
                        };
                        let asked = Instant::now();
                        let answer = client.put(put).await?.into_inner();
                        let took = u64::try_from(asked.elapsed().as_micros())?;
                        if let Ok(mut latencies) = latencies.lock() {
                            latencies.saturating_record(took);
                        }
                        revision = answer.header.map_or(0, |header| header.revision);
                    }
                    Ok(revision)
                })
            })
            .collect();
        Ok(Self {
            stop,
            latencies,
            tasks,
        })
    }

    /// The latencies since the last call, or the start.
    pub(crate) fn stretch(&self) -> Stretch {
        let mut latencies = self.latencies.lock().expect("no writer panics");
        Stretch(std::mem::replace(&mut *latencies, histogram()))
    }

    /// Stops all, and gives the highest revision they were answered.
    pub(crate) async fn stop(self) -> anyhow::Result<i64> {
        self.stop.store(true, Ordering::Relaxed);
        let mut highest = 0;
        for task in self.tasks {
            highest = highest.max(task.await??);
        }
        Ok(highest)
    }
}

fn histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1, 600_000_000, 3).expect("bounds that a histogram takes")
}

/// Bytes that do not compress to nothing.
fn value(seed: usize, length: usize) -> Bytes {
    let mut state = u64::try_from(seed)
        .unwrap_or(0)
        .wrapping_mul(0x9e37_79b9_7f4a_7c15)
        | 1;
    let bytes = std::iter::repeat_with(|| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()[0]
    });
    bytes.take(length).collect::<Vec<u8>>().into()
}
