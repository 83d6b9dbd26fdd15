//! Consumers of a queue that are killed (SIGKILL) one after the other and started again while items are pushed,
//! then left alone until the queue is empty: every item that was acknowledged to its pusher has exactly one
//! effect, written once.

use std::collections::BTreeMap;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::Context as _;
use quorate_harness::cluster::ProcessCluster;
use quorate_harness::process::Process;
use quorate_harness::{eventually, knobs};
use quorate_recipes::queue::Queue;
use quorate_recipes::store::Remote;
use quorate_recipes::{Client, KeyRange};
use tokio::task::JoinSet;

const CONSUMERS: usize = 8;
/// The shortest that a member grants with etcd's default timers, in seconds.
const TTL: u64 = 2;
const LIMIT: Duration = Duration::from_secs(60);
const WORK_MS: u64 = 2;
const PUSHED_TOGETHER: u64 = 20;
/// So many items wait at least, and not many more, while consumers are killed.
const BACKLOG: u64 = 200;

#[tokio::test(flavor = "multi_thread")]
async fn killed_consumers_leave_exactly_one_effect_an_item() -> anyhow::Result<()> {
    let kills = knobs::number("QUORATE_CONSUMER_KILLS", 8);
    let cluster = ProcessCluster::start(&crate::program(), 3, &[]).await?;
    let client = Client::new(Remote::new(cluster.endpoints())?);
    let queue: Queue<u64> = client.queue("work").without_max_attempts();

    let stop = Arc::new(AtomicBool::new(false));
    let mut pushing = JoinSet::new();
    pushing.spawn(push(client.clone(), queue.clone(), Arc::clone(&stop)));
    let logs = tempfile::tempdir()?;
    let start = |n: usize| {
        let mut command = Command::new(crate::example("queue_worker")?);
        command
            .args(["--endpoints", &cluster.endpoints().join(",")])
            .args(["--worker", &format!("w{n}")])
            .args(["--ttl", &TTL.to_string()])
            .args(["--work-ms", &WORK_MS.to_string()]);
        Process::start(&format!("w{n}"), command, logs.path())
    };
    let mut workers = (0..CONSUMERS)
        .map(start)
        .collect::<anyhow::Result<Vec<_>>>()?;
    eventually("all consumers are there", LIMIT, || async {
        let status = queue.status().await.ok()?;
        (status.consumers >= CONSUMERS as u64).then_some(())
    })
    .await?;

    let mut with_a_claim = 0;
    for kill in 0..kills {
        tokio::time::sleep(Duration::from_secs(1)).await;
        let n = kill % CONSUMERS;
        let before = queue.status().await?.claimed;
        workers[n].kill()?;
        // What the killed one had is claimed until its session has ended.
        with_a_claim += usize::from(before > 0);
        workers[n] = start(n)?;
    }
    stop.store(true, Ordering::Relaxed);
    let pushed = pushing.join_next().await.context("it pushes")???;
    eventually("the queue is empty", 4 * LIMIT, || async {
        let status = queue.status().await.ok()?;
        (status.items + status.delayed == 0).then_some(())
    })
    .await?;
    for mut worker in workers {
        worker.kill()?;
    }

    let (_, kvs) = client.list(KeyRange::prefix("effect/")).await?;
    let mut effects = BTreeMap::new();
    let mut again = 0;
    for kv in &kvs {
        anyhow::ensure!(
            kv.version == 1,
            "{:?} was written {} times",
            kv.key,
            kv.version
        );
        let by = std::str::from_utf8(&kv.value)?;
        let attempt = by.rsplit(' ').next().and_then(|n| n.parse::<u64>().ok());
        again += attempt.context("an effect that tells its attempt")? - 1;
        effects.insert(kv.key.clone(), by);
    }
    println!(
        "{pushed} items, {CONSUMERS} consumers, {kills} kills ({with_a_claim} while items were claimed): {} \
         effects, {again} takings more than one an item",
        effects.len()
    );
    let missing = (0..pushed).find(|n| !effects.contains_key(format!("effect/{n}").as_bytes()));
    assert_eq!(missing, None, "an item without an effect");
    assert_eq!(effects.len() as u64, pushed);
    assert!(
        again > 0,
        "no kill took an item from anybody: nothing was proved"
    );
    let status = queue.status().await?;
    assert_eq!((status.claimed, status.dead), (0, 0), "{status:?}");
    Ok(())
}

/// Pushes the numbers from 0 on, so fast that some always wait. Returns how many were acknowledged.
async fn push(client: Client, queue: Queue<u64>, stop: Arc<AtomicBool>) -> anyhow::Result<u64> {
    let session = client.session().await?;
    let mut next = 0;
    while !stop.load(Ordering::Relaxed) {
        if queue.status().await?.items > BACKLOG {
            tokio::time::sleep(Duration::from_millis(5)).await;
            continue;
        }
        let some: Vec<u64> = (next..next + PUSHED_TOGETHER).collect();
        queue.push_all(&session, &some).await?;
        next += PUSHED_TOGETHER;
    }
    session.close().await?;
    Ok(next)
}
