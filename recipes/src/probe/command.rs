//! The check by a program.

use std::ffi::OsString;
use std::process::Stdio;

use rustix::process::{Pid, Signal, kill_process_group};
use tokio::process::{Child, Command};

use super::check::Answer;

/// What is run.
#[derive(Debug, Clone)]
pub(super) struct Program {
    pub(super) path: OsString,
    pub(super) args: Vec<OsString>,
}

impl Program {
    pub(super) async fn run(&self) -> Answer {
        let mut command = Command::new(&self.path);
        command.args(&self.args).process_group(0).kill_on_drop(true);
        command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        let started = command.spawn();
        let mut running =
            Running(started.map_err(|error| format!("{}: {error}", self.path.display()))?);
        let status = running.0.wait().await.map_err(|error| error.to_string())?;
        match status.success() {
            true => Ok(()),
            false => Err(status.to_string()),
        }
    }
}

/// A program at work. Dropping it kills it, and with it all that it has started.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        // Without an id it has ended and was waited for: the number may be another's by now.
        let pid = self.0.id().and_then(|id| i32::try_from(id).ok());
        if let Some(group) = pid.and_then(Pid::from_raw) {
            // That the group has just ended is no trouble.
            let _ = kill_process_group(group, Signal::KILL);
        }
    }
}
