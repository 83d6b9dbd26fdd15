//! What a queue costs by its length, and by the number of its consumers.
//!
//! ```sh
//! cargo build --release && cargo run --release --bin queue-at-scale -- target/release/quorate
//! ```
//!
//! Three members over loopback. First two queues, of 1,000 and of 1,000,000 items, from which one consumer each
//! takes in turn: calls, keys read and times of a take with its end. Then 1,000 consumers of one queue, 50 each in
//! 20 clients as of so many processes: all idle, how many claims are tried for an item; 990 busy, how long an item
//! waits for one of the others, which are in ten of the clients. Tells all of that first; then it fails if a promise
//! of the queue is not kept.

#![expect(clippy::print_stdout, reason = "a tool that prints what it measured")]
#![expect(clippy::disallowed_methods, reason = "measures what clients see")]

use std::cell::RefCell;
use std::convert::Infallible;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use futures::future::{join_all, try_join_all};
use hdrhistogram::Histogram;
use quorate_harness::cluster::ProcessCluster;
use quorate_recipes::queue::{Consumer, Delivery, Queue};
use quorate_recipes::store::{Counting, Remote};
use quorate_recipes::{Client, Session};

const SHORT: u64 = 1_000;
const LONG: u64 = 1_000_000;
/// Items pushed by one call while a queue is filled.
const FILLED_TOGETHER: u64 = 10_000;
const FILLERS: u64 = 16;
/// Takes from either queue that are measured.
const TAKES: u64 = 2_000;
const CONSUMERS: usize = 1_000;
/// Of one client, under one session.
const CONSUMERS_TOGETHER: usize = 50;
const IDLE: usize = 10;
/// Items that come one by one to many consumers.
const ITEMS: u64 = 300;
const BETWEEN_ITEMS: Duration = Duration::from_millis(50);
/// Until many consumers have all heard of each other.
const QUIET: Duration = Duration::from_secs(5);

/// By how much the calls of a take may differ between a long queue and a short one.
const CALLS_TOLERANCE: f64 = 0.01;
/// How often as many keys a take may read from a long queue as from a short one, and how many besides.
const KEYS_TIMES_MAX: f64 = 1.5;
const KEYS_MORE_MAX: f64 = 2.0;
/// How often as long a take from a long queue may last in the median.
const TIMES_MAX: f64 = 1.5;
/// Claims that idle consumers try for one item, at most.
const CLAIMS_MAX: f64 = 3.0;
/// The longest wait of an item, at p99, for one of few idle consumers among many.
const PICKUP_MS_MAX: f64 = 400.0;

type Counted = Counting<Remote>;

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let mut arguments = std::env::args_os().skip(1);
    let program = arguments
        .next()
        .context("usage: queue-at-scale PATH-OF-QUORATE [ITEMS]")?;
    let long = match arguments.next() {
        Some(items) => items.to_string_lossy().parse()?,
        None => LONG,
    };
    let cluster = ProcessCluster::start(&PathBuf::from(program), 3, &[]).await?;
    let by_length = by_length(&cluster, long).await?;
    let by_consumers = by_consumers(&cluster).await?;
    by_length.judge()?;
    by_consumers.judge()
}

/// What a take with its end costs by the length of the queue.
struct ByLength {
    /// Calls a take from the short queue, and the long one.
    calls: [f64; 2],
    keys: [f64; 2],
    /// How often as long it lasts in the median with the long queue.
    times: f64,
}

impl ByLength {
    fn judge(&self) -> anyhow::Result<()> {
        let ([few_calls, calls], [few_keys, keys]) = (self.calls, self.keys);
        anyhow::ensure!(
            (calls - few_calls).abs() <= CALLS_TOLERANCE * few_calls,
            "a take costs {calls:.3} calls with the long queue, and {few_calls:.3} with the short one"
        );
        anyhow::ensure!(
            keys <= KEYS_TIMES_MAX * few_keys + KEYS_MORE_MAX,
            "a take reads {keys:.3} keys with the long queue, and {few_keys:.3} with the short one"
        );
        anyhow::ensure!(
            self.times <= TIMES_MAX,
            "a take lasts {:.2} times as long with the long queue",
            self.times
        );
        Ok(())
    }
}

