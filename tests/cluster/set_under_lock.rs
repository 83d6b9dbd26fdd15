//! Jepsen's set under a lock, on quorate and on a real etcd: a holder is stopped between its read and its
//! write, for longer than its lease lives. Its late write, made without the fence, takes away what the
//! next holder has added; made with the fence it is refused, and nothing is lost.

use std::collections::BTreeSet;
use std::process::Command;
use std::time::Duration;

use anyhow::Context as _;
use quorate_harness::cluster::ProcessCluster;
use quorate_harness::etcd::{self, Etcd};
use quorate_harness::knobs;
use quorate_harness::process::Process;
use quorate_recipes::store::Remote;
use quorate_recipes::{Client, Json, from_json};

/// The shortest that a member grants with etcd's default timers, in seconds.
const TTL: u64 = 2;
const LIMIT: Duration = Duration::from_secs(60);
const SET: &str = "set";

type Set = BTreeSet<String>;

/// What became of the elements that were acknowledged.
#[derive(Debug)]
struct Counts {
    store: &'static str,
    unfenced: bool,
    acknowledged: usize,
    refused: usize,
    lost: usize,
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stopped_holder_loses_updates_only_without_the_fence() -> anyhow::Result<()> {
    let rounds = knobs::number("QUORATE_SET_UNDER_LOCK_ROUNDS", 2);
    let cluster = ProcessCluster::start(&crate::program(), 3, &[]).await?;
    // One store a run: the runs go side by side.
    let second = ProcessCluster::start(&crate::program(), 3, &[]).await?;
    let on_quorate = futures::future::try_join(
        run("quorate", cluster.endpoints(), rounds, true),
        run("quorate", second.endpoints(), rounds, false),
    );
    let on_etcd = async {
        let Some(binary) = etcd::installed() else {
            return Ok(None);
        };
        let (one, two) = (
            Etcd::start(binary.clone()).await?,
            Etcd::start(binary).await?,
        );
        let endpoints = |etcd: &Etcd| vec![etcd.endpoint().to_owned()];
        let runs = futures::future::try_join(
            run("etcd", endpoints(&one), rounds, true),
            run("etcd", endpoints(&two), rounds, false),
        );
        anyhow::Ok(Some(runs.await?))
    };
    let (on_quorate, on_etcd) = futures::future::try_join(on_quorate, on_etcd).await?;
    for (unfenced, fenced) in [Some(on_quorate), on_etcd].into_iter().flatten() {
        for counts in [&unfenced, &fenced] {
            println!(
                "{}, {rounds} holders stopped between read and write, {} the fence: {} additions \
                 acknowledged, {} refused, {} lost",
                counts.store,
                if counts.unfenced { "without" } else { "with" },
                counts.acknowledged,
                counts.refused,
                counts.lost
            );
        }
        assert!(unfenced.lost > 0, "nothing was proved: {unfenced:?}");
        assert_eq!(fenced.lost, 0, "{fenced:?}");
        assert!(fenced.refused > 0, "nothing was proved: {fenced:?}");
    }
    Ok(())
}

async fn run(
    store: &'static str,
    endpoints: Vec<String>,
    rounds: u64,
    unfenced: bool,
) -> anyhow::Result<Counts> {
    let logs = tempfile::tempdir()?;
    let mut command = Command::new(crate::example("set_under_lock")?);
    command
        .args(["--endpoints", &endpoints.join(",")])
        .args(["--rounds", &rounds.to_string()])
        .args(["--ttl", &TTL.to_string()])
        // The proof is that the store refuses, not that the process knows better.
        .arg("--send-always");
    if unfenced {
        command.arg("--unfenced");
    }
    let client = Client::new(Remote::new(endpoints)?);
    let mut victim = Process::start("victim", command, logs.path())?;
    let mut acknowledged = Set::new();
    let mut refused = 0;
    for round in 1..=rounds {
        said(&mut victim, &[format!("read {round}")]).await?;
        victim.pause()?;
        acknowledged.insert(add(&client, round).await?);
        victim.resume()?;
        let ends = [format!("wrote {round}"), format!("refused {round}")];
        match said(&mut victim, &ends).await? {
            0 => acknowledged.insert(format!("victim/{round}")),
            _ => {
                refused += 1;
                false
            }
        };
    }
    let status = victim.wait(LIMIT).await?;
    anyhow::ensure!(status.success(), "{status}\n{}", victim.output());
    let set = read(&client).await?;
    Ok(Counts {
        store,
        unfenced,
        acknowledged: acknowledged.len(),
        refused,
        lost: acknowledged.difference(&set).count(),
    })
}

/// Adds an element under the lock, as soon as the stopped holder's lease has ended.
async fn add(client: &Client, round: u64) -> anyhow::Result<String> {
    let session = client.session().await?;
    let mutex = client.mutex(SET);
    let guard = mutex.lock_within(&session, LIMIT).await?;
    let guard = guard.context("the stopped holder's lock does not end")?;
    let mut set = read(client).await?;
    let element = format!("next/{round}");
    set.insert(element.clone());
    guard.put(SET, Json(&set)).await?;
    guard.release().await?;
    session.close().await?;
    Ok(element)
}

async fn read(client: &Client) -> anyhow::Result<Set> {
    match client.get(SET).await? {
        Some(kv) => Ok(from_json(&kv.key, &kv.value)?),
        None => Ok(Set::new()),
    }
}

/// Waits until the process has printed one of these lines; returns which.
async fn said(process: &mut Process, lines: &[String]) -> anyhow::Result<usize> {
    let waiting = async {
        loop {
            let output = process.output();
            let said = |wanted: &String| output.lines().any(|line| line == wanted);
            if let Some(which) = lines.iter().position(said) {
                return Ok(which);
            }
            if let Some(status) = process.ended()? {
                anyhow::bail!("{status}\n{output}");
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    let said = tokio::time::timeout(LIMIT, waiting).await;
    said.with_context(|| format!("none of {lines:?}"))?
}
