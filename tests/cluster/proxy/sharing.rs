//! What many clients ask for is asked of the members once.

use std::time::Duration;

use anyhow::Context as _;
use futures::StreamExt as _;
use futures::future::try_join_all;
use quorate_harness::cluster::ProcessCluster;
use quorate_harness::{eventually, metrics};
use quorate_proto::etcdserverpb::lease_client::LeaseClient;
use quorate_proto::etcdserverpb::{LeaseGrantRequest, LeaseKeepAliveRequest, WatchCreateRequest};

use super::watcher::{Stream, changes, of};
use super::{cluster, connect, put};

const CONNECTIONS: usize = 10;
const WATCHERS_EACH: usize = 20;
const PUTS: usize = 100;
const LIMIT: Duration = Duration::from_secs(20);

async fn upstream_watchers(cluster: &ProcessCluster) -> anyhow::Result<f64> {
    let mut sum = 0.0;
    for endpoint in cluster.endpoints() {
        sum += metrics::metric(&endpoint, "etcd_debugging_mvcc_watcher_total").await?;
    }
    Ok(sum)
}

/// A stream, and what its watchers were told so far.
struct Watchers {
    stream: Stream,
    /// The revision that each begins after.
    created: Vec<i64>,
    /// Revisions of the changes that each was told.
    told: Vec<Vec<i64>>,
}

impl Watchers {
    async fn create(endpoint: &str, request: &WatchCreateRequest) -> anyhow::Result<Self> {
        let channel = connect(endpoint).await?;
        let mut watchers = Self {
            stream: Stream::open(&channel).await?,
            created: Vec::new(),
            told: vec![Vec::new(); WATCHERS_EACH],
        };
        for _ in 0..WATCHERS_EACH {
            watchers.stream.create(request.clone()).await?;
        }
        while watchers.created.len() < WATCHERS_EACH {
            watchers.hear().await?;
        }
        Ok(watchers)
    }

    async fn hear(&mut self) -> anyhow::Result<()> {
        let answer = self.stream.next().await?;
        let watcher = usize::try_from(answer.watch_id)?;
        anyhow::ensure!(!answer.canceled, "{answer:?}");
        if answer.created {
            anyhow::ensure!(watcher == self.created.len(), "out of order: {answer:?}");
            self.created
                .push(answer.header.context("a header")?.revision);
        }
        let revisions = changes(&answer.events).into_iter().map(|change| change.0);
        self.told[watcher].extend(revisions);
        Ok(())
    }

    /// Hears until each was told so much.
    async fn told(&mut self, count: usize) -> anyhow::Result<()> {
        while self.told.iter().any(|told| told.len() < count) {
            self.hear().await?;
        }
        Ok(())
    }
}

/// Creates watchers over many connections.
async fn watchers(endpoint: &str, request: &WatchCreateRequest) -> anyhow::Result<Vec<Watchers>> {
    try_join_all((0..CONNECTIONS).map(|_| Watchers::create(endpoint, request))).await
}

#[tokio::test(flavor = "multi_thread")]
async fn two_hundred_watchers_of_one_key_are_one_upstream() -> anyhow::Result<()> {
    let (cluster, proxy) = cluster(&[]).await?;
    let channel = connect(proxy.endpoint()).await?;
    let before = put(&channel, "k", "before").await?;
    let mut streams = watchers(proxy.endpoint(), &of("k")).await?;
    for Watchers { created, .. } in &streams {
        assert!(
            created.iter().all(|revision| *revision >= before),
            "{created:?}"
        );
    }
    assert_eq!(upstream_watchers(&cluster).await?, 1.0);
    let coalesced = metrics::metric(
        proxy.endpoint(),
        "etcd_grpc_proxy_watchers_coalescing_total",
    );
    let all = CONNECTIONS * WATCHERS_EACH;
    assert_eq!(coalesced.await?, (all - 1) as f64);

    let mut written = Vec::new();
    for n in 0..PUTS {
        written.push(put(&channel, "k", n.to_string()).await?);
    }
    for watchers in &mut streams {
        watchers.told(PUTS).await?;
        assert!(watchers.told.iter().all(|told| *told == written));
    }
    let events =
        metrics::metric(proxy.endpoint(), "etcd_grpc_proxy_events_coalescing_total").await?;
    assert_eq!(events, ((all - 1) * PUTS) as f64);
    println!("{all} watchers, 1 upstream, {PUTS} events each, {events} of them shared");

    drop(streams);
    eventually("the upstream watch ends", LIMIT, || async {
        (upstream_watchers(&cluster).await.ok()? == 0.0).then_some(())
    })
    .await
}

/// As clients do that first list and then watch: from a revision that is past by then, of a key that
/// does not change.
#[tokio::test(flavor = "multi_thread")]
async fn watchers_from_the_past_come_together() -> anyhow::Result<()> {
    let (cluster, proxy) = cluster(&[]).await?;
    let channel = connect(proxy.endpoint()).await?;
    let start = put(&channel, "k", "first").await?;
    for n in 0..20 {
        put(&channel, "other", n.to_string()).await?;
    }
    let request = WatchCreateRequest {
        start_revision: start,
        ..of("k")
    };
    let mut streams = watchers(proxy.endpoint(), &request).await?;
    for watchers in &mut streams {
        watchers.told(1).await?;
    }
    let reading = streams.into_iter().map(|mut watchers| async move {
        watchers.told(2).await?;
        anyhow::Ok(watchers.told)
    });
    let writing = async {
        eventually("all are one upstream", LIMIT, || async {
            (upstream_watchers(&cluster).await.ok()? == 1.0).then_some(())
        })
        .await?;
        put(&channel, "k", "second").await
    };
    let (read, last) = futures::future::try_join(try_join_all(reading), writing).await?;
    assert!(read.iter().flatten().all(|told| *told == [start, last]));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn keep_alives_of_one_lease_are_shared_and_all_are_answered() -> anyhow::Result<()> {
    const CLIENTS: usize = 50;
    const ROUNDS: usize = 4;
    let (_cluster, proxy) = cluster(&[]).await?;
    let channel = connect(proxy.endpoint()).await?;
    let grant = LeaseGrantRequest { ttl: 60, id: 5 };
    LeaseClient::new(channel.clone()).lease_grant(grant).await?;
    let clients = (0..CLIENTS).map(|_| async {
        let asked = futures::stream::iter([LeaseKeepAliveRequest { id: 5 }; ROUNDS]);
        let asked = asked.chain(futures::stream::pending());
        let mut client = LeaseClient::new(connect(proxy.endpoint()).await?);
        let answers = client.lease_keep_alive(asked).await?.into_inner();
        let answers: Vec<_> = answers.take(ROUNDS).collect().await;
        for answer in answers {
            assert_eq!(answer?.ttl, 60);
        }
        anyhow::Ok(())
    });
    try_join_all(clients).await?;
    let asked = metrics::metric(proxy.endpoint(), "quorate_proxy_keep_alives_asked_total").await?;
    let sent = metrics::metric(proxy.endpoint(), "quorate_proxy_keep_alives_sent_total").await?;
    println!("{asked} keep-alives asked for, {sent} sent");
    assert_eq!(asked, (CLIENTS * ROUNDS) as f64);
    assert!(
        sent >= 1.0 && sent <= asked / 4.0,
        "{sent} sent for {asked}"
    );
    Ok(())
}
