//! `quorate server`'s flags: etcd's names where the thing is the same.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use clap::{Args, ValueEnum};
use quorate::core::api::http::origin::Access;
use quorate::core::config::{AutoCompaction, ClusterConfig, ClusterState, Config, Data};

use super::initial_cluster;
use super::limits::LimitArgs;

/// What history is kept by without being asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum CompactionMode {
    /// By age.
    Periodic,
    /// By number of revisions.
    Revision,
}

/// Whether the listed members form a cluster or join one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum InitialState {
    New,
    Existing,
}

/// Flags of `quorate server`. Each can be set by `QUORATE_<FLAG>` or etcd's `ETCD_<FLAG>` too.
#[derive(Debug, Args)]
pub(crate) struct ServerArgs {
    /// This member's name, as in --initial-cluster
    #[arg(long, env = "QUORATE_NAME", default_value = "default")]
    name: String,

    /// Where data is kept [default: <name>.quorate]
    #[arg(long, env = "QUORATE_DATA_DIR", value_name = "DIR")]
    data_dir: Option<PathBuf>,

    /// Where to listen for clients
    #[arg(
        long,
        env = "QUORATE_LISTEN_CLIENT_URLS",
        value_name = "URLS",
        value_delimiter = ',',
        default_value = "http://localhost:2379"
    )]
    listen_client_urls: Vec<String>,

    /// Where clients reach this member [default: --listen-client-urls]
    #[arg(
        long,
        env = "QUORATE_ADVERTISE_CLIENT_URLS",
        value_name = "URLS",
        value_delimiter = ','
    )]
    advertise_client_urls: Vec<String>,

    /// Where to listen for the other members
    #[arg(
        long,
        env = "QUORATE_LISTEN_PEER_URLS",
        value_name = "URLS",
        value_delimiter = ',',
        default_value = "http://localhost:2380"
    )]
    listen_peer_urls: Vec<String>,

    /// Where the other members reach this one
    #[arg(
        long,
        env = "QUORATE_INITIAL_ADVERTISE_PEER_URLS",
        value_name = "URLS",
        value_delimiter = ',',
        default_value = "http://localhost:2380"
    )]
    initial_advertise_peer_urls: Vec<String>,

    /// All members of a new cluster: name=url,name=url,… (the same on each of them)
    /// [default: this member alone]
    #[arg(long, env = "QUORATE_INITIAL_CLUSTER", value_name = "MEMBERS")]
    initial_cluster: Option<String>,

    /// Whether the listed members form a new cluster, or this one joins them
    #[arg(
        long,
        env = "QUORATE_INITIAL_CLUSTER_STATE",
        value_name = "STATE",
        default_value = "new"
    )]
    initial_cluster_state: InitialState,

    /// Add this member to a running cluster, through the peer URL of any of its members
    #[arg(
        long,
        env = "QUORATE_JOIN",
        value_name = "URL",
        conflicts_with_all = ["initial_cluster", "initial_cluster_state"]
    )]
    join: Option<String>,

    /// Form a new cluster of this member alone, from the data it has: the way out when a quorum is lost
    /// for good. Take the flag away afterwards
    #[arg(long, env = "QUORATE_FORCE_NEW_CLUSTER", num_args = 0..=1, default_value_t = false,
          default_missing_value = "true", action = clap::ArgAction::Set)]
    force_new_cluster: bool,

    /// Whether changes of the membership are refused that would leave too few running members
    #[arg(
        long,
        env = "QUORATE_STRICT_RECONFIG_CHECK",
        value_name = "BOOL",
        num_args = 0..=1,
        default_value_t = true,
        default_missing_value = "true",
        action = clap::ArgAction::Set
    )]
    strict_reconfig_check: bool,

    /// How often the leader compares the members' data; 0s is never
    #[arg(
        long,
        alias = "experimental-corrupt-check-time",
        env = "QUORATE_CORRUPT_CHECK_TIME",
        value_name = "DURATION",
        default_value = "10m",
        value_parser = humantime::parse_duration
    )]
    corrupt_check_time: Duration,

    /// Keeps clusters with the same addresses apart
    #[arg(
        long,
        env = "QUORATE_INITIAL_CLUSTER_TOKEN",
        value_name = "TOKEN",
        default_value = "etcd-cluster"
    )]
    initial_cluster_token: String,

    /// How often a leader shows that it lives, in milliseconds
    #[arg(
        long,
        env = "QUORATE_HEARTBEAT_INTERVAL",
        value_name = "MS",
        default_value_t = 100
    )]
    heartbeat_interval: u64,

    /// How long the others wait for it before they elect another, in milliseconds
    #[arg(
        long,
        env = "QUORATE_ELECTION_TIMEOUT",
        value_name = "MS",
        default_value_t = 1000
    )]
    election_timeout: u64,

    /// Log entries kept for a member that lags; one further behind gets a snapshot
    #[arg(
        long,
        env = "QUORATE_SNAPSHOT_COUNT",
        value_name = "ENTRIES",
        default_value_t = 5000
    )]
    snapshot_count: u64,

    /// Bytes a second that each snapshot to a member is sent with at most; 0 is no limit
    #[arg(
        long,
        env = "QUORATE_SNAPSHOT_RATE_LIMIT",
        value_name = "BYTES",
        default_value_t = 32 << 20
    )]
    snapshot_rate_limit: u64,

    /// Bytes on disk above which writes are refused; 0 means 2 GiB
    #[arg(
        long,
        env = "QUORATE_QUOTA_BACKEND_BYTES",
        value_name = "BYTES",
        default_value_t = 0
    )]
    quota_backend_bytes: u64,

    /// What --auto-compaction-retention counts
    #[arg(
        long,
        env = "QUORATE_AUTO_COMPACTION_MODE",
        value_name = "MODE",
        default_value = "periodic"
    )]
    auto_compaction_mode: CompactionMode,

    /// How much history is kept: an age (`30m`; a plain number means hours) or a number of
    /// revisions; 0 keeps all
    #[arg(
        long,
        env = "QUORATE_AUTO_COMPACTION_RETENTION",
        value_name = "AMOUNT",
        default_value = "0"
    )]
    auto_compaction_retention: String,

    /// Origins of web pages that may use the HTTP routes, as https://host:port; `*` is any
    /// [default: none but this member's own]
    #[arg(
        long,
        env = "QUORATE_CORS",
        value_name = "ORIGINS",
        value_delimiter = ','
    )]
    cors: Vec<String>,

    /// Host names that HTTP requests may be addressed to; `*` is any
    #[arg(
        long,
        env = "QUORATE_HOST_WHITELIST",
        value_name = "HOSTS",
        value_delimiter = ',',
        default_value = "*"
    )]
    host_whitelist: Vec<String>,

    /// What is logged
    #[arg(long, env = "QUORATE_LOG_LEVEL", value_name = "LEVEL", default_value = "info",
          value_parser = ["error", "warn", "info", "debug", "trace"])]
    log_level: String,

    /// End when standard input does, so that a member ends with the program that started it
    #[arg(long)]
    exit_with_stdin: bool,

    #[command(flatten)]
    limits: LimitArgs,

    #[command(flatten)]
    tls: TlsArgs,
}

