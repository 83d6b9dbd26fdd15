//! The workload of watches: clients put at a rate, watchers of all the keys see every put. Each
//! value carries when it was put, so an event says by itself how long it took.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use clap::Args;
use futures::stream;
use quorate::core::clock::{self, Instant};
use quorate::proto::etcdserverpb::watch_client::WatchClient;
use quorate::proto::etcdserverpb::watch_request::RequestUnion;
use quorate::proto::etcdserverpb::{WatchCreateRequest, WatchRequest, WatchResponse};
use quorate::proto::range::KeyRange;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tonic::Streaming;
use tonic::transport::Channel;

use super::Bench;
use super::drive::Worker;
use super::keys::KeySpace;
use super::put::Putter;
use super::tally::{Tally, kind};

/// Puts a second unless told otherwise.
pub(super) const RATE: f64 = 100.0;
/// From when a put was issued, or due, to when a watcher saw it.
const EVENT: &str = "event";
/// What an event's value begins with: the phase's id, and the time of the put.
const HEAD_BYTES: usize = 16;

/// Who watches.
#[derive(Debug, Args)]
pub(super) struct WatchArgs {
    /// How many watchers; each has a stream of its own and sees every put
    #[arg(long, value_name = "WATCHERS", default_value_t = 100,
          value_parser = clap::builder::RangedU64ValueParser::<usize>::new().range(1..=100_000))]
    pub(super) watchers: usize,
}

/// Checks that values can carry what watchers need.
///
/// # Errors
/// When they are too short.
pub(super) fn check(space: &KeySpace) -> anyhow::Result<()> {
    ensure!(
        space.value_bytes >= HEAD_BYTES,
        "--value-bytes {}: a value carries when it was put, in {HEAD_BYTES} bytes",
        space.value_bytes
    );
    Ok(())
}

/// A client that puts the time of putting.
#[derive(Debug)]
pub(super) struct Stamper {
    putter: Putter,
    /// What times count from.
    origin: Instant,
}

impl Stamper {
    /// Puts with `putter` times since `origin`.
    pub(super) fn new(putter: Putter, origin: Instant) -> Self {
        Self { putter, origin }
    }
}

impl Worker for Stamper {
    fn endpoint(&self) -> usize {
        self.putter.endpoint()
    }

    async fn request(&mut self, from: Instant, tally: &Tally) -> Result<i64, String> {
        let head = stamp(tally.id(), from.saturating_duration_since(self.origin));
        self.putter.put(&head).await
    }
}

fn stamp(phase: u64, since: Duration) -> [u8; HEAD_BYTES] {
    let nanos = u64::try_from(since.as_nanos()).unwrap_or(u64::MAX);
    let mut head = [0; HEAD_BYTES];
    head[..8].copy_from_slice(&phase.to_le_bytes());
    head[8..].copy_from_slice(&nanos.to_le_bytes());
    head
}

/// When a value of this phase was put; `None` for a value of another phase or of somebody else.
fn stamped(phase: u64, value: &[u8]) -> Option<Duration> {
    let (head, _) = value.split_first_chunk::<HEAD_BYTES>()?;
    let (found, nanos) = head.split_first_chunk::<8>()?;
    let nanos = u64::from_le_bytes(nanos.try_into().ok()?);
    (u64::from_le_bytes(*found) == phase).then(|| Duration::from_nanos(nanos))
}

/// The watchers of a run.
#[derive(Debug)]
pub(super) struct Watchers {
    tasks: JoinSet<u64>,
    /// The revision after which a watcher has seen enough; none while puts go on.
    goal: watch::Sender<Option<i64>>,
}

impl Watchers {
    /// Opens watches of all keys of `space`, spread over `channels` as clients are, and waits until
    /// the servers have them. Events of puts that are measured are written to the figures.
    ///
    /// # Errors
    /// When a server refuses a watch, or the load's timeout is over before all are open.
    pub(super) async fn open(
        count: usize,
        space: &KeySpace,
        channels: &[Channel],
        origin: Instant,
        bench: &Bench<'_>,
    ) -> anyhow::Result<Self> {
        let goal = watch::Sender::new(None);
        let mut tasks = JoinSet::new();
        let opening = async {
            for n in 0..count {
                let channel = channels[bench.spread.place(n).connection].clone();
                let watcher = Watcher {
                    events: begin(channel, space).await?,
                    goal: goal.subscribe(),
                    origin,
                    tally: Arc::clone(&bench.measured),
                    revision: 0,
                    seen: 0,
                };
                tasks.spawn(watcher.run());
            }
            anyhow::Ok(())
        };
        let limit = bench.load.timeout;
        let opened = tokio::time::timeout(limit, opening).await;
        opened.with_context(|| format!("the {count} watches were not open within {limit:?}"))??;
        Ok(Self { tasks, goal })
    }

