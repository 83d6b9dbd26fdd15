//! One worker of the demo: registers, stands for primary, claims batches under locks, hashes them,
//! reports progress. It holds everything under one session; when that is lost, it begins anew with
//! another, and the store refuses what the old one still tries to write.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::bail;
use bytes::Bytes;
use clap::Args;
use quorate::core::clock;

use quorate::recipes::lock::ExclusiveGuard;
use quorate::recipes::progress::{Outcome, Reporter, TaskName};
use quorate::recipes::registry::{Discovery, Instance};
use quorate::recipes::store::Remote;
use quorate::recipes::watch::Mirror;
use quorate::recipes::{Client, Compare, Error, KeyRange, Session};
use tracing::{info, warn};

use super::write::until_written;
use super::{files, keys, primary};
use crate::{logging, signals};

/// How long a worker's things outlive it: also how long the others wait before they take over.
const SESSION_TTL: Duration = Duration::from_secs(4);
const SESSION_PAUSE: Duration = Duration::from_millis(200);

/// Flags of `quorate demo-worker`.
#[derive(Debug, Args)]
pub(crate) struct WorkerArgs {
    #[arg(long, value_delimiter = ',', required = true)]
    endpoints: Vec<String>,
    #[arg(long)]
    name: String,
    #[arg(long)]
    dir: PathBuf,
    /// The least time a file takes, in microseconds, so that people can watch.
    #[arg(long)]
    micros_per_file: u64,
}

/// Works until the manifest is complete, or the demo that started this is gone.
///
/// # Errors
/// When the store refuses for good, or the demo is gone.
pub(crate) async fn work(args: WorkerArgs) -> anyhow::Result<ExitCode> {
    logging::start("info")?;
    tokio::select! {
        done = lives(args) => done,
        () = signals::stdin_closed() => bail!("the demo that started this worker is gone"),
    }
}

/// One session after another, until the manifest is complete.
async fn lives(args: WorkerArgs) -> anyhow::Result<ExitCode> {
    let store = Remote::new(args.endpoints.clone())?;
    let client = Client::builder(store).label(args.name.clone()).build();
    loop {
        let session = match client.session().ttl(SESSION_TTL).await {
            Ok(session) => session,
            Err(error) => {
                warn!(%error, "no session yet");
                tokio::time::sleep(SESSION_PAUSE).await;
                continue;
            }
        };
        match one_life(&client, &session, &args).await {
            Ok(()) => {
                session.close().await?;
                return Ok(ExitCode::SUCCESS);
            }
            Err(error) => warn!(%error, "starting over with a new session"),
        }
        tokio::time::sleep(SESSION_PAUSE).await;
    }
}

/// All that is done under one session.
async fn one_life(client: &Client, session: &Session, args: &WorkerArgs) -> Result<(), Error> {
    // Replaces what an earlier life of this worker left, which is there until its lease ends.
    let instance = Instance::builder(keys::SERVICE)
        .id(&args.name)
        .address(&args.name)
        .replace();
    let registration = session.register(instance.build()).await?;
    let reporter = session
        .reporter(TaskName::new(keys::JOB, &args.name))
        .unit("files")
        .wait()
        .start()
        .await?;
    let colleagues = client.discover(keys::SERVICE).await?;
    {
        let worker = Worker {
            client,
            session,
            args,
            reporter: &reporter,
            colleagues,
        };
        let primary = primary::stand(client, session, &args.name, &args.dir);
        // The primary's duties end with the manifest; a worker's when there is no batch left. Both
        // futures are dropped together when either fails: guards and contenders go with them.
        tokio::try_join!(primary, worker.run())?;
    }
    reporter.finish(Outcome::Done).await?;
    registration.deregister().await
}

/// What a worker's loop needs.
struct Worker<'a> {
    client: &'a Client,
    session: &'a Session,
    args: &'a WorkerArgs,
    reporter: &'a Reporter,
    /// All workers that live, this one among them.
    colleagues: Discovery<()>,
}

