//! Cuts between members. Each member advertises a proxy in front of its peer port; the proxy finds
//! out which member has dialled it, and holds back what passes over a link that is cut, in that
//! direction, until it is healed. So single links can be cut, and one way alone. As over a real
//! network nothing is lost but time: connections stay until their ends give them up, and what a
//! cut held back arrives afterwards.
//!
//! Which process has dialled is read from `/proc`, so it works on Linux only.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::Context as _;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};

const PIECE_BYTES: usize = 64 * 1024;

/// From a member to another, by their places in the cluster.
type Link = (usize, usize);

/// The links between the members of one cluster. Dropping it ends all connections.
#[derive(Debug)]
pub struct Network {
    cut: watch::Sender<BTreeSet<Link>>,
    /// The processes of the members that run.
    pids: Arc<Mutex<Vec<Option<u32>>>>,
    proxies: Vec<JoinHandle<()>>,
}

impl Default for Network {
    fn default() -> Self {
        Self {
            cut: watch::Sender::new(BTreeSet::new()),
            pids: Arc::default(),
            proxies: Vec::new(),
        }
    }
}

impl Network {
    /// Puts a proxy in front of the next member's peer port, and returns the proxy's URL.
    ///
    /// # Errors
    /// When it cannot listen.
    #[expect(
        clippy::disallowed_methods,
        reason = "the harness owns and ends this task"
    )]
    pub async fn add(&mut self, port: u16) -> anyhow::Result<String> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let proxy = Proxy {
            member: self.proxies.len(),
            port,
            address,
            cut: self.cut.clone(),
            pids: Arc::clone(&self.pids),
        };
        self.proxies
            .push(tokio::spawn(Arc::new(proxy).run(listener)));
        self.set_process(self.proxies.len() - 1, None);
        Ok(format!("http://{address}"))
    }

    /// Tells which process the member `i` runs in.
    pub fn set_process(&self, i: usize, pid: Option<u32>) {
        let mut pids = self.pids.lock().unwrap_or_else(PoisonError::into_inner);
        if pids.len() <= i {
            pids.resize(i + 1, None);
        }
        pids[i] = pid;
    }

    /// From now on nothing gets from `from` to `to`; the other direction stays as it is.
    pub fn cut(&self, from: usize, to: usize) {
        self.cut.send_modify(|cut| {
            cut.insert((from, to));
        });
    }

    /// Cuts member `i` off from all others, both ways.
    pub fn isolate(&self, i: usize) {
        for other in (0..self.proxies.len()).filter(|other| *other != i) {
            self.cut(i, other);
            self.cut(other, i);
        }
    }

    /// Heals all cuts.
    pub fn heal(&self) {
        self.cut.send_modify(BTreeSet::clear);
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        for proxy in &self.proxies {
            proxy.abort();
        }
    }
}

/// What stands in front of one member's peer port.
#[derive(Debug)]
struct Proxy {
    member: usize,
    port: u16,
    address: SocketAddr,
    cut: watch::Sender<BTreeSet<Link>>,
    pids: Arc<Mutex<Vec<Option<u32>>>>,
}

impl Proxy {
    async fn run(self: Arc<Self>, listener: TcpListener) {
        let mut connections = JoinSet::new();
        while let Ok((inbound, from)) = listener.accept().await {
            let proxy = Arc::clone(&self);
            // One that cannot be passed on is closed, as if nobody listened.
            connections.spawn(async move { drop(proxy.pass(inbound, from).await) });
            while connections.try_join_next().is_some() {}
        }
    }

    async fn pass(&self, inbound: TcpStream, from: SocketAddr) -> anyhow::Result<()> {
        let pids = self
            .pids
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        let to = self.address;
        let dialler = tokio::task::spawn_blocking(move || dialler(from, to, &pids)).await??;
        let outbound = TcpStream::connect(("127.0.0.1", self.port)).await?;
        inbound.set_nodelay(true)?;
        outbound.set_nodelay(true)?;
        let (from_dialler, to_dialler) = inbound.into_split();
        let (from_member, to_member) = outbound.into_split();
        let there = pump(
            from_dialler,
            to_member,
            (dialler, self.member),
            self.cut.subscribe(),
        );
        let back = pump(
            from_member,
            to_dialler,
            (self.member, dialler),
            self.cut.subscribe(),
        );
        tokio::try_join!(there, back)?;
        Ok(())
    }
}

/// Passes on what comes, unless and until the link is whole.
async fn pump(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    link: Link,
    mut cut: watch::Receiver<BTreeSet<Link>>,
) -> anyhow::Result<()> {
    let mut piece = vec![0; PIECE_BYTES];
    loop {
        let read = from.read(&mut piece).await?;
        cut.wait_for(|cut| !cut.contains(&link)).await?;
        if read == 0 {
            return Ok(to.shutdown().await?);
        }
        to.write_all(&piece[..read]).await?;
    }
}

/// Which of `pids` has the connection that goes from `from` to `to`.
fn dialler(from: SocketAddr, to: SocketAddr, pids: &[Option<u32>]) -> anyhow::Result<usize> {
    let table = std::fs::read_to_string("/proc/net/tcp").context("cuts need Linux's /proc")?;
    let hex = |address: &str| {
        let (_, port) = address.split_once(':')?;
        u16::from_str_radix(port, 16).ok()
    };
    let row = table.lines().find_map(|line| {
        let columns: Vec<&str> = line.split_whitespace().collect();
        let ends = (hex(columns.get(1)?)?, hex(columns.get(2)?)?);
        (ends == (from.port(), to.port())).then(|| columns.get(9).map(ToString::to_string))?
    });
    let socket = format!("socket:[{}]", row.context("a connection without an entry")?);
    let holds = |pid: u32| {
        let files = std::fs::read_dir(format!("/proc/{pid}/fd"));
        files.is_ok_and(|files| {
            files.flatten().any(|file| {
                std::fs::read_link(file.path()).is_ok_and(|link| link == Path::new(&socket))
            })
        })
    };
    pids.iter()
        .position(|pid| pid.is_some_and(holds))
        .context("none of the members has dialled")
}
