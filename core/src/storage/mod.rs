//! Bytes on disk (and in memory): the file-system seam, the raft log (WAL), the ordered key-value
//! engines, their codecs, and the writer of bbolt files.

pub mod bbolt;
pub mod codec;
pub mod fs;
pub mod kv;
pub mod snapshot;
pub mod wal;
