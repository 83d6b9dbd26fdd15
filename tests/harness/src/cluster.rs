//! Clusters of member processes: the released program itself, over loopback, with data on disk.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};
use std::time::Duration;

use anyhow::Context as _;
use quorate_proto::etcdserverpb::cluster_client::ClusterClient;
use quorate_proto::etcdserverpb::maintenance_client::MaintenanceClient;
use quorate_proto::etcdserverpb::{
    HashKvRequest, HashKvResponse, Member as ListedMember, MemberListRequest, MemberRemoveRequest,
    StatusRequest, StatusResponse,
};

use crate::etcd::serves;
use crate::network::Network;
use crate::process::Process;
use crate::{eventually, ports};

/// One member: its addresses and its folder stay when its process is killed and started again.
#[derive(Debug)]
pub struct Member {
    name: String,
    client_url: String,
    /// Where it listens for the others.
    listen_peer_url: String,
    /// Where they look for it.
    peer_url: String,
    /// How it finds its cluster when it has no data yet.
    founding: Founding,
    process: Option<Process>,
}

#[derive(Debug, Clone)]
enum Founding {
    /// Together with those that this names.
    Initial(String),
    /// By joining whoever serves peers there.
    Join(String),
}

/// How long a member has for whatever it is told to do, before the test fails.
const LIMIT: Duration = Duration::from_secs(30);
/// How long one call of the cluster's own may take.
const CALL_LIMIT: Duration = Duration::from_secs(10);

/// The program to test: the one that was built with the test, unless the environment variable
/// `QUORATE_PROGRAM` names another, such as a release build.
#[must_use]
pub fn program(built: &str) -> PathBuf {
    std::env::var_os("QUORATE_PROGRAM").map_or_else(|| built.into(), Into::into)
}

/// A cluster of member processes. Dropping it kills them and removes their data.
#[derive(Debug)]
pub struct ProcessCluster {
    program: PathBuf,
    arguments: Vec<String>,
    members: Vec<Member>,
    network: Option<Network>,
    folder: tempfile::TempDir,
}

impl ProcessCluster {
    /// Starts `size` members of `program` (the path of the `quorate` binary), with `arguments` added
    /// to each launch line, and waits until all serve.
    ///
    /// # Errors
    /// When one cannot be started or does not serve within 30 s.
    pub async fn start(program: &Path, size: usize, arguments: &[&str]) -> anyhow::Result<Self> {
        Self::start_over(None, program, size, arguments).await
    }

    /// As [`ProcessCluster::start`], over a network whose links can be cut.
    ///
    /// # Errors
    /// As [`ProcessCluster::start`].
    pub async fn start_with_network(
        program: &Path,
        size: usize,
        arguments: &[&str],
    ) -> anyhow::Result<Self> {
        Self::start_over(Some(Network::default()), program, size, arguments).await
    }

    async fn start_over(
        network: Option<Network>,
        program: &Path,
        size: usize,
        arguments: &[&str],
    ) -> anyhow::Result<Self> {
        let mut cluster = Self {
            program: program.to_owned(),
            arguments: arguments.iter().map(ToString::to_string).collect(),
            members: Vec::new(),
            network,
            folder: tempfile::tempdir()?,
        };
        for _ in 0..size {
            cluster.seat(Founding::Initial(String::new())).await?;
        }
        let initial: Vec<_> = cluster
            .members
            .iter()
            .map(|member| format!("{}={}", member.name, member.peer_url))
            .collect();
        let founding = Founding::Initial(initial.join(","));
        for i in 0..size {
            cluster.members[i].founding = founding.clone();
            cluster.launch(i)?;
        }
        for i in 0..size {
            cluster.serves(i, LIMIT).await?;
        }
        Ok(cluster)
    }

