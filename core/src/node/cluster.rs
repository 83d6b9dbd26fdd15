//! Who is a member.

use quorate_proto::etcdserverpb::MemberListResponse;

use super::Node;
use crate::error::Result;

impl Node {
    /// All members; asks the leader first if `linearizable`.
    pub async fn member_list(&self, _linearizable: bool) -> Result<MemberListResponse> {
        unimplemented!()
    }
}
