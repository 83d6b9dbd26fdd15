//! The data folder of a member: its lock and its identity file. Used by `bootstrap`, before
//! anything in the folder is opened.
//!
//! ```text
//! <data folder>/            mode 0700
//!   LOCK                    held exclusively while the member runs
//!   IDENTITY                who this is; synced before the first log record is written
//!   wal/                    the raft log
//!   kv-<n>/, CURRENT        the applied state, and which of them it is
//!   FORCING, wal-<id>/      only while, or after, a new cluster was forced: see `force`
//! ```
//!
//! The identity is outside the state on purpose: a member whose state is unreadable still knows
//! its cluster, and its peers.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};
use uuid::Uuid;

use crate::config::Config;
use crate::storage::fs::RealFs;
use crate::storage::kv;
use crate::storage::wal::Wal;

/// The newest identity format this build reads and the one it writes. The first had neither a token
/// nor a mark of those that were removed.
const FORMAT: u32 = 2;
const LOCK_FILE: &str = "LOCK";
const IDENTITY_FILE: &str = "IDENTITY";
/// A larger identity file is not one of ours.
const IDENTITY_BYTES_MAX: u64 = 1024 * 1024;

/// Why a data folder cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum DataDirError {
    /// The file system refused.
    #[error("{path}: {action}: {source}")]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What was tried.
        action: &'static str,
        /// The file system's answer.
        source: io::Error,
    },
    /// Another process runs on this folder.
    #[error("{path}: locked by another process; a data folder serves one running member")]
    Locked {
        /// The data folder.
        path: PathBuf,
    },
    /// Written by a newer version.
    #[error("{path}: format {found}, but this build reads up to {FORMAT}; use a newer quorate")]
    NewerFormat {
        /// The identity file.
        path: PathBuf,
        /// Its format number.
        found: u32,
    },
    /// Not an identity file, or damaged.
    #[error(
        "{path}: damaged identity file ({why}); restore the folder, or remove it and join anew"
    )]
    Damaged {
        /// The identity file.
        path: PathBuf,
        /// What does not fit.
        why: &'static str,
    },
    /// The folder has data but no identity.
    #[error("{path}: holds files but no {IDENTITY_FILE}; not a quorate data folder")]
    Foreign {
        /// The data folder.
        path: PathBuf,
    },
    /// The folder has a state but no log.
    #[error(
        "{path}: holds a state but no log, so acknowledged entries may be lost, and a member that \
         forgot must not vote. Way out: put the log back, or remove this member from the cluster, \
         delete its data folder and add it as a new member; for a cluster of one, restore a snapshot"
    )]
    LogMissing {
        /// The data folder.
        path: PathBuf,
    },
    /// The folder belongs to another cluster or another member.
    #[error(
        "{path}: belongs to member {member:016x} of cluster {cluster:016x}, but {why}; use the folder \
         with that member's settings, or an empty one"
    )]
    OtherMember {
        /// The data folder.
        path: PathBuf,
        /// The cluster in the file.
        cluster: u64,
        /// The member in the file.
        member: u64,
        /// What in the settings does not fit.
        why: String,
    },
    /// The folder's member was removed from its cluster.
    #[error(
        "{path}: member {member:016x} was removed from cluster {cluster:016x}, for good. Way out: \
         delete the folder and add this member anew"
    )]
    Removed {
        /// The data folder.
        path: PathBuf,
        /// The cluster.
        cluster: u64,
        /// The member.
        member: u64,
    },
}

/// Who a data folder belongs to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Identity {
    /// The cluster's id.
    pub(crate) cluster_id: u64,
    /// The member's id.
    pub(crate) member_id: u64,
    /// Drawn when the folder was made: a member that lost its folder comes back as another one.
    pub(crate) incarnation: Uuid,
    /// The URLs of every member when the file was written.
    pub(crate) peers: BTreeMap<u64, Vec<String>>,
    /// What stands for the cluster's token, which is mixed into ids; `None` in files of format 1.
    pub(crate) token: Option<u64>,
    /// Whether the member was removed from its cluster.
    pub(crate) is_removed: bool,
}

