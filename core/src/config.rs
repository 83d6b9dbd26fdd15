//! How a member is set up: every knob with its unit, its default and what breaks when it is wrong.
//! Filled by [`NodeBuilder`](crate::node::NodeBuilder) and by the server's command line.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use quorate_proto::limits::LEASE_TTL_SECONDS_MAX;
use sha2::{Digest, Sha256};

/// Where a member keeps its data.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Data {
    /// In memory: lost when the process ends. For tests and development.
    Memory,
    /// In this folder, made with mode 0700 if it does not exist. It belongs to one member of one
    /// cluster and is locked while the member runs.
    Folder(PathBuf),
}

/// Whether the initial members form a cluster, or one of them joins a cluster that runs already.
/// Means nothing once the data folder says whose it is.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum ClusterState {
    /// A new cluster of exactly the listed members.
    #[default]
    New,
    /// A running cluster that this member was added to. It asks the other members of the list who it
    /// is, and finds itself by its peer URLs.
    Existing,
    /// A running cluster that this member adds itself to, through whoever serves peers at this URL.
    /// It gets a vote as soon as it has caught up. The list of members holds itself alone.
    Join(String),
}

/// One member as the operator lists it before the cluster exists.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InitialMember {
    /// The member's name, unique in the list.
    pub name: String,
    /// Where its peers reach it: `http://host:port`.
    pub peer_urls: Vec<String>,
}

/// The peers of a member, and where it listens for them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClusterConfig {
    /// All members, this one included. Must be the same on every member of a new cluster: ids are
    /// derived from it.
    pub members: Vec<InitialMember>,
    /// How this member comes to its cluster.
    pub state: ClusterState,
    /// Where this member listens for peers. Empty in a cluster of one: no network at all.
    pub listen_peer_urls: Vec<String>,
}

/// Bounds of what a client may send.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Operations in each branch, and compares, of a transaction. Default 128. Higher lets one
    /// transaction hold up every other write for longer.
    pub max_txn_ops: usize,
    /// Encoded size of a write in bytes. Default 1.5 MiB. Must be the same on all members: a
    /// larger write accepted by one is refused by another's decode limit. At most 32 MiB, half of what
    /// members take from each other.
    pub max_request_bytes: usize,
    /// Calls on one client connection at once, watches and keep-alive streams included. Default
    /// 10,000. Beyond it the next call waits at the client; too low and a client with many watch
    /// streams stands still.
    pub max_concurrent_streams: u32,
    /// Watchers on one watch stream. Default 100,000. When hit, creating another is refused.
    pub max_watchers_per_stream: usize,
    /// Reads and writes of clients waiting in this member. Default 8,192. When hit, the next is
    /// refused with `etcdserver: too many requests`.
    pub max_pending: usize,
    /// Client connections at once, half of it from one address. Default 16,384. A program that
    /// embeds a member sets it to what its limit on open files leaves, less 512 for the member's
    /// own files and peers: the `quorate` program does. When hit, the next is closed at once.
    pub max_connections: usize,
    /// Longest time to live in seconds that a lease may be granted with. Default and maximum
    /// 9,000,000,000, as etcd's. When hit, the grant is refused with `etcdserver: too large lease
    /// TTL`; leases granted before keep theirs.
    pub max_lease_ttl_seconds: i64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            max_txn_ops: 128,
            max_request_bytes: 1_572_864,
            max_concurrent_streams: 10_000,
            max_watchers_per_stream: 100_000,
            max_pending: 8_192,
            max_connections: 16_384,
            max_lease_ttl_seconds: LEASE_TTL_SECONDS_MAX,
        }
    }
}

/// What compacts history without being asked. Only the leader does it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum AutoCompaction {
    /// Nothing: history grows until a client compacts.
    #[default]
    Off,
    /// Keeps what is younger than this. Checked every tenth of it, at least once an hour.
    Periodic(Duration),
    /// Keeps this many revisions behind the current one. Checked every five minutes.
    Revision(i64),
}

