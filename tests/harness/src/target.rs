//! Where a test body runs: the same body on a node in this process, on a cluster of three, and on
//! a real etcd.

use std::net::TcpListener;
use std::time::Duration;

use anyhow::Context as _;
use quorate_core::node::Node;
use quorate_core::server::Server;
use quorate_recipes::Client;
use quorate_recipes::store::{Embedded, Remote};

use crate::etcd::{self, Etcd, serves};

/// Timers of clusters inside a test's process: short, but long enough for a busy machine.
const HEARTBEAT: Duration = Duration::from_millis(50);
const ELECTION_TIMEOUT: Duration = Duration::from_millis(500);
const SIZE: usize = 3;
const SERVES_WITHIN: Duration = Duration::from_secs(30);

/// A kind of store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Target {
    /// One member in this process, without any network.
    Embedded,
    /// Three members in this process, over loopback, used through their client ports.
    Cluster,
    /// A real etcd server.
    Etcd,
}

/// A running store and a client of it.
#[derive(Debug)]
pub struct Running {
    client: Client,
    endpoints: Vec<String>,
    nodes: Vec<Node>,
    servers: Vec<Server>,
    etcd: Option<Etcd>,
}

impl Target {
    /// Starts one; `None` when it is an etcd and none is installed (never in CI, where that fails).
    ///
    /// # Errors
    /// When it cannot be started or does not serve.
    pub async fn start(self) -> anyhow::Result<Option<Running>> {
        match self {
            Self::Embedded => Running::embedded().await.map(Some),
            Self::Cluster => Running::cluster().await.map(Some),
            Self::Etcd => match etcd::installed() {
                Some(binary) => Running::etcd(binary).await.map(Some),
                None => Ok(None),
            },
        }
    }
}

impl Running {
    async fn embedded() -> anyhow::Result<Self> {
        let node = Node::builder().in_memory().start().await?;
        Ok(Self {
            client: Client::new(Embedded::new(node.clone())),
            endpoints: Vec::new(),
            nodes: vec![node],
            servers: Vec::new(),
            etcd: None,
        })
    }

    async fn cluster() -> anyhow::Result<Self> {
        let mut listeners = Vec::new();
        let mut members = Vec::new();
        for i in 0..SIZE {
            let listener = TcpListener::bind("127.0.0.1:0")?;
            members.push((
                format!("m{i}"),
                [format!("http://{}", listener.local_addr()?)],
            ));
            listeners.push(listener);
        }
        let starts = listeners
            .into_iter()
            .zip(&members)
            .map(|(listener, (name, _))| {
                Node::builder()
                    .in_memory()
                    .name(name)
                    .cluster(members.clone())
                    .peer_listener(listener)
                    .heartbeat_interval(HEARTBEAT)
                    .election_timeout(ELECTION_TIMEOUT)
                    .start()
            });
        let nodes = futures::future::try_join_all(starts).await?;
        let (mut servers, mut endpoints) = (Vec::new(), Vec::new());
        for node in &nodes {
            let server = Server::builder(node.clone())
                .listen("http://127.0.0.1:0")
                .start()
                .await?;
            let address = server.local_addrs().first().context("no address")?;
            endpoints.push(format!("http://{address}"));
            servers.push(server);
        }
        for endpoint in &endpoints {
            serves(endpoint, SERVES_WITHIN).await?;
        }
        let client = Client::new(Remote::new(endpoints.clone())?);
        Ok(Self {
            client,
            endpoints,
            nodes,
            servers,
            etcd: None,
        })
    }

    async fn etcd(binary: std::path::PathBuf) -> anyhow::Result<Self> {
        let etcd = Etcd::start(binary).await?;
        let endpoints = vec![etcd.endpoint().to_owned()];
        let client = Client::new(Remote::new(endpoints.clone())?);
        Ok(Self {
            client,
            endpoints,
            nodes: Vec::new(),
            servers: Vec::new(),
            etcd: Some(etcd),
        })
    }

    /// A client of the store.
    #[must_use]
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// Another client, with connections of its own.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn another_client(&self) -> anyhow::Result<Client> {
        match self.nodes.first() {
            Some(node) if self.endpoints.is_empty() => Ok(Client::new(Embedded::new(node.clone()))),
            _ => Ok(Client::new(Remote::new(self.endpoints.clone())?)),
        }
    }

    /// Client URLs; none for an embedded node.
    #[must_use]
    pub fn endpoints(&self) -> &[String] {
        &self.endpoints
    }

    /// The etcd's process, where it is one.
    pub fn etcd_mut(&mut self) -> Option<&mut Etcd> {
        self.etcd.as_mut()
    }

    /// Stops everything and waits for it.
    pub async fn stop(self) {
        for server in self.servers {
            server.stop().await;
        }
        for node in self.nodes {
            node.shutdown().await;
        }
    }
}
