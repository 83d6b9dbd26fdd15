//! `quorate demo`: a cluster of three member processes and some worker processes make a manifest of
//! the files below a folder; a worker and the leading member are killed meanwhile; the result is
//! compared with what one plain pass over the files gives.

mod changes;
mod faults;
mod files;
mod keys;
mod members;
mod patience;
mod primary;
mod screen;
mod worker;
mod workers;
mod write;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use clap::Args;
use quorate::core::clock;
use quorate::recipes::progress::{JobView, Monitor};
use quorate::recipes::registry::Discovery;
use quorate::recipes::store::Remote;
use quorate::recipes::{Client, KeyRange};

pub(crate) use worker::{WorkerArgs, work};

use changes::Before;
use faults::Faults;
use members::Members;
use patience::Patience;
use screen::{Screen, plain};
use workers::Workers;

use crate::signals;

const SCREEN_EVERY: Duration = Duration::from_millis(100);
/// The exit code of a demo that was asked to stop: what shells give for SIGINT.
const INTERRUPTED: u8 = 130;
const WORKERS_END_WITHIN: Duration = Duration::from_secs(20);
/// How long the last reports of workers that ended may take to the screen.
const LAST_REPORTS_WITHIN: Duration = Duration::from_secs(1);

/// Flags of `quorate demo`.
#[derive(Debug, Args)]
pub(crate) struct DemoArgs {
    /// The folder whose files are hashed [default: the current one]
    dir: Option<PathBuf>,

    /// How many workers
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u16).range(2..=32))]
    workers: u16,

    /// Kill nothing
    #[arg(long)]
    calm: bool,

    /// Slow the workers down so that the work takes about this long, in seconds: a few files alone
    /// would be done before there is anything to see or to kill
    #[arg(long, value_name = "SECONDS", default_value_t = 12)]
    pace: u64,

    /// Keep the members' data and everybody's logs, and say where
    #[arg(long)]
    keep: bool,
}

/// Runs the demo.
///
/// # Errors
/// What kept the work from being finished.
pub(crate) async fn run(args: DemoArgs) -> anyhow::Result<ExitCode> {
    let root = args.dir.clone().unwrap_or_else(|| ".".into());
    let root = root
        .canonicalize()
        .with_context(|| format!("cannot use the folder {}", root.display()))?;
    let (listing, before) = {
        let root = root.clone();
        let look = move || {
            let listing = files::list(&root)?;
            let before = Before::look(&root, &listing.files);
            anyhow::Ok((listing, before))
        };
        tokio::task::spawn_blocking(look).await??
    };
    ensure!(
        !listing.files.is_empty(),
        "no files below {}",
        root.display()
    );
    let folder = tempfile::Builder::new().prefix("quorate-demo-").tempdir()?;
    // So that a demo of the folder for temporary files does not hash the demo itself.
    files::tag_as_cache(folder.path())?;

    let outcome = tokio::select! {
        outcome = attempt(&args, &root, &listing, &before, folder.path()) => outcome,
        stopped = signals::asked_to_stop() => stopped.map(|()| {
            plain("stopped before the end; the members and workers are killed");
            End::Stopped
        }),
    };
    let wanted = args.keep || matches!(outcome, Err(_) | Ok(End::Differs));
    if wanted && files::holds_more_than_its_tag(folder.path()).unwrap_or(true) {
        let kept = folder.keep();
        plain(&format!("data and logs are in {}", kept.display()));
    }
    outcome.map(|end| match end {
        End::Equal => ExitCode::SUCCESS,
        End::Differs => ExitCode::FAILURE,
        End::Stopped => ExitCode::from(INTERRUPTED),
    })
}

/// How the demo ends when nothing goes wrong with it.
enum End {
    Equal,
    Differs,
    Stopped,
}

