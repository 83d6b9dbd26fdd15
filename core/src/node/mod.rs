//! One member of a cluster: accepts requests, proposes or reads, answers. The waist of the house:
//! every face (gRPC, JSON, the recipes in the same process) calls a [`Node`], and nothing above
//! it knows of consensus or storage.
//!
//! A write goes to `propose`, which has the leader append it, and is answered when this member
//! itself applies it. A linearizable read joins a round of `read`, then reads this member's own
//! state. Leases are kept alive by the leader (`lease`); `background` holds the leader's own
//! duties. `bootstrap` puts a member together and is the place to see all its parts at once.

mod bootstrap;
mod builder;
mod cluster;
mod data_dir;
mod kv;
mod lease;
mod maintenance;
mod watch;

pub use bootstrap::StartError;
pub use builder::NodeBuilder;
pub use data_dir::DataDirError;
pub use watch::{WatchControl, WatchSession};

/// One running member. Cheap to clone; all clones are the same member, which runs until
/// [`Node::shutdown`].
///
/// Requests and answers are etcd's messages, with whole headers. Every method waits at most the
/// member's request timeout ([`Config::request_timeout`](crate::config::Config::request_timeout)).
#[derive(Debug, Clone)]
pub struct Node {}

/// What a member knows of its cluster's leader.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Leadership {
    /// The current term.
    pub term: u64,
    /// The leader of the term, once known.
    pub leader: Option<u64>,
}

impl Node {
    /// Settings of a member to be, in memory and alone unless said otherwise.
    pub fn builder() -> NodeBuilder {
        NodeBuilder::default()
    }

    /// The cluster's id.
    #[must_use]
    pub fn cluster_id(&self) -> u64 {
        unimplemented!()
    }

    /// This member's id.
    #[must_use]
    pub fn member_id(&self) -> u64 {
        unimplemented!()
    }

    /// The current term and its leader.
    #[must_use]
    pub fn leadership(&self) -> Leadership {
        unimplemented!()
    }

    /// Completes when this member can go on no longer, with the reason; never otherwise. The
    /// process that owns the member should report it and end.
    pub async fn failed(&self) -> crate::error::Error {
        unimplemented!()
    }

    /// Stops the member: refuses new requests, answers waiting ones with `server stopped`, and
    /// ends consensus and storage in order. Later calls return at once.
    pub async fn shutdown(&self) {
        unimplemented!()
    }
}
