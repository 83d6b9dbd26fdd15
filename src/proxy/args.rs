//! `quorate proxy`'s flags: those of `etcd grpc-proxy start` where the thing is the same.

use std::time::Duration;

use clap::Args;
use quorate::core::config::Limits;
use quorate::proto::limits::REQUEST_BYTES_MAX;

/// Flags of `quorate proxy`. Each can be set by `QUORATE_PROXY_<FLAG>` too.
#[derive(Debug, Args)]
pub(crate) struct ProxyArgs {
    /// Members to find the cluster by, as http://host:port
    #[arg(
        long,
        env = "QUORATE_PROXY_ENDPOINTS",
        value_name = "URLS",
        value_delimiter = ',',
        default_value = "http://127.0.0.1:2379"
    )]
    pub(super) endpoints: Vec<String>,

    /// Where to listen for clients, as host:port or http://host:port
    #[arg(
        long,
        alias = "listen-client-urls",
        env = "QUORATE_PROXY_LISTEN_ADDR",
        value_name = "ADDRESSES",
        value_delimiter = ',',
        default_value = "127.0.0.1:23790"
    )]
    pub(super) listen_addr: Vec<String>,

    /// Where clients reach this proxy: shown to them in place of the members
    #[arg(
        long,
        alias = "advertise-client-urls",
        env = "QUORATE_PROXY_ADVERTISE_CLIENT_URL",
        value_name = "URLS",
        value_delimiter = ','
    )]
    pub(super) advertise_client_url: Vec<String>,

    /// How often the members are asked for; 0s keeps to --endpoints
    #[arg(
        long,
        env = "QUORATE_PROXY_ENDPOINT_REFRESH",
        value_name = "DURATION",
        default_value = "30s",
        value_parser = humantime::parse_duration
    )]
    pub(super) endpoint_refresh: Duration,

    /// The largest request, in bytes; members have a limit of their own
    #[arg(
        long,
        env = "QUORATE_PROXY_MAX_REQUEST_BYTES",
        value_name = "BYTES",
        default_value_t = REQUEST_BYTES_MAX
    )]
    max_request_bytes: usize,

    /// The most calls, watches and keep-alive streams included, on one connection at once
    #[arg(
        long,
        env = "QUORATE_PROXY_MAX_CONCURRENT_STREAMS",
        value_name = "CALLS",
        default_value_t = 10_000
    )]
    max_concurrent_streams: u32,

    /// The most watchers on one watch stream
    #[arg(
        long,
        env = "QUORATE_PROXY_MAX_WATCHERS_PER_STREAM",
        value_name = "WATCHERS",
        default_value_t = 100_000
    )]
    max_watchers_per_stream: usize,

    /// The most client connections at once, half of it from one address; further bounded by the limit on
    /// open files
    #[arg(
        long,
        env = "QUORATE_PROXY_MAX_CONNECTIONS",
        value_name = "CONNECTIONS",
        default_value_t = 16_384
    )]
    max_connections: usize,

    /// What is logged
    #[arg(long, env = "QUORATE_PROXY_LOG_LEVEL", value_name = "LEVEL", default_value = "info",
          value_parser = ["error", "warn", "info", "debug", "trace"])]
    pub(super) log_level: String,

    /// End when standard input does, so that a proxy ends with the program that started it
    #[arg(long)]
    pub(super) exit_with_stdin: bool,
}

impl ProxyArgs {
    /// The bounds that the flags set.
    pub(super) fn limits(&self) -> Limits {
        Limits {
            max_request_bytes: self.max_request_bytes,
            max_concurrent_streams: self.max_concurrent_streams,
            max_watchers_per_stream: self.max_watchers_per_stream,
            max_connections: self.max_connections,
            ..Limits::default()
        }
    }

    /// Where to listen, as URLs.
    pub(super) fn listen_urls(&self) -> Vec<String> {
        let url = |address: &String| match address.contains("://") {
            true => address.clone(),
            false => format!("http://{address}"),
        };
        self.listen_addr.iter().map(url).collect()
    }
}
