//! The store inside one's own process: no server, no network. Keys, a watch, a lease and a lock on
//! a node that keeps its data in a directory, which a second start finds again.
//!
//! Run with `cargo run --example embedded`.

#![allow(clippy::print_stdout, reason = "an example shows what happens")]

use std::time::Duration;

use quorate::core::node::Node;
use quorate::recipes::store::embedded::Embedded;
use quorate::recipes::watch::Change;
use quorate::recipes::{Client, Compare, Error, Json, KeyRange, TxnError};

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let data = tempfile::tempdir()?;

    // The directory is free for another start once every handle of the node is gone.
    {
        let node = Node::builder().data_dir(data.path()).start().await?;
        use_it(&Client::new(Embedded::new(node.clone()))).await?;
        node.shutdown().await;
    }

    // What was acknowledged is on the disk: another start finds it.
    let node = Node::builder().data_dir(data.path()).start().await?;
    let client = Client::new(Embedded::new(node.clone()));
    let (revision, keys) = client.list(KeyRange::prefix("app/")).await?;
    println!("after a restart, at revision {revision}:");
    for kv in keys {
        let (key, value) = (
            String::from_utf8_lossy(&kv.key),
            String::from_utf8_lossy(&kv.value),
        );
        println!("  {key} = {value}");
    }
    node.shutdown().await;
    Ok(())
}

async fn use_it(client: &Client) -> anyhow::Result<()> {
    let mut watcher = client.watch(KeyRange::prefix("app/"));
    let listing = watcher.next().await?;
    println!(
        "at revision {} there are {} keys",
        listing.revision,
        listing.changes.len()
    );
    client.put("app/greeting", "hello").await?;
    client.put("app/limits", Json(&[1, 2, 3])).await?;

    // Compare, then write, as one step: only the first of two may create the key.
    for attempt in 1..=2 {
        let created = client.txn().when(Compare::absent("app/owner"));
        match created
            .put("app/owner", format!("attempt {attempt}"))
            .commit()
            .await
        {
            Ok(committed) => println!("attempt {attempt}: created at {}", committed.revision()),
            Err(TxnError::Conflict { .. }) => println!("attempt {attempt}: it is there already"),
            Err(error) => return Err(Error::from(error).into()),
        }
    }

    // A session is a lease: what hangs on it goes with it.
    let session = client.session().ttl(Duration::from_secs(5)).await?;
    client
        .txn()
        .put_leased("app/here", "yes", &session)
        .commit()
        .await?;
    let guard = client.mutex("app").lock(&session).await?;
    guard.put("app/greeting", "hello, under a lock").await?;
    session.close().await?;

    // The watcher has seen all of it, in order, one batch a transaction.
    while let Ok(batch) = tokio::time::timeout(Duration::from_millis(300), watcher.next()).await {
        let batch = batch?;
        for change in batch.changes {
            match change {
                Change::Put { kv, .. } => {
                    let key = String::from_utf8_lossy(&kv.key).into_owned();
                    println!("revision {}: {key} was written", batch.revision);
                }
                Change::Delete { key, .. } => {
                    println!("revision {}: {key} is gone", batch.revision)
                }
            }
        }
    }
    Ok(())
}
