//! Who may talk to whom: every call between members starts with a handshake that is checked here.

use uuid::Uuid;

/// Version of the peer protocol this program speaks.
pub const PROTOCOL_VERSION: u32 = 1;

/// Who this member is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Local {
    /// Its cluster.
    pub cluster_id: u64,
    /// Its id in the cluster, never 0.
    pub member_id: u64,
    /// UUID of its data directory.
    pub incarnation: Uuid,
    /// UUID of this process start.
    pub boot: Uuid,
}
