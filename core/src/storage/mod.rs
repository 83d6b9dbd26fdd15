//! Bytes on disk (and in memory): the file-system seam, the raft log (WAL), the ordered key-value
//! engines, their codecs.

pub mod fs;
pub mod wal;