/// etcd's TLS flags, known so that they are refused by name: a server that was told to encrypt and
/// does not must not start.
#[derive(Debug, Args)]
struct TlsArgs {
    #[arg(long, env = "QUORATE_CERT_FILE", hide = true)]
    cert_file: Option<PathBuf>,
    #[arg(long, env = "QUORATE_KEY_FILE", hide = true)]
    key_file: Option<PathBuf>,
    #[arg(long, env = "QUORATE_TRUSTED_CA_FILE", hide = true)]
    trusted_ca_file: Option<PathBuf>,
    #[arg(long, env = "QUORATE_CLIENT_CERT_AUTH", hide = true, num_args = 0..=1,
          default_missing_value = "true")]
    client_cert_auth: Option<bool>,
    #[arg(long, env = "QUORATE_PEER_CERT_FILE", hide = true)]
    peer_cert_file: Option<PathBuf>,
    #[arg(long, env = "QUORATE_PEER_KEY_FILE", hide = true)]
    peer_key_file: Option<PathBuf>,
    #[arg(long, env = "QUORATE_PEER_TRUSTED_CA_FILE", hide = true)]
    peer_trusted_ca_file: Option<PathBuf>,
    #[arg(long, env = "QUORATE_PEER_CLIENT_CERT_AUTH", hide = true, num_args = 0..=1,
          default_missing_value = "true")]
    peer_client_cert_auth: Option<bool>,
    #[arg(long, env = "QUORATE_AUTO_TLS", hide = true, num_args = 0..=1,
          default_missing_value = "true")]
    auto_tls: Option<bool>,
    #[arg(long, env = "QUORATE_PEER_AUTO_TLS", hide = true, num_args = 0..=1,
          default_missing_value = "true")]
    peer_auto_tls: Option<bool>,
}

