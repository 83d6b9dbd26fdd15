//! Asking on and on: the task of one target, and what its owner sees.

use std::fmt;

use tokio::sync::watch;

use super::Probe;
use super::check::Answer;
use super::judge::{Judge, ProbeReport, ProbeState};
use crate::client::Client;
use crate::clock;
use crate::error::{Error, Result};
use crate::tasks::Tasks;

/// A probe at work. No check begins before the one before has ended. Dropping it stops it, and the check that
/// is under way.
#[must_use = "a dropped prober asks nothing"]
pub struct Prober {
    report: watch::Receiver<ProbeReport>,
    tasks: Tasks,
}

impl Prober {
    pub(super) fn start(client: &Client, probe: Probe) -> Self {
        let judge = Judge::new(probe.rule.clone(), client.now());
        let (publish, report) = watch::channel(judge.report().clone());
        let tasks = Tasks::current();
        tasks.spawn("probe", run(client.clone(), probe, judge, publish));
        Self { report, tasks }
    }

    /// What it knows now.
    #[must_use]
    pub fn report(&self) -> ProbeReport {
        self.report.borrow().clone()
    }

    /// What that comes to.
    #[must_use]
    pub fn state(&self) -> ProbeState {
        self.report.borrow().state
    }

    /// Waits for a state that has not been waited for before, and returns the report then.
    ///
    /// # Errors
    /// [`Error::Closed`] when the runtime is shutting down.
    ///
    /// # Cancel safety
    /// No state is missed when the future is dropped; intermediate ones may be skipped.
    pub async fn changed(&mut self) -> Result<ProbeReport> {
        let changed = self.report.changed().await;
        changed.map_err(|_| Error::Closed)?;
        Ok(self.report.borrow_and_update().clone())
    }

    /// Waits until the state is this one, which it may be now, and returns the report then.
    ///
    /// # Errors
    /// As [`Prober::changed`].
    ///
    /// # Cancel safety
    /// As [`Prober::changed`].
    pub async fn wait_for(&mut self, state: ProbeState) -> Result<ProbeReport> {
        let found = self.report.wait_for(|report| report.state == state).await;
        found
            .map(|report| report.clone())
            .map_err(|_| Error::Closed)
    }

    /// Starts a task that ends with the prober.
    pub(crate) fn spawn(
        &self,
        name: &'static str,
        task: impl Future<Output = ()> + Send + 'static,
    ) {
        self.tasks.spawn(name, task);
    }

    /// The report, which counts as changed with each new state. It ends with the prober.
    #[must_use]
    pub fn watch(&self) -> watch::Receiver<ProbeReport> {
        self.report.clone()
    }
}

impl Drop for Prober {
    fn drop(&mut self) {
        self.tasks.cancel();
    }
}

impl fmt::Debug for Prober {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Prober").field(&self.report()).finish()
    }
}

async fn run(client: Client, probe: Probe, mut judge: Judge, publish: watch::Sender<ProbeReport>) {
    loop {
        let started = client.now();
        let answer = ask(&client, &probe).await;
        judge.note(answer, client.now());
        publish.send_if_modified(|report| {
            let before = std::mem::replace(report, judge.report().clone());
            if before.state != report.state {
                tracing::info!(check = ?probe.check, state = ?report.state, reason = ?report.reason, "probed");
            }
            before.state != report.state
        });
        let every = probe.rule.every;
        // Nine to eleven tenths of the interval: the jitter is between a half and the whole.
        let pause = every
            .mul_f64(0.7)
            .saturating_add(client.jitter(every.mul_f64(0.4)));
        let next = clock::after(started, pause);
        client.clock().sleep_until(next).await;
    }
}

/// One check, at most as long as it may take.
async fn ask(client: &Client, probe: &Probe) -> Answer {
    let limit = probe.rule.timeout;
    let answer = client.before(client.deadline(limit), probe.check.ask());
    let late = || Err(format!("no answer within {limit:?}"));
    answer.await.unwrap_or_else(late)
}
