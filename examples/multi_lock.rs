//! Transfers between accounts that have a lock each, on a node inside this process: several locks at once
//! never wait in a circle; locks taken one by one can, and the circle is found.
//!
//! Run with `cargo run --example multi_lock`.

#![allow(clippy::print_stdout, reason = "an example shows what happens")]

use std::time::Duration;

use quorate::core::node::Node;
use quorate::recipes::store::embedded::Embedded;
use quorate::recipes::{Client, Session};

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let node = Node::builder().in_memory().start().await?;
    let client = Client::new(Embedded::new(node.clone()));
    client.put("account/1", "100").await?;
    client.put("account/2", "100").await?;

    // In opposite directions, at the same time, again and again.
    let there = transfers(&client, "account/1", "account/2");
    let back = transfers(&client, "account/2", "account/1");
    futures::future::try_join(there, back).await?;
    let sum = balance(&client, "account/1").await? + balance(&client, "account/2").await?;
    println!("20 transfers, the sum is {sum}");
    anyhow::ensure!(sum == 200);

    // One by one, in opposite orders.
    let session = client.session().label("bank").await?;
    let (anna, ben) = (session.for_task("anna"), session.for_task("ben"));
    let waits = futures::future::join(
        one_by_one(&client, &anna, ["account/1", "account/2"]),
        one_by_one(&client, &ben, ["account/2", "account/1"]),
    );
    let found = async {
        loop {
            let deadlocks = client.inspect().deadlocks().await?;
            if let Some(deadlock) = deadlocks.into_iter().next() {
                return anyhow::Ok(deadlock);
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let deadlock = tokio::select! {
        _ = waits => anyhow::bail!("both got both locks"),
        found = found => found?,
    };
    println!("a circle, certain: {}", deadlock.certain);
    for wait in &deadlock.waits {
        println!("  {wait}");
    }
    anyhow::ensure!(deadlock.certain && deadlock.waits.len() == 2);
    node.shutdown().await;
    Ok(())
}

async fn transfers(client: &Client, from: &str, to: &str) -> anyhow::Result<()> {
    let session = client.session().await?;
    for _ in 0..10 {
        let guard = client.multi_lock([from, to]).lock(&session).await?;
        let (less, more) = (
            balance(client, from).await? - 1,
            balance(client, to).await? + 1,
        );
        let transfer = guard.txn().put(from, less.to_string());
        transfer.put(to, more.to_string()).commit().await?;
        guard.release().await?;
    }
    Ok(())
}

async fn one_by_one(client: &Client, task: &Session, names: [&str; 2]) -> anyhow::Result<()> {
    let _first = client.mutex(names[0]).lock(task).await?;
    tokio::time::sleep(Duration::from_millis(100)).await;
    let _second = client.mutex(names[1]).lock(task).await?;
    Ok(())
}

async fn balance(client: &Client, account: &str) -> anyhow::Result<i64> {
    let kv = client.get(account).await?;
    let text = kv.map(|kv| String::from_utf8_lossy(&kv.value).into_owned());
    Ok(text.unwrap_or_default().parse()?)
}
