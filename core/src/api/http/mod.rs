//! The plain HTTP routes of the client port: what load balancers, orchestrators and people ask, and
//! the JSON gateway.

pub mod gateway;
mod health;
mod metrics;
pub mod origin;

pub(crate) use metrics::of_others as metrics_of_others;

use axum::Router;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;

use crate::api::grpc::Traffic;
use crate::node::Node;

/// All routes of this member; `traffic` is what its gRPC services have carried.
pub(crate) fn routes(node: Node, traffic: Traffic) -> Router {
    let scraped = metrics::Scraped::new(node.clone(), traffic);
    let metrics = get(metrics::metrics).with_state(scraped);
    let only_get = async || not_allowed("GET");
    Router::new()
        .route("/version", get(health::version))
        .route("/health", get(health::health).fallback(only_get))
        .route("/livez", get(health::live).fallback(only_get))
        .route("/readyz", get(health::ready).fallback(only_get))
        .route("/livez/{check}", get(health::one_of_live))
        .route("/readyz/{check}", get(health::one_of_ready))
        .route("/metrics", metrics)
        .with_state(node)
}

/// The refusal of any method but `allowed`.
fn not_allowed(allowed: &'static str) -> Response {
    let allow = [(header::ALLOW, HeaderValue::from_static(allowed))];
    let text = "Method Not Allowed\n";
    (StatusCode::METHOD_NOT_ALLOWED, allow, text).into_response()
}
