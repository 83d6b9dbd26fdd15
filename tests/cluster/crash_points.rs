//! A member's process ends at every step of installing a snapshot, of taking a peer's state, of purging
//! its log and of forming a new cluster alone; the next start has everything.
//!
//! The steps are in builds with debug assertions only.

use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;
use std::time::Duration;

use anyhow::Context as _;
use quorate_harness::cluster::ProcessCluster;
use quorate_recipes::Client;
use quorate_recipes::store::Remote;

const LIMIT: Duration = Duration::from_secs(30);
/// Entries kept for members that lag: few, so that one that was away needs a snapshot.
const WINDOW: usize = 20;
/// How often a member is sent through a step that it may get by without.
const ATTEMPTS: usize = 20;
/// Between looks whether it has ended or serves.
const PAUSE: Duration = Duration::from_millis(100);
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
const FORCE: [&str; 5] = [
    "force: begun",
    "force: alone",
    "force: log made",
    "force: decided",
    "force: between",
];

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

    /// Has member `i` miss more than the log keeps, `spoil`s its folder, and starts it so that it ends at
    /// `step`. How much the log keeps is looked at now and then: one that got by without that step is
    /// sent through it again.
    async fn ends_at(
        &mut self,
        i: usize,
        step: &str,
        spoil: impl Fn(&Path) -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        for _ in 0..ATTEMPTS {
            self.cluster.terminate(i).await?;
            self.outgrow_the_log().await?;
            spoil(&self.cluster.data_dir(i))?;
            self.cluster
                .launch_with(i, &[("QUORATE_FAILPOINT", step)])?;
            while self.cluster.serves(i, PAUSE).await.is_err() {
                let process = self.cluster.process(i).context("it was started")?;
                if process.ended()?.is_some() {
                    return self.aborted(i, step).await;
                }
            }
        }
        anyhow::bail!("it never came to {step:?}")
    }

    /// Waits until the process of member `i` has ended as at a step.
    async fn aborted(&mut self, i: usize, step: &str) -> anyhow::Result<()> {
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
        self.has_keys(i, step).await
    }

    async fn has_keys(&self, i: usize, step: &str) -> anyhow::Result<()> {
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
        scene.ends_at(follower, step, |_| Ok(())).await?;
        scene.recovers(follower, step).await?;
    }
    println!("ended at each of {INSTALL:?}, and recovered");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_that_ends_while_it_takes_a_peers_state_recovers() -> anyhow::Result<()> {
    let mut scene = Scene::set().await?;
    for step in REBUILD {
        let follower = scene.follower().await?;
        scene.ends_at(follower, step, without_state).await?;
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
        scene.aborted(follower, step).await?;
        scene.outgrow_the_log().await?;
        scene.recovers(follower, step).await?;
    }
    println!("ended at each of {PURGE:?}, and recovered");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_that_ends_while_it_forms_a_new_cluster_finishes() -> anyhow::Result<()> {
    const FLAG: (&str, &str) = ("QUORATE_FORCE_NEW_CLUSTER", "true");
    for step in FORCE {
        let mut scene = Scene::set().await?;
        scene.outgrow_the_log().await?;
        scene.cluster.agrees().await?;
        for i in 0..3 {
            scene.cluster.kill(i)?;
        }
        scene
            .cluster
            .launch_with(0, &[FLAG, ("QUORATE_FAILPOINT", step)])?;
        scene.aborted(0, step).await?;
        scene.cluster.launch_with(0, &[FLAG])?;
        scene.cluster.serves(0, LIMIT).await.context(step)?;
        scene.has_keys(0, step).await?;
        let members = scene.cluster.list(0).await?;
        anyhow::ensure!(members.len() == 1, "{members:?} after {step:?}");
    }
    println!("ended at each of {FORCE:?}, and finished");
    Ok(())
}

/// Removes the state from a member's folder.
fn without_state(folder: &Path) -> anyhow::Result<()> {
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        let name = path.file_name().context("a name")?.to_string_lossy();
        if name.starts_with("kv-") {
            std::fs::remove_dir_all(&path)?;
        }
    }
    Ok(())
}