impl Identity {
    /// Whether the folder may be that of the member that `config` describes. Addresses may have
    /// changed, but a folder under another member's address, or another token, was mixed up.
    fn fits(&self, config: &Config) -> Result<(), String> {
        if self
            .token
            .is_some_and(|token| token != token_id(&config.token))
        {
            return Err(format!(
                "the cluster token {:?} is not its own",
                config.token
            ));
        }
        let Some(cluster) = &config.cluster else {
            return Ok(());
        };
        let is_known = |url: &String| self.peers.values().any(|urls| urls.contains(url));
        let own = config.peer_urls();
        let others = self.peers.iter().filter(|(id, _)| **id != self.member_id);
        for (id, urls) in others {
            if let Some(url) = own.iter().find(|url| urls.contains(url)) {
                return Err(format!("{url} is the address of its member {id:016x}"));
            }
        }
        let listed = cluster.members.iter().flat_map(|member| &member.peer_urls);
        if cluster.members.len() > 1 && !listed.clone().any(is_known) {
            let listed: Vec<&str> = listed.map(String::as_str).collect();
            return Err(format!(
                "none of its members is among {}",
                listed.join(", ")
            ));
        }
        Ok(())
    }
}

/// What stands for a cluster's token in the file.
pub(crate) fn token_id(token: &str) -> u64 {
    let digest = Sha256::digest(token);
    let mut first = [0_u8; 8];
    first.copy_from_slice(&digest[..8]);
    u64::from_be_bytes(first)
}

/// A locked data folder. The lock ends with this value.
#[derive(Debug)]
pub(crate) struct DataDir {
    path: PathBuf,
    _lock: File,
}

impl DataDir {
    /// Makes the folder if it is not there and locks it.
    pub(crate) fn lock(path: &Path) -> Result<Self, DataDirError> {
        let failed = |action| {
            move |source| DataDirError::Io {
                path: path.to_owned(),
                action,
                source,
            }
        };
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(path)
            .map_err(failed("cannot make the data folder"))?;
        let lock = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            .open(path.join(LOCK_FILE))
            .map_err(failed("cannot open the lock file"))?;
        match lock.try_lock() {
            Ok(()) => Ok(Self {
                path: path.to_owned(),
                _lock: lock,
            }),
            Err(TryLockError::WouldBlock) => Err(DataDirError::Locked {
                path: path.to_owned(),
            }),
            Err(TryLockError::Error(source)) => Err(failed("cannot lock")(source)),
        }
    }

    /// The folder of the raft log.
    pub(crate) fn wal(&self) -> PathBuf {
        self.path.join("wal")
    }

