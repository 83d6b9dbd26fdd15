//! A report that four workers need and one computes, on a node inside this process: the first one dies
//! over it, the next computes, and all get the same.
//!
//! Run with `cargo run --example once`.

#![allow(clippy::print_stdout, reason = "an example shows what happens")]

use std::sync::Arc;
use std::time::Duration;

use quorate::core::node::Node;
use quorate::recipes::once::OnceError;
use quorate::recipes::store::embedded::Embedded;
use quorate::recipes::{Client, Error};
use serde::{Deserialize, Serialize};

#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Report {
    by: String,
    total: u64,
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let node = Node::builder().in_memory().start().await?;
    let client = Client::new(Embedded::new(node.clone()));
    let report = client.once::<Report>("daily/2026-11-23");

    // A worker that begins, and is gone before it has a result.
    let session = client.session().label("anna").await?;
    let gone = report.get_or_try_init(&session, || async {
        let at_it = report.computing().await?;
        println!("anna computes: {}", at_it.is_some());
        std::future::pending::<Result<Report, Error>>().await
    });
    if tokio::time::timeout(Duration::from_millis(200), gone)
        .await
        .is_ok()
    {
        anyhow::bail!("anna was not to come to an end");
    }

    // The others: one of them computes, and which one is not known.
    let workers = ["ben", "carl", "dora"].map(|name| worker(&client, name));
    let reports = futures::future::try_join_all(workers).await?;
    println!("ben, carl and dora have {:?}", reports[0]);
    anyhow::ensure!(reports.iter().all(|one| *one == reports[0]), "they differ");

    // Whoever only reads needs no session. Taken back, it is computed anew.
    let published = report.published().await?;
    let published = published.ok_or_else(|| anyhow::anyhow!("it is published"))?;
    println!(
        "{} bytes, since revision {}",
        published.bytes.unwrap_or_default(),
        published.revision
    );
    report.invalidate(published.revision).await?;
    anyhow::ensure!(report.get().await?.is_none(), "it was taken back");
    println!("after that, {:?}", worker(&client, "emil").await?);

    node.shutdown().await;
    Ok(())
}

async fn worker(client: &Client, name: &str) -> Result<Arc<Report>, OnceError<Error>> {
    let session = client.session().label(name).await?;
    let report = client.once::<Report>("daily/2026-11-23").with_info(name);
    report
        .get_or_try_init(&session, || async {
            println!("{name} computes");
            let total = (1..=1000).sum();
            let by = name.to_owned();
            Ok(Report { by, total })
        })
        .await
}
