//! Three processes could run a job that is due each second; each time one of them does. On a node inside this
//! process.
//!
//! Run with `cargo run --example cron`.

#![allow(
    clippy::print_stdout,
    clippy::disallowed_methods,
    reason = "an example shows what happens, and starts tasks of its own"
)]

use std::time::Duration;

use quorate::core::node::Node;
use quorate::recipes::cron::{Outcome, Schedule};
use quorate::recipes::store::embedded::Embedded;
use quorate::recipes::{Client, KeyRange, TxnError};

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let node = Node::builder().in_memory().start().await?;
    let client = Client::new(Embedded::new(node.clone()));
    let schedule: Schedule = "* * * * * *".parse()?;
    let nightly = "0 3 * * *".parse::<Schedule>()?.in_zone("Europe/Berlin")?;
    println!("a job of {nightly} would run at three in the morning, there");

    let mut runners = tokio::task::JoinSet::new();
    for name in ["one", "two", "three"] {
        let (session, client) = (client.session().label(name).await?, client.clone());
        let job = client.cron("report", schedule.clone());
        runners.spawn(async move {
            let ended = job.run(&session, |run| async move {
                println!("  {name} runs {}", run.slot());
                // Refused by the store once this run is over.
                let report = run.txn().put(format!("reports/{}", run.slot()), name);
                report.commit().await.map(drop)
            });
            ended.await.map_err(TxnError::from)
        });
    }
    let reports = async || {
        let (_, reports) = client.list(KeyRange::prefix("reports/")).await?;
        anyhow::Ok(reports)
    };
    while reports().await?.len() < 3 {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    runners.shutdown().await;
    let reports = reports().await?;
    println!("{} reports", reports.len());
    // Each was written once: by the one who started that time.
    assert!(reports.iter().all(|report| report.version == 1));

    let status = client.cron("report", schedule).status().await?;
    let run = status.run.expect("it ran");
    println!("the last: {} by {}, {:?}", run.slot, run.by, run.outcome);
    assert_eq!(status.last, Some(run.slot));
    assert!(!matches!(run.outcome, Outcome::Failed(_)));
    node.shutdown().await;
    Ok(())
}
