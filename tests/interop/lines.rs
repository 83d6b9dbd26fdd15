//! One line for all: the recipes, `etcdctl` and the Lock and Election services wait for each other under
//! the same names, in the order of asking, on quorate and on a real etcd.

#![expect(
    clippy::disallowed_methods,
    reason = "calls that wait while the test goes on, which takes their answers"
)]

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use anyhow::Context as _;
use quorate_harness::cluster::ProcessCluster;
use quorate_harness::etcd::{self, Etcd};
use quorate_harness::eventually;
use quorate_proto::v3electionpb::election_client::ElectionClient;
use quorate_proto::v3electionpb::{CampaignRequest, ResignRequest};
use quorate_proto::v3lockpb::lock_client::LockClient;
use quorate_proto::v3lockpb::{LockRequest, UnlockRequest};
use quorate_recipes::lock::Holder;
use quorate_recipes::store::Remote;
use quorate_recipes::{Client, Name, Session};
use tokio::io::{AsyncBufReadExt, BufReader, Lines};
use tokio::process::{Child, ChildStdout, Command};
use tokio::task::JoinHandle;
use tonic::transport::Channel;

const PATIENCE: Duration = Duration::from_secs(20);
const LOCK: &str = "shared/lock";
const ELECTION: &str = "shared/election";

/// An `etcdctl` that waits, then holds until it is interrupted.
struct Ctl {
    child: Child,
    lines: Lines<BufReader<ChildStdout>>,
}

impl Ctl {
    fn start(endpoint: &str, arguments: &[&str]) -> anyhow::Result<Self> {
        let mut child = Command::new("etcdctl")
            .env("ETCDCTL_API", "3")
            .args(["--endpoints", endpoint.trim_start_matches("http://")])
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()?;
        let out = child.stdout.take().context("piped")?;
        let lines = BufReader::new(out).lines();
        Ok(Self { child, lines })
    }

    /// The key that it prints once it holds.
    async fn held(&mut self) -> anyhow::Result<String> {
        let line = tokio::time::timeout(PATIENCE, self.lines.next_line()).await;
        line.context("etcdctl does not get its turn")??
            .context("etcdctl has ended")
    }

    async fn interrupt(mut self) -> anyhow::Result<()> {
        let pid = self.child.id().context("it runs")?.to_string();
        let sent = Command::new("kill").args(["-INT", &pid]).status().await?;
        anyhow::ensure!(sent.success(), "not interrupted");
        tokio::time::timeout(PATIENCE, self.child.wait()).await??;
        Ok(())
    }
}

async fn soon<T>(later: JoinHandle<T>) -> anyhow::Result<T> {
    let done = tokio::time::timeout(PATIENCE, later).await;
    Ok(done.context("no turn")??)
}

/// Waits until the line is so long, and returns it.
async fn long<F, Fut>(length: usize, line: F) -> anyhow::Result<Vec<Holder>>
where
    F: Fn() -> Fut,
    Fut: Future<Output = quorate_recipes::Result<Vec<Holder>>>,
{
    let what = format!("{length} in line");
    eventually(&what, PATIENCE, || async {
        let line = line().await.ok()?;
        (line.len() == length).then_some(line)
    })
    .await
}