/// How a member is set up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// The member's name. Default `default`, as etcd's. With a list of initial members it must
    /// be in the list.
    pub name: String,
    /// Where data is kept. Default: in memory.
    pub data: Data,
    /// Mixed into all ids, so that two clusters set up with the same addresses still refuse each
    /// other. Default `etcd-cluster`, as etcd's.
    pub token: String,
    /// The peers; `None` is a lone member that opens no socket. Default `None`.
    pub cluster: Option<ClusterConfig>,
    /// Where clients reach this member, as told to other clients. Published to the cluster after
    /// the start. Default none.
    pub advertise_client_urls: Vec<String>,
    /// How often a leader shows its peers that it lives. Default 100 ms; about the round trip
    /// between members. Too low wastes the network, too high delays followers' reads.
    pub heartbeat_interval: Duration,
    /// How long followers wait for a leader before they elect another. Default 1 s; at least 5
    /// heartbeats. Too low and a busy machine changes leaders for nothing; too high and clients
    /// wait longer after a crash. Must be the same on all members.
    pub election_timeout: Duration,
    /// Bounds of what a client may send.
    pub limits: Limits,
    /// Bytes on disk above which writes are refused with a NOSPACE alarm. Default 2 GiB; 0 means
    /// the default. Too high and the disk itself fills, which stops the member.
    pub quota_backend_bytes: u64,
    /// Log entries kept for followers that lag. Default 5,000. A follower further behind gets a
    /// snapshot of everything instead; more keeps more log on disk.
    pub catch_up_entries: u64,
    /// Bytes a second that each snapshot to a member is sent with at most; 0 is no limit. Default
    /// 32 MiB. Too high and it takes disk and network from the writes, too low and the log grows far
    /// while the member is caught up.
    pub snapshot_bytes_per_second: u64,
    /// What compacts history without being asked. Default off.
    pub auto_compaction: AutoCompaction,
    /// Whether this member forms a new cluster of itself alone, from the data it has: the way out when
    /// a quorum is lost for good. What the lost members had and it had not is lost. Default false.
    pub force_new_cluster: bool,
    /// Whether changes of the membership are refused that would leave the cluster without a quorum
    /// of members that run. Default true; without it a mistake can end the cluster.
    pub strict_reconfig_check: bool,
    /// How often the leader compares the members' data; `None` is never. Default 10 min, and never so
    /// often that it takes more than a twentieth of the time. Shorter finds damage sooner, and reads
    /// the whole store more often.
    pub corrupt_check_interval: Option<Duration>,
    /// How often watchers that asked for progress and had no events hear the current revision.
    /// Default 10 min.
    pub watch_progress_interval: Duration,
}

/// etcd's default client-visible peer address, used where no peer listens.
const DEFAULT_PEER_URL: &str = "http://localhost:2380";
/// Default quota, 2 GiB.
pub(crate) const DEFAULT_QUOTA_BYTES: u64 = 2 * 1024 * 1024 * 1024;
/// A request bound above this would not fit the peer protocol's frames.
const MAX_REQUEST_BYTES_CEILING: usize = 32 * 1024 * 1024;
/// An election timeout above this is a typing error (etcd's bound).
const MAX_ELECTION_TIMEOUT: Duration = Duration::from_secs(50);
/// Below this, the scheduler's jitter alone changes leaders.
const MIN_HEARTBEAT: Duration = Duration::from_millis(5);

impl Default for Config {
    fn default() -> Self {
        Self {
            name: "default".to_owned(),
            data: Data::Memory,
            token: "etcd-cluster".to_owned(),
            cluster: None,
            advertise_client_urls: Vec::new(),
            heartbeat_interval: Duration::from_millis(100),
            election_timeout: Duration::from_secs(1),
            limits: Limits::default(),
            quota_backend_bytes: DEFAULT_QUOTA_BYTES,
            catch_up_entries: 5_000,
            snapshot_bytes_per_second: 32 << 20,
            auto_compaction: AutoCompaction::Off,
            force_new_cluster: false,
            strict_reconfig_check: true,
            corrupt_check_interval: Some(Duration::from_secs(600)),
            watch_progress_interval: Duration::from_secs(600),
        }
    }
}

/// A setting that cannot work, in words for the operator.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct ConfigError(String);

impl ConfigError {
    /// A setting that cannot work, for this reason.
    pub(crate) fn new(why: impl Into<String>) -> Self {
        Self(why.into())
    }
}

/// A refusal with this text.
fn refuse<T>(text: impl Into<String>) -> Result<T, ConfigError> {
    Err(ConfigError(text.into()))
}

