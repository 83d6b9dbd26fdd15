//! Instances of a service come, change, leave and die; a client always has the list, without asking
//! anybody. On a node inside this process.
//!
//! Run with `cargo run --example registry`.

#![allow(
    clippy::print_stdout,
    clippy::disallowed_methods,
    reason = "an example shows what happens, and starts a task of its own"
)]

use futures::StreamExt as _;
use quorate::core::node::Node;
use quorate::recipes::Client;
use quorate::recipes::registry::{Change, Instance, Status};
use quorate::recipes::store::embedded::Embedded;
use serde::{Deserialize, Serialize};

/// What instances of this service say besides their address.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Meta {
    zone: String,
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let node = Node::builder().in_memory().start().await?;
    let client = Client::new(Embedded::new(node.clone()));

    let mut discovery = client.discover::<Meta>("api").await?;
    let mut events = discovery.events();
    let printer = tokio::spawn(async move {
        while let Some(Ok(change)) = events.next().await {
            match change {
                Change::Joined(one) => println!("  joined: {} at {}", one.id, one.address),
                Change::Updated { now, .. } => {
                    println!("  updated: {} is {:?}", now.id, now.status)
                }
                Change::Left { instance, .. } => println!("  left: {}", instance.id),
                other => println!("  {other:?}"),
            }
        }
    });

    // Every process registers itself, under its own session.
    let mut sessions = Vec::new();
    let mut registrations = Vec::new();
    for (id, zone) in [("api-1", "a"), ("api-2", "b"), ("api-3", "b")] {
        let session = client.session().label(id).await?;
        let zone = zone.to_owned();
        let meta = Meta { zone };
        let instance = Instance::builder("api").id(id);
        let instance = instance.address(format!("{id}:8080"));
        registrations.push(session.register(instance.meta(meta).build()).await?);
        sessions.push(session);
    }
    let view = discovery.wait_for(|view| view.instances.len() == 3).await?;
    let near: Vec<_> = view
        .up()
        .filter(|one| one.meta.as_ref().is_some_and(|meta| meta.zone == "b"))
        .map(|one| one.address.as_str())
        .collect();
    println!("in zone b: {near:?}");

    println!("api-1 drains, then leaves");
    let leaver = registrations.remove(0);
    leaver.set_status(Status::Draining).await?;
    leaver.deregister().await?;
    discovery
        .wait_for(|view| view.instance("api-1").is_none())
        .await?;

    println!("the lease of api-2 is gone: it opens a new session and comes back by itself");
    let before = discovery.view().instance("api-2").map(|one| one.created);
    client.store().lease_revoke(sessions[1].lease()).await?;
    discovery
        .wait_for(|view| {
            view.instance("api-2")
                .is_some_and(|one| Some(one.created) > before)
        })
        .await?;
    println!("registered: {}", discovery.view().instances.len());

    printer.abort();
    drop(registrations);
    node.shutdown().await;
    Ok(())
}
