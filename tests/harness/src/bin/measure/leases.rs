//! Many leases that end in the same second, beside writes.
//!
//! Leases are granted, a key is attached to each, then all are renewed together; from there on
//! nobody renews them. A watch sees each key go. None may go before its time to live has passed
//! since its last renewal was sent, and the last must be gone 2 s after the last could end.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use futures::StreamExt as _;
use quorate_proto::etcdserverpb::kv_client::KvClient;
use quorate_proto::etcdserverpb::lease_client::LeaseClient;
use quorate_proto::etcdserverpb::watch_client::WatchClient;
use quorate_proto::etcdserverpb::watch_request::RequestUnion;
use quorate_proto::etcdserverpb::{
    LeaseGrantRequest, LeaseKeepAliveRequest, LeaseLeasesRequest, PutRequest, WatchCreateRequest,
    WatchRequest,
};
use quorate_proto::mvccpb::event::EventType;
use tokio::task::JoinHandle;

use crate::server::{Server, rest};
use crate::writers::Writers;

const LEASES: usize = 100_000;
/// Long enough to grant all of them and to renew them all.
const TTL: Duration = Duration::from_secs(90);
const GRANTERS: usize = 128;
const KEEPERS: usize = 8;
const CONNECTIONS: usize = 8;
const WRITERS: usize = 16;
/// How late the last lease may end.
const LATE_MAX: Duration = Duration::from_secs(2);
/// The longest a write may wait while leases end.
const WRITE_MAX_MILLIS: f64 = 1_000.0;
const PREFIX: &str = "lease/";

/// Measures with `leases` leases.
pub(crate) async fn measure(server: Server, leases: Option<usize>) -> anyhow::Result<()> {
    let leases = leases.unwrap_or(LEASES);
    let began = Instant::now();
    grant_all(&server, leases).await?;
    println!(
        "{leases} leases with a key each after {:.1?}",
        began.elapsed()
    );
    let gone = watch_deletes(&server, leases).await?;
    let renewed = renew_all(&server, leases).await?;
    let first = renewed.values().map(|sent| sent.0).min().expect("some");
    let last = renewed.values().map(|sent| sent.1).max().expect("some");
    println!("all renewed within {:.2?}", last - first);

    let writers = Writers::start(&server, WRITERS, "w/", 1_000, 256).await?;
    let quiet_until = first + TTL - Duration::from_secs(1);
    rest(quiet_until.saturating_duration_since(Instant::now())).await;
    let before = writers.stretch();
    let gone = gone.await??;
    let during = writers.stretch();
    writers.stop().await?;

    println!("writes before:          {}", before.describe());
    println!("writes while they ended: {}", during.describe());
    let early = gone
        .iter()
        .filter(|(lease, at)| **at < renewed[*lease].0 + TTL)
        .count();
    let end = *gone.values().max().expect("some");
    let start = *gone.values().min().expect("some");
    let late = end.saturating_duration_since(last + TTL);
    println!(
        "{} gone, {early} of them early; from first to last {:.2?}; the last one {late:.2?} after \
         the last could end",
        gone.len(),
        end - start
    );
    let mut client = LeaseClient::new(server.connect().await?);
    let left = client.lease_leases(LeaseLeasesRequest::default()).await?;
    let left = left.into_inner().leases.len();
    println!("{left} leases left");
    anyhow::ensure!(early == 0, "leases ended early");
    anyhow::ensure!(left == 0, "leases are left");
    anyhow::ensure!(late <= LATE_MAX, "leases ended late");
    anyhow::ensure!(during.millis(1.0) <= WRITE_MAX_MILLIS, "writes stood still");
    Ok(())
}

fn id(n: usize) -> i64 {
    i64::try_from(n).expect("few") + 1
}

