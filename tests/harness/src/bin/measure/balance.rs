//! What it costs to pick one of many instances, by each policy, and to take in that the service has changed.
//!
//! The same is done among a few instances, in turns with it, so that what is told are ratios of one run. The
//! service is in memory: picks ask no store.

use std::hint::black_box;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use quorate_recipes::balance::{Balancer, Policy};
use quorate_recipes::registry::{Discovery, Instance, Registration, Status};
use quorate_recipes::store::MemStore;
use quorate_recipes::{Client, Session};

const INSTANCES: usize = 10_000;
const FEW: usize = 10;
/// Medians are of so many.
const ROUNDS: usize = 31;
/// Picks of a round, by policies that do not look at every instance.
const PICKS: u32 = 20_000;
/// Picks of a round, by those that do.
const PICKS_AMONG_ALL: u32 = 200;
/// Instances that are not copies: of as many weights, in two zones.
const REGISTERED: usize = 4;
const SERVICE: &str = "large";

/// Measures with so many instances, 10,000 unless said otherwise.
pub(crate) async fn measure(instances: Option<usize>) -> anyhow::Result<()> {
    let few = Fleet::of(FEW).await?;
    let many = Fleet::of(instances.unwrap_or(INSTANCES).max(FEW)).await?;
    println!(
        "among {} instances, and among {FEW}:",
        many.discovery.view().instances.len()
    );
    let policies = [
        ("least_outstanding", Policy::least_outstanding(), PICKS),
        ("peak_ewma", Policy::peak_ewma(), PICKS),
        ("round_robin", Policy::round_robin(), PICKS),
        (
            "weighted_round_robin",
            Policy::weighted_round_robin(),
            PICKS,
        ),
        ("random", Policy::random(), PICKS),
        (
            "consistent_hash",
            Policy::consistent_hash(),
            PICKS_AMONG_ALL,
        ),
        ("sticky", Policy::default().sticky(), PICKS),
        ("near", Policy::default().near("a"), PICKS),
    ];
    for (name, policy, picks) in policies {
        let (few, many) = (few.side(policy.clone()), many.side(policy));
        let (mut of_few, mut of_many) = (Costs::default(), Costs::default());
        for round in 0..ROUNDS {
            few.round(round, picks, &mut of_few).await?;
            many.round(round, picks, &mut of_many).await?;
        }
        println!(
            "{name:>20}: a pick {}; the first one after a change {}",
            compared(of_many.picks, of_few.picks),
            compared(of_many.changes, of_few.changes)
        );
    }
    Ok(())
}

fn id(number: usize) -> String {
    format!("i-{number:05}")
}

/// A service in a store of its own.
struct Fleet {
    _session: Session,
    discovery: Discovery<()>,
    registered: Vec<Registration<()>>,
}

/// One policy at work on a fleet.
struct Side<'a> {
    fleet: &'a Fleet,
    balancer: Balancer<()>,
}

/// How long picks took, and first picks after a change.
#[derive(Default)]
struct Costs {
    picks: Vec<Duration>,
    changes: Vec<Duration>,
}

impl Fleet {
    /// A few instances that are registered, and copies of them under other names.
    async fn of(instances: usize) -> anyhow::Result<Self> {
        let client = Client::new(MemStore::new());
        let session = client.session().await?;
        let mut registered = Vec::with_capacity(REGISTERED);
        for number in 0..REGISTERED {
            let instance = Instance::builder(SERVICE)
                .id(id(number))
                .address("10.0.0.7:8080")
                .zone(if number % 2 == 0 { "a" } else { "b" })
                .weight(1 + u32::try_from(number)?);
            registered.push(session.register(instance.build()).await?);
        }
        let key = registered[0].key().to_string();
        let prefix = key.strip_suffix(&id(0)).context("a key without an id")?;
        for number in REGISTERED..instances {
            let like = registered[number % REGISTERED].key();
            let like = client.get(like).await?.context("it is registered")?;
            let copy = format!("{prefix}{}", id(number));
            client.put(copy, like.value).await?;
        }
        let discovery = client.discover(SERVICE).await?;
        anyhow::ensure!(discovery.view().up().count() == instances);
        Ok(Self {
            _session: session,
            discovery,
            registered,
        })
    }

    fn side(&self, policy: Policy) -> Side<'_> {
        Side {
            balancer: self.discovery.balancer(policy),
            fleet: self,
        }
    }
}

impl Side<'_> {
    /// A change, the first pick after it, and more picks.
    async fn round(&self, round: usize, picks: u32, costs: &mut Costs) -> anyhow::Result<()> {
        let status = match round % 2 {
            0 => Status::Draining,
            _ => Status::Up,
        };
        let changing = self.fleet.registered.first().context("nobody")?;
        let at = changing.set_status(status).await?;
        let mut view = self.fleet.discovery.clone();
        view.wait_for(|view| view.revision >= at).await?;
        let began = Instant::now();
        black_box(self.balancer.pick()?).success();
        costs.changes.push(began.elapsed());
        let began = Instant::now();
        for number in 0..picks {
            let pick = self.balancer.pick_for(number.to_le_bytes())?;
            black_box(pick).success();
        }
        costs.picks.push(began.elapsed() / picks);
        Ok(())
    }
}

/// The medians, and the one through the other.
fn compared(many: Vec<Duration>, few: Vec<Duration>) -> String {
    let (many, few) = (median(many), median(few));
    let ratio = many.as_secs_f64() / few.as_secs_f64();
    format!("{many:.1?} and {few:.1?}, ratio {ratio:.2}")
}

fn median(mut all: Vec<Duration>) -> Duration {
    all.sort_unstable();
    all[all.len() / 2]
}
