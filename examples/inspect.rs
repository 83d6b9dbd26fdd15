//! What is going on, in whichever program: who has which lock, how long queues are, how far jobs are. All of it is
//! read from the store at one revision, without a session. On a node inside this process.
//!
//! Run with `cargo run --example inspect`.

#![allow(clippy::print_stdout, reason = "an example shows what happens")]

use std::time::Duration;

use quorate::core::node::Node;
use quorate::recipes::Client;
use quorate::recipes::registry::Instance;
use quorate::recipes::store::embedded::Embedded;

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let node = Node::builder().in_memory().start().await?;
    let client = Client::new(Embedded::new(node.clone()));

    // Somebody at work.
    let session = client.session().label("worker-1").await?;
    let guard = client.mutex("nightly").lock(&session).await?;
    let instance = Instance::builder("api").id("api-1").address("10.0.0.7:80");
    let registration = session.register(instance.build()).await?;
    let queue = client.queue::<u32>("mail");
    queue.push_all(&session, &[1, 2, 3]).await?;
    let delivery = queue.consumer(&session).await?.pop().await?;

    // Somebody who looks.
    let inspect = client.inspect();
    let all = inspect.overview().await?;
    println!("at revision {}:", all.revision);
    for lock in &all.locks {
        let holders: Vec<_> = lock.holders.iter().map(|one| one.by.to_string()).collect();
        println!(
            "  {:?}: {holders:?}, {} wait",
            lock.lock,
            lock.waiters.len()
        );
    }
    for service in &all.services {
        for one in &service.instances {
            println!("  {} of {} at {}", one.id, service.name, one.address);
        }
    }
    for queue in &all.queues {
        let (items, claimed) = (queue.status.items, queue.status.claimed);
        println!("  queue {}: {items} items, {claimed} claimed", queue.name);
    }
    anyhow::ensure!(all.locks.len() == 1 && all.queues.len() == 1);

    let rates = inspect.rates(Duration::from_secs(1));
    let (rates, acknowledged) = tokio::join!(rates, delivery.ack());
    acknowledged?;
    for (name, moved) in &rates?.queues {
        println!("  queue {name}: {} items went within a second", moved.went);
    }
    println!("as JSON: {} bytes", serde_json::to_vec(&all)?.len());

    guard.release().await?;
    registration.deregister().await?;
    session.close().await?;
    node.shutdown().await;
    Ok(())
}
