//! The JSON gateway: etcd's `/v3/…` routes, for clients that have HTTP and no gRPC. Used by `server`,
//! and by the binary for the services it adds.
//!
//! A route decides nothing. It reads the request from JSON, calls the gRPC service of the same
//! process through the very stack that serves gRPC clients, and writes the answer as JSON; so limits,
//! refusals and counts are the same on both faces. Which routes there are is one table, [`ROUTES`].

mod call;
mod error;
mod json;
mod values;

use std::fmt;

use axum::Router;
use axum::extract::Request;
use axum::http::StatusCode;
use axum::response::Response;
use axum::routing::{any, post};
use futures::future::BoxFuture;
use quorate_proto::etcdserverpb::*;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tonic::Status;

use super::not_allowed;

pub use call::Carried;
pub use json::decode;
pub use values::Cutter;

/// One route: a path, the gRPC method behind it, and how to carry its messages.
#[derive(Clone, Copy)]
pub struct Route {
    path: &'static str,
    method: &'static str,
    call: Call,
    decode: fn(&[u8]) -> Result<Vec<u8>, Status>,
}

/// Carries a request to the method and its answer back.
type Call = fn(Gateway, &'static str, Request) -> BoxFuture<'static, Response>;

/// What all routes of a server share.
#[derive(Debug, Clone)]
struct Gateway {
    /// The gRPC services, with all that is around them.
    services: Router,
    limit: values::Limit,
}

impl Route {
    /// A path for a method with one request and one answer; `method` as gRPC has it:
    /// `/package.Service/Method`.
    #[must_use]
    pub const fn unary<Q, A>(path: &'static str, method: &'static str) -> Self
    where
        Q: Carried + DeserializeOwned,
        A: Carried + Serialize,
    {
        Self::of::<Q>(path, method, |gateway, method, request| {
            Box::pin(call::unary::<Q, A>(gateway, method, request))
        })
    }

    /// A path for a method with one request and a stream of answers.
    #[must_use]
    pub const fn server_streaming<Q, A>(path: &'static str, method: &'static str) -> Self
    where
        Q: Carried + DeserializeOwned,
        A: Carried + Serialize,
    {
        Self::of::<Q>(path, method, |gateway, method, request| {
            Box::pin(call::server_streaming::<Q, A>(gateway, method, request))
        })
    }

    /// A path for a method with streams both ways: the body is any number of JSON values.
    #[must_use]
    pub const fn streaming<Q, A>(path: &'static str, method: &'static str) -> Self
    where
        Q: Carried + DeserializeOwned,
        A: Carried + Serialize,
    {
        Self::of::<Q>(path, method, |gateway, method, request| {
            Box::pin(call::streaming::<Q, A>(gateway, method, request))
        })
    }

    const fn of<Q>(path: &'static str, method: &'static str, call: Call) -> Self
    where
        Q: Carried + DeserializeOwned,
    {
        Self {
            path,
            method,
            call,
            decode: decode_to_wire::<Q>,
        }
    }

    /// The path of the route.
    #[must_use]
    pub fn path(&self) -> &'static str {
        self.path
    }

    /// The gRPC service behind it.
    #[must_use]
    pub fn service(&self) -> &'static str {
        let method = self.method.trim_start_matches('/');
        method
            .split_once('/')
            .map_or(method, |(service, _)| service)
    }

    /// Reads a request of this route as the gateway does, and gives it as a protobuf message.
    ///
    /// # Errors
    /// `InvalidArgument`, as [`decode`].
    pub fn decode(&self, body: &[u8]) -> Result<Vec<u8>, Status> {
        (self.decode)(body)
    }
}

impl fmt::Debug for Route {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{} -> {}", self.path, self.method)
    }
}

fn decode_to_wire<Q: Carried + DeserializeOwned>(body: &[u8]) -> Result<Vec<u8>, Status> {
    Ok(decode::<Q>(body)?.encode_to_vec())
}