/// What the ids of a cluster are derived to: the same on every member with the same list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identities {
    /// The cluster's id.
    pub cluster_id: u64,
    /// This member's id.
    pub member_id: u64,
    /// Every initial member by id.
    pub members: BTreeMap<u64, InitialMember>,
}

impl Config {
    /// How long a request may wait inside this member before it is answered with a timeout:
    /// 5 s and two election timeouts, as etcd's.
    #[must_use]
    pub fn request_timeout(&self) -> Duration {
        Duration::from_secs(5) + 2 * self.election_timeout
    }

    /// The shortest lease in seconds: one and a half election timeouts, rounded up.
    #[must_use]
    pub fn lease_ttl_min_seconds(&self) -> i64 {
        let millis = self
            .election_timeout
            .as_millis()
            .saturating_mul(3)
            .div_ceil(2);
        i64::try_from(millis.div_ceil(1_000))
            .unwrap_or(i64::MAX)
            .max(1)
    }

    /// The initial members; a lone member's list holds itself under etcd's default address.
    #[must_use]
    pub fn initial_members(&self) -> Vec<InitialMember> {
        match &self.cluster {
            Some(cluster) => cluster.members.clone(),
            None => vec![InitialMember {
                name: self.name.clone(),
                peer_urls: vec![DEFAULT_PEER_URL.to_owned()],
            }],
        }
    }

    /// Where peers reach this member, as the list of initial members says; none if it is not in it.
    #[must_use]
    pub fn peer_urls(&self) -> Vec<String> {
        let members = self.initial_members();
        let own = members.into_iter().find(|member| member.name == self.name);
        own.map(|own| own.peer_urls).unwrap_or_default()
    }

    /// The ids that follow from the initial members and the token.
    ///
    /// # Errors
    /// As [`Config::validate`].
    pub fn identities(&self) -> Result<Identities, ConfigError> {
        self.validate()?;
        let mut members = BTreeMap::new();
        let mut own = None;
        for member in self.initial_members() {
            let id = member_id(&member.peer_urls, &self.token);
            if member.name == self.name {
                own = Some(id);
            }
            if let Some(other) = members.insert(id, member) {
                return refuse(format!(
                    "two initial members have the id of {:?}",
                    other.name
                ));
            }
        }
        let Some(member_id) = own else {
            return refuse(format!(
                "member {:?} is not among the initial members",
                self.name
            ));
        };
        let cluster_id = cluster_id(members.keys().copied(), &self.token);
        Ok(Identities {
            cluster_id,
            member_id,
            members,
        })
    }

    /// Checks everything that can be checked without touching disk or network.
    ///
    /// # Errors
    /// A text that names the setting, its value and what is expected.
    pub fn validate(&self) -> Result<(), ConfigError> {
        if self.name.is_empty() {
            return refuse("the member's name is empty");
        }
        self.validate_timing()?;
        self.validate_limits()?;
        if self.force_new_cluster && self.data == Data::Memory {
            return refuse("a new cluster can be forced of data on disk only");
        }
        for url in &self.advertise_client_urls {
            check_url("advertised client URL", url)?;
        }
        match &self.cluster {
            Some(cluster) => self.validate_cluster(cluster),
            None => Ok(()),
        }
    }

    fn validate_timing(&self) -> Result<(), ConfigError> {
        let (heartbeat, election) = (self.heartbeat_interval, self.election_timeout);
        if heartbeat < MIN_HEARTBEAT {
            return refuse(format!(
                "heartbeat interval {heartbeat:?} is below {MIN_HEARTBEAT:?}"
            ));
        }
        if election < 5 * heartbeat {
            return refuse(format!(
                "election timeout {election:?} must be at least 5 times the heartbeat interval \
                 {heartbeat:?}"
            ));
        }
        if election > MAX_ELECTION_TIMEOUT {
            return refuse(format!(
                "election timeout {election:?} is above {MAX_ELECTION_TIMEOUT:?}"
            ));
        }
        if self
            .corrupt_check_interval
            .is_some_and(|pause| pause.is_zero())
        {
            return refuse("comparing the members' data without a pause leaves no time for them");
        }
        if self.watch_progress_interval < Duration::from_millis(10) {
            return refuse("the watch progress interval is below 10 ms");
        }
        match self.auto_compaction {
            AutoCompaction::Periodic(keep) if keep < Duration::from_secs(1) => refuse(format!(
                "automatic compaction keeps {keep:?}, less than a second"
            )),
            AutoCompaction::Revision(keep) if keep < 1 => refuse(format!(
                "automatic compaction keeps {keep} revisions, less than 1"
            )),
            AutoCompaction::Off | AutoCompaction::Periodic(_) | AutoCompaction::Revision(_) => {
                Ok(())
            }
        }
    }

