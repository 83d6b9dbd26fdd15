//! A member's process ends at every step of installing a snapshot, of taking a peer's state and of
//! purging its log; the next start has everything.
//!
//! The steps are in builds with debug assertions only.

use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;
use std::time::Duration;

use anyhow::Context as _;
use quorate_harness::cluster::ProcessCluster;
use quorate_harness::eventually;
use quorate_recipes::Client;
use quorate_recipes::store::Remote;

const LIMIT: Duration = Duration::from_secs(30);
/// Entries kept for members that lag: few, so that one that was away needs a snapshot.
const WINDOW: usize = 20;
/// What the system ends an aborted process with.
const SIGABRT: i32 = 6;

const INSTALL: [&str; 6] = [
    "install: received",
    "install: staged",
    "install: pointer written",
    "install: adopted",
    "install: installed",
    "install: answered",
];
const REBUILD: [&str; 2] = ["rebuild: staged", "rebuild: adopted"];
const PURGE: [&str; 3] = ["purge: state durable", "purge: begun", "purge: queued"];

/// A cluster that keeps little of its log, and how many keys were put in it.
struct Scene {
    cluster: ProcessCluster,
    client: Client,
    keys: usize,
}

impl Scene {
    async fn set() -> anyhow::Result<Self> {
        let window = WINDOW.to_string();
        let program = Path::new(env!("CARGO_BIN_EXE_quorate"));
        let cluster = ProcessCluster::start(program, 3, &["--snapshot-count", &window]).await?;
        let client = Client::new(Remote::new(cluster.endpoints())?);
        Ok(Self {
            cluster,
            client,
            keys: 0,
        })
    }

    /// Puts more keys, one after the other, than the log keeps entries.
    async fn outgrow_the_log(&mut self) -> anyhow::Result<()> {
        for _ in 0..3 * WINDOW {
            let key = format!("k{}", self.keys);
            self.client.put(key, "v").await?;
            self.keys += 1;
        }
        Ok(())
    }

    /// Which member follows.
    async fn follower(&self) -> anyhow::Result<usize> {
        let leader = self.cluster.leader(LIMIT).await?;
        Ok((leader + 1) % self.cluster.size())
    }

    /// Waits until the log of member `i` no longer holds what was put: its segments say nothing of
    /// that, so it is what the leader's retention task has had time for.
    async fn ends_at(&mut self, i: usize, step: &str) -> anyhow::Result<()> {
        let status = self.cluster.ends(i).await;
        let status = status.with_context(|| format!("it never came to {step:?}"))?;
        anyhow::ensure!(
            status.signal() == Some(SIGABRT),
            "it ended with {status} before {step:?}"
        );
        Ok(())
    }

    /// Starts member `i` again, and finds everything on it.
    async fn recovers(&mut self, i: usize, step: &str) -> anyhow::Result<()> {
        self.cluster.launch(i)?;
        let recovered = async {
            self.cluster.serves(i, LIMIT).await?;
            self.cluster.agrees().await
        };
        recovered.await.with_context(|| format!("after {step:?}"))?;
        let client = Client::new(Remote::new([self.cluster.endpoint(i)])?);
        for n in [0, self.keys / 2, self.keys - 1] {
            let key = format!("k{n}");
            let found = client.get(key.clone()).await?;
            anyhow::ensure!(found.is_some(), "{key} is missing after {step:?}");
        }
        Ok(())
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_that_ends_while_it_installs_a_snapshot_recovers() -> anyhow::Result<()> {
    let mut scene = Scene::set().await?;
    for step in INSTALL {
        let follower = scene.follower().await?;
        scene.cluster.kill(follower)?;
        scene.outgrow_the_log().await?;
        // Purging is looked at once a second; before that the log still has what it needs.
        eventually("it needs a snapshot", LIMIT, || async {
            tokio::time::sleep(Duration::from_secs(2)).await;
            Some(())
        })
        .await?;
        scene
            .cluster
            .launch_with(follower, &[("QUORATE_FAILPOINT", step)])?;
        scene.ends_at(follower, step).await?;
        scene.recovers(follower, step).await?;
    }
    println!("ended at each of {INSTALL:?}, and recovered");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_that_ends_while_it_takes_a_peers_state_recovers() -> anyhow::Result<()> {
    let mut scene = Scene::set().await?;
    for step in REBUILD {
        scene.outgrow_the_log().await?;
        tokio::time::sleep(Duration::from_secs(2)).await;
        let follower = scene.follower().await?;
        scene.cluster.terminate(follower).await?;
        let folder = scene.cluster.data_dir(follower);
        for entry in std::fs::read_dir(folder)? {
            let path = entry?.path();
            let name = path.file_name().context("a name")?.to_string_lossy();
            if name.starts_with("kv-") {
                std::fs::remove_dir_all(&path)?;
            }
        }
        scene
            .cluster
            .launch_with(follower, &[("QUORATE_FAILPOINT", step)])?;
        scene.ends_at(follower, step).await?;
        scene.recovers(follower, step).await?;
    }
    println!("ended at each of {REBUILD:?}, and recovered");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_that_ends_while_it_purges_its_log_recovers() -> anyhow::Result<()> {
    let mut scene = Scene::set().await?;
    for step in PURGE {
        let follower = scene.follower().await?;
        scene.cluster.terminate(follower).await?;
        scene
            .cluster
            .launch_with(follower, &[("QUORATE_FAILPOINT", step)])?;
        scene.outgrow_the_log().await?;
        scene.ends_at(follower, step).await?;
        scene.outgrow_the_log().await?;
        scene.recovers(follower, step).await?;
    }
    println!("ended at each of {PURGE:?}, and recovered");
    Ok(())
}
