//! A whole store as a stream of checked frames, and where a received one is put together. Used by
//! `raft`: a leader sends a read view to a member whose log cannot be continued, which writes it to
//! a store of its own and switches to it.
//!
//! ```text
//! stream  = data frames, one end frame
//! frame   = kind u8, sequence u64, CRC32C of all else in the frame u32, body
//! data    = the next bytes of the pairs, at most FRAME_BODY_BYTES_MAX, cut anywhere
//! pair    = key length u32, value length u32, key, value        keys strictly ascending
//! end     = number of pairs u64, bytes of all pairs u64, CRC32C of all pairs u32
//! ```
//!
//! Numbers are big-endian. A frame that is damaged, missing or out of place is refused, and so is a
//! stream that ends without its end frame: a store is whole or it is not used.

mod receive;
mod send;
mod stores;

#[cfg(test)]
mod tests;

pub use receive::Receiver;
pub use send::Sender;
pub use stores::{Staged, Stores};

use super::kv::KvError;

/// Bytes of pairs in one frame at most.
pub const FRAME_BODY_BYTES_MAX: usize = 256 * 1024;

/// Bytes of a frame before its body.
const FRAME_HEAD_BYTES: usize = 1 + 8 + 4;

/// Bytes of a pair before its key.
const PAIR_HEAD_BYTES: usize = 4 + 4;

/// Bytes of a value at most: twice what the largest request makes.
const VALUE_BYTES_MAX: usize = 128 << 20;

/// First byte of a frame with pairs.
const DATA: u8 = 1;

/// First byte of the last frame.
const END: u8 = 2;

/// Why a snapshot cannot be sent or received.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum SnapshotError {
    /// Another snapshot is being received: one at a time. Try again later.
    #[error("another snapshot is being received")]
    Busy,
    /// A frame is not what was sent, or not the next one.
    #[error("damaged snapshot: {0}")]
    Damaged(String),
    /// The stream ended before its end frame.
    #[error("the snapshot ended early, after {frames} frames")]
    Incomplete {
        /// Frames that came.
        frames: u64,
    },
    /// The store failed.
    #[error(transparent)]
    Kv(#[from] KvError),
}

impl SnapshotError {
    fn damaged(what: impl Into<String>) -> Self {
        Self::Damaged(what.into())
    }
}

/// The checksum of a frame: over its kind, its sequence and its body.
fn frame_checksum(kind: u8, sequence: u64, body: &[u8]) -> u32 {
    let checksum = crc32c::crc32c(&[kind]);
    let checksum = crc32c::crc32c_append(checksum, &sequence.to_be_bytes());
    crc32c::crc32c_append(checksum, body)
}
