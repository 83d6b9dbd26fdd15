//! The plain HTTP routes of the client port: what load balancers, orchestrators and people ask, and
//! the JSON gateway.

pub mod gateway;
mod health;
mod metrics;
pub mod origin;

use axum::Router;
use axum::routing::get;

use crate::api::grpc::Traffic;
use crate::node::Node;

/// All routes of this member; `traffic` is what its gRPC services have carried.
pub(crate) fn routes(node: Node, traffic: Traffic) -> Router {
    let scraped = metrics::Scraped::new(node.clone(), traffic);
    let metrics = get(metrics::metrics).with_state(scraped);
    Router::new()
        .route("/version", get(health::version))
        .route("/health", get(health::health))
        .route("/livez", get(health::live))
        .route("/readyz", get(health::ready))
        .route("/metrics", metrics)
        .with_state(node)
}
