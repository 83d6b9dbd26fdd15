//! A client that does not read costs bounded memory, delays nobody, and loses nothing.

use std::time::Duration;

use anyhow::Context as _;
use quorate_harness::proxy::Proxy;
use quorate_harness::{eventually, metrics};

use super::watcher::{Stream, of};
use super::{cluster, connect, put};

const VALUE_BYTES: usize = 128 * 1024;
const PUTS: usize = 800;
/// Half of what is written. What waits for the slow ones are a few MiB each, shared ones once.
const GROWTH_MAX_MIB: u64 = 50;
const SLOW: usize = 4;

fn resident_mib(proxy: &mut Proxy) -> anyhow::Result<u64> {
    let status = std::fs::read_to_string(format!("/proc/{}/status", proxy.process().pid()))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib: u64 = line
        .context("no VmRSS")?
        .trim()
        .trim_end_matches(" kB")
        .parse()?;
    Ok(kib / 1024)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_does_not_read_delays_nobody_and_loses_nothing() -> anyhow::Result<()> {
    let (_cluster, mut proxy) = cluster(&[]).await?;
    let mut slow = Vec::new();
    for _ in 0..SLOW {
        let mut stream = Stream::open(&connect(proxy.endpoint()).await?).await?;
        stream.created(of("k")).await?;
        slow.push(stream);
    }
    let mut quick = Stream::open(&connect(proxy.endpoint()).await?).await?;
    quick.created(of("k")).await?;
    let channel = connect(proxy.endpoint()).await?;
    put(&channel, "k", vec![0; VALUE_BYTES]).await?;
    quick.take(1).await?;
    let before = resident_mib(&mut proxy)?;

    let mut written = Vec::new();
    for _ in 0..PUTS {
        written.push(put(&channel, "k", vec![0; VALUE_BYTES]).await?);
        // In step: nobody waits for those who do not read.
        let told = tokio::time::timeout(Duration::from_secs(5), quick.take(1)).await??;
        assert_eq!(told[0].0, *written.last().context("a write")?);
    }
    let growth = resident_mib(&mut proxy)?.saturating_sub(before);
    let behind = "quorate_proxy_watchers_behind_total";
    let behind = metrics::metric(proxy.endpoint(), behind).await?;
    let total = (PUTS * VALUE_BYTES) >> 20;
    println!("{total} MiB written, memory grew by {growth} MiB, {behind} watchers fell behind");
    assert!(growth <= GROWTH_MAX_MIB, "memory grew by {growth} MiB");
    assert!(behind >= SLOW as f64);

    for stream in &mut slow {
        let told = stream.take(PUTS + 1).await?;
        let revisions: Vec<i64> = told.iter().skip(1).map(|change| change.0).collect();
        assert_eq!(revisions, written);
    }
    // And they share again.
    let last = put(&channel, "k", "last").await?;
    for stream in &mut slow {
        assert_eq!(stream.take(1).await?[0].0, last);
    }
    let coalesced = "etcd_grpc_proxy_watchers_coalescing_total";
    eventually("all share again", Duration::from_secs(20), || async {
        let coalesced = metrics::metric(proxy.endpoint(), coalesced).await.ok()?;
        (coalesced == SLOW as f64).then_some(())
    })
    .await
}
