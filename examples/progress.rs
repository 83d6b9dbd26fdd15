//! A job of four tasks and somebody who watches it: one worker is done, one dies and its successor goes on
//! from the checkpoint, one stands still, and one is asked to stop. On a node inside this process.
//!
//! Run with `cargo run --example progress`.

#![allow(clippy::print_stdout, reason = "an example shows what happens")]

use std::time::Duration;

use quorate::core::node::Node;
use quorate::recipes::progress::{JobView, Outcome, TaskState};
use quorate::recipes::store::embedded::Embedded;
use quorate::recipes::{Client, Error, Session};

const FILES: u64 = 200;

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let node = Node::builder().in_memory().start().await?;
    let client = Client::new(Embedded::new(node.clone()));
    let monitor = client.monitor("import");
    let mut monitor = monitor.stall_after(Duration::from_millis(900)).await?;
    let (a, b) = (client.session().await?, client.session().await?);
    let idle = a.reporter("import/us/idle").total(FILES).start().await?;
    let work = async {
        let dies_halfway = async {
            part(&b, "import/eu/b", FILES / 2).await?;
            part(&a, "import/eu/b", FILES).await
        };
        let long = part(&a, "import/us/long", u64::MAX);
        tokio::try_join!(part(&a, "import/eu/a", FILES), dies_halfway, long)
    };
    let watch = async {
        loop {
            let view = monitor.changed().await?;
            print(&view);
            if view.below("eu").is_done() && view.count(TaskState::Stalled) == 1 {
                client.cancel_task("import/us/long").await?;
            }
            if view.count(TaskState::Cancelled) == 1 {
                return Ok::<_, Error>(());
            }
        }
    };
    let both = async { tokio::try_join!(work, watch) };
    tokio::time::timeout(Duration::from_secs(30), both).await??;
    let failed = Outcome::Failed("nothing to read".to_owned());
    idle.finish(failed).await?;
    let failed = monitor.wait_for(|job| job.count(TaskState::Failed) == 1);
    print(&*failed.await?);
    node.shutdown().await;
    Ok(())
}

/// Works on a task from its last checkpoint up to file `stop`; stopping halfway is dying.
async fn part(session: &Session, task: &str, stop: u64) -> Result<(), Error> {
    let reporter = session.reporter(task).total(FILES).unit("files");
    let reporter = reporter.wait().start().await?;
    let checkpoint = reporter.previous().map(|before| before.checkpoint::<u64>());
    let first = checkpoint.transpose()?.flatten().unwrap_or(0);
    reporter.skip(first); // done by the attempt before: not counted as speed
    reporter.stage(format!("from file {first}"));
    for file in first..stop {
        if reporter.is_cancelled() {
            return reporter.finish(Outcome::Cancelled).await;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
        reporter.inc(1); // never waits; goes out twice a second at most
        reporter.checkpoint(&(file + 1))?;
    }
    if stop == FILES {
        return reporter.finish(Outcome::Done).await;
    }
    reporter.flush().await?;
    let store = session.client().store();
    Ok(store.lease_revoke(session.lease()).await?)
}

fn print(view: &JobView) {
    let tasks = view.tasks.iter().map(|task| {
        let (name, state, done) = (&task.name, task.state, task.done);
        format!("{name} {state:?} {done} #{}", task.attempt)
    });
    println!("{}", tasks.collect::<Vec<_>>().join(" | "));
    for (node, overall) in view.nodes() {
        let left = overall.eta.map(|eta| eta.likely);
        println!("  {node} = {:.2?}, left {left:.1?}", overall.fraction);
    }
}
