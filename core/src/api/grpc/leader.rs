//! Calls that want a leader: a client says so with metadata (`hasleader: true`) and then gets an error
//! rather than a wait, and streams that end, when this member knows of no leader. A layer around all
//! services, as on etcd.

use axum::extract::{Request, State};
use axum::http::HeaderMap;
use axum::middleware::Next;
use axum::response::Response;
use quorate_proto::Reason;

use super::methods::methods;
use super::until::{refusal, until};
use crate::node::Node;

/// Refuses calls that want a leader while none is known, and ends those that go on once there has been
/// none for a while.
pub(crate) async fn require(State(node): State<Node>, request: Request, next: Next) -> Response {
    if !wants_leader(request.headers()) {
        return next.run(request).await;
    }
    if node.leadership().leader.is_none() {
        return refusal(Reason::NoLeader.into());
    }
    let is_unary = methods()
        .get(request.uri().path())
        .is_some_and(|method| method.kind == "unary");
    let response = next.run(request).await;
    if is_unary {
        return response;
    }
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
