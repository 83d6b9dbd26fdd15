//! Six downloads, at most two at a time, on a node inside this process.
//!
//! Run with `cargo run --example semaphore`.

#![allow(clippy::print_stdout, reason = "an example shows what happens")]

use std::time::Duration;

use quorate::core::node::Node;
use quorate::recipes::store::embedded::Embedded;
use quorate::recipes::{Client, Error};

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let node = Node::builder().in_memory().start().await?;
    let client = Client::new(Embedded::new(node.clone()));
    let downloads = (1..=6).map(|number| download(&client, number));
    let most = futures::future::try_join_all(downloads).await?;
    let most = most.into_iter().max().unwrap_or(0);
    println!("never more than {most} at a time");
    anyhow::ensure!(most <= 2);
    node.shutdown().await;
    Ok(())
}

/// Returns how many permits were out when it had its own.
async fn download(client: &Client, number: u32) -> Result<usize, Error> {
    let session = client.session().label(format!("download {number}")).await?;
    let slots = client.semaphore("downloads", 2).with_info("image");
    let permit = slots.acquire(&session).await?;
    let holders = slots.holders().await?;
    let names: Vec<String> = holders.iter().map(|each| each.holder.to_string()).collect();
    println!("{number} loads; permits: {}", names.join(", "));
    tokio::time::sleep(Duration::from_millis(50)).await;
    permit.release().await?;
    session.close().await?;
    Ok(holders.len())
}