impl TlsArgs {
    fn first_given(&self) -> Option<&'static str> {
        let files = [
            ("--cert-file", &self.cert_file),
            ("--key-file", &self.key_file),
            ("--trusted-ca-file", &self.trusted_ca_file),
            ("--peer-cert-file", &self.peer_cert_file),
            ("--peer-key-file", &self.peer_key_file),
            ("--peer-trusted-ca-file", &self.peer_trusted_ca_file),
        ];
        let switches = [
            ("--client-cert-auth", self.client_cert_auth),
            ("--peer-client-cert-auth", self.peer_client_cert_auth),
            ("--auto-tls", self.auto_tls),
            ("--peer-auto-tls", self.peer_auto_tls),
        ];
        let files = files
            .iter()
            .filter(|(_, file)| file.is_some())
            .map(|(flag, _)| *flag);
        let switches = switches
            .iter()
            .filter(|(_, on)| *on == Some(true))
            .map(|(flag, _)| *flag);
        files.chain(switches).next()
    }
}

impl ServerArgs {
    /// Where to listen for clients.
    pub(crate) fn listen_client_urls(&self) -> &[String] {
        &self.listen_client_urls
    }

    /// Who may use the HTTP routes.
    pub(crate) fn access(&self) -> Access {
        Access::default()
            .origins(self.cors.iter().cloned())
            .hosts(self.host_whitelist.iter().cloned())
    }

    /// Whether to end when standard input does.
    pub(crate) fn exit_with_stdin(&self) -> bool {
        self.exit_with_stdin
    }

    /// What is logged.
    pub(crate) fn log_level(&self) -> &str {
        &self.log_level
    }

    /// The member these flags describe.
    ///
    /// # Errors
    /// When a value cannot be understood, or asks for what this version does not have.
    pub(crate) fn config(&self) -> anyhow::Result<Config> {
        if let Some(flag) = self.tls.first_given() {
            bail!(
                "{flag}: this version has no TLS yet, and does not start without it when asked to"
            );
        }
        let folder = self.data_dir.clone();
        let advertised = match self.advertise_client_urls.as_slice() {
            [] => &self.listen_client_urls,
            given => given,
        };
        let mut config = Config {
            name: self.name.clone(),
            data: Data::Folder(folder.unwrap_or_else(|| format!("{}.quorate", self.name).into())),
            token: self.initial_cluster_token.clone(),
            cluster: Some(ClusterConfig {
                members: initial_cluster::members(
                    &self.name,
                    self.initial_cluster.as_deref(),
                    &self.initial_advertise_peer_urls,
                )?,
                state: match (&self.join, self.initial_cluster_state) {
                    (Some(url), _) => ClusterState::Join(url.clone()),
                    (None, InitialState::New) => ClusterState::New,
                    (None, InitialState::Existing) => ClusterState::Existing,
                },
                listen_peer_urls: self.listen_peer_urls.clone(),
            }),
            advertise_client_urls: advertised.to_vec(),
            heartbeat_interval: Duration::from_millis(self.heartbeat_interval),
            election_timeout: Duration::from_millis(self.election_timeout),
            quota_backend_bytes: match self.quota_backend_bytes {
                0 => Config::default().quota_backend_bytes,
                bytes => bytes,
            },
            catch_up_entries: self.snapshot_count,
            snapshot_bytes_per_second: self.snapshot_rate_limit,
            auto_compaction: self.auto_compaction()?,
            force_new_cluster: self.force_new_cluster,
            strict_reconfig_check: self.strict_reconfig_check,
            corrupt_check_interval: Some(self.corrupt_check_time).filter(|pause| !pause.is_zero()),
            ..Config::default()
        };
        self.limits.set(&mut config);
        Ok(config)
    }

