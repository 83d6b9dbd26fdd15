//! Settings that change while programs run: tried out on one instance first, published for all, rejected
//! where they cannot be used, and taken back. On a node inside this process.
//!
//! Run with `cargo run --example config`.

#![allow(clippy::print_stdout, reason = "an example shows what happens")]

use quorate::core::node::Node;
use quorate::recipes::Client;
use quorate::recipes::config::{Config, Expect, Rule, View};
use quorate::recipes::store::embedded::Embedded;
use serde::{Deserialize, Serialize};

#[derive(Debug, Clone, Serialize, Deserialize)]
struct Limits {
    rps: u32,
}

fn limits(rps: u32) -> Limits {
    Limits { rps }
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let node = Node::builder().in_memory().start().await?;
    let client = Client::new(Embedded::new(node.clone()));
    let session = client.session().await?;
    let config: Config<Limits> = client.config("shop/limits");
    let at = config
        .publish(&session, &limits(100), Expect::Absent)
        .await?;

    let follow = |zone: &str| {
        let follow = config.follow().instance(format!("shop-{zone}"));
        let follow = follow.label("zone", zone).acknowledge(&session);
        follow.validate(|limits: &Limits| match limits.rps {
            0 => Err("nobody would be served".to_owned()),
            _ => Ok(()),
        })
    };
    let (mut eu, mut us) = (follow("eu").await?, follow("us").await?);
    println!("both begin with {}", rate(&eu.borrow()));

    let canary = Rule::new("canary").label("zone", "eu").percent(100.0);
    config
        .gray(&session, &canary, &limits(300), Expect::Absent)
        .await?;
    eu.wait_for(|view| rate(view) == 300).await?;
    println!(
        "eu tries {}, us has {}",
        rate(&eu.borrow()),
        rate(&us.borrow())
    );
    // Only if nobody has published anything else meanwhile.
    let over = Expect::Revision(at.revision);
    let promoted = config.promote(&session, "canary", over).await?;
    us.wait_for(|view| rate(view) == 300).await?;
    println!("version {} is for all", promoted.version);

    config.publish(&session, &limits(0), Expect::Any).await?;
    let view = us.wait_for(|view| view.rejected.is_some()).await?;
    let reason = view.rejected.as_ref().map(|rejected| &rejected.reason);
    println!("rejected: {reason:?}; still {}", rate(&view));

    let (back, reason) = (promoted.version, "a limit of nothing");
    config.rollback(&session, back, reason, Expect::Any).await?;
    us.wait_for(|view| view.rejected.is_none()).await?;
    for entry in config.history().await? {
        let (version, note) = (entry.version, entry.note);
        println!("version {version}: {} {note:?}", entry.value?.rps);
    }
    for told in config.acknowledgements().await? {
        let version = told.running["limits"].version;
        println!("{} runs {version:?}", told.instance);
    }

    config.remove(&session, Expect::Any).await?;
    println!("nothing is published any more: {:?}", config.get().await?);

    session.close().await?;
    node.shutdown().await;
    Ok(())
}

fn rate(view: &View<Limits>) -> u32 {
    let limits = view.value.as_ref();
    limits.map_or(0, |limits| limits.rps)
}
