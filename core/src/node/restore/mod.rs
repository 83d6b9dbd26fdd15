//! Restoring a member from a backup: a data folder that a member of a new cluster starts on. Used by
//! the command line, once for each member of the new cluster.
//!
//! Each member is restored by itself, from the same file and settings, and all of them come to the same
//! state and the same ids. The cluster is another one than that of the backup, and its id says so: it
//! is mixed from what the settings give and from the file. So a member that was left over from before is
//! refused by the new ones, although its address, and thus its id, may be the same.
//!
//! The folder is made beside its place and renamed when it is whole.

mod finish;

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use uuid::Uuid;

use super::DataDirError;
use super::data_dir::{DataDir, Identity, token_id};
use crate::backup::{self, Restored, Source, SourceError};
use crate::config::{Config, ConfigError, Data, Identities, restored_cluster_id};
use crate::error::Error;
use crate::raft::{Peer, RESTORED_AT, restored_marks};
use crate::storage::fs::RealFs;
use crate::storage::kv::{self, DiskOptions, FjallKv, Kv, KvError};
use crate::storage::wal::{self, Wal, WalError, WalOptions};

pub(super) use finish::run as finish;

/// The store of a folder that was never anything else.
const FIRST_STORE: u64 = 1;

/// What to restore, and for whom.
#[derive(Debug, Clone)]
pub struct RestoreOptions {
    /// The backup.
    pub file: PathBuf,
    /// The member, and all members of the new cluster. Its data folder must not exist, or be empty.
    pub config: Config,
    /// Whether the file may have no checksum at its end, as one copied from an etcd member's folder.
    pub skip_hash_check: bool,
    /// By how much the current revision is raised, and history up to there compacted; `None` leaves
    /// both as they are in the file.
    pub bump_revision: Option<i64>,
}

/// A member that was restored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RestoredMember {
    /// Its state.
    pub restored: Restored,
    /// Its cluster.
    pub cluster_id: u64,
    /// Its id.
    pub member_id: u64,
}

