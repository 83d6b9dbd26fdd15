//! A job of three tasks and somebody who watches it: one worker is done, one dies and its successor
//! goes on from the checkpoint, one stands still. On a node inside this process.
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
    let stall_after = Duration::from_millis(900);
    let mut monitor = client.monitor("import").stall_after(stall_after).await?;

    let (a, b, c) = (
        client.session().await?,
        client.session().await?,
        client.session().await?,
    );
    let idle = c.reporter("import/part-c").total(FILES).start().await?;
    let work = async {
        tokio::try_join!(part(&a, "import/part-a", FILES), async {
            // Half-way, this worker's lease goes; another one takes over.
            part(&b, "import/part-b", FILES / 2).await?;
            part(&a, "import/part-b", FILES).await
        })
    };
    let show = async {
        loop {
            let view = monitor.changed().await?;
            print(&view);
            let overall = monitor.overall();
            let left = overall.eta.map(|eta| eta.likely.as_secs_f64());
            println!(
                "  = {:.0?} %, left {left:.1?} s",
                overall.fraction.map(|f| f * 100.0)
            );
            let done = view.count(TaskState::Done);
            if done == 2 && view.count(TaskState::Stalled) == 1 {
                return Ok::<_, Error>(());
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(30), async {
        tokio::try_join!(work, show)
    })
    .await??;
    idle.finish(Outcome::Failed("nothing to read".to_owned()))
        .await?;
    let failed = monitor
        .wait_for(|job| job.count(TaskState::Failed) == 1)
        .await?;
    print(&failed);
    node.shutdown().await;
    Ok(())
}

/// Works on a task from its last checkpoint up to file `stop`; stopping early is dying.
async fn part(session: &Session, task: &str, stop: u64) -> Result<(), Error> {
    let reporter = session
        .reporter(task)
        .total(FILES)
        .unit("files")
        .wait()
        .start()
        .await?;
    let checkpoint = reporter.previous().map(|before| before.checkpoint::<u64>());
    let first = checkpoint.transpose()?.flatten().unwrap_or(0);
    reporter.skip(first); // done by the attempt before: not counted as speed
    reporter.stage(format!("from file {first}"));
    for file in first..stop {
        tokio::time::sleep(Duration::from_millis(10)).await;
        reporter.inc(1); // never waits; goes out twice a second at most
        reporter.checkpoint(&(file + 1))?;
    }
    if stop == FILES {
        return reporter.finish(Outcome::Done).await;
    }
    reporter.flush().await?;
    session
        .client()
        .store()
        .lease_revoke(session.lease())
        .await?;
    println!("  {task}: its worker died");
    Ok(())
}

fn print(view: &JobView) {
    let line = |task: &quorate::recipes::progress::TaskView| {
        format!(
            "{} {:?} {}/{FILES} #{}",
            task.name, task.state, task.done, task.attempt
        )
    };
    println!(
        "{}",
        view.tasks.iter().map(line).collect::<Vec<_>>().join(" | ")
    );
}
