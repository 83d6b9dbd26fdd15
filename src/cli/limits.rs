//! The flags that bound what clients may send. Used by `quorate server`.

use std::time::Duration;

use clap::Args;
use quorate::core::config::{Config, Limits};

/// Bounds of what clients may send, and of what waits for them. Names are etcd's where it has the
/// same bound.
#[derive(Debug, Args)]
pub(super) struct LimitArgs {
    /// The most operations in a transaction
    #[arg(
        long,
        env = "QUORATE_MAX_TXN_OPS",
        value_name = "OPS",
        default_value_t = 128
    )]
    max_txn_ops: usize,

    /// The largest request, in bytes
    #[arg(
        long,
        env = "QUORATE_MAX_REQUEST_BYTES",
        value_name = "BYTES",
        default_value_t = 1_572_864
    )]
    max_request_bytes: usize,

    /// The most calls, watches and keep-alive streams included, on one connection at once
    #[arg(
        long,
        env = "QUORATE_MAX_CONCURRENT_STREAMS",
        value_name = "CALLS",
        default_value_t = 10_000
    )]
    max_concurrent_streams: u32,

    /// The most watchers on one watch stream
    #[arg(
        long,
        env = "QUORATE_MAX_WATCHERS_PER_STREAM",
        value_name = "WATCHERS",
        default_value_t = 100_000
    )]
    max_watchers_per_stream: usize,

    /// The most reads, and the most writes, that wait in this member; more are refused with
    /// "too many requests"
    #[arg(
        long,
        env = "QUORATE_MAX_PENDING_REQUESTS",
        value_name = "REQUESTS",
        default_value_t = 8_192
    )]
    max_pending_requests: usize,

    /// The most client connections at once, half of it from one address; further bounded by the
    /// limit on open files
    #[arg(
        long,
        env = "QUORATE_MAX_CONNECTIONS",
        value_name = "CONNECTIONS",
        default_value_t = 16_384
    )]
    max_connections: usize,

    /// The longest time to live that a lease may be granted with, in seconds
    #[arg(
        long,
        env = "QUORATE_MAX_LEASE_TTL",
        value_name = "SECONDS",
        default_value_t = 9_000_000_000
    )]
    max_lease_ttl: i64,

    /// How often a watcher that asked for it hears the revision while nothing happens
    #[arg(
        long,
        alias = "experimental-watch-progress-notify-interval",
        env = "QUORATE_WATCH_PROGRESS_NOTIFY_INTERVAL",
        value_name = "DURATION",
        default_value = "10m",
        value_parser = humantime::parse_duration
    )]
    watch_progress_notify_interval: Duration,
}

impl LimitArgs {
    /// Sets the bounds in `config`.
    pub(super) fn set(&self, config: &mut Config) {
        config.limits = Limits {
            max_txn_ops: self.max_txn_ops,
            max_request_bytes: self.max_request_bytes,
            max_concurrent_streams: self.max_concurrent_streams,
            max_watchers_per_stream: self.max_watchers_per_stream,
            max_pending: self.max_pending_requests,
            max_connections: self.max_connections,
            max_lease_ttl_seconds: self.max_lease_ttl,
        };
        config.watch_progress_interval = self.watch_progress_notify_interval;
    }
}
