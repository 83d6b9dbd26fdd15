//! "One of us runs it": several replicas wake up for the same job, the first to take the lock runs
//! it, the others go on at once. On a node inside this process.
//!
//! Run with `cargo run --example exclusive_lock`.

#![allow(clippy::print_stdout, reason = "an example shows what happens")]

use std::time::Duration;

use quorate::core::node::Node;
use quorate::recipes::store::embedded::Embedded;
use quorate::recipes::{Client, Compare, Error};

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let node = Node::builder().in_memory().start().await?;
    let client = Client::new(Embedded::new(node.clone()));

    let replicas = (1..=4).map(|replica| nightly(&client, replica));
    let ran = futures::future::try_join_all(replicas).await?;
    let runs = ran.into_iter().filter(|ran| *ran).count();
    println!("{runs} of 4 replicas ran the job");
    anyhow::ensure!(runs == 1, "the job must run once");

    node.shutdown().await;
    Ok(())
}

/// Runs tonight's job, unless another replica does or did. Returns whether it ran.
async fn nightly(client: &Client, replica: u32) -> Result<bool, Error> {
    let session = client.session().label(format!("replica-{replica}")).await?;
    let lock = client.exclusive("nightly").with_info("nightly report");

    // Writes nothing when it loses.
    let Some(guard) = lock.try_lock(&session).await? else {
        match lock.holder().await? {
            Some(holder) => println!("replica {replica}: {holder} is at it"),
            None => println!("replica {replica}: done in the meantime"),
        }
        return Ok(false);
    };
    // `scope` drops the work when the lock is lost half-way.
    let report = guard
        .scope(async {
            tokio::time::sleep(Duration::from_millis(200)).await;
            "all is well"
        })
        .await?;
    // The mark that it was done and the result are one write, and only the first one counts.
    let written = guard
        .txn()
        .when(Compare::absent("reports/today"))
        .put("reports/today", report)
        .commit()
        .await;
    guard.release().await?;
    let ran = written.is_ok();
    println!(
        "replica {replica}: {}",
        if ran { "ran the job" } else { "found it done" }
    );
    Ok(ran)
}
