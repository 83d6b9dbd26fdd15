//! openraft's type parameters as quorate fills them in, and short names for the generic types that
//! follow. Used by every file of this module; nothing of it leaves the module except [`Peer`].

use std::fmt;

use bytes::Bytes;

/// What one normal log entry carries: an encoded `log.Batch` of proposals, opaque to consensus.
///
/// `Debug` and `Display` show only its length: openraft logs entries, and users' keys and values do
/// not belong in logs.
#[derive(Clone, PartialEq, Eq, Default)]
pub struct Command(pub Bytes);

impl fmt::Debug for Command {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Display for Command {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "batch({} bytes)", self.0.len())
    }
}

/// What the raft membership says of a member: its name and where its peers find it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Peer {
    /// The member's name, unique in a bootstrap list.
    pub name: String,
    /// Its advertised peer URLs.
    pub peer_urls: Vec<String>,
    /// Whether it gets a vote as soon as it has caught up. Says nothing of one that votes.
    pub wants_vote: bool,
}

openraft::declare_raft_types!(
    /// The one type configuration. At most one leader a term (`leader_id_std`), so that a raft term
    /// means what etcd's clients take it to mean.
    pub TypeConfig:
        D = Command,
        R = (),
        NodeId = u64,
        Node = Peer,
        Term = u64,
        LeaderId = openraft::impls::leader_id_std::LeaderId<u64, u64>,
);

/// `{term, voted_for}`: who may lead, before a quorum has said so.
pub type LeaderId = openraft::impls::leader_id_std::LeaderId<u64, u64>;
/// A leader a quorum has elected: its term.
pub type CommittedLeaderId = openraft::type_config::alias::CommittedLeaderIdOf<TypeConfig>;
/// `(term, index)` of an entry.
pub type LogId = openraft::type_config::alias::LogIdOf<TypeConfig>;
/// The hard state: the highest leader id seen or voted for, and whether a quorum granted it.
pub type Vote = openraft::type_config::alias::VoteOf<TypeConfig>;
/// One log entry.
pub type Entry = openraft::type_config::alias::EntryOf<TypeConfig>;
/// What an entry carries.
pub type Payload = openraft::type_config::alias::PayloadOf<TypeConfig>;
/// Voters, learners and their addresses.
pub type Membership = openraft::Membership<u64, Peer>;
/// A membership and the log id of the entry it came in.
pub type StoredMembership = openraft::type_config::alias::StoredMembershipOf<TypeConfig>;
/// What a snapshot holds: its last log id and membership.
pub type SnapshotMeta = openraft::type_config::alias::SnapshotMetaOf<TypeConfig>;
