//! The Lock and Election services: the same calls against a real etcd and against quorate must be
//! answered alike, but for ids and for what etcd 3.4 does wrong.

#![expect(
    clippy::disallowed_methods,
    reason = "calls that wait while the test goes on, which takes their answers"
)]

use std::path::Path;
use std::time::Duration;

use anyhow::Context as _;
use quorate_harness::cluster::ProcessCluster;
use quorate_harness::etcd::{self, Etcd};
use quorate_harness::eventually;
use quorate_proto::etcdserverpb::kv_client::KvClient;
use quorate_proto::etcdserverpb::lease_client::LeaseClient;
use quorate_proto::etcdserverpb::{
    LeaseGrantRequest, LeaseLeasesRequest, LeaseRevokeRequest, LeaseTimeToLiveRequest,
    RangeRequest, ResponseHeader,
};
use quorate_proto::v3electionpb::election_client::ElectionClient;
use quorate_proto::v3electionpb::{
    CampaignRequest, CampaignResponse, LeaderKey, LeaderRequest, ProclaimRequest, ResignRequest,
};
use quorate_proto::v3lockpb::lock_client::LockClient;
use quorate_proto::v3lockpb::{LockRequest, LockResponse, UnlockRequest};
use tokio::task::JoinHandle;
use tonic::transport::Channel;
use tonic::{Response, Status};

const PATIENCE: Duration = Duration::from_secs(10);

/// The clients of one server.
#[derive(Clone)]
struct Clients {
    kv: KvClient<Channel>,
    lease: LeaseClient<Channel>,
    lock: LockClient<Channel>,
    election: ElectionClient<Channel>,
}

impl Clients {
    async fn connect(endpoint: &str) -> anyhow::Result<Self> {
        let channel = Channel::from_shared(endpoint.to_owned())?.connect().await?;
        Ok(Self {
            kv: KvClient::new(channel.clone()),
            lease: LeaseClient::new(channel.clone()),
            lock: LockClient::new(channel.clone()),
            election: ElectionClient::new(channel),
        })
    }

    async fn grant(&self, id: i64) -> anyhow::Result<()> {
        let request = LeaseGrantRequest { ttl: 100, id };
        self.lease.clone().lease_grant(request).await?;
        Ok(())
    }

    /// Whether the key exists.
    async fn has(&self, key: &str) -> bool {
        let request = RangeRequest {
            key: key.to_owned().into(),
            ..RangeRequest::default()
        };
        let answer = self.kv.clone().range(request).await;
        answer.is_ok_and(|answer| answer.into_inner().count == 1)
    }

    async fn wait_for(&self, key: &str, there: bool) -> anyhow::Result<()> {
        let what = format!("the key {key} is there: {there}");
        eventually(&what, PATIENCE, || async {
            (self.has(key).await == there).then_some(())
        })
        .await
    }

    async fn lock(&self, name: &str, lease: i64) -> Result<LockResponse, Status> {
        let request = LockRequest {
            name: name.to_owned().into(),
            lease,
        };
        self.lock
            .clone()
            .lock(request)
            .await
            .map(Response::into_inner)
    }

    fn lock_later(&self, name: &'static str, lease: i64) -> Later<LockResponse> {
        let clients = self.clone();
        tokio::spawn(async move { clients.lock(name, lease).await })
    }

    async fn unlock(&self, key: &str) -> Result<ResponseHeader, Status> {
        let request = UnlockRequest {
            key: key.to_owned().into(),
        };
        let answer = self.lock.clone().unlock(request).await?;
        Ok(answer.into_inner().header.unwrap_or_default())
    }

    async fn campaign(&self, value: &str, lease: i64) -> Result<CampaignResponse, Status> {
        let request = CampaignRequest {
            name: "e".into(),
            lease,
            value: value.to_owned().into(),
        };
        let answer = self.election.clone().campaign(request).await;
        answer.map(Response::into_inner)
    }

    async fn proclaim(&self, leader: Option<LeaderKey>, value: &str) -> String {
        let request = ProclaimRequest {
            leader,
            value: value.to_owned().into(),
        };
        let answer = self.election.clone().proclaim(request).await;
        told(answer, |answer| answer.header.unwrap_or_default().revision)
    }

    async fn resign(&self, leader: Option<LeaderKey>) -> String {
        let answer = self.election.clone().resign(ResignRequest { leader }).await;
        told(answer, |answer| answer.header.unwrap_or_default().revision)
    }

    async fn leader(&self) -> String {
        let request = LeaderRequest { name: "e".into() };
        let answer = self.election.clone().leader(request).await;
        told(answer, |answer| answer.kv)
    }
}

type Later<T> = JoinHandle<Result<T, Status>>;

async fn finished<T>(later: Later<T>) -> anyhow::Result<Result<T, Status>> {
    let ended = tokio::time::timeout(PATIENCE, later).await;
    Ok(ended.context("a call that should have ended waits")??)
}

fn told<A, T: std::fmt::Debug>(
    answer: Result<Response<A>, Status>,
    of: impl FnOnce(A) -> T,
) -> String {
    said(answer.map(|answer| of(answer.into_inner())))
}

/// What of an answer must be the same everywhere.
fn said<T: std::fmt::Debug>(answer: Result<T, Status>) -> String {
    match answer {
        Ok(answer) => format!("{answer:?}"),
        Err(status) => format!("{:?}: {}", status.code(), status.message()),
    }
}

fn locked(answer: Result<LockResponse, Status>) -> String {
    said(answer.map(|answer| (answer.header.unwrap_or_default().revision, answer.key)))
}

fn won(answer: Result<CampaignResponse, Status>) -> String {
    said(answer.map(|answer| (answer.header.unwrap_or_default().revision, answer.leader)))
}

