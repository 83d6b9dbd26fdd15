//! Broken reports of progress: those of who has lost the task, ends over ends, attempts that begin from nothing,
//! requests that come too late or stay, and views that are not what there is.

use std::time::Duration;

use quorate_recipes::keys::encode;
use quorate_recipes::progress::{JobView, Outcome};
use quorate_recipes::{Error, Result, Session, from_json};
use quorate_simulation::Player;
use quorate_simulation::scenarios::{Attempt, JOB, Progress, TASKS};
use serde_json::{Value, json};

use super::broken::{Broken, World};
use super::mutants::is_found;

/// A key of a task.
fn key(kind: &str, task: &str) -> String {
    format!("quorate/progress/{JOB}/{kind}/{}", encode(task))
}

/// An attempt that has written a checkpoint.
async fn begun(job: &Progress, player: &Player, session: &Session) -> Result<Attempt> {
    let task = TASKS[usize::try_from(player.below(4)).unwrap_or(0)];
    let begun = job.start(player, session, task, Duration::from_secs(9));
    let attempt = begun.await?.ok_or(Error::Closed)?;
    job.report(player, &attempt, true).await?;
    Ok(attempt)
}

/// The report of a task, changed.
async fn changed(player: &Player, task: &str, change: impl FnOnce(&mut Value)) -> Result<String> {
    let key = key("record", task);
    let found = player.client().get(&key).await?.ok_or(Error::Conflict)?;
    let mut report: Value = from_json(key.as_bytes(), &found.value)?;
    change(&mut report);
    Ok(report.to_string())
}

/// A report is written whoever has the task.
struct NoOwnerCompare;

impl Broken for NoOwnerCompare {
    type Whole = Progress;

    const NAME: &'static str = "a report that does not ask who has the task";

    async fn step(job: &Progress, player: &Player, session: &Session) -> Result<()> {
        let attempt = begun(job, player, session).await?;
        let task = attempt.task();
        let more = |report: &mut Value| {
            report["done"] = json!(report["done"].as_u64().unwrap_or(0) + 1);
        };
        let report = changed(player, task, more).await?;
        let client = player.client();
        client.store().lease_revoke(session.lease()).await?;
        client.put(key("record", task), report).await.map(drop)
    }
}

/// A task is ended whether or not it has ended.
struct NoStateCompare;

impl Broken for NoStateCompare {
    type Whole = Progress;

    const NAME: &'static str = "an end that does not ask for the state";

    async fn step(job: &Progress, player: &Player, session: &Session) -> Result<()> {
        let attempt = begun(job, player, session).await?;
        let task = attempt.task();
        let done = changed(player, task, |report| report["state"] = json!("done")).await?;
        let failed = Outcome::Failed(String::new());
        job.finish(player, attempt, failed).await?;
        player
            .client()
            .put(key("record", task), done)
            .await
            .map(drop)
    }
}

/// An attempt begins without what the one before has left.
struct FromNothing;

impl Broken for FromNothing {
    type Whole = Progress;

    const NAME: &'static str = "an attempt without the checkpoint of the one before";

    async fn step(job: &Progress, player: &Player, session: &Session) -> Result<()> {
        let attempt = begun(job, player, session).await?;
        let task = attempt.task();
        let failed = Outcome::Failed(String::new());
        job.finish(player, attempt, failed).await?;
        let next = |report: &mut Value| {
            report["attempt"] = json!(report["attempt"].as_u64().unwrap_or(0) + 1);
            report["state"] = json!("running");
            report["checkpoint"] = Value::Null;
        };
        let next = changed(player, task, next).await?;
        let client = player.client();
        let owner = client.txn().put_leased(key("owner", task), "", session);
        owner.commit().await?;
        client.put(key("record", task), next).await.map(drop)
    }
}

/// A task is asked to end that has ended since somebody looked.
struct AskedLate;

impl Broken for AskedLate {
    type Whole = Progress;

    const NAME: &'static str = "a request to end that does not ask whether it has";

    async fn step(job: &Progress, player: &Player, session: &Session) -> Result<()> {
        let attempt = begun(job, player, session).await?;
        let task = attempt.task();
        job.finish(player, attempt, Outcome::Done).await?;
        player.client().put(key("cancel", task), "").await.map(drop)
    }
}

/// An end leaves the request there, for whoever begins the task again.
struct RequestStays;

impl Broken for RequestStays {
    type Whole = Progress;

    const NAME: &'static str = "an end that leaves the request to end";

    async fn step(job: &Progress, player: &Player, session: &Session) -> Result<()> {
        let attempt = begun(job, player, session).await?;
        let task = attempt.task();
        job.cancel(player, task).await?;
        let done = changed(player, task, |report| report["state"] = json!("done")).await?;
        let txn = player.client().txn().put(key("record", task), done);
        txn.delete(key("owner", task)).commit().await?;
        Ok(())
    }
}

/// An end is told that is not written.
struct OnlyTold;

impl Broken for OnlyTold {
    type Whole = Progress;

    const NAME: &'static str = "an end that is told before it is written";

    async fn step(job: &Progress, player: &Player, session: &Session) -> Result<()> {
        let attempt = begun(job, player, session).await?;
        job.is_told_done(&attempt);
        Ok(())
    }
}

/// Views that go back.
struct Back;

impl Broken for Back {
    type Whole = Progress;

    const NAME: &'static str = "views that go back";

    async fn attend(job: &Progress, player: &Player) {
        let mut first: Option<JobView> = None;
        let back = |view: &mut JobView| {
            let first = first.get_or_insert_with(|| view.clone());
            if player.one_in(20) {
                *view = first.clone();
            }
        };
        job.observe(player, back).await;
    }
}

/// Views that show tasks as they were before.
struct Torn;

impl Broken for Torn {
    type Whole = Progress;

    const NAME: &'static str = "views with the revision of others";

    async fn attend(job: &Progress, player: &Player) {
        let mut before: Option<JobView> = None;
        let late = |view: &mut JobView| {
            let now = view.clone();
            if let Some(before) = before.replace(now) {
                view.tasks = before.tasks;
            }
        };
        job.observe(player, late).await;
    }
}

#[test]
fn a_report_of_who_has_lost_the_task_is_found() {
    is_found::<World<NoOwnerCompare>>("without its owner key");
}

#[test]
fn an_end_over_an_end_is_found() {
    is_found::<World<NoStateCompare>>("after its end");
}

#[test]
fn an_attempt_from_nothing_is_found() {
    is_found::<World<FromNothing>>("does not go on from");
}

#[test]
fn a_late_request_to_end_is_found() {
    is_found::<World<AskedLate>>("is asked to end, and has");
}

#[test]
fn a_request_that_outlives_the_end_is_found() {
    is_found::<World<RequestStays>>("has ended, and is asked to");
}

#[test]
fn an_end_that_is_only_told_is_found() {
    is_found::<World<OnlyTold>>("told done");
}

#[test]
fn a_view_of_progress_that_goes_back_is_found() {
    is_found::<World<Back>>("comes after view");
}

#[test]
fn a_view_of_another_revision_of_a_job_is_found() {
    is_found::<World<Torn>>(", and not {");
}
