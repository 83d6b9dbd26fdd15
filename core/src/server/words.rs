//! Around the services: what gRPC itself refuses is told in the words of etcd's gRPC library (unknown
//! services and methods, messages above the decode limit; clients match on these texts), and what is
//! not gRPC is kept from them.

use axum::Router;
use axum::extract::Request;
use axum::http::{HeaderMap, StatusCode, Version, header};
use axum::middleware::{Next, from_fn};
use axum::response::{IntoResponse, Response};
use tonic::{Code, Status};

use crate::api::grpc;

/// The services with their refusals reworded, and a fallback for paths nobody serves.
pub(super) fn in_etcds_words(services: Router) -> Router {
    services
        .layer(from_fn(reword))
        .reset_fallback()
        .fallback(nobody)
}

/// The services for gRPC's own requests alone. Over HTTP/1.1, and without gRPC's content type, a web
/// page can send a request anywhere without asking first; the services would carry it out.
pub(super) fn to_grpc_alone(services: Router) -> Router {
    services.layer(from_fn(async |request: Request, next: Next| {
        if request.version() == Version::HTTP_2 && is_grpc(request.headers()) {
            next.run(request).await
        } else {
            not_found()
        }
    }))
}

fn not_found() -> Response {
    (StatusCode::NOT_FOUND, "404 page not found\n").into_response()
}

/// A path no service or route has: a gRPC caller is told which service is unknown.
async fn nobody(request: Request) -> Response {
    if !is_grpc(request.headers()) {
        return not_found();
    }
    let (service, _) = split(request.uri().path());
    Status::unimplemented(format!("unknown service {service}"))
        .into_http::<tonic::body::Body>()
        .map(axum::body::Body::new)
}

async fn reword(request: Request, next: Next) -> Response {
    let path = request.uri().path().to_owned();
    let response = next.run(request).await;
    // Only a refusal before any answer has its status among the headers.
    let Some(status) = Status::from_header_map(response.headers()) else {
        return response;
    };
    let told = match status.code() {
        Code::Unimplemented if status.message().is_empty() => {
            let (service, method) = split(&path);
            Status::unimplemented(format!("unknown method {method} for service {service}"))
        }
        Code::OutOfRange => grpc::in_etcds_words(status),
        _ => return response,
    };
    told.into_http::<tonic::body::Body>()
        .map(axum::body::Body::new)
}

fn is_grpc(headers: &HeaderMap) -> bool {
    headers
        .get(header::CONTENT_TYPE)
        .and_then(|kind| kind.to_str().ok())
        .is_some_and(|kind| kind.starts_with("application/grpc"))
}

/// The service and the method of a gRPC path.
fn split(path: &str) -> (&str, &str) {
    path.trim_start_matches('/')
        .split_once('/')
        .unwrap_or((path, ""))
}
