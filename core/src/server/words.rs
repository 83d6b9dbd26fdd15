//! Around the services: what gRPC itself refuses is told in the words of etcd's gRPC library (unknown
//! services and methods, messages above the decode limit; clients match on these texts), and what is
//! not gRPC is kept from them.

use axum::extract::Request;
use axum::http::{HeaderMap, StatusCode, Version, header};
use axum::response::{IntoResponse, Response};
use tonic::{Code, Status};

use crate::api::grpc;

/// Whether it is gRPC's own request. Over HTTP/1.1, and without gRPC's content type, a web page can
/// send a request anywhere without asking first; the services would carry it out.
pub(super) fn is_call(request: &Request) -> bool {
    request.version() == Version::HTTP_2 && is_grpc(request.headers())
}

/// What is no call of a service, and no route.
pub(super) fn not_found() -> Response {
    (StatusCode::NOT_FOUND, "404 page not found\n").into_response()
}

/// A call on a path that no service has: the caller is told which service is unknown.
pub(super) async fn nobody(request: Request) -> Response {
    let (service, _) = split(request.uri().path());
    Status::unimplemented(format!("unknown service {service}"))
        .into_http::<tonic::body::Body>()
        .map(axum::body::Body::new)
}

/// An answer of `next`, a refusal in etcd's words.
pub(super) async fn reword<N, F>(request: Request, next: N) -> Response
where
    N: FnOnce(Request) -> F,
    F: Future<Output = Response>,
{
    let uri = request.uri().clone();
    let response = next(request).await;
    // Only a refusal before any answer has its status among the headers.
    let Some(status) = Status::from_header_map(response.headers()) else {
        return response;
    };
    let told = match status.code() {
        Code::Unimplemented if status.message().is_empty() => {
            let (service, method) = split(uri.path());
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
