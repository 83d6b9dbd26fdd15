//! A primary and its successor, and somebody who watches: the primary proclaims what it is at, then
//! its lease goes, and the next candidate leads. On a node inside this process.
//!
//! Run with `cargo run --example election`.

#![allow(clippy::print_stdout, reason = "an example shows what happens")]

use std::time::Duration;

use futures::StreamExt as _;
use quorate::core::node::Node;
use quorate::recipes::store::embedded::Embedded;
use quorate::recipes::{Client, Error};
use serde::{Deserialize, Serialize};

/// What a leader tells the others.
#[derive(Debug, Serialize, Deserialize)]
struct Primary {
    name: String,
    serving: bool,
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let node = Node::builder().in_memory().start().await?;
    let client = Client::new(Embedded::new(node.clone()));
    let (first, second) = (client.session().await?, client.session().await?);
    let mut leaders = client.election::<Primary>("primary").observe();
    let watching = async {
        for _ in 0..6 {
            match leaders.next().await.transpose()?.flatten() {
                Some(leader) => println!("observer: {:?}, token {}", leader.value, leader.token),
                None => println!("observer: nobody leads"),
            }
        }
        Ok(())
    };
    let acting = async {
        let leadership = lead(&client, &first, "anna").await?;
        let next = lead(&client, &second, "ben");
        let crash = async {
            tokio::time::sleep(Duration::from_millis(300)).await;
            println!("anna's lease is revoked");
            client.store().lease_revoke(first.lease()).await?;
            println!("anna: lost, {}", leadership.lost().await);
            let late = leadership.put("primary/state", "anna, late").await;
            println!(
                "anna's late write: {}",
                late.map_or_else(|e| e.to_string(), |_| "?!".into())
            );
            Ok::<_, Error>(())
        };
        let (next, ()) = tokio::try_join!(next, crash)?;
        next.resign().await
    };
    tokio::time::timeout(Duration::from_secs(20), async {
        tokio::try_join!(watching, acting)
    })
    .await??;
    node.shutdown().await;
    Ok(())
}

/// Campaigns until elected, then says so and writes as the leader.
async fn lead(
    client: &Client,
    session: &quorate::recipes::Session,
    name: &str,
) -> Result<quorate::recipes::Leadership<Primary>, Error> {
    let as_primary = |serving| Primary {
        name: name.to_owned(),
        serving,
    };
    let election = client.election::<Primary>("primary");
    let leadership = election.campaign(session, as_primary(false)).await?;
    println!("{name}: elected, token {}", leadership.token());
    leadership.put("primary/state", name).await?;
    leadership.proclaim(as_primary(true)).await?;
    Ok(leadership)
}
