//! The way back, and the way in: `quorate snapshot restore` from a snapshot of quorate and from those of
//! real etcds. The restored cluster must show every revision, event and lease as the one that was saved,
//! go on from there, and refuse whoever was left over of it.
//!
//! Runs with the etcd in PATH, and with one of the 3.5 line if `QUORATE_ETCD_3_5` names its folder.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::Context as _;
use quorate_harness::cluster::{self, ProcessCluster};
use quorate_harness::etcd::Etcd;
use quorate_harness::eventually;
use quorate_proto::epoch::{self, EPOCH_KEY};
use quorate_proto::etcdserverpb::watch_request::RequestUnion;
use quorate_proto::etcdserverpb::{RangeRequest, WatchCreateRequest, WatchRequest};
use quorate_proto::mvccpb::{Event, KeyValue};
use quorate_proto::txn;
use serde_json::Value;

use super::snapshot::{Clients, PATIENCE, Release, Step, endless, history, releases, saved};

fn program() -> PathBuf {
    cluster::program(env!("CARGO_BIN_EXE_quorate"))
}

/// `quorate snapshot` with these arguments.
fn quorate(arguments: impl IntoIterator<Item = impl AsRef<OsStr>>) -> anyhow::Result<Output> {
    let mut command = Command::new(program());
    Ok(command.arg("snapshot").args(arguments).output()?)
}

/// As [`quorate`], for what must pass. What it printed.
fn passes(arguments: impl IntoIterator<Item = impl AsRef<OsStr>>) -> anyhow::Result<String> {
    let done = quorate(arguments)?;
    let said = String::from_utf8_lossy(&done.stderr);
    anyhow::ensure!(done.status.success(), "{said}");
    Ok(String::from_utf8(done.stdout)?)
}

fn restore(
    file: &Path,
    cluster: &ProcessCluster,
    i: usize,
    more: &[&str],
) -> anyhow::Result<String> {
    let mut arguments: Vec<OsString> = vec!["restore".into(), file.into()];
    arguments.extend(cluster.identity(i));
    arguments.extend(more.iter().map(OsString::from));
    passes(arguments)
}

fn address(url: &str) -> &str {
    url.trim_start_matches("http://")
}

#[expect(clippy::disallowed_methods, reason = "epochs are compared with it")]
fn wall_millis() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    u64::try_from(since.unwrap_or_default().as_millis()).unwrap_or(u64::MAX)
}

/// A lone member that was started, stopped, and restored from a file.
async fn restored_alone(file: &Path, more: &[&str]) -> anyhow::Result<ProcessCluster> {
    let mut cluster = ProcessCluster::start(&program(), 1, &[]).await?;
    cluster.kill(0)?;
    std::fs::remove_dir_all(cluster.data_dir(0))?;
    restore(file, &cluster, 0, more)?;
    cluster.launch(0)?;
    serves_restored(&cluster, 0).await?;
    Ok(cluster)
}

/// Returns once member `i` shows the epoch raised. It can be read a moment earlier, as it was saved.
async fn serves_restored(cluster: &ProcessCluster, i: usize) -> anyhow::Result<()> {
    cluster.serves(i, PATIENCE).await?;
    let clients = Clients::connect(cluster.endpoint(i)).await?;
    let raised = eventually("the epoch is raised", PATIENCE, || async {
        let mut kv = clients.kv.clone();
        let request = RangeRequest {
            key: EPOCH_KEY.into(),
            ..RangeRequest::default()
        };
        let read = kv.range(request).await.ok()?.into_inner();
        (!read.kvs.is_empty()).then_some(())
    });
    raised.await.with_context(|| cluster.said(i))
}

/// Everything a server shows from its compact revision on.
struct Shown {
    compacted: i64,
    now: i64,
    at: BTreeMap<i64, Vec<KeyValue>>,
    events: Vec<Event>,
    leases: BTreeMap<i64, (i64, Vec<bytes::Bytes>)>,
}

