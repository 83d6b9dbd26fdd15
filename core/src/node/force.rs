//! `--force-new-cluster`: when a quorum is lost for good, one member that is left forms a cluster of
//! its own from what it has. Used by `bootstrap`, before anything else opens the data folder.
//!
//! The new cluster has another id, so that the lost members, should they come back, are refused
//! instead of going on where they were. Steps, of which each may be the last that a crash lets through:
//!
//! ```text
//! 1  FORCING written            from here on the folder starts only to go on with this
//! 2  state: the whole log applied, this member alone
//! 3  wal-<new cluster>/ made    it begins and ends at the state's last entry
//! 4  IDENTITY: the new cluster  done, but for tidying up
//! 5  wal/ renamed to wal-before-<new cluster>/, wal-<new cluster>/ to wal/
//! 6  FORCING removed
//! ```

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use uuid::Uuid;

use super::bootstrap::storage;
use super::data_dir::{DataDir, Identity};
use super::{DataDirError, StartError};
use crate::apply::{self, State};
use crate::config::{Config, ConfigError};
use crate::error::Error;
use crate::failpoint;
use crate::raft::{self, Peer};
use crate::storage::fs::{Fs, RealFs};
use crate::storage::kv::DiskOptions;
use crate::storage::snapshot::Stores;
use crate::storage::wal::{self, Wal, WalOptions};

/// There while a new cluster is being forced.
const FORCING: &str = "FORCING";

/// Finishes what an earlier start has begun, if it came to its end but for tidying up. Blocks.
///
/// # Errors
/// It did not come that far, and `config` does not ask to go on with it.
pub(super) fn settle(dir: &DataDir, found: &Identity, config: &Config) -> Result<(), StartError> {
    let forced = forced_wal(dir, found.cluster_id);
    if forced.is_dir() {
        swap(dir, &forced, found.cluster_id)?;
    }
    if config.force_new_cluster || !dir.path().join(FORCING).exists() {
        return Ok(());
    }
    let path = dir.path().join(FORCING);
    Err(StartError::DataDir(DataDirError::Io {
        path,
        action: "--force-new-cluster was interrupted, run it again",
        source: io::Error::other("the folder is neither of the old cluster nor of the new one"),
    }))
}

/// Makes the folder's member the only one of a new cluster; gives who it is now. Does nothing if it is
/// the only one already. Blocks.
///
/// # Errors
/// The folder is empty, or its data cannot be used; storage failures.
pub(super) fn force(
    dir: &DataDir,
    found: &Identity,
    config: &Config,
) -> Result<Identity, StartError> {
    let stores = Stores::disk(dir.path(), DiskOptions::default());
    let fs: Arc<dyn Fs> = Arc::new(RealFs);
    let old = wal::Identity {
        cluster_id: found.cluster_id,
        member_id: found.member_id,
    };
    let log = Wal::open(Arc::clone(&fs), &dir.wal(), options(old)).map_err(storage)?;
    let kv = stores.open().map_err(Error::from)?;
    let opened = State::open(kv, &apply::Options::default());
    let state = raft::usable(opened, &log).map_err(|unusable| unusable.cause)?;
    let forcing = dir.path().join(FORCING);
    if raft::is_alone(&state, found.member_id) && !forcing.exists() {
        tracing::warn!(
            "--force-new-cluster: this member is the only one of its cluster already; take the flag away"
        );
        log.close().map_err(storage)?;
        return Ok(found.clone());
    }
    tracing::warn!("forming a new cluster of this member alone, from what it has");
    dir.write(
        &forcing,
        "a new cluster is being formed of this member alone\n",
    )?;
    failpoint::reach("force: begun");
    let peer = Peer {
        name: config.name.clone(),
        peer_urls: config.peer_urls(),
        wants_vote: false,
    };
    let last = raft::make_alone(state, &log, found.member_id, &peer)?;
    log.close().map_err(storage)?;
    drop((log, stores));

    failpoint::reach("force: alone");
    let (cluster_id, _) = Uuid::new_v4().as_u64_pair();
    let forced = forced_wal(dir, cluster_id);
    make_wal(fs, &forced, wal::Identity { cluster_id, ..old }, last)?;
    failpoint::reach("force: log made");
    let identity = Identity {
        cluster_id,
        incarnation: Uuid::new_v4(),
        peers: [(found.member_id, config.peer_urls())].into(),
        ..found.clone()
    };
    dir.record(&identity)?;
    failpoint::reach("force: decided");
    swap(dir, &forced, cluster_id)?;
    remove(&forcing)?;
    tracing::warn!(
        cluster_id = format_args!("{cluster_id:016x}"),
        %last,
        "this member is a cluster of its own now; the log of before is kept beside it"
    );
    Ok(identity)
}

/// A log that begins and ends at `last`.
fn make_wal(
    fs: Arc<dyn Fs>,
    folder: &Path,
    identity: wal::Identity,
    last: wal::EntryId,
) -> Result<(), StartError> {
    let log = Wal::open(fs, folder, options(identity)).map_err(storage)?;
    // Without a vote it would lead in term 1, before its own past.
    let vote = wal::Vote {
        term: last.term,
        node: identity.member_id,
        committed: false,
    };
    // Closing writes what waits, and tells whether that went well.
    log.save_vote(vote, Box::new(drop)).map_err(storage)?;
    log.reset_to(last, Box::new(drop)).map_err(storage)?;
    log.close().map_err(storage)?;
    Ok(())
}

fn options(identity: wal::Identity) -> WalOptions {
    let (salt_seed, _) = Uuid::new_v4().as_u64_pair();
    WalOptions::new(identity, salt_seed)
}

fn forced_wal(dir: &DataDir, cluster_id: u64) -> PathBuf {
    dir.path().join(format!("wal-{cluster_id:016x}"))
}

/// Puts the new log in the place of the old one, which is kept.
fn swap(dir: &DataDir, forced: &Path, cluster_id: u64) -> Result<(), StartError> {
    let old = dir.path().join(format!("wal-before-{cluster_id:016x}"));
    let rename = |from: &Path, to: &Path| {
        fs::rename(from, to).map_err(|source| DataDirError::Io {
            path: from.to_owned(),
            action: "cannot rename",
            source,
        })
    };
    if !old.exists() {
        rename(&dir.wal(), &old)?;
    }
    failpoint::reach("force: between");
    rename(forced, &dir.wal())?;
    dir.sync()?;
    Ok(())
}

fn remove(path: &Path) -> Result<(), StartError> {
    fs::remove_file(path).map_err(|source| {
        StartError::DataDir(DataDirError::Io {
            path: path.to_owned(),
            action: "cannot remove",
            source,
        })
    })
}

/// Refuses to force a cluster of what has no data.
pub(super) fn nothing_to_force() -> StartError {
    StartError::Config(ConfigError::new(
        "--force-new-cluster: the data folder is empty; it needs one with a member's data",
    ))
}