/// The routes of the services in this crate, as etcd 3.7 has them.
#[rustfmt::skip]
pub const ROUTES: &[Route] = &[
    Route::unary::<RangeRequest, RangeResponse>("/v3/kv/range", "/etcdserverpb.KV/Range"),
    Route::unary::<PutRequest, PutResponse>("/v3/kv/put", "/etcdserverpb.KV/Put"),
    Route::unary::<DeleteRangeRequest, DeleteRangeResponse>("/v3/kv/deleterange", "/etcdserverpb.KV/DeleteRange"),
    Route::unary::<TxnRequest, TxnResponse>("/v3/kv/txn", "/etcdserverpb.KV/Txn"),
    Route::unary::<CompactionRequest, CompactionResponse>("/v3/kv/compaction", "/etcdserverpb.KV/Compact"),

    Route::streaming::<WatchRequest, WatchResponse>("/v3/watch", "/etcdserverpb.Watch/Watch"),

    Route::unary::<LeaseGrantRequest, LeaseGrantResponse>("/v3/lease/grant", "/etcdserverpb.Lease/LeaseGrant"),
    Route::unary::<LeaseRevokeRequest, LeaseRevokeResponse>("/v3/lease/revoke", "/etcdserverpb.Lease/LeaseRevoke"),
    Route::unary::<LeaseRevokeRequest, LeaseRevokeResponse>("/v3/kv/lease/revoke", "/etcdserverpb.Lease/LeaseRevoke"),
    Route::streaming::<LeaseKeepAliveRequest, LeaseKeepAliveResponse>("/v3/lease/keepalive", "/etcdserverpb.Lease/LeaseKeepAlive"),
    Route::unary::<LeaseTimeToLiveRequest, LeaseTimeToLiveResponse>("/v3/lease/timetolive", "/etcdserverpb.Lease/LeaseTimeToLive"),
    Route::unary::<LeaseTimeToLiveRequest, LeaseTimeToLiveResponse>("/v3/kv/lease/timetolive", "/etcdserverpb.Lease/LeaseTimeToLive"),
    Route::unary::<LeaseLeasesRequest, LeaseLeasesResponse>("/v3/lease/leases", "/etcdserverpb.Lease/LeaseLeases"),
    Route::unary::<LeaseLeasesRequest, LeaseLeasesResponse>("/v3/kv/lease/leases", "/etcdserverpb.Lease/LeaseLeases"),

    Route::unary::<MemberAddRequest, MemberAddResponse>("/v3/cluster/member/add", "/etcdserverpb.Cluster/MemberAdd"),
    Route::unary::<MemberRemoveRequest, MemberRemoveResponse>("/v3/cluster/member/remove", "/etcdserverpb.Cluster/MemberRemove"),
    Route::unary::<MemberUpdateRequest, MemberUpdateResponse>("/v3/cluster/member/update", "/etcdserverpb.Cluster/MemberUpdate"),
    Route::unary::<MemberListRequest, MemberListResponse>("/v3/cluster/member/list", "/etcdserverpb.Cluster/MemberList"),
    Route::unary::<MemberPromoteRequest, MemberPromoteResponse>("/v3/cluster/member/promote", "/etcdserverpb.Cluster/MemberPromote"),

    Route::unary::<AlarmRequest, AlarmResponse>("/v3/maintenance/alarm", "/etcdserverpb.Maintenance/Alarm"),
    Route::unary::<StatusRequest, StatusResponse>("/v3/maintenance/status", "/etcdserverpb.Maintenance/Status"),
    Route::unary::<DefragmentRequest, DefragmentResponse>("/v3/maintenance/defragment", "/etcdserverpb.Maintenance/Defragment"),
    Route::unary::<HashRequest, HashResponse>("/v3/maintenance/hash", "/etcdserverpb.Maintenance/Hash"),
    Route::unary::<HashKvRequest, HashKvResponse>("/v3/maintenance/hashkv", "/etcdserverpb.Maintenance/HashKV"),
    Route::server_streaming::<SnapshotRequest, SnapshotResponse>("/v3/maintenance/snapshot", "/etcdserverpb.Maintenance/Snapshot"),
    Route::unary::<MoveLeaderRequest, MoveLeaderResponse>("/v3/maintenance/transfer-leadership", "/etcdserverpb.Maintenance/MoveLeader"),
    Route::unary::<DowngradeRequest, DowngradeResponse>("/v3/maintenance/downgrade", "/etcdserverpb.Maintenance/Downgrade"),

    Route::unary::<AuthEnableRequest, AuthEnableResponse>("/v3/auth/enable", "/etcdserverpb.Auth/AuthEnable"),
    Route::unary::<AuthDisableRequest, AuthDisableResponse>("/v3/auth/disable", "/etcdserverpb.Auth/AuthDisable"),
    Route::unary::<AuthStatusRequest, AuthStatusResponse>("/v3/auth/status", "/etcdserverpb.Auth/AuthStatus"),
    Route::unary::<AuthenticateRequest, AuthenticateResponse>("/v3/auth/authenticate", "/etcdserverpb.Auth/Authenticate"),
    Route::unary::<AuthUserAddRequest, AuthUserAddResponse>("/v3/auth/user/add", "/etcdserverpb.Auth/UserAdd"),
    Route::unary::<AuthUserGetRequest, AuthUserGetResponse>("/v3/auth/user/get", "/etcdserverpb.Auth/UserGet"),
    Route::unary::<AuthUserListRequest, AuthUserListResponse>("/v3/auth/user/list", "/etcdserverpb.Auth/UserList"),
    Route::unary::<AuthUserDeleteRequest, AuthUserDeleteResponse>("/v3/auth/user/delete", "/etcdserverpb.Auth/UserDelete"),
    Route::unary::<AuthUserChangePasswordRequest, AuthUserChangePasswordResponse>("/v3/auth/user/changepw", "/etcdserverpb.Auth/UserChangePassword"),
    Route::unary::<AuthUserGrantRoleRequest, AuthUserGrantRoleResponse>("/v3/auth/user/grant", "/etcdserverpb.Auth/UserGrantRole"),
    Route::unary::<AuthUserRevokeRoleRequest, AuthUserRevokeRoleResponse>("/v3/auth/user/revoke", "/etcdserverpb.Auth/UserRevokeRole"),
    Route::unary::<AuthRoleAddRequest, AuthRoleAddResponse>("/v3/auth/role/add", "/etcdserverpb.Auth/RoleAdd"),
    Route::unary::<AuthRoleGetRequest, AuthRoleGetResponse>("/v3/auth/role/get", "/etcdserverpb.Auth/RoleGet"),
    Route::unary::<AuthRoleListRequest, AuthRoleListResponse>("/v3/auth/role/list", "/etcdserverpb.Auth/RoleList"),
    Route::unary::<AuthRoleDeleteRequest, AuthRoleDeleteResponse>("/v3/auth/role/delete", "/etcdserverpb.Auth/RoleDelete"),
    Route::unary::<AuthRoleGrantPermissionRequest, AuthRoleGrantPermissionResponse>("/v3/auth/role/grant", "/etcdserverpb.Auth/RoleGrantPermission"),
    Route::unary::<AuthRoleRevokePermissionRequest, AuthRoleRevokePermissionResponse>("/v3/auth/role/revoke", "/etcdserverpb.Auth/RoleRevokePermission"),
];

