//! Clusters of member processes: the released program itself, over loopback, with data on disk.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::Context as _;
use quorate_proto::etcdserverpb::maintenance_client::MaintenanceClient;
use quorate_proto::etcdserverpb::{HashKvRequest, HashKvResponse, StatusRequest, StatusResponse};

use crate::etcd::serves;
use crate::process::Process;
use crate::{eventually, ports};

/// One member: its addresses and its folder stay when its process is killed and started again.
#[derive(Debug)]
pub struct Member {
    name: String,
    client_url: String,
    peer_url: String,
    process: Option<Process>,
}

/// A cluster of member processes. Dropping it kills them and removes their data.
#[derive(Debug)]
pub struct ProcessCluster {
    program: PathBuf,
    arguments: Vec<String>,
    initial: String,
    members: Vec<Member>,
    folder: tempfile::TempDir,
}

impl ProcessCluster {
    /// Starts `size` members of `program` (the path of the `quorate` binary), with `arguments` added
    /// to each launch line, and waits until all serve.
    ///
    /// # Errors
    /// When one cannot be started or does not serve within 30 s.
    pub async fn start(program: &Path, size: usize, arguments: &[&str]) -> anyhow::Result<Self> {
        let ports = ports::free(2 * size);
        let members: Vec<_> = (0..size)
            .map(|i| Member {
                name: format!("m{}", i + 1),
                client_url: format!("http://127.0.0.1:{}", ports[2 * i]),
                peer_url: format!("http://127.0.0.1:{}", ports[2 * i + 1]),
                process: None,
            })
            .collect();
        let initial: Vec<_> = members
            .iter()
            .map(|member| format!("{}={}", member.name, member.peer_url))
            .collect();
        let mut cluster = Self {
            program: program.to_owned(),
            arguments: arguments.iter().map(ToString::to_string).collect(),
            initial: initial.join(","),
            members,
            folder: tempfile::tempdir()?,
        };
        for i in 0..size {
            cluster.launch(i)?;
        }
        for i in 0..size {
            cluster.serves(i, Duration::from_secs(30)).await?;
        }
        Ok(cluster)
    }

    /// The number of members, running or not.
    #[must_use]
    pub fn size(&self) -> usize {
        self.members.len()
    }

    /// The client URLs of all members, in order.
    #[must_use]
    pub fn endpoints(&self) -> Vec<String> {
        self.members
            .iter()
            .map(|member| member.client_url.clone())
            .collect()
    }

    /// The client URL of member `i`.
    #[must_use]
    pub fn endpoint(&self, i: usize) -> &str {
        &self.members[i].client_url
    }

    /// The data folder of member `i`.
    #[must_use]
    pub fn data_dir(&self, i: usize) -> PathBuf {
        self.folder.path().join(&self.members[i].name)
    }

    /// The process of member `i`, when it runs.
    pub fn process(&mut self, i: usize) -> Option<&mut Process> {
        self.members[i].process.as_mut()
    }

    /// Starts the process of member `i`, without waiting for it to serve.
    ///
    /// # Errors
    /// When it runs already or cannot be started.
    pub fn launch(&mut self, i: usize) -> anyhow::Result<()> {
        let member = &self.members[i];
        anyhow::ensure!(member.process.is_none(), "{} runs already", member.name);
        let mut command = Command::new(&self.program);
        command
            .arg("server")
            .args(["--name", &member.name])
            .arg("--data-dir")
            .arg(self.data_dir(i))
            .args(["--listen-client-urls", &member.client_url])
            .args(["--advertise-client-urls", &member.client_url])
            .args(["--listen-peer-urls", &member.peer_url])
            .args(["--initial-advertise-peer-urls", &member.peer_url])
            .args(["--initial-cluster", &self.initial])
            .args(["--initial-cluster-state", "new"])
            .args(["--initial-cluster-token", "harness"])
            .args(&self.arguments);
        let process = Process::start(&member.name, command, self.folder.path())?;
        self.members[i].process = Some(process);
        Ok(())
    }

    /// Waits until member `i` answers a linearizable read.
    ///
    /// # Errors
    /// When it does not within `limit`.
    pub async fn serves(&self, i: usize, limit: Duration) -> anyhow::Result<()> {
        let served = serves(self.endpoint(i), limit).await;
        served.with_context(|| {
            let said = self.members[i]
                .process
                .as_ref()
                .map(Process::output)
                .unwrap_or_default();
            format!("{} said:\n{said}", self.members[i].name)
        })
    }

    /// SIGKILL for member `i`.
    ///
    /// # Errors
    /// When it does not run.
    pub fn kill(&mut self, i: usize) -> anyhow::Result<()> {
        let mut process = self.members[i].process.take().context("it does not run")?;
        process.kill()
    }

    /// Member `i`'s own view: leader, term, applied index.
    ///
    /// # Errors
    /// When it does not answer.
    pub async fn status(&self, i: usize) -> anyhow::Result<StatusResponse> {
        let mut client = MaintenanceClient::connect(self.endpoint(i).to_owned()).await?;
        let mut request = tonic::Request::new(StatusRequest::default());
        request.set_timeout(Duration::from_secs(2));
        Ok(client.status(request).await?.into_inner())
    }

    /// Which running member leads, by its own word, in the highest term.
    ///
    /// # Errors
    /// When none does within `limit`.
    pub async fn leader(&self, limit: Duration) -> anyhow::Result<usize> {
        eventually("a member leads", limit, || async {
            let mut best: Option<(u64, usize)> = None;
            for i in 0..self.size() {
                if self.members[i].process.is_none() {
                    continue;
                }
                let Ok(status) = self.status(i).await else {
                    continue;
                };
                let own = status.header.as_ref().map(|header| header.member_id);
                if own == Some(status.leader) && best.is_none_or(|b| b.0 < status.raft_term) {
                    best = Some((status.raft_term, i));
                }
            }
            best.map(|(_, i)| i)
        })
        .await
    }

    /// The hash of member `i`'s key space at `revision` (0 = now).
    ///
    /// # Errors
    /// When it does not answer or does not have that revision.
    pub async fn hash_kv(&self, i: usize, revision: i64) -> anyhow::Result<HashKvResponse> {
        let mut client = MaintenanceClient::connect(self.endpoint(i).to_owned()).await?;
        let request = HashKvRequest { revision };
        Ok(client.hash_kv(request).await?.into_inner())
    }
}