impl Shown {
    /// Writes one more key at the end, which is not in it.
    async fn by(clients: &mut Clients, compacted: i64) -> anyhow::Result<Self> {
        let (now, _) = clients.all_at(0).await?;
        let mut at = BTreeMap::new();
        for revision in compacted..=now {
            at.insert(revision, clients.all_at(revision).await?.1);
        }
        let leases = clients.leases().await?;
        let (_, events) = clients.events_from(compacted).await?;
        anyhow::ensure!(
            !events.is_empty(),
            "a history without events proves nothing"
        );
        Ok(Self {
            compacted,
            now,
            at,
            events,
            leases,
        })
    }

    /// A restored server shows the same, and one revision more: that of the epoch, which is of now.
    async fn is_shown_by(&self, restored: &mut Clients, began: u64) -> anyhow::Result<()> {
        let (now, _) = restored.all_at(0).await?;
        anyhow::ensure!(now == self.now + 1, "at {now} instead of {} + 1", self.now);
        for (revision, expected) in &self.at {
            let (_, actual) = restored.all_at(*revision).await?;
            anyhow::ensure!(
                *expected == actual,
                "at {revision}: {expected:?}, restored {actual:?}"
            );
        }
        let compacted = restored.all_at(self.compacted - 1).await.err();
        let compacted = compacted.context("a revision too many")?;
        anyhow::ensure!(compacted.message().contains("compacted"), "{compacted}");
        anyhow::ensure!(restored.leases().await? == self.leases, "leases");
        let (_, mut events) = restored.events_from(self.compacted).await?;
        let raised = events
            .pop()
            .and_then(|event| event.kv)
            .context("no epoch")?;
        anyhow::ensure!(
            raised.key == EPOCH_KEY && raised.mod_revision == now,
            "{raised:?}"
        );
        let number = epoch::parse(Some(&raised.value)).map_err(anyhow::Error::msg)?;
        anyhow::ensure!((began..=wall_millis()).contains(&number), "epoch {number}");
        anyhow::ensure!(events == self.events, "events");
        Ok(())
    }
}

/// A history on one server, with a compaction in it; tells the compact revision.
async fn live(
    clients: &mut Clients,
    steps: Vec<Step>,
    compact_after: usize,
) -> anyhow::Result<i64> {
    let mut compacted = 0;
    for (i, step) in steps.into_iter().enumerate() {
        let revision = clients.take(step).await?;
        if i == compact_after {
            compacted = revision;
        }
    }
    clients.compact(compacted).await?;
    Ok(compacted)
}

