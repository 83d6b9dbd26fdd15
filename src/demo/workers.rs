//! The demo's worker processes.

use std::fs::File;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use tokio::process::{Child, ChildStdin, Command};

/// The worker processes, killed when this is dropped.
#[derive(Debug)]
pub(crate) struct Workers {
    workers: Vec<(String, Option<Child>)>,
    /// Open as long as the demo lives: a worker ends when its standard input does.
    _lifelines: Vec<ChildStdin>,
}

impl Workers {
    /// Starts `count` workers on the files below `root`, each at most one file in `per_file`, with
    /// their logs in `folder`.
    ///
    /// # Errors
    /// When they cannot be started.
    pub(crate) fn start(
        count: usize,
        endpoints: &[String],
        root: &Path,
        folder: &Path,
        per_file: Duration,
    ) -> anyhow::Result<Self> {
        let program = std::env::current_exe().context("find this program")?;
        let mut workers = Vec::with_capacity(count);
        let mut lifelines = Vec::with_capacity(count);
        for i in 1..=count {
            let name = format!("w{i}");
            let log = File::create(folder.join(format!("{name}.log")))?;
            let mut endpoints = endpoints.to_vec();
            let first = i % endpoints.len();
            endpoints.rotate_left(first);
            let mut process = Command::new(&program)
                .arg("demo-worker")
                .args(["--endpoints", &endpoints.join(","), "--name", &name])
                .arg("--dir")
                .arg(root)
                .args(["--micros-per-file", &per_file.as_micros().to_string()])
                .stdin(Stdio::piped())
                .stdout(log.try_clone()?)
                .stderr(log)
                .kill_on_drop(true)
                .spawn()
                .with_context(|| format!("start worker {name}"))?;
            lifelines.extend(process.stdin.take());
            workers.push((name, Some(process)));
        }
        Ok(Self {
            workers,
            _lifelines: lifelines,
        })
    }

    /// SIGKILL for the worker of this name. Returns whether it ran.
    ///
    /// # Errors
    /// When it cannot be killed.
    pub(crate) async fn kill(&mut self, name: &str) -> anyhow::Result<bool> {
        let found = self.workers.iter_mut().find(|(worker, _)| worker == name);
        let Some(mut process) = found.and_then(|(_, process)| process.take()) else {
            return Ok(false);
        };
        let runs = process.try_wait()?.is_none();
        if runs {
            process.kill().await?;
        }
        Ok(runs)
    }

    /// Fails when a worker that was not killed ended without success.
    ///
    /// # Errors
    /// As said.
    pub(crate) fn check(&mut self) -> anyhow::Result<()> {
        for (name, process) in &mut self.workers {
            if let Some(process) = process
                && let Some(status) = process.try_wait()?
            {
                ensure!(status.success(), "worker {name} ended with {status}");
            }
        }
        Ok(())
    }

    /// Waits at most `limit` until all have ended, with success.
    ///
    /// # Errors
    /// When one has not, or ended without success.
    pub(crate) async fn finish(&mut self, limit: Duration) -> anyhow::Result<()> {
        for (name, process) in &mut self.workers {
            if let Some(process) = process {
                let ended = tokio::time::timeout(limit, process.wait()).await;
                let status = ended.with_context(|| format!("worker {name} did not end"))??;
                ensure!(status.success(), "worker {name} ended with {status}");
            }
        }
        Ok(())
    }
}
