//! openraft's settings, from etcd's two timers. Used by `consensus`.

use std::sync::Arc;
use std::time::Duration;

use openraft::{Config, SnapshotPolicy};
use quorate_proto::Reason;

use crate::error::Error;

/// Entries in one append message at most; the bytes are bounded by the log's reads.
const APPEND_ENTRIES_MAX: u64 = 4_096;

/// openraft's settings for etcd's heartbeat interval and election timeout.
///
/// A follower campaigns after `election_timeout_max` plus a random time between the two election
/// timeouts of openraft. With 0.3 and 0.6 of etcd's that is 0.9 to 1.2 of etcd's.
///
/// # Errors
///
/// Timers that cannot work: the election timeout has to be several heartbeats.
pub(super) fn openraft_config(
    cluster_id: u64,
    heartbeat_interval: Duration,
    election_timeout: Duration,
    catch_up_entries: u64,
) -> Result<Arc<Config>, Error> {
    let heartbeat_ms = millis(heartbeat_interval);
    let election_ms = millis(election_timeout);
    let config = Config {
        cluster_name: format!("{cluster_id:016x}"),
        election_timeout_min: election_ms * 3 / 10,
        election_timeout_max: election_ms * 6 / 10,
        heartbeat_interval: heartbeat_ms,
        // A snapshot is sent as a stream with deadlines of its own; this bounds a stalled one.
        install_snapshot_timeout: (election_ms * 10).max(30_000),
        max_payload_entries: APPEND_ENTRIES_MAX,
        replication_lag_threshold: catch_up_entries,
        // The retention task decides: it knows what is durable, what followers need, and the disk.
        snapshot_policy: SnapshotPolicy::Never,
        max_in_snapshot_log_to_keep: u64::MAX,
        api_batch_linger_ms: 0,
        enable_pre_vote: Some(true),
        // A leader sends entries before it has synced them. If it restarts and goes on in its term
        // without a vote, it gives the same log id to another entry: committed entries diverge.
        enable_leader_restore: Some(false),
        // A follower whose log went back has lost acknowledged entries: never go on as if not.
        allow_log_reversion: Some(false),
        backoff: backoff(election_ms),
        ..Config::default()
    };
    let config = config.validate().map_err(|error| {
        Error::with_detail(
            Reason::Internal,
            format!(
                "heartbeat interval {heartbeat_ms} ms and election timeout {election_ms} ms do not \
                 go together: {error}"
            ),
        )
    })?;
    Ok(Arc::new(config))
}

/// Pauses between attempts to reach a peer: growing, at most half an election timeout, so that a
/// member that comes back is found well within one.
fn backoff(election_ms: u64) -> String {
    let pause = |part: u64| (election_ms / part).max(1);
    format!("{}ms {}ms ...{}ms", pause(20), pause(10), pause(2))
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis())
        .unwrap_or(u64::MAX / 100)
        .min(u64::MAX / 100)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(heartbeat_ms: u64, election_ms: u64) -> Result<Arc<Config>, Error> {
        let ms = Duration::from_millis;
        openraft_config(7, ms(heartbeat_ms), ms(election_ms), 5_000)
    }

    #[test]
    fn a_restarted_leader_never_goes_on_without_a_vote() {
        assert_eq!(
            config(100, 1_000).unwrap().enable_leader_restore,
            Some(false)
        );
    }

    #[test]
    fn what_is_not_a_matter_of_taste_is_set() {
        let config = config(100, 1_000).unwrap();
        assert_eq!(config.enable_pre_vote, Some(true));
        assert_eq!(config.allow_log_reversion, Some(false));
        assert_eq!(config.snapshot_policy, SnapshotPolicy::Never);
        assert_eq!(config.max_in_snapshot_log_to_keep, u64::MAX);
        assert_eq!(config.api_batch_linger_ms, 0);
        assert_eq!(
            (config.election_timeout_min, config.election_timeout_max),
            (300, 600)
        );
        assert_eq!(config.heartbeat_interval, 100);
    }

    #[test]
    fn timers_that_cannot_work_are_refused() {
        assert!(config(10, 100).is_ok());
        assert!(config(100, 300).is_err());
        assert!(config(100, 0).is_err());
    }
}
