//! What quorate says on the wire: the etcd v3 API, the peer protocol and the raft log's commands.
//!
//! The generated modules carry the names of their protobuf packages and nothing but interface
//! facts of etcd 3.7. Every `bytes` field is a [`bytes::Bytes`], so keys and values are shared,
//! not copied, on their way through the house.

mod generated;

pub use generated::quorate::log::v1 as log;
pub use generated::quorate::peer::v1 as peer;
pub use generated::{authpb, etcdserverpb, mvccpb, v3electionpb, v3lockpb};

/// All generated packages as an encoded `google.protobuf.FileDescriptorSet`, for reflection and
/// for the JSON gateway.
pub const FILE_DESCRIPTOR_SET: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));