    /// Addresses and a name for one more member.
    async fn seat(&mut self, founding: Founding) -> anyhow::Result<usize> {
        let ports = ports::free(2);
        let url = |port| format!("http://127.0.0.1:{port}");
        let peer_url = match &mut self.network {
            Some(network) => network.add(ports[1]).await?,
            None => url(ports[1]),
        };
        self.members.push(Member {
            name: format!("m{}", self.members.len() + 1),
            client_url: url(ports[0]),
            listen_peer_url: url(ports[1]),
            peer_url,
            founding,
            process: None,
        });
        Ok(self.members.len() - 1)
    }

    /// Has one more member join through member `through`, and waits until it has its vote. Returns
    /// which it is.
    ///
    /// # Errors
    /// When it cannot be started or has no vote within `limit`.
    pub async fn join(&mut self, through: usize, limit: Duration) -> anyhow::Result<usize> {
        let url = self.members[through].peer_url.clone();
        let i = self.seat(Founding::Join(url)).await?;
        self.launch(i)?;
        self.votes(i, through, limit).await?;
        Ok(i)
    }

    async fn votes(&self, i: usize, through: usize, limit: Duration) -> anyhow::Result<()> {
        let name = &self.members[i].name;
        let what = format!("{name} has its vote");
        let voted = eventually(&what, limit, || async {
            let members = self.list(through).await.ok()?;
            let own = members.iter().find(|member| member.name == *name)?;
            (!own.is_learner).then_some(())
        });
        voted.await.with_context(|| self.said(i))
    }

    /// The members as member `through` lists them, linearizably.
    ///
    /// # Errors
    /// When it does not answer.
    pub async fn list(&self, through: usize) -> anyhow::Result<Vec<ListedMember>> {
        let mut client = ClusterClient::connect(self.endpoint(through).to_owned()).await?;
        let mut request = tonic::Request::new(MemberListRequest { linearizable: true });
        request.set_timeout(CALL_LIMIT);
        Ok(client.member_list(request).await?.into_inner().members)
    }

    /// Removes member `i` through member `through`, and waits until its process has ended by itself.
    ///
    /// # Errors
    /// When it is not removed, or does not end, within 30 s.
    pub async fn remove(&mut self, i: usize, through: usize) -> anyhow::Result<ExitStatus> {
        let name = self.members[i].name.clone();
        let members = self.list(through).await?;
        let listed = members.iter().find(|member| member.name == name);
        let id = listed.context("no such member")?.id;
        let mut client = ClusterClient::connect(self.endpoint(through).to_owned()).await?;
        let mut request = tonic::Request::new(MemberRemoveRequest { id });
        request.set_timeout(CALL_LIMIT);
        let removed = client.member_remove(request).await;
        removed.with_context(|| format!("remove {name}"))?;
        self.ends(i).await
    }

    /// Waits until the process of member `i` has ended by itself.
    ///
    /// # Errors
    /// When it does not run, or not end within 30 s.
    pub async fn ends(&mut self, i: usize) -> anyhow::Result<ExitStatus> {
        let process = self.members[i].process.as_mut();
        let ended = process.context("it does not run")?.wait(LIMIT).await;
        let status = ended.with_context(|| self.said(i))?;
        self.gone(i);
        Ok(status)
    }

    /// SIGTERM for member `i`, and waits until it has ended.
    ///
    /// # Errors
    /// When it does not run, or does not end within 30 s.
    pub async fn terminate(&mut self, i: usize) -> anyhow::Result<ExitStatus> {
        let process = self.members[i].process.as_mut();
        let status = process
            .context("it does not run")?
            .terminate(LIMIT)
            .await
            .with_context(|| self.said(i))?;
        self.gone(i);
        Ok(status)
    }

    /// Forgets the process of member `i`, and returns it.
    fn gone(&mut self, i: usize) -> Option<Process> {
        if let Some(network) = &self.network {
            network.set_process(i, None);
        }
        self.members[i].process.take()
    }

    /// The last of what member `i` has printed.
    #[must_use]
    pub fn said(&self, i: usize) -> String {
        let name = &self.members[i].name;
        let log = self.folder.path().join(format!("{name}.log"));
        let said = std::fs::read_to_string(log).unwrap_or_default();
        let lines: Vec<&str> = said.lines().collect();
        let tail = &lines[lines.len().saturating_sub(40)..];
        format!("{name} said:\n{}", tail.join("\n"))
    }

