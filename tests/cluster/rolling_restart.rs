//! One member after the other is stopped in good order and started again, under writes, reads and
//! watches: users notice nothing.

use std::time::{Duration, Instant};

use quorate_harness::cluster::ProcessCluster;
use quorate_harness::traffic::{PREFIX, Traffic};
use quorate_harness::watching::Watcher;
use quorate_harness::{eventually, knobs};

const CLIENTS: usize = 6;
const VALUE_BYTES: usize = 64;
const LIMIT: Duration = Duration::from_secs(30);
/// Puts acknowledged between two restarts, so that each hits a working cluster.
const PUTS_BETWEEN: usize = 100;

#[tokio::test(flavor = "multi_thread")]
#[expect(clippy::disallowed_methods, reason = "measures what clients see")]
async fn a_rolling_restart_fails_no_request_and_loses_no_event() -> anyhow::Result<()> {
    let rounds = knobs::number("QUORATE_ROUNDS", 2);
    let mut cluster = ProcessCluster::start(&crate::program(), 3, &[]).await?;
    let endpoints = cluster.endpoints();
    let watchers: Vec<_> = (0..endpoints.len())
        .map(|first| Watcher::start(&endpoints, first, PREFIX))
        .collect();
    let traffic = Traffic::start(&endpoints, CLIENTS, VALUE_BYTES);
    let began = Instant::now();
    for _ in 0..rounds {
        for i in 0..cluster.size() {
            goes_on(&traffic).await?;
            let status = cluster.terminate(i).await?;
            assert!(status.success(), "member {i}: {status}");
            cluster.launch(i)?;
            cluster.serves(i, LIMIT).await?;
        }
    }
    goes_on(&traffic).await?;
    let took = began.elapsed();
    let report = traffic.stop().await?;
    println!(
        "{rounds} rolling restarts in {took:.1?}: {} puts and {} reads answered, {} failed, the slowest \
         put took {:?}",
        report.puts.len(),
        report.reads,
        report.failed,
        report.slowest
    );
    let pairs = report.verify(cluster.endpoint(0)).await?;
    let last = pairs.last().map_or(0, |pair| pair.mod_revision);
    for (i, watcher) in watchers.into_iter().enumerate() {
        let watched = watcher.finish(last).await?;
        println!(
            "watcher {i}: {} events, its stream ended {} times",
            watched.events.len(),
            watched.resumed
        );
        watched.verify(&pairs)?;
        assert!(
            watched.resumed >= rounds,
            "it was not made to resume: nothing was proved"
        );
    }
    cluster.agrees().await
}

async fn goes_on(traffic: &Traffic) -> anyhow::Result<()> {
    let goal = traffic.acknowledged() + PUTS_BETWEEN;
    eventually("writes go on", LIMIT, || async {
        (traffic.acknowledged() >= goal).then_some(())
    })
    .await
}
