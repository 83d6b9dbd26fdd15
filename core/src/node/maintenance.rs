//! What operators ask of one member.

use quorate_proto::etcdserverpb::{
    AlarmRequest, AlarmResponse, HashKvRequest, HashKvResponse, HashResponse, MoveLeaderRequest,
    MoveLeaderResponse, StatusResponse,
};

use super::Node;
use crate::error::Result;

impl Node {
    /// How this member stands.
    pub async fn status(&self) -> Result<StatusResponse> {
        unimplemented!()
    }
    /// Lists, raises or lifts alarms.
    pub async fn alarm(&self, _request: AlarmRequest) -> Result<AlarmResponse> {
        unimplemented!()
    }
    /// A hash of this member's whole state.
    pub async fn hash(&self) -> Result<HashResponse> {
        unimplemented!()
    }
    /// A hash of the key space at a revision, equal on all members.
    pub async fn hash_kv(&self, _request: HashKvRequest) -> Result<HashKvResponse> {
        unimplemented!()
    }
    /// Hands leadership to another member.
    pub async fn move_leader(&self, _request: MoveLeaderRequest) -> Result<MoveLeaderResponse> {
        unimplemented!()
    }
}
