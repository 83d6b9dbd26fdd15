//! Members die under load, one after the other, and clients of the proxy do not notice.

#![expect(
    clippy::disallowed_methods,
    reason = "clients that run beside the test, which joins them"
)]

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use bytes::Bytes;
use quorate_harness::cluster::ProcessCluster;
use quorate_harness::eventually;
use quorate_proto::Reason;
use quorate_proto::etcdserverpb::kv_client::KvClient;
use quorate_proto::etcdserverpb::lease_client::LeaseClient;
use quorate_proto::etcdserverpb::{
    LeaseGrantRequest, LeaseKeepAliveRequest, PutRequest, RangeRequest, WatchCreateRequest,
};
use tokio::task::JoinHandle;
use tonic::Code;
use tonic::transport::Channel;

use super::watcher::{Change, Stream, of_prefix};
use super::{cluster, connect, put};

const WATCHERS: usize = 8;
const WRITERS: usize = 3;
const ROUNDS: usize = 2;
const WRITES_BETWEEN: usize = 100;
const RECOVERY_LIMIT: Duration = Duration::from_secs(30);
/// Longer than the proxy needs to notice that a member stands still.
const PAUSE: Duration = Duration::from_secs(10);

#[derive(Debug, Clone, Copy)]
enum Fault {
    /// SIGKILL, and started again.
    Kill,
    /// SIGSTOP for a while.
    Pause,
}

impl Fault {
    async fn strike(
        self,
        cluster: &mut ProcessCluster,
        member: usize,
        written: &AtomicUsize,
    ) -> anyhow::Result<()> {
        match self {
            Self::Kill => {
                cluster.kill(member)?;
                goes_on(written).await?;
                cluster.launch(member)?;
                cluster.serves(member, RECOVERY_LIMIT).await
            }
            Self::Pause => {
                cluster.process(member).context("it runs")?.pause()?;
                tokio::time::sleep(PAUSE).await;
                goes_on(written).await?;
                cluster.process(member).context("it runs")?.resume()
            }
        }
    }
}