    /// The links between the members.
    ///
    /// # Panics
    /// When it was started without a network that can be cut.
    #[must_use]
    pub fn network(&self) -> &Network {
        self.network
            .as_ref()
            .expect("a cluster started with a network")
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

    /// The flags that say who member `i` is, where its data is, and with whom it founds the cluster:
    /// what starting a member and restoring it have in common.
    #[must_use]
    pub fn identity(&self, i: usize) -> Vec<OsString> {
        let member = &self.members[i];
        let mut flags: Vec<OsString> = vec![
            "--name".into(),
            (&member.name).into(),
            "--data-dir".into(),
            self.data_dir(i).into(),
            "--initial-advertise-peer-urls".into(),
            (&member.peer_url).into(),
            "--initial-cluster-token".into(),
            "harness".into(),
        ];
        if let Founding::Initial(members) = &member.founding {
            flags.extend(["--initial-cluster".into(), members.into()]);
        }
        flags
    }

    /// Starts the process of member `i`, without waiting for it to serve.
    ///
    /// # Errors
    /// When it runs already or cannot be started.
    pub fn launch(&mut self, i: usize) -> anyhow::Result<()> {
        self.launch_with(i, &[])
    }

    /// As [`ProcessCluster::launch`], with `environment` for this process.
    ///
    /// # Errors
    /// As [`ProcessCluster::launch`].
    pub fn launch_with(&mut self, i: usize, environment: &[(&str, &str)]) -> anyhow::Result<()> {
        let member = &self.members[i];
        anyhow::ensure!(member.process.is_none(), "{} runs already", member.name);
        let mut command = Command::new(&self.program);
        command
            .arg("server")
            .args(self.identity(i))
            .args(["--listen-client-urls", &member.client_url])
            .args(["--advertise-client-urls", &member.client_url])
            .args(["--listen-peer-urls", &member.listen_peer_url]);
        match &member.founding {
            Founding::Initial(_) => command.args(["--initial-cluster-state", "new"]),
            Founding::Join(url) => command.args(["--join", url]),
        };
        command.args(&self.arguments);
        command.envs(environment.iter().copied());
        let process = Process::start(&member.name, command, self.folder.path())?;
        if let Some(network) = &self.network {
            network.set_process(i, Some(process.pid()));
        }
        self.members[i].process = Some(process);
        Ok(())
    }

    /// Waits until member `i` answers a linearizable read.
    ///
    /// # Errors
    /// When it does not within `limit`.
    pub async fn serves(&self, i: usize, limit: Duration) -> anyhow::Result<()> {
        let served = serves(self.endpoint(i), limit).await;
        served.with_context(|| self.said(i))
    }

    /// SIGKILL for member `i`.
    ///
    /// # Errors
    /// When it does not run.
    pub fn kill(&mut self, i: usize) -> anyhow::Result<()> {
        self.gone(i).context("it does not run")?.kill()
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

    /// Which members run.
    #[must_use]
    pub fn running(&self) -> Vec<usize> {
        let all = 0..self.size();
        all.filter(|i| self.members[*i].process.is_some()).collect()
    }

    /// Waits until the members that run have the same key space, and checks that it is the same at
    /// one revision on each.
    ///
    /// # Errors
    /// When one does not serve within 30 s, or differs.
    pub async fn agrees(&self) -> anyhow::Result<()> {
        let running = self.running();
        for i in &running {
            self.serves(*i, LIMIT).await?;
        }
        let first = *running.first().context("none runs")?;
        let header = self.status(first).await?.header;
        let revision = header.map_or(0, |header| header.revision);
        let expected = self.hash_kv(first, revision).await?.hash;
        for i in &running[1..] {
            self.serves(*i, LIMIT).await?;
            let hash = self.hash_kv(*i, revision).await?.hash;
            let name = &self.members[*i].name;
            anyhow::ensure!(hash == expected, "{name} differs at revision {revision}");
        }
        Ok(())
    }
}
