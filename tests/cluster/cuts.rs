//! Links between members that are cut, and healed. Whoever is cut off says so in time and does nothing
//! else; whoever is a majority goes on; afterwards all agree.

use std::time::{Duration, Instant};

use anyhow::Context as _;
use quorate_harness::client::{channel, describe};
use quorate_harness::cluster::ProcessCluster;
use quorate_harness::eventually;
use quorate_harness::load::Load;
use quorate_proto::etcdserverpb::kv_client::KvClient;
use quorate_proto::etcdserverpb::{PutRequest, RangeRequest};

const TIMERS: [&str; 4] = ["--heartbeat-interval", "50", "--election-timeout", "500"];
const ELECTION: Duration = Duration::from_millis(500);
/// What a member gives a request with these timers, as etcd does: 5 s and two election timeouts.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(6);
/// For a busy machine.
const SLACK: Duration = Duration::from_secs(2);
const LIMIT: Duration = Duration::from_secs(30);

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_cut_off_alone_refuses_in_time_and_the_others_go_on() -> anyhow::Result<()> {
    let cluster = ProcessCluster::start_with_network(&crate::program(), 3, &TIMERS).await?;
    let old = cluster.leader(LIMIT).await?;
    put(cluster.endpoint(old), "k", "before").await?;
    cluster.network().isolate(old);
    let new = another_leads(&cluster, old).await?;
    let load = Load::start(&others(&cluster, old), 4, 64);
    goes_on(&load).await?;
    put(cluster.endpoint(new), "k", "after").await?;

    let (write, read, stale) = tokio::join!(
        timed(put(cluster.endpoint(old), "k", "lost?")),
        timed(get(cluster.endpoint(old), "k", false)),
        timed(get(cluster.endpoint(old), "k", true)),
    );
    println!("cut off: write {write:?}, linearizable read {read:?}, serializable read {stale:?}");
    refused_in_time("write", write)?;
    refused_in_time("linearizable read", read)?;
    assert_eq!(stale.0?.as_deref(), Some("before"));
    assert!(
        stale.1 < ELECTION,
        "a serializable read needs nobody, and took {:?}",
        stale.1
    );

    goes_on(&load).await?;
    cluster.network().heal();
    cluster.serves(old, LIMIT).await?;
    goes_on(&load).await?;
    assert_eq!(
        get(cluster.endpoint(old), "k", false).await?.as_deref(),
        Some("after"),
        "what the minority was told is lost must not come back"
    );
    verify(&cluster, load).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_follower_that_cannot_reach_the_leader_refuses_and_disturbs_nobody() -> anyhow::Result<()>
{
    for hears in [true, false] {
        let cluster = ProcessCluster::start_with_network(&crate::program(), 3, &TIMERS).await?;
        let leader = cluster.leader(LIMIT).await?;
        let term = cluster.status(leader).await?.raft_term;
        let follower = (leader + 1) % cluster.size();
        let load = Load::start(&others(&cluster, follower), 4, 64);
        goes_on(&load).await?;
        // It hears the leader and cannot answer, or the other way round.
        if hears {
            cluster.network().cut(follower, leader);
        } else {
            cluster.network().cut(leader, follower);
        }
        for _ in 0..5 {
            goes_on(&load).await?;
        }
        let (write, read) = tokio::join!(
            timed(put(cluster.endpoint(follower), "k", "lost?")),
            timed(get(cluster.endpoint(follower), "k", false)),
        );
        println!("a follower that hears its leader: {hears}: write {write:?}, read {read:?}");
        for (what, (answer, took)) in [("write", write), ("read", read)] {
            assert!(
                took <= REQUEST_TIMEOUT + SLACK,
                "{what}: {answer:?} after {took:?}"
            );
        }
        goes_on(&load).await?;
        cluster.network().heal();
        cluster.serves(follower, LIMIT).await?;
        let after = cluster.status(leader).await?;
        assert_eq!(
            (after.raft_term, after.leader),
            (term, after.header.context("a header")?.member_id),
            "a follower with one way cut deposed its leader"
        );
        verify(&cluster, load).await?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_that_is_heard_and_hears_nobody_is_replaced() -> anyhow::Result<()> {
    let cluster = ProcessCluster::start_with_network(&crate::program(), 3, &TIMERS).await?;
    let old = cluster.leader(LIMIT).await?;
    let load = Load::start(&others(&cluster, old), 4, 64);
    goes_on(&load).await?;
    let began = now();
    for other in (0..cluster.size()).filter(|i| *i != old) {
        cluster.network().cut(other, old);
    }
    another_leads(&cluster, old).await?;
    goes_on(&load).await?;
    println!(
        "writes go on {:?} after the leader heard nobody any more",
        began.elapsed()
    );
    cluster.network().heal();
    cluster.serves(old, LIMIT).await?;
    goes_on(&load).await?;
    verify(&cluster, load).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_follower_that_was_cut_off_comes_back_without_an_election() -> anyhow::Result<()> {
    let cluster = ProcessCluster::start_with_network(&crate::program(), 3, &TIMERS).await?;
    let leader = cluster.leader(LIMIT).await?;
    let term = cluster.status(leader).await?.raft_term;
    let follower = (leader + 1) % cluster.size();
    let load = Load::start(&others(&cluster, follower), 4, 64);
    for _ in 0..3 {
        cluster.network().isolate(follower);
        goes_on(&load).await?;
        tokio::time::sleep(4 * ELECTION).await;
        cluster.network().heal();
        cluster.serves(follower, LIMIT).await?;
        goes_on(&load).await?;
    }
    // Whatever it may have asked for meanwhile has been asked for by then.
    tokio::time::sleep(2 * ELECTION).await;
    let after = cluster.status(leader).await?;
    println!(
        "cut off three times for {:?}: term {term} before, {} after",
        4 * ELECTION,
        after.raft_term
    );
    assert_eq!(
        (after.raft_term, after.leader),
        (term, after.header.context("a header")?.member_id),
        "a follower that came back deposed a healthy leader"
    );
    verify(&cluster, load).await
}

/// Waits until a member other than `old` leads.
async fn another_leads(cluster: &ProcessCluster, old: usize) -> anyhow::Result<usize> {
    eventually("another leads", LIMIT, || async {
        for i in (0..cluster.size()).filter(|i| *i != old) {
            let status = cluster.status(i).await.ok()?;
            if status.header.map(|header| header.member_id) == Some(status.leader) {
                return Some(i);
            }
        }
        None
    })
    .await
}

fn others(cluster: &ProcessCluster, but: usize) -> Vec<String> {
    let others = (0..cluster.size()).filter(|i| *i != but);
    others.map(|i| cluster.endpoint(i).to_owned()).collect()
}

async fn goes_on(load: &Load) -> anyhow::Result<()> {
    let goal = load.acknowledged() + 100;
    eventually("writes go on", LIMIT, || async {
        (load.acknowledged() >= goal).then_some(())
    })
    .await
}

async fn verify(cluster: &ProcessCluster, load: Load) -> anyhow::Result<()> {
    let report = load.stop().await?;
    for i in 0..cluster.size() {
        report.verify(cluster.endpoint(i)).await?;
    }
    cluster.agrees().await
}

async fn put(endpoint: &str, key: &str, value: &str) -> anyhow::Result<Option<String>> {
    let put = PutRequest {
        key: key.to_owned().into(),
        value: value.to_owned().into(),
        ..PutRequest::default()
    };
    let put = KvClient::new(channel(endpoint)).put(put).await;
    put.map_err(|status| anyhow::anyhow!(describe(&status)))?;
    Ok(None)
}

async fn get(endpoint: &str, key: &str, serializable: bool) -> anyhow::Result<Option<String>> {
    let request = RangeRequest {
        key: key.to_owned().into(),
        serializable,
        ..RangeRequest::default()
    };
    let answer = KvClient::new(channel(endpoint)).range(request).await;
    let answer = answer.map_err(|status| anyhow::anyhow!(describe(&status)))?;
    let pairs = answer.into_inner().kvs;
    let value = pairs.first().map(|pair| pair.value.to_vec());
    Ok(value.map(String::from_utf8).transpose()?)
}

type Timed = (anyhow::Result<Option<String>>, Duration);

/// What a call came to, and how long it took; one that hangs is given up long after it should have
/// ended.
async fn timed(call: impl Future<Output = anyhow::Result<Option<String>>>) -> Timed {
    let began = now();
    let answer = tokio::time::timeout(LIMIT, call).await;
    let answer = answer.unwrap_or_else(|_| Err(anyhow::anyhow!("it hangs")));
    (answer, began.elapsed())
}

fn refused_in_time(what: &str, (answer, took): Timed) -> anyhow::Result<()> {
    anyhow::ensure!(answer.is_err(), "{what} was answered: {answer:?}");
    let text = format!("{answer:?}");
    anyhow::ensure!(
        text.contains("Unavailable") && took <= REQUEST_TIMEOUT + SLACK,
        "{what}: {text} after {took:?}"
    );
    Ok(())
}

#[expect(clippy::disallowed_methods, reason = "measures what clients see")]
fn now() -> Instant {
    Instant::now()
}
