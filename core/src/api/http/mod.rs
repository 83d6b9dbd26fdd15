//! The plain HTTP routes of the client port: what load balancers, orchestrators and people ask.

mod health;
mod metrics;

use axum::Router;
use axum::routing::get;

use crate::node::Node;

/// All routes of this member.
pub fn routes(node: Node) -> Router {
    Router::new()
        .route("/version", get(health::version))
        .route("/health", get(health::health))
        .route("/livez", get(health::live))
        .route("/readyz", get(health::ready))
        .route("/metrics", get(metrics::metrics))
        .with_state(node)
}
