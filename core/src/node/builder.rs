//! How a caller says what member to start. Used by whoever embeds a node, and by the server.

use std::net::TcpListener;
use std::path::PathBuf;
use std::time::Duration;

use super::Node;
use super::bootstrap::{self, StartError};
use crate::config::{
    AutoCompaction, ClusterConfig, ClusterState, Config, Data, InitialMember, Limits,
};

/// Settings of a member to be; see [`Config`] for what each means. Made by [`Node::builder`].
#[derive(Debug, Default)]
#[must_use = "nothing runs until `start`"]
pub struct NodeBuilder {
    config: Config,
    peer_listener: Option<TcpListener>,
}

impl NodeBuilder {
    /// Starts from a whole configuration.
    pub fn from_config(config: Config) -> Self {
        Self {
            config,
            peer_listener: None,
        }
    }

    /// Keeps all data in memory (the default).
    pub fn in_memory(mut self) -> Self {
        self.config.data = Data::Memory;
        self
    }

    /// Keeps data in this folder.
    pub fn data_dir(mut self, path: impl Into<PathBuf>) -> Self {
        self.config.data = Data::Folder(path.into());
        self
    }

    /// Names the member.
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.config.name = name.into();
        self
    }

    /// Sets the token all ids are derived with.
    pub fn token(mut self, token: impl Into<String>) -> Self {
        self.config.token = token.into();
        self
    }

    /// Lists all members of a new cluster, this one included, as `(name, peer URLs)`.
    pub fn cluster<N, U>(mut self, members: impl IntoIterator<Item = (N, U)>) -> Self
    where
        N: Into<String>,
        U: IntoIterator,
        U::Item: Into<String>,
    {
        let members = members
            .into_iter()
            .map(|(name, urls)| InitialMember {
                name: name.into(),
                peer_urls: urls.into_iter().map(Into::into).collect(),
            })
            .collect();
        self.cluster_mut().members = members;
        self
    }

    /// Lets the listed members be those of a cluster that runs, to which this one was added.
    pub fn existing(mut self) -> Self {
        self.cluster_mut().state = ClusterState::Existing;
        self
    }

    /// Has this member add itself to the cluster of whoever serves peers at `url`. The list of
    /// members holds this one alone.
    pub fn join(mut self, url: impl Into<String>) -> Self {
        self.cluster_mut().state = ClusterState::Join(url.into());
        self
    }

    /// Has this member form a new cluster of itself alone, from the data it has.
    pub fn force_new_cluster(mut self) -> Self {
        self.config.force_new_cluster = true;
        self
    }

    /// Sets where to listen for peers, as `http://host:port`.
    pub fn listen_peers<U: Into<String>>(mut self, urls: impl IntoIterator<Item = U>) -> Self {
        self.cluster_mut().listen_peer_urls = urls.into_iter().map(Into::into).collect();
        self
    }

    /// Serves peers on a listener that is bound already, in place of the peer listen URLs: how a
    /// test lets the system choose ports before it writes the member list.
    pub fn peer_listener(mut self, listener: TcpListener) -> Self {
        self.cluster_mut();
        self.peer_listener = Some(listener);
        self
    }

    /// Tells the cluster where clients reach this member.
    pub fn advertise_client_urls<U: Into<String>>(
        mut self,
        urls: impl IntoIterator<Item = U>,
    ) -> Self {
        self.config.advertise_client_urls = urls.into_iter().map(Into::into).collect();
        self
    }

    /// Sets the time without a leader after which followers elect one.
    pub fn election_timeout(mut self, timeout: Duration) -> Self {
        self.config.election_timeout = timeout;
        self
    }

    /// Sets the time between a leader's signs of life.
    pub fn heartbeat_interval(mut self, interval: Duration) -> Self {
        self.config.heartbeat_interval = interval;
        self
    }

    /// Bounds what clients may send.
    pub fn limits(mut self, limits: Limits) -> Self {
        self.config.limits = limits;
        self
    }

    /// Sets the size in bytes above which writes are refused.
    pub fn quota(mut self, bytes: u64) -> Self {
        self.config.quota_backend_bytes = bytes;
        self
    }

    /// Sets how many log entries are kept for followers that lag.
    pub fn catch_up_entries(mut self, entries: u64) -> Self {
        self.config.catch_up_entries = entries;
        self
    }

    /// Sets how often the leader compares the members' data; `None` is never.
    pub fn corrupt_check_interval(mut self, interval: Option<Duration>) -> Self {
        self.config.corrupt_check_interval = interval;
        self
    }

    /// Sets what compacts history without being asked.
    pub fn auto_compaction(mut self, mode: AutoCompaction) -> Self {
        self.config.auto_compaction = mode;
        self
    }

    /// The settings as they stand.
    #[must_use]
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Starts the member: opens its data, listens for its peers and takes part in consensus. The
    /// member is running when this returns, but there may be no leader yet; requests wait for one.
    ///
    /// # Errors
    /// Settings that cannot work, a data folder that is not this member's or is damaged, or an
    /// address that cannot be bound. Nothing keeps running then.
    pub async fn start(self) -> Result<Node, StartError> {
        bootstrap::start(self.config, self.peer_listener).await
    }

    fn cluster_mut(&mut self) -> &mut ClusterConfig {
        self.config.cluster.get_or_insert_with(|| ClusterConfig {
            members: Vec::new(),
            state: ClusterState::New,
            listen_peer_urls: Vec::new(),
        })
    }
}
