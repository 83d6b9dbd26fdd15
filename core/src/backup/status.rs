//! What a backup file holds, in a few numbers: what `etcdctl snapshot status` says of it. Used by the
//! command line.

use std::path::Path;

use serde::Serialize;

use super::source::{Source, SourceError};
use crate::storage::bbolt::Item;

/// Key of the version that etcd notes in a database from 3.6 on, in bucket `meta`.
const STORAGE_VERSION: &[u8] = b"storageVersion";

/// A backup file in a few numbers; as JSON it is what etcd's tools print.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct BackupStatus {
    /// CRC32C of the names of all buckets, each followed by its keys and values.
    pub hash: u32,
    /// The revision of its last change.
    pub revision: i64,
    /// Items in all buckets.
    pub total_key: u64,
    /// Bytes of the database.
    pub total_size: u64,
    /// The line of etcd it is of, from 3.6 on; empty in older ones, and in quorate's.
    pub version: String,
}

impl BackupStatus {
    /// Reads a whole file, whether it has a checksum or not. Blocks.
    ///
    /// # Errors
    ///
    /// It cannot be read, is not a bbolt database, or is damaged; damage inside a value shows only in
    /// the hash.
    pub fn of(path: &Path) -> Result<Self, SourceError> {
        let database = Source::open_unchecked(path)?;
        let damaged = |source| SourceError::Database {
            path: path.to_owned(),
            source,
        };
        let mut status = Self {
            hash: 0,
            revision: 0,
            total_key: 0,
            total_size: database.bytes(),
            version: String::new(),
        };
        for item in database.items(&database.root()) {
            let Item::Bucket { name, bucket } = item.map_err(damaged)? else {
                return Err(SourceError::Content {
                    path: path.to_owned(),
                    bucket: String::new(),
                    what: "a pair outside any bucket".to_owned(),
                });
            };
            status.add(&name);
            for item in database.items(&bucket) {
                status.total_key += 1;
                match item.map_err(damaged)? {
                    Item::Pair { key, value } => {
                        status.add(&key);
                        status.add(&value);
                        status.note(&name, &key, &value);
                    }
                    Item::Bucket { name, .. } => status.add(&name),
                }
            }
        }
        Ok(status)
    }

    fn add(&mut self, bytes: &[u8]) {
        self.hash = crc32c::crc32c_append(self.hash, bytes);
    }

    fn note(&mut self, bucket: &[u8], key: &[u8], value: &[u8]) {
        match bucket {
            b"key" => {
                if let Some(main) = key.first_chunk() {
                    self.revision = i64::from_be_bytes(*main);
                }
            }
            b"meta" if key == STORAGE_VERSION => {
                self.version = String::from_utf8_lossy(value).into_owned();
            }
            _ => {}
        }
    }
}