    fn auto_compaction(&self) -> anyhow::Result<AutoCompaction> {
        let amount = self.auto_compaction_retention.trim();
        let wrong = || format!("--auto-compaction-retention: `{amount}`");
        match self.auto_compaction_mode {
            CompactionMode::Revision => {
                let revisions: i64 = amount.parse().with_context(wrong)?;
                ensure!(revisions >= 0, "{}: less than nothing", wrong());
                Ok(if revisions == 0 {
                    AutoCompaction::Off
                } else {
                    AutoCompaction::Revision(revisions)
                })
            }
            CompactionMode::Periodic => {
                let age = age(amount).with_context(wrong)?;
                Ok(if age.is_zero() {
                    AutoCompaction::Off
                } else {
                    AutoCompaction::Periodic(age)
                })
            }
        }
    }
}

/// An age: `30s`, `10m`, `1h30m`, or, as etcd has it here, a plain number of hours.
fn age(text: &str) -> anyhow::Result<Duration> {
    match text.parse::<u64>() {
        Ok(hours) => {
            let seconds = hours.checked_mul(3600).context("too long")?;
            Ok(Duration::from_secs(seconds))
        }
        Err(_) => Ok(humantime::parse_duration(text)?),
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        args: ServerArgs,
    }

    fn config(line: &str) -> anyhow::Result<Config> {
        let words = std::iter::once("server").chain(line.split_whitespace());
        Line::try_parse_from(words)?.args.config()
    }

    #[test]
    fn an_etcd_launch_line_moves_over() {
        let config = config(
            "--name b --data-dir /d --initial-cluster a=http://h1:1,b=http://h2:1,c=http://h3:1 \
             --initial-advertise-peer-urls http://h2:1 --listen-peer-urls http://0.0.0.0:1 \
             --listen-client-urls http://0.0.0.0:2 --advertise-client-urls http://h2:2 \
             --auto-compaction-mode=periodic --auto-compaction-retention=1h30m \
             --heartbeat-interval 20 --election-timeout 200 --quota-backend-bytes 4096 \
             --max-txn-ops 200 --experimental-watch-progress-notify-interval 5s",
        )
        .unwrap();
        let cluster = config.cluster.unwrap();
        let names: Vec<_> = cluster
            .members
            .iter()
            .map(|member| member.name.as_str())
            .collect();
        assert_eq!(names, ["a", "b", "c"]);
        assert_eq!(
            config.auto_compaction,
            AutoCompaction::Periodic(Duration::from_secs(5400))
        );
        assert_eq!(config.election_timeout, Duration::from_millis(200));
        assert_eq!(config.quota_backend_bytes, 4096);
        assert_eq!(config.limits.max_txn_ops, 200);
        assert_eq!(config.watch_progress_interval, Duration::from_secs(5));
        assert_eq!(config.advertise_client_urls, ["http://h2:2"]);
        assert_eq!(config.data, Data::Folder("/d".into()));
    }

    #[test]
    fn mistakes_are_refused_with_the_flag_that_is_wrong() {
        for (line, part) in [
            (
                "--name x --initial-cluster a=http://h:1",
                "--initial-cluster does not list",
            ),
            (
                "--initial-cluster default=http://other:1",
                "--initial-advertise-peer-urls",
            ),
            ("--initial-cluster nonsense", "not name=url"),
            (
                "--auto-compaction-retention soon",
                "--auto-compaction-retention",
            ),
            (
                "--auto-compaction-mode revision --auto-compaction-retention -1",
                "",
            ),
            ("--cert-file c.pem", "--cert-file"),
            ("--client-cert-auth", "--client-cert-auth"),
        ] {
            let error = format!("{:#}", config(line).unwrap_err());
            assert!(error.contains(part), "{line}: {error}");
        }
    }

    #[test]
    fn ages_are_read_as_etcd_writes_them() {
        assert_eq!(age("0").unwrap(), Duration::ZERO);
        assert_eq!(age("2").unwrap(), Duration::from_secs(7200));
        assert_eq!(age("1h30m5s").unwrap(), Duration::from_secs(5405));
        assert!(age("5x").is_err() && age("m").is_err() && age("5m3").is_err());
        assert_eq!(age("1.5s").unwrap(), Duration::from_millis(1500));
        assert!(age(&"5124095576030431h".repeat(2)).is_err());
    }
}
