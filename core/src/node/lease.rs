//! Requests on leases.

use quorate_proto::etcdserverpb::{
    LeaseGrantRequest, LeaseGrantResponse, LeaseKeepAliveResponse, LeaseLeasesResponse,
    LeaseRevokeRequest, LeaseRevokeResponse, LeaseTimeToLiveRequest, LeaseTimeToLiveResponse,
};

use super::Node;
use crate::error::Result;

impl Node {
    /// Grants a lease.
    pub async fn lease_grant(&self, _request: LeaseGrantRequest) -> Result<LeaseGrantResponse> {
        unimplemented!()
    }
    /// Ends a lease and deletes its keys.
    pub async fn lease_revoke(&self, _request: LeaseRevokeRequest) -> Result<LeaseRevokeResponse> {
        unimplemented!()
    }
    /// Renews a lease to its full time to live; the answer's TTL is 0 when there is no such lease.
    pub async fn lease_keep_alive(&self, _id: i64) -> Result<LeaseKeepAliveResponse> {
        unimplemented!()
    }
    /// What remains of a lease.
    pub async fn lease_time_to_live(
        &self,
        _request: LeaseTimeToLiveRequest,
    ) -> Result<LeaseTimeToLiveResponse> {
        unimplemented!()
    }
    /// All leases.
    pub async fn leases(&self) -> Result<LeaseLeasesResponse> {
        unimplemented!()
    }
}