async fn attempt(
    args: &DemoArgs,
    root: &Path,
    listing: &files::Listing,
    before: &Before,
    folder: &Path,
) -> anyhow::Result<End> {
    let count = listing.files.len();
    plain(&format!("hashing {count} files below {}", root.display()));
    for cache in &listing.caches {
        plain(&format!(
            "  left out as a cache (CACHEDIR.TAG): {}",
            cache.display()
        ));
    }
    for (folder, kind) in &listing.unreadable {
        plain(&format!(
            "  cannot be read ({kind:?}): {}",
            folder.display()
        ));
    }

    let mut demo = Demo::start(args, root, folder, count).await?;
    let ended = match demo.until_complete().await {
        Ok(()) => demo.workers_end().await,
        error => error,
    };
    demo.screen.finish(&demo.monitor.snapshot());
    ended?;

    let manifest = demo.manifest().await?;
    let took = demo.began.elapsed();
    demo.members.stop().await;

    let plain_root = root.to_owned();
    let (expected, files) =
        tokio::task::spawn_blocking(move || files::plain_manifest(&plain_root)).await??;
    plain(&format!(
        "manifest of {files} files by {} workers in {:.1} s; comparing with one plain pass",
        args.workers,
        took.as_secs_f64()
    ));
    if manifest == expected {
        plain("the manifest is EQUAL to that of one plain pass");
        return Ok(End::Equal);
    }
    plain("the manifest DIFFERS from that of one plain pass:");
    for line in before.differences(&manifest, &expected) {
        plain(&line);
    }
    Ok(End::Differs)
}

/// Everything that runs.
struct Demo {
    began: clock::Instant,
    client: Client,
    members: Members,
    workers: Workers,
    monitor: Monitor,
    discovery: Discovery<()>,
    screen: Screen,
    faults: Faults,
    patience: Patience,
}

impl Demo {
    async fn start(
        args: &DemoArgs,
        root: &Path,
        folder: &Path,
        files: usize,
    ) -> anyhow::Result<Self> {
        let began = clock::now();
        let screen = Screen::new(files as u64);
        let mut members = Members::start(folder)?;
        let (leader, term) = members.leader(0).await?;
        screen.say(&format!(
            "3 members up, {} leads in term {term}",
            members.name(leader)
        ));
        let client = Client::builder(Remote::new(members.endpoints())?)
            .label("manager")
            .build();
        let monitor = client.monitor(keys::JOB).await?;
        let discovery = client.discover::<()>(keys::SERVICE).await?;
        let count = usize::from(args.workers);
        let per_file = Duration::from_secs(args.pace).mul_f64(count as f64 / files as f64);
        let workers = Workers::start(count, &members.endpoints(), root, folder, per_file)?;
        let faults = if args.calm {
            Faults::none()
        } else {
            Faults::planned(&client, files as u64)
        };
        Ok(Self {
            began,
            client,
            members,
            workers,
            monitor,
            discovery,
            screen,
            faults,
            patience: Patience::new(per_file, clock::now()),
        })
    }

    /// Shows the work, and disturbs it, until the manifest is complete. There is no limit on the
    /// whole, which would make large folders fail, but one on standing still.
    async fn until_complete(&mut self) -> anyhow::Result<()> {
        let limit = self.patience.limit();
        let complete = self
            .client
            .mirror(KeyRange::one(keys::COMPLETE))
            .into_future();
        let complete = tokio::time::timeout(limit, complete).await;
        let complete =
            complete.with_context(|| format!("the members do not answer within {limit:?}"))??;
        let mut seen = std::collections::BTreeSet::new();
        loop {
            for instance in &self.discovery.view().instances {
                if seen.insert(instance.id.clone()) {
                    self.screen
                        .say(&format!("worker {} registered", instance.id));
                }
            }
            let job = self.monitor.snapshot();
            self.screen.show(&job);
            if !complete.view().entries.is_empty() {
                self.faults.end(&self.screen);
                return Ok(());
            }
            self.faults
                .step(&job, &mut self.members, &mut self.workers, &self.screen)
                .await?;
            self.workers.check()?;
            self.patience.check(&job, clock::now())?;
            tokio::time::sleep(SCREEN_EVERY).await;
        }
    }

    /// Waits until all workers have ended, and their last reports are in.
    async fn workers_end(&mut self) -> anyhow::Result<()> {
        self.workers.finish(WORKERS_END_WITHIN).await?;
        let asked = clock::now();
        let works = |job: &JobView| job.tasks.iter().any(|task| task.state.is_active());
        while works(&self.monitor.snapshot()) && asked.elapsed() < LAST_REPORTS_WITHIN {
            tokio::time::sleep(SCREEN_EVERY).await;
        }
        Ok(())
    }

    /// The manifest that the primary wrote.
    async fn manifest(&self) -> anyhow::Result<Vec<u8>> {
        let (_, chunks) = self.client.list(KeyRange::prefix(keys::MANIFEST)).await?;
        Ok(chunks
            .iter()
            .flat_map(|pair| pair.value.iter().copied())
            .collect())
    }
}
