//! An etcd server as a child process, on free loopback ports, with its data in a temporary folder.

use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use quorate_recipes::Client;
use quorate_recipes::keys::KeyRange;
use quorate_recipes::store::remote::Remote;

const ETCD: &str = "/usr/bin/etcd";
const ETCDCTL: &str = "/usr/bin/etcdctl";

/// A running server. Dropping it kills the process.
#[derive(Debug)]
pub struct Etcd {
    child: Child,
    url: String,
    _data: tempfile::TempDir,
}

impl Etcd {
    /// Starts a server. `None` where etcd is not installed, outside CI.
    pub async fn start() -> Option<Self> {
        if !Path::new(ETCD).exists() {
            assert!(std::env::var_os("CI").is_none(), "{ETCD} is missing");
            println!("skipped: {ETCD} is not installed");
            return None;
        }
        for _ in 0..5 {
            let mut etcd = Self::spawn();
            if etcd.is_ready().await {
                return Some(etcd);
            }
        }
        panic!("etcd does not start");
    }

    fn spawn() -> Self {
        let data = tempfile::tempdir().unwrap();
        let (url, peer) = (free_url(), free_url());
        let child = Command::new(ETCD)
            .args(["--name", "m", "--log-level", "error", "--logger", "zap"])
            .arg("--data-dir")
            .arg(data.path())
            .args([
                "--listen-client-urls",
                &url,
                "--advertise-client-urls",
                &url,
            ])
            .args([
                "--listen-peer-urls",
                &peer,
                "--initial-advertise-peer-urls",
                &peer,
            ])
            .args(["--initial-cluster", &format!("m={peer}")])
            .args(["--heartbeat-interval", "50", "--election-timeout", "500"])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        Self {
            child,
            url,
            _data: data,
        }
    }

    /// Waits until it answers; false when the process ended, as it does when a port was taken.
    async fn is_ready(&mut self) -> bool {
        let client = self.client();
        for _ in 0..300 {
            if client.list(KeyRange::one("ready")).await.is_ok() {
                return true;
            }
            if self.child.try_wait().unwrap().is_some() {
                return false;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        false
    }

    pub fn url(&self) -> &str {
        &self.url
    }

    pub fn client(&self) -> Client {
        Client::new(Remote::new([self.url.clone()]).unwrap())
    }

    /// Sends the process a signal: `STOP`, `CONT`.
    pub fn signal(&self, name: &str) {
        let pid = self.child.id().to_string();
        let sent = Command::new("kill")
            .args([&format!("-{name}"), &pid])
            .status();
        assert!(sent.unwrap().success());
    }

    /// An etcdctl call, not started yet.
    pub fn ctl(&self, args: &[&str]) -> tokio::process::Command {
        let mut command = tokio::process::Command::new(ETCDCTL);
        command
            .env("ETCDCTL_API", "3")
            .args(["--endpoints", &self.url])
            .args(args)
            .stdin(Stdio::null())
            .kill_on_drop(true);
        command
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

fn free_url() -> String {
    let port = TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port();
    format!("http://127.0.0.1:{port}")
}
