//! Orders that go to the oven four at a time, or when the kitchen closes: each batch is exactly who was there, baked once.
//! On a node inside this process.
//!
//! Run with `cargo run --example condition_queue`.

#![allow(clippy::print_stdout, reason = "an example shows what happens")]

use std::convert::Infallible;

use quorate::core::node::Node;
use quorate::recipes::condition::{Condition, ConditionQueue, Joined};
use quorate::recipes::store::embedded::Embedded;
use quorate::recipes::{Client, Error, KeyRange};

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let node = Node::builder().in_memory().start().await?;
    let client = Client::new(Embedded::new(node.clone()));
    let when = Condition::len(4).or(Condition::started());
    let orders = client.condition_queue::<String>("oven", when);

    let mut ovens = tokio::task::JoinSet::new();
    for oven in 0..2 {
        let (client, orders) = (client.clone(), orders.clone());
        ovens.spawn(bake(client, orders, oven));
    }

    let session = client.session().await?;
    for number in 0..10 {
        let pizza = ["margherita", "funghi", "quattro stagioni"][number % 3];
        let id = number.to_string();
        let joined = orders.join(&session, &id, &pizza.to_owned()).await?;
        anyhow::ensure!(matches!(joined, Joined::In { .. }));
    }
    // Changed their mind; one is left, and the kitchen closes.
    let withdrawn = orders.withdraw(&session, "9").await?;
    let last = orders.start(&session).await?;
    loop {
        let status = orders.status().await?;
        if status.gathering + status.passed == 0 {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    let (_, baked) = client.list(KeyRange::prefix("baked/")).await?;
    println!("{} baked in 3 batches", baked.len());
    anyhow::ensure!(withdrawn && last == Some(2) && baked.len() == 9);
    let last: Vec<_> = baked.iter().filter(|kv| kv.value == "2").collect();
    anyhow::ensure!(last.len() == 1, "of ten orders eight went in fours");

    ovens.shutdown().await;
    node.shutdown().await;
    Ok(())
}

/// Bakes what goes together, until the store refuses for good.
async fn bake(
    client: Client,
    orders: ConditionQueue<String>,
    oven: u32,
) -> Result<Infallible, Error> {
    let session = client.session().await?;
    loop {
        let mut batch = orders.take(&session).await?;
        let (epoch, together) = (batch.gate().epoch, batch.tasks().len());
        println!("oven {oven}: batch {epoch}, {together} together");
        // Baked and written down, or neither.
        let txn = batch.tasks().iter().fold(client.txn(), |txn, task| {
            txn.put(format!("baked/{}", task.id), epoch.to_string())
        });
        batch.ack_with(txn).await?;
    }
}