/// Everything that locks should do alike; the server is fresh.
async fn locks(clients: &Clients) -> anyhow::Result<Vec<String>> {
    let mut heard = Vec::new();
    clients.grant(1).await?;
    clients.grant(2).await?;
    heard.push(locked(clients.lock("n", 1).await));
    heard.push(locked(clients.lock("n", 1).await));
    let waiter = clients.lock_later("n", 2);
    clients.wait_for("n/2", true).await?;
    heard.push(said(
        clients.unlock("n/1").await.map(|header| header.revision),
    ));
    heard.push(locked(finished(waiter).await?));
    let impatient = clients.lock_later("n", 1);
    clients.wait_for("n/1", true).await?;
    impatient.abort();
    clients.wait_for("n/1", false).await?;
    heard.push(locked(clients.lock("n", 99).await));
    heard.push(said(clients.unlock("").await));
    heard.push(said(
        clients.unlock("gone").await.map(|header| header.revision),
    ));
    heard.push(locked(clients.lock("", 1).await));
    Ok(heard)
}

/// Everything that elections should do alike; comes after [`locks`].
async fn elections(clients: &Clients) -> anyhow::Result<Vec<String>> {
    let mut heard = vec![
        clients.leader().await,
        clients.proclaim(None, "x").await,
        clients.resign(None).await,
        won(clients.campaign("x", 99).await),
    ];
    let first = clients.campaign("one", 1).await?;
    let leader = first.leader.clone().context("a leader key")?;
    heard.push(won(Ok(first)));
    heard.push(won(clients.campaign("one", 1).await));
    heard.push(won(clients.campaign("uno", 1).await));
    heard.push(clients.leader().await);

    let request = LeaderRequest { name: "e".into() };
    let mut observed = clients
        .election
        .clone()
        .observe(request)
        .await?
        .into_inner();
    let mut next = async || -> anyhow::Result<String> {
        let leader = tokio::time::timeout(PATIENCE, observed.message()).await??;
        Ok(said(Ok(leader.and_then(|leader| leader.kv))))
    };
    heard.push(next().await?);

    let second = {
        let clients = clients.clone();
        tokio::spawn(async move { clients.campaign("two", 2).await })
    };
    clients.wait_for("e/2", true).await?;
    let wrong = LeaderKey {
        rev: leader.rev + 1,
        ..leader.clone()
    };
    heard.push(clients.proclaim(Some(wrong.clone()), "x").await);
    heard.push(clients.resign(Some(wrong)).await);
    heard.push(clients.proclaim(Some(leader.clone()), "ein").await);
    heard.push(next().await?);
    heard.push(clients.resign(Some(leader.clone())).await);
    heard.push(won(finished(second).await?));
    heard.push(next().await?);
    heard.push(clients.resign(Some(leader.clone())).await);
    heard.push(clients.proclaim(Some(leader), "x").await);
    heard.push(clients.leader().await);
    Ok(heard)
}

async fn quorate() -> anyhow::Result<(ProcessCluster, Clients)> {
    let cluster = ProcessCluster::start(Path::new(env!("CARGO_BIN_EXE_quorate")), 1, &[]).await?;
    let clients = Clients::connect(cluster.endpoint(0)).await?;
    Ok((cluster, clients))
}

#[tokio::test(flavor = "multi_thread")]
async fn lock_and_election_answer_as_etcds_do() -> anyhow::Result<()> {
    let Some(binary) = etcd::installed() else {
        return Ok(());
    };
    let etcd = Etcd::start(binary).await?;
    let theirs = Clients::connect(etcd.endpoint()).await?;
    let (_cluster, ours) = quorate().await?;
    assert_eq!(locks(&ours).await?, locks(&theirs).await?);
    assert_eq!(elections(&ours).await?, elections(&theirs).await?);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_holds_or_leads_whose_key_has_gone() -> anyhow::Result<()> {
    let (_cluster, clients) = quorate().await?;
    for lease in 1..=3 {
        clients.grant(lease).await?;
    }
    clients.lock("n", 1).await?;
    let leader = clients.campaign("one", 1).await?.leader;
    let waiter = clients.lock_later("n", 2);
    let candidate = {
        let clients = clients.clone();
        tokio::spawn(async move { clients.campaign("two", 2).await })
    };
    clients.wait_for("n/2", true).await?;
    clients.wait_for("e/2", true).await?;
    let revoke = LeaseRevokeRequest { id: 2 };
    clients.lease.clone().lease_revoke(revoke).await?;
    clients.unlock("n/1").await?;
    clients.resign(leader).await;
    assert_eq!(
        locked(finished(waiter).await?),
        "Unknown: mutex: session is expired"
    );
    assert_eq!(
        won(finished(candidate).await?),
        "Unknown: election: not leader"
    );
    assert_eq!(clients.leader().await, "Unknown: election: no leader");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lock_without_a_lease_ends_after_a_minute() -> anyhow::Result<()> {
    let (_cluster, mut clients) = quorate().await?;
    let held = clients.lock("n", 0).await?;
    let leases = clients.lease.lease_leases(LeaseLeasesRequest {}).await?;
    let [lease] = leases.into_inner().leases[..] else {
        anyhow::bail!("one lease");
    };
    assert_eq!(held.key, format!("n/{:x}", lease.id));
    let request = LeaseTimeToLiveRequest {
        id: lease.id,
        keys: true,
    };
    let left = clients
        .lease
        .lease_time_to_live(request)
        .await?
        .into_inner();
    assert_eq!((left.granted_ttl, left.keys), (60, vec![held.key]));
    Ok(())
}
