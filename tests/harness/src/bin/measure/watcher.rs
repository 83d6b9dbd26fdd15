//! A watcher that does not read for minutes under full load.
//!
//! It must find every event once and in order when it reads on, and the server's memory must not
//! grow with what it has not read: it is looked at for as long without such watchers, under the same
//! load, then with them.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::StreamExt as _;
use quorate_proto::etcdserverpb::watch_client::WatchClient;
use quorate_proto::etcdserverpb::watch_request::RequestUnion;
use quorate_proto::etcdserverpb::{WatchCreateRequest, WatchRequest, WatchResponse};
use tonic::Streaming;

use crate::server::{Server, rest};
use crate::writers::Writers;

const SLOW_SECONDS: usize = 120;
const WRITERS: usize = 32;
const KEYS: usize = 1_000;
const VALUE_BYTES: usize = 1_024;
const WARM_UP: Duration = Duration::from_secs(20);
const LOOKS: u32 = 6;
/// Watchers that do not read.
const SLOW_WATCHERS: usize = 8;
/// What they may add to the server's memory: what waits for them in its own buffers and in those of
/// their connections, and recent events.
const MIB_ADDED_MAX: u64 = 256;
/// Longest time to catch up, as a multiple of the time it was slow.
const CATCH_UP_MAX: u32 = 2;

/// Measures; `seconds` is how long nothing is read.
pub(crate) async fn measure(mut server: Server, seconds: Option<usize>) -> anyhow::Result<()> {
    let slow = Duration::from_secs(u64::try_from(seconds.unwrap_or(SLOW_SECONDS))?);
    let writers = Writers::start(&server, WRITERS, "s/", KEYS, VALUE_BYTES).await?;
    rest(WARM_UP).await;
    let mut without_mib = 0;
    for look in 1..=LOOKS {
        rest(slow / LOOKS).await;
        without_mib = server.resident_mib()?.max(without_mib);
        println!(
            "no watchers for {:.0?}: resident {} MiB, {}",
            slow / LOOKS * look,
            server.resident_mib()?,
            writers.stretch().describe()
        );
    }

    let mut watchers = Vec::new();
    for _ in 0..SLOW_WATCHERS {
        watchers.push(watch(&server).await?);
    }
    let mut with_mib = 0;
    for look in 1..=LOOKS {
        rest(slow / LOOKS).await;
        with_mib = server.resident_mib()?.max(with_mib);
        println!(
            "{SLOW_WATCHERS} watchers do not read since {:.0?}: resident {} MiB, {}",
            slow / LOOKS * look,
            server.resident_mib()?,
            writers.stretch().describe()
        );
    }
    anyhow::ensure!(
        with_mib <= without_mib + MIB_ADDED_MAX,
        "memory grows with what is not read"
    );
    let began = Instant::now();
    let halfway = began + slow / 4;
    let mut reading = Vec::new();
    for (first, answers) in watchers {
        reading.push(tokio::spawn(read(first, answers)));
    }
    // They catch up while writes go on, and then find the end.
    rest(halfway.saturating_duration_since(Instant::now())).await;
    println!("reading on: resident {} MiB", server.resident_mib()?);
    let last = writers.stop().await?;
    let read = async {
        for handle in &reading {
            anyhow::ensure!(!handle.is_finished(), "a watcher ended");
        }
        let mut events = 0;
        for handle in reading {
            let seen = handle.await??;
            events += seen.events;
            anyhow::ensure!(seen.next > last, "ended before {last}");
        }
        anyhow::Ok(events)
    };
    STOP_AT.store(last, std::sync::atomic::Ordering::Release);
    poke(&server).await?;
    let events = tokio::time::timeout(slow * CATCH_UP_MAX, read).await??;
    println!(
        "all caught up {:.1?} after they began to read: {events} events, each once and in order, up \
         to revision {last}; resident {} MiB",
        began.elapsed(),
        server.resident_mib()?
    );
    Ok(())
}

/// The last revision written, once it is known.
static STOP_AT: std::sync::atomic::AtomicI64 = std::sync::atomic::AtomicI64::new(i64::MAX);

/// One more event, so that whoever has read everything looks up.
async fn poke(server: &Server) -> anyhow::Result<()> {
    let mut client = quorate_proto::etcdserverpb::kv_client::KvClient::new(server.connect().await?);
    let put = quorate_proto::etcdserverpb::PutRequest {
        key: "s/end".into(),
        ..Default::default()
    };
    client.put(put).await?;
    Ok(())
}

/// A watch and the first revision it has to tell of.
async fn watch(server: &Server) -> anyhow::Result<(i64, Streaming<WatchResponse>)> {
    let mut client =
        WatchClient::new(server.connect().await?).max_decoding_message_size(usize::MAX);
    let create = WatchRequest {
        request_union: Some(RequestUnion::CreateRequest(WatchCreateRequest {
            key: "s/".into(),
            range_end: "s0".into(),
            prev_kv: true,
            ..WatchCreateRequest::default()
        })),
    };
    let requests = futures::stream::iter([create]).chain(futures::stream::pending());
    let mut answers = client.watch(requests).await?.into_inner();
    let created = answers.message().await?.unwrap_or_default();
    anyhow::ensure!(created.created, "no watch: {created:?}");
    let revision = created.header.map_or(0, |header| header.revision);
    Ok((revision + 1, answers))
}

/// What one watcher saw.
struct Seen {
    events: u64,
    /// The revision after the last one seen.
    next: i64,
}

/// Reads to the end. Every revision is one put below the prefix, so they must come without a gap;
/// the pair before must be the one seen last.
async fn read(first: i64, mut answers: Streaming<WatchResponse>) -> anyhow::Result<Seen> {
    let mut seen = Seen {
        events: 0,
        next: first,
    };
    let mut versions: HashMap<Bytes, i64> = HashMap::new();
    while seen.next <= STOP_AT.load(std::sync::atomic::Ordering::Acquire) {
        let answer = answers.message().await?;
        let answer = answer.ok_or_else(|| anyhow::anyhow!("the watch ended"))?;
        anyhow::ensure!(!answer.canceled, "canceled: {answer:?}");
        for event in answer.events {
            let kv = event.kv.unwrap_or_default();
            anyhow::ensure!(
                kv.mod_revision == seen.next,
                "revision {} came where {} was due",
                kv.mod_revision,
                seen.next
            );
            if let Some(before) = versions.insert(kv.key.clone(), kv.version) {
                anyhow::ensure!(
                    kv.version == before + 1,
                    "version {} after {before}",
                    kv.version
                );
                let told = event.prev_kv.map(|pair| pair.version);
                anyhow::ensure!(told == Some(before), "pair before: {told:?}, not {before}");
            }
            seen.events += 1;
            seen.next += 1;
        }
    }
    Ok(seen)
}
