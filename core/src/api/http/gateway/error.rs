//! How the gateway tells a failure: etcd's JSON, with the HTTP status that belongs to the code.

use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use tonic::{Code, Status};

/// The body of a failed call. etcd 3.5.1 and before say the text twice; etcd 3.5.30 leaves `error`
/// out, so this is what clients of either understand.
#[derive(Serialize)]
struct Failed<'a> {
    error: &'a str,
    code: i32,
    message: &'a str,
}

/// The last line of a stream that failed.
#[derive(Serialize)]
struct Broken<'a> {
    error: Breach<'a>,
}

#[derive(Serialize)]
struct Breach<'a> {
    grpc_code: i32,
    http_code: u16,
    message: &'a str,
    http_status: &'static str,
}

/// The answer to a call that failed.
pub(super) fn failed(status: &Status) -> Response {
    let body = Failed {
        error: status.message(),
        code: status.code().into(),
        message: status.message(),
    };
    answer(status, serde_json::to_vec(&body).unwrap_or_default())
}

/// The answer to a streaming call that failed before it answered anything.
pub(super) fn failed_stream(status: &Status) -> Response {
    answer(status, last_line(status))
}

/// The last line of a stream that failed. It has no line break, as on etcd.
pub(super) fn last_line(status: &Status) -> Vec<u8> {
    let http = http_status(status.code());
    let line = Broken {
        error: Breach {
            grpc_code: status.code().into(),
            http_code: http.as_u16(),
            message: status.message(),
            http_status: http.canonical_reason().unwrap_or_default(),
        },
    };
    serde_json::to_vec(&line).unwrap_or_default()
}

fn answer(status: &Status, body: Vec<u8>) -> Response {
    let kind = [(header::CONTENT_TYPE, "application/json")];
    (http_status(status.code()), kind, body).into_response()
}

/// The HTTP status that etcd 3.5 answers for a code.
fn http_status(code: Code) -> StatusCode {
    match code {
        Code::Ok => StatusCode::OK,
        Code::Cancelled => StatusCode::REQUEST_TIMEOUT,
        Code::InvalidArgument | Code::FailedPrecondition | Code::OutOfRange => {
            StatusCode::BAD_REQUEST
        }
        Code::DeadlineExceeded => StatusCode::GATEWAY_TIMEOUT,
        Code::NotFound => StatusCode::NOT_FOUND,
        Code::AlreadyExists | Code::Aborted => StatusCode::CONFLICT,
        Code::PermissionDenied => StatusCode::FORBIDDEN,
        Code::Unauthenticated => StatusCode::UNAUTHORIZED,
        Code::ResourceExhausted => StatusCode::TOO_MANY_REQUESTS,
        Code::Unimplemented => StatusCode::NOT_IMPLEMENTED,
        Code::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
        Code::Unknown | Code::Internal | Code::DataLoss => StatusCode::INTERNAL_SERVER_ERROR,
    }
}
