//! The leader is killed again and again under a load of writes: writes go on soon, nothing
//! acknowledged is lost, and the members agree in the end.

use std::path::Path;
use std::time::{Duration, Instant};

use quorate_harness::cluster::ProcessCluster;
use quorate_harness::eventually;
use quorate_harness::load::Load;

const KILLS: usize = 20;
const WRITERS: usize = 8;
const VALUE_BYTES: usize = 64;
/// With etcd's default timers: a heartbeat each 100 ms, an election after 1000 ms.
const GAP_LIMIT: Duration = Duration::from_secs(2);
const RECOVERY_LIMIT: Duration = Duration::from_secs(30);
/// Acknowledged writes between two kills, so that each kill hits a working cluster.
const WRITES_BETWEEN: usize = 200;

#[tokio::test(flavor = "multi_thread")]
#[expect(clippy::disallowed_methods, reason = "measures what clients see")]
async fn writes_go_on_after_each_kill_of_the_leader_and_nothing_is_lost() -> anyhow::Result<()> {
    let mut cluster =
        ProcessCluster::start(Path::new(env!("CARGO_BIN_EXE_quorate")), 3, &[]).await?;
    let load = Load::start(&cluster.endpoints(), WRITERS, VALUE_BYTES);
    let mut kills = Vec::new();
    for _ in 0..KILLS {
        goes_on(&load).await?;
        let leader = cluster.leader(RECOVERY_LIMIT).await?;
        kills.push(Instant::now());
        cluster.kill(leader)?;
        goes_on(&load).await?;
        cluster.launch(leader)?;
        cluster.serves(leader, RECOVERY_LIMIT).await?;
    }
    goes_on(&load).await?;
    let report = load.stop().await?;

    let gaps = report.longest_gaps(&kills);
    println!(
        "{KILLS} kills, {} writes acknowledged, longest gaps {gaps:?}",
        report.pairs.len()
    );
    for i in 0..cluster.size() {
        report.verify(cluster.endpoint(i)).await?;
    }
    let revision = cluster
        .status(0)
        .await?
        .header
        .map_or(0, |header| header.revision);
    let first = cluster.hash_kv(0, revision).await?.hash;
    for i in 1..cluster.size() {
        assert_eq!(
            cluster.hash_kv(i, revision).await?.hash,
            first,
            "member {i} differs"
        );
    }
    let worst = gaps.iter().max().copied().unwrap_or_default();
    assert!(
        worst <= GAP_LIMIT,
        "{worst:?} without a write; gaps {gaps:?}"
    );
    Ok(())
}

async fn goes_on(load: &Load) -> anyhow::Result<()> {
    let goal = load.acknowledged() + WRITES_BETWEEN;
    eventually("writes go on", RECOVERY_LIMIT, || async {
        (load.acknowledged() >= goal).then_some(())
    })
    .await
}
