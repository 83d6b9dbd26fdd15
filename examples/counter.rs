//! Numbers that several processes share: a counter whose every value is seen once, an adder that nobody
//! competes for, ids in blocks, and a latch that says when all are done. On a node inside this process.
//!
//! Run with `cargo run --example counter`.

#![allow(clippy::print_stdout, reason = "an example shows what happens")]

use quorate::core::node::Node;
use quorate::recipes::store::embedded::Embedded;
use quorate::recipes::{Client, Error};

const WORKERS: u64 = 3;
const ROUNDS: i64 = 5;

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let node = Node::builder().in_memory().start().await?;
    let client = Client::new(Embedded::new(node.clone()));

    // Each worker has a session of its own, as a process would have.
    let workers = ["anna", "ben", "carla"].map(|name| worker(&client, name));
    let (tickets, ()) = tokio::try_join!(futures::future::try_join_all(workers), async {
        client.latch("done").wait().await?;
        println!("all {WORKERS} are done");
        Ok(())
    })?;

    let mut tickets: Vec<_> = tickets.into_iter().flatten().collect();
    tickets.sort_unstable();
    anyhow::ensure!(tickets.iter().copied().eq(1..=15), "{tickets:?}");
    let (tickets, served) = (
        client.counter("tickets").get().await?,
        client.adder("served").sum().await?,
    );
    anyhow::ensure!((tickets, served) == (15, 150));
    println!("{tickets} tickets, none twice; {served} served");

    node.shutdown().await;
    Ok(())
}

async fn worker(client: &Client, name: &str) -> Result<Vec<i64>, Error> {
    let session = client.session().label(name).await?;
    let done = client.latch("done");
    done.init(&session, WORKERS).await?;
    let (tickets, served) = (client.counter("tickets"), client.adder("served"));
    let ids = client.ids("orders").block(10);
    let mut mine = Vec::new();
    for _ in 0..ROUNDS {
        let ticket = tickets.add(&session, 1).await?;
        let order = ids.next().await?;
        println!("{name}: ticket {ticket}, order {order}");
        served.add(&session, 10).await?;
        mine.push(ticket);
    }
    done.count_down(&session).await?;
    session.close().await?;
    Ok(mine)
}
