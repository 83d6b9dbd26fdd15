//! A backup file that is read: checked as a whole first, then by its buckets. Used by `status` and by
//! `restore`.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use sha2::{Digest, Sha256};

use crate::storage::bbolt::{Bucket, Database, Item, Items, ReadAt, ReadError};
use crate::storage::kv::KvError;

/// Bytes read at once for the checksum.
const CHUNK_BYTES: usize = 1024 * 1024;
/// Length of the checksum at the end.
const SHA256_BYTES: u64 = 32;
/// A database has whole pages, and they are multiples of this; so what is left over is a checksum
/// (etcd's rule).
const SECTOR_BYTES: u64 = 512;
/// etcd's buckets. Another one would hold something that nobody here knows how to keep.
const BUCKETS: [&str; 10] = [
    "alarm",
    "auth",
    "authRoles",
    "authUsers",
    "cluster",
    "key",
    "lease",
    "members",
    "members_removed",
    "meta",
];

/// Why a backup cannot be read or restored.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SourceError {
    /// The file cannot be opened or read.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: Arc<io::Error>,
    },
    /// It is not a whole bbolt database.
    #[error("{path}: {source}")]
    Database {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: ReadError,
    },
    /// It is a bbolt database, but not etcd's, or one that contradicts itself.
    #[error("{path}: bucket {bucket:?}: {what}")]
    Content {
        /// The file.
        path: PathBuf,
        /// The bucket.
        bucket: String,
        /// What is wrong in it.
        what: String,
    },
    /// Its checksum is not that of its bytes.
    #[error(
        "{path}: the SHA-256 at its end is {told}, that of its bytes {found}: the file is damaged or \
         was cut"
    )]
    Checksum {
        /// The file.
        path: PathBuf,
        /// The checksum in it.
        told: String,
        /// That of its bytes.
        found: String,
    },
    /// It has no checksum, and was not said to have none.
    #[error(
        "{path}: has no SHA-256 at its end: it was cut, or copied from a member's folder. If it was \
         copied while no member ran on it, --skip-hash-check restores it"
    )]
    NoChecksum {
        /// The file.
        path: PathBuf,
    },
    /// It has something that this version cannot keep: leaving it out would be a silent loss.
    #[error("{path}: {what}")]
    Unsupported {
        /// The file.
        path: PathBuf,
        /// What, and why it matters.
        what: String,
    },
    /// The store that is being filled failed.
    #[error(transparent)]
    Store(#[from] KvError),
}

/// A backup file, opened.
#[derive(Debug)]
pub struct Source<S = File> {
    path: PathBuf,
    database: Database<S>,
    sha256: [u8; 32],
}

impl Source {
    /// Opens a file and reads all of it for its checksum. Blocks.
    ///
    /// # Errors
    ///
    /// It cannot be read, is not a bbolt database, or differs from its checksum; it has none, unless
    /// `may_lack_checksum`. A wrong one is never overlooked.
    pub fn open(path: &Path, may_lack_checksum: bool) -> Result<Self, SourceError> {
        let io = |source: io::Error| SourceError::Io {
            path: path.to_owned(),
            source: Arc::new(source),
        };
        let file = File::open(path).map_err(io)?;
        let length = file.metadata().map_err(io)?.len();
        Self::check(path, file, length, may_lack_checksum)
    }

    /// Opens a file without looking at its checksum. Blocks.
    ///
    /// # Errors
    ///
    /// It cannot be read, or is not a bbolt database.
    pub fn open_unchecked(path: &Path) -> Result<Database<File>, SourceError> {
        let io = |source: io::Error| SourceError::Io {
            path: path.to_owned(),
            source: Arc::new(source),
        };
        let file = File::open(path).map_err(io)?;
        let length = file.metadata().map_err(io)?.len();
        Database::open(file, length).map_err(|source| SourceError::Database {
            path: path.to_owned(),
            source,
        })
    }
}