/// What many consumers make of items that come one by one.
struct ByConsumers {
    /// Claims tried an item, all of them idle.
    claims: f64,
    /// How long an item waits at p99 for one of the few that are idle, and how many have waited.
    pickup_ms: f64,
    picked_up: u64,
}

impl ByConsumers {
    fn judge(&self) -> anyhow::Result<()> {
        anyhow::ensure!(
            self.claims <= CLAIMS_MAX,
            "{:.2} claims were tried an item",
            self.claims
        );
        anyhow::ensure!(
            self.picked_up == ITEMS,
            "{} of {ITEMS} items were taken",
            self.picked_up
        );
        anyhow::ensure!(
            self.pickup_ms <= PICKUP_MS_MAX,
            "an item waited {:.0} ms at p99",
            self.pickup_ms
        );
        Ok(())
    }
}

fn client(cluster: &ProcessCluster) -> anyhow::Result<(Client, Counted)> {
    let store = Counting::new(Remote::new(cluster.endpoints())?);
    Ok((Client::new(store.clone()), store))
}

/// One queue, and what taking from it cost.
struct Measured {
    items: u64,
    queue: Queue<u64>,
    consumer: Consumer<u64>,
    session: Session,
    store: Counted,
    times: Histogram<u64>,
    taken: u64,
    calls: u64,
    keys: u64,
}

impl Measured {
    async fn new(cluster: &ProcessCluster, items: u64) -> anyhow::Result<Self> {
        let (client, store) = client(cluster)?;
        let session = client.session().await?;
        let queue = client.queue::<u64>(format!("of-{items}"));
        let began = Instant::now();
        let parts = (0..FILLERS).map(|filler| {
            let (queue, session) = (&queue, &session);
            let mut next = filler * FILLED_TOGETHER;
            async move {
                while next < items {
                    let some: Vec<u64> = (next..items.min(next + FILLED_TOGETHER)).collect();
                    queue.push_all(session, &some).await?;
                    next += FILLERS * FILLED_TOGETHER;
                }
                anyhow::Ok(())
            }
        });
        try_join_all(parts).await?;
        println!("{items} items pushed in {:.1?}", began.elapsed());
        let consumer = queue.consumer(&session).await?;
        consumer.pop().await?.ack().await?;
        Ok(Self {
            items,
            queue,
            consumer,
            session,
            store,
            times: Histogram::new(3)?,
            taken: 0,
            calls: 0,
            keys: 0,
        })
    }

    /// Takes an item and ends it; then one more is pushed, which does not count.
    async fn take(&mut self) -> anyhow::Result<()> {
        let (began, before) = (Instant::now(), self.store.counts());
        self.consumer.pop().await?.ack().await?;
        let used = self.store.counts() - before;
        self.times
            .record(u64::try_from(began.elapsed().as_nanos())?)?;
        self.taken += 1;
        self.calls += used.txn + used.range;
        self.keys += used.keys;
        self.queue.push(&self.session, &self.taken).await?;
        Ok(())
    }

    /// Calls and keys read a take with its end.
    fn tell(&self) -> (f64, f64) {
        let (calls, keys) = (self.each(self.calls), self.each(self.keys));
        println!(
            "{} items: {calls:.3} calls and {keys:.3} keys read a take with its end",
            self.items
        );
        (calls, keys)
    }

    fn each(&self, sum: u64) -> f64 {
        sum as f64 / self.taken as f64
    }
}

async fn by_length(cluster: &ProcessCluster, long: u64) -> anyhow::Result<ByLength> {
    let mut short = Measured::new(cluster, SHORT).await?;
    let mut long = Measured::new(cluster, long).await?;
    for _ in 0..TAKES {
        short.take().await?;
        long.take().await?;
    }
    let (few_calls, few_keys) = short.tell();
    let (calls, keys) = long.tell();
    let times = [0.5, 0.99].map(|quantile| {
        let of = |measured: &Measured| measured.times.value_at_quantile(quantile) as f64;
        let times = of(&long) / of(&short);
        println!(
            "p{:.0} of a take with its end, {} items to {} in turn: {times:.2}",
            quantile * 100.0,
            long.items,
            short.items
        );
        times
    });
    Ok(ByLength {
        calls: [few_calls, calls],
        keys: [few_keys, keys],
        times: times[0],
    })
}

