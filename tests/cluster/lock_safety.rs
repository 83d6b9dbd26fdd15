//! Eight processes increment one counter under one lock, while whoever holds the lock is stopped for
//! longer than its lease lives, again and again. The store refuses what a stale holder writes, so the
//! counter ends up exactly where the marks say.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::Context as _;
use quorate_harness::cluster::ProcessCluster;
use quorate_harness::process::Process;
use quorate_recipes::store::Remote;
use quorate_recipes::{Client, KeyRange};
use serde_json::Value;

const WORKERS: usize = 8;
const INCREMENTS: u64 = 100;
/// The time between reading the counter and writing it, in milliseconds: most pauses fall into it.
const HOLD_MS: u64 = 40;
/// The shortest that a member grants with etcd's default timers, in seconds.
const TTL: u64 = 2;
/// Longer than the lease lives after the last renewal, and than the leader needs to expire it.
const PAUSE: Duration = Duration::from_secs(TTL + 2);
const PAUSES: usize = 10;
const LOCK: &str = "counter";
const LIMIT: Duration = Duration::from_secs(180);

#[tokio::test(flavor = "multi_thread")]
async fn a_counter_under_a_lock_is_exact_although_holders_are_paused() -> anyhow::Result<()> {
    let cluster = ProcessCluster::start(&crate::program(), 3, &[]).await?;
    let logs = tempfile::tempdir()?;
    let mut workers = (0..WORKERS)
        .map(|worker| start_worker(worker, &cluster.endpoints(), logs.path()))
        .collect::<anyhow::Result<Vec<_>>>()?;
    let client = Client::new(Remote::new(cluster.endpoints())?);

    let mut pauses = 0;
    while pauses < PAUSES && any_runs(&mut workers)? {
        if let Some(paused) = pause_holder(&client, &workers).await? {
            tokio::time::sleep(PAUSE).await;
            workers[paused].resume()?;
            pauses += 1;
        }
    }
    let (mut acknowledged, mut refused, mut unknown) = (0, 0, 0);
    for worker in &mut workers {
        let status = worker.wait(LIMIT).await?;
        anyhow::ensure!(
            status.success(),
            "{}: {status}\n{}",
            worker.name(),
            worker.output()
        );
        let output = worker.output();
        let last = output.lines().last().context("no counts")?;
        let counts: Value = serde_json::from_str(last).context(last.to_owned())?;
        acknowledged += number(&counts, "acknowledged")?;
        refused += number(&counts, "refused")?;
        unknown += number(&counts, "unknown_applied")?;
    }
    let counter = client.get(LOCK).await?.context("no counter")?.value;
    let counter: u64 = std::str::from_utf8(&counter)?.parse()?;
    let (_, done) = client.list(KeyRange::prefix("done/")).await?;
    println!(
        "{WORKERS} processes, {pauses} holders paused for {PAUSE:?}: counter {counter}, {} marks, \
         {acknowledged} acknowledged and {unknown} found out later, {refused} stale writes refused",
        done.len()
    );

    assert_eq!(
        counter,
        done.len() as u64,
        "the counter is what the marks say"
    );
    assert_eq!(
        counter,
        WORKERS as u64 * INCREMENTS,
        "no increment is missing or doubled"
    );
    assert_eq!(
        acknowledged + unknown,
        counter,
        "every acknowledged increment is there"
    );
    for worker in 0..WORKERS {
        for n in 1..=INCREMENTS {
            let mark = format!("done/w{worker}/{n}");
            assert!(
                done.iter().any(|pair| pair.key == mark),
                "{mark} is missing"
            );
        }
    }
    assert_eq!(
        pauses, PAUSES,
        "the workers were done before {PAUSES} holders were paused"
    );
    assert!(
        refused > 0,
        "no pause fell between a read and its write: nothing was proved"
    );
    Ok(())
}

fn start_worker(worker: usize, endpoints: &[String], logs: &Path) -> anyhow::Result<Process> {
    let mut command = Command::new(crate::example("guarded_counter")?);
    command
        .args(["--endpoints", &endpoints.join(",")])
        .args(["--worker", &format!("w{worker}")])
        .args(["--count", &INCREMENTS.to_string()])
        .args(["--lock", LOCK])
        .args(["--ttl", &TTL.to_string()])
        .args(["--hold-ms", &HOLD_MS.to_string()])
        // The proof is that the store refuses, not that the process knows better.
        .arg("--send-always");
    Process::start(&format!("w{worker}"), command, logs)
}

/// Stops whichever worker holds the lock. Returns which, once the store says that it held the lock
/// when it was stopped.
async fn pause_holder(client: &Client, workers: &[Process]) -> anyhow::Result<Option<usize>> {
    let lock = client.mutex(LOCK);
    let Some(holder) = lock.holder().await? else {
        return Ok(None);
    };
    let pid = holder.who.as_ref().map(|identity| identity.pid);
    let Some(worker) = workers.iter().position(|worker| Some(worker.pid()) == pid) else {
        return Ok(None);
    };
    workers[worker].pause()?;
    let still = lock
        .holder()
        .await?
        .is_some_and(|now| now.key == holder.key);
    if !still {
        workers[worker].resume()?;
        return Ok(None);
    }
    Ok(Some(worker))
}

fn any_runs(workers: &mut [Process]) -> anyhow::Result<bool> {
    for worker in workers {
        if worker.ended()?.is_none() {
            return Ok(true);
        }
    }
    Ok(false)
}

fn number(counts: &Value, name: &str) -> anyhow::Result<u64> {
    counts[name]
        .as_u64()
        .with_context(|| format!("{name} in {counts}"))
}
