//! A report that four workers need and one computes, on a node inside this process: the first one dies
//! over it, the next computes and tells how far it is, and all get the same; then it is replaced by a
//! newer one, and a failure is told to all.
//!
//! Run with `cargo run --example once`.

#![allow(clippy::print_stdout, reason = "an example shows what happens")]

use std::sync::Arc;
use std::time::Duration;

use quorate::core::node::Node;
use quorate::recipes::once::OnceError;
use quorate::recipes::progress::{Outcome, TaskState};
use quorate::recipes::store::embedded::Embedded;
use quorate::recipes::{Client, Error, OnceCell, Revision, Session};
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

    // The others: one of them computes, and which one is not known. Somebody watches how far it is.
    let workers = ["ben", "carl", "dora"].map(|name| worker(&client, name));
    let (reports, ()) = tokio::try_join!(futures::future::try_join_all(workers), watch(&client))?;
    println!("ben, carl and dora have {:?}", reports[0]);
    anyhow::ensure!(reports.iter().all(|one| *one == reports[0]), "they differ");

    // Whoever only reads needs no session. An old one is replaced, and read until it is.
    let (published, _) = report.changed(Revision(0)).await?;
    println!(
        "{} bytes, {:?} old",
        published.bytes.unwrap_or_default(),
        published.age().unwrap_or_default()
    );
    let (fresh, followed) = tokio::join!(
        refresh(&client, &report, published.revision),
        report.changed(published.revision)
    );
    anyhow::ensure!(fresh? == followed?.1, "they differ");

    // Taken back, it is computed anew; and if that fails, the others hear of it for a minute.
    let published = report.published().await?;
    let published = published.ok_or_else(|| anyhow::anyhow!("it is published"))?;
    report.invalidate(published.revision).await?;
    let careful = report.clone().cache_failures(Duration::from_secs(60));
    let session = client.session().label("fritz").await?;
    for _ in 0..2 {
        let failed = careful.get_or_try_init(&session, || async { Err("no data") });
        match failed.await {
            Err(OnceError::Init(error)) => println!("fritz has failed: {error}"),
            Err(OnceError::Cached(failure)) => println!("nobody tries again: {failure}"),
            other => anyhow::bail!("it was to fail: {other:?}"),
        }
    }
    careful.forget_failures().await?;
    println!("after that, {:?}", worker(&client, "gustav").await?);

    node.shutdown().await;
    Ok(())
}

async fn worker(client: &Client, name: &str) -> Result<Arc<Report>, OnceError<Error>> {
    let session = client.session().label(name).await?;
    let report = client.once::<Report>("daily/2026-11-23").with_info(name);
    let init = || compute(&session, name);
    report.get_or_try_init(&session, init).await
}

async fn refresh(
    client: &Client,
    report: &OnceCell<Report>,
    revision: Revision,
) -> Result<Arc<Report>, OnceError<Error>> {
    let session = client.session().label("emil").await?;
    let init = || compute(&session, "emil");
    report.refresh(&session, revision, init).await
}

/// Computes, and tells how far it is.
async fn compute(session: &Session, name: &str) -> Result<Report, Error> {
    println!("{name} computes");
    let task = session.reporter("daily/2026-11-23").total(1000).wait();
    let task = task.start().await?;
    let mut total = 0;
    for number in 1..=1000 {
        total += number;
        task.inc(1);
        if number % 100 == 0 {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
    task.finish(Outcome::Done).await?;
    let by = name.to_owned();
    Ok(Report { by, total })
}

/// Watches a computation from elsewhere, until it is done.
async fn watch(client: &Client) -> Result<(), OnceError<Error>> {
    let mut monitor = client.monitor("daily").await?;
    loop {
        let view = monitor.changed().await?;
        for task in &view.tasks {
            println!("  {}: {:?}, {} of 1000", task.name, task.state, task.done);
        }
        if view.count(TaskState::Done) == 1 {
            return Ok(());
        }
    }
}