/// A history that is compacted at a put: all releases of etcd keep the same then.
fn compacted_at_a_put(negative_leases: bool, seed: u64) -> (Vec<Step>, usize) {
    let mut steps = history(negative_leases, seed, 160);
    let put = Step::Change(vec![txn::put("compacted", "here").into()]);
    steps.insert(70, put);
    (steps, 70)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_comes_back_from_its_snapshot_and_refuses_who_was_left_over() -> anyhow::Result<()>
{
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("snapshot.db");
    let mut cluster = ProcessCluster::start(&program(), 3, &[]).await?;
    let mut clients = Clients::connect(cluster.endpoint(0)).await?;
    let (steps, compact_after) = compacted_at_a_put(true, 11);
    let compacted = live(&mut clients, steps, compact_after).await?;
    let before = cluster.status(0).await?.header.unwrap_or_default();
    let hash = cluster.hash_kv(0, before.revision).await?;

    let save = |endpoints: &str| {
        let arguments = [OsStr::new("save"), file.as_os_str()];
        let more = ["--endpoints", endpoints].map(OsStr::new);
        quorate(arguments.into_iter().chain(more))
    };
    let all = cluster.endpoints().join(",");
    let done = save(&all)?;
    assert!(!done.status.success() && !file.exists());
    std::fs::write(&file, "an older one")?;
    // A follower may be a moment behind, and its snapshot with it.
    let done = save(address(cluster.endpoint(0)))?;
    let said = String::from_utf8_lossy(&done.stdout);
    anyhow::ensure!(done.status.success(), "{done:?}");
    assert!(said.starts_with("Snapshot saved at "), "{said}");
    assert_eq!(std::fs::metadata(&file)?.len() % 512, 32);

    let shown = Shown::by(&mut clients, compacted).await?;
    assert_eq!(shown.now, before.revision);
    drop(clients);
    for i in 0..3 {
        cluster.kill(i)?;
        std::fs::rename(
            cluster.data_dir(i),
            cluster.data_dir(i).with_extension("old"),
        )?;
    }
    // The last one comes back with what it had.
    let left_over = cluster.data_dir(2);
    std::fs::rename(left_over.with_extension("old"), &left_over)?;
    let began = wall_millis();
    for i in 0..2 {
        restore(&file, &cluster, i, &[])?;
    }
    for i in 0..3 {
        cluster.launch(i)?;
    }
    for i in 0..2 {
        serves_restored(&cluster, i).await?;
        let mut clients = Clients::connect(cluster.endpoint(i)).await?;
        if i == 0 {
            shown.is_shown_by(&mut clients, began).await?;
        }
        let again = cluster.hash_kv(i, before.revision).await?;
        assert_eq!(
            (again.hash, again.compact_revision),
            (hash.hash, hash.compact_revision)
        );
    }
    let after = cluster.status(0).await?.header.unwrap_or_default();
    assert_ne!(after.cluster_id, before.cluster_id);
    assert_eq!(after.member_id, before.member_id);
    // It keeps asking for votes; nobody hears it.
    eventually("the member left over runs", PATIENCE, || async {
        cluster.status(2).await.ok()
    })
    .await?;
    let mut clients = Clients::connect(cluster.endpoint(0)).await?;
    for n in 0..50 {
        let step = Step::Change(vec![txn::put("after", n.to_string()).into()]);
        clients.take(step).await?;
        tokio::time::sleep(Duration::from_millis(40)).await;
    }
    let left_over = cluster.status(2).await?;
    let header = left_over.header.unwrap_or_default();
    assert_eq!(
        (left_over.leader, header.cluster_id),
        (0, before.cluster_id)
    );
    let refused = cluster.status(0).await?;
    let term = refused.header.unwrap_or_default().raft_term;
    assert!(term < 20, "its campaigns disturb: term {term}");

    // Restored as the others were, it is one of them.
    cluster.kill(2)?;
    std::fs::remove_dir_all(cluster.data_dir(2))?;
    restore(&file, &cluster, 2, &[])?;
    cluster.launch(2)?;
    cluster.serves(2, PATIENCE).await?;
    cluster.agrees().await
}

#[tokio::test(flavor = "multi_thread")]
async fn after_a_bump_old_watches_are_told_that_their_revisions_are_gone() -> anyhow::Result<()> {
    const BUMP: i64 = 1_000_000_000;
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("snapshot.db");
    let cluster = ProcessCluster::start(&program(), 1, &[]).await?;
    let mut clients = Clients::connect(cluster.endpoint(0)).await?;
    for step in history(true, 12, 40) {
        clients.take(step).await?;
    }
    let (now, pairs) = clients.all_at(0).await?;
    let endpoint = cluster.endpoint(0);
    let save = [OsStr::new("save"), file.as_os_str()].into_iter();
    passes(save.chain(["--endpoints", endpoint].map(OsStr::new)))?;

    let bump = BUMP.to_string();
    let more = ["--bump-revision", &bump, "--mark-compacted"];
    let restored = restored_alone(&file, &more).await?;
    let mut clients = Clients::connect(restored.endpoint(0)).await?;
    let (bumped, mut shown) = clients.all_at(0).await?;
    assert_eq!(bumped, now + BUMP + 1);
    shown.retain(|pair| pair.key != EPOCH_KEY);
    assert_eq!(shown, pairs);
    // A client that saw more than the backup has goes on from there.
    for first in [2, now, now + 100] {
        let create = WatchCreateRequest {
            key: "\0".into(),
            range_end: "\0".into(),
            start_revision: first,
            ..WatchCreateRequest::default()
        };
        let request = WatchRequest {
            request_union: Some(RequestUnion::CreateRequest(create)),
        };
        let mut answers = clients.watch.watch(endless(request)).await?.into_inner();
        let answer = loop {
            let answer = tokio::time::timeout(PATIENCE, answers.message()).await??;
            let answer = answer.context("the watch ended")?;
            assert!(answer.events.is_empty(), "{answer:?}");
            if answer.canceled {
                break answer;
            }
        };
        assert_eq!(answer.compact_revision, now + BUMP, "from {first}");
    }
    // The same twice, and one without the other is a mistake.
    let flags = [OsStr::new("restore"), file.as_os_str()].into_iter();
    let alone = quorate(flags.chain(["--bump-revision", "5"].map(OsStr::new)))?;
    assert!(!alone.status.success());
    Ok(())
}

/// A history on a real etcd, restored to quorate from a snapshot and from the member's own file.
async fn comes_from(release: &Release, seed: u64) -> anyhow::Result<()> {
    let folder = tempfile::tempdir()?;
    let etcd = Etcd::start(release.server.clone()).await?;
    let mut clients = Clients::connect(etcd.endpoint()).await?;
    let (steps, compact_after) = compacted_at_a_put(release.keeps_negative_leases, seed);
    let compacted = live(&mut clients, steps, compact_after).await?;

    let file = folder.path().join("etcd.db");
    let told = saved(&release.ctl, address(etcd.endpoint()), &file)?;
    let status = |file: &Path| -> anyhow::Result<Value> {
        let arguments = [OsStr::new("status"), file.as_os_str()].into_iter();
        let told = passes(arguments.chain(["-w", "json"].map(OsStr::new)))?;
        Ok(serde_json::from_str(&told)?)
    };
    let ours = status(&file)?;
    for field in ["hash", "revision", "totalKey", "totalSize"] {
        anyhow::ensure!(
            ours[field] == told[field],
            "{field}: {ours}, etcd says {told}"
        );
    }
    // quorate's own client saves the same.
    let again = folder.path().join("again.db");
    let save = [OsStr::new("save"), again.as_os_str()].into_iter();
    passes(save.chain(["--endpoints", etcd.endpoint()].map(OsStr::new)))?;
    anyhow::ensure!(status(&again)?["hash"] == told["hash"], "saved twice");
    // A member's own file has pages that are free, and no checksum.
    let own = folder.path().join("own.db");
    std::fs::copy(etcd.data_dir().join("member/snap/db"), &own)?;
    anyhow::ensure!(status(&own)?["hash"] == told["hash"], "the member's file");
    let shown = Shown::by(&mut clients, compacted).await?;
    drop(etcd);

    for (file, more) in [(&file, &[][..]), (&own, &["--skip-hash-check"])] {
        let began = wall_millis();
        let restored = restored_alone(file, more).await?;
        let mut clients = Clients::connect(restored.endpoint(0)).await?;
        let context = format!("from {}", file.display());
        shown
            .is_shown_by(&mut clients, began)
            .await
            .context(context)?;
        // And etcd's tools say the same of what is saved from there.
        let back = folder.path().join("back.db");
        let told = saved(&release.ctl, address(restored.endpoint(0)), &back)?;
        let ours = status(&back)?;
        anyhow::ensure!(ours["hash"] == told["hash"], "{ours}, etcd says {told}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn quorate_goes_on_from_a_snapshot_of_a_real_etcd() -> anyhow::Result<()> {
    let releases = releases();
    for release in &releases {
        for seed in [21, 22] {
            let context = format!("{}, seed {seed}", release.server.display());
            println!("{context}");
            comes_from(release, seed).await.context(context)?;
        }
    }
    println!("from {} releases of etcd", releases.len());
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_file_is_refused_and_nothing_is_there_afterwards() -> anyhow::Result<()> {
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("snapshot.db");
    let cluster = ProcessCluster::start(&program(), 1, &[]).await?;
    let mut clients = Clients::connect(cluster.endpoint(0)).await?;
    for step in history(true, 13, 30) {
        clients.take(step).await?;
    }
    let endpoint = cluster.endpoint(0);
    let save = [OsStr::new("save"), file.as_os_str()].into_iter();
    passes(save.chain(["--endpoints", endpoint].map(OsStr::new)))?;

    let good = std::fs::read(&file)?;
    let data_dir = folder.path().join("data");
    let restore = |bytes: &[u8]| -> anyhow::Result<String> {
        let damaged = folder.path().join("damaged.db");
        std::fs::write(&damaged, bytes)?;
        let flags = [OsStr::new("restore"), damaged.as_os_str()].into_iter();
        let done = quorate(flags.chain([OsStr::new("--data-dir"), data_dir.as_os_str()]))?;
        anyhow::ensure!(!done.status.success(), "{done:?}");
        Ok(String::from_utf8(done.stderr)?)
    };
    let left = || -> anyhow::Result<usize> { Ok(std::fs::read_dir(folder.path())?.count()) };
    let mut flipped = good.clone();
    flipped[good.len() / 2] ^= 0x10;
    for (bytes, said) in [
        (flipped.as_slice(), "SHA-256"),
        (&good[..good.len() - 512], "SHA-256"),
        (&good[..good.len() - 100], "it was cut"),
        (&good[..good.len() - 32], "--skip-hash-check"),
        (&good[..40], "not a bbolt database"),
        (b"", "not a bbolt database"),
    ] {
        let told = restore(bytes)?;
        anyhow::ensure!(told.contains(said), "{said}: {told}");
        anyhow::ensure!(left()? == 2, "{said}: something is left");
    }
    // What is there already stays.
    std::fs::create_dir(&data_dir)?;
    std::fs::write(data_dir.join("precious"), "x")?;
    let told = restore(&good)?;
    anyhow::ensure!(told.contains("not empty"), "{told}");
    assert_eq!(std::fs::read(data_dir.join("precious"))?, b"x");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restore_that_is_killed_leaves_nothing_or_all_of_it() -> anyhow::Result<()> {
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("snapshot.db");
    let mut cluster = ProcessCluster::start(&program(), 1, &[]).await?;
    let mut clients = Clients::connect(cluster.endpoint(0)).await?;
    for step in history(true, 14, 60) {
        clients.take(step).await?;
    }
    let endpoint = cluster.endpoint(0);
    let save = [OsStr::new("save"), file.as_os_str()].into_iter();
    passes(save.chain(["--endpoints", endpoint].map(OsStr::new)))?;
    cluster.kill(0)?;

    let data_dir = cluster.data_dir(0);
    let (mut nothing, mut all) = (0, 0);
    for delay in (0..400).step_by(8) {
        if data_dir.exists() {
            std::fs::remove_dir_all(&data_dir)?;
        }
        let mut restoring = Command::new(program())
            .args(["snapshot", "restore"])
            .arg(&file)
            .args(cluster.identity(0))
            .stdout(std::process::Stdio::null())
            .spawn()?;
        tokio::time::sleep(Duration::from_millis(delay)).await;
        restoring.kill()?;
        restoring.wait()?;
        if !data_dir.exists() {
            nothing += 1;
            continue;
        }
        all += 1;
        for part in ["IDENTITY", "CURRENT", "wal", "kv-1"] {
            anyhow::ensure!(
                data_dir.join(part).exists(),
                "after {delay} ms without {part}"
            );
        }
    }
    println!("{nothing} times nothing, {all} times all of it");
    anyhow::ensure!(nothing > 0, "it was never killed in time");
    // What is left beside it is in nobody's way.
    if data_dir.exists() {
        std::fs::remove_dir_all(&data_dir)?;
    }
    restore(&file, &cluster, 0, &[])?;
    cluster.launch(0)?;
    cluster.serves(0, PATIENCE).await
}