    /// The folder itself; the applied state lives in it under names of its own.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Whose the folder is; `None` if it is empty but for the lock.
    ///
    /// # Errors
    /// It is not one of ours, belongs to another member than `config` describes, or its member was
    /// removed.
    pub(crate) fn identity(&self, config: &Config) -> Result<Option<Identity>, DataDirError> {
        let path = self.path.join(IDENTITY_FILE);
        let found = match fs::metadata(&path) {
            Ok(metadata) if metadata.len() > IDENTITY_BYTES_MAX => {
                return Err(DataDirError::Damaged {
                    path,
                    why: "too large",
                });
            }
            Ok(_) => decode(&path, &self.read(&path)?)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                if self.has_other_files()? {
                    return Err(DataDirError::Foreign {
                        path: self.path.clone(),
                    });
                }
                return Ok(None);
            }
            Err(source) => {
                return Err(DataDirError::Io {
                    path,
                    action: "cannot read",
                    source,
                });
            }
        };
        let (path, cluster, member) = (self.path.clone(), found.cluster_id, found.member_id);
        if found.is_removed {
            return Err(DataDirError::Removed {
                path,
                cluster,
                member,
            });
        }
        match found.fits(config) {
            Ok(()) => Ok(Some(found)),
            Err(why) => Err(DataDirError::OtherMember {
                path,
                cluster,
                member,
                why,
            }),
        }
    }

    /// Takes the folder: as `found` says, or for `fresh` if it is empty. Refuses one that has lost its
    /// log.
    ///
    /// A folder with an identity alone gets another incarnation: either it never came to a log, and
    /// nobody knows the old one, or it has lost everything, and must not pass for what it was.
    pub(crate) fn claim(
        &self,
        found: Option<Identity>,
        fresh: &Identity,
    ) -> Result<Identity, DataDirError> {
        let Some(found) = found else {
            self.record(fresh)?;
            return Ok(fresh.clone());
        };
        if self.has_log()? {
            return Ok(found);
        }
        if self.has_state()? {
            return Err(DataDirError::LogMissing {
                path: self.path.clone(),
            });
        }
        tracing::warn!(
            path = %self.path.display(),
            "the data folder has an identity but neither log nor state: starting with nothing, as \
             a new incarnation"
        );
        let renewed = Identity {
            incarnation: fresh.incarnation,
            ..found
        };
        self.record(&renewed)?;
        Ok(renewed)
    }

    /// Writes whose the folder is, so that the file is whole or as before.
    pub(crate) fn record(&self, identity: &Identity) -> Result<(), DataDirError> {
        self.write(&self.path.join(IDENTITY_FILE), &encode(identity))
    }

    /// Makes renames in the folder last.
    pub(crate) fn sync(&self) -> Result<(), DataDirError> {
        let synced = File::open(&self.path).and_then(|folder| folder.sync_all());
        synced.map_err(|source| DataDirError::Io {
            path: self.path.clone(),
            action: "cannot sync",
            source,
        })
    }

    fn has_log(&self) -> Result<bool, DataDirError> {
        let wal = self.wal();
        Wal::exists(&RealFs, &wal).map_err(|error| self.unreadable(io::Error::other(error)))
    }

    fn has_state(&self) -> Result<bool, DataDirError> {
        let failed = |error| self.unreadable(io::Error::other(error));
        let current = kv::current_number(&self.path).map_err(failed)?;
        Ok(current.is_some() || !kv::folders(&self.path).map_err(failed)?.is_empty())
    }

    fn unreadable(&self, source: io::Error) -> DataDirError {
        DataDirError::Io {
            path: self.path.clone(),
            action: "cannot look for the log and the state",
            source,
        }
    }

    fn read(&self, path: &Path) -> Result<String, DataDirError> {
        let bytes = fs::read(path).map_err(|source| DataDirError::Io {
            path: path.to_owned(),
            action: "cannot read",
            source,
        })?;
        String::from_utf8(bytes).map_err(|_| DataDirError::Damaged {
            path: path.to_owned(),
            why: "not text",
        })
    }

    fn has_other_files(&self) -> Result<bool, DataDirError> {
        let failed = |source| DataDirError::Io {
            path: self.path.clone(),
            action: "cannot list",
            source,
        };
        for entry in fs::read_dir(&self.path).map_err(failed)? {
            let name = entry.map_err(failed)?.file_name();
            if name != LOCK_FILE && name != temporary().as_str() {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Writes beside, syncs, renames and syncs the folder, so that the file is whole or absent.
    pub(crate) fn write(&self, path: &Path, text: &str) -> Result<(), DataDirError> {
        let beside = self.path.join(temporary());
        let write = || -> io::Result<()> {
            let mut file = OpenOptions::new()
                .create(true)
                .truncate(true)
                .write(true)
                .mode(0o600)
                .open(&beside)?;
            file.write_all(text.as_bytes())?;
            file.sync_all()?;
            fs::rename(&beside, path)?;
            File::open(&self.path)?.sync_all()
        };
        write().map_err(|source| DataDirError::Io {
            path: path.to_owned(),
            action: "cannot write",
            source,
        })
    }
}

fn temporary() -> String {
    format!("{IDENTITY_FILE}.new")
}

fn encode(identity: &Identity) -> String {
    let Identity {
        cluster_id,
        member_id,
        incarnation,
        peers,
        token,
        is_removed,
    } = identity;
    let mut text = format!(
        "quorate-identity {FORMAT}\ncluster {cluster_id:016x}\nmember {member_id:016x}\n\
         incarnation {incarnation}\n"
    );
    for (id, urls) in peers {
        write!(text, "peer {id:016x}").expect("writing to a string succeeds");
        for url in urls {
            write!(text, " {url}").expect("writing to a string succeeds");
        }
        text.push('\n');
    }
    if let Some(token) = token {
        writeln!(text, "token {token:016x}").expect("writing to a string succeeds");
    }
    if *is_removed {
        text.push_str("removed yes\n");
    }
    let sum = crc32c::crc32c(text.as_bytes());
    writeln!(text, "crc32c {sum:08x}").expect("writing to a string succeeds");
    text
}

fn decode(path: &Path, text: &str) -> Result<Identity, DataDirError> {
    let damaged = |why| DataDirError::Damaged {
        path: path.to_owned(),
        why,
    };
    let first = text.lines().next().unwrap_or_default();
    let format = first
        .strip_prefix("quorate-identity ")
        .and_then(|number| number.parse::<u32>().ok())
        .ok_or_else(|| damaged("no format line"))?;
    if format > FORMAT {
        return Err(DataDirError::NewerFormat {
            path: path.to_owned(),
            found: format,
        });
    }
    let (body, sum) = text
        .trim_end()
        .rsplit_once("crc32c ")
        .ok_or_else(|| damaged("no checksum"))?;
    if u32::from_str_radix(sum, 16).ok() != Some(crc32c::crc32c(body.as_bytes())) {
        return Err(damaged("wrong checksum"));
    }
    let hex = |text: &str| u64::from_str_radix(text, 16).map_err(|_| damaged("not a hex id"));
    let (mut cluster_id, mut member_id, mut incarnation) = (None, None, None);
    let mut peers = BTreeMap::new();
    let (mut token, mut is_removed) = (None, false);
    for line in body.lines().skip(1) {
        let (key, value) = line
            .split_once(' ')
            .ok_or_else(|| damaged("a line without a value"))?;
        match key {
            "cluster" => cluster_id = Some(hex(value)?),
            "member" => member_id = Some(hex(value)?),
            "incarnation" => {
                let parsed = Uuid::parse_str(value).map_err(|_| damaged("not a UUID"))?;
                incarnation = Some(parsed);
            }
            "peer" => {
                let mut words = value.split(' ');
                let id = hex(words.next().unwrap_or_default())?;
                peers.insert(id, words.map(str::to_owned).collect());
            }
            "token" => token = Some(hex(value)?),
            "removed" => is_removed = true,
            _ => return Err(damaged("an unknown line")),
        }
    }
    match (cluster_id, member_id, incarnation) {
        (Some(cluster_id), Some(member_id), Some(incarnation)) => Ok(Identity {
            cluster_id,
            member_id,
            incarnation,
            peers,
            token,
            is_removed,
        }),
        _ => Err(damaged("an id is missing")),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::config::{ClusterConfig, ClusterState, InitialMember};
    use crate::storage::fs::Fs;
    use crate::storage::wal::{self, WalOptions};

    fn identity(member_id: u64) -> Identity {
        Identity {
            cluster_id: 7,
            member_id,
            incarnation: Uuid::from_u128(u128::from(member_id)),
            peers: BTreeMap::from([
                (1, vec!["http://a:1".to_owned()]),
                (2, vec!["http://b:1".to_owned()]),
            ]),
            token: Some(token_id("etcd-cluster")),
            is_removed: false,
        }
    }

    /// The settings of a member at `url`, in a cluster with one at `other`.
    fn config(url: &str, other: &str) -> Config {
        let member = |name: &str, url: &str| InitialMember {
            name: name.to_owned(),
            peer_urls: vec![url.to_owned()],
        };
        Config {
            name: "own".to_owned(),
            cluster: Some(ClusterConfig {
                members: vec![member("own", url), member("other", other)],
                state: ClusterState::New,
                listen_peer_urls: Vec::new(),
            }),
            ..Config::default()
        }
    }

    fn take(dir: &DataDir, fresh: &Identity) -> Result<Identity, DataDirError> {
        let found = dir.identity(&config("http://a:1", "http://b:1"))?;
        dir.claim(found, fresh)
    }

    #[test]
    fn a_claimed_folder_keeps_its_first_incarnation_and_refuses_another_member() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("new").join("deep");
        let dir = DataDir::lock(&path).unwrap();
        assert_eq!(take(&dir, &identity(1)).unwrap(), identity(1));
        open_log(&dir);
        let later = Identity {
            incarnation: Uuid::from_u128(99),
            ..identity(1)
        };
        assert_eq!(take(&dir, &later).unwrap().incarnation, Uuid::from_u128(1));
        let mode =
            std::os::unix::fs::PermissionsExt::mode(&fs::metadata(&path).unwrap().permissions());
        assert_eq!(mode & 0o777, 0o700);
    }

    #[test]
    fn a_folder_is_used_at_new_addresses_but_not_for_another_member() {
        let folder = tempfile::tempdir().unwrap();
        let dir = DataDir::lock(folder.path()).unwrap();
        take(&dir, &identity(1)).unwrap();
        let asked = |config: &Config| dir.identity(config).map(Option::unwrap);
        assert_eq!(
            asked(&config("http://moved:1", "http://b:1")).unwrap(),
            identity(1)
        );
        let mut moved_alone = config("http://moved:1", "http://b:1");
        moved_alone.cluster.as_mut().unwrap().members.truncate(1);
        assert_eq!(asked(&moved_alone).unwrap(), identity(1));
        let mut other_token = config("http://a:1", "http://b:1");
        other_token.token = "other".to_owned();
        for (config, why) in [
            (
                config("http://b:1", "http://a:1"),
                "is the address of its member",
            ),
            (config("http://x:1", "http://y:1"), "none of its members"),
            (other_token, "token"),
        ] {
            let refused = asked(&config).unwrap_err();
            assert!(
                matches!(refused, DataDirError::OtherMember { .. }),
                "{refused}"
            );
            assert!(refused.to_string().contains(why), "{refused}");
        }
        let removed = Identity {
            is_removed: true,
            ..identity(1)
        };
        dir.record(&removed).unwrap();
        let refused = asked(&config("http://a:1", "http://b:1")).unwrap_err();
        assert!(refused.to_string().contains("was removed"), "{refused}");
    }

    #[test]
    fn a_file_of_the_first_format_is_read() {
        let folder = tempfile::tempdir().unwrap();
        let dir = DataDir::lock(folder.path()).unwrap();
        let body = "quorate-identity 1\ncluster 0000000000000007\nmember 0000000000000001\n\
                    incarnation 00000000-0000-0000-0000-000000000001\n\
                    peer 0000000000000001 http://a:1\npeer 0000000000000002 http://b:1\n";
        let sum = crc32c::crc32c(body.as_bytes());
        fs::write(
            folder.path().join(IDENTITY_FILE),
            format!("{body}crc32c {sum:08x}\n"),
        )
        .unwrap();
        let found = dir.identity(&config("http://a:1", "http://b:1")).unwrap();
        let expected = Identity {
            token: None,
            ..identity(1)
        };
        assert_eq!(found, Some(expected));
    }

    fn open_log(dir: &DataDir) {
        let identity = wal::Identity {
            cluster_id: 7,
            member_id: 1,
        };
        let fs: Arc<dyn Fs> = Arc::new(RealFs);
        let log = Wal::open(fs, &dir.wal(), WalOptions::new(identity, 1)).unwrap();
        log.close().unwrap();
    }

    #[test]
    fn a_folder_that_lost_its_log_does_not_pass_for_what_it_was() {
        let folder = tempfile::tempdir().unwrap();
        let dir = DataDir::lock(folder.path()).unwrap();
        take(&dir, &identity(1)).unwrap();
        let later = Identity {
            incarnation: Uuid::from_u128(99),
            ..identity(1)
        };
        assert_eq!(take(&dir, &later).unwrap().incarnation, Uuid::from_u128(99));
        assert_eq!(
            decode(
                &folder.path().join(IDENTITY_FILE),
                &fs::read_to_string(folder.path().join(IDENTITY_FILE)).unwrap()
            )
            .unwrap()
            .incarnation,
            Uuid::from_u128(99),
            "also after the next start"
        );
        fs::create_dir(folder.path().join("kv-1")).unwrap();
        let refused = take(&dir, &identity(1)).unwrap_err();
        assert!(
            matches!(refused, DataDirError::LogMissing { .. }),
            "{refused}"
        );
    }

    #[test]
    fn a_folder_is_locked_until_its_owner_goes() {
        let folder = tempfile::tempdir().unwrap();
        let first = DataDir::lock(folder.path()).unwrap();
        assert!(matches!(
            DataDir::lock(folder.path()),
            Err(DataDirError::Locked { .. })
        ));
        drop(first);
        assert!(DataDir::lock(folder.path()).is_ok());
    }

    #[test]
    fn damage_a_newer_format_and_foreign_folders_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let dir = DataDir::lock(folder.path()).unwrap();
        fs::write(folder.path().join("photo.jpg"), b"x").unwrap();
        assert!(matches!(
            take(&dir, &identity(1)),
            Err(DataDirError::Foreign { .. })
        ));
        fs::remove_file(folder.path().join("photo.jpg")).unwrap();
        take(&dir, &identity(1)).unwrap();
        let file = folder.path().join(IDENTITY_FILE);
        let good = fs::read_to_string(&file).unwrap();
        fs::write(&file, good.replace("member", "mumber")).unwrap();
        assert!(matches!(
            take(&dir, &identity(1)),
            Err(DataDirError::Damaged { .. })
        ));
        fs::write(&file, good.replace("identity 2", "identity 3")).unwrap();
        assert!(matches!(
            take(&dir, &identity(1)),
            Err(DataDirError::NewerFormat { found: 3, .. })
        ));
    }
}
