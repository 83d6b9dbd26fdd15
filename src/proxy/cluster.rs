//! Listing members. A proxy that advertises an address shows itself as the only member, so that clients
//! which follow the list keep using it.

use std::sync::Arc;

use axum::extract::{Request as HttpRequest, State};
use axum::response::Response as HttpResponse;
use bytes::Bytes;
use prost::Message as _;
use quorate::proto::etcdserverpb::{Member, MemberListResponse};
use tonic::codegen::http::uri::PathAndQuery;
use tonic::{Request, Response, Status};
use tower::service_fn;

use super::messages::Unread;
use super::pass::Passing;

/// Where the method is.
pub(super) const MEMBER_LIST: &str = "/etcdserverpb.Cluster/MemberList";

/// The method, in the words of a proxy.
#[derive(Debug)]
pub(super) struct MemberList {
    passing: Passing,
    advertised: Vec<String>,
    name: String,
}

impl MemberList {
    /// Shows a member of this name with these client URLs; none shows the members themselves.
    pub(super) fn new(passing: Passing, advertised: Vec<String>, name: String) -> Self {
        Self {
            passing,
            advertised,
            name,
        }
    }

    async fn answer(&self, request: Request<Bytes>) -> Result<Response<Bytes>, Status> {
        let path = PathAndQuery::from_static(MEMBER_LIST);
        // The members are asked in any case, so that a cluster that is away is not shown as one that is
        // there.
        let answer = self.passing.unary(&path, request).await?;
        if self.advertised.is_empty() {
            return Ok(answer);
        }
        let (metadata, message, extensions) = answer.into_parts();
        let listed = MemberListResponse::decode(message);
        let listed = listed.map_err(|error| Status::internal(error.to_string()))?;
        let shown = MemberListResponse {
            header: listed.header,
            members: vec![Member {
                name: self.name.clone(),
                client_ur_ls: self.advertised.clone(),
                ..Default::default()
            }],
        };
        let shown = Bytes::from(shown.encode_to_vec());
        Ok(Response::from_parts(metadata, shown, extensions))
    }
}

/// Answers a call.
pub(super) async fn member_list(
    State(list): State<Arc<MemberList>>,
    request: HttpRequest,
) -> HttpResponse {
    let service = service_fn(|request| {
        let list = &list;
        async move { list.answer(request).await }
    });
    let answer = list.passing.grpc(Unread).unary(service, request).await;
    answer.map(axum::body::Body::new)
}
