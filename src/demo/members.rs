//! The demo's cluster: three members of this very program as child processes, so that one can be
//! killed. They are killed when the demo forgets them, and end by themselves when it is killed: the
//! other end of their standard input is the demo's.

use std::fs::File;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, bail};
use quorate::proto::etcdserverpb::maintenance_client::MaintenanceClient;
use quorate::proto::etcdserverpb::{StatusRequest, StatusResponse};
use tokio::process::{Child, ChildStdin, Command};

const SIZE: usize = 3;
/// The longest that the demo waits for the cluster to elect a leader.
const ELECTION_LIMIT: Duration = Duration::from_secs(30);
const POLL: Duration = Duration::from_millis(20);
const STATUS_LIMIT: Duration = Duration::from_millis(500);

/// One member process.
#[derive(Debug)]
struct Member {
    name: String,
    client_url: String,
    peer_url: String,
    process: Option<Child>,
    /// Open as long as the demo lives.
    lifeline: Option<ChildStdin>,
}

/// The member processes.
#[derive(Debug)]
pub(crate) struct Members {
    program: PathBuf,
    folder: PathBuf,
    initial: String,
    members: Vec<Member>,
}

impl Members {
    /// Starts three members with their data and logs below `folder`.
    ///
    /// # Errors
    /// When they cannot be started.
    pub(crate) fn start(folder: &Path) -> anyhow::Result<Self> {
        let ports = free_ports(2 * SIZE)?;
        let members: Vec<_> = (0..SIZE)
            .map(|i| Member {
                name: format!("m{}", i + 1),
                client_url: format!("http://127.0.0.1:{}", ports[2 * i]),
                peer_url: format!("http://127.0.0.1:{}", ports[2 * i + 1]),
                process: None,
                lifeline: None,
            })
            .collect();
        let initial: Vec<_> = members
            .iter()
            .map(|member| format!("{}={}", member.name, member.peer_url))
            .collect();
        let program = std::env::current_exe().context("find this program")?;
        let initial = initial.join(",");
        let mut started = Self {
            program,
            folder: folder.to_owned(),
            initial,
            members,
        };
        for i in 0..SIZE {
            started.launch(i)?;
        }
        Ok(started)
    }

    /// The client URLs of all members.
    pub(crate) fn endpoints(&self) -> Vec<String> {
        self.members
            .iter()
            .map(|member| member.client_url.clone())
            .collect()
    }

    /// The name of member `i`.
    pub(crate) fn name(&self, i: usize) -> &str {
        &self.members[i].name
    }

    /// Starts the process of member `i`; its data folder is what it was.
    ///
    /// # Errors
    /// When it cannot be started.
    pub(crate) fn launch(&mut self, i: usize) -> anyhow::Result<()> {
        let member = &mut self.members[i];
        let log = File::options()
            .create(true)
            .append(true)
            .open(self.folder.join(format!("{}.log", member.name)))?;
        let mut process = Command::new(&self.program)
            .arg("server")
            .arg("--exit-with-stdin")
            .args(["--name", &member.name])
            .arg("--data-dir")
            .arg(self.folder.join(&member.name))
            .args(["--listen-client-urls", &member.client_url])
            .args(["--advertise-client-urls", &member.client_url])
            .args(["--listen-peer-urls", &member.peer_url])
            .args(["--initial-advertise-peer-urls", &member.peer_url])
            .args(["--initial-cluster", &self.initial])
            .args(["--initial-cluster-token", "quorate-demo"])
            .stdin(Stdio::piped())
            .stdout(log.try_clone()?)
            .stderr(log)
            .kill_on_drop(true)
            .spawn()
            .with_context(|| format!("start member {}", member.name))?;
        member.lifeline = process.stdin.take();
        member.process = Some(process);
        Ok(())
    }

    /// SIGKILL for member `i`.
    ///
    /// # Errors
    /// When it does not run, or cannot be killed.
    pub(crate) async fn kill(&mut self, i: usize) -> anyhow::Result<()> {
        let mut process = self.members[i]
            .process
            .take()
            .context("the member does not run")?;
        Ok(process.kill().await?)
    }

    /// Waits for a running member that leads and says so; with `after_term`, in a later term.
    /// Returns its number and term.
    ///
    /// # Errors
    /// When there is none for long, or a member ended by itself.
    pub(crate) async fn leader(&mut self, after_term: u64) -> anyhow::Result<(usize, u64)> {
        let wait = async {
            loop {
                for i in 0..SIZE {
                    self.check(i)?;
                    if self.members[i].process.is_none() {
                        continue;
                    }
                    let Ok(status) = self.status(i).await else {
                        continue;
                    };
                    let own = status.header.as_ref().map(|header| header.member_id);
                    if own == Some(status.leader) && status.raft_term > after_term {
                        return Ok((i, status.raft_term));
                    }
                }
                tokio::time::sleep(POLL).await;
            }
        };
        match tokio::time::timeout(ELECTION_LIMIT, wait).await {
            Ok(found) => found,
            Err(_) => bail!(
                "no leader within {ELECTION_LIMIT:?}; logs in {}",
                self.folder.display()
            ),
        }
    }

    /// Waits until member `i` has applied what its leader has committed so far.
    ///
    /// # Errors
    /// When it does not catch up for long.
    pub(crate) async fn caught_up(&mut self, i: usize, leader: usize) -> anyhow::Result<u64> {
        let goal = self.status(leader).await?.raft_index;
        let wait = async {
            loop {
                self.check(i)?;
                if let Ok(status) = self.status(i).await
                    && status.raft_applied_index >= goal
                {
                    return Ok(goal);
                }
                tokio::time::sleep(POLL).await;
            }
        };
        match tokio::time::timeout(ELECTION_LIMIT, wait).await {
            Ok(done) => done,
            Err(_) => bail!(
                "member {} did not catch up within {ELECTION_LIMIT:?}",
                self.name(i)
            ),
        }
    }

    /// Stops all members and waits for them.
    pub(crate) async fn stop(&mut self) {
        for member in &mut self.members {
            if let Some(mut process) = member.process.take() {
                // They hold nothing that outlives the demo: no need to be gentle.
                let _ = process.kill().await;
            }
        }
    }

    fn check(&mut self, i: usize) -> anyhow::Result<()> {
        let member = &mut self.members[i];
        if let Some(process) = &mut member.process
            && let Some(status) = process.try_wait()?
        {
            let log = self.folder.join(format!("{}.log", member.name));
            bail!(
                "member {} ended by itself ({status}); its log: {}",
                member.name,
                log.display()
            );
        }
        Ok(())
    }

    async fn status(&self, i: usize) -> anyhow::Result<StatusResponse> {
        let ask = async {
            let mut client = MaintenanceClient::connect(self.members[i].client_url.clone()).await?;
            anyhow::Ok(client.status(StatusRequest::default()).await?.into_inner())
        };
        tokio::time::timeout(STATUS_LIMIT, ask).await?
    }
}

/// Ports of 127.0.0.1 that nobody listens on, all different.
fn free_ports(n: usize) -> anyhow::Result<Vec<u16>> {
    let listeners: Vec<_> = (0..n)
        .map(|_| TcpListener::bind(("127.0.0.1", 0)))
        .collect::<Result<_, _>>()?;
    listeners
        .iter()
        .map(|listener| Ok(listener.local_addr()?.port()))
        .collect()
}