    fn validate_limits(&self) -> Result<(), ConfigError> {
        let Limits {
            max_txn_ops,
            max_request_bytes,
            max_concurrent_streams,
            max_watchers_per_stream,
            max_pending,
            max_connections,
            max_lease_ttl_seconds,
        } = self.limits;
        for (limit, what) in [
            (max_txn_ops, "operations in a transaction"),
            (max_pending, "pending requests"),
            (max_watchers_per_stream, "watchers on a stream"),
            (max_connections, "connections"),
            (
                usize::try_from(max_concurrent_streams).unwrap_or(usize::MAX),
                "concurrent streams",
            ),
        ] {
            if limit == 0 {
                return refuse(format!("a limit of 0 {what} refuses everything"));
            }
        }
        if !(1..=LEASE_TTL_SECONDS_MAX).contains(&max_lease_ttl_seconds) {
            return refuse(format!(
                "longest time to live of a lease, {max_lease_ttl_seconds} s, is not within 1 and \
                 {LEASE_TTL_SECONDS_MAX}"
            ));
        }
        if !(1_024..=MAX_REQUEST_BYTES_CEILING).contains(&max_request_bytes) {
            return refuse(format!(
                "max request bytes {max_request_bytes} is not within 1 KiB and 32 MiB"
            ));
        }
        Ok(())
    }

    fn validate_cluster(&self, cluster: &ClusterConfig) -> Result<(), ConfigError> {
        let members = &cluster.members;
        if !members.iter().any(|member| member.name == self.name) {
            let names: Vec<&str> = members.iter().map(|member| member.name.as_str()).collect();
            return refuse(format!(
                "member {:?} is not among the initial members {names:?}",
                self.name
            ));
        }
        let mut urls = BTreeMap::new();
        let mut names = BTreeMap::new();
        for member in members {
            if names.insert(&member.name, ()).is_some() {
                return refuse(format!("initial member {:?} is listed twice", member.name));
            }
            if member.peer_urls.is_empty() {
                return refuse(format!("initial member {:?} has no peer URL", member.name));
            }
            for url in &member.peer_urls {
                check_url("peer URL", url)?;
                if let Some(other) = urls.insert(url, &member.name) {
                    return refuse(format!(
                        "{other:?} and {:?} share the peer URL {url}",
                        member.name
                    ));
                }
            }
        }
        if let ClusterState::Join(url) = &cluster.state {
            check_url("URL to join at", url)?;
            if members.len() > 1 {
                return refuse(
                    "a member that adds itself to a cluster learns of the others there: list this one alone",
                );
            }
        }
        for url in &cluster.listen_peer_urls {
            check_url("peer listen URL", url)?;
        }
        Ok(())
    }
}

/// Checks that `url` is `http://host:port` with nothing after it.
pub(crate) fn check_url(what: &str, url: &str) -> Result<(), ConfigError> {
    if url.starts_with("https://") {
        return refuse(format!(
            "{what} {url}: TLS is not supported yet, use http://"
        ));
    }
    url_authority(url).map(|_| ()).ok_or_else(|| {
        ConfigError(format!(
            "{what} {url:?} is not of the form http://host:port"
        ))
    })
}

/// The `host:port` of an `http://host:port` URL, a trailing slash allowed.
#[must_use]
pub fn url_authority(url: &str) -> Option<&str> {
    let rest = url.strip_prefix("http://")?;
    let authority = rest.strip_suffix('/').unwrap_or(rest);
    let (host, port) = authority.rsplit_once(':')?;
    let well_formed = !host.is_empty() && !authority.contains('/') && port.parse::<u16>().is_ok();
    well_formed.then_some(authority)
}