/// With the shortest lease that a member grants with etcd's default timers.
#[tokio::test(flavor = "multi_thread")]
async fn watches_writes_and_leases_go_on_while_members_are_killed() -> anyhow::Result<()> {
    println!("{}", go_on(Fault::Kill, ROUNDS, 2).await?);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn watches_writes_and_leases_go_on_while_members_stand_still() -> anyhow::Result<()> {
    println!("{}", go_on(Fault::Pause, 1, 5).await?);
    Ok(())
}

/// Strikes every member in turn and returns what it was like.
async fn go_on(fault: Fault, rounds: usize, ttl: i64) -> anyhow::Result<String> {
    let (mut cluster, proxy) = cluster(&[]).await?;
    let stop = Arc::<AtomicBool>::default();
    let channel = connect(proxy.endpoint()).await?;
    let mut watching = Vec::new();
    for n in 0..WATCHERS {
        // Half of them want to know when there is no leader, which is not for longer than members bear.
        let channel = connect(proxy.endpoint()).await?;
        let mut stream = match n % 2 {
            0 => Stream::open(&channel).await?,
            _ => Stream::open_with_leader(&channel).await?,
        };
        let (_, created) = stream.created(of_prefix("load/")).await?;
        watching.push((stream, created));
    }
    let (kept, lease) = keep_alive(&channel, ttl, &stop).await?;
    let written = Arc::<AtomicUsize>::default();
    let writing: Vec<_> = (0..WRITERS)
        .map(|writer| write(channel.clone(), writer, &stop, &written))
        .collect();
    let reading: Vec<_> = watching
        .into_iter()
        .map(|(stream, created)| read(stream, created))
        .collect();

    let strikes = rounds * cluster.size();
    for strike in 0..strikes {
        goes_on(&written).await?;
        let member = strike % cluster.size();
        fault.strike(&mut cluster, member, &written).await?;
    }
    goes_on(&written).await?;
    stop.store(true, Relaxed);
    let mut open = 0;
    for writer in writing {
        open += writer.await??;
    }
    let answers = kept.await??;
    let held = KvClient::new(channel.clone())
        .range(RangeRequest {
            key: b"held".as_slice().into(),
            ..Default::default()
        })
        .await?;
    assert_eq!(held.into_inner().count, 1, "the lease {lease:x} has ended");

    let last = put(&channel, "load/last", "").await?;
    // The truth: what a member tells without the proxy.
    let mut direct = Stream::open(&connect(cluster.endpoint(0)).await?).await?;
    direct
        .created(WatchCreateRequest {
            start_revision: 1,
            ..of_prefix("load/")
        })
        .await?;
    let truth = direct.take_up_to(last).await?;
    for watcher in reading {
        let (created, told) = watcher.await??;
        let since = truth.partition_point(|change| change.0 <= created);
        assert_eq!(told.len(), truth.len() - since);
        assert!(told == truth[since..], "not what happened");
    }
    Ok(format!(
        "{fault:?} of {strikes} members in turn, {} writes acknowledged, {open} with an open outcome, {} \
         events to each of {WATCHERS} watchers, {answers} keep-alives of a lease of {ttl} s answered",
        written.load(Relaxed),
        truth.len()
    ))
}

async fn goes_on(written: &AtomicUsize) -> anyhow::Result<()> {
    let goal = written.load(Relaxed) + WRITES_BETWEEN;
    eventually("writes go on", RECOVERY_LIMIT, || async {
        (written.load(Relaxed) >= goal).then_some(())
    })
    .await
}

/// Writes numbered keys. One whose outcome is open is written again: twice or not at all are both seen by
/// the watchers as they happened. Returns how often that was.
fn write(
    channel: Channel,
    writer: usize,
    stop: &Arc<AtomicBool>,
    written: &Arc<AtomicUsize>,
) -> JoinHandle<anyhow::Result<usize>> {
    let (stop, written) = (Arc::clone(stop), Arc::clone(written));
    tokio::spawn(async move {
        let mut kv = KvClient::new(channel);
        let mut open = 0;
        for n in 0_u64.. {
            let put = PutRequest {
                key: format!("load/{writer}/{n}").into(),
                value: n.to_string().into(),
                ..Default::default()
            };
            while !stop.load(Relaxed) {
                match kv.put(put.clone()).await {
                    Ok(_) => {
                        written.fetch_add(1, Relaxed);
                        break;
                    }
                    // As a member would tell it.
                    Err(status) => {
                        let reason = Reason::from_status(&status);
                        ensure!(
                            status.code() == Code::Unavailable && reason.is_some(),
                            "{status}"
                        );
                        open += usize::from(reason.is_some_and(Reason::is_ambiguous));
                    }
                }
            }
            if stop.load(Relaxed) {
                break;
            }
        }
        Ok(open)
    })
}

/// Reads until the last key is written.
fn read(mut stream: Stream, created: i64) -> JoinHandle<anyhow::Result<(i64, Vec<Change>)>> {
    tokio::spawn(async move {
        let mut told: Vec<Change> = Vec::new();
        let last = Bytes::from_static(b"load/last");
        while told.last().is_none_or(|(_, key, _)| *key != last) {
            told.extend(stream.events().await.context("a watcher noticed")?);
        }
        Ok((created, told))
    })
}

/// Keeps a key alive by a lease of a short TTL, which ends if the proxy does not bring keep-alives through.
async fn keep_alive(
    channel: &Channel,
    ttl: i64,
    stop: &Arc<AtomicBool>,
) -> anyhow::Result<(JoinHandle<anyhow::Result<usize>>, i64)> {
    let mut client = LeaseClient::new(channel.clone());
    let granted = client.lease_grant(LeaseGrantRequest { ttl, id: 0 }).await?;
    let lease = granted.into_inner().id;
    let held = PutRequest {
        key: b"held".as_slice().into(),
        lease,
        ..Default::default()
    };
    KvClient::new(channel.clone()).put(held).await?;
    let stop = Arc::clone(stop);
    let kept = tokio::spawn(async move {
        let (ask, asked) = tokio::sync::mpsc::channel(1);
        let asked = tokio_stream::wrappers::ReceiverStream::new(asked);
        let mut answers = client.lease_keep_alive(asked).await?.into_inner();
        let mut count = 0;
        while !stop.load(Relaxed) {
            ask.send(LeaseKeepAliveRequest { id: lease }).await?;
            let answer = answers.message().await?.context("the stream ended")?;
            ensure!(answer.ttl > 0, "the lease has ended after {count} answers");
            count += 1;
            tokio::time::sleep(Duration::from_millis(300)).await;
        }
        Ok(count)
    });
    Ok((kept, lease))
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_leader_those_are_told_who_want_to_know_and_the_others_wait() -> anyhow::Result<()>
{
    let (mut cluster, proxy) = cluster(&[]).await?;
    let channel = connect(proxy.endpoint()).await?;
    let (mut told, mut waits) = (
        Stream::open_with_leader(&channel).await?,
        Stream::open(&channel).await?,
    );
    told.created(of_prefix("k")).await?;
    waits.created(of_prefix("k")).await?;
    cluster.kill(1)?;
    cluster.kill(2)?;
    let end = told.next().await.unwrap_err();
    assert!(end.to_string().contains("etcdserver: no leader"), "{end}");

    let mut refused = tonic::Request::new(PutRequest {
        key: b"k".as_slice().into(),
        ..PutRequest::default()
    });
    refused.set_timeout(Duration::from_secs(1));
    let status = KvClient::new(channel.clone())
        .put(refused)
        .await
        .unwrap_err();
    // The second is what this client says when its own clock is first.
    let is_late = matches!(status.code(), Code::DeadlineExceeded | Code::Cancelled);
    assert!(is_late, "{status}");

    cluster.launch(1)?;
    cluster.launch(2)?;
    cluster.serves(1, RECOVERY_LIMIT).await?;
    let last = eventually("writes pass again", RECOVERY_LIMIT, || async {
        put(&channel, "k", "again").await.ok()
    })
    .await?;
    let heard = waits.take_up_to(last).await?;
    assert_eq!(heard.last().map(|change| change.0), Some(last));
    Ok(())
}
