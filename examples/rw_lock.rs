//! A table that many read and one changes, on a node inside this process: readers share the lock, a
//! reader that is alone becomes a writer, and goes back to reading without a gap.
//!
//! Run with `cargo run --example rw_lock`.

#![allow(clippy::print_stdout, reason = "an example shows what happens")]

use quorate::core::node::Node;
use quorate::recipes::Client;
use quorate::recipes::lock::Upgraded;
use quorate::recipes::store::embedded::Embedded;

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let node = Node::builder().in_memory().start().await?;
    let client = Client::new(Embedded::new(node.clone()));
    let session = client.session().label("router").await?;
    let lock = client.rw_lock("routes");

    let first = lock.read(&session).await?;
    let second = lock.read(&session).await?;
    println!(
        "two readers, tokens {} and {}",
        first.token(),
        second.token()
    );
    anyhow::ensure!(lock.try_write(&session).await?.is_none());

    let first = match first.try_upgrade().await? {
        Upgraded::Read(reader) => reader,
        Upgraded::Write(_) => anyhow::bail!("a writer beside a reader"),
    };
    println!("not alone: still a reader");
    second.release().await?;

    let writer = match first.try_upgrade().await? {
        Upgraded::Write(writer) => writer,
        Upgraded::Read(_) => anyhow::bail!("alone, and not a writer"),
    };
    writer.put("routes/table", "v2").await?;
    println!("alone: a writer, token {}", writer.token());

    let reader = writer.downgrade().await?;
    let table = client.get("routes/table").await?;
    let table = table.map(|kv| kv.value).unwrap_or_default();
    println!(
        "a reader again; the table is {:?}",
        String::from_utf8_lossy(&table)
    );
    reader.release().await?;

    node.shutdown().await;
    Ok(())
}
