//! A large service whose instances come and go, and many who follow it.
//!
//! Ten thousand instances register through a hundred sessions at a cluster of three; a hundred of them a second
//! leave and come back under other names, while a hundred discoveries, each over connections of its own, follow
//! the service. Of each leaving and coming, each discovery tells how long after the store's acknowledgement its
//! view showed it. At the end all views must be the same as the store.

use std::collections::VecDeque;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use futures::future::try_join_all;
use hdrhistogram::Histogram;
use quorate_harness::cluster::ProcessCluster;
use quorate_recipes::registry::{Discovery, Instance, Registration, ServiceView};
use quorate_recipes::store::Remote;
use quorate_recipes::{Client, Session};
use tokio_util::sync::CancellationToken;

use crate::server::rest;

const INSTANCES: usize = 10_000;
const SESSIONS: usize = 100;
const DISCOVERIES: usize = 100;
const TTL: Duration = Duration::from_secs(30);
/// The part of the instances that leave and come back each second: one of so many.
const CHURN: usize = 100;
const LENGTH: Duration = Duration::from_secs(60);
/// How late a discovery may be, of 99 in 100.
const LAG_MAX: Duration = Duration::from_secs(1);
/// How long views may take to be the same as the store when nothing changes any more.
const SETTLES_WITHIN: Duration = Duration::from_secs(10);
/// The longest lag that is told as what it is, in microseconds.
const LAG_MAX_TOLD: u64 = 600_000_000;
const SERVICE: &str = "large";

/// What was acknowledged: who came or left, and when.
#[derive(Debug, Clone)]
struct Acknowledged {
    id: String,
    came: bool,
    at: Instant,
}

impl Acknowledged {
    fn is_shown_by(&self, view: &ServiceView<()>) -> bool {
        view.instance(&self.id).is_some() == self.came
    }
}

/// All of it, in the order of the acknowledgements.
#[derive(Debug, Clone, Default)]
struct Log(Arc<Mutex<Vec<Acknowledged>>>);

impl Log {
    fn note(&self, id: String, came: bool) {
        let at = Instant::now();
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.push(Acknowledged { id, came, at });
    }

    fn since(&self, index: usize) -> Vec<Acknowledged> {
        let all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all[index..].to_vec()
    }
}

/// A session and what it holds, each with its id.
type Owner = (Session, Vec<Registration<()>>);

/// Measures with so many instances, 10,000 unless said otherwise.
pub(crate) async fn measure(program: &Path, instances: Option<usize>) -> anyhow::Result<()> {
    let each = instances.unwrap_or(INSTANCES).div_ceil(SESSIONS).max(1);
    let cluster = ProcessCluster::start(program, 3, &[]).await?;
    cluster.leader(Duration::from_secs(30)).await?;
    let began = Instant::now();
    let owners = (0..SESSIONS).map(|number| {
        let client = client(&cluster, number);
        async move { register(&client?, number, each).await }
    });
    let owners = try_join_all(owners).await?;
    let instances = each * SESSIONS;
    println!(
        "{instances} instances of {SESSIONS} sessions after {:.1?}",
        began.elapsed()
    );
    let began = Instant::now();
    let discoveries = (0..DISCOVERIES).map(|number| {
        let client = client(&cluster, number);
        async move { anyhow::Ok(client?.discover::<()>(SERVICE).await?) }
    });
    let discoveries = try_join_all(discoveries).await?;
    println!("{DISCOVERIES} discoveries after {:.1?}", began.elapsed());

    let (log, over) = (Log::default(), CancellationToken::new());
    let followers: Vec<_> = discoveries
        .iter()
        .map(|one| tokio::spawn(follow(one.clone(), log.clone(), over.clone())))
        .collect();
    let (used, began) = (cpu()?, Instant::now());
    // Each session has its part of the churn.
    let pause = Duration::from_secs(1) * u32::try_from(CHURN)? / u32::try_from(each)?;
    let churning: Vec<_> = owners
        .into_iter()
        .enumerate()
        .map(|(number, owner)| {
            let first = pause * u32::try_from(number)? / u32::try_from(SESSIONS)?;
            Ok(tokio::spawn(churn(
                owner,
                number,
                log.clone(),
                first,
                pause,
            )))
        })
        .collect::<anyhow::Result<_>>()?;
    let mut owners = Vec::new();
    for churned in churning {
        owners.push(churned.await??);
    }
    let changes = log.since(0).len();
    let rate = changes as f64 / began.elapsed().as_secs_f64();
    println!(
        "{changes} changes, {rate:.0} a second; the clients used {:.1?} of processor time",
        cpu()? - used
    );
    rest(SETTLES_WITHIN).await;
    over.cancel();
    let (mut lags, mut unseen) = (Histogram::<u64>::new_with_max(LAG_MAX_TOLD, 3)?, 0);
    for follower in followers {
        let (of_one, left) = follower.await??;
        lags.add(of_one)?;
        unseen += left;
    }
    let millis = |quantile| Duration::from_micros(lags.value_at_quantile(quantile));
    println!(
        "seen {} times, {unseen} not seen: half within {:.1?}, 99 % within {:.1?}, all within {:.1?}",
        lags.len(),
        millis(0.5),
        millis(0.99),
        millis(1.0)
    );
    let wrong = discoveries
        .iter()
        .filter(|one| one.view().instances.len() != instances);
    let wrong = wrong.count();
    drop(owners);
    anyhow::ensure!(
        unseen == 0 && wrong == 0,
        "changes were not seen, or {wrong} views are wrong"
    );
    anyhow::ensure!(millis(0.99) <= LAG_MAX, "views are late");
    Ok(())
}

