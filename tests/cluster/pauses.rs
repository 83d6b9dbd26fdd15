//! Members that stand still (SIGSTOP) for longer than an election timeout and then go on as if nothing
//! had happened, and members that are killed.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use anyhow::Context as _;
use quorate_harness::client::{channel, describe};
use quorate_harness::cluster::ProcessCluster;
use quorate_harness::load::Load;
use quorate_harness::{eventually, knobs};
use quorate_proto::etcdserverpb::kv_client::KvClient;
use quorate_proto::etcdserverpb::{PutRequest, RangeRequest};
use tokio::task::JoinSet;

const TIMERS: [&str; 4] = ["--heartbeat-interval", "50", "--election-timeout", "500"];
const ELECTION: Duration = Duration::from_millis(500);
const LIMIT: Duration = Duration::from_secs(30);
const KEY: &str = "counter";
const READERS: usize = 8;
/// Writes through the new leader before the old one goes on.
const WRITES: u64 = 50;
/// How long reads through the old leader go on after it does.
const READS_FOR: Duration = Duration::from_secs(2);

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_that_was_stopped_never_answers_with_old_data() -> anyhow::Result<()> {
    let rounds: u32 = knobs::number("QUORATE_ROUNDS", 3);
    let mut cluster = ProcessCluster::start(&crate::program(), 3, &TIMERS).await?;
    let mut counted = 0;
    let (mut answered, mut refused) = (0, 0);
    for round in 0..rounds {
        let old = cluster.leader(LIMIT).await?;
        let reads = Reads::new(cluster.endpoint(old));
        counted = count(cluster.endpoint(old), counted, WRITES, &reads).await?;
        let early = reads.begin();
        cluster.process(old).context("it runs")?.pause()?;
        let new = eventually("the others elect", LIMIT, || async {
            let others: Vec<_> = (0..cluster.size()).filter(|i| *i != old).collect();
            for i in others {
                let status = cluster.status(i).await.ok()?;
                let own = status.header.map(|header| header.member_id);
                if own == Some(status.leader) {
                    return Some(i);
                }
            }
            None
        })
        .await?;
        counted = count(cluster.endpoint(new), counted, WRITES, &reads).await?;
        // Sent while it stands still: it finds them when it goes on, before it hears of anybody.
        let waiting = reads.begin();
        tokio::time::sleep(ELECTION / 5 * (round % 5)).await;
        cluster.process(old).context("it runs")?.resume()?;
        counted = count(cluster.endpoint(new), counted, WRITES, &reads).await?;
        tokio::time::sleep(READS_FOR).await;
        counted = count(cluster.endpoint(new), counted, WRITES, &reads).await?;
        let (a, r) = reads.end(early, waiting).await?;
        answered += a;
        refused += r;
        cluster.serves(old, LIMIT).await?;
    }
    println!(
        "{rounds} leaders stopped and resumed: {counted} writes acknowledged, {answered} linearizable \
         reads through them answered, none with old data, {refused} refused"
    );
    assert!(
        answered > u64::from(rounds),
        "hardly any read was answered: nothing was proved"
    );
    cluster.agrees().await
}

#[tokio::test(flavor = "multi_thread")]
async fn writes_go_on_while_a_follower_is_stopped_or_killed() -> anyhow::Result<()> {
    let mut cluster = ProcessCluster::start(&crate::program(), 3, &TIMERS).await?;
    let leader = cluster.leader(LIMIT).await?;
    let term = cluster.status(leader).await?.raft_term;
    let follower = (leader + 1) % cluster.size();
    let others: Vec<String> = (0..cluster.size())
        .filter(|i| *i != follower)
        .map(|i| cluster.endpoint(i).to_owned())
        .collect();
    let load = Load::start(&others, 4, 64);
    goes_on(&load).await?;
    cluster.process(follower).context("it runs")?.pause()?;
    for _ in 0..10 {
        goes_on(&load).await?;
    }
    tokio::time::sleep(3 * ELECTION).await;
    cluster.process(follower).context("it runs")?.resume()?;
    cluster.serves(follower, LIMIT).await?;
    goes_on(&load).await?;
    let after = cluster.status(leader).await?;
    assert_eq!(
        (after.raft_term, after.leader),
        (term, after.header.context("a header")?.member_id),
        "a follower that was stopped deposed its leader"
    );
    cluster.kill(follower)?;
    for _ in 0..10 {
        goes_on(&load).await?;
    }
    cluster.launch(follower)?;
    cluster.serves(follower, LIMIT).await?;
    let report = load.stop().await?;
    println!(
        "a follower stopped for more than {:?}, then killed: {} writes acknowledged, the longest gap \
         {:?}, still term {term}",
        3 * ELECTION,
        report.pairs.len(),
        report.longest_gap()
    );
    assert!(
        report.longest_gap() < 2 * ELECTION,
        "writes waited for a follower"
    );
    for i in 0..cluster.size() {
        report.verify(cluster.endpoint(i)).await?;
    }
    cluster.agrees().await
}