/// Us, the service, `etcdctl`, us again: each holds in its turn, and nobody before.
async fn locks(endpoint: &str, client: &Client, session: &Session) -> anyhow::Result<()> {
    let mutex = client.mutex(Name::raw(LOCK));
    let line = || async {
        let mut line: Vec<Holder> = mutex.holder().await?.into_iter().collect();
        let waiters = mutex.waiters(9).await?;
        line.extend(waiters.into_iter().map(|waiter| waiter.contender));
        Ok(line)
    };
    let first = mutex.lock(session).await?;
    let of_service = client.session().await?;
    let mut service = LockClient::new(channel(endpoint).await?);
    let request = LockRequest {
        name: LOCK.into(),
        lease: of_service.lease().0,
    };
    let asked = tokio::spawn({
        let mut service = service.clone();
        async move { service.lock(request).await }
    });
    long(2, line).await?;
    let mut ctl = Ctl::start(endpoint, &["lock", LOCK])?;
    long(3, line).await?;
    let last = tokio::spawn({
        let (mutex, session) = (mutex.clone(), session.clone());
        async move { mutex.lock(&session).await }
    });
    let stand = long(4, line).await?;
    let keys: Vec<String> = stand.iter().map(|each| each.key.to_string()).collect();

    assert!(!asked.is_finished() && !last.is_finished());
    first.put("shared/state", "1").await?;
    first.release().await?;
    let key = soon(asked).await??.into_inner().key;
    assert_eq!(String::from_utf8_lossy(&key), keys[1]);
    assert!(!last.is_finished() && mutex.try_lock(session).await?.is_none());
    service.unlock(UnlockRequest { key }).await?;
    assert_eq!(ctl.held().await?, keys[2]);
    assert!(!last.is_finished() && mutex.try_lock(session).await?.is_none());
    ctl.interrupt().await?;
    let last = soon(last).await??;
    assert_eq!(last.key().to_string(), keys[3]);
    last.put("shared/state", "4").await?;
    last.release().await?;
    long(0, line).await?;
    Ok(())
}

/// The same with leaders.
async fn elections(endpoint: &str, client: &Client, session: &Session) -> anyhow::Result<()> {
    let election = client.election::<String>(Name::raw(ELECTION));
    let line = || election.candidates(9);
    let leads = async |value: &str| -> anyhow::Result<()> {
        let leader = election.leader().await?.context("nobody leads")?;
        assert_eq!(leader.value, value);
        Ok(())
    };
    let first = election.campaign(session, "first".to_owned()).await?;
    let of_service = client.session().await?;
    let mut service = ElectionClient::new(channel(endpoint).await?);
    let request = CampaignRequest {
        name: ELECTION.into(),
        lease: of_service.lease().0,
        value: "service".into(),
    };
    let asked = tokio::spawn({
        let mut service = service.clone();
        async move { service.campaign(request).await }
    });
    long(2, line).await?;
    let mut ctl = Ctl::start(endpoint, &["elect", ELECTION, "etcdctl"])?;
    long(3, line).await?;
    let last = tokio::spawn({
        let (election, session) = (election.clone(), session.clone());
        async move { election.campaign(&session, "last".to_owned()).await }
    });
    long(4, line).await?;

    leads("first").await?;
    assert!(!asked.is_finished() && !last.is_finished());
    first.resign().await?;
    let leader = soon(asked).await??.into_inner().leader;
    leads("service").await?;
    service.resign(ResignRequest { leader }).await?;
    let key = ctl.held().await?;
    assert!(key.starts_with(ELECTION), "{key}");
    leads("etcdctl").await?;
    assert!(!last.is_finished());
    ctl.interrupt().await?;
    let last = soon(last).await??;
    leads("last").await?;
    last.resign().await?;
    long(0, line).await?;
    Ok(())
}

async fn channel(endpoint: &str) -> anyhow::Result<Channel> {
    Ok(Channel::from_shared(endpoint.to_owned())?.connect().await?)
}

async fn stand_in_line(endpoint: &str) -> anyhow::Result<()> {
    let client = Client::new(Remote::new([endpoint])?);
    let session = client.session().await?;
    locks(endpoint, &client, &session).await?;
    elections(endpoint, &client, &session).await
}

#[tokio::test(flavor = "multi_thread")]
async fn recipes_services_and_etcdctl_stand_in_one_line() -> anyhow::Result<()> {
    let Some(binary) = etcd::installed() else {
        return Ok(());
    };
    let etcd = Etcd::start(binary).await?;
    stand_in_line(etcd.endpoint()).await.context("on etcd")?;
    let quorate = ProcessCluster::start(Path::new(env!("CARGO_BIN_EXE_quorate")), 1, &[]).await?;
    stand_in_line(quorate.endpoint(0))
        .await
        .context("on quorate")
}
