//! Two observers watch one server, and a third program believes what both say. On a node inside this process.
//!
//! Run with `cargo run --example probe`.

#![allow(clippy::print_stdout, reason = "an example shows what happens")]

use std::time::Duration;

use quorate::core::node::Node;
use quorate::recipes::Client;
use quorate::recipes::probe::{Probe, ProbeState};
use quorate::recipes::registry::{Checks, Instance};
use quorate::recipes::store::embedded::Embedded;
use tokio::net::TcpListener;

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let node = Node::builder().in_memory().start().await?;
    let client = Client::new(Embedded::new(node.clone()));
    let server = TcpListener::bind("127.0.0.1:0").await?;
    let address = server.local_addr()?.to_string();
    let probe = Probe::tcp(&address)
        .every(Duration::from_millis(50))
        .timeout(Duration::from_millis(500));

    // Each would be a process on a machine of its own.
    let mut observers = Vec::new();
    for name in ["zone-a", "zone-b"] {
        let session = client.session().await?;
        let prober = client.probe(probe.clone())?;
        observers.push(session.observe("db", prober).observer(name).await?);
    }
    let mut liveness = client.liveness("db").quorum(2).await?;
    let verdict = liveness.wait_for(ProbeState::Up).await?;
    println!("up, say {}", verdict.opinions.len());

    // An instance that needs the server takes work while it is there.
    let session = client.session().await?;
    let instance = Instance::builder("api")
        .id("api-1")
        .address("10.0.0.7:8080");
    let checks = Checks::new().add("db", probe.rise(1));
    let registration = session.register_checked(instance.build(), checks).await?;
    let mut discovery = client.discover::<()>("api").await?;
    discovery.wait_for(|view| view.up().count() == 1).await?;

    println!("the server goes");
    drop(server);
    let verdict = liveness.wait_for(ProbeState::Down).await?;
    for opinion in &verdict.opinions {
        println!(
            "  {}: {:?}, {:?}",
            opinion.observer, opinion.state, opinion.reason
        );
    }
    let view = discovery.wait_for(|view| view.up().count() == 0).await?;
    let health = view.instance("api-1").and_then(|one| one.health.clone());
    println!(
        "api-1 takes no work: {:?}",
        health.as_ref().map(|health| &health.failing)
    );
    assert!(
        verdict
            .opinions
            .iter()
            .all(|one| one.state == ProbeState::Down)
    );
    assert!(health.is_some_and(|health| health.failing.contains_key("db")));

    registration.deregister().await?;
    for seen in observers {
        seen.withdraw().await?;
    }
    let verdict = liveness.wait_for(ProbeState::Unknown).await?;
    assert_eq!(verdict.state, ProbeState::Unknown);
    node.shutdown().await;
    Ok(())
}