/// A client with a connection of its own, to another member than the one before.
fn client(cluster: &ProcessCluster, number: usize) -> anyhow::Result<Client> {
    let mut endpoints = cluster.endpoints();
    endpoints.rotate_left(number % cluster.size());
    Ok(Client::new(Remote::new(endpoints)?))
}

fn instance(id: &str) -> Instance {
    let instance = Instance::builder(SERVICE).id(id).address("10.0.0.7:8080");
    instance.zone("eu-1").version("2.1.0").tag("api").build()
}

async fn register(client: &Client, number: usize, instances: usize) -> anyhow::Result<Owner> {
    let session = client.session().ttl(TTL).await?;
    let mut held = Vec::with_capacity(instances);
    for index in 0..instances {
        let id = format!("i-{number:03}-{index:04}-0");
        held.push(session.register(instance(&id)).await?);
    }
    Ok((session, held))
}

/// Has one instance after the other leave and come back under another name.
async fn churn(
    (session, held): Owner,
    number: usize,
    log: Log,
    first: Duration,
    pause: Duration,
) -> anyhow::Result<Owner> {
    let mut held = VecDeque::from(held);
    let (start, mut due) = (Instant::now(), first);
    for round in 1.. {
        if due >= LENGTH {
            break;
        }
        rest(due.saturating_sub(start.elapsed())).await;
        due += pause;
        let Some(leaver) = held.pop_front() else {
            break;
        };
        let id = leaver.id();
        leaver.deregister().await?;
        log.note(id, false);
        let id = format!("i-{number:03}-{round:04}-1");
        held.push_back(session.register(instance(&id)).await?);
        log.note(id, true);
    }
    Ok((session, held.into()))
}

/// How late each acknowledged change was in the views, in microseconds, and how many were not seen in the end.
async fn follow(
    mut discovery: Discovery<()>,
    log: Log,
    over: CancellationToken,
) -> anyhow::Result<(Histogram<u64>, usize)> {
    let mut lags = Histogram::new_with_max(LAG_MAX_TOLD, 3)?;
    let (mut taken, mut waiting) = (0, Vec::new());
    let mut before = discovery.view();
    loop {
        let view = tokio::select! {
            biased;
            () = over.cancelled() => discovery.view(),
            view = discovery.changed() => view?,
        };
        let now = Instant::now();
        let fresh = log.since(taken);
        taken += fresh.len();
        // What the view before showed already was seen before it was acknowledged.
        let (early, late): (Vec<_>, Vec<_>) =
            fresh.into_iter().partition(|one| one.is_shown_by(&before));
        lags.saturating_record_n(0, early.len() as u64);
        waiting.extend(late);
        waiting.retain(|one: &Acknowledged| {
            let seen = one.is_shown_by(&view);
            if seen {
                let lag = now.saturating_duration_since(one.at).as_micros();
                lags.saturating_record(u64::try_from(lag).unwrap_or(u64::MAX));
            }
            !seen
        });
        before = view;
        if over.is_cancelled() {
            return Ok((lags, waiting.len()));
        }
    }
}

/// The processor time of this process.
fn cpu() -> anyhow::Result<Duration> {
    let stat = std::fs::read_to_string("/proc/self/stat")?;
    let fields = stat.rsplit_once(") ").map_or("", |(_, rest)| rest);
    let ticks = fields.split(' ').skip(11).take(2).map(str::parse::<u64>);
    let ticks: u64 = ticks.sum::<Result<_, _>>()?;
    // A hundred ticks a second, as the kernel tells them to programs.
    Ok(Duration::from_millis(ticks * 10))
}
