//! A worker that may be killed at any moment: what it had, others do again, and what it wrote for an item is
//! written exactly once, together with the end of the item.
//!
//! Run with `cargo run --example queue_worker` for some workers on a node inside this process, half of which give
//! up in the middle; or with `-- --endpoints http://127.0.0.1:2379 --worker a` as one of several processes,
//! which works until it is stopped.

#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "an example shows what happens"
)]

use std::time::Duration;

use clap::Parser;
use quorate::core::node::Node;
use quorate::recipes::queue::{AckError, Delivery, Queue};
use quorate::recipes::store::{embedded::Embedded, remote::Remote};
use quorate::recipes::{Client, Error, KeyRange};

/// Items of the run without arguments.
const ITEMS: u64 = 60;

#[derive(Debug, Clone, Parser)]
struct Args {
    /// The store, as a comma-separated list of URLs; none: a node inside this process.
    #[arg(long, value_delimiter = ',')]
    endpoints: Vec<String>,
    /// This worker's name.
    #[arg(long, default_value = "w")]
    worker: String,
    /// The session's time to live, in seconds: as long an item of a killed worker waits for another one.
    #[arg(long, default_value_t = 5)]
    ttl: u64,
    /// How long an item takes.
    #[arg(long, default_value_t = 10)]
    work_ms: u64,
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    if !args.endpoints.is_empty() {
        let client = Client::new(Remote::new(args.endpoints.clone())?);
        loop {
            // A session that is lost takes its claims along; the next one begins with none.
            if let Err(error) = work(&client, &args).await {
                eprintln!("{}: {error}", args.worker);
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
        }
    }
    let node = Node::builder().in_memory().start().await?;
    let client = Client::new(Embedded::new(node.clone()));
    let session = client.session().await?;
    let items: Vec<u64> = (0..ITEMS).collect();
    queue(&client).push_all(&session, &items).await?;
    let mut patient = tokio::task::JoinSet::new();
    patient.spawn({
        let (client, args) = (client.clone(), args.clone());
        async move { work(&client, &args).await }
    });
    while queue(&client).status().await?.items > 0 {
        let short = Duration::from_millis(25);
        drop(tokio::time::timeout(short, work(&client, &args)).await);
    }
    patient.shutdown().await;
    let (_, effects) = client.list(KeyRange::prefix("effect/")).await?;
    let once = effects.iter().filter(|kv| kv.version == 1).count();
    println!("{once} of {ITEMS} items done exactly once");
    anyhow::ensure!(once == effects.len() && once == items.len());
    node.shutdown().await;
    Ok(())
}

fn queue(client: &Client) -> Queue<u64> {
    // A worker's death is nobody's fault but its own.
    client.queue("work").without_max_attempts()
}

/// Works until the session is lost.
async fn work(client: &Client, args: &Args) -> Result<(), Error> {
    let ttl = Duration::from_secs(args.ttl);
    let session = client.session().ttl(ttl).label(&args.worker).await?;
    let consumer = queue(client).consumer(&session).await?;
    println!("{} works", args.worker);
    loop {
        let delivery = consumer.pop().await?;
        tokio::time::sleep(Duration::from_millis(args.work_ms)).await;
        if let Err(error) = done(client, delivery, &args.worker).await {
            eprintln!("{}: not done here: {error}", args.worker);
        }
    }
}

/// The effect and the end of the item, in one transaction.
async fn done(client: &Client, delivery: Delivery<u64>, worker: &str) -> Result<(), AckError<u64>> {
    let key = format!("effect/{}", delivery.value());
    let by = format!("{worker} at attempt {}", delivery.attempt());
    delivery.ack_with(client.txn().put(key, by)).await?;
    Ok(())
}
