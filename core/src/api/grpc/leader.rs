//! Calls that want a leader: a client says so with metadata (`hasleader: true`) and then gets an error
//! rather than a wait, and streams that end, when this member knows of no leader. Around all services,
//! as on etcd.

use axum::extract::Request;
use axum::http::HeaderMap;
use axum::response::Response;
use quorate_proto::Reason;

use super::methods::methods;
use super::until::{refusal, until};
use crate::node::Node;

/// Refuses a call that wants a leader while `node` knows of none, and ends one that goes on once there
/// has been none for a while.
pub(crate) async fn require<N, F>(node: &Node, request: Request, next: N) -> Response
where
    N: FnOnce(Request) -> F,
    F: Future<Output = Response>,
{
    if !wants_leader(request.headers()) {
        return next(request).await;
    }
    if node.leadership().leader.is_none() {
        return refusal(Reason::NoLeader.into());
    }
    let is_unary = methods()
        .get(request.uri().path())
        .is_some_and(|method| method.kind == "unary");
    let response = next(request).await;
    if is_unary {
        return response;
    }
    let node = node.clone();
    until(response, async move {
        node.leaderless().await;
        Reason::NoLeader.into()
    })
}

fn wants_leader(headers: &HeaderMap) -> bool {
    headers
        .get("hasleader")
        .is_some_and(|value| value == "true")
}
