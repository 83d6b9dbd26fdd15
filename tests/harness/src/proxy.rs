//! A proxy as a process of its own, before members or a real etcd.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use crate::etcd::serves;
use crate::ports;
use crate::process::Process;

/// A proxy process. Dropping it kills it.
#[derive(Debug)]
pub struct Proxy {
    process: Process,
    endpoint: String,
    _logs: tempfile::TempDir,
}

impl Proxy {
    /// Starts the proxy of `program` (the path of the `quorate` binary) before these endpoints, with
    /// `arguments` added to its launch line, and waits until a read through it is answered.
    ///
    /// # Errors
    /// When it cannot be started or does not serve within 30 s.
    pub async fn start(
        program: &Path,
        endpoints: &[String],
        arguments: &[&str],
    ) -> anyhow::Result<Self> {
        let address = format!("127.0.0.1:{}", ports::free(1)[0]);
        let logs = tempfile::tempdir()?;
        let mut command = Command::new(program);
        command
            .arg("proxy")
            .args(["--endpoints", &endpoints.join(",")])
            .args(["--listen-addr", &address])
            .args(arguments);
        let process = Process::start("proxy", command, logs.path())?;
        let endpoint = format!("http://{address}");
        serves(&endpoint, Duration::from_secs(30)).await?;
        Ok(Self {
            process,
            endpoint,
            _logs: logs,
        })
    }

    /// Its client URL.
    #[must_use]
    pub fn endpoint(&self) -> &str {
        &self.endpoint
    }

    /// Its process.
    pub fn process(&mut self) -> &mut Process {
        &mut self.process
    }
}
