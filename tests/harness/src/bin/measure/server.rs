//! The server that is measured: one member of quorate, or one etcd.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context as _;
use quorate_harness::cluster::ProcessCluster;
use quorate_harness::etcd::Etcd;
use quorate_proto::etcdserverpb::StatusRequest;
use quorate_proto::etcdserverpb::maintenance_client::MaintenanceClient;
use tonic::transport::{Channel, Endpoint};

/// A server and how to look at it from outside.
pub(crate) enum Server {
    Quorate(ProcessCluster),
    Etcd(Etcd),
}

impl Server {
    /// Starts `program`, which is an etcd if its file is called so, with these flags.
    pub(crate) async fn start(program: &Path, flags: &[&str]) -> anyhow::Result<Self> {
        let quota = (16_u64 << 30).to_string();
        let quota = ["--quota-backend-bytes", quota.as_str()];
        let arguments = [&quota, flags].concat();
        if program.file_name().is_some_and(|name| name == "etcd") {
            let etcd = Etcd::start_with(program.to_owned(), &arguments).await?;
            return Ok(Self::Etcd(etcd));
        }
        let cluster = ProcessCluster::start(program, 1, &arguments).await?;
        Ok(Self::Quorate(cluster))
    }

    fn endpoint(&self) -> &str {
        match self {
            Self::Quorate(cluster) => cluster.endpoint(0),
            Self::Etcd(etcd) => etcd.endpoint(),
        }
    }

    /// A connection of its own.
    pub(crate) async fn connect(&self) -> anyhow::Result<Channel> {
        let endpoint = Endpoint::from_shared(self.endpoint().to_owned())?.tcp_nodelay(true);
        Ok(endpoint.connect().await?)
    }

    /// Resident memory in MiB.
    pub(crate) fn resident_mib(&mut self) -> anyhow::Result<u64> {
        let pid = match self {
            Self::Quorate(cluster) => cluster.process(0).context("it runs")?.pid(),
            Self::Etcd(etcd) => etcd.process().pid(),
        };
        let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
        let line = status
            .lines()
            .find_map(|line| line.strip_prefix("VmRSS:"))
            .context("no VmRSS")?;
        let kib: u64 = line.trim().trim_end_matches("kB").trim().parse()?;
        Ok(kib / 1024)
    }

    /// What the server says its store takes on disk, in MiB: all of it, and the part in use.
    pub(crate) async fn store_mib(&self) -> anyhow::Result<(i64, i64)> {
        let mut client = MaintenanceClient::new(self.connect().await?);
        let status = client.status(StatusRequest::default()).await?.into_inner();
        Ok((status.db_size >> 20, status.db_size_in_use >> 20))
    }

    /// What its data folder takes on disk, in MiB.
    pub(crate) fn folder_mib(&self) -> anyhow::Result<u64> {
        let folder = match self {
            Self::Quorate(cluster) => cluster.data_dir(0),
            Self::Etcd(etcd) => etcd.data_dir(),
        };
        Ok(allocated_bytes(&folder)? >> 20)
    }
}

fn allocated_bytes(folder: &PathBuf) -> std::io::Result<u64> {
    use std::os::unix::fs::MetadataExt as _;
    let mut bytes = 0;
    for entry in std::fs::read_dir(folder)? {
        let entry = entry?;
        bytes += match entry.metadata() {
            Ok(found) if found.is_dir() => allocated_bytes(&entry.path())?,
            Ok(found) => found.blocks() * 512,
            // Files come and go under load.
            Err(_) => 0,
        };
    }
    Ok(bytes)
}

/// Waits until the time has come.
pub(crate) async fn rest(length: Duration) {
    tokio::time::sleep(length).await;
}
