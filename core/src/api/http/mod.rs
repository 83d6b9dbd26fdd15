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
        .route("/health", get(health::health).fallback(health::not_allowed))
        .route("/livez", get(health::live).fallback(health::not_allowed))
        .route("/readyz", get(health::ready).fallback(health::not_allowed))
        .route("/livez/{check}", get(health::one_of_live))
        .route("/readyz/{check}", get(health::one_of_ready))
        .route("/metrics", metrics)
        .with_state(node)
}