    /// Waits until every watcher has seen the last measured put, at most `limit`, and counts the
    /// events that are missing.
    ///
    /// # Errors
    /// When a watcher panicked.
    pub(super) async fn finish(mut self, tally: &Tally, limit: Duration) -> anyhow::Result<()> {
        let (puts, revision) = tally.look(|done| (done.latencies.count(), done.revision));
        self.goal.send_replace(Some(revision));
        let deadline = clock::now() + limit;
        while !self.tasks.is_empty() {
            let waiting = u64::try_from(self.tasks.len())?;
            let ended = tokio::time::timeout_at(deadline, self.tasks.join_next()).await;
            let Ok(ended) = ended else {
                tally.error("watcher that had not seen all events in time", waiting);
                break;
            };
            if let Some(seen) = ended.transpose()? {
                // More than were answered is no error: a put that failed may have been applied.
                tally.error(
                    "event that a watcher did not see",
                    puts.saturating_sub(seen),
                );
            }
        }
        Ok(())
    }
}

/// One watch, once the server has it.
async fn begin(channel: Channel, space: &KeySpace) -> anyhow::Result<Streaming<WatchResponse>> {
    let (key, range_end) = KeyRange::prefix(space.prefix()).to_wire();
    let create = WatchRequest {
        request_union: Some(RequestUnion::CreateRequest(WatchCreateRequest {
            key,
            range_end,
            ..WatchCreateRequest::default()
        })),
    };
    // The sending half stays open: a server may take its end for the end of the watch.
    let sent = futures::StreamExt::chain(stream::iter([create]), stream::pending());
    let mut client = WatchClient::new(channel).max_decoding_message_size(usize::MAX);
    let mut events = client.watch(sent).await?.into_inner();
    let first = events.message().await?;
    let first = first.context("a server ended a watch at once")?;
    ensure!(
        first.created && !first.canceled,
        "a server refused a watch: {}",
        first.cancel_reason
    );
    Ok(events)
}

/// One watch.
struct Watcher {
    events: Streaming<WatchResponse>,
    goal: watch::Receiver<Option<i64>>,
    origin: Instant,
    tally: Arc<Tally>,
    /// Of the last event.
    revision: i64,
    /// Events of the measured phase.
    seen: u64,
}

impl Watcher {
    /// Follows the watch until the goal is reached or the watch ends. Returns how many events of the
    /// measured phase there were.
    async fn run(mut self) -> u64 {
        loop {
            let goal = *self.goal.borrow_and_update();
            if goal.is_some_and(|goal| self.revision >= goal) {
                return self.seen;
            }
            let message = tokio::select! {
                message = self.events.message() => message,
                changed = self.goal.changed() => match changed {
                    Ok(()) => continue,
                    // The run was given up.
                    Err(_) => return self.seen,
                },
            };
            let failure = match message {
                Ok(Some(answer)) if !answer.canceled => {
                    self.note(&answer);
                    continue;
                }
                Ok(Some(answer)) => format!("watch canceled: {}", answer.cancel_reason),
                Ok(None) => "watch ended by the server".to_owned(),
                Err(status) => format!("watch ended: {}", kind(&status)),
            };
            self.tally.error(&failure, 1);
            return self.seen;
        }
    }

    fn note(&mut self, answer: &WatchResponse) {
        let now = clock::now().saturating_duration_since(self.origin);
        let mut took = Vec::with_capacity(answer.events.len());
        let mut out_of_order = 0;
        for pair in answer.events.iter().filter_map(|event| event.kv.as_ref()) {
            // Each put is a revision of its own.
            out_of_order += u64::from(pair.mod_revision <= self.revision);
            self.revision = self.revision.max(pair.mod_revision);
            if let Some(put) = stamped(self.tally.id(), &pair.value) {
                took.push(now.saturating_sub(put));
            }
        }
        self.tally.error("event out of order", out_of_order);
        if let Ok(seen) = u64::try_from(took.len())
            && seen > 0
        {
            self.seen += seen;
            self.tally.part(EVENT, took);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_tells_when_it_was_put_and_only_to_its_own_phase() {
        let since = Duration::from_nanos(12_345_678_901);
        let mut value = stamp(7, since).to_vec();
        assert_eq!(stamped(7, &value), Some(since));
        assert_eq!(stamped(8, &value), None);
        value.extend_from_slice(b"more");
        assert_eq!(stamped(7, &value), Some(since));
        assert_eq!(stamped(7, &value[..15]), None);
    }
}
