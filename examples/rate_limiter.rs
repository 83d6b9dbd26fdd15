//! A quota shared by three processes: at most ten calls in any two seconds, whoever makes them. On a node
//! inside this process.
//!
//! Run with `cargo run --example rate_limiter`.

#![allow(clippy::print_stdout, reason = "an example shows what happens")]

use std::time::Duration;

use quorate::core::node::Node;
use quorate::recipes::clock::{Clock, Instant, SystemClock};
use quorate::recipes::store::embedded::Embedded;
use quorate::recipes::{Client, Error};

const LIMIT: u32 = 10;
const WINDOW: Duration = Duration::from_secs(2);
const CALLS_EACH: usize = 5;

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let node = Node::builder().in_memory().start().await?;
    let client = Client::new(Embedded::new(node.clone()));

    let callers = ["anna", "ben", "carla"].map(|name| caller(&client, name));
    let calls = futures::future::try_join_all(callers).await?;
    let mut calls: Vec<Instant> = calls.into_iter().flatten().collect();
    calls.sort_unstable();
    let first = calls[0];
    for (number, at) in calls.iter().enumerate() {
        println!("call {number:2} after {:.1} s", (*at - first).as_secs_f32());
    }
    // Any eleven calls in a row take longer than the window.
    let most = LIMIT as usize;
    let kept = calls
        .windows(most + 1)
        .all(|some| some[most] - some[0] >= WINDOW);
    anyhow::ensure!(kept, "more than {LIMIT} calls in {WINDOW:?}");

    node.shutdown().await;
    Ok(())
}

/// Makes its calls as fast as it may, and says when it made them.
async fn caller(client: &Client, name: &str) -> Result<Vec<Instant>, Error> {
    let session = client.session().label(name).await?;
    let api = client.rate_limiter("api", LIMIT, WINDOW);
    let mut calls = Vec::new();
    for _ in 0..CALLS_EACH {
        api.acquire(&session, 1).await?;
        calls.push(SystemClock.now());
    }
    session.close().await?;
    Ok(calls)
}