/// The routes over these services. `message_bytes_max` is what the services take for one message.
pub(crate) fn router(routes: &[Route], services: &Router, message_bytes_max: usize) -> Router {
    let gateway = Gateway {
        services: services.clone(),
        limit: values::Limit {
            message: message_bytes_max,
        },
    };
    let nobody = any(async || (StatusCode::NOT_FOUND, "Not Found\n"));
    let mut router = Router::new().route("/v3/{*path}", nobody);
    for &route in routes {
        let gateway = gateway.clone();
        let only_post = async || not_allowed("POST");
        let carry = move |request| (route.call)(gateway.clone(), route.method, request);
        router = router.route(route.path, post(carry).fallback(only_post));
    }
    router
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_path_is_there_once_and_names_a_method() {
        let paths: BTreeSet<_> = ROUTES.iter().map(Route::path).collect();
        assert_eq!(paths.len(), ROUTES.len());
        let methods = crate::api::grpc::methods();
        for route in ROUTES {
            assert!(methods.contains_key(route.method), "{route:?}");
        }
    }

    #[test]
    fn a_route_reads_its_own_message() {
        let range = ROUTES.iter().find(|r| r.path == "/v3/kv/range").unwrap();
        assert_eq!(range.decode(br#"{"key":"YQ=="}"#).unwrap(), b"\x0a\x01a");
        assert_eq!(range.service(), "etcdserverpb.KV");
    }
}