async fn goes_on(load: &Load) -> anyhow::Result<()> {
    let goal = load.acknowledged() + 100;
    eventually("writes go on", LIMIT, || async {
        (load.acknowledged() >= goal).then_some(())
    })
    .await
}

/// Counts `more` writes further through `endpoint`, and tells the readers after each.
async fn count(endpoint: &str, from: u64, more: u64, reads: &Reads) -> anyhow::Result<u64> {
    let mut client = KvClient::new(channel(endpoint));
    for n in from + 1..=from + more {
        let put = || PutRequest {
            key: KEY.into(),
            value: n.to_string().into(),
            ..PutRequest::default()
        };
        // The only writer, and the value is what it is: again does no harm.
        let mut done = client.put(put()).await;
        for _ in 0..3 {
            if done.is_ok() {
                break;
            }
            done = client.put(put()).await;
        }
        done?;
        reads.acknowledged.store(n, Ordering::SeqCst);
    }
    Ok(from + more)
}

/// Linearizable reads of the counter through one member, from several connections at once.
struct Reads {
    endpoint: String,
    acknowledged: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
}

type Readers = JoinSet<anyhow::Result<(u64, u64)>>;

impl Reads {
    fn new(endpoint: &str) -> Self {
        Self {
            endpoint: endpoint.to_owned(),
            acknowledged: Arc::default(),
            stop: Arc::default(),
        }
    }

    fn begin(&self) -> Readers {
        let mut readers = JoinSet::new();
        for _ in 0..READERS / 2 {
            let (endpoint, stop) = (self.endpoint.clone(), Arc::clone(&self.stop));
            let acknowledged = Arc::clone(&self.acknowledged);
            readers.spawn(async move {
                let mut client = KvClient::new(channel(&endpoint));
                let (mut answered, mut refused) = (0, 0);
                while !stop.load(Ordering::Relaxed) {
                    let floor = acknowledged.load(Ordering::SeqCst);
                    match read(&mut client).await {
                        Ok(found) => {
                            anyhow::ensure!(
                                found >= floor,
                                "{found} read after {floor} was written"
                            );
                            answered += 1;
                        }
                        Err(_) => refused += 1,
                    }
                }
                Ok((answered, refused))
            });
        }
        readers
    }

    /// Reads that were answered, and that were not.
    async fn end(self, early: Readers, waiting: Readers) -> anyhow::Result<(u64, u64)> {
        self.stop.store(true, Ordering::Relaxed);
        let (mut answered, mut refused) = (0, 0);
        for readers in [early, waiting] {
            for (a, r) in readers
                .join_all()
                .await
                .into_iter()
                .collect::<anyhow::Result<Vec<_>>>()?
            {
                answered += a;
                refused += r;
            }
        }
        Ok((answered, refused))
    }
}

async fn read(client: &mut KvClient<tonic::transport::Channel>) -> anyhow::Result<u64> {
    let request = RangeRequest {
        key: KEY.into(),
        ..RangeRequest::default()
    };
    let answer = client.range(request).await;
    let answer = answer.map_err(|status| anyhow::anyhow!(describe(&status)))?;
    let pairs = answer.into_inner().kvs;
    let value = pairs.first().map(|pair| pair.value.clone());
    match value {
        Some(value) => Ok(std::str::from_utf8(&value)?.parse()?),
        None => Ok(0),
    }
}
