//! A group of workers: everybody knows who is there, who leaves is told from who crashes, and who is
//! no member any more cannot write. On a node inside this process.
//!
//! Run with `cargo run --example membership`.

#![allow(clippy::print_stdout, reason = "an example shows what happens")]

use std::time::Duration;

use futures::StreamExt as _;
use quorate::core::node::Node;
use quorate::recipes::membership::{MemberEvent, majority_of};
use quorate::recipes::store::embedded::Embedded;
use quorate::recipes::{Client, Fenced as _, TxnError};
use serde::{Deserialize, Serialize};

/// What each worker says about itself.
#[derive(Debug, Serialize, Deserialize)]
struct Info {
    name: String,
}

fn info(name: &str) -> Info {
    Info {
        name: name.to_owned(),
    }
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let node = Node::builder().in_memory().start().await?;
    let client = Client::new(Embedded::new(node.clone()));
    let group = client.group::<Info>("workers");
    let mut members = group.members().await?;
    let mut events = members.events().await?;

    // Every process joins under its own session.
    let (mut sessions, mut workers) = (Vec::new(), Vec::new());
    for name in ["anna", "ben", "carl"] {
        let session = client.session().ttl(Duration::from_secs(5)).await?;
        workers.push(group.join(&session, info(name)).await?);
        sessions.push(session);
    }
    let view = members.wait_for(majority_of(3)).await?;
    println!("a majority at revision {}", view.revision);

    let [anna, ben, carl] = <[_; 3]>::try_from(workers).map_err(|_| anyhow::anyhow!("three"))?;
    anna.put("workers/plan", "by anna").await?;
    let fence = anna.fence().clone();
    anna.leave().await?;
    match client
        .txn()
        .fence(fence)
        .put("workers/plan", "late")
        .commit()
        .await
    {
        Err(TxnError::Fenced { .. }) => println!("the store refused a write of one who has left"),
        outcome => anyhow::bail!("the late write was not refused: {outcome:?}"),
    }
    ben.update(info("ben, promoted")).await?;
    // A crash, seen from outside: the lease ends without a word.
    client.store().lease_revoke(sessions[2].lease()).await?;

    let mut left = 0;
    while let Some(event) = events.next().await {
        match event? {
            MemberEvent::Joined(member) => println!("joined: {:?}", member.info),
            MemberEvent::Updated { now, .. } => println!("updated: {:?}", now.info),
            MemberEvent::Left { member, departure } => {
                println!("left: {:?} ({departure:?})", member.info);
                left += 1;
            }
            other => println!("{other:?}"),
        }
        if left == 2 {
            break;
        }
    }
    let view = members.wait_until(|view| view.members.len() == 1).await?;
    println!("still there: {:?}", view.members[0].info);

    drop((ben, carl));
    node.shutdown().await;
    Ok(())
}