async fn grant_all(server: &Server, leases: usize) -> anyhow::Result<()> {
    let mut channels = Vec::new();
    for _ in 0..CONNECTIONS {
        channels.push(server.connect().await?);
    }
    let granters = (0..GRANTERS).map(|granter| {
        let channel = channels[granter % CONNECTIONS].clone();
        async move {
            let mut lessor = LeaseClient::new(channel.clone());
            let mut store = KvClient::new(channel);
            for n in (granter..leases).step_by(GRANTERS) {
                let grant = LeaseGrantRequest {
                    id: id(n),
                    ttl: i64::try_from(TTL.as_secs())?,
                };
                lessor.lease_grant(grant).await?;
                let put = PutRequest {
                    key: format!("{PREFIX}{}", id(n)).into(),
                    lease: id(n),
                    ..PutRequest::default()
                };
                store.put(put).await?;
            }
            anyhow::Ok(())
        }
    });
    futures::future::try_join_all(granters).await?;
    Ok(())
}

/// When each lease's key was seen to go, once all are gone.
async fn watch_deletes(
    server: &Server,
    leases: usize,
) -> anyhow::Result<JoinHandle<anyhow::Result<HashMap<i64, Instant>>>> {
    let mut client =
        WatchClient::new(server.connect().await?).max_decoding_message_size(usize::MAX);
    let create = WatchRequest {
        request_union: Some(RequestUnion::CreateRequest(WatchCreateRequest {
            key: PREFIX.into(),
            range_end: "lease0".into(),
            ..WatchCreateRequest::default()
        })),
    };
    let requests = futures::stream::iter([create]).chain(futures::stream::pending());
    let mut answers = client.watch(requests).await?.into_inner();
    let created = answers.message().await?;
    anyhow::ensure!(created.is_some_and(|created| created.created), "no watch");
    Ok(tokio::spawn(async move {
        let mut gone = HashMap::with_capacity(leases);
        while gone.len() < leases {
            let answer = answers.message().await?;
            let answer = answer.ok_or_else(|| anyhow::anyhow!("the watch ended"))?;
            let now = Instant::now();
            for event in answer.events {
                if event.r#type() != EventType::Delete {
                    continue;
                }
                let key = event.kv.unwrap_or_default().key;
                let lease = std::str::from_utf8(&key[PREFIX.len()..])?.parse()?;
                anyhow::ensure!(gone.insert(lease, now).is_none(), "{lease} went twice");
            }
        }
        Ok(gone)
    }))
}

/// Renews all leases at once; when each renewal was sent, and when it was answered.
async fn renew_all(
    server: &Server,
    leases: usize,
) -> anyhow::Result<HashMap<i64, (Instant, Instant)>> {
    let mut keepers = Vec::new();
    for keeper in 0..KEEPERS {
        let mut client = LeaseClient::new(server.connect().await?);
        keepers.push(async move {
            let ids: Vec<i64> = (keeper..leases).step_by(KEEPERS).map(id).collect();
            let sent = std::sync::Arc::new(std::sync::Mutex::new(HashMap::new()));
            let noted = std::sync::Arc::clone(&sent);
            let asked = ids.clone().into_iter().map(move |id| {
                if let Ok(mut noted) = noted.lock() {
                    noted.insert(id, Instant::now());
                }
                LeaseKeepAliveRequest { id }
            });
            let requests = futures::stream::iter(asked).chain(futures::stream::pending());
            let mut answers = client.lease_keep_alive(requests).await?.into_inner();
            let mut renewed = HashMap::new();
            for id in ids {
                let answer = answers.message().await?;
                let answer = answer.ok_or_else(|| anyhow::anyhow!("keep-alives ended"))?;
                anyhow::ensure!(answer.id == id && answer.ttl > 0, "{id}: {answer:?}");
                let asked = sent.lock().ok().and_then(|sent| sent.get(&id).copied());
                let asked = asked.ok_or_else(|| anyhow::anyhow!("{id} was not sent"))?;
                renewed.insert(id, (asked, Instant::now()));
            }
            anyhow::Ok(renewed)
        });
    }
    let all = futures::future::try_join_all(keepers).await?;
    Ok(all.into_iter().flatten().collect())
}
