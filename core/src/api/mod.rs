//! The faces of a member on its client port: etcd's gRPC services and a few HTTP routes. Nothing
//! here decides anything; every method asks the [`Node`](crate::node::Node). Used by `server`.

pub mod grpc;
pub mod http;

/// The etcd release whose surface is offered, as told to clients that look at versions.
pub use crate::node::ETCD_VERSION;
