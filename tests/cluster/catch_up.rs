//! A member that joins a cluster with much data gets a snapshot; writes hardly notice.

use std::time::{Duration, Instant};

use bytes::Bytes;
use quorate_harness::client::Client;
use quorate_harness::cluster::ProcessCluster;
use quorate_harness::knobs;
use quorate_harness::traffic::Traffic;
use rand::{Rng as _, SeedableRng as _};
use tokio::task::JoinSet;

/// Data in the cluster, in MiB.
const MIB: u64 = 64;
const FILL_VALUE_BYTES: usize = 64 * 1024;
const FILLERS: usize = 8;
const CLIENTS: usize = 4;
const VALUE_BYTES: usize = 256;
/// How long writes are measured before and after; ten times as long in a proof.
const WINDOW: Duration = Duration::from_secs(2);
const LIMIT: Duration = Duration::from_secs(30);
const JOIN_LIMIT: Duration = Duration::from_secs(600);
/// By how much the 99th percentile of the leader's writes may grow meanwhile.
const FACTOR: u32 = 2;

#[tokio::test(flavor = "multi_thread")]
#[expect(clippy::disallowed_methods, reason = "measures what clients see")]
async fn a_new_member_gets_a_snapshot_while_writes_go_on() -> anyhow::Result<()> {
    // A time is promised where the machine is left alone, and not among other tests.
    let is_proof = knobs::is_set("QUORATE_CATCH_UP_MIB");
    let mib: u64 = knobs::number("QUORATE_CATCH_UP_MIB", MIB);
    let window = if is_proof { 10 * WINDOW } else { WINDOW };
    let arguments = [
        "--snapshot-count",
        "100",
        "--quota-backend-bytes",
        "8589934592",
    ];
    let mut cluster = ProcessCluster::start(&crate::program(), 3, &arguments).await?;
    let leader = cluster.leader(LIMIT).await?;
    let filled = Instant::now();
    let values = mib * 1024 * 1024 / FILL_VALUE_BYTES as u64;
    fill(cluster.endpoint(leader), values).await?;
    let filled = filled.elapsed();
    // What is needed to answer from the log is given up within two looks of a second.
    tokio::time::sleep(Duration::from_secs(3)).await;
    let term = cluster.status(leader).await?.raft_term;

    let traffic = Traffic::puts_through(cluster.endpoint(leader), CLIENTS, VALUE_BYTES);
    tokio::time::sleep(window).await;
    drop(traffic.take_latencies());
    tokio::time::sleep(window).await;
    let before = traffic.take_latencies();
    let began = Instant::now();
    let new = cluster.join(leader, JOIN_LIMIT).await?;
    let caught_up = began.elapsed();
    let during = traffic.take_latencies();
    tokio::time::sleep(window).await;
    let after = traffic.take_latencies();
    let report = traffic.stop().await?;
    let size = cluster.status(new).await?.db_size;
    println!(
        "{values} values of {FILL_VALUE_BYTES} bytes, written in {filled:.1?}; a new member had its vote \
         after {caught_up:.1?} with {} MiB on disk",
        size >> 20
    );
    println!("writes before: {before}");
    println!("writes during: {during}");
    println!("writes after:  {after}");
    let said = cluster.process(new).map(|process| process.output());
    assert!(
        said.is_some_and(|said| said.contains("installed a snapshot")),
        "it was caught up without a snapshot; {}",
        cluster.said(new)
    );
    assert_eq!(
        cluster.status(leader).await?.raft_term,
        term,
        "the leader was lost meanwhile"
    );
    report.verify(cluster.endpoint(new)).await?;
    cluster.agrees().await?;
    if is_proof {
        let (was, is) = (before.at(0.99), during.at(0.99));
        assert!(
            is <= FACTOR * was,
            "99 of 100 writes took up to {was:?} before and {is:?} meanwhile"
        );
    }
    Ok(())
}

/// Writes `values` values that do not compress.
async fn fill(endpoint: &str, values: u64) -> anyhow::Result<()> {
    let mut fillers = JoinSet::new();
    for filler in 0..FILLERS {
        let endpoints = vec![endpoint.to_owned()];
        fillers.spawn(async move {
            let mut client = Client::new(&endpoints, 0);
            let mut random = rand::rngs::SmallRng::seed_from_u64(filler as u64);
            let mut value = vec![0; FILL_VALUE_BYTES];
            for n in (filler as u64..values).step_by(FILLERS) {
                random.fill_bytes(&mut value);
                let value = Bytes::copy_from_slice(&value);
                client.put(&format!("fill/{n:09}"), &value).await?;
            }
            anyhow::Ok(())
        });
    }
    while let Some(filled) = fillers.join_next().await {
        filled??;
    }
    Ok(())
}
