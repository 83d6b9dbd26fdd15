//! What members say of themselves: the `members` table. Used by the executor and by `node`.

use bytes::Bytes;

/// What is known of a member beside its place in the raft membership.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    /// Member id.
    pub id: u64,
    /// Human-readable name.
    pub name: String,
    /// Where clients reach it.
    pub client_urls: Vec<String>,
    /// Where peers reach it.
    pub peer_urls: Vec<String>,
    /// 16 bytes: UUID of the data directory.
    pub incarnation: Bytes,
}
