//! What quorate says on the wire: the etcd v3 API, the peer protocol and the raft log's commands;
//! and what is shared by all who speak it.
//!
//! - The generated modules [`mvccpb`], [`authpb`], [`etcdserverpb`], [`v3lockpb`],
//!   [`v3electionpb`], [`log`] and [`peer`]: messages, clients and servers. Names and numbers are
//!   those of etcd 3.7. Every `bytes` field is a [`bytes::Bytes`], so keys and values are shared,
//!   not copied, on their way through the house.
//! - [`Reason`], the error catalogue, and [`Kind`], what to do about an error.
//! - [`KeyRange`], the half-open range of keys that all requests speak of.
//! - [`txn`], which makes transactions readable to write.
//! - [`limits`] on requests.
//!
//! Nothing here keeps state, does I/O or knows the time.

mod generated;
mod kind;
pub mod limits;
pub mod range;
pub mod reason;
pub mod txn;

pub use generated::quorate::log::v1 as log;
pub use generated::quorate::peer::v1 as peer;
pub use generated::{authpb, etcdserverpb, mvccpb, v3electionpb, v3lockpb};
pub use kind::Kind;
pub use range::KeyRange;
pub use reason::Reason;

/// All generated packages as an encoded `google.protobuf.FileDescriptorSet`, for reflection and
/// for the JSON gateway.
pub const FILE_DESCRIPTOR_SET: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));