/// Why a member was not restored. Its data folder is as it was before.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RestoreError {
    /// Settings that cannot work.
    #[error("bad configuration: {0}")]
    Config(#[from] ConfigError),
    /// The backup cannot be read, is damaged, or has what cannot be kept.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// The place for the data folder is not free, or cannot be written to.
    #[error("{path}: {why}")]
    Target {
        /// The data folder.
        path: PathBuf,
        /// Why not.
        why: String,
    },
    /// The folder could not be made.
    #[error(transparent)]
    DataDir(#[from] DataDirError),
    /// The log could not be made.
    #[error(transparent)]
    Log(#[from] WalError),
    /// The store could not be made.
    #[error(transparent)]
    Store(#[from] KvError),
    /// Anything else.
    #[error(transparent)]
    Other(#[from] Error),
}

/// Makes the data folder of one member of a new cluster from a backup. Blocks for as long as reading
/// the file and writing the store take.
///
/// # Errors
///
/// [`RestoreError`]; nothing is at the data folder's place then that was not there before. A restore
/// that is killed may leave a folder `<data folder>.part-<8 digits>` behind, which may be removed.
pub fn restore(options: &RestoreOptions) -> Result<RestoredMember, RestoreError> {
    let ids = options.config.identities()?;
    let Data::Folder(folder) = &options.config.data else {
        return Err(RestoreError::Target {
            path: PathBuf::new(),
            why: "a member that keeps its data in memory has nothing to restore to".to_owned(),
        });
    };
    let target = Target::of(folder)?;
    let source = Source::open(&options.file, options.skip_hash_check)?;
    let bump = options.bump_revision;
    let cluster_id = restored_cluster_id(ids.cluster_id, &source.sha256(), bump.unwrap_or(0));
    let member_id = ids.member_id;

    let part = Part::beside(&target);
    let dir = DataDir::lock(&part.path)?;
    make_log(&dir, cluster_id, member_id)?;
    let restored = make_store(&dir, &ids, &source, bump)?;
    dir.record(&Identity {
        cluster_id,
        member_id,
        incarnation: Uuid::new_v4(),
        peers: ids
            .members
            .iter()
            .map(|(id, member)| (*id, member.peer_urls.clone()))
            .collect(),
        token: Some(token_id(&options.config.token)),
        is_removed: false,
    })?;
    part.take_place(&target)?;
    Ok(RestoredMember {
        restored,
        cluster_id,
        member_id,
    })
}

/// The log: empty, and beginning after what the state has.
fn make_log(dir: &DataDir, cluster_id: u64, member_id: u64) -> Result<(), RestoreError> {
    let identity = wal::Identity {
        cluster_id,
        member_id,
    };
    let (salt_seed, _) = Uuid::new_v4().as_u64_pair();
    let wal = Wal::open(
        Arc::new(RealFs),
        &dir.wal(),
        WalOptions::new(identity, salt_seed),
    )?;
    wal.reset_to(RESTORED_AT, Box::new(drop))?;
    Ok(wal.close()?)
}

/// The state, and the file that says which it is; synced.
fn make_store(
    dir: &DataDir,
    ids: &Identities,
    source: &Source,
    bump: Option<i64>,
) -> Result<Restored, RestoreError> {
    let folder = kv::dir_of(dir.path(), FIRST_STORE);
    let store: Arc<dyn Kv> = Arc::new(FjallKv::create(&folder, &DiskOptions::default())?);
    let restored = backup::restore(source, &store, bump)?;
    let members = ids.members.iter().map(|(id, member)| {
        let peer = Peer {
            name: member.name.clone(),
            peer_urls: member.peer_urls.clone(),
            wants_vote: false,
        };
        (*id, peer)
    });
    store.commit(restored_marks(members.collect())?)?;
    store.persist()?;
    drop(store);
    kv::install(dir.path(), FIRST_STORE)?;
    Ok(restored)
}

/// Where the data folder will be.
#[derive(Debug)]
struct Target {
    /// Itself, free of links if it exists.
    path: PathBuf,
    parent: PathBuf,
    name: std::ffi::OsString,
}

impl Target {
    fn of(folder: &Path) -> Result<Self, RestoreError> {
        let refused = |why: String| RestoreError::Target {
            path: folder.to_owned(),
            why,
        };
        let io = |source: io::Error| refused(source.to_string());
        let path = match fs::canonicalize(folder) {
            Ok(path) => {
                if fs::read_dir(&path).map_err(io)?.next().is_some() {
                    return Err(refused(
                        "is not empty; restore into a folder that does not exist, or is empty"
                            .to_owned(),
                    ));
                }
                path
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => folder.to_owned(),
            Err(error) => return Err(io(error)),
        };
        let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
            return Err(refused("has no name; name the folder".to_owned()));
        };
        let parent = match parent.as_os_str().is_empty() {
            true => Path::new("."),
            false => parent,
        };
        let device = |path: &Path| fs::metadata(path).map(|metadata| metadata.dev());
        if path.exists() && device(&path).map_err(io)? != device(parent).map_err(io)? {
            return Err(refused(
                "a file system is mounted here, so nothing can be renamed to it; name a folder in it"
                    .to_owned(),
            ));
        }
        Ok(Self {
            parent: parent.to_owned(),
            name: name.to_owned(),
            path,
        })
    }
}

/// A data folder that is not whole yet: removed unless it takes its place.
#[derive(Debug)]
struct Part {
    path: PathBuf,
    is_in_place: bool,
}

impl Part {
    /// A name beside the data folder's that nobody uses.
    fn beside(target: &Target) -> Self {
        let mut name = target.name.clone();
        let (random, ..) = Uuid::new_v4().as_fields();
        name.push(format!(".part-{random:08x}"));
        Self {
            path: target.parent.join(name),
            is_in_place: false,
        }
    }

    fn take_place(mut self, target: &Target) -> Result<(), RestoreError> {
        let failed = |source: io::Error| RestoreError::Target {
            path: target.path.clone(),
            why: format!("cannot be put in its place: {source}"),
        };
        // Nothing but an empty folder is replaced.
        fs::rename(&self.path, &target.path).map_err(failed)?;
        self.is_in_place = true;
        let parent = File::open(&target.parent).map_err(failed)?;
        parent.sync_all().map_err(failed)
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        if self.is_in_place {
            return;
        }
        if let Err(error) = fs::remove_dir_all(&self.path)
            && error.kind() != io::ErrorKind::NotFound
        {
            let path = self.path.display();
            tracing::warn!(%path, %error, "an unfinished restore could not be removed");
        }
    }
}
