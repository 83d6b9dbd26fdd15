//! Every service through the proxy, compared with the members behind it.

use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use bytes::Bytes;
use futures::StreamExt as _;
use quorate_harness::etcd::{self, Etcd};
use quorate_harness::metrics;
use quorate_harness::proxy::Proxy;
use quorate_proto::etcdserverpb::auth_client::AuthClient;
use quorate_proto::etcdserverpb::cluster_client::ClusterClient;
use quorate_proto::etcdserverpb::kv_client::KvClient;
use quorate_proto::etcdserverpb::lease_client::LeaseClient;
use quorate_proto::etcdserverpb::maintenance_client::MaintenanceClient;
use quorate_proto::etcdserverpb::*;
use quorate_proto::v3electionpb::election_client::ElectionClient;
use quorate_proto::v3electionpb::{CampaignRequest, LeaderRequest};
use quorate_proto::v3lockpb::lock_client::LockClient;
use quorate_proto::v3lockpb::{LockRequest, UnlockRequest};
use quorate_recipes::Client;
use quorate_recipes::store::Remote;
use tonic::transport::Channel;
use tonic::{Request, Status};

use super::watcher::{Stream, of};
use super::{cluster, connect, program, put};

const LEASE: i64 = 77;

#[tokio::test(flavor = "multi_thread")]
async fn every_service_of_members_works_through_the_proxy() -> anyhow::Result<()> {
    let (cluster, proxy) = cluster(&["--advertise-client-url", "http://proxy.test:1"]).await?;
    let through = connect(proxy.endpoint()).await?;
    keys(&through).await?;
    leases(&through).await?;
    watches(&through).await?;
    maintenance(&through).await?;
    recipes(&through).await?;
    // What only the leader decides gets to it.
    let leader = cluster.leader(Duration::from_secs(10)).await?;
    let direct = connect(cluster.endpoint(leader)).await?;
    refusals(&through, &direct).await?;
    let listed = ClusterClient::new(through.clone())
        .member_list(MemberListRequest::default())
        .await?
        .into_inner();
    let urls: Vec<_> = listed
        .members
        .iter()
        .flat_map(|m| &m.client_ur_ls)
        .collect();
    assert_eq!(urls, ["http://proxy.test:1"]);
    // What newer clients ask for that an older etcd does not have.
    let pages = KvClient::new(through.clone())
        .range_stream(RangeRequest {
            key: b"k/".as_slice().into(),
            range_end: b"k0".as_slice().into(),
            ..Default::default()
        })
        .await?
        .into_inner();
    let pages: Vec<_> = pages.collect().await;
    assert!(
        pages.iter().all(Result::is_ok) && !pages.is_empty(),
        "{pages:?}"
    );

    let health = metrics::get(proxy.endpoint(), "/health").await?;
    assert!(
        health.starts_with("HTTP/1.1 200") && health.contains("\"true\""),
        "{health}"
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn every_service_of_a_real_etcd_works_through_the_proxy() -> anyhow::Result<()> {
    let binaries = [etcd::installed(), etcd::installed_3_5()];
    for binary in binaries.into_iter().flatten() {
        let etcd = Etcd::start(binary).await?;
        let endpoints = [etcd.endpoint().to_owned()];
        let proxy = Proxy::start(program(), &endpoints, &[]).await?;
        let (through, direct) = (
            connect(proxy.endpoint()).await?,
            connect(etcd.endpoint()).await?,
        );
        keys(&through).await?;
        leases(&through).await?;
        watches(&through).await?;
        maintenance(&through).await?;
        recipes(&through).await?;
        refusals(&through, &direct).await?;
        authentication(&through).await?;
    }
    Ok(())
}

async fn keys(channel: &Channel) -> anyhow::Result<()> {
    let mut kv = KvClient::new(channel.clone());
    let first = put(channel, "k/a", "1").await?;
    let second = put(channel, "k/b", "2").await?;
    assert_eq!(second, first + 1);
    let get = RangeRequest {
        key: b"k/".as_slice().into(),
        range_end: b"k0".as_slice().into(),
        ..Default::default()
    };
    let found = kv.range(get.clone()).await?.into_inner();
    let values: Vec<_> = found.kvs.iter().map(|kv| kv.value.clone()).collect();
    assert_eq!(values, ["1", "2"]);
    let txn = TxnRequest {
        success: vec![
            request_op::Request::RequestPut(PutRequest {
                key: b"k/c".as_slice().into(),
                value: b"3".as_slice().into(),
                ..Default::default()
            }),
            request_op::Request::RequestRange(get.clone()),
        ]
        .into_iter()
        .map(|request| RequestOp {
            request: Some(request),
        })
        .collect(),
        ..Default::default()
    };
    let done = kv.txn(txn).await?.into_inner();
    assert_eq!(
        done.responses[1].as_range().map(|range| range.count),
        Some(3)
    );
    let deleted = kv
        .delete_range(DeleteRangeRequest {
            key: b"k/c".as_slice().into(),
            ..Default::default()
        })
        .await?
        .into_inner();
    assert_eq!(deleted.deleted, 1);
    // Large answers and requests near the limit.
    let large = vec![b'x'; 1_200_000];
    for key in ["large/a", "large/b", "large/c", "large/d"] {
        put(channel, key, large.clone()).await?;
    }
    let mut kv = kv.max_decoding_message_size(usize::MAX);
    let all = kv
        .range(RangeRequest {
            key: b"large/".as_slice().into(),
            range_end: b"large0".as_slice().into(),
            ..Default::default()
        })
        .await?
        .into_inner();
    assert_eq!(all.kvs.len(), 4);
    Ok(())
}

async fn leases(channel: &Channel) -> anyhow::Result<()> {
    let mut lease = LeaseClient::new(channel.clone());
    let granted = lease
        .lease_grant(LeaseGrantRequest { ttl: 60, id: LEASE })
        .await?
        .into_inner();
    assert_eq!((granted.id, granted.ttl), (LEASE, 60));
    let asked =
        futures::stream::iter([LEASE, 12_345, LEASE].map(|id| LeaseKeepAliveRequest { id }));
    let asked = asked.chain(futures::stream::pending());
    let answers = lease.lease_keep_alive(asked).await?.into_inner();
    let answers: Vec<_> = answers.take(3).collect().await;
    let answers: Vec<_> = answers.into_iter().collect::<Result<_, _>>()?;
    let told: Vec<_> = answers
        .iter()
        .map(|answer| (answer.id, answer.ttl))
        .collect();
    assert_eq!(told, [(LEASE, 60), (12_345, 0), (LEASE, 60)]);
    let left = lease
        .lease_time_to_live(LeaseTimeToLiveRequest {
            id: LEASE,
            keys: true,
        })
        .await?
        .into_inner();
    assert_eq!(left.granted_ttl, 60);
    let all = lease
        .lease_leases(LeaseLeasesRequest {})
        .await?
        .into_inner();
    assert!(all.leases.iter().any(|lease| lease.id == LEASE));
    lease.lease_revoke(LeaseRevokeRequest { id: LEASE }).await?;
    Ok(())
}

async fn watches(channel: &Channel) -> anyhow::Result<()> {
    let mut stream = Stream::open(channel).await?;
    let (id, created) = stream.created(of("w")).await?;
    let now = put(channel, "w", "1").await?;
    assert_eq!((id, now), (0, created + 1));
    assert_eq!(stream.events().await?[0].0, now);
    let mut past = Stream::open(channel).await?;
    past.created(WatchCreateRequest {
        start_revision: now,
        prev_kv: true,
        ..of("w")
    })
    .await?;
    assert_eq!(past.events().await?[0].0, now);
    stream.progress().await?;
    let progress = stream.next().await?;
    assert_eq!(progress.watch_id, -1);
    assert!(progress.header.is_some_and(|header| header.revision >= now));
    stream.cancel(id).await?;
    let canceled = stream.next().await?;
    assert!(canceled.canceled && canceled.watch_id == id, "{canceled:?}");
    // An id of the client's choice, and one that is taken.
    let mine = WatchCreateRequest {
        watch_id: 7,
        ..of("w")
    };
    assert_eq!(stream.created(mine.clone()).await?.0, 7);
    stream.create(mine).await?;
    let refused = stream.next().await?;
    assert!(refused.created && refused.canceled, "{refused:?}");

    KvClient::new(channel.clone())
        .compact(CompactionRequest {
            revision: now,
            ..Default::default()
        })
        .await?;
    let mut lost = Stream::open(channel).await?;
    lost.created(WatchCreateRequest {
        start_revision: 1,
        ..of("w")
    })
    .await?;
    let compacted = lost.next().await?;
    assert!(
        compacted.canceled && compacted.compact_revision == now,
        "{compacted:?}"
    );
    Ok(())
}

async fn maintenance(channel: &Channel) -> anyhow::Result<()> {
    let mut maintenance = MaintenanceClient::new(channel.clone());
    let status = maintenance
        .status(StatusRequest::default())
        .await?
        .into_inner();
    assert_ne!(status.leader, 0);
    let alarms = maintenance
        .alarm(AlarmRequest::default())
        .await?
        .into_inner();
    assert_eq!(alarms.alarms, []);
    maintenance.defragment(DefragmentRequest {}).await?;
    maintenance.hash(HashRequest {}).await?;
    let hash = maintenance
        .hash_kv(HashKvRequest { revision: 0 })
        .await?
        .into_inner();
    assert_ne!(hash.hash, 0);
    let mut pieces = maintenance.snapshot(SnapshotRequest {}).await?.into_inner();
    let mut bytes = 0;
    while let Some(piece) = pieces.message().await? {
        bytes += piece.blob.len();
    }
    assert!(
        bytes > 4_000_000,
        "{bytes} bytes of a snapshot with more in it"
    );
    // Goes to whichever member leads.
    let target = MoveLeaderRequest {
        target_id: status.leader,
    };
    maintenance.move_leader(target).await?;
    Ok(())
}

async fn recipes(channel: &Channel) -> anyhow::Result<()> {
    let mut lease = LeaseClient::new(channel.clone());
    lease
        .lease_grant(LeaseGrantRequest { ttl: 60, id: LEASE })
        .await?;
    let mut lock = LockClient::new(channel.clone());
    let name = Bytes::from_static(b"lock");
    let locked = lock
        .lock(LockRequest { name, lease: LEASE })
        .await?
        .into_inner();
    lock.unlock(UnlockRequest { key: locked.key }).await?;
    let mut election = ElectionClient::new(channel.clone());
    let name = Bytes::from_static(b"election");
    let campaign = CampaignRequest {
        name: name.clone(),
        lease: LEASE,
        value: b"me".as_slice().into(),
    };
    election.campaign(campaign).await?;
    let observed = election
        .observe(LeaderRequest { name: name.clone() })
        .await?;
    let seen = observed.into_inner().message().await?.context("a leader")?;
    assert_eq!(seen.kv.map(|kv| kv.value), Some(Bytes::from_static(b"me")));
    let leader = election.leader(LeaderRequest { name }).await?.into_inner();
    assert!(leader.kv.is_some());
    lease.lease_revoke(LeaseRevokeRequest { id: LEASE }).await?;
    Ok(())
}

/// What members refuse is refused in their words, details included.
async fn refusals(through: &Channel, direct: &Channel) -> anyhow::Result<()> {
    let (through, direct) = (refused(through).await, refused(direct).await);
    for (through, direct) in through.iter().zip(&direct) {
        assert_eq!(through.code(), direct.code(), "{through:?}");
        assert_eq!(through.message(), direct.message());
        assert_eq!(through.details(), direct.details());
    }
    Ok(())
}

async fn refused(channel: &Channel) -> Vec<Status> {
    let mut all = Vec::new();
    let mut kv = KvClient::new(channel.clone());
    all.push(kv.put(PutRequest::default()).await.expect_err("refused"));
    let future = RangeRequest {
        key: b"k".as_slice().into(),
        revision: 1 << 40,
        ..Default::default()
    };
    all.push(kv.range(future).await.expect_err("refused"));
    let compact = CompactionRequest {
        revision: 1 << 40,
        ..Default::default()
    };
    all.push(kv.compact(compact).await.expect_err("refused"));
    let mut lease = LeaseClient::new(channel.clone());
    let revoke = LeaseRevokeRequest { id: 999 };
    all.push(lease.lease_revoke(revoke).await.expect_err("refused"));
    let mut maintenance = MaintenanceClient::new(channel.clone());
    let target = MoveLeaderRequest { target_id: 5 };
    all.push(maintenance.move_leader(target).await.expect_err("refused"));
    // A message above the limit, and a deadline that passes.
    let large = PutRequest {
        key: b"k".as_slice().into(),
        value: vec![0; 3_000_000].into(),
        ..Default::default()
    };
    all.push(kv.put(large).await.expect_err("refused"));
    all
}

/// With authentication the proxy passes tokens on and shares nothing between callers that differ in them.
async fn authentication(channel: &Channel) -> anyhow::Result<()> {
    let mut auth = AuthClient::new(channel.clone());
    let root = AuthUserAddRequest {
        name: "root".into(),
        password: "secret".into(),
        ..Default::default()
    };
    auth.user_add(root).await?;
    auth.role_add(AuthRoleAddRequest {
        name: "root".into(),
    })
    .await?;
    let grant = AuthUserGrantRoleRequest {
        user: "root".into(),
        role: "root".into(),
    };
    auth.user_grant_role(grant).await?;
    auth.auth_enable(AuthEnableRequest {}).await?;

    let refused = put(channel, "auth", "1").await;
    let refused = refused.expect_err("no token");
    assert!(
        refused.to_string().contains("user name is empty"),
        "{refused}"
    );
    let authenticate = AuthenticateRequest {
        name: "root".into(),
        password: "secret".into(),
    };
    let token = auth.authenticate(authenticate).await?.into_inner().token;
    let with_token = |put: PutRequest| {
        let mut request = Request::new(put);
        let token = token.parse().expect("a token is text");
        request.metadata_mut().insert("token", token);
        request
    };
    // One that may not watch does not profit from one who may.
    let mut denied = Stream::open(channel).await?;
    denied.create(of("auth")).await?;
    let answer = denied.next().await?;
    ensure!(answer.canceled, "{answer:?}");
    let put = PutRequest {
        key: b"auth".as_slice().into(),
        ..Default::default()
    };
    KvClient::new(channel.clone()).put(with_token(put)).await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn etcdctl_works_through_the_proxy() -> anyhow::Result<()> {
    if etcd::installed().is_none() {
        return Ok(());
    }
    let (_cluster, proxy) = cluster(&[]).await?;
    let address = proxy.endpoint().trim_start_matches("http://").to_owned();
    let etcdctl = move |line: &str| {
        let mut command = Command::new("etcdctl");
        command
            .env("ETCDCTL_API", "3")
            .args(["--endpoints", &address, "--command-timeout", "10s"])
            .args(line.split(' '));
        let output = command.output()?;
        let (out, err) = (output.stdout, String::from_utf8_lossy(&output.stderr));
        ensure!(output.status.success(), "etcdctl {line}: {err}");
        Ok(String::from_utf8(out)?)
    };
    let said = tokio::task::spawn_blocking(move || {
        assert_eq!(etcdctl("put greeting hello")?, "OK\n");
        assert_eq!(etcdctl("get greeting")?, "greeting\nhello\n");
        assert!(etcdctl("lease grant 60")?.contains("granted with TTL(60s)"));
        assert!(etcdctl("endpoint status")?.contains("3.7.0"));
        assert_eq!(etcdctl("del greeting")?, "1\n");
        etcdctl("member list")
    })
    .await??;
    assert_eq!(
        said.lines().count(),
        3,
        "without an address of its own: {said}"
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_proxy_that_is_told_to_stop_says_so_and_ends() -> anyhow::Result<()> {
    let (_cluster, mut proxy) = cluster(&[]).await?;
    let channel = connect(proxy.endpoint()).await?;
    let mut stream = Stream::open(&channel).await?;
    stream.created(of("k")).await?;
    let status = proxy.process().terminate(Duration::from_secs(10)).await?;
    assert!(status.success(), "{status}");
    let end = stream.next().await.unwrap_err();
    assert!(
        end.to_string().contains("etcdserver: server stopped"),
        "{end}"
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn recipes_hold_through_the_proxy() -> anyhow::Result<()> {
    const WORKERS: usize = 4;
    const TURNS: u64 = 10;
    let (_cluster, proxy) = cluster(&[]).await?;
    let work = (0..WORKERS).map(|_| async {
        let client = Client::new(Remote::new([proxy.endpoint()])?);
        let session = client.session().ttl(Duration::from_secs(10)).await?;
        for _ in 0..TURNS {
            let guard = client.mutex("counter").lock(&session).await?;
            let before = match client.get("count").await? {
                Some(pair) => std::str::from_utf8(&pair.value)?.parse::<u64>()?,
                None => 0,
            };
            guard.put("count", (before + 1).to_string()).await?;
            guard.release().await?;
        }
        anyhow::Ok(())
    });
    futures::future::try_join_all(work).await?;
    let client = Client::new(Remote::new([proxy.endpoint()])?);
    let count = client.get("count").await?.context("a count")?.value;
    assert_eq!(count, (WORKERS as u64 * TURNS).to_string());
    Ok(())
}