impl<S: ReadAt> Source<S> {
    /// As [`Source::open`], for the `length` bytes of `file`, which goes by the name `path` in errors.
    ///
    /// # Errors
    ///
    /// As [`Source::open`].
    pub fn check(
        path: &Path,
        file: S,
        length: u64,
        may_lack_checksum: bool,
    ) -> Result<Self, SourceError> {
        let io = |source: io::Error| SourceError::Io {
            path: path.to_owned(),
            source: Arc::new(source),
        };
        let has_checksum = length % SECTOR_BYTES == SHA256_BYTES;
        let body = if has_checksum {
            length - SHA256_BYTES
        } else {
            length
        };
        let damaged = |source| SourceError::Database {
            path: path.to_owned(),
            source,
        };
        if !has_checksum && !may_lack_checksum {
            // What it is not at all is worth more words than what it lacks.
            Database::open(&file, length).map_err(damaged)?;
            let path = path.to_owned();
            return Err(SourceError::NoChecksum { path });
        }
        let sha256 = sha256_of(&file, body).map_err(io)?;
        if has_checksum {
            let mut told = [0; 32];
            file.read_exact_at(body, &mut told).map_err(io)?;
            if told != sha256 {
                return Err(SourceError::Checksum {
                    path: path.to_owned(),
                    told: hexadecimal(&told),
                    found: hexadecimal(&sha256),
                });
            }
        }
        Ok(Self {
            path: path.to_owned(),
            database: Database::open(file, body).map_err(damaged)?,
            sha256,
        })
    }

    /// The SHA-256 of the database, without the checksum after it.
    #[must_use]
    pub fn sha256(&self) -> [u8; 32] {
        self.sha256
    }

    /// All buckets by name.
    pub(super) fn buckets(&self) -> Result<Vec<(String, Bucket)>, SourceError> {
        let mut buckets = Vec::new();
        for item in self.database.items(&self.database.root()) {
            let item = item.map_err(|error| self.damaged(error))?;
            let Item::Bucket { name, bucket } = item else {
                return Err(self.content("", "a pair outside any bucket"));
            };
            let name = String::from_utf8_lossy(&name).into_owned();
            if !BUCKETS.contains(&name.as_str()) {
                return Err(self.unsupported(format!(
                    "it has a bucket {name:?}, which is not known here: it may be of a newer etcd, or \
                     not of etcd at all"
                )));
            }
            buckets.push((name, bucket));
        }
        if !buckets.iter().any(|(name, _)| name == "key") {
            return Err(self.content("key", "is missing: not etcd's database"));
        }
        Ok(buckets)
    }

    /// The pairs of a bucket, in order.
    pub(super) fn pairs<'a>(&'a self, name: &'a str, bucket: &Bucket) -> Pairs<'a, S> {
        Pairs {
            source: self,
            name,
            items: self.database.items(bucket),
        }
    }

    pub(super) fn content(&self, bucket: &str, what: impl Into<String>) -> SourceError {
        SourceError::Content {
            path: self.path.clone(),
            bucket: bucket.to_owned(),
            what: what.into(),
        }
    }

    pub(super) fn unsupported(&self, what: impl Into<String>) -> SourceError {
        SourceError::Unsupported {
            path: self.path.clone(),
            what: what.into(),
        }
    }

    fn damaged(&self, source: ReadError) -> SourceError {
        SourceError::Database {
            path: self.path.clone(),
            source,
        }
    }
}

/// The pairs of a bucket.
pub(super) struct Pairs<'a, S> {
    source: &'a Source<S>,
    name: &'a str,
    items: Items<'a, S>,
}

impl<S: ReadAt> Iterator for Pairs<'_, S> {
    type Item = Result<(Bytes, Bytes), SourceError>;

    fn next(&mut self) -> Option<Self::Item> {
        Some(match self.items.next()? {
            Ok(Item::Pair { key, value }) => Ok((key, value)),
            Ok(Item::Bucket { .. }) => Err(self.source.content(self.name, "holds another bucket")),
            Err(error) => Err(self.source.damaged(error)),
        })
    }
}

/// The SHA-256 of the first `length` bytes.
fn sha256_of(file: &impl ReadAt, length: u64) -> io::Result<[u8; 32]> {
    let mut digest = Sha256::new();
    let mut chunk = vec![0; CHUNK_BYTES];
    let mut at = 0;
    while at < length {
        let wanted = usize::try_from(length - at).map_or(CHUNK_BYTES, |left| left.min(CHUNK_BYTES));
        file.read_exact_at(at, &mut chunk[..wanted])?;
        digest.update(&chunk[..wanted]);
        at += wanted as u64;
    }
    Ok(digest.finalize().into())
}

fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