/// A member's id: the first 8 bytes of SHA-256 over its sorted peer URLs and the token. Never 0,
/// which means "no member" on the wire.
#[must_use]
pub fn member_id(peer_urls: &[String], token: &str) -> u64 {
    let mut urls: Vec<&str> = peer_urls.iter().map(String::as_str).collect();
    urls.sort_unstable();
    let mut hash = Sha256::new();
    hash.update(b"quorate member\0");
    for url in urls {
        hash.update(url.as_bytes());
        hash.update(b"\0");
    }
    hash.update(token.as_bytes());
    first_id(hash)
}

/// A cluster's id: the first 8 bytes of SHA-256 over its sorted member ids and the token.
fn cluster_id(sorted_ids: impl Iterator<Item = u64>, token: &str) -> u64 {
    let mut hash = Sha256::new();
    hash.update(b"quorate cluster\0");
    for id in sorted_ids {
        hash.update(id.to_be_bytes());
    }
    hash.update(token.as_bytes());
    first_id(hash)
}

/// The id of a cluster that was restored from a backup: the first 8 bytes of SHA-256 over the id that
/// its settings give, the SHA-256 of the backup and how much revisions were raised. Another one than
/// that of the cluster the backup is of, so that their members refuse each other.
pub(crate) fn restored_cluster_id(derived: u64, sha256: &[u8; 32], bump_revision: i64) -> u64 {
    let mut hash = Sha256::new();
    hash.update(b"quorate restored cluster\0");
    hash.update(derived.to_be_bytes());
    hash.update(sha256);
    hash.update(bump_revision.to_be_bytes());
    first_id(hash)
}

fn first_id(hash: Sha256) -> u64 {
    let digest = hash.finalize();
    let mut first = [0_u8; 8];
    first.copy_from_slice(&digest[..8]);
    u64::from_be_bytes(first).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn three(own: &str) -> Config {
        let member = |name: &str, port: u16| InitialMember {
            name: name.to_owned(),
            peer_urls: vec![format!("http://127.0.0.1:{port}")],
        };
        Config {
            name: own.to_owned(),
            cluster: Some(ClusterConfig {
                members: vec![member("a", 1), member("b", 2), member("c", 3)],
                state: ClusterState::New,
                listen_peer_urls: vec!["http://127.0.0.1:1".to_owned()],
            }),
            ..Config::default()
        }
    }

    #[test]
    fn all_members_derive_the_same_ids_whatever_the_order_of_the_list() {
        let a = three("a").identities().unwrap();
        let mut config = three("b");
        config.cluster.as_mut().unwrap().members.reverse();
        let b = config.identities().unwrap();
        assert_eq!((a.cluster_id, &a.members), (b.cluster_id, &b.members));
        assert_ne!(a.member_id, b.member_id);
        let mut other = three("a");
        other.token = "other".to_owned();
        assert_ne!(other.identities().unwrap().cluster_id, a.cluster_id);
    }

    #[test]
    fn refusals_name_the_setting() {
        let text = |change: fn(&mut Config)| {
            let mut config = three("a");
            change(&mut config);
            config.validate().unwrap_err().to_string()
        };
        assert!(text(|c| c.election_timeout = Duration::from_millis(499)).contains("at least 5"));
        assert!(text(|c| c.name = "d".to_owned()).contains("\"d\" is not among"));
        let urls = |c: &mut Config, url: &str| {
            c.cluster.as_mut().unwrap().members[1].peer_urls = vec![url.to_owned()];
            c.validate().unwrap_err().to_string()
        };
        assert!(urls(&mut three("a"), "http://127.0.0.1:1").contains("share the peer URL"));
        assert!(urls(&mut three("a"), "127.0.0.1:1").contains("http://host:port"));
        assert!(urls(&mut three("a"), "https://h:1").contains("TLS"));
        assert!(text(|c| c.limits.max_lease_ttl_seconds = 0).contains("time to live"));
        assert!(text(|c| c.limits.max_connections = 0).contains("0 connections"));
    }

    #[test]
    fn derived_times_are_etcds() {
        let config = Config::default();
        assert_eq!(config.request_timeout(), Duration::from_secs(7));
        assert_eq!(config.lease_ttl_min_seconds(), 2);
        assert!(config.validate().is_ok());
        assert!(config.identities().is_ok());
    }
}
