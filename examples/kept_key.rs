//! A key that says where a process is, and stays in place whatever happens to it: it comes back when
//! somebody deletes it and when its session is lost, and goes with its owner. On a node inside this process.
//!
//! Run with `cargo run --example kept_key`.

#![allow(clippy::print_stdout, reason = "an example shows what happens")]

use quorate::core::node::Node;
use quorate::recipes::store::embedded::Embedded;
use quorate::recipes::{Client, Error, KeyRange, LeaseId, Revision};

const KEY: &str = "nodes/7";

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let node = Node::builder().in_memory().start().await?;
    let client = Client::new(Embedded::new(node.clone()));

    let kept = client.keep(KEY, "10.0.0.7:80").await?;
    let at = kept.set("10.0.0.8:80").await?;
    println!("in place");

    client.delete(KEY).await?;
    let (at, lease) = until_back(&client, at).await?;
    println!("back after somebody had deleted it");

    // What a long pause of the process does: its lease is gone, and so is all that hung on it.
    client.store().lease_revoke(lease).await?;
    let (_, other) = until_back(&client, at).await?;
    println!("back after its session was lost");
    anyhow::ensure!(other != lease, "it has a new session");

    kept.remove().await?;
    anyhow::ensure!(client.get(KEY).await?.is_none(), "it is still there");
    println!("gone with its owner");

    node.shutdown().await;
    Ok(())
}

/// Waits until the key has been created after `before`; says when, and what lease it hangs on.
async fn until_back(client: &Client, before: Revision) -> Result<(Revision, LeaseId), Error> {
    let mut watcher = client.watch(KeyRange::one(KEY));
    loop {
        watcher.next().await?;
        if let Some(kv) = watcher.known().get(KEY.as_bytes())
            && kv.create_revision > before.0
        {
            return Ok((Revision(kv.create_revision), LeaseId(kv.lease)));
        }
    }
}