impl Worker<'_> {
    async fn run(&self) -> Result<(), Error> {
        let plan = primary::wait_for_plan(self.client).await?;
        let mut results = self.client.mirror(KeyRange::prefix(keys::RESULTS)).await?;
        // Workers begin at different places, so that they rarely want the same batch.
        let mut next = self.args.name.bytes().map(usize::from).sum::<usize>() * plan.batches / 7;
        while results.view().entries.len() < plan.batches {
            match self.claim(plan.batches, next, &results).await? {
                Some((batch, guard)) => {
                    let left = plan.batches.saturating_sub(results.view().entries.len());
                    self.expect(share(&plan, left, self.colleagues.view().instances.len()));
                    self.process(batch, &guard).await?;
                    guard.release().await?;
                    next = batch + 1;
                }
                // All that is left is in somebody's hands: wait until a result or a lock changes.
                None => {
                    self.expect(0);
                    self.wait_for_change(&mut results).await?;
                }
            }
        }
        self.expect(0);
        Ok(())
    }

    /// Reports that this worker will do so many more files, as far as it knows now.
    fn expect(&self, files: u64) {
        self.reporter.set_total(self.reporter.done() + files);
    }

    async fn claim(
        &self,
        batches: usize,
        first: usize,
        results: &Mirror,
    ) -> Result<Option<(usize, ExclusiveGuard)>, Error> {
        for batch in (0..batches).map(|i| (first + i) % batches) {
            if results
                .view()
                .entries
                .contains_key(keys::numbered(keys::RESULTS, batch).as_bytes())
            {
                continue;
            }
            let lock = self.client.exclusive(keys::batch_lock(batch));
            if let Some(guard) = lock.try_lock(self.session).await? {
                info!(batch, token = %guard.token(), "claimed");
                return Ok(Some((batch, guard)));
            }
        }
        Ok(None)
    }

    /// Hashes a batch and writes its result, unless the lock was lost on the way.
    async fn process(&self, batch: usize, guard: &ExclusiveGuard) -> Result<(), Error> {
        let result = keys::numbered(keys::RESULTS, batch);
        if self.client.get(result.as_str()).await?.is_some() {
            return Ok(());
        }
        let paths = self
            .client
            .get(keys::numbered(keys::BATCHES, batch))
            .await?;
        let paths = files::decode_paths(&paths.map(|pair| pair.value).unwrap_or_default());
        let mut lines = Vec::new();
        for path in paths {
            let began = clock::now();
            lines.extend(hash(self.args.dir.clone(), path).await);
            self.reporter.inc(1);
            let least = Duration::from_micros(self.args.micros_per_file);
            tokio::time::sleep_until(began + least).await;
        }
        let lines = Bytes::from(lines);
        until_written(|| {
            guard
                .txn()
                .when(Compare::absent(result.as_str()))
                .put(result.as_str(), lines.clone())
        })
        .await
    }

    async fn wait_for_change(&self, results: &mut Mirror) -> Result<(), Error> {
        const LOCKS_ARE_LOOKED_AT_EVERY: Duration = Duration::from_millis(250);
        tokio::select! {
            changed = results.changed() => changed.map(drop),
            () = tokio::time::sleep(LOCKS_ARE_LOOKED_AT_EVERY) => Ok(()),
        }
    }
}

/// How many files one of `workers` still has before it that just claimed one of the `left` batches
/// without a result: its fair part of what they hold on average, and no less than its own batch.
fn share(plan: &keys::Plan, left: usize, workers: usize) -> u64 {
    let batches = plan.batches.max(1);
    let fair = (left * plan.files).div_ceil(batches * workers.max(1));
    fair.max(plan.files / batches) as u64
}

/// One line of the manifest, made on a thread where waiting for the disk is allowed.
async fn hash(root: PathBuf, path: PathBuf) -> Vec<u8> {
    let work = move || files::manifest_line(Path::new(&root), &path);
    tokio::task::spawn_blocking(work)
        .await
        .expect("hashing a file does not panic")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_share_is_a_fair_part_of_what_is_left_and_at_least_one_batch() {
        let plan = keys::Plan {
            batches: 60,
            files: 600,
        };
        assert_eq!(share(&plan, 60, 4), 150);
        assert_eq!(share(&plan, 60, 3), 200);
        assert_eq!(share(&plan, 1, 4), 10);
        // Before the own registration is seen.
        assert_eq!(share(&plan, 60, 0), 600);
    }
}
