//! A lock around a job, on a node inside this process: two workers take turns, and a write under a
//! lock that was lost is refused by the store.
//!
//! Run with `cargo run --example mutex`.

#![allow(clippy::print_stdout, reason = "an example shows what happens")]

use std::time::Duration;

use quorate::core::node::Node;
use quorate::recipes::store::embedded::Embedded;
use quorate::recipes::{Client, Error, TxnError};

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let node = Node::builder().in_memory().start().await?;
    let client = Client::new(Embedded::new(node.clone()));

    // Two workers, each with a session of its own, as two processes would have.
    let turns = [worker(&client, "anna"), worker(&client, "ben")];
    futures::future::try_join_all(turns).await?;

    // A worker that loses its lease while it holds the lock.
    let session = client.session().ttl(Duration::from_secs(5)).await?;
    let guard = client.mutex("orders/42").lock(&session).await?;
    client.delete(guard.key()).await?; // what an operator, or the end of the lease, would do
    let other = client.session().label("carl").await?;
    let _taken = client.mutex("orders/42").lock(&other).await?;
    match guard.put("orders/42/state", "too late").await {
        Err(TxnError::Fenced { owner: Some(owner) }) => {
            println!(
                "the store refused a late write; the lock is held by lease {}",
                owner.lease
            );
        }
        outcome => anyhow::bail!("the late write was not refused: {outcome:?}"),
    }
    let state = client.get("orders/42/state").await?;
    let state = state.map(|kv| kv.value).unwrap_or_default();
    println!("the state is still {:?}", String::from_utf8_lossy(&state));

    node.shutdown().await;
    Ok(())
}

async fn worker(client: &Client, name: &str) -> Result<(), Error> {
    let session = client.session().label(name).await?;
    for round in 1..=2 {
        // A timeout is safe: a dropped wait leaves the line.
        let lock = client
            .mutex("orders/42")
            .with_info(format!("round {round}"));
        let Ok(guard) = tokio::time::timeout(Duration::from_secs(5), lock.lock(&session)).await
        else {
            println!("{name}: the lock was not free in time");
            continue;
        };
        let guard = guard?;
        let token = guard.token();
        println!("{name} holds the lock, with token {token}");
        guard
            .put("orders/42/state", format!("{name}, round {round}"))
            .await?;
        guard.release().await?;
    }
    session.close().await
}
