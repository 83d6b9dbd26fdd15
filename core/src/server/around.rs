//! What every gRPC call passes on its way to its service and back, in one layer of the router: each
//! further layer costs a call its own boxes and clones.

use axum::Router;
use axum::extract::{Request, State};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::Response;

use super::words;
use crate::api::grpc::{Traffic, keep_deadline, require_leader};
use crate::node::Node;

/// Whom calls are counted for, and who answers them.
#[derive(Debug, Clone)]
pub(super) struct Around {
    pub(super) traffic: Traffic,
    /// The member; none in front of others.
    pub(super) node: Option<Node>,
}

impl Around {
    /// The services for gRPC calls alone: counted, ended at their deadlines, refused without a leader
    /// where they want one, and refused in etcd's words, also on paths nobody serves.
    pub(super) fn all(self, services: Router) -> Router {
        services
            .reset_fallback()
            .fallback(words::nobody)
            .layer(from_fn_with_state(self, pass))
    }
}

async fn pass(
    State(Around { traffic, node }): State<Around>,
    request: Request,
    next: Next,
) -> Response {
    if !words::is_call(&request) {
        return words::not_found();
    }
    let serve = |request| words::reword(request, |request| next.run(request));
    let lead = async |request| match &node {
        Some(node) => require_leader(node, request, serve).await,
        None => serve(request).await,
    };
    let end = |request| keep_deadline(request, lead);
    traffic.count(request, end).await
}