/// Takes items and ends them until that fails.
async fn take_on(
    consumer: &Consumer<u64>,
    note: impl Fn(u64),
) -> Result<Infallible, quorate_recipes::Error> {
    loop {
        let delivery = consumer.pop().await?;
        note(*delivery.value());
        delivery.ack().await?;
    }
}

async fn by_consumers(cluster: &ProcessCluster) -> anyhow::Result<ByConsumers> {
    let (pusher, _) = client(cluster)?;
    let session = pusher.session().await?;
    let queue = pusher.queue::<u64>("many").without_max_attempts();
    let mut consumers = Vec::new();
    let mut stores = Vec::new();
    while consumers.len() < CONSUMERS {
        let (taker, store) = client(cluster)?;
        let theirs = taker.queue::<u64>("many").without_max_attempts();
        let session = taker.session().ttl(Duration::from_secs(30)).await?;
        let some = (0..CONSUMERS_TOGETHER).map(|_| theirs.consumer(&session));
        consumers.extend(try_join_all(some).await?);
        stores.push(store);
    }
    tokio::time::sleep(QUIET).await;

    let transactions = || stores.iter().map(|store| store.counts().txn).sum::<u64>();
    let before = transactions();
    let push = |queue: Queue<u64>, session: Session| async move {
        let mut pushed = Vec::new();
        for item in 0..ITEMS {
            queue.push(&session, &item).await?;
            pushed.push(Instant::now());
            tokio::time::sleep(BETWEEN_ITEMS).await;
        }
        anyhow::Ok(pushed)
    };
    let taken = async {
        // Dropping a pop that waits takes nothing.
        let all = consumers.iter().map(|consumer| take_on(consumer, |_| {}));
        join_all(all).await
    };
    tokio::select! {
        failed = taken => println!("taking ended: {failed:?}"),
        pushed = push(queue.clone(), session.clone()) => drop(pushed?),
    }
    let used = transactions() - before;
    // The rest are their ends.
    let claims = used.saturating_sub(ITEMS) as f64 / ITEMS as f64;
    println!(
        "{CONSUMERS} idle consumers: {claims:.2} claims tried an item ({used} transactions for {ITEMS} items)"
    );

    let busy: Vec<u64> = (0..(CONSUMERS - IDLE) as u64).collect();
    queue.push_all(&session, &busy).await?;
    // Each client has some that are busy, and half of them one that is not.
    let (idle, working): (Vec<_>, Vec<_>) = consumers
        .iter()
        .enumerate()
        .partition(|(number, _)| number % (CONSUMERS / IDLE) == 0);
    let pops = working.iter().map(|(_, consumer)| consumer.pop());
    let held: Vec<Delivery<u64>> = try_join_all(pops).await?;
    tokio::time::sleep(QUIET).await;
    let told = RefCell::new(Vec::new());
    let note = |item| told.borrow_mut().push((item, Instant::now()));
    let idle = join_all(idle.iter().map(|(_, consumer)| take_on(consumer, note)));
    let pushed = tokio::select! {
        failed = idle => anyhow::bail!("taking ended: {failed:?}"),
        pushed = async {
            let pushed = push(queue.clone(), session.clone()).await?;
            tokio::time::sleep(Duration::from_secs(1)).await;
            anyhow::Ok(pushed)
        } => pushed?,
    };
    let mut waits = Histogram::<u64>::new(3)?;
    for (item, at) in told.take() {
        let wait = at.saturating_duration_since(pushed[usize::try_from(item)?]);
        waits.record(u64::try_from(wait.as_micros())?)?;
    }
    println!(
        "{} of {CONSUMERS} consumers busy: {} items waited {} ms in the median, {} ms at p99, {} ms at most",
        held.len(),
        waits.len(),
        waits.value_at_quantile(0.5) / 1_000,
        waits.value_at_quantile(0.99) / 1_000,
        waits.max() / 1_000
    );
    Ok(ByConsumers {
        claims,
        pickup_ms: waits.value_at_quantile(0.99) as f64 / 1_000.0,
        picked_up: waits.len(),
    })
}
