//! Two agents gather lines while the store is down for a while; a collector writes all of them, those of an agent
//! in their order, once. On a node inside this process.
//!
//! Run with `cargo run --example log_collection`.

#![allow(clippy::print_stdout, reason = "an example shows what happens")]

use std::collections::BTreeMap;

use quorate::core::node::Node;
use quorate::recipes::Client;
use quorate::recipes::collect::{Chunk, CollectError};
use quorate::recipes::store::Faulty;
use quorate::recipes::store::embedded::Embedded;
use quorate::recipes::store::faulty::Outage;
use quorate::recipes::topic::Retention;

const LINES: usize = 500;

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let node = Node::builder().in_memory().start().await?;
    let store = Faulty::new(Embedded::new(node.clone()));
    let client = Client::new(store.clone());
    let retention = Retention::default().until_consumed();
    let logs = client.log_collection("app").partitions(2).retain(retention);
    let spool = tempfile::tempdir()?;

    let one = logs.agent("host-1").batch_bytes(1_000);
    let one = one.spool(spool.path().join("1"), 1 << 20).await?;
    let two = logs
        .agent("host-2")
        .batch_bytes(1_000)
        .window(1_000)
        .await?;
    for line in 0..LINES {
        match line {
            100 => store.disconnect(Outage::Refused),
            400 => store.reconnect(),
            _ => {}
        }
        anyhow::ensure!(one.log(format!("one {line:03}")) && two.log(format!("two {line:03}")));
        tokio::time::sleep(std::time::Duration::from_millis(1)).await;
    }
    one.flush().await?;
    two.flush().await?;

    let session = client.session().await?;
    let mut archive: BTreeMap<String, Vec<String>> = BTreeMap::new();
    let mut collector = logs.collector(&session, "archive").await?;
    let done = collector.run(async |chunk: &Chunk| {
        anyhow::ensure!(chunk.missing == 0);
        let lines = archive.entry(chunk.source.clone()).or_default();
        lines.extend(chunk.lines.clone());
        // Enough for an example: a sink that fails ends the run.
        let all: usize = archive.values().map(Vec::len).sum();
        anyhow::ensure!(all < 2 * LINES, "that was all");
        Ok(())
    });
    let Err(CollectError::Sink(end)) = done.await else {
        anyhow::bail!("the collector failed");
    };
    println!("{end}: {} sources", archive.len());
    for lines in archive.values() {
        anyhow::ensure!(lines.len() == LINES && lines.is_sorted());
    }
    anyhow::ensure!(archive.len() == 2);

    one.close().await?;
    two.close().await?;
    session.close().await?;
    node.shutdown().await;
    Ok(())
}
