//! Clusters that grow, shrink, and have every member replaced while clients work: these notice
//! nothing, and whoever was removed ends by itself and stays out.

use std::time::Duration;

use quorate_harness::cluster::ProcessCluster;
use quorate_harness::eventually;
use quorate_harness::traffic::Traffic;

const CLIENTS: usize = 4;
const VALUE_BYTES: usize = 64;
const LIMIT: Duration = Duration::from_secs(60);
const PUTS_BETWEEN: usize = 100;

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_grows_to_five_and_shrinks_to_three_under_load() -> anyhow::Result<()> {
    let mut cluster = ProcessCluster::start(&crate::program(), 1, &[]).await?;
    let traffic = Traffic::start(&cluster.endpoints(), CLIENTS, VALUE_BYTES);
    for _ in 0..4 {
        goes_on(&traffic).await?;
        let through = cluster.running()[0];
        cluster.join(through, LIMIT).await?;
    }
    goes_on(&traffic).await?;
    assert_eq!(cluster.list(0).await?.len(), 5);
    // A follower through the leader, then the leader through another.
    let leader = cluster.leader(LIMIT).await?;
    let follower = (leader + 1) % cluster.size();
    removed(&mut cluster, follower, leader).await?;
    goes_on(&traffic).await?;
    let through = cluster.running().into_iter().find(|i| *i != leader);
    removed(&mut cluster, leader, through.unwrap_or_default()).await?;
    goes_on(&traffic).await?;
    let report = traffic.stop().await?;
    println!(
        "1, 3, 5 and 3 members: {} puts and {} reads answered, {} failed, the slowest put took {:?}",
        report.puts.len(),
        report.reads,
        report.failed,
        report.slowest
    );
    for i in cluster.running() {
        assert_eq!(cluster.list(i).await?.len(), 3);
        report.verify(cluster.endpoint(i)).await?;
    }
    stays_out(&mut cluster, leader).await?;
    cluster.agrees().await
}

#[tokio::test(flavor = "multi_thread")]
async fn every_member_is_replaced_under_load() -> anyhow::Result<()> {
    let mut cluster = ProcessCluster::start(&crate::program(), 3, &[]).await?;
    let traffic = Traffic::start(&cluster.endpoints(), CLIENTS, VALUE_BYTES);
    for old in 0..3 {
        goes_on(&traffic).await?;
        let new = cluster.join(old, LIMIT).await?;
        goes_on(&traffic).await?;
        removed(&mut cluster, old, new).await?;
    }
    goes_on(&traffic).await?;
    let report = traffic.stop().await?;
    println!(
        "every member replaced: {} puts and {} reads answered, {} failed, the slowest put took {:?}",
        report.puts.len(),
        report.reads,
        report.failed,
        report.slowest
    );
    assert_eq!(cluster.running(), [3, 4, 5]);
    for i in cluster.running() {
        report.verify(cluster.endpoint(i)).await?;
    }
    cluster.agrees().await
}

/// Removes member `i` through another, and checks that it ends by itself and in good order.
async fn removed(cluster: &mut ProcessCluster, i: usize, through: usize) -> anyhow::Result<()> {
    let status = cluster.remove(i, through).await?;
    anyhow::ensure!(status.success(), "{status}; {}", cluster.said(i));
    Ok(())
}

/// Starts a removed member again: it must say why it does not run, and end.
async fn stays_out(cluster: &mut ProcessCluster, i: usize) -> anyhow::Result<()> {
    cluster.launch(i)?;
    let status = cluster.ends(i).await?;
    let said = cluster.said(i);
    anyhow::ensure!(
        !status.success() && said.contains("was removed"),
        "{status}; {said}"
    );
    Ok(())
}

async fn goes_on(traffic: &Traffic) -> anyhow::Result<()> {
    let goal = traffic.acknowledged() + PUTS_BETWEEN;
    eventually("writes go on", LIMIT, || async {
        (traffic.acknowledged() >= goal).then_some(())
    })
    .await
}
